"""A small whole flow: a foreach, a join, values that become blobs and values that stay in the journal, and logs."""

from __future__ import annotations

import os
import signal
import time

from mlp_core import FlowSpec, step


class Harmed(FlowSpec):
    """What is harmed."""

    @step
    def start(self) -> None:
        """Make a large and a small value, and fan out."""
        self.items = [1, 2, 3]
        self.large = bytes(range(250)) * 100
        self.next(self.work, foreach="items")

    @step
    def work(self) -> None:
        """Make a value of one's own, and print."""
        if os.environ.get("MLP_RELIABILITY_STUBBORN"):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
        print(f"printed by {self.input}")
        time.sleep(float(os.environ.get("MLP_RELIABILITY_PAUSE", "0")))
        self.part = bytes([self.input]) * 20_000
        self.square = self.input**2
        self.next(self.join)

    @step
    def join(self, inputs: list[Harmed]) -> None:
        """Bring all together."""
        self.parts = b"".join(each.part for each in inputs)
        self.total = sum(each.square for each in inputs)
        self.next(self.end)

    @step
    def end(self) -> None:
        """Print."""
        print("printed by the end")


if __name__ == "__main__":
    Harmed()
