"""One history of a store: the process that uses it, what may become of that, and what all rules need."""

from __future__ import annotations

import functools
import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from mlp_core.store import Store
from mlp_core.store.records import AttemptFinished, RunBegan
from mlp_hookspecs import FlowGraph, RunContext, StepNode, StepOutcome, TaskKey
from mlp_reliability.crashing import CrashingObjects, Process
from mlp_reliability.machine.model import FLOW, ModelRun, WrongError
from mlp_reliability.machine.places import KINDS, Place, draw_place, lease_key
from mlp_reliability.memory import ProcessDied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from hypothesis.strategies import SearchStrategy

    from mlp_core.store import RunWriter
    from mlp_hookspecs.handles import ObjectStore

_T = TypeVar("_T")

_GRAPH: Final = FlowGraph(FLOW, "work", "work", (StepNode("work", "end"),))
INLINE_BYTES: Final = 100
"""Up to how many bytes artifacts travel in the journal."""

AGE: Final = 20 * 24 * 3600.0
"""How long ago runs begin: longer than anything is made old by, so that what they have written is newer than they."""

CONTENTS: Final = (b"small", b"other", b"a" * 200, b"b" * 200, b"c" * 5000, bytes(range(256)) * 40, b"")
"""Artifacts: few, so that runs share blobs; small ones travel in the journal."""

VALUES = st.integers(0, len(CONTENTS) - 1)
"""Which of them."""

DEATHS = st.one_of(st.none(), st.integers(1, 30))
"""Before which of the next operations the process dies."""


@attrs.define
class Counts:
    """What was done.

    Attributes
    ----------
    steps, examples : int
        Rules carried out, and histories.
    rules : dict of str to int
        How often each.
    failures : list of str
        What went wrong, with the steps before it; the same may be there many times, since hypothesis tries it again.
    """

    steps: int = 0
    examples: int = 0
    rules: dict[str, int] = attrs.field(factory=dict)
    failures: list[str] = attrs.field(factory=list)

    def add(self, name: str) -> None:
        """Count a rule."""
        self.steps += 1
        self.rules[name] = self.rules.get(name, 0) + 1

    def join(self, others: Counts) -> None:
        """Add what was done elsewhere; what went wrong there is not of interest."""
        self.steps += others.steps
        self.examples += others.examples
        for name, often in others.rules.items():
            self.rules[name] = self.rules.get(name, 0) + often


def step(name: str, **drawn: SearchStrategy[Any]) -> Callable[[Callable[..., None]], Any]:
    """Make a rule of a method: it is counted, and what goes wrong in it is kept with the steps before it."""

    def decorate(method: Callable[..., None]) -> Any:
        @functools.wraps(method)
        def carry_out(self: History, **arguments: object) -> None:
            self._counts.add(name)
            self._steps.append(f"{method.__name__}({', '.join(f'{n}={v}' for n, v in arguments.items())})")
            try:
                method(self, **arguments)
            except Exception as error:
                self._counts.failures.append(f"{type(error).__name__}: {error} after {'; '.join(self._steps)}")
                raise

        made: Any = rule
        return made(**drawn)(carry_out)

    return decorate


