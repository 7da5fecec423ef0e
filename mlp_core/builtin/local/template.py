"""The template process: it imports the flow once, never runs a step, and forks for each task.

`python -P -m mlp_core.builtin.local.template`, with the control socket's descriptor in ``MLP_TEMPLATE_FD`` and the
command's entry in ``MLP_TEMPLATE_ENTRY``. With ``MLP_TEMPLATE_EARLY`` it is started before there is an attempt for it.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import gc
import importlib
import io
import json
import os
import platform
import selectors
import signal
import socket
import sys
import threading
import warnings
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mlp_core.builtin.local.templates import CONTROL_FD, EARLY, ENTRY, HEADER_BYTES
from mlp_hookspecs import CodeWarning, StepOutcome, StepRequest, wire
from mlp_hookspecs.process import MessageWriter
from mlp_hookspecs.trees import (
    LIFELINE_THREAD,
    adopt_orphans,
    die_with_parent,
    guard,
    kill_all_below,
    kill_orphans,
    own_children,
    take_lifeline,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlp_core.builtin.local.lifeline import Lifeline


_UNSAFE_THREADS = ("grpc", "polars", "rayon", "tokio", "torch", "tensorflow", "jax", "ray")
"""What the names of threads begin with that do not survive a fork."""


def main() -> int:
    """Serve until the launcher closes the control socket; the process was started to be a template.

    Returns
    -------
    int
        The exit status.
    """
    control = socket.socket(fileno=int(os.environ.pop(CONTROL_FD)))
    control.set_inheritable(False)  # the standard library's signature
    lifeline = take_lifeline()
    _settle(lifeline)
    entry = os.environ.pop(ENTRY)
    is_early = os.environ.pop(EARLY, None) is not None
    if is_early:
        # The first attempt is still to come: what it will need of the platform is imported meanwhile.
        importlib.import_module(entry.partition(":")[0])
        wire.prepare(StepRequest, StepOutcome)
    return run(control, entry, lifeline, takes_output=is_early)


def become(control: socket.socket, lifeline: Lifeline | None) -> NoReturn:
    """Serve until the launcher closes the control socket, in a fork of the driver; never returns.

    Parameters
    ----------
    control : socket.socket
        The connection with the launcher.
    lifeline : Lifeline or None
        The launcher's lifeline.
    """
    status = 1
    try:
        os.setpgid(0, 0)
        if lifeline is not None:
            lifeline.let_go()
        devnull = os.open(os.devnull, os.O_RDWR)
        os.dup2(devnull, 0)
        os.close(devnull)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _settle(None if lifeline is None else lifeline.fd)
        # The driver is still freezing the run: what every request needs is made meanwhile.
        wire.prepare(StepRequest, StepOutcome)
        setup = _receive(control)
        if setup is not None:
            given = json.loads(setup[1])
            for name in given["unset"]:
                os.environ.pop(name, None)
            os.environ.update(given["variables"])
            sys.dont_write_bytecode = False
            fd = None if lifeline is None else lifeline.fd
            status = run(control, given["entry"], fd, takes_output=True)
    except BaseException:  # noqa: BLE001 # nothing may leave this function: the driver's own code would go on
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _settle(lifeline: int | None) -> None:
    """Have a guard before this process, end with it and the launcher, know all descendants, and tell of crashes."""
    guard(lifeline)
    die_with_parent(signal.SIGTERM, lifeline)
    adopt_orphans()
    faulthandler.enable()


def run(control: socket.socket, entry: str, lifeline: int | None, *, takes_output: bool = False) -> int:
    """Prepare for the first request, and serve it and all that follow.

    Parameters
    ----------
    control : socket.socket
        The connection with the launcher.
    entry : str
        ``module:attribute`` of the worker's entry.
    lifeline : int or None
        The reading end of the launcher's lifeline.
    takes_output : bool
        Whether what is printed meanwhile must be sent to the first attempt's log; a process that was started to be
        a template has that for its standard output already.

    Returns
    -------
    int
        The exit status.
    """
    first = _receive(control)
    if first is None:
        return 0
    if takes_output:
        os.dup2(first[2][0], 1)
        os.dup2(first[2][1], 2)
    _extend_path()
    module, _, name = entry.partition(":")
    prepared = getattr(importlib.import_module(module), name)(wire.loads(StepRequest, first[1]))
    _warn_of_generators()
    reason = why_unsafe()
    if reason:
        control.sendall(json.dumps({"unsafe": reason}).encode() + b"\n")
        sys.stdout.flush()
        sys.stderr.flush()
        return 0
    sys.stdout.flush()
    sys.stderr.flush()
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)
    os.close(devnull)
    # What exists now is not looked at again by any collection: a fork would pay for every page that one touches.
    gc.freeze()
    Server(control, prepared, lifeline).serve(first)
    return 0


_FEW = 4
"""So many tasks are not worth preparing for."""

_SMALL = 1 << 16
"""Bytes of a request that is read before the fork."""


class Server:
    """Forks, and tells who has ended.

    Parameters
    ----------
    control : socket.socket
        The connection with the launcher.
    prepared : callable
        Runs a request.
    lifeline : int or None
        The reading end of the launcher's lifeline.
    """

    def __init__(
        self, control: socket.socket, prepared: Callable[[StepRequest], StepOutcome], lifeline: int | None
    ) -> None:
        """Prepare the signals."""
        self._control = control
        self._prepared = prepared
        self._lifeline = lifeline
        self._children: dict[int, str] = {}
        # What the import of the flow has started serves all tasks; whatever comes later, a task has left behind.
        self._known = set(own_children())
        self._forks = 0
        self._wake_read, wake_write = os.pipe()
        for fd in (self._wake_read, wake_write):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        self._pid = os.getpid()
        signal.signal(signal.SIGTERM, lambda _number, _frame: self._end_if_asked())
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def serve(self, first: tuple[str, bytes, Sequence[int]]) -> None:
        """Fork for the first request and all that follow."""
        self._fork(*first)
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(self._wake_read, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._control:
                        request = _receive(self._control)
                        if request is None:
                            self._end()
                        self._fork(*request)
                    else:
                        with contextlib.suppress(BlockingIOError):
                            os.read(self._wake_read, 4096)
                        self._reap()

    def _fork(self, attempt_id: str, payload: bytes, fds: Sequence[int]) -> None:
        """Fork for one request."""
        # Read here, a request costs a third of what it costs in the child, which pays for each page that it touches.
        # A join's may be large, and would hold up the other tasks.
        request = wire.loads(StepRequest, payload) if len(payload) < _SMALL else None
        with warnings.catch_warnings():
            # Python 3.12 warns of a fork beside threads; `why_unsafe` has looked at them by name.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            self._become_task(request or payload, fds)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(pid, pid)  # here and in the child, so that neither can be too early
        for fd in fds:
            os.close(fd)
        self._children[pid] = attempt_id
        self._known.add(pid)
        self._tell({"forked": attempt_id, "pid": pid})
        self._forks += 1
        if self._forks == _FEW:
            self._rehearse(wire.loads(StepRequest, payload))

    def _rehearse(self, request: StepRequest) -> None:
        """Do once what every further fork would do for itself, now that there seem to be many."""
        rehearse = getattr(self._prepared, "rehearse", None)
        if rehearse is not None:
            rehearse(request)
            gc.freeze()

    def _become_task(self, request: StepRequest | bytes, fds: Sequence[int]) -> NoReturn:
        """Run one request in a forked child, and end."""
        status = 1
        try:
            _enter_task(fds, self._lifeline)
            self._control.close()
            messages = MessageWriter(fds[2])
            messages.send({"started": {"host": platform.node(), "pid": os.getpid()}})
            outcome = self._prepared(wire.loads(StepRequest, request) if isinstance(request, bytes) else request)
            _leave_task()
            messages.send({"outcome": wire.encode(outcome)})
            status = 0
        except BaseException:  # noqa: BLE001 # nothing may leave this function: the template's own code would go on
            sys.excepthook(*sys.exc_info())
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.flush()
        finally:
            os._exit(status)

    def _reap(self) -> None:
        """Tell of the children that have ended, having killed what they left behind."""
        while (ended := _next_ended()) is not None:
            pid, status = ended
            self._known.discard(pid)
            attempt_id = self._children.pop(pid, None)
            if attempt_id is not None:
                # What left the group, a daemon for example, is now a child of this process that nobody started here.
                kill_orphans(self._known)
                self._tell({"exited": attempt_id, "status": os.waitstatus_to_exitcode(status)})

    def _tell(self, message: dict[str, Any]) -> None:
        """Send one message to the launcher; without one, this is the end."""
        try:
            self._control.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self._end()

    def _end_if_asked(self) -> NoReturn:
        """End, since that is asked for; a fork that is no task yet ends by itself, and not its siblings with it."""
        if os.getpid() == self._pid:
            self._end()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(1)

    def _end(self) -> NoReturn:
        """Kill everything below, and end."""
        for pid in list(self._children):  # not every system lists what is below
            _kill_group(pid)
        kill_all_below()
        os._exit(0)


def _next_ended() -> tuple[int, int] | None:
    """Return the id and the status of a child that has ended, having killed its group; None where there is none."""
    try:
        if not hasattr(os, "waitid"):  # macOS has it from Python 3.13 on
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return None
            _kill_group(pid)
            return pid, status
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    if ended is None:
        return None
    # Before it is reaped, its number cannot belong to anybody else.
    _kill_group(ended.si_pid)
    return os.waitpid(ended.si_pid, 0)


def _kill_group(pid: int) -> None:
    """Kill a process's group, where it leads one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _enter_task(fds: Sequence[int], lifeline: int | None) -> None:
    """Make a forked child a process of its own: group, signals, streams, random state."""
    os.setpgid(0, 0)
    parent = os.getppid()
    die_with_parent(lifeline=lifeline)
    adopt_orphans()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    if os.getppid() != parent:  # it died before it could be asked to tell of its death
        os._exit(1)
    os.dup2(fds[0], 1)
    os.dup2(fds[1], 2)
    os.close(fds[0])
    os.close(fds[1])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a line is not lost where the process is killed
    os.environ["MLP_WORKER_FD"] = str(fds[2])
    # What was registered while the flow was imported is the template's; the task runs what it registers itself.
    atexit._clear()  # noqa: SLF001 # there is no public way
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined] # noqa: SLF001 # as above
        finalizer.atexit = False
    # A generator that nobody has imported yet begins with the system's entropy anyway.
    for name in ("random", "numpy.random"):
        module = sys.modules.get(name)
        if module is not None:
            module.seed()


