"""The state machine: what may happen to a store, each as a rule."""

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
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from mlp_core.errors import MlpError, StoreError, StoreFenced
from mlp_core.store import Store, layout
from mlp_core.store.faults import GuardedObjects
from mlp_core.store.records import AttemptFinished, AttemptStarted, RunBegan, RunEnded, TagsChanged
from mlp_core.store.verified import cache_folder
from mlp_core.upkeep.archive import Archive, export_run
from mlp_core.upkeep.fsck import check_store
from mlp_core.upkeep.gc import LEAST_GRACE, clear_store
from mlp_core.upkeep.removal import remove_run
from mlp_core.upkeep.retention import Retention
from mlp_core.upkeep.sync import SyncOptions, chosen_runs, sync_runs
from mlp_hookspecs import FlowGraph, RunContext, StepNode, StepOutcome, TaskKey
from mlp_reliability.crashing import CannotSync, CrashingObjects, Process
from mlp_reliability.machine.model import FLOW, ModelRun, WrongError, contents, contents_or_error
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
_INLINE_BYTES: Final = 100
_MOST_RUNS: Final = 6
_AGE: Final = 20 * 24 * 3600.0
"""How long ago runs begin: longer than anything is made old by, so that what they have written is newer than they."""

_READING: Final = ("read", "list", "check", "place")
_CHANGING: Final = ("commit", "end", "go_on", "remove", "take_over")

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


def step(name: str, **drawn: SearchStrategy[Any]) -> Callable[[Callable[..., None]], Any]:
    """Make a rule of a method: it is counted, and what goes wrong in it is kept with the steps before it."""

    def decorate(method: Callable[..., None]) -> Any:
        @functools.wraps(method)
        def carry_out(self: StoreMachine, **arguments: object) -> None:
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


