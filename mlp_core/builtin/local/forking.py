"""How the launcher talks to template processes: warm interpreters that have imported the flow and only ever fork.

One template serves all tasks with the same interpreter, environment variables and working folder. The launcher sends
a request with the writing ends of its pipes; the template forks, and tells process ids and exits.

A template is a fresh interpreter. The first one may instead be a fork of the driver, made before the driver has any
thread, lock or open journal: that saves importing the platform, and what the flow's file imports, a second time.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from mlp_hookspecs import Failure, LaunchRequest, wire
from mlp_hookspecs.process import WorkerLoop, kill_tree, worker_environment

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlp_core.builtin.local.launcher import Spawning
    from mlp_hookspecs import WorkerCommand
    from mlp_hookspecs.handles import LaunchSink

HEADER_BYTES = 8
"""A frame begins with two 4-byte big-endian lengths: of the attempt's id and of the request."""

CONTROL_FD = "MLP_TEMPLATE_FD"
ENTRY = "MLP_TEMPLATE_ENTRY"
TEMPLATE_MODULE = "mlp_core.builtin.local.template"

_ENDING_SECONDS = 2.0
_ENDING_POLL_SECONDS = 0.002

_Key: TypeAlias = tuple[tuple[str, ...], tuple[tuple[str, str], ...], str | None]


@attrs.define(eq=False)
class _Child:
    """An attempt in a template's care."""

    request: LaunchRequest
    template: Template
    pid: int | None = None
    deadline: float | None = None
    owed: signal.Signals | None = None


@attrs.define(eq=False)
class Template:
    """A template process."""

    key: _Key | None
    process: subprocess.Popen[bytes] | ForkedProcess
    control: socket.socket
    received: bytearray = attrs.field(factory=bytearray)
    is_unsafe: bool = False
    has_forked: bool = False


class ForkedProcess:
    """A child that was forked rather than started, as far as it looks like a `subprocess.Popen`.

    Attributes
    ----------
    pid : int
        Its process id.
    """

    def __init__(self, pid: int) -> None:
        """Take over a child."""
        self.pid = pid
        self._status: int | None = None

    def wait(self) -> int:
        """Wait for its end, and return the status as `subprocess.Popen.wait` does."""
        return self._reap(0) or 0

    def poll(self) -> int | None:
        """Return the status, or None where it has not ended."""
        return self._reap(os.WNOHANG)

    def _reap(self, flags: int) -> int | None:
        if self._status is None:
            try:
                pid, status = os.waitpid(self.pid, flags)
            except ChildProcessError:  # somebody else has reaped it
                self._status = 1
            else:
                self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status


