"""Trees of processes: found and killed whole, ended with their launcher, watched over by a guard."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import platform
import select
import signal
import threading
import time
from collections.abc import Callable, Collection
from typing import NoReturn

LIFELINE_FD = "MLP_WORKER_LIFELINE"
"""The environment variable with a descriptor whose end says that the launcher has gone."""

LIFELINE_THREAD = "mlp-lifeline"
"""The name of the thread that watches a lifeline, where one is needed; it holds nothing that a fork could miss."""

_ROUNDS = 500
_ROUND_SECONDS = 0.01
_HOLDS = 20
_STANDARD_STREAMS = 3
_UNKNOWN = (errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE)
_RLIMIT_LOCKS = 10
_REQUESTS = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)


def take_lifeline() -> int | None:
    """Return the lifeline's descriptor that the environment names, and take it out of there; None where it names none.

    It is this process's own from then on: what it starts inherits neither the descriptor nor the variable.
    """
    text = os.environ.pop(LIFELINE_FD, "")
    if not text.isdecimal():
        return None
    try:
        os.set_inheritable(int(text), False)  # noqa: FBT003 # the standard library's signature
    except OSError:  # it was meant for another process
        return None
    return int(text)


def die_with_parent(sign: signal.Signals = signal.SIGKILL, lifeline: int | None = None) -> None:
    """Have this process signalled when its parent ends: by the kernel on Linux, by watching the lifeline elsewhere.

    Where the launcher has gone before this call, the lifeline tells, and the process is signalled at once. Without a
    lifeline, whoever writes to the launcher's pipes will notice: there is nobody left.

    Parameters
    ----------
    sign : signal.Signals
        The signal.
    lifeline : int, optional
        The reading end of a pipe that ends with the launcher; by default the one that `take_lifeline` finds.
    """
    if lifeline is None:
        lifeline = take_lifeline()
    prctl = _prctl()
    if prctl is None:
        if lifeline is not None:
            threading.Thread(target=_watch_lifeline, args=(lifeline, sign), name=LIFELINE_THREAD, daemon=True).start()
        return
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    prctl(set_parent_death_signal, int(sign), 0, 0, 0)
    if lifeline is not None and _is_cut(lifeline):
        os.kill(os.getpid(), sign)


def _is_cut(lifeline: int) -> bool:
    """Tell whether nobody holds the other end of a lifeline."""
    poll = select.poll()
    poll.register(lifeline, select.POLLIN)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def adopt_orphans() -> None:
    """Become the parent of all descendants whose own parents end (Linux), so that `kill_tree` finds them."""
    prctl = _prctl()
    if prctl is not None:
        set_child_subreaper = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)
        prctl(set_child_subreaper, 1, 0, 0, 0)


@functools.cache
def _prctl() -> Callable[..., int] | None:
    """Return prctl(2) where the system has it; kept, since finding it costs more than a fork."""
    if platform.system() != "Linux":
        return None
    import ctypes

    function: Callable[..., int] = ctypes.CDLL(None, use_errno=True).prctl
    return function


def _watch_lifeline(fd: int, sign: signal.Signals) -> None:
    """Signal this process's group when the other end of a pipe is closed."""
    try:
        while os.read(fd, 1):
            pass
    except OSError:  # the step has closed what is not its own; then only the pipes tell
        return
    os.killpg(os.getpgrp(), sign)


def kill_tree(pid: int, sign: signal.Signals = signal.SIGKILL) -> None:
    """Signal a process, its group and all its descendants, as far as the system can list them.

    Before they are killed, those that can be listed are stopped, so that none starts another one meanwhile.

    Parameters
    ----------
    pid : int
        The process, which nobody has reaped; its group is signalled where it leads one.
    sign : signal.Signals
        The signal.
    """
    victims = descendants(pid)
    if victims and sign is signal.SIGKILL:
        victims = _hold(pid, victims)
    try:
        os.killpg(pid, sign)
    except ProcessLookupError:  # it does not lead its group yet
        _signal(pid, sign)
    except PermissionError:
        pass
    for victim in victims:
        _signal(victim, sign)


