"""What a template process is to its launcher: started or forked, sent requests, heard, ended.

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
from array import array
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from mlp_hookspecs.process import LIFELINE_FD, kill_tree, worker_environment

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlp_core.builtin.local.lifeline import Lifeline
    from mlp_hookspecs import WorkerCommand

HEADER_BYTES = 8
"""A frame begins with two 4-byte big-endian lengths: of the attempt's id and of the request."""

CONTROL_FD = "MLP_TEMPLATE_FD"
ENTRY = "MLP_TEMPLATE_ENTRY"
EARLY = "MLP_TEMPLATE_EARLY"
TEMPLATE_MODULE = "mlp_core.builtin.local.template"

_ENDING_SECONDS = 1.0
_ENDING_POLL_SECONDS = 0.002

Key: TypeAlias = tuple[tuple[str, ...], tuple[tuple[str, str], ...], str | None]
"""What decides whether two attempts can share a template."""


class TemplateGone(Exception):  # noqa: N818 # no error: the template's end is told elsewhere
    """The template has ended, so that nothing can be sent to it."""


@attrs.define(eq=False)
class _Frame:
    """A request on its way, with descriptors that are closed once they have been handed over."""

    left: memoryview
    fds: Sequence[int]

    def send(self, control: socket.socket, flags: int = 0) -> bool:
        """Send what can be sent; return whether that was all."""
        while self.left:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", self.fds))] if self.fds else []
            try:
                sent = control.sendmsg([self.left], rights, flags)
            except BlockingIOError:
                return False
            self.left = self.left[sent:]
            self.drop()
        return True

    def drop(self) -> None:
        """Close the descriptors."""
        for fd in self.fds:
            os.close(fd)
        self.fds = ()


