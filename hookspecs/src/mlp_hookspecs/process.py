"""How a launcher runs a worker as a process: the worker protocol, and a loop that speaks it with many at once.

The protocol, version 1:

- The command of a `WorkerCommand` is started in a process group of its own. Its standard input is the request, as
  `wire.dumps` writes it, followed by the end of the file.
- Its standard output and error are the task's log.
- The environment variable ``MLP_WORKER_FD`` numbers a descriptor for messages to the launcher: one JSON object a line,
  ``{"started": {"host": ..., "pid": ...}}`` first and ``{"outcome": {...}}`` last. By ``{"secrets": [...]}`` the worker
  names texts that must not leave this host; it prints nothing more before the launcher has taken that in.
- A process that ends without an outcome has failed; `failure_of_exit` says why.
- A signal to end (SIGTERM) reaches the step as an exception; what the step leaves behind is killed when it has ended.
- The worker ends with its launcher: on Linux by the parent-death signal, elsewhere when the variable
  ``MLP_WORKER_LIFELINE`` numbers a descriptor that reaches its end.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs

from mlp_hookspecs import wire
from mlp_hookspecs.masking import MaskedStream, Masker
from mlp_hookspecs.trees import (
    LIFELINE_FD,
    adopt_orphans,
    descendants,
    die_with_parent,
    guard,
    kill_tree,
    take_lifeline,
)
from mlp_hookspecs.types import Failure, StepOutcome, WorkerCommand

if TYPE_CHECKING:
    from mlp_hookspecs.handles import LaunchSink

__all__ = [
    "LIFELINE_FD",
    "MESSAGE_FD",
    "MessageWriter",
    "WorkerLoop",
    "adopt_orphans",
    "await_end",
    "descendants",
    "die_with_parent",
    "failure_of_exit",
    "guard",
    "kill_tree",
    "run_worker",
    "send_request",
    "start_worker",
    "take_lifeline",
    "worker_environment",
]

MESSAGE_FD = "MLP_WORKER_FD"
_CHUNK = 1 << 16
_JOIN_SECONDS = 5.0
_LEFT_BYTES = 1 << 20
"""So much can be in a pipe when its writer has ended: the most that Linux lets a user have."""

_Stream = Literal["stdout", "stderr", "messages"]


@attrs.define(eq=False)
class _Pipe:
    """The launcher's end of one of an attempt's pipes."""

    attempt_id: str
    stream: _Stream
    fd: int


@attrs.define(eq=False)
class _Attempt:
    """What the loop knows of an attempt."""

    id: str
    pipes: list[_Pipe]
    messages: bytearray = attrs.field(factory=bytearray)
    outcome: StepOutcome | None = None
    started: bool = False
    secrets: list[str] = attrs.field(factory=list, repr=False)
    masked: dict[str, MaskedStream] = attrs.field(factory=dict)


class WorkerLoop:
    """One thread that reads the pipes of many workers and tells a sink what happens to them.

    Parameters
    ----------
    sink : LaunchSink
        Where starts, logs and outcomes go.
    on_end : callable, optional
        Called with an attempt's id before its end is told to the sink.

    Notes
    -----
    A launcher gives the pipes of each worker that it starts to `add`, and the status of each that has ended to
    `exited`; the loop tells the sink everything else. A sink that lets `log` wait holds up the reading of all pipes,
    and so those who write to them. An exception in a callback is reported as one of the thread's, which goes on.
    """

    def __init__(self, sink: LaunchSink, *, on_end: Callable[[str], None] | None = None) -> None:
        """Make the loop; its thread starts with `start`."""
        self._sink = sink
        self._on_end = on_end
        self._selector = selectors.DefaultSelector()
        self._attempts: dict[str, _Attempt] = {}
        self._calls: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="mlp-worker-loop", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def call(self, function: Callable[[], None]) -> None:
        """Run a function in the loop's thread, soon; after `close` it is forgotten."""
        with self._lock:
            if self._wake_write < 0:
                return
            self._calls.append(function)
            with contextlib.suppress(BlockingIOError):
                os.write(self._wake_write, b"x")

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        """Call a function in the loop's thread whenever a descriptor is readable; call this in that thread."""
        self._selector.register(fd, selectors.EVENT_READ, ready)

    def unwatch(self, fd: int) -> None:
        """Undo `watch`; call this in the loop's thread."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(fd)

    def add(self, attempt_id: str, stdout: int, stderr: int, messages: int) -> None:
        """Take over the reading ends of an attempt's pipes."""
        names: tuple[tuple[_Stream, int], ...] = (("stdout", stdout), ("stderr", stderr), ("messages", messages))
        attempt = _Attempt(attempt_id, [_Pipe(attempt_id, stream, fd) for stream, fd in names])
        for pipe in attempt.pipes:
            os.set_blocking(pipe.fd, False)

        def register() -> None:
            self._attempts[attempt_id] = attempt
            for pipe in attempt.pipes:
                self._selector.register(pipe.fd, selectors.EVENT_READ, pipe)

        self.call(register)

    def exited(self, attempt_id: str, status: int, reason: Failure | None = None) -> None:
        """Tell that an attempt's process has ended.

        Parameters
        ----------
        attempt_id : str
            The attempt.
        status : int
            The status, as `os.waitstatus_to_exitcode` gives it.
        reason : Failure, optional
            Why the attempt is lost where it has left no outcome; by default what `failure_of_exit` makes of the status.
        """
        self.call(lambda: self._finish(attempt_id, status, reason))

    def forget(self, attempt_id: str) -> None:
        """Stop reading for an attempt that goes on elsewhere; nothing more is told of it from here."""

        def drop() -> None:
            attempt = self._attempts.get(attempt_id)
            if attempt is not None:
                self._drop(attempt)

        self.call(drop)

    def has_started(self, attempt_id: str) -> bool:
        """Tell whether the attempt's worker has said that it began; True for one that has ended."""
        attempt = self._attempts.get(attempt_id)
        return attempt is None or attempt.started

    def close(self) -> None:
        """End the thread; what is still open is abandoned.

        A thread that is held up in the sink closes what it has as soon as it goes on.
        """
        self._closed = True
        self.call(lambda: None)
        if self._thread.ident is None:
            self._release()
        else:
            self._thread.join(timeout=_JOIN_SECONDS)

    def _run(self) -> None:
        """Read until closed."""
        try:
            while not self._closed:
                for key, _ in self._selector.select():
                    try:
                        if key.data is None:
                            self._drain_wake()
                        elif isinstance(key.data, _Pipe):
                            self._read(key.data)
                        else:
                            key.data()
                    except Exception:  # noqa: BLE001 # one attempt's trouble must not be the end of the others
                        self._report()
                with self._lock:
                    calls, self._calls = self._calls, []
                for function in calls:
                    try:
                        function()
                    except Exception:  # noqa: BLE001 # as above
                        self._report()
        finally:
            self._release()

    def _report(self) -> None:
        """Tell of the exception that is being handled as of one that has ended the thread."""
        threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), self._thread)))

    def _release(self) -> None:
        """Close all that is open; nothing is read any more."""
        for attempt in list(self._attempts.values()):
            self._drop(attempt)
        self._selector.close()
        with self._lock:
            os.close(self._wake_read)
            os.close(self._wake_write)
            # Whoever still has something to tell must not write to a file that gets the number next.
            self._wake_read = self._wake_write = -1

    def _drain_wake(self) -> None:
        """Empty the pipe that wakes the thread."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_read, _CHUNK):
                pass

    def _read(self, pipe: _Pipe) -> int:
        """Read once from a pipe; return how many bytes that were, 0 where there is nothing more now."""
        attempt = self._attempts.get(pipe.attempt_id)
        if attempt is None:
            return 0
        try:
            data = os.read(pipe.fd, _CHUNK)
        except BlockingIOError:
            return 0
        if not data:
            self._selector.unregister(pipe.fd)
            os.close(pipe.fd)
            attempt.pipes.remove(pipe)
            return 0
        if pipe.stream == "messages":
            self._message(attempt, data)
        else:
            self._log(attempt, pipe.stream, data)
        return len(data)

    def _log(self, attempt: _Attempt, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        """Pass on what an attempt printed, without its secrets."""
        if attempt.secrets:
            data = attempt.masked[stream].feed(data)
        if data:
            self._sink.log(attempt.id, stream, data)

    def _log_what_was_held(self, attempt: _Attempt) -> None:
        """Pass on what might have been the beginning of a secret."""
        streams: tuple[Literal["stdout", "stderr"], ...] = ("stdout", "stderr")
        for stream in streams:
            data = attempt.masked[stream].rest() if attempt.secrets else b""
            if data:
                self._sink.log(attempt.id, stream, data)

    def _hide(self, attempt: _Attempt, secrets: Sequence[object]) -> None:
        """Keep texts out of what an attempt prints from now on."""
        self._log_what_was_held(attempt)
        attempt.secrets += [str(secret) for secret in secrets]
        masker = Masker(attempt.secrets)
        attempt.masked = {stream: MaskedStream(masker) for stream in ("stdout", "stderr")}

    def _message(self, attempt: _Attempt, data: bytes) -> None:
        """Take in a piece of the message stream."""
        attempt.messages += data
        if b"\n" not in data:
            return
        *lines, rest = bytes(attempt.messages).split(b"\n")
        attempt.messages = bytearray(rest)
        for line in lines:
            try:
                self._understand(attempt, json.loads(line))
            except Exception:  # noqa: BLE001 # code under test writes where it likes: what is no message is its output
                self._log(attempt, "stderr", line + b"\n")

    def _understand(self, attempt: _Attempt, message: Any) -> None:
        """Act on one message; one of a kind that is not known here is passed over."""
        if not isinstance(message, dict):
            raise TypeError(message)
        if "started" in message:
            host, pid = str(message["started"]["host"]), int(message["started"]["pid"])
            attempt.started = True
            self._sink.started(attempt.id, host, pid)
        elif "heartbeat" in message:
            self._sink.heartbeat(attempt.id)
        elif "secrets" in message:
            self._hide(attempt, message["secrets"])
        elif "outcome" in message:
            attempt.outcome = wire.decode(StepOutcome, message["outcome"])

    def _finish(self, attempt_id: str, status: int, reason: Failure | None) -> None:
        """Read what is left in the pipes, and tell the attempt's end."""
        attempt = self._attempts.get(attempt_id)
        if attempt is None:
            return
        try:
            for pipe in list(attempt.pipes):
                self._read_what_is_left(pipe)
            self._log_what_was_held(attempt)
        finally:
            self._drop(attempt)
            try:
                if self._on_end is not None:
                    self._on_end(attempt_id)
            finally:
                if attempt.outcome is not None:
                    self._sink.finished(attempt_id, attempt.outcome)
                else:
                    self._sink.lost(attempt_id, reason or failure_of_exit(status))

    def _read_what_is_left(self, pipe: _Pipe) -> None:
        """Read what was in a pipe when the worker ended: whom it left may hold the pipe open, and write for ever."""
        left = _LEFT_BYTES
        while left > 0:
            size = self._read(pipe)
            if not size:
                return
            left -= size

    def _drop(self, attempt: _Attempt) -> None:
        """Forget an attempt and close its pipes."""
        for pipe in attempt.pipes:
            with contextlib.suppress(KeyError):
                self._selector.unregister(pipe.fd)
            os.close(pipe.fd)
        attempt.pipes.clear()
        self._attempts.pop(attempt.id, None)