class StoreMachine(RuleBasedStateMachine):
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
                _abandon(run.writer)
                run.writer = None
                with suppress(KeyError, FileNotFoundError):  # it had not come to that
                    self._place.age(lease_key(self._raw, FLOW, run.run_id))
        for _, writer in self._stopped:
            _abandon(writer)
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

    # ------------------------------------------------------------------------------------------ the writers

    @precondition(lambda self: len(self._runs) < _MOST_RUNS)
    @step("begin", death=DEATHS)
    def begin(self, death: int | None) -> None:
        """Begin a run."""
        with self._dying(death):
            writer = self._store.create_run(_began, time.time() - _AGE)
            run_id = writer.began.run.run_id
            if run_id in self._runs:
                raise WrongError(f"two runs have the id {run_id}")
            self._runs[run_id] = ModelRun(run_id, writer)

    @precondition(lambda self: len(self._runs) < _MOST_RUNS - 1 and not self._steps[-1].startswith("begin"))
    @step("begin two at once")
    def begin_two_at_once(self) -> None:
        """Begin two runs at the same moment."""
        now = time.time() - _AGE
        writers = _at_once(lambda: self._store.create_run(_began, now))
        for writer in writers:
            self._runs[writer.began.run.run_id] = ModelRun(writer.began.run.run_id, writer)
        if len({writer.began.run.run_id for writer in writers}) != len(writers):
            raise WrongError("two runs that began at once have one id")

    @precondition(lambda self: self._live())
    @step("commit", draw=st.integers(0, 100), values=st.lists(VALUES, min_size=1, max_size=3), death=DEATHS)
    def commit(self, draw: int, values: list[int], death: int | None) -> None:
        """Commit tasks, as a group."""
        run = self._chosen(self._live(), draw)
        if run is None or run.writer is None:
            return
        keys = [TaskKey("work", (), run.number + offset) for offset in range(len(values))]
        given = [CONTENTS[value] for value in values]
        with self._dying(death):
            run.maybe_tasks.update(zip((key.path for key in keys), given, strict=True))
            self._record(run.writer, keys, self._written(given))
            for key in keys:
                run.tasks[key.path] = run.maybe_tasks.pop(key.path)

    def _written(self, values: list[bytes]) -> list[StepOutcome]:
        """Write artifacts, as workers do, and return what they tell the driver."""
        blobs = self._store.blobs(inline_bytes=_INLINE_BYTES)
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

    @precondition(lambda self: any(not run.prepared for run in self._live()))
    @step("prepare", draw=st.integers(0, 100), value=VALUES, death=DEATHS)
    def prepare(self, draw: int, value: int, death: int | None) -> None:
        """Write an artifact of a run that goes on; its record comes later."""
        run = self._chosen([run for run in self._live() if not run.prepared], draw)
        with self._dying(death):
            if run is not None:
                (outcome,) = self._written([CONTENTS[value]])
                run.prepared = [(CONTENTS[value], outcome)]

    @precondition(lambda self: any(run.prepared for run in self._live()))
    @step("commit what was prepared", draw=st.integers(0, 100), death=DEATHS)
    def commit_prepared(self, draw: int, death: int | None) -> None:
        """Commit what was written earlier, whatever has been cleared away since."""
        run = self._chosen([run for run in self._live() if run.prepared], draw)
        if run is None or run.writer is None:
            return
        key = TaskKey("work", (), run.number)
        content, outcome = run.prepared.pop()
        with self._dying(death):
            run.maybe_tasks[key.path] = content
            self._record(run.writer, [key], [outcome])
            run.tasks[key.path] = run.maybe_tasks.pop(key.path)

    @precondition(lambda self: self._live())
    @step("print", draw=st.integers(0, 100), death=DEATHS)
    def print_something(self, draw: int, death: int | None) -> None:
        """Keep output, and let readers see it."""
        run = self._chosen(self._live(), draw)
        with self._dying(death):
            if run is not None and run.writer is not None:
                key = TaskKey("work", (), run.number)
                if key.path not in run.started:
                    run.started.add(key.path)
                    run.writer.write([AttemptStarted(key, 0, "local", time.time())], sync=False)
                run.writer.log(f"{key.path}/0", "stdout", b"a line\n", time.time())
                run.writer.flush()

    @precondition(lambda self: self._live())
    @step("end", draw=st.integers(0, 100), status=st.sampled_from(["succeeded", "failed", "cancelled"]), death=DEATHS)
    def end(self, draw: int, status: str, death: int | None) -> None:
        """End a run."""
        run = self._chosen(self._live(), draw)
        if run is None or run.writer is None:
            return
        with self._dying(death):
            run.maybe_statuses.add(status)
            run.writer.write([RunEnded(status, "", time.time(), len(run.tasks))], sync=True)  # type: ignore[arg-type]
            run.status = status
            run.writer.close()
            run.writer = None

    @precondition(lambda self: self._runs)
    @step("tag", draw=st.integers(0, 100), tag=st.sampled_from(["a", "b", "c", "d"]), death=DEATHS)
    def tag(self, draw: int, tag: str, death: int | None) -> None:
        """Tag a run from outside."""
        run = self._chosen(list(self._runs.values()), draw)
        if run is None:
            return
        with self._dying(death):
            run.maybe_tags.add(tag)
            name = f"tags.{self._rng.getrandbits(64):x}"
            self._store.add_segment(FLOW, run.run_id, name, TagsChanged((tag,), (), "machine", time.time()))
            run.tags.add(tag)

    # --------------------------------------------------------------------------------------------- takeover

    @precondition(lambda self: self._live())
    @step("stop past the lease", draw=st.integers(0, 100))
    def stop_past_the_lease(self, draw: int) -> None:
        """Stop a run's driver for longer than its lease; it is not told, and may go on later."""
        run = self._chosen(self._live(), draw)
        if run is None or run.writer is None:
            return
        self._place.age(lease_key(self._raw, FLOW, run.run_id))
        self._stopped.append((run, run.writer))
        run.writer = None

    @precondition(lambda self: any(run.status is None and run.writer is None for run in self._runs.values()))
    @step("take over", draw=st.integers(0, 100), death=DEATHS)
    def take_over(self, draw: int, death: int | None) -> None:
        """Take over a run whose driver is gone."""
        run = self._chosen([run for run in self._runs.values() if run.status is None and run.writer is None], draw)
        if run is None:
            return
        with self._dying(death):
            run.maybe_statuses.add("lost")
            state = self._store.fence(FLOW, run.run_id)
            run.status = state.status

    @precondition(lambda self: any(run.status is None and run.writer is None for run in self._runs.values()))
    @step("take over twice at once", draw=st.integers(0, 100))
    def take_over_twice_at_once(self, draw: int) -> None:
        """Take a run over by two at the same moment: both see one end."""
        run = self._chosen([run for run in self._runs.values() if run.status is None and run.writer is None], draw)
        if run is None:
            return
        ends = {str(state.ended) for state in _at_once(lambda: self._store.fence(FLOW, run.run_id))}
        if len(ends) != 1:
            raise WrongError(f"two who took over {run.run_id} saw the ends {sorted(ends)}")
        run.status = self._store.run(FLOW, run.run_id).status

    @precondition(lambda self: self._stopped)
    @step("go on after the lease", value=VALUES)
    def go_on_after_the_lease(self, value: int) -> None:
        """Let a stopped driver go on: where it was taken over, it commits nothing."""
        run, writer = self._stopped.pop()
        key = TaskKey("work", (), run.number)
        try:
            self._record(writer, [key], self._written([CONTENTS[value]]))
        except StoreFenced:
            if run.status is None and not run.maybe_statuses:
                raise
        else:
            if run.status is not None:
                raise WrongError(f"the driver of {run.run_id} committed after it was taken over")
            run.tasks[key.path] = CONTENTS[value]
        _abandon(writer)

    @precondition(lambda self: self._live())
    @step("a sync fails", draw=st.integers(0, 100), value=VALUES)
    def fail_to_sync(self, draw: int, value: int) -> None:
        """Let two workers write one artifact, and the sync of the first fail after the second's was committed."""
        run = self._chosen(self._live(), draw)
        if run is None or run.writer is None:
            return
        objects = self._place.open()
        other = Store(GuardedObjects(CannotSync(objects))).blobs(inline_bytes=_INLINE_BYTES)
        for content in (CONTENTS[value], self._rng.randbytes(_INLINE_BYTES + 1)):
            target = other.target("bytes")
            target.write([content])
            target.finish("bytes", sync=False)
        key = TaskKey("work", (), run.number)
        self._record(run.writer, [key], self._written([CONTENTS[value]]))
        run.tasks[key.path] = CONTENTS[value]
        try:
            other.sync()
        except StoreError:
            pass
        else:
            raise WrongError("a sync that failed was not told")
        if objects is not self._raw:
            objects.close()

    # --------------------------------------------------------------------------------------------- clearing

    @precondition(lambda self: self._steps[-1].startswith(_CHANGING) or any(run.prepared for run in self._live()))
    @step("clear", death=DEATHS)
    def clear(self, death: int | None) -> None:
        """Clear away what nobody needs, after long: all blobs are old, also those that a run is about to name."""
        for info in self._raw.list(layout.BLOBS):
            self._place.age(info.key)
        with self._dying(death):
            clear_store(self._store, Retention(), now=time.time(), grace=LEAST_GRACE)
        blobs = self._store.blobs()
        for run in self._live():
            for content, outcome in run.prepared:
                if bytes(blobs.source(outcome.assigned["x"]).buffer()) != content:
                    raise WrongError(f"what run {run.run_id} is about to name reads wrong after a clearing")

    @precondition(lambda self: any(run.status is not None for run in self._runs.values()))
    @step("remove", draw=st.integers(0, 100), death=DEATHS)
    def remove(self, draw: int, death: int | None) -> None:
        """Remove a run that has ended."""
        ended = [run for run in self._runs.values() if run.status is not None and not self._is_stopped(run)]
        run = self._chosen(ended, draw)
        if run is None:
            return
        del self._runs[run.run_id]
        with self._dying(death):
            remove_run(self._store, FLOW, run.run_id)
            if run.run_id in self._store.run_ids(FLOW):
                raise WrongError(f"run {run.run_id} is still there after it was removed")

    # ---------------------------------------------------------------------------------------------- reading

    @precondition(lambda self: not self._steps[-1].startswith(_READING))
    @step("read")
    def read(self) -> None:
        """Read everything as another process does."""
        store = self._read()
        self._check_all(store)
        _close(store, self._raw)

    def _check_all(self, store: Store) -> None:
        """Compare every run."""
        found = set(store.run_ids(FLOW)) if FLOW in store.flows() else set()
        if missing := set(self._runs) - found:
            raise WrongError(f"the runs {sorted(missing)} are gone")
        for run in self._runs.values():
            run.check(store, keeps=not self._place.loses_power)

    @precondition(lambda self: not self._steps[-1].startswith(_READING))
    @step("list", forget=st.booleans())
    def list_runs(self, *, forget: bool) -> None:
        """List the runs, by an index that may have been thrown away."""
        cache = cache_folder()
        if forget and cache is not None:
            shutil.rmtree(cache, ignore_errors=True)
        store = self._read()
        listed = {summary.run_id: summary for summary in store.runs(FLOW)}
        for run in self._runs.values():
            summary = listed.get(run.run_id)
            allowed = run.statuses()
            if self._place.loses_power and run.status is None:
                # The index asks for the lease only, which this model of a disk has beside its locks, unlike a real one.
                allowed |= {"running", "lost"}
            if summary is None or summary.status not in allowed:
                raise WrongError(f"run {run.run_id} is listed as {summary}, not {sorted(allowed)}")
            if not run.tags <= set(summary.tags) <= run.tags | run.maybe_tags:
                raise WrongError(f"run {run.run_id} is listed with the tags {summary.tags}, not {sorted(run.tags)}")
        _close(store, self._raw)

    @precondition(lambda self: not self._steps[-1].startswith(_READING))
    @step("check")
    def check(self) -> None:
        """Check the store: whatever has died in it, nothing is damaged."""
        objects = self._place.open()
        damaged = [finding for finding in check_store(objects).findings if finding.severity == "damage"]
        if damaged:
            raise WrongError(f"fsck finds {damaged[0].key}: {damaged[0].problem}")
        if objects is not self._raw:
            objects.close()

    # --------------------------------------------------------------------------------------------- damaging

    @precondition(lambda self: self._runs)
    @step(
        "damage",
        draw=st.integers(0, 1000),
        where=st.floats(0, 1, exclude_max=True),
        how=st.sampled_from(["flip", "cut", "no"]),
    )
    def damage(self, draw: int, where: float, how: str) -> None:
        """Damage an object: what is read is right or refused, fsck names it, and it can be put back."""
        key = self._damageable(draw)
        if key is None:
            return
        before = self._raw.read(key)
        after = _damaged(before, where, how)
        if after == before or (after is None and self._is_doubled_or_optional(key)):
            return
        if after is None:
            self._raw.delete(key)
        else:
            self._raw.replace(key, after, sync=True)
        objects = self._place.open()
        findings = check_store(objects).findings
        if not any(finding.key == key and finding.severity == "damage" for finding in findings):
            raise WrongError(f"fsck does not find that {key} was damaged ({how} at {where:.3f})")
        self._check_damaged(Store(objects) if key == layout.FORMAT else Store.open(objects, create=False), key)
        if objects is not self._raw:
            objects.close()
        self._raw.replace(key, before, sync=True)

    def _damageable(self, draw: int) -> str | None:
        """Return a blob, or an object of a run that has ended and been sealed."""
        sealed = [run.run_id for run in self._runs.values() if run.status is not None and self._is_sealed(run.run_id)]
        keys = [layout.journal(FLOW, run_id) for run_id in sealed]
        keys += [info.key for info in self._raw.list(layout.BLOBS)] if self._is_referred() else []
        for run_id in sealed:
            keys += [info.key for info in self._raw.list(layout.segments(FLOW, run_id))]
        keys = sorted(key for key in keys if self._is_needed(key))
        return keys[draw % len(keys)] if keys else None

    def _is_doubled_or_optional(self, key: str) -> bool:
        """Tell whether nobody can know that an object is missing: a journal that is there in parts too, or a tag."""
        return "/segments/" in key or any(True for _ in self._raw.list(layout.parts(key)))

    def _is_referred(self) -> bool:
        """Tell whether blobs are referred to."""
        return any(run.tasks for run in self._runs.values())

    def _is_needed(self, key: str) -> bool:
        """Tell whether an acknowledged task or tag depends on an object."""
        if not key.startswith(layout.BLOBS):
            return self._raw.info(key).size > 0
        from hashlib import sha256

        contents = {content for run in self._runs.values() for content in run.tasks.values()}
        return key.rpartition("-")[2] in {sha256(c).hexdigest() for c in contents if len(c) > _INLINE_BYTES}

    def _is_sealed(self, run_id: str) -> bool:
        """Tell whether a run's seal is there."""
        try:
            return self._raw.info(layout.seal(FLOW, run_id)).size > 0
        except FileNotFoundError:
            return False

    def _check_damaged(self, store: Store, key: str) -> None:
        """Read everything: it may be refused, but what is read must be what was written."""
        for run in self._runs.values():
            found = contents_or_error(store, run.run_id)
            if isinstance(found, dict):
                wrong = {p for p, c in found.items() if c != run.tasks.get(p, run.maybe_tasks.get(p))}
                missing = set(run.tasks) - set(found)
                if wrong or missing:
                    raise WrongError(f"with {key} damaged, {sorted(wrong | missing)} of {run.run_id} read wrong")

    # --------------------------------------------------------------------------------------- copying, packing

    @precondition(lambda self: self._runs)
    @step("sync", number=st.integers(0, 1), death=st.one_of(st.none(), st.integers(1, 60)))
    def sync(self, number: int, death: int | None) -> None:
        """Copy all runs to another store; a copy that was cut off has runs that are whole, or not there."""
        process, place = Process(), self._copies[number]
        raw = place.open()
        target = CrashingObjects(raw, process, self._rng.random)
        source = self._read()
        is_whole = False
        process.dies_in(death)
        try:
            copy = Store.open(target, create=True)
            failed = [
                synced
                for synced in sync_runs(source, copy.objects, chosen_runs(source), SyncOptions())
                if synced.error and synced.run.rpartition("/")[2] in self._runs
            ]
            if failed:
                raise WrongError(f"{failed[0].run} was not copied: {failed[0].error}")
            is_whole = True
        except ProcessDied:
            self._counts.add("a copying process dies")
        process.is_dead = True
        _close(source, self._raw)
        raw.close()
        if not is_whole:
            place.died(self._rng)
        self._check_copy(place, is_whole=is_whole)

    def _check_copy(self, place: Place, *, is_whole: bool) -> None:
        """Check that all runs of a copy are as in the store; of a whole copy, that all that do not go on are there."""
        objects = place.open()
        try:
            store = Store.open(objects, create=False)
        except MlpError:
            if is_whole:
                raise
            return
        found = set(store.run_ids(FLOW)) if FLOW in store.flows() else set()
        for run in self._runs.values():
            if run.run_id in found and not _is_begun(store, run.run_id):
                found.discard(run.run_id)
            if is_whole and run.writer is None and not self._is_stopped(run) and run.run_id not in found:
                raise WrongError(f"run {run.run_id} was not copied")
            if run.run_id in found:
                there = contents(store, store.run(FLOW, run.run_id))
                wrong = {p for p, c in there.items() if c != run.tasks.get(p, run.maybe_tasks.get(p))}
                if wrong or (is_whole and run.writer is None and not set(run.tasks) <= set(there)):
                    raise WrongError(f"run {run.run_id} reads otherwise in the copy: {sorted(wrong)}")
        objects.close()

    def _is_stopped(self, run: ModelRun) -> bool:
        """Tell whether a run's driver is stopped."""
        return any(each is run for each, _ in self._stopped)

    @precondition(lambda self: any(run.writer is None for run in self._runs.values()))
    @step("pack and unpack", draw=st.integers(0, 100), number=st.integers(0, 1), death=DEATHS)
    def pack_and_unpack(self, draw: int, number: int, death: int | None) -> None:
        """Pack a run that does not go on into a file, and unpack it elsewhere."""
        run = self._chosen([run for run in self._runs.values() if run.writer is None], draw)
        if run is None or self._is_stopped(run):
            return
        source, archive = self._read(), self._folder / "run.tar"
        archive.unlink(missing_ok=True)
        export_run(source, FLOW, run.run_id, archive)
        _close(source, self._raw)
        process, place = Process(), self._copies[number]
        raw = place.open()
        process.dies_in(death)
        is_whole = False
        try:
            copy = Store.open(CrashingObjects(raw, process, self._rng.random), create=True)
            with Archive(archive) as opened:
                opened.import_into(copy)
            is_whole = True
        except ProcessDied:
            self._counts.add("an unpacking process dies")
        process.is_dead = True
        raw.close()
        if not is_whole:
            place.died(self._rng)
            self._check_copy(place, is_whole=False)
            return
        store = Store.open(place.open(), create=False)
        run.check_tasks(contents(store, store.run(FLOW, run.run_id)))
        store.close()

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