class Template:
    """A template process.

    Parameters
    ----------
    key : Key or None
        Whom it serves; None for one that serves nobody yet.
    process : subprocess.Popen or ForkedProcess
        The process, or the guard that stays before it.
    control : socket.socket
        The connection with it.

    Attributes
    ----------
    key : Key or None
        As the parameter.
    is_early : bool
        Whether it was started before there was an attempt for it, so that nobody has seen what it printed first.
    has_request : bool
        Whether it has been given an attempt, so that it imports the flow.
    has_forked : bool
        Whether it has forked a task, so that it has imported the flow.
    deadline : float or None
        Until when it must have, on the monotonic clock; None where it need not any more.
    trouble : str
        Why the launcher has ended it; empty where it has not.
    """

    def __init__(
        self, key: Key | None, process: subprocess.Popen[bytes] | ForkedProcess, control: socket.socket
    ) -> None:
        """Take over a process."""
        self.key = key
        self.process = process
        self.is_early = False
        self.has_request = False
        self.has_forked = False
        self.deadline: float | None = None
        self.trouble = ""
        self._control = control
        self._received = bytearray()
        self._outgoing: deque[_Frame] = deque()
        self._sender: threading.Thread | None = None
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """Return the descriptor that is readable when there is something to `receive`."""
        return self._control.fileno()

    def send(self, attempt_id: str, payload: bytes, fds: Sequence[int]) -> None:
        """Send a request with its descriptors, which are closed here; return at once.

        Raises
        ------
        TemplateGone
            Where the template has ended.
        OSError
            Where the system refuses; the template has seen nothing of the request.
        """
        name = attempt_id.encode()
        header = len(name).to_bytes(4, "big") + len(payload).to_bytes(4, "big")
        frame = _Frame(memoryview(header + name + payload), fds)
        try:
            with self._lock:
                # Mostly there is room for it. Otherwise the template still imports the flow, or reads another one.
                if self._outgoing or not frame.send(self._control, socket.MSG_DONTWAIT):
                    self._queue(frame)
        except (BrokenPipeError, ConnectionResetError) as error:
            frame.drop()
            raise TemplateGone from error
        except BaseException:
            frame.drop()
            raise

    def _queue(self, frame: _Frame) -> None:
        """Leave a frame, or the rest of it, to a thread."""
        if self._sender is None:
            sender = threading.Thread(target=self._send_queued, name="mlp-template-sender", daemon=True)
            try:
                sender.start()
            except RuntimeError as error:  # there are too many
                if frame.fds:
                    raise OSError(str(error)) from error
                self.end_for(f"the rest of a request could not be sent: {error}")
                return
            self._sender = sender
        self._outgoing.append(frame)

    def _send_queued(self) -> None:
        """Send what is queued; ends with the queue."""
        while True:
            with self._lock:
                if not self._outgoing:
                    self._sender = None
                    return
                frame = self._outgoing[0]
            try:
                frame.send(self._control)
            except OSError as error:
                with self._lock:
                    for left in self._outgoing:
                        left.drop()
                    self._outgoing.clear()
                    self._sender = None
                if not isinstance(error, BrokenPipeError | ConnectionResetError):
                    self.end_for(f"a request could not be sent to the template process: {error}")
                return
            with self._lock:
                self._outgoing.popleft()

    def receive(self) -> list[dict[str, Any]] | None:
        """Return the messages that have come; None where it has ended, or might as well have.

        To be called when the socket is readable.
        """
        try:
            data = self._control.recv(1 << 16)
        except OSError:
            return None
        if not data:
            return None
        self._received += data
        *lines, rest = bytes(self._received).split(b"\n")
        self._received = bytearray(rest)
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            messages = [None]
        if not all(isinstance(message, dict) for message in messages):
            self.end_for("the template process has said what nobody understands")
            return None
        return messages

    def end_for(self, trouble: str) -> None:
        """End it with all that it has started, because of some trouble; `receive` then says that it has ended."""
        self.trouble = self.trouble or trouble
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        if self.process.poll() is None:
            kill_tree(self.process.pid)

    def close(self) -> None:
        """Give the connection up."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)  # wakes who waits for room in it
        with self._lock:
            sender = self._sender
        if sender is not None:
            sender.join()
        self._control.close()

    def await_end(self) -> int:
        """Wait for the end of one that should be ending, kill it if that takes long, and return its status."""
        if not has_ended([self]):
            kill_tree(self.process.pid)
        return self.process.wait()


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
        self._lock = threading.Lock()

    def wait(self) -> int:
        """Wait for its end, and return the status as `subprocess.Popen.wait` does."""
        return self._reap(0) or 0

    def poll(self) -> int | None:
        """Return the status, or None where it has not ended."""
        return self._reap(os.WNOHANG)

    def _reap(self, flags: int) -> int | None:
        with self._lock:
            if self._status is None:
                try:
                    pid, status = os.waitpid(self.pid, flags)
                except ChildProcessError:  # somebody else has reaped it
                    self._status = 1
                else:
                    self._status = os.waitstatus_to_exitcode(status) if pid else None
            return self._status


def start_template(
    key: Key, command: WorkerCommand, writers: Sequence[int] | None, lifeline: Lifeline | None
) -> Template:
    """Start a template; what it prints while it imports the flow goes to the log of the first attempt.

    Parameters
    ----------
    key : Key
        Whom it serves.
    command : WorkerCommand
        The command of the first attempt.
    writers : sequence of int or None
        The writing ends of that attempt's pipes; None where it is still to come.
    lifeline : Lifeline or None
        The launcher's lifeline.

    Raises
    ------
    OSError
        Where it cannot be started.
    """
    ours, theirs = socket.socketpair()
    environment = worker_environment(command.variables, command.unset)
    environment[CONTROL_FD] = str(theirs.fileno())
    environment[ENTRY] = command.entry
    if writers is None:
        environment[EARLY] = "1"
    environment.pop(LIFELINE_FD, None)  # this process's own, where it is a worker itself
    passed = [theirs.fileno()]
    if lifeline is not None:
        environment[LIFELINE_FD] = str(lifeline.fd)
        passed.append(lifeline.fd)
    try:
        process = subprocess.Popen(
            [command.argv[0], "-P", "-m", TEMPLATE_MODULE],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if writers is None else writers[0],
            stderr=subprocess.DEVNULL if writers is None else writers[1],
            env=environment,
            cwd=command.cwd,
            pass_fds=passed,
            process_group=0,
        )
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    template = Template(key, process, ours)
    template.is_early = writers is None
    return template


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


def fork_template(lifeline: Lifeline | None) -> Template:
    """Fork a template from this process; it serves nobody yet."""
    from mlp_core.builtin.local import template

    ours, theirs = socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        ours.close()
        template.become(theirs, lifeline)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.setpgid(pid, pid)  # here and in the child: it may be ended before it has got that far
    theirs.close()
    return Template(None, ForkedProcess(pid), ours)


def adopt_template(template: Template, key: Key, command: WorkerCommand) -> None:
    """Have a template that was forked from this process serve those with a key."""
    template.key = key
    setup = {"entry": command.entry, "variables": dict(command.variables), "unset": list(command.unset)}
    template.send("", json.dumps(setup).encode(), ())


def fits_here(command: WorkerCommand) -> bool:
    """Tell whether a fork of this process is as good as a fresh process for a command.

    Variables that a library reads when it is loaded come too late once it is loaded here; the platform's own are read
    when they are needed, and the sizes of thread pools can be told, since a process with one thread has pools of one.
    """
    if command.argv[0] != sys.executable or command.cwd not in (None, os.getcwd()):  # noqa: PTH109 # text is compared
        return False
    others = {name for name in command.variables if not name.endswith("_NUM_THREADS") and not name.startswith("MLP_")}
    sizes = {value for name, value in command.variables.items() if name.endswith("_NUM_THREADS")}
    return not others and (sizes <= {"1"} or "numpy" not in sys.modules)


def key_of(command: WorkerCommand) -> Key:
    """Return what decides whether two attempts can share a template."""
    return command.argv, tuple(sorted(command.variables.items())), command.cwd


def end_all(templates: Sequence[Template]) -> None:
    """End templates with all that their tasks have left, which they find better than anybody else."""
    for template in templates:
        if template.has_forked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(template.process.pid, signal.SIGTERM)
    has_ended(template for template in templates if template.has_forked)
    for template in templates:
        if template.process.poll() is None:
            kill_tree(template.process.pid)
            template.process.wait()


def has_ended(templates: Iterable[Template]) -> bool:
    """Tell whether all of some templates end within the time that this should take."""
    left = list(templates)
    deadline = time.monotonic() + _ENDING_SECONDS
    while left := [template for template in left if template.process.poll() is None]:
        if time.monotonic() > deadline:
            return False
        time.sleep(_ENDING_POLL_SECONDS)
    return True