def failure_of_exit(status: int) -> Failure:
    """Return why a worker that left no outcome has failed.

    Parameters
    ----------
    status : int
        The exit status, or the negated number of the signal that ended it.

    Returns
    -------
    Failure
        Of the kind ``killed`` or ``exit``.

    Examples
    --------
    >>> failure_of_exit(-11).message
    'the process was killed by SIGSEGV (segmentation fault)'
    """
    if status >= 0:
        return Failure("exit", f"the process exited with status {status} before the step had finished")
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    meaning = signal.strsignal(-status) if -status in signal.valid_signals() else None
    text = f"the process was killed by {name}" + (f" ({meaning.lower()})" if meaning else "")
    if -status == signal.SIGKILL:
        text += "; the usual reason is that the machine or its control group ran out of memory"
    return Failure("killed", text)


def start_worker(command: WorkerCommand, *, lifeline: int | None = None) -> tuple[subprocess.Popen[bytes], int]:
    """Start a worker's process.

    Parameters
    ----------
    command : WorkerCommand
        How.
    lifeline : int, optional
        A descriptor whose end tells the worker that its launcher has gone, for systems without a parent-death signal.

    Returns
    -------
    process : subprocess.Popen
        With pipes for all three standard streams. Write the request to its input and close that.
    messages : int
        The descriptor from which the worker's messages can be read.

    Raises
    ------
    OSError
        Where the process cannot be started.
    """
    read_end, write_end = os.pipe()
    environment = worker_environment(command.variables, command.unset)
    environment[MESSAGE_FD] = str(write_end)
    passed = [write_end]
    environment.pop(LIFELINE_FD, None)  # this process's own, where it is a worker itself
    if lifeline is not None:
        environment[LIFELINE_FD] = str(lifeline)
        passed.append(lifeline)
    try:
        process = subprocess.Popen(  # an argument list made by the core
            command.argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=command.cwd if command.cwd and Path(command.cwd).is_dir() else None,
            pass_fds=passed,
            process_group=0,
        )
    except BaseException:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)
    return process, read_end


