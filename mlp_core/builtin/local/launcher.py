"""How the launcher `local` starts, cancels and ends attempts, whichever way they are kept apart."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Final, Protocol, Self

from mlp_core.builtin.local.forking import Forking, Patience
from mlp_core.builtin.local.lifeline import Lifeline
from mlp_hookspecs import Failure, wire
from mlp_hookspecs.process import WorkerLoop, await_end, kill_tree, send_request, start_worker

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence
    from types import TracebackType

    from mlp_hookspecs import LaunchRequest, WorkerCommand
    from mlp_hookspecs.handles import LaunchSink, Settings

ISOLATIONS: Final = ("fork", "spawn", "inline")

_POLL_SECONDS = 0.05


class Isolation(Protocol):
    """One way of keeping tasks apart."""

    def submit(self, request: LaunchRequest) -> None:
        """Start an attempt; return at once."""

    def signal(self, attempt_id: str, sign: signal.Signals) -> bool:
        """Signal an attempt, with all its processes where the signal kills; return whether it was there."""

    def is_there(self, attempt_id: str) -> bool:
        """Tell whether an attempt has not ended."""

    def close(self) -> None:
        """End all that is left."""


class LocalLauncher:
    """Runs attempts on this host.

    Parameters
    ----------
    settings : Settings
        Those of this plugin.
    sink : LaunchSink
        Where starts, logs and ends go.

    Raises
    ------
    ValueError
        Where the isolation is unknown.
    """

    def __init__(self, settings: Settings, sink: LaunchSink) -> None:
        """Prepare; nothing is started before the first attempt."""
        isolation = settings["local.isolation"]
        if isolation not in ISOLATIONS:
            raise ValueError(f"local.isolation is {isolation!r}; allowed are {', '.join(ISOLATIONS)}")
        self._may_fork_here = bool(settings["local.fork_driver"])
        self._isolation: Isolation
        self._lifeline: Lifeline | None = None
        if isolation == "inline":
            from mlp_core.builtin.local.inline import Inline

            self._isolation = Inline(sink)
            return
        self._lifeline = lifeline = Lifeline()
        if isolation == "spawn":
            self._isolation = Spawning(sink, lifeline)
        else:
            patience = Patience(settings["local.start_timeout"], settings["local.import_timeout"])
            self._isolation = Forking(sink, patience, lambda: Spawning(sink, lifeline), lifeline)

    def __enter__(self) -> Self:
        """Open the launcher."""
        if isinstance(self._isolation, Forking):
            self._isolation.open(may_fork_here=self._may_fork_here)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all that is left."""
        self.close()

    def submit(self, request: LaunchRequest) -> None:
        """Start an attempt."""
        self._isolation.submit(request)

    def expect(self, commands: Sequence[WorkerCommand]) -> None:
        """Have processes ready that attempts can be forked from."""
        if isinstance(self._isolation, Forking):
            for command in commands:
                self._isolation.expect(command)

    def capacity(self) -> int | None:
        """Return None: the core counts this host's resources itself."""
        return None

    def cancel(self, attempt_ids: Sequence[str], grace_seconds: float) -> None:
        """Ask attempts to end, and kill those that have not after the grace."""
        left = list(attempt_ids)
        if grace_seconds > 0:
            left = [attempt_id for attempt_id in left if self._isolation.signal(attempt_id, signal.SIGTERM)]
            if left:
                killer = threading.Thread(target=self._kill_after, args=(left, grace_seconds), daemon=True)
                killer.start()
            return
        for attempt_id in left:
            self._isolation.signal(attempt_id, signal.SIGKILL)

    def _kill_after(self, attempt_ids: Sequence[str], grace_seconds: float) -> None:
        """Wait for attempts to end, and kill what is left."""
        deadline = time.monotonic() + grace_seconds
        left = list(attempt_ids)
        while left and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
            left = [attempt_id for attempt_id in left if self._isolation.is_there(attempt_id)]
        for attempt_id in left:
            self._isolation.signal(attempt_id, signal.SIGKILL)

    def reattach(self, attempt_ids: Sequence[str]) -> Sequence[str]:  # noqa: ARG002 # the contract's signature
        """Return nothing: workers on this host end with their driver."""
        return ()

    def close(self) -> None:
        """End all that is left."""
        self._isolation.close()
        if self._lifeline is not None:
            self._lifeline.close()