def _hold(pid: int, found: list[int]) -> list[int]:
    """Stop a process and all below it, of which some are known, until there is none that still runs; return those."""
    held: set[int] = set()
    for _ in range(_HOLDS):
        running = {pid, *found} - held
        if not running:
            break
        for victim in running:
            _signal(victim, signal.SIGSTOP)
        held |= running
        found = descendants(pid)
    return [*(held - {pid}), *(set(found) - held)]


def _signal(pid: int, sign: signal.Signals) -> None:
    """Signal a process that may have gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, sign)


def descendants(pid: int, *, without: Collection[int] = ()) -> list[int]:
    """Return the ids of all processes below one, where the system has ``/proc``; otherwise none.

    Parameters
    ----------
    pid : int
        The process.
    without : collection of int
        Processes that are left out, with all below them.
    """
    children: dict[int, list[int]] = {}
    for process in _processes():
        parent = _parent_of(process)
        if parent is not None:
            children.setdefault(parent, []).append(process)
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = [child for child in children.get(waiting.pop(), ()) if child not in without]
        found += below
        waiting += below
    return found


def _processes() -> list[int]:
    """Return the ids of all processes that this one can see; none where the system does not list them."""
    try:
        return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]  # noqa: PTH208 # names, and fast
    except OSError:
        return []


def _parent_of(pid: int) -> int | None:
    """Return the parent's id of a process; None if it has gone, or cannot be looked at now."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 # a Path costs more than the read, and there are many
            stat = file.read()
    except OSError as error:
        if error.errno in _UNKNOWN:
            return None
        raise
    return int(_fields(stat)[1])


def _fields(stat: bytes) -> list[bytes]:
    """Return the fields of a process's ``stat`` from its state on, which its parent's id follows."""
    # The command's name stands before them, in parentheses, and may contain anything.
    return stat[stat.rindex(b")") + 2 :].split()


def own_children() -> list[int]:
    """Return the ids of this process's children, by what the kernel lists as theirs; none where it has no such list.

    This costs little; children that another thread has started are not among them.
    """
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb") as file:  # noqa: PTH123 # on the way of every task
            return [int(entry) for entry in file.read().split()]
    except OSError:
        return []


def kill_orphans(known: Collection[int]) -> None:
    """Kill the children of this process that it did not start, with all below them: what others have left behind.

    For processes that adopt orphans; this looks only at `own_children`.

    Parameters
    ----------
    known : collection of int
        The children that are to live.
    """
    for child in own_children():
        if child not in known:
            kill_tree(child)
            _signal(child, signal.SIGKILL)


def kill_all_below() -> bool:
    """Kill all descendants of this process, reaping those that have become its children; tell whether none is left."""
    for _ in range(_ROUNDS):
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            return True
        for pid in descendants(os.getpid()):
            _signal(pid, signal.SIGKILL)
        time.sleep(_ROUND_SECONDS)
    return False


def guard(lifeline: int | None = None) -> None:
    """Return in a child of this process; the process itself stays behind, and watches over the child and its children.

    It passes requests to end (SIGTERM and SIGINT) on to the child, kills all that the child leaves behind, however the
    child ended and wherever that has gone, and ends as the child did. When the launcher dies, it kills everything at
    once. Where it is killed itself, another process that stands by outside of the tree does that for it. To be called
    while the process has one thread. Where the system cannot adopt orphans (other than Linux) this returns in the
    process itself.

    Parameters
    ----------
    lifeline : int, optional
        As for `die_with_parent`.
    """
    if _prctl() is None:
        return
    if lifeline is None:
        lifeline = take_lifeline()
    devnull = os.open(os.devnull, os.O_RDWR)
    guardian = os.getpid()
    # What is to be known of the launcher's death or of a request is kept until there is a child that it concerns.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _REQUESTS)
    mark = int.from_bytes(os.urandom(7), "big")
    rest = _have_stand_by(mark, devnull)
    adopt_orphans()
    die_with_parent(signal.SIGHUP, lifeline)
    child = os.fork()
    if child == 0:
        os.close(devnull)
        os.close(rest)
        die_with_parent(lifeline=lifeline)
        if os.getppid() != guardian:
            os._exit(1)
        _wear(mark)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return
    _watch_over(child, devnull, rest)