def _began(run_id: str) -> RunBegan:
    """Return a run's first record."""
    run = RunContext(FLOW, run_id, "machine", "user:machine")
    # A lease so long that no thread renews it while a history lasts.
    return RunBegan(run, time.time() - _AGE, "here", 1, _GRAPH, lease_seconds=24 * 3600)


def _at_once(do: Callable[[], _T]) -> list[_T]:
    """Do something twice, in two threads that begin at the same moment."""
    ready = threading.Barrier(2)

    def wait_and_do() -> _T:
        ready.wait()
        return do()

    with ThreadPoolExecutor(2) as threads:
        return [each.result() for each in [threads.submit(wait_and_do) for _ in range(2)]]


def _abandon(writer: RunWriter) -> None:
    """Do to a writer what the death of its process does: its thread ends, its lock is free, its files are closed."""
    writer._lease._closed.set()
    writer._resources.close()
    writer._file.close()
    if writer._log_file is not None:
        writer._log_file.close()


def _close(store: Store, raw: ObjectStore) -> None:
    """Close a store, unless it is the process's own."""
    if store.objects._inner is not raw:  # type: ignore[attr-defined]
        store.close()


def _damaged(content: bytes, where: float, how: str) -> bytes | None:
    """Return damaged content; None for none at all."""
    position = int(where * len(content))
    if how == "no":
        return None
    if how == "cut":
        return content[:position]
    return content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]


def _is_begun(store: Store, run_id: str) -> bool:
    """Tell whether there is a run, and not only a folder that a copy which was cut off has left."""
    return store._exists(FLOW, run_id)