class Forking:
    """Starts attempts as forks of templates, and as fresh processes where a fork would not be safe.

    Parameters
    ----------
    sink : LaunchSink
        Where starts, logs and ends go.
    start_timeout : float
        Seconds after which a fork that has not said that it began is given up and started afresh.
    spawning : type of Spawning
        What starts fresh processes.
    """

    def __init__(self, sink: LaunchSink, start_timeout: float, spawning: Callable[[LaunchSink], Spawning]) -> None:
        """Prepare."""
        self._sink = sink
        self._start_timeout = start_timeout
        self._make_spawning = spawning
        self._spawning: Spawning | None = None
        self._loop = WorkerLoop(sink, on_end=self._ended)
        self._templates: dict[_Key, Template] = {}
        self._spare: Template | None = None
        self._unsafe: set[_Key] = set()
        self._children: dict[str, _Child] = {}
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="mlp-fork-watch", daemon=True)

    def open(self, *, may_fork_here: bool) -> None:
        """Start the threads and, before them and where that is safe, fork a template from this process."""
        if may_fork_here and not why_not_fork_here():
            self._spare = _fork_here()
        self._loop.start()
        self._watcher.start()

    # ------------------------------------------------------------------------------------------------ starting

    def submit(self, request: LaunchRequest) -> None:
        """Start an attempt."""
        key = _key(request.command)
        if key in self._unsafe:
            self._spawn(request)
            return
        pipes = [os.pipe() for _ in range(3)]
        readers, writers = [pair[0] for pair in pipes], [pair[1] for pair in pipes]
        self._loop.add(request.id, *readers)
        try:
            with self._lock:
                template = self._templates.get(key)
                if template is None:
                    template = self._adopt_spare(key, request.command)
                    template = template or self._start_template(key, request.command, writers)
                    self._care_for(key, template)
                self._children[request.id] = _Child(request, template)
            _send(template.control, request.id.encode(), wire.dumps(request.step), writers)
        except OSError as error:
            self._give_up(request.id, f"the template process could not take the attempt: {error}")
        finally:
            for fd in writers:
                os.close(fd)

    def _start_template(self, key: _Key, command: WorkerCommand, writers: list[int]) -> Template:
        """Start a template; what it prints while it imports the flow goes to the log of the first attempt."""
        ours, theirs = socket.socketpair()
        environment = worker_environment(command.variables, command.unset)
        environment[CONTROL_FD] = str(theirs.fileno())
        environment[ENTRY] = command.entry
        try:
            process = subprocess.Popen(
                [command.argv[0], "-P", "-m", TEMPLATE_MODULE],
                stdin=subprocess.DEVNULL,
                stdout=writers[0],
                stderr=writers[1],
                env=environment,
                cwd=command.cwd,
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        return Template(key, process, ours)

    def _adopt_spare(self, key: _Key, command: WorkerCommand) -> Template | None:
        """Return the template that was forked from this process, where a command needs no more than it has."""
        template = self._spare
        if template is None or not _fits_here(command):
            return None
        self._spare = None
        template.key = key
        setup = {"entry": command.entry, "variables": dict(command.variables), "unset": list(command.unset)}
        _send(template.control, b"", json.dumps(setup).encode(), [])
        return template

    def _care_for(self, key: _Key, template: Template) -> None:
        """Listen to a template from now on."""
        self._templates[key] = template
        control = template.control
        self._loop.call(lambda: self._loop.watch(control.fileno(), lambda: self._hear(template)))

    def _spawn(self, request: LaunchRequest) -> None:
        """Start an attempt as a fresh process."""
        with self._lock:
            if self._spawning is None:
                self._spawning = self._make_spawning(self._sink)
        self._spawning.submit(request)

    # ------------------------------------------------------------------------------------------------ hearing

    def _hear(self, template: Template) -> None:
        """Take in what a template says; runs in the loop's thread."""
        try:
            data = template.control.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self._lose(template)
            return
        template.received += data
        *lines, rest = bytes(template.received).split(b"\n")
        template.received = bytearray(rest)
        for line in lines:
            self._understand(template, json.loads(line))

    def _understand(self, template: Template, message: dict[str, Any]) -> None:
        """Act on one message."""
        with self._lock:
            if "forked" in message:
                template.has_forked = True
                child = self._children.get(message["forked"])
                if child is not None:
                    child.pid = message["pid"]
                    child.deadline = time.monotonic() + self._start_timeout
                    if child.owed is not None:
                        self.signal(message["forked"], child.owed)
            elif "exited" in message:
                self._loop.exited(message["exited"], message["status"])
            elif "unsafe" in message:
                template.is_unsafe = True
                if template.key is not None:
                    self._unsafe.add(template.key)
                self._respawn(
                    template, f"tasks run in fresh processes, since forking is not safe here: {message['unsafe']}"
                )

    def _respawn(self, template: Template, reason: str) -> None:
        """Start a template's attempts as fresh processes."""
        waiting = [child.request for child in self._children.values() if child.template is template]
        for number, request in enumerate(waiting):
            del self._children[request.id]
            self._loop.forget(request.id)
            if number == 0:
                self._sink.log(request.id, "stderr", f"note: {reason}\n".encode())
            self._spawn(request)

    def _lose(self, template: Template) -> None:
        """Take in that a template has ended: so have its attempts."""
        self._loop.unwatch(template.control.fileno())
        template.control.close()
        # It may have closed the socket and still be there, as an import that closes all descriptors would have it.
        if not _has_ended(template.process):
            kill_tree(template.process.pid)
        status = template.process.wait()
        with self._lock:
            if template.key is not None:
                self._templates.pop(template.key, None)
            left = {attempt_id: child for attempt_id, child in self._children.items() if child.template is template}
        for attempt_id, child in left.items():
            if child.pid is not None:
                # It died with the template, which can no longer find what it has left.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.pid, signal.SIGKILL)
            self._loop.exited(attempt_id, status or 1)

    def _give_up(self, attempt_id: str, reason: str) -> None:
        """Tell that an attempt could not be started."""
        with self._lock:
            self._children.pop(attempt_id, None)
        self._loop.forget(attempt_id)
        self._sink.lost(attempt_id, Failure("system", reason))

    def _ended(self, attempt_id: str) -> None:
        """Forget an attempt."""
        with self._lock:
            self._children.pop(attempt_id, None)

    # ------------------------------------------------------------------------------------------------ watching

    def _watch(self) -> None:
        """Give up forks that do not begin: a lock that was held when they were made may never be released in them."""
        while not self._closed.wait(min(1.0, self._start_timeout / 4)):
            now = time.monotonic()
            with self._lock:
                late = [
                    (attempt_id, child)
                    for attempt_id, child in self._children.items()
                    if child.deadline is not None and now > child.deadline and not self._loop.has_started(attempt_id)
                ]
                for attempt_id, _ in late:
                    del self._children[attempt_id]
            for attempt_id, child in late:
                self._loop.forget(attempt_id)
                if child.pid is not None:
                    kill_tree(child.pid)
                note = f"note: the forked task gave no sign for {self._start_timeout:g} s and is started afresh\n"
                self._sink.log(attempt_id, "stderr", note.encode())
                self._spawn(child.request)

    # ------------------------------------------------------------------------------------------------ ending

    def is_there(self, attempt_id: str) -> bool:
        """Tell whether an attempt has not ended."""
        with self._lock:
            if attempt_id in self._children:
                return True
            return self._spawning is not None and self._spawning.is_there(attempt_id)

    def signal(self, attempt_id: str, sign: signal.Signals) -> bool:
        """Signal an attempt."""
        with self._lock:
            child = self._children.get(attempt_id)
        if child is None:
            return self._spawning is not None and self._spawning.signal(attempt_id, sign)
        if child.pid is None and child.template.has_forked:
            child.owed = sign
        elif child.pid is None:
            # The template is still importing: nothing of the attempt runs, but what it waits for does.
            kill_tree(child.template.process.pid, sign)
        elif sign is signal.SIGKILL:
            kill_tree(child.pid)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, sign)
        return True

    def close(self) -> None:
        """End the templates and all that they started."""
        self._closed.set()
        self._watcher.join()
        with self._lock:
            templates = [*self._templates.values(), *([self._spare] if self._spare is not None else [])]
        for template in templates:
            _end_template(template)
        self._loop.close()
        for template in templates:
            template.control.close()
        if self._spawning is not None:
            self._spawning.close()


