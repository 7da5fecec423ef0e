"""Trees of processes: found and killed whole, ended with their launcher, watched over by a guard."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Collection
from typing import NoReturn

LIFELINE_FD = "MLP_WORKER_LIFELINE"
"""The environment variable with a descriptor whose end says that the launcher has gone."""

_ROUNDS = 100
_ROUND_SECONDS = 0.01


def die_with_parent(sign: signal.Signals = signal.SIGKILL) -> None:
    """Have this process signalled when its parent ends: by the kernel on Linux, by watching the lifeline elsewhere.

    The parent's end between its fork and this call is noticed by whoever reads the pipes: there is nobody left.
    """
    prctl = _prctl()
    if prctl is not None:
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        prctl(set_parent_death_signal, int(sign), 0, 0, 0)
        return
    lifeline = os.environ.get(LIFELINE_FD)
    if lifeline is not None:
        threading.Thread(target=_watch_lifeline, args=(int(lifeline), sign), daemon=True).start()


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
    while os.read(fd, 1):
        pass
    os.killpg(os.getpgrp(), sign)


def kill_tree(pid: int, sign: signal.Signals = signal.SIGKILL) -> None:
    """Signal a process, its group and all its descendants, as far as the system can list them.

    Parameters
    ----------
    pid : int
        The process; it must be the leader of its process group.
    sign : signal.Signals
        The signal.
    """
    victims = descendants(pid)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, sign)
    for victim in victims:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(victim, sign)


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
    try:
        entries = [entry for entry in os.listdir("/proc") if entry.isdigit()]  # noqa: PTH208 # names, and fast
    except OSError:
        return []
    for entry in entries:
        parent = _parent_of(entry)
        if parent is not None:
            children.setdefault(parent, []).append(int(entry))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = [child for child in children.get(waiting.pop(), ()) if child not in without]
        found += below
        waiting += below
    return found


def _parent_of(entry: str) -> int | None:
    """Return the parent's id of a process named in ``/proc``; None if it has gone."""
    try:
        with open(f"/proc/{entry}/stat", "rb") as file:  # noqa: PTH123 # a Path costs more than the read, and there are many
            stat = file.read()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM):
            return None
        raise
    # The command's name stands in parentheses and may contain anything; the state and the parent follow it.
    return int(stat[stat.rindex(b")") + 2 :].split()[1])


def kill_orphans(known: Collection[int]) -> None:
    """Kill the children of this process that it did not start, with all below them: what others have left behind.

    For processes that adopt orphans; this looks only at what the kernel lists as theirs, which costs little.

    Parameters
    ----------
    known : collection of int
        The children that are to live.
    """
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb") as file:  # noqa: PTH123 # on the way of every task
            children = [int(entry) for entry in file.read().split()]
    except OSError:
        return
    for child in children:
        if child not in known:
            kill_tree(child)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)


def kill_all_below() -> None:
    """Kill all descendants of this process until none is left, reaping those that have become its children."""
    for _ in range(_ROUNDS):
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            return
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_ROUND_SECONDS)


def guard() -> None:
    """Return in a child of this process; the process itself stays behind, and watches over the child and its children.

    It passes requests to end (SIGTERM and SIGINT) on to the child, kills all that the child leaves behind, however the
    child ended and wherever that has gone, and ends as the child did. When the launcher dies, it kills everything at
    once. To be called while the process has one thread. Where the system cannot adopt orphans (other than Linux) this
    returns in the process itself.
    """
    if _prctl() is None:
        return
    devnull = os.open(os.devnull, os.O_RDWR)
    child = os.fork()
    if child == 0:
        os.close(devnull)
        guardian = os.getppid()
        die_with_parent()
        if os.getppid() != guardian:
            os._exit(1)
        return
    _watch_over(child, devnull)


def _watch_over(child: int, devnull: int) -> NoReturn:
    """Stay until a child has ended, then end everything below this process, and the process as the child did."""
    status = 1 << 8
    try:
        adopt_orphans()
        signal.signal(signal.SIGHUP, lambda _number, _frame: _end_all())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _frame: _pass_on(child, number))
        die_with_parent(signal.SIGHUP)
        # The pipes are the child's; who reads them must not wait for this process.
        for fd in range(3):
            os.dup2(devnull, fd)
        os.closerange(3, 1024)
        pid = 0
        while pid != child:
            pid, status = os.waitpid(-1, 0)
        kill_all_below()
    finally:
        _end_like(status)


def _pass_on(child: int, number: int) -> None:
    """Signal the child."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)


def _end_all() -> NoReturn:
    """Kill everything below, and end."""
    kill_all_below()
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
