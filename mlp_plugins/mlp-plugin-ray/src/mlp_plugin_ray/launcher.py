"""The launcher `ray` in the driver: it hands attempts to the bridge, and tells the sink what that says of them."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import secrets
import subprocess
import sys
import tempfile
import threading
from typing import IO, TYPE_CHECKING, Any, Final, Self

from mlp_hookspecs import Failure, StepOutcome, wire
from mlp_hookspecs.process import kill_tree
from mlp_plugin_ray.options import task_options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from mlp_hookspecs import LaunchRequest
    from mlp_hookspecs.handles import LaunchSink, Settings

OPEN_SECONDS: Final = 90.0
"""How long the bridge has to get into a cluster or start one."""

CLOSE_SECONDS: Final = 30.0
"""How long the bridge has to end what is left, and a cluster of its own."""

_REASON_BYTES = 4096


class RayLauncher:
    """Runs attempts as tasks of a Ray cluster.

    Use `open`.
    """

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes], window: int, sink: LaunchSink) -> None:
        """Take over a bridge that was started."""
        self._process = process
        self._errors = errors
        self._window = window
        self._sink = sink
        self._lock = threading.Lock()
        self._attempts: set[str] = set()
        self._opened: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="mlp-ray", daemon=True)
        self._reader.start()

    @classmethod
    def open(cls, settings: Settings, sink: LaunchSink) -> Self:
        """Connect to the cluster that the settings name, or start one.

        Parameters
        ----------
        settings : Settings
            ``ray.address`` and ``ray.max_pending``.
        sink : LaunchSink
            Where starts, logs and ends go.

        Returns
        -------
        RayLauncher
            The open launcher.

        Raises
        ------
        OSError
            Where the cluster cannot be reached or started.
        ValueError
            Where a setting is out of range.
        """
        window = settings["ray.max_pending"]
        if window < 1:
            raise ValueError(f"ray.max_pending is {window}; it must be at least 1")
        address = settings["ray.address"] or os.environ.get("RAY_ADDRESS") or None
        # A file, not a pipe: a local cluster's processes have it too, and nobody needs to read it while all is well.
        errors = tempfile.TemporaryFile()  # noqa: SIM115 # closed with the launcher
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mlp_plugin_ray.bridge"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=_environment(os.environ, is_local=address is None),
            process_group=0,  # an interrupt from the terminal is the driver's to deal with
        )
        launcher = cls(process, errors, window, sink)
        launcher._send("open", {"address": address})
        launcher._await_opening(address)
        return launcher

    def __enter__(self) -> Self:
        """Return the launcher, which is open."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the launcher."""
        self.close()

    def submit(self, requests: Sequence[LaunchRequest]) -> None:
        """Hand attempts to Ray.

        Parameters
        ----------
        requests : sequence of LaunchRequest
            The attempts.

        Raises
        ------
        OSError
            Where the connection to Ray has ended, or the requests are a gang.
        """
        gangs = sorted({request.gang for request in requests if request.gang})
        if gangs:
            raise OSError(
                f"the ray launcher starts no gangs, but {gangs[0]} is one; run this step with another launcher"
            )
        lines = [
            [
                request.id,
                wire.dumps(request.command).decode(),
                wire.dumps(request.step).decode(),
                task_options(request.resources, request.options),
            ]
            for request in requests
        ]
        with self._lock:
            if self._process.poll() is not None:
                raise ConnectionError(self._reason())
            self._attempts.update(request.id for request in requests)
        self._send("launch", lines)

    def capacity(self) -> int | None:
        """Return how many attempts Ray is given at once."""
        return self._window

    def cancel(self, attempt_ids: Sequence[str], grace_seconds: float) -> None:
        """Ask attempts to end, and kill what is left of them after the grace."""
        self._send("cancel", [list(attempt_ids), grace_seconds])

    def reattach(self, attempt_ids: Sequence[str]) -> Sequence[str]:  # noqa: ARG002 # the contract's signature
        """Return nothing: Ray ends the tasks of a driver that has gone."""
        return ()

    def close(self) -> None:
        """End what is left, and leave the cluster or end it, if it was started here."""
        self._finish(CLOSE_SECONDS)

    def _finish(self, timeout: float) -> None:
        """Have the bridge end, kill it if it does not, and release everything."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError), self._lock:
                self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        kill_tree(self._process.pid)
        self._process.wait()
        self._reader.join(timeout=CLOSE_SECONDS)
        self._errors.close()

    def _send(self, kind: str, content: object) -> None:
        """Write a line for the bridge. Where that has died, the reader tells it of every attempt."""
        line = json.dumps({kind: content}, separators=(",", ":")).encode() + b"\n"
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError), self._lock:
                self._process.stdin.write(line)
                self._process.stdin.flush()

    def _await_opening(self, address: str | None) -> None:
        """Return when the bridge is in a cluster; OSError where it is not."""
        try:
            refusal = self._opened.get(timeout=OPEN_SECONDS)
        except queue.Empty:
            refusal = f"Ray at {address or 'this host'} gave no answer for {OPEN_SECONDS:g} seconds"
        if refusal is not None:
            self._finish(0)
            raise ConnectionError(refusal)

    def _read(self) -> None:
        """Tell the sink what the bridge says, until it has ended; then, that the rest is lost."""
        if self._process.stdout is None:  # pragma: no cover # the process was started with a pipe
            raise RuntimeError
        with self._process.stdout as lines:
            for line in lines:
                [(kind, content)] = json.loads(line).items()
                self._tell(kind, content)
        self._process.wait()
        reason = self._reason()
        self._opened.put(reason)
        with self._lock:
            left, self._attempts = sorted(self._attempts), set()
        for attempt_id in left:
            self._sink.lost(attempt_id, Failure("system", reason))

    def _tell(self, kind: str, content: Any) -> None:
        """Pass one line of the bridge on."""
        if kind == "ready":
            self._opened.put(None)
        elif kind == "refused":
            self._opened.put(content)
        elif kind == "heartbeat":
            self._sink.heartbeat(content)
        elif kind == "started":
            self._sink.started(*content)
        elif kind == "log":
            attempt_id, stream, data = content
            self._sink.log(attempt_id, stream, base64.b64decode(data))
        else:
            self._tell_end(kind, *content)

    def _tell_end(self, kind: str, attempt_id: str, content: str) -> None:
        """Pass an end on."""
        with self._lock:
            self._attempts.discard(attempt_id)
        if kind == "lost":
            self._sink.lost(attempt_id, wire.loads(Failure, content))
            return
        try:
            outcome = wire.loads(StepOutcome, content)
        except ValueError as error:
            self._sink.lost(attempt_id, Failure("system", f"the worker's outcome cannot be read: {error}"))
            return
        self._sink.finished(attempt_id, outcome)

    def _reason(self) -> str:
        """Say why the connection to Ray has ended."""
        status = self._process.returncode
        if status < 0:
            return f"the connection to Ray has ended: the process that kept it was killed by signal {-status}"
        # Where it ended itself, the last that it printed says why.
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - _REASON_BYTES))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        last = f": {lines[-1]}" if status and lines else ""
        return f"the connection to Ray has ended with status {status}{last}"


def _environment(environment: Mapping[str, str], *, is_local: bool) -> dict[str, str]:
    """Return the environment variables of the bridge."""
    # Else a driver under `uv run` would have Ray build uv's environment again on every node.
    variables = {**environment, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    if is_local and "RAY_AUTH_MODE" not in environment:
        # A local cluster listens on the network, so it asks for a token. Ray would keep one in the user's home.
        variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return variables
