"""What tells processes that their launcher has gone, on every system: a pipe of which it alone holds the other end."""

from __future__ import annotations

import os


class Lifeline:
    """A pipe that ends with this process.

    Attributes
    ----------
    fd : int
        The reading end, which processes are to inherit.
    """

    def __init__(self) -> None:
        """Make it."""
        self.fd, self._held = os.pipe()

    def let_go(self) -> None:
        """Close the writing end: in a fork of this process, which must not keep the lifeline whole; or to cut it."""
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def close(self) -> None:
        """Cut it, and close the reading end."""
        self.let_go()
        os.close(self.fd)
