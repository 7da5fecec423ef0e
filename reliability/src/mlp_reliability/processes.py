"""The processes of one run: found by a mark in their environment, and ended; and work that is done side by side."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

CANARY: Final = "MLP_RELIABILITY_CANARY"
"""The environment variable that marks the processes of one place."""

JOBS: Final = "MLP_RELIABILITY_JOBS"
"""The environment variable that says how many rounds of a row go on side by side."""

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def in_parallel(work: Callable[[_In], _Out], items: Iterable[_In]) -> list[_Out]:
    """Return what a function makes of items, which it takes two at a time unless the environment says otherwise."""
    with ThreadPoolExecutor(jobs()) as pool:
        return list(pool.map(work, items))


def in_processes(work: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
    """Iterate over what a function makes of items, in their order, in as many processes as `in_parallel` has threads.

    Items may go on forever: only few are taken up before what was made of the first of them is looked at.
    """
    with ProcessPoolExecutor(jobs(), multiprocessing.get_context("spawn")) as pool:
        waiting: deque[Future[_Out]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > jobs():
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def jobs() -> int:
    """Return how many rounds of a row go on side by side."""
    return int(os.environ.get(JOBS, "2"))


def marked(canary: str) -> list[int]:
    """Return the ids of live processes that were started with a mark."""
    wanted = f"{CANARY}={canary}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with suppress(OSError):  # ended since; what has ended and was not waited for has no environment
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def described(canary: str) -> str:
    """Return what the processes with a mark are doing, for the report of one that hangs."""
    said = []
    for pid in marked(canary):
        with suppress(OSError):
            folder = Path(f"/proc/{pid}")
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            said.append(f"{pid} ({' '.join(parent)}, {(folder / 'wchan').read_text()}): {command[-80:]}")
    return "; ".join(said)


def left_after(canary: str, seconds: float) -> list[int]:
    """Return which processes with a mark are still there after some time; at once when there are none."""
    until = time.monotonic() + seconds
    while (found := marked(canary)) and time.monotonic() < until:
        time.sleep(0.02)
    return found


def kill_marked(canary: str) -> None:
    """Kill every process with a mark, and those that they start meanwhile."""
    while found := marked(canary):
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def stop_marked(canary: str) -> None:
    """Stop every process with a mark; when this returns, none is in a system call any more."""
    stopped: list[int] = []
    while stopped != (found := marked(canary)) or not all(map(_is_stopped, found)):
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        stopped = found
        time.sleep(0.001)


def _is_stopped(pid: int) -> bool:
    """Tell whether a process is stopped, or gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "TtZX"
    except OSError:
        return True
