"""The price of durability: a flow of ten steps with every result synced, beside the same with nothing synced.

::

    python benchmarks/durability.py

Each step works for 50 ms and leaves an artifact of 100 kB, so that every task syncs a blob and the journal. The store
lies in the system's temporary folder, which has to be on a disk: on a file system in memory there is nothing to sync.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Final

from harness import MLP, Claim, Workspace, arguments, interleave, report

STEPS: Final = 10

HEAD: Final = """\
import os
import time

from mlp_core import FlowSpec, step


def work():
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    return os.urandom(100_000)


class Chain(FlowSpec):
"""


def main() -> int:
    """Measure, and report."""
    args = arguments("The price of durability.", rounds=9, needs_metaflow=False).parse_args()
    rounds = 2 if args.quick else args.rounds
    with Workspace.make() as space:
        kind = subprocess.run(
            ["stat", "-f", "-c", "%T", space.folder], check=True, capture_output=True, text=True
        ).stdout.strip()
        flow = space.write("chain.py", source())

        def run(durability: str) -> float:
            return space.seconds(MLP, "run", flow, "--storage-durability", durability, "--store", durability)

        measured = interleave({level: lambda level=level: run(level) for level in ("durable", "fast")}, rounds)
    claim = Claim(
        text=f"{STEPS} steps that work for 50 ms each, the whole process",
        ours=measured["durable"],
        peer=measured["fast"],
        limit=1.2,
        peer_name="with nothing synced",
    )
    return report("durability", args, [claim], file_system=kind)


def source() -> str:
    """Return the flow."""
    names = ["start", *(f"step{number}" for number in range(1, STEPS - 1)), "end"]
    lines = []
    for name, following in zip(names, [*names[1:], None], strict=True):
        lines += ["    @step", f"    def {name}(self):", f"        self.{name}_result = work()"]
        lines += [f"        self.next(self.{following})"] if following else []
    return HEAD + "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