def _leave_task() -> None:
    """Do what an interpreter does at its end, as far as it concerns the task."""
    if threading.active_count() > 1:
        threading._shutdown()  # type: ignore[attr-defined] # noqa: SLF001 # waits for threads as at exit
    atexit._run_exitfuncs()  # noqa: SLF001 # as above
    weakref.finalize._exitfunc()  # type: ignore[attr-defined] # noqa: SLF001 # removes temporary folders
    if "logging" in sys.modules:
        sys.modules["logging"].shutdown()  # it registered itself when it was imported, maybe in the template
    sys.stdout.flush()
    sys.stderr.flush()


def why_unsafe() -> str:
    """Return why this process must not be forked; empty where it may be.

    A thread of a library that does not expect a fork may hold a lock that is then never released. Threads of numeric
    libraries that register fork handlers carry the interpreter's own name and pass.
    """
    usual = (threading.main_thread().name, LIFELINE_THREAD)
    others = [thread.name for thread in threading.enumerate() if thread.name not in usual]
    if others:
        return f"importing the flow started the thread {others[0]!r}"
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        return ""
    for task in tasks.iterdir():
        with contextlib.suppress(OSError):
            name = (task / "comm").read_text().strip()
            if name.lower().startswith(_UNSAFE_THREADS):
                return f"importing the flow started the thread {name!r}"
    return ""


