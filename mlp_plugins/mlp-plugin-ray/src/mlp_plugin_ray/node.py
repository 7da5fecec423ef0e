"""What runs on the nodes of a Ray cluster: attempts, and the hub through which they report while they run.

The bridge ships this module by value, so that a node needs Ray and mlp_hookspecs but not this plugin: nothing here may
import another module of the package. Between processes travel only bytes and text, by `mlp_hookspecs.wire` where they
stand for values of the contract.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading
import time
from concurrent.futures import wait
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, Literal

from mlp_hookspecs import Failure, StepOutcome, WorkerCommand, wire
from mlp_hookspecs.process import WorkerLoop, adopt_orphans, descendants, kill_tree, send_request, start_worker

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

Frame = tuple[Literal["started", "heartbeat", "stdout", "stderr", "end"], bytes]
"""A piece of an attempt's report: what it is, and its content."""

End = tuple[Literal["finished", "lost"], str]
"""How an attempt ended: the call to the sink, and its `StepOutcome` or `Failure` on the wire."""

TICK_SECONDS: Final = 0.1
"""How long an attempt may sleep before it looks whether it was cancelled."""

_GATHER_SECONDS = 0.05
"""How long log is gathered before it is reported: the price of a report is 2 ms, whatever its size."""

_REPORT_BYTES = 1 << 18
_OUTBOX_BYTES = 1 << 22
_HUB_BYTES = 1 << 22
_HUB_SECONDS = 60.0
_REAP_SECONDS = 2.0


