"""How a worker keeps secrets out of what it tells: its log, the reason of a failure, what plugins attach."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import attrs

from mlp_hookspecs.masking import Masker
from mlp_hookspecs.process import MESSAGE_FD, MessageWriter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlp_hookspecs import Failure

_LOOK_SECONDS = 0.0005


class Hiding:
    """Knows the secrets of one attempt.

    Parameters
    ----------
    masker : Masker or None
        What masks them; None where there are none.
    """

    def __init__(self, masker: Masker | None = None) -> None:
        """Take over what masks them."""
        self.masker = masker

    @classmethod
    def of(cls, secrets: Sequence[str]) -> Hiding:
        """Return what hides secrets, after whoever records this process's output has been told of them."""
        if not any(secrets):
            return cls()
        _tell(secrets)
        return cls(Masker(secrets))

    def failure(self, failure: Failure) -> Failure:
        """Return a failure without the secrets."""
        if self.masker is None:
            return failure
        return attrs.evolve(
            failure, message=self.masker.text(failure.message), traceback=self.masker.text(failure.traceback)
        )

    def content(self, content: bytes) -> bytes:
        """Return the content of a report without the secrets."""
        return content if self.masker is None else self.masker.data(content)


def _tell(secrets: Sequence[str]) -> None:
    """Tell the launcher of the secrets, or the streams that stand in its place in this process."""
    for stream in (sys.stdout, sys.stderr):
        hide = getattr(stream, "hide", None)
        if hide is not None:
            hide(secrets)
    fd = int(os.environ.get(MESSAGE_FD) or -1)
    if fd >= 0:
        MessageWriter(fd).send({"secrets": list(secrets)})
        _wait_until_read(fd)


def _wait_until_read(fd: int) -> None:
    """Return when all that was written to a pipe has been read: the log's pipes are others, and may be read first."""
    import fcntl
    import termios

    while True:
        try:
            left = fcntl.ioctl(fd, termios.FIONREAD, bytes(4))
        except OSError:  # a system that does not tell
            return
        if not any(left):
            return
        time.sleep(_LOOK_SECONDS)
