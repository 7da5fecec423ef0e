"""What the kit's launchers push to: a sink that records what it is told, and can be waited on."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Literal

import attrs

from mlp_hookspecs import Failure, StepOutcome

if TYPE_CHECKING:
    from collections.abc import Callable, Collection


@attrs.frozen
class Told:
    """One call of a sink.

    Attributes
    ----------
    attempt_id : str
        The attempt.
    what : {"started", "heartbeat", "log", "finished", "lost"}
        The method.
    stream : str
        For a log chunk, its stream.
    data : bytes
        For a log chunk, its bytes.
    pid : int
        For a start, the process.
    outcome : StepOutcome or None
        For `finished`, how.
    failure : Failure or None
        For `lost`, why.
    """

    attempt_id: str
    what: Literal["started", "heartbeat", "log", "finished", "lost"]
    stream: str = ""
    data: bytes = b""
    pid: int = 0
    outcome: StepOutcome | None = None
    failure: Failure | None = None

    @property
    def is_end(self) -> bool:
        """Whether the attempt has ended with it."""
        return self.what in ("finished", "lost")


class RecordingSink:
    """A `LaunchSink` that keeps every call, in order."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._told: list[Told] = []
        self._changed = threading.Condition()

    def started(self, attempt_id: str, host: str, pid: int) -> None:
        """Record a start."""
        assert isinstance(host, str), "a start names the host"
        self._record(Told(attempt_id, "started", pid=pid))

    def heartbeat(self, attempt_id: str) -> None:
        """Record a sign of life."""
        self._record(Told(attempt_id, "heartbeat"))

    def log(self, attempt_id: str, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        """Record a log chunk."""
        self._record(Told(attempt_id, "log", stream=stream, data=bytes(data)))

    def finished(self, attempt_id: str, outcome: StepOutcome) -> None:
        """Record an end."""
        self._record(Told(attempt_id, "finished", outcome=outcome))

    def lost(self, attempt_id: str, failure: Failure) -> None:
        """Record an end without an outcome."""
        self._record(Told(attempt_id, "lost", failure=failure))

    def told(self, attempt_id: str) -> list[Told]:
        """Return all that was told of an attempt, in order."""
        with self._changed:
            return [told for told in self._told if told.attempt_id == attempt_id]

    def attempt_ids(self) -> list[str]:
        """Return the attempts of which anything was told."""
        with self._changed:
            return list(dict.fromkeys(told.attempt_id for told in self._told))

    def end(self, attempt_id: str) -> Told | None:
        """Return how an attempt ended; None where it has not."""
        return next((told for told in self.told(attempt_id) if told.is_end), None)

    def text(self, attempt_id: str, stream: str) -> bytes:
        """Return what an attempt has written to a stream."""
        return b"".join(told.data for told in self.told(attempt_id) if told.stream == stream)

    def wait_for(self, condition: Callable[[], bool], seconds: float = 60) -> bool:
        """Wait until something holds, looked at whenever something was told; return whether it does in time."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not condition():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, 0.1))
        return True

    def wait_for_ends(self, attempt_ids: Collection[str], seconds: float = 60) -> None:
        """Wait until attempts have ended; AssertionError where they do not in time."""
        ended = self.wait_for(lambda: all(self.end(attempt_id) for attempt_id in attempt_ids), seconds)
        left = [attempt_id for attempt_id in attempt_ids if self.end(attempt_id) is None]
        assert ended, f"the end of {', '.join(left[:5])} was not told within {seconds:g} s"

    def _record(self, told: Told) -> None:
        """Keep a call and wake who waits."""
        with self._changed:
            self._told.append(told)
            self._changed.notify_all()