def _end_template(template: Template) -> None:
    """End a template with all that its tasks have left, which it finds better than anybody else."""
    process = template.process
    if template.has_forked:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
        _has_ended(process)
    if process.poll() is None:
        kill_tree(process.pid)
        process.wait()


def _has_ended(process: subprocess.Popen[bytes] | ForkedProcess) -> bool:
    """Tell whether a process ends within the time that this should take."""
    deadline = time.monotonic() + _ENDING_SECONDS
    while process.poll() is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(_ENDING_POLL_SECONDS)
    return True


def why_not_fork_here() -> str:
    """Return why this process cannot be the parent of a template; empty where it can.

    A fork has only the thread that made it: of what other threads hold, nothing is ever released in it.
    """
    if threading.active_count() > 1:
        return "this process has several threads"
    try:
        threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208 # names, and fast
    except OSError:
        return "this system does not tell how many threads a process has"
    return "a library has started threads in this process" if threads > 1 else ""


def _fork_here() -> Template:
    """Fork a template from this process."""
    from mlp_core.builtin.local import template

    ours, theirs = socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        ours.close()
        template.become(theirs)
    theirs.close()
    return Template(None, ForkedProcess(pid), ours)


def _fits_here(command: WorkerCommand) -> bool:
    """Tell whether a fork of this process is as good as a fresh process for a command.

    Variables that a library reads when it is loaded come too late once it is loaded here; the platform's own are read
    when they are needed, and the sizes of thread pools can be told, since a process with one thread has pools of one.
    """
    if command.argv[0] != sys.executable or command.cwd not in (None, os.getcwd()):  # noqa: PTH109 # text is compared
        return False
    others = {name for name in command.variables if not name.endswith("_NUM_THREADS") and not name.startswith("MLP_")}
    sizes = {value for name, value in command.variables.items() if name.endswith("_NUM_THREADS")}
    return not others and (sizes <= {"1"} or "numpy" not in sys.modules)


def _key(command: WorkerCommand) -> _Key:
    """Return what decides whether two attempts can share a template."""
    return command.argv, tuple(sorted(command.variables.items())), command.cwd


def _send(control: socket.socket, attempt_id: bytes, payload: bytes, fds: list[int]) -> None:
    """Send a request with its descriptors."""
    header = len(attempt_id).to_bytes(4, "big") + len(payload).to_bytes(4, "big")
    socket.send_fds(control, [header], fds)
    control.sendall(attempt_id + payload)
