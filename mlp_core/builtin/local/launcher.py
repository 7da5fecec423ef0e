"""How the launcher `local` starts, cancels and ends attempts, whichever way they are kept apart."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Final, Protocol, Self

from mlp_core.builtin.local.forking import Forking
from mlp_hookspecs import Failure, wire
from mlp_hookspecs.process import WorkerLoop, kill_tree, send_request, start_worker

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from mlp_hookspecs import LaunchRequest
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
        ``local.isolation`` and ``local.start_timeout``.
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
        if isolation == "inline":
            from mlp_core.builtin.local.inline import Inline

            self._isolation = Inline(sink)
        elif isolation == "spawn":
            self._isolation = Spawning(sink)
        else:
            self._isolation = Forking(sink, settings["local.start_timeout"], Spawning)

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


class Spawning:
    """Starts a fresh interpreter for each attempt."""

    def __init__(self, sink: LaunchSink, on_end: Callable[[str], None] | None = None) -> None:
        """Prepare."""
        self._sink = sink
        self._on_end = on_end
        self._loop = WorkerLoop(sink, on_end=self._ended)
        self._loop.start()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()

    def submit(self, request: LaunchRequest) -> None:
        """Start a process."""
        try:
            process, messages = start_worker(request.command)
        except OSError as error:
            self._sink.lost(request.id, Failure("system", f"the worker could not be started: {error}"))
            return
        with self._lock:
            self._processes[request.id] = process
        if process.stdout is not None and process.stderr is not None:
            # The loop closes what it reads; the process's own file objects close theirs.
            self._loop.add(request.id, os.dup(process.stdout.fileno()), os.dup(process.stderr.fileno()), messages)
            process.stdout.close()
            process.stderr.close()
        payload = wire.dumps(request.step)
        threading.Thread(target=self._serve, args=(request.id, process, payload), daemon=True).start()

    def _serve(self, attempt_id: str, process: subprocess.Popen[bytes], payload: bytes) -> None:
        """Hand over the request, wait for the end, and tell it."""
        send_request(process, payload)
        status = process.wait()
        kill_tree(process.pid)
        self._loop.exited(attempt_id, status)

    def _ended(self, attempt_id: str) -> None:
        """Forget a process."""
        with self._lock:
            self._processes.pop(attempt_id, None)
        if self._on_end is not None:
            self._on_end(attempt_id)

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
        if sign is signal.SIGKILL:
            kill_tree(process.pid)
        else:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(sign)
        return True

    def close(self) -> None:
        """Kill what is left."""
        with self._lock:
            left = list(self._processes.values())
        for process in left:
            kill_tree(process.pid)
            process.wait()
        self._loop.close()