def worker_environment(variables: Mapping[str, str], unset: Sequence[str] = ()) -> dict[str, str]:
    """Return this process's environment with a command's changes."""
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment.update(variables)
    return environment


def run_worker(command: WorkerCommand, request: bytes, attempt_id: str, sink: LaunchSink) -> None:
    """Run one worker and return when its end has been told to the sink. For agents that serve one attempt at a time.

    Parameters
    ----------
    command : WorkerCommand
        How to start it.
    request : bytes
        The request, by `wire.dumps`.
    attempt_id : str
        Its identity in every message.
    sink : LaunchSink
        Where starts, logs and the end go.
    """
    ended = threading.Event()
    loop = WorkerLoop(_EndingSink(sink, ended))
    try:
        process, messages = start_worker(command)
    except OSError as error:
        loop.close()
        sink.lost(attempt_id, Failure("system", f"the worker could not be started: {error}"))
        return
    if process.stdin is None or process.stdout is None or process.stderr is None:  # pragma: no cover # Popen was told
        raise RuntimeError(attempt_id)
    loop.start()
    try:
        loop.add(attempt_id, os.dup(process.stdout.fileno()), os.dup(process.stderr.fileno()), messages)
        send_request(process, request)
        loop.exited(attempt_id, await_end(process))
        ended.wait()
    finally:
        if process.returncode is None:
            kill_tree(process.pid)
        process.stdout.close()
        process.stderr.close()
        process.wait()
        loop.close()


