"""Where launchers' messages reach the driver: a thread-safe queue that is emptied in batches."""

from __future__ import annotations

import queue
import time
from typing import Literal, TypeAlias

import attrs

from mlp_hookspecs import Failure, StepOutcome


@attrs.frozen(eq=False, repr=False)
class Started:
    """A worker has begun."""

    attempt_id: str
    host: str
    pid: int


@attrs.frozen(eq=False, repr=False)
class Logged:
    """An attempt printed something."""

    attempt_id: str
    stream: Literal["stdout", "stderr"]
    data: bytes
    time: float


@attrs.frozen(eq=False, repr=False)
class Ended:
    """An attempt ended, with its worker's outcome or without."""

    attempt_id: str
    result: StepOutcome | Failure


@attrs.frozen(eq=False, repr=False)
class Signalled:
    """The process was asked to end."""

    number: int


Message: TypeAlias = Started | Logged | Ended | Signalled


class Inbox:
    """The driver's `LaunchSink`."""

    def __init__(self) -> None:
        """Begin empty."""
        self._queue: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def started(self, attempt_id: str, host: str, pid: int) -> None:
        """Queue the message."""
        self._queue.put(Started(attempt_id, host, pid))

    def heartbeat(self, attempt_id: str) -> None:
        """Let it pass: no launcher's silence is taken for death here."""

    def log(self, attempt_id: str, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        """Queue the message, with the time."""
        self._queue.put(Logged(attempt_id, stream, data, time.time()))

    def finished(self, attempt_id: str, outcome: StepOutcome) -> None:
        """Queue the message."""
        self._queue.put(Ended(attempt_id, outcome))

    def lost(self, attempt_id: str, failure: Failure) -> None:
        """Queue the message."""
        self._queue.put(Ended(attempt_id, failure))

    def signalled(self, number: int) -> None:
        """Queue the message; a signal handler may call this, since the queue is re-entrant."""
        self._queue.put(Signalled(number))

    def wait(self, timeout: float | None) -> list[Message]:
        """Return all messages that are there, waiting for the first.

        Parameters
        ----------
        timeout : float or None
            Seconds to wait at most; None for as long as it takes.
        """
        messages: list[Message] = []
        try:
            messages.append(self._queue.get(timeout=timeout))
            while True:
                messages.append(self._queue.get_nowait())
        except queue.Empty:
            return messages
