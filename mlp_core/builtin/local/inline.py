"""How attempts run inside the driver's own process, one after the other: for debuggers, notebooks and unit tests."""

from __future__ import annotations

import ctypes
import importlib
import io
import os
import platform
import queue
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from mlp_hookspecs import Failure

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterator, Mapping

    from mlp_hookspecs import LaunchRequest, StepOutcome, StepRequest
    from mlp_hookspecs.handles import LaunchSink


class Inline:
    """Runs attempts in a thread of this process, so that breakpoints stop and objects can be looked at.

    A task cannot be killed here: it gets a KeyboardInterrupt and is waited for.
    """

    def __init__(self, sink: LaunchSink) -> None:
        """Prepare."""
        self._sink = sink
        self._queue: queue.SimpleQueue[LaunchRequest | None] = queue.SimpleQueue()
        self._waiting: set[str] = set()
        self._running: str | None = None
        self._lock = threading.Lock()
        self._prepared: Callable[[StepRequest], StepOutcome] | None = None
        self._thread = threading.Thread(target=self._work, name="mlp-inline", daemon=True)
        self._thread.start()

    def submit(self, request: LaunchRequest) -> None:
        """Queue an attempt."""
        with self._lock:
            self._waiting.add(request.id)
        self._queue.put(request)

    def is_there(self, attempt_id: str) -> bool:
        """Tell whether an attempt has not ended."""
        with self._lock:
            return attempt_id in self._waiting or self._running == attempt_id

    def signal(self, attempt_id: str, sign: signal.Signals) -> bool:  # noqa: ARG002 # every signal is the same here
        """Interrupt an attempt."""
        with self._lock:
            if attempt_id in self._waiting:
                self._waiting.discard(attempt_id)
                return True
            if self._running != attempt_id:
                return False
            thread = ctypes.c_ulong(self._thread.ident or 0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(KeyboardInterrupt))
            return True

    def close(self) -> None:
        """Wait for the running attempt, and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        """Run attempts until closed."""
        while (request := self._queue.get()) is not None:
            with self._lock:
                is_wanted = request.id in self._waiting
                self._waiting.discard(request.id)
                self._running = request.id if is_wanted else None
            if not is_wanted:
                self._sink.lost(request.id, Failure("cancelled", "the attempt was cancelled before it began"))
                continue
            try:
                self._run(request)
            except KeyboardInterrupt:
                self._sink.lost(request.id, Failure("cancelled", "the step was interrupted"))

    def _run(self, request: LaunchRequest) -> None:
        """Run one attempt."""
        self._sink.started(request.id, platform.node(), os.getpid())
        streams: tuple[Literal["stdout"], Literal["stderr"]] = ("stdout", "stderr")
        out, err = (_Stream(self._sink, request.id, name, getattr(sys, name)) for name in streams)
        with _variables(request.command.variables), _streams(out, err):
            if self._prepared is None:
                module, _, name = request.command.entry.partition(":")
                self._prepared = getattr(importlib.import_module(module), name)(request.step)
            outcome = self._prepared(request.step)
        with self._lock:
            self._running = None
        self._sink.finished(request.id, outcome)


class _Stream(io.TextIOBase):
    """Passes what the inline thread prints to the sink, and what others print to the stream that was there before."""

    def __init__(
        self, sink: LaunchSink, attempt_id: str, name: Literal["stdout", "stderr"], before: io.TextIOBase
    ) -> None:
        super().__init__()
        self._sink = sink
        self._attempt_id = attempt_id
        self._name: Literal["stdout", "stderr"] = name
        self._before = before
        self._thread = threading.get_ident()

    def writable(self) -> bool:
        """Tell that it can be written to."""
        return True

    def write(self, text: str, /) -> int:
        """Write text."""
        if threading.get_ident() != self._thread:
            return self._before.write(text)
        self._sink.log(self._attempt_id, self._name, text.encode(errors="backslashreplace"))
        return len(text)

    def flush(self) -> None:
        """Flush the stream that was there before."""
        self._before.flush()


@contextmanager
def _variables(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a time."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _streams(out: io.TextIOBase, err: io.TextIOBase) -> Iterator[None]:
    """Put streams in the place of the standard ones for a time."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