def await_end(process: subprocess.Popen[bytes]) -> int:
    """Wait for a worker's end, kill what it has left behind, and return its status.

    What is left is killed before the worker is reaped, as far as the system can do that: until then, its number cannot
    belong to another process.

    Parameters
    ----------
    process : subprocess.Popen
        The worker, the leader of its process group.

    Returns
    -------
    int
        The exit status, or the negated number of the signal that ended it.
    """
    wait_unreaped = getattr(os, "waitid", None)  # macOS has it from Python 3.13 on
    if wait_unreaped is not None:
        try:
            wait_unreaped(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:  # somebody else has reaped it
            return process.wait()
    else:
        process.wait()
    try:
        kill_tree(process.pid)
    finally:
        status = process.wait()
    return status


def send_request(process: subprocess.Popen[bytes], request: bytes) -> None:
    """Write a request to a worker's input and close that; a worker that has died meanwhile is no error here."""
    if process.stdin is None:
        return
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(request)
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


class _EndingSink:
    """A sink that passes everything on, and sets an event after the attempt's end."""

    def __init__(self, sink: LaunchSink, ended: threading.Event) -> None:
        self._sink = sink
        self._ended = ended
        self.started = sink.started
        self.heartbeat = sink.heartbeat
        self.log = sink.log

    def finished(self, attempt_id: str, outcome: StepOutcome) -> None:
        """Pass on, and set the event."""
        self._sink.finished(attempt_id, outcome)
        self._ended.set()

    def lost(self, attempt_id: str, failure: Failure) -> None:
        """Pass on, and set the event."""
        self._sink.lost(attempt_id, failure)
        self._ended.set()


class MessageWriter:
    """The worker's end of the message stream.

    Parameters
    ----------
    fd : int
        The descriptor.
    """

    def __init__(self, fd: int) -> None:
        """Take over the descriptor; processes that the step starts do not inherit it."""
        os.set_inheritable(fd, False)  # noqa: FBT003 # the standard library's signature
        self._fd = fd
        self._lock = threading.Lock()

    def send(self, message: Mapping[str, Any]) -> None:
        """Write one message."""
        data = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