class Hub:
    """The actor beside the bridge that passes reports on; tasks cannot reach the bridge themselves."""

    def __init__(self) -> None:
        """Make an empty hub."""
        self._reports: list[tuple[str, list[Frame]]] = []
        self._size = 0
        self._filled = asyncio.Event()

    async def push(self, attempt_id: str, frames: list[Frame]) -> bool:
        """Take a report; return False where the hub is full and a report of any size has to be made again."""
        size = sum(len(content) for _, content in frames)
        if size and self._size > _HUB_BYTES:
            return False
        self._reports.append((attempt_id, frames))
        self._size += size
        self._filled.set()
        return True

    async def pull(self, timeout: float) -> list[tuple[str, list[Frame]]]:  # noqa: ASYNC109 # part of the actor's interface
        """Return all reports in the order of their coming, as soon as there are any."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._filled.wait()
        self._filled.clear()
        reports, self._reports, self._size = self._reports, [], 0
        return reports


class Outbox:
    """The sink on the node: what an attempt has to report, up to a bound beyond which its worker has to wait."""

    def __init__(self) -> None:
        """Make an empty outbox."""
        self._frames: list[Frame] = []
        self._size = 0
        self._urgent = False
        self._closed = False
        self._changed = threading.Condition()
        self.end: End | None = None

    def started(self, attempt_id: str, host: str, pid: int) -> None:  # noqa: ARG002 # the sink's signature
        """Report the start, at once."""
        self._put(("started", json.dumps({"host": host, "pid": pid}).encode()), urgent=True)

    def heartbeat(self, attempt_id: str) -> None:  # noqa: ARG002 # the sink's signature
        """Report a sign of life."""
        self._put(("heartbeat", b""))

    def log(self, attempt_id: str, stream: Literal["stdout", "stderr"], data: bytes) -> None:  # noqa: ARG002 # as above
        """Report a piece of the log."""
        self._put((stream, data))

    def finished(self, attempt_id: str, outcome: StepOutcome) -> None:  # noqa: ARG002 # the sink's signature
        """Note the outcome."""
        self._finish(("finished", wire.dumps(outcome).decode()))

    def lost(self, attempt_id: str, failure: Failure) -> None:  # noqa: ARG002 # the sink's signature
        """Note the loss."""
        self._finish(("lost", wire.dumps(failure).decode()))

    def take(self) -> list[Frame]:
        """Return what is to be reported now, after waiting a little where that is nothing or hardly anything."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._frames or self.end, timeout=TICK_SECONDS):
                return []
            self._changed.wait_for(
                lambda: self._urgent or self.end or self._size > _REPORT_BYTES, timeout=_GATHER_SECONDS
            )
            frames, self._frames, self._size, self._urgent = self._frames, [], 0, False
            self._changed.notify_all()
        # Pieces of one stream that follow each other become one: a pipe hands out at most a few kilobytes at a time.
        return [(kind, b"".join(content for _, content in run)) for kind, run in groupby(frames, itemgetter(0))]

    def close(self) -> None:
        """Let nobody wait any more; what comes now is dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _put(self, frame: Frame, *, urgent: bool = False) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._size < _OUTBOX_BYTES)
            self._frames.append(frame)
            self._size += len(frame[1])
            self._urgent = self._urgent or urgent
            self._changed.notify_all()

    def _finish(self, end: End) -> None:
        with self._changed:
            self.end = end
            self._changed.notify_all()


def run_attempt(hub: Any, attempt_id: str, command: str, request: str) -> End:
    """Run one attempt's worker on this node, as a Ray task; return when nothing of it is left.

    Ray's cancelling interrupts the task. The first interrupt asks the worker to end, the second kills it.

    Parameters
    ----------
    hub : actor handle
        The hub that reports go to.
    attempt_id : str
        Identity of the attempt.
    command, request : str
        Its `WorkerCommand` and its `StepRequest` on the wire.

    Returns
    -------
    tuple of str and str
        How it ended; what was reported before is at the hub by now.
    """
    interrupts: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _frame: interrupts.append(number))
    try:
        with no_process_left():
            return _run(hub, attempt_id, (wire.loads(WorkerCommand, command), request.encode()), interrupts)
    except OSError as error:
        return "lost", wire.dumps(Failure("system", f"the worker could not be started: {error}")).decode()
    finally:
        signal.signal(signal.SIGINT, previous)


def _run(hub: Any, attempt_id: str, start: tuple[WorkerCommand, bytes], interrupts: list[int]) -> End:
    """Start the worker, report what it does, obey interrupts, and return its end."""
    command, request = start
    outbox = Outbox()
    loop = WorkerLoop(outbox)
    process, messages = start_worker(command)
    sent = 0

    def obey() -> None:
        nonlocal sent
        while sent < len(interrupts):
            if sent:
                kill_tree(process.pid)
            else:
                process.send_signal(signal.SIGTERM)
            sent += 1

    try:
        _serve(process, loop, (attempt_id, messages, request))
        is_heard = True
        while True:
            end = outbox.end  # before what was reported is taken: then nothing can come after it
            frames = outbox.take()
            if frames and is_heard:
                is_heard = _report(hub, attempt_id, frames, obey)
            obey()
            if end is not None:
                return end
    finally:
        outbox.close()
        kill_tree(process.pid)
        process.wait()
        loop.close()


def _serve(process: subprocess.Popen[bytes], loop: WorkerLoop, attempt: tuple[str, int, bytes]) -> None:
    """Have threads read a worker's pipes, hand over its request, and await its end."""
    attempt_id, messages, request = attempt
    if process.stdout is None or process.stderr is None:  # pragma: no cover # the process was started with pipes
        raise RuntimeError(attempt_id)
    loop.start()
    loop.add(attempt_id, os.dup(process.stdout.fileno()), os.dup(process.stderr.fileno()), messages)
    process.stdout.close()
    process.stderr.close()

    def attend() -> None:
        send_request(process, request)
        loop.exited(attempt_id, process.wait())

    threading.Thread(target=attend, name="mlp-attempt", daemon=True).start()


def _report(hub: Any, attempt_id: str, frames: list[Frame], obey: Callable[[], None]) -> bool:
    """Make a report and wait until the hub has taken it, so that reports keep their order; False if the hub is gone.

    Not by `ray.get`: that would lend this task's processors to others.
    """
    from ray.exceptions import ActorUnavailableError, RayError

    deadline = time.monotonic() + _HUB_SECONDS
    while True:
        future = hub.push.remote(attempt_id, frames).future()
        while not wait([future], timeout=TICK_SECONDS).done:
            obey()
        try:
            if future.result():
                return True
        except ActorUnavailableError:  # it has died, and Ray starts it anew
            if time.monotonic() > deadline:
                return False
        except RayError:
            return False
        obey()
        time.sleep(TICK_SECONDS)


@contextlib.contextmanager
def no_process_left() -> Iterator[None]:
    """Kill what the block started and left behind, even what had detached itself (where the system can tell: Linux)."""
    adopt_orphans()
    before = set(descendants(os.getpid()))
    try:
        yield
    finally:
        deadline = time.monotonic() + _REAP_SECONDS
        while (left := set(descendants(os.getpid())) - before) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
                # Only our own children can be waited for; the others become ours once their parents are gone.
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(0.001)