class History(RuleBasedStateMachine):
    """One history of a store."""

    def __init__(self, folder: Path, counts: Counts) -> None:
        """Begin with nothing; `place` makes the store."""
        super().__init__()
        counts.examples += 1
        self._counts = counts
        self._folder = folder / str(counts.examples)
        self._folder.mkdir(parents=True)
        self._runs: dict[str, ModelRun] = {}
        self._steps: list[str] = []
        self._stopped: list[tuple[ModelRun, RunWriter]] = []
        self._copies: list[Place] = []

    @initialize(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**16))
    def place(self, kind: str, seed: int) -> None:
        """Choose where the store lies."""
        self._steps.append(f"place(kind={kind!r}, seed={seed})")
        self._rng = random.Random(seed)
        self._place = draw_place(kind, self._folder / "store")
        self._copies = [draw_place(self._rng.choice(KINDS), self._folder / f"copy-{number}") for number in range(2)]
        self._begin_process()

    # ------------------------------------------------------------------------------------------- processes

    def _begin_process(self) -> None:
        """Begin a process that uses the store."""
        self._process = Process()
        self._raw = self._place.open()
        self._store = Store.open(CrashingObjects(self._raw, self._process, self._rng.random), create=True)

    @contextmanager
    def _dying(self, operations: int | None) -> Iterator[None]:
        """Let the process die in what is done here, and begin a new one."""
        self._process.dies_in(operations)
        try:
            yield
        except ProcessDied:
            self._counts.add("a process dies")
            self._end_process()
        self._process.dies_in(None)

    def _end_process(self) -> None:
        """Have the process be dead: its locks are free, its threads gone."""
        self._process.is_dead = True
        for run in self._runs.values():
            if run.writer is not None:
                abandon(run.writer)
                run.writer = None
                with suppress(KeyError, FileNotFoundError):  # it had not come to that
                    self._place.age(lease_key(self._raw, FLOW, run.run_id))
        for _, writer in self._stopped:
            abandon(writer)
        self._stopped.clear()
        self._store.close()
        self._place.died(self._rng)
        self._begin_process()

    def _read(self) -> Store:
        """Open the store as another process does, to read it."""
        return Store.open(self._place.open(), create=False)

    def _live(self) -> list[ModelRun]:
        """Return the runs that have a driver."""
        return [run for run in self._runs.values() if run.writer is not None]

    def _chosen(self, runs: list[ModelRun], draw: int) -> ModelRun | None:
        """Return one of some runs."""
        return runs[draw % len(runs)] if runs else None

    # ---------------------------------------------------------------------------------- what rules need

    def _written(self, values: list[bytes]) -> list[StepOutcome]:
        """Write artifacts, as workers do, and return what they tell the driver."""
        blobs = self._store.blobs(inline_bytes=INLINE_BYTES)
        outcomes = []
        for value in values:
            target = blobs.target("bytes")
            target.write([value])
            outcomes.append(StepOutcome("succeeded", assigned={"x": target.finish("bytes", sync=False)}))
        blobs.sync()
        return outcomes

    def _record(self, writer: RunWriter, keys: list[TaskKey], outcomes: list[StepOutcome]) -> None:
        """Write the records that name artifacts."""
        now = time.time()
        writer.write([AttemptFinished(k, 0, o, time=now) for k, o in zip(keys, outcomes, strict=True)], sync=True)

    def _is_stopped(self, run: ModelRun) -> bool:
        """Tell whether a run's driver is stopped."""
        return any(each is run for each, _ in self._stopped)

    def _check_all(self, store: Store) -> None:
        """Compare every run."""
        found = set(store.run_ids(FLOW)) if FLOW in store.flows() else set()
        if missing := set(self._runs) - found:
            raise WrongError(f"the runs {sorted(missing)} are gone")
        for run in self._runs.values():
            run.check(store, keeps=not self._place.loses_power)

    # ---------------------------------------------------------------------------------------------- the end

    def teardown(self) -> None:
        """Let all processes die, and read everything once more."""
        if not hasattr(self, "_store"):
            return
        try:
            self._end_process()
            self._check_all(self._store)
        finally:
            self._store.close()
            for place in (self._place, *self._copies):
                place.remove()
            shutil.rmtree(self._folder, ignore_errors=True)


def began(run_id: str) -> RunBegan:
    """Return a run's first record."""
    run = RunContext(FLOW, run_id, "machine", "user:machine")
    # A lease so long that no thread renews it while a history lasts.
    return RunBegan(run, time.time() - AGE, "here", 1, _GRAPH, lease_seconds=24 * 3600)


def at_once(do: Callable[[], _T]) -> list[_T]:
    """Do something twice, in two threads that begin at the same moment."""
    ready = threading.Barrier(2)

    def wait_and_do() -> _T:
        ready.wait()
        return do()

    with ThreadPoolExecutor(2) as threads:
        return [each.result() for each in [threads.submit(wait_and_do) for _ in range(2)]]


def abandon(writer: RunWriter) -> None:
    """Do to a writer what the death of its process does: its thread ends, its lock is free, its files are closed."""
    writer._lease._closed.set()
    writer._resources.close()
    writer._file.close()
    if writer._log_file is not None:
        writer._log_file.close()


def close(store: Store, raw: ObjectStore) -> None:
    """Close a store, unless it is the process's own."""
    if store.objects._inner is not raw:  # type: ignore[attr-defined]
        store.close()
