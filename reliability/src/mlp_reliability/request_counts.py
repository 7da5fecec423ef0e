"""The row ``requests``: how many requests a bucket gets for a large run, for reading and tailing it, and for lists.

The real driver runs a foreach of `n` tasks with workers that do nothing, in virtual time: each request takes as long as
one to a bucket does, so that what ends meanwhile is committed as a group, as it would be. What is counted are the
requests that the store makes, pages of listings too.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from mlp_core.builtin.fsspec_store.store import FsspecStore
from mlp_core.runner.admission import Machine
from mlp_core.runner.driver import Driver
from mlp_core.runner.inbox import Inbox, Message
from mlp_core.runner.progress import SilentProgress
from mlp_core.runner.requests import RunSetup, StepSetup
from mlp_core.runner.reuse import Reuse
from mlp_core.store import Store, layout
from mlp_core.store.growing import PACK, read_growing
from mlp_core.store.records import RunBegan, RunEnded
from mlp_hookspecs import (
    CodeRef,
    FlowGraph,
    PlannedStep,
    Resources,
    RunContext,
    StepNode,
    StepOutcome,
    StepPlan,
    Transition,
)
from mlp_reliability.promises import own_environment
from mlp_reliability.result import Result
from mlp_reliability.simulation.world import Clock

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from mlp_core.store import RunReader, RunWriter
    from mlp_hookspecs import LaunchRequest

_REQUEST_SECONDS: Final = 0.05
_TASK_SECONDS: Final = 2.0
_WORKERS: Final = 64
_TASKS_A_RUN: Final = 10
_PAGE: Final = 1000
_FEW: Final = 12
"""Requests that do not depend on how large a run is."""

_GRAPH: Final = FlowGraph(
    "Large",
    "start",
    "end",
    (
        StepNode("start", "foreach", ("work",), foreach="xs", join="join"),
        StepNode("work", "linear", ("join",)),
        StepNode("join", "linear", ("end",), is_join=True),
        StepNode("end", "end"),
    ),
)


class Counted:
    """A store on a bucket whose requests are counted, and take virtual time."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        """Open it."""
        self.store = Store.open(FsspecStore(f"faulty://{folder}", {}, retry_seconds=0), create=True)
        self._requests: Counter[str] = Counter()
        self._clock = clock
        inner: Any = self.store.objects
        inner._inner._here.files._fs.faults.told = self._told

    def _told(self, name: str) -> None:
        """Count a request."""
        self._requests[name] += 1
        self._clock.now += _REQUEST_SECONDS

    @contextmanager
    def counting(self) -> Iterator[Counter[str]]:
        """Count the requests that are made here."""
        self._requests.clear()
        counted: Counter[str] = Counter()
        yield counted
        counted.update(self._requests)


class Workers(Inbox):
    """An inbox, and launchers whose workers do nothing for a while and succeed."""

    def __init__(self, tasks: int, clock: Clock) -> None:
        """Begin with nothing running."""
        super().__init__()
        self.inbox = self
        self._tasks = tasks
        self._clock = clock
        self._ends: list[tuple[float, int, LaunchRequest]] = []
        self._numbers = itertools.count()

    def capacities(self) -> Mapping[str, int | None]:
        """Return that there is no launcher beyond the host."""
        return {}

    def launch(self, name: str, requests: Sequence[LaunchRequest]) -> None:
        """Start attempts; each takes a little longer or shorter than the others."""
        del name
        for request in requests:
            number = next(self._numbers)
            seconds = _TASK_SECONDS * (0.5 + number * 0.618034 % 1)
            heapq.heappush(self._ends, (self._clock.now + seconds, number, request))

    def cancel(self, name: str, attempt_ids: Sequence[str], grace_seconds: float) -> None:
        """Never be asked."""
        raise NotImplementedError(name, attempt_ids, grace_seconds)

    def wait(self, timeout: float | None) -> list[Message]:
        """Return what has ended by now, or what ends first."""
        due = self._ends[0][0]
        if timeout is not None and self._clock.now + timeout < due:
            self._clock.now += timeout
            return []
        self._clock.now = max(self._clock.now, due)
        while self._ends and self._ends[0][0] <= self._clock.now:
            request = heapq.heappop(self._ends)[2]
            node = request.step.node
            transition = Transition(node.next, self._tasks if node.kind == "foreach" else None)
            self.finished(request.id, StepOutcome("succeeded", transition=transition))
        return super().wait(0)


def run(n: int, seed: int, folder: Path) -> Result:
    """Count the requests for a run of `n` tasks, and for a tenth as many runs."""
    with own_environment(folder):
        details: dict[str, Any] = {}
        violations = _large_run(n, folder / "large", details)
        violations += _many_runs(max(1, n // _TASKS_A_RUN), folder / "many", details)
    return Result("requests", n, seed, violations, details)


def _large_run(n: int, folder: Path, details: dict[str, Any]) -> list[str]:
    """Drive a large run, then read it in every way."""
    clock = Clock()
    counted = Counted(folder, clock)
    writer = counted.store.create_run(lambda run_id: _began("Large", run_id), clock.time())
    run_id = writer.began.run.run_id
    commits = _count_commits(writer)
    reader: RunReader = counted.store.follow("Large", run_id)
    with counted.counting() as driving:
        _driver(n, writer, counted.store.url, clock).run()
    counted.store.objects.delete(layout.journal("Large", run_id))  # as it is while the run goes on
    with counted.counting() as late:
        counted.store.follow("Large", run_id)
    with counted.counting() as tailing:
        new = len(reader.refresh())
    with counted.counting() as idle:
        reader.refresh()
    # The journal is one object again, as the run's end has made it.
    with counted.counting() as ending:
        writer.close()
    whole = Counted(folder, clock)
    journal = layout.journal("Large", run_id)
    whole.store.objects.create(journal, read_growing(whole.store.objects, journal), sync=True)
    with whole.counting() as reading:
        tasks = len(whole.store.run("Large", run_id).tasks)
    parts = commits[0] + commits[1]
    details["run"] = {
        "tasks": tasks,
        "group commits": commits[0],
        "driving": _told(driving + ending),
        "requests a task": round((driving + ending).total() / tasks, 3),
        "reading it while it goes on": _told(late),
        "following it": _told(tailing),
        "following it while nothing happens": _told(idle),
        "reading it afterwards": _told(reading),
    }
    bounds = {
        "driving a run": ((driving + ending).total(), parts * (1 + 1 / PACK) + _FEW),
        "reading a run that goes on": (late.total(), parts / PACK + PACK + parts * (1 + 1 / PACK) / _PAGE + _FEW),
        "following a run": (tailing.total(), parts + _FEW),
        "following a run that does nothing": (idle.total(), _FEW / 2),
        "reading a run that has ended": (reading.total(), _FEW),
    }
    whole.store.close()
    counted.store.close()
    violations = _exceeded(bounds)
    if new < n or tasks != n + 3:
        violations.append(f"the run of {n} tasks reads with {tasks}")
    return violations


def _count_commits(writer: RunWriter) -> list[int]:
    """Have a writer count its commits, and its flushes of what need not be durable."""
    counts = [0, 0]
    write, flush = writer.write, writer.flush

    def counted_write(records: Sequence[Any], *, sync: bool = True) -> None:
        counts[0] += sync
        write(records, sync=sync)

    def counted_flush() -> None:
        counts[1] += 1
        flush()

    writer.write, writer.flush = counted_write, counted_flush  # type: ignore[method-assign]
    return counts


def _driver(n: int, writer: RunWriter, url: str, clock: Clock) -> Driver:
    """Return the driver of a run."""
    run = writer.began.run
    plan = StepPlan(resources=Resources(cpu=0.001))
    workers: Any = Workers(n, clock)
    return Driver(
        graph=_GRAPH,
        setup=RunSetup(run, CodeRef("counted", "Large"), url, {}, (), {}, "/"),
        steps={node.name: StepSetup(PlannedStep(node, plan), "here") for node in _GRAPH.steps},
        writer=writer,
        launchers=workers,
        max_workers=_WORKERS,
        progress=SilentProgress(),
        reuse=Reuse(),
        machine=Machine(_WORKERS, 0),
        clock=clock,
    )


def _many_runs(n: int, folder: Path, details: dict[str, Any]) -> list[str]:
    """Make runs, and list them: for the first time, again, and after one more has ended."""
    clock = Clock()
    counted = Counted(folder, clock)

    def make() -> None:
        writer = counted.store.create_run(lambda run_id: _began("Many", run_id), clock.time())
        writer.write([RunEnded("succeeded", "", clock.time(), 0)])
        writer.close()

    with counted.counting() as making:
        for _ in range(n):
            make()
    with counted.counting() as first:
        listed = len(counted.store.runs("Many"))
    with counted.counting() as again:
        counted.store.runs("Many")
    make()
    with counted.counting() as one_more:
        listed += len(counted.store.runs("Many"))
    counted.store.close()
    objects_a_run = 4
    pages = objects_a_run * n / _PAGE + 1
    details["list"] = {
        "runs": n,
        "making one": round(making.total() / n, 2),
        "the first time": _told(first),
        "again": _told(again),
        "with one more": _told(one_more),
    }
    bounds = {
        "listing runs for the first time": (first.total(), n + pages + _FEW),
        "listing them again": (again.total(), pages + _FEW),
        "listing them with one more": (one_more.total(), pages + _FEW),
    }
    violations = _exceeded(bounds)
    if listed != 2 * n + 1:
        violations.append(f"of {n} runs and one more {listed} were listed")
    return violations


def _exceeded(bounds: Mapping[str, tuple[int, float]]) -> list[str]:
    """Return what took more requests than it may."""
    return [
        f"{what} took {found} requests, not at most {most:.0f}"
        for what, (found, most) in bounds.items()
        if found > most
    ]


def _told(counter: Counter[str]) -> dict[str, int]:
    """Return counted requests, and their sum."""
    return {**dict(sorted(counter.items())), "all": counter.total()}


def _began(flow: str, run_id: str) -> RunBegan:
    """Return a run's first record."""
    return RunBegan(RunContext(flow, run_id), 1_700_000_000.0, "here", 1, _GRAPH)