def _warn_of_generators() -> None:
    """Warn of random generators that all tasks would inherit in the same state."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if "site-packages" in file or file.startswith((sys.prefix, sys.base_prefix)) or name.startswith("mlp_"):
            continue
        for variable, value in list(vars(module).items()) if hasattr(module, "__dict__") else ():
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            if kind in ("random.Random", "numpy.random._generator.Generator", "numpy.random.mtrand.RandomState"):
                warnings.warn_explicit(
                    f"{variable} is a random generator made when the file is imported: every task begins with it in the"
                    " same state; make it in the step",
                    CodeWarning,
                    file,
                    0,
                )


def _extend_path() -> None:
    """Add the folders that the driver's path had on its own."""
    for folder in os.environ.get("MLP_WORKER_PATH", "").split(os.pathsep):
        if folder and folder not in sys.path:
            sys.path.append(folder)


def _receive(control: socket.socket) -> tuple[str, bytes, Sequence[int]] | None:
    """Return the next request with its descriptors; None where the launcher has gone."""
    header, fds, _, _ = socket.recv_fds(control, HEADER_BYTES, 3)
    if not header:
        return None
    while len(header) < HEADER_BYTES:
        header += control.recv(HEADER_BYTES - len(header))
    id_size, payload_size = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")
    data = bytearray()
    while len(data) < id_size + payload_size:
        piece = control.recv(min(1 << 20, id_size + payload_size - len(data)))
        if not piece:
            return None
        data += piece
    for fd in fds:
        os.set_inheritable(fd, False)  # noqa: FBT003 # the standard library's signature
    return bytes(data[:id_size]).decode(), bytes(data[id_size:]), fds


if __name__ == "__main__":
    # Without waiting for threads that the flow's file has started: they would hold up the launcher for ever.
    os._exit(main())
