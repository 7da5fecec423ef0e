"""How attempts run inside the driver's own process, one after the other: for debuggers, notebooks and unit tests."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import os
import platform
import queue
import sys
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mlp_hookspecs import Failure
from mlp_hookspecs.masking import MaskedStream, Masker

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterator, Sequence

    from mlp_hookspecs import LaunchRequest, StepOutcome, StepRequest, WorkerCommand
    from mlp_hookspecs.handles import LaunchSink

_END_SECONDS = 1.0
"""How long a step that was interrupted may take to end when the launcher is closed."""


class Inline:
    """Runs attempts in threads of this process, so that breakpoints stop and objects can be looked at.

    A task cannot be killed here: it gets a KeyboardInterrupt and is waited for.
    """

    def __init__(self, sink: LaunchSink) -> None:
        """Prepare."""
        self._sink = sink
        self._queue: queue.SimpleQueue[LaunchRequest | None] = queue.SimpleQueue()
        self._waiting: set[str] = set()
        self._running: _Body | None = None
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
            return attempt_id in self._waiting or self._is_running(attempt_id)

    def signal(self, attempt_id: str, sign: signal.Signals) -> bool:  # noqa: ARG002 # every signal is the same here
        """Interrupt an attempt."""
        with self._lock:
            if attempt_id in self._waiting:
                self._waiting.discard(attempt_id)
                return True
            if self._running is None or not self._is_running(attempt_id):
                return False
            self._running.interrupt()
            return True

    def close(self) -> None:
        """Interrupt the running attempt, and end the thread; a step that goes on nevertheless is left to itself."""
        with self._lock:
            self._waiting.clear()
            running = self._running
            if running is not None:
                running.interrupt()
        self._queue.put(None)
        self._thread.join(None if running is None else _END_SECONDS)

    def _is_running(self, attempt_id: str) -> bool:
        """Tell whether an attempt is the one that runs."""
        return self._running is not None and self._running.request.id == attempt_id

    def _work(self) -> None:
        """Run attempts until closed."""
        while (request := self._queue.get()) is not None:
            result = self._result(request)
            with self._lock:
                self._running = None
            if isinstance(result, Failure):
                self._sink.lost(request.id, result)
            else:
                self._sink.finished(request.id, result)

    def _result(self, request: LaunchRequest) -> StepOutcome | Failure:
        """Run one attempt, and return how it ended."""
        body = _Body(request, self._call)
        with self._lock:
            if request.id not in self._waiting:
                return Failure("cancelled", "the attempt was cancelled before it began")
            self._waiting.discard(request.id)
            self._running = body
        python = request.command.argv[0]
        if python != sys.executable:
            return Failure(
                "system",
                f"step {request.step.key.step} runs with the interpreter {python}, and isolation inline has only"
                f" {sys.executable}; choose fork or spawn",
            )
        self._sink.started(request.id, platform.node(), os.getpid())
        try:
            # Outside of the body's thread, where an interrupt could come between.
            with _surroundings(request.command), _streams(self._sink, request.id, body.thread):
                return body.run()
        except (OSError, RuntimeError) as error:  # no such folder; no thread is left
            return Failure("system", f"the step could not be begun: {error}")

    def _call(self, request: LaunchRequest) -> StepOutcome:
        """Run one attempt; in the body's thread."""
        if self._prepared is None:
            module, _, name = request.command.entry.partition(":")
            self._prepared = getattr(importlib.import_module(module), name)(request.step)
        return self._prepared(request.step)


class _Body:
    """What may be interrupted at any place: a thread of its own, of whose end somebody else tells."""

    def __init__(self, request: LaunchRequest, call: Callable[[LaunchRequest], StepOutcome]) -> None:
        self.request = request
        self.thread = threading.Thread(target=self._run, name="mlp-inline-step", daemon=True)
        self._call = call
        self._is_wanted = True
        self._result: StepOutcome | Failure = Failure("cancelled", "the step was interrupted")

    def run(self) -> StepOutcome | Failure:
        """Run it, and return how it ended."""
        self.thread.start()
        self.thread.join()
        return self._result

    def interrupt(self) -> None:
        """Raise a KeyboardInterrupt in it, wherever it is."""
        self._is_wanted = False
        if self.thread.is_alive():
            ident = ctypes.c_ulong(self.thread.ident or 0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(KeyboardInterrupt))

    def _run(self) -> None:
        """Run it; an interrupt outside of the step's own code ends the thread, and so the attempt."""
        with contextlib.suppress(KeyboardInterrupt):
            try:
                if self._is_wanted:
                    self._result = self._call(self.request)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 # whatever it is, it is the end of this attempt only
                self._result = Failure("system", f"the step could not be run: {type(error).__name__}: {error}")


class _Stream(io.TextIOBase):
    """Passes what one thread prints to the sink, and what others print to the stream that was there before."""

    def __init__(self, before: io.TextIOBase, thread: threading.Thread, log: Callable[[bytes], None]) -> None:
        super().__init__()
        self._before = before
        self._thread = thread
        self._log = log
        self._masked: MaskedStream | None = None

    def hide(self, secrets: Sequence[str]) -> None:
        """Keep texts out of what is passed on from now on."""
        self._masked = MaskedStream(Masker(secrets))

    def end(self) -> None:
        """Pass on what might have been the beginning of a secret."""
        rest = self._masked.rest() if self._masked is not None else b""
        if rest:
            self._log(rest)

    def writable(self) -> bool:
        """Tell that it can be written to."""
        return True

    def write(self, text: str, /) -> int:
        """Write text."""
        if threading.current_thread() is not self._thread:
            return self._before.write(text)
        data = text.encode(errors="backslashreplace")
        if self._masked is not None:
            data = self._masked.feed(data)
        if data:
            self._log(data)
        return len(text)

    def flush(self) -> None:
        """Flush the stream that was there before."""
        self._before.flush()


@contextmanager
def _surroundings(command: WorkerCommand) -> Iterator[None]:
    """Have a command's environment variables and working folder for a time."""
    with ExitStack() as stack:
        if command.cwd is not None and Path(command.cwd).is_dir():
            stack.enter_context(contextlib.chdir(command.cwd))
        before = dict(os.environ)
        for name in command.unset:
            os.environ.pop(name, None)
        os.environ.update(command.variables)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


@contextmanager
def _streams(sink: LaunchSink, attempt_id: str, thread: threading.Thread) -> Iterator[None]:
    """Put streams in the place of the standard ones for a time, which pass a thread's output to the sink."""

    def passing_on(name: Literal["stdout", "stderr"]) -> _Stream:
        return _Stream(getattr(sys, name), thread, lambda data: sink.log(attempt_id, name, data))

    before = sys.stdout, sys.stderr
    out, err = passing_on("stdout"), passing_on("stderr")
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        out.end()
        err.end()
