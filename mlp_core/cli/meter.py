"""A line in a terminal that tells how far something is."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Final, Self

from mlp_core.cli.progress import Output

if TYPE_CHECKING:
    from typing import TextIO

_PAUSE: Final = 0.1


class Meter:
    """A line in a terminal that tells how far something is; nothing where there is no terminal.

    Parameters
    ----------
    stream : TextIO
        Where the line goes.
    """

    def __init__(self, stream: TextIO) -> None:
        """Show nothing yet."""
        self._output = Output(stream) if stream.isatty() and os.environ.get("TERM", "dumb") != "dumb" else None
        self._guard = threading.Lock()
        self._shown_at = 0.0
        self._is_shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def show(self, text: str) -> None:
        """Show a text in the place of the last one, a few times a second; from any thread."""
        now = time.monotonic()
        with self._guard:
            if self._output is None or now < self._shown_at + _PAUSE:
                return
            self._shown_at = now
            self._is_shown = True
            self._output.write(f"\r\x1b[K{text}")

    def clear(self) -> None:
        """Remove the line."""
        with self._guard:
            if self._output is not None and self._is_shown:
                self._output.write("\r\x1b[K")
                self._is_shown = False