def _watch_over(child: int, devnull: int, rest: int) -> NoReturn:
    """Stay until a child has ended, then end everything below this process, and the process as the child did."""
    status = 1 << 8
    try:
        signal.signal(signal.SIGHUP, lambda _number, _frame: _end_all(rest))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _frame: _signal(child, signal.Signals(number)))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _REQUESTS)
        # The pipes are the child's; who reads them must not wait for this process.
        _let_go_of_files(devnull, rest)
        pid = 0
        while pid != child:
            pid, status = os.waitpid(-1, 0)
        if kill_all_below():
            _relieve(rest)
    finally:
        _end_like(status)


def _have_stand_by(mark: int, devnull: int) -> int:
    """Start a process that kills all that wear a mark once this one has ended without having relieved it.

    It is no descendant of the launcher, so that who kills those does not kill it too.

    Returns
    -------
    int
        What `_relieve` takes: the descriptor that ends with this process.
    """
    reader, writer = os.pipe()
    between = os.fork()
    if between:
        os.close(reader)
        os.waitpid(between, 0)
        return writer
    try:
        if os.fork() == 0:
            os.setsid()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _REQUESTS)
            _let_go_of_files(devnull, reader)
            if not os.read(reader, 1):
                _kill_marked(mark)
    finally:
        os._exit(0)


def _relieve(rest: int) -> None:
    """Let the process that stands by end: nothing is left to do for it."""
    with contextlib.suppress(OSError):
        os.write(rest, b"x")


def _wear(mark: int) -> None:
    """Mark this process and all that descend from it.

    The mark is the limit of a resource that Linux has not had since 2.4.25 (RLIMIT_LOCKS of getrlimit(2)): it is
    inherited by whatever a process becomes, and every process of the user can read it.
    """
    import resource

    with contextlib.suppress(OSError, ValueError):  # the user's hard limit is lower: then there is no mark
        resource.setrlimit(_RLIMIT_LOCKS, (mark, resource.getrlimit(_RLIMIT_LOCKS)[1]))


def _kill_marked(mark: int) -> None:
    """Kill all processes that wear a mark until there is none."""
    for _ in range(_ROUNDS):
        marked = [pid for pid in _processes() if _wears(pid, mark)]
        if not marked:
            return
        for pid in marked:
            _signal(pid, signal.SIGKILL)
        time.sleep(_ROUND_SECONDS)


def _wears(pid: int, mark: int) -> bool:
    """Tell whether a process wears a mark; one that has ended wears none, though nobody has reaped it yet."""
    try:
        with open(f"/proc/{pid}/limits", "rb") as file:  # noqa: PTH123 # there are many
            if b" %d " % mark not in file.read():
                return False
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 # as above
            return _fields(file.read())[0] not in (b"Z", b"X")
    except OSError:
        return False


def _let_go_of_files(devnull: int, but: int) -> None:
    """Close all descriptors of this process but one; the standard streams lead nowhere from now on."""
    for fd in range(_STANDARD_STREAMS):
        os.dup2(devnull, fd)
    try:
        fds = [int(entry) for entry in os.listdir("/proc/self/fd")]  # noqa: PTH208 # names
    except OSError:
        import resource

        fds = list(range(resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
    for fd in fds:
        if fd >= _STANDARD_STREAMS and fd != but:
            with contextlib.suppress(OSError):
                os.close(fd)


def _end_all(rest: int) -> NoReturn:
    """Kill everything below, and end."""
    if kill_all_below():
        _relieve(rest)
    os._exit(1)


def _end_like(status: int) -> NoReturn:
    """End as a child did, by its status as wait(2) gives it."""
    if os.WIFSIGNALED(status):
        import resource

        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the child has left its own
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