class Spawning:
    """Starts a fresh interpreter for each attempt.

    Parameters
    ----------
    sink : LaunchSink
        Where starts, logs and ends go.
    lifeline : Lifeline, optional
        The launcher's lifeline.
    """

    def __init__(self, sink: LaunchSink, lifeline: Lifeline | None = None) -> None:
        """Prepare."""
        self._sink = sink
        self._lifeline = lifeline
        self._loop = WorkerLoop(sink, on_end=self._ended)
        self._loop.start()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self._is_closed = False

    def submit(self, request: LaunchRequest) -> None:
        """Start a process; an attempt that cannot be started is lost."""
        lifeline = None if self._lifeline is None else self._lifeline.fd
        try:
            process, messages = start_worker(request.command, lifeline=lifeline)
            try:
                self._attend(request, process, messages)
            except BaseException:
                _discard(process)
                raise
        except (OSError, RuntimeError) as error:  # there is no such program, or no descriptor or thread is left
            self._sink.lost(request.id, Failure("system", f"the worker could not be started: {error}"))

    def _attend(self, request: LaunchRequest, process: subprocess.Popen[bytes], messages: int) -> None:
        """Have a process's pipes read, its request handed over and its end awaited; or leave nothing of all that."""
        self._loop.add(request.id, *_readers(process, messages))
        payload = wire.dumps(request.step)
        try:
            self._keep(request.id, process)
            threading.Thread(target=self._serve, args=(request.id, process, payload), daemon=True).start()
        except BaseException:
            self._loop.forget(request.id)
            self._ended(request.id)
            raise

    def _keep(self, attempt_id: str, process: subprocess.Popen[bytes]) -> None:
        """Have a process found by its attempt."""
        with self._lock:
            if self._is_closed:
                raise OSError("the launcher has been closed")
            self._processes[attempt_id] = process

    def _serve(self, attempt_id: str, process: subprocess.Popen[bytes], payload: bytes) -> None:
        """Hand over the request, wait for the end, and tell it."""
        status = 1
        try:
            with contextlib.suppress(OSError):  # what has not got its request ends by itself
                send_request(process, payload)
            status = await_end(process)
        finally:
            self._loop.exited(attempt_id, status)

    def _ended(self, attempt_id: str) -> None:
        """Forget a process."""
        with self._lock:
            self._processes.pop(attempt_id, None)

    def is_there(self, attempt_id: str) -> bool:
        """Tell whether a process has not ended."""
        with self._lock:
            return attempt_id in self._processes

    def signal(self, attempt_id: str, sign: signal.Signals) -> bool:
        """Signal a process."""
        with self._lock:
            process = self._processes.get(attempt_id)
        if process is None:
            return False
        _signal(process, sign)
        return True

    def close(self) -> None:
        """Kill what is left."""
        with self._lock:
            self._is_closed = True
            left = list(self._processes.values())
        for process in left:
            _signal(process, signal.SIGKILL)
        for process in left:
            process.wait()
        self._loop.close()


def _readers(process: subprocess.Popen[bytes], messages: int) -> list[int]:
    """Return the reading ends of a worker's pipes, which are the caller's to close."""
    fds: list[int] = []
    try:
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                fds.append(os.dup(stream.fileno()))
                stream.close()
    except OSError:
        for fd in (*fds, messages):
            os.close(fd)
        raise
    return [*fds, messages]


def _signal(process: subprocess.Popen[bytes], sign: signal.Signals) -> None:
    """Signal a process, with its whole tree where the signal kills."""
    if process.returncode is not None:  # its number may be another's by now
        return
    if sign is signal.SIGKILL:
        kill_tree(process.pid)
    else:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, sign)


def _discard(process: subprocess.Popen[bytes]) -> None:
    """End a process that nobody attends to."""
    kill_tree(process.pid)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
