"""Where launchers' messages reach the driver: a thread-safe queue that is emptied in batches.

Logs are bounded: who brings more of them than the driver can take in has to wait, and so has the task that prints them.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import Literal, TypeAlias

import attrs

from mlp_core.runner.requests import StepSetup
from mlp_core.store.records import EnvironmentLocked
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


@attrs.frozen(eq=False, repr=False)
class Prepared:
    """What an attempt was waiting for is there: its environment."""

    attempt_id: str
    step: StepSetup
    record: EnvironmentLocked


Message: TypeAlias = Started | Logged | Ended | Signalled | Prepared

_MOST_LOG_BYTES = 4 << 20
"""So much of the logs may wait for the driver."""

_MOST_MESSAGES = 1000
"""So many messages are taken in at once, so that timers are looked at meanwhile."""


class Inbox:
    """The driver's `LaunchSink`."""

    def __init__(self) -> None:
        """Begin empty."""
        self._queue: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._space = threading.Condition(threading.Lock())
        self._log_bytes = 0
        self._is_closed = False

    def started(self, attempt_id: str, host: str, pid: int) -> None:
        """Queue the message."""
        self._queue.put(Started(attempt_id, host, pid))

    def heartbeat(self, attempt_id: str) -> None:
        """Let it pass: no launcher's silence is taken for death here."""

    def log(self, attempt_id: str, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        """Queue the message, with the time; wait while there are too many that the driver has not taken in."""
        with self._space:
            while self._log_bytes > _MOST_LOG_BYTES and not self._is_closed:
                self._space.wait()
            if self._is_closed:
                return
            self._log_bytes += len(data)
            self._queue.put(Logged(attempt_id, stream, data, time.time()))

    def finished(self, attempt_id: str, outcome: StepOutcome) -> None:
        """Queue the message."""
        self._queue.put(Ended(attempt_id, outcome))

    def lost(self, attempt_id: str, failure: Failure) -> None:
        """Queue the message."""
        self._queue.put(Ended(attempt_id, failure))

    def prepared(self, attempt_id: str, step: StepSetup, record: EnvironmentLocked) -> None:
        """Queue the message."""
        self._queue.put(Prepared(attempt_id, step, record))

    def signalled(self, number: int) -> None:
        """Queue the message; a signal handler may call this, since the queue is re-entrant."""
        self._queue.put(Signalled(number))

    def close(self) -> None:
        """Let nobody wait any more; what is logged from now on is dropped."""
        with self._space:
            self._is_closed = True
            self._space.notify_all()

    def wait(self, timeout: float | None) -> list[Message]:
        """Return the messages that are there, up to a limit, waiting for the first.

        Parameters
        ----------
        timeout : float or None
            Seconds to wait at most; None for as long as it takes.
        """
        messages: list[Message] = []
        try:
            messages.append(self._queue.get(timeout=timeout))
            while len(messages) < _MOST_MESSAGES:
                messages.append(self._queue.get_nowait())
        except queue.Empty:
            pass
        taken = sum(len(message.data) for message in messages if isinstance(message, Logged))
        if taken:
            with self._space:
                self._log_bytes -= taken
                self._space.notify_all()
        return messages
