"""One flow's history: a run that may be interrupted, die or be cut off, and the runs that resume what is left of it."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, Final

import attrs

from mlp_core.errors import MlpError
from mlp_core.runner.admission import Machine
from mlp_core.runner.driver import Driver
from mlp_core.runner.progress import SilentProgress
from mlp_core.runner.requests import RunSetup, StepSetup
from mlp_core.runner.reuse import Reuse
from mlp_core.store import Store, layout
from mlp_core.store.faults import GuardedObjects
from mlp_core.store.growing import read_growing
from mlp_core.store.journal import parse_journal
from mlp_core.store.records import AttemptFinished, AttemptStarted, RunBegan, RunEnded, TaskReused
from mlp_hookspecs import CodeRef, PlannedStep, RunContext, StepOutcome, TaskKey
from mlp_reliability.memory import MemoryStore, ProcessDied
from mlp_reliability.simulation.flows import HERE, PARAMETERS, Flow
from mlp_reliability.simulation.oracle import Oracle
from mlp_reliability.simulation.world import BrokenPromiseError, Clock, World

if TYPE_CHECKING:
    from mlp_core.runner.ending import Ending
    from mlp_core.store import RunWriter
    from mlp_core.store.records import Record
    from mlp_core.store.state import RunState

_EPOCHS: Final = 6
"""After how many runs a flow in which nothing fails any more must have succeeded."""


@attrs.define
class _Death:
    """Lets the driver's process die at one of its store's operations."""

    at: int
    operations: int = 0

    def __call__(self, name: str, key: str) -> None:
        """Count an operation."""
        del name, key
        self.operations += 1
        if self.operations == self.at:
            raise ProcessDied


class History:
    """All runs of one random flow, until one succeeds.

    Parameters
    ----------
    seed : int
        What everything follows from.

    Attributes
    ----------
    violations : list of str
        The broken promises.
    counts : dict of str to int
        What happened how often.
    log : list of str
        All that happened, and the journals.
    """

    def __init__(self, seed: int) -> None:
        """Draw the flow."""
        self.seed = seed
        self.violations: list[str] = []
        self.counts: dict[str, int] = {}
        self.log: list[str] = []
        self._rng = random.Random(f"history {seed}")
        self._flow = Flow(seed)
        self._oracle = Oracle(self._flow)
        self._clock = Clock()
        self._store = MemoryStore(self._clock.time, appends=self._rng.random() < 0.7)  # noqa: PLR2004 # else a bucket

    def play(self) -> None:
        """Run the flow and resume it, until it succeeds."""
        origin: RunState | None = None
        for epoch in range(_EPOCHS):
            try:
                origin = self._play_one(epoch, origin)
            except (BrokenPromiseError, MlpError, LookupError, ValueError) as error:
                self.violations.append(f"seed {self.seed}, epoch {epoch}: {type(error).__name__}: {error}")
                break
            if origin is None:
                break
        else:
            self.violations.append(f"seed {self.seed}: the flow has not succeeded after {_EPOCHS} runs")
        self._store.close()

    def _play_one(self, epoch: int, origin: RunState | None) -> RunState | None:
        """Make one run and check it; return what is left to resume, None where it succeeded and that was believed."""
        self._count("runs")
        death = _Death(self._draw_death(epoch))
        self._store._before = death
        ending: Ending | None = None
        writer: RunWriter | None = None
        world = None
        run_id = ""
        try:
            store = Store.open(self._store, create=True)
            writer = store.create_run(lambda run_id: self._began(run_id, origin), self._clock.time())
            run_id = writer.began.run.run_id
            world = self._world(epoch, run_id)
            ending = self._driver(writer, world, origin).run()
            writer.close()
        except ProcessDied:
            self._count("deaths")
            self._store._before = None
            if writer is not None:
                writer._lease.close(remove=False)  # its thread dies with the process
            dead, self._store = self._store, self._harmed()
            dead.close()
        self._store._before = None
        self._clock.now += 3600  # longer than any lease
        if world is None or not run_id:
            return origin
        self.log += world.happened
        self._check_recorded(epoch, run_id, world, ending, origin)
        state = Store.open(self._store, create=False).run("Simulated", run_id)
        self._check_state(state, ending)
        if ending is not None and ending.status == "succeeded":
            self._check_success(state)
            if epoch == 0 and self._rng.random() < 0.5:  # noqa: PLR2004 # half of them lose their last records
                return self._cut(run_id)
            return None
        return state if state.ended is not None else self._fence(run_id)

    def _fence(self, run_id: str) -> RunState:
        """Take a lost run over, as who resumes it does."""
        store = Store.open(self._store, create=False)
        state = store.fence("Simulated", run_id)
        if state.status != "lost" or store.run("Simulated", run_id).status != "lost":
            raise BrokenPromiseError(f"the run was taken over, but reads {state.status}")
        return state

    def _draw_death(self, epoch: int) -> int:
        """Return at which operation the process dies; 0 for never."""
        if epoch > 2 or self._rng.random() < 0.5:  # noqa: PLR2004 # the last runs come to their end
            return 0
        return self._rng.randrange(1, 3 * len(self._oracle.tasks) + 8)

    def _harmed(self) -> MemoryStore:
        """Return what is left of the store after the death of its process, or a power cut."""
        if self._rng.random() < 0.5:  # noqa: PLR2004 # either
            return self._store.after_kill()
        self._count("power cuts")
        return self._store.after_power_cut(self._rng)

    def _cut(self, run_id: str) -> RunState:
        """Cut a run's journal anywhere after its beginning, and return what is left of the run."""
        self._count("cut journals")
        key = layout.journal("Simulated", run_id)
        content = self._store.content(key)
        end = self._rng.randrange(content.index(b"\n") + 1, len(content))
        if self._store.appends:
            del content[end:]
        else:
            self._store.delete(key)
            first = next(
                n for n in itertools.count() if (end := end - len(self._store.content(layout.part(key, 0, n)))) < 0
            )
            for number in range(max(1, first), len(self._store.keys())):
                self._store.delete(layout.part(key, 0, number))
                self._store.delete(layout.part(key, 1, number))
        self._store.delete(layout.seal("Simulated", run_id))
        return Store.open(self._store, create=False).fence("Simulated", run_id)

    def _count(self, what: str, number: int = 1) -> None:
        """Count what happened."""
        self.counts[what] = self.counts.get(what, 0) + number

    # ---------------------------------------------------------------------------------------- making a run

    def _began(self, run_id: str, origin: RunState | None) -> RunBegan:
        """Return the first record."""
        return RunBegan(
            run=RunContext("Simulated", run_id, origin_run_id=None if origin is None else origin.context.run_id),
            time=self._clock.time(),
            host="simulated",
            pid=1,
            graph=self._flow.graph,
            parameters=PARAMETERS,
        )

    def _world(self, epoch: int, run_id: str) -> World:
        """Return the world around the driver."""
        rng = random.Random(f"world {self.seed} {epoch}")
        return World(
            flow=self._flow,
            oracle=self._oracle,
            rng=rng,
            epoch=epoch,
            store=self._store,
            run=("Simulated", run_id),
            clock=self._clock,
        )

    def _driver(self, writer: RunWriter, world: World, origin: RunState | None) -> Driver:
        """Return the driver."""
        run = writer.began.run
        setup = RunSetup(run, CodeRef("simulated", "Simulated"), self._store.url, PARAMETERS, (), {}, "/")
        steps = {
            name: StepSetup(PlannedStep(self._flow.nodes[name], plan), plan.launcher or HERE)
            for name, plan in self._flow.plans.items()
        }
        return Driver(
            graph=self._flow.graph,
            setup=setup,
            steps=steps,
            writer=writer,
            launchers=world,  # type: ignore[arg-type]
            max_workers=self._flow.max_workers,
            progress=SilentProgress(),
            reuse=Reuse(origin),
            machine=Machine(*self._flow.machine),
            clock=self._clock,
        )

    # --------------------------------------------------------------------------------------- checking a run

    def _check_recorded(
        self, epoch: int, run_id: str, world: World, ending: Ending | None, origin: RunState | None
    ) -> None:
        """Check a run's records against what happened."""
        key = layout.journal("Simulated", run_id)
        content = read_growing(GuardedObjects(self._store), key)
        self.log.append(content.decode("latin-1"))
        records = [record for _, record in parse_journal(content, key).records]
        begun: set[str] = set()
        finished: dict[str, AttemptFinished] = {}
        reused: dict[TaskKey, TaskReused] = {}
        for record in records:
            match record:
                case AttemptStarted():
                    _add_once(begun, f"{record.key.path}/{record.attempt}", "is recorded as started twice")
                case AttemptFinished():
                    name = f"{record.key.path}/{record.attempt}"
                    self._check_finished(name, record, world)
                    if name in finished or name not in begun:
                        raise BrokenPromiseError(f"{name} is committed twice, or before its start")
                    finished[name] = record
                case TaskReused():
                    if record.key in reused or world.launched.get(record.key) is not None:
                        raise BrokenPromiseError(f"{record.key.path} is reused twice, or although it ran")
                    reused[record.key] = record
                case _:
                    pass
        self._check_reused(origin, reused, complete=ending is not None)
        self._count("tasks", len(world.launched))
        self._count("attempts", len(begun))
        if ending is not None:
            if begun != set(world.attempts) or set(finished) != begun:
                raise BrokenPromiseError(f"recorded and real attempts differ: {sorted(begun ^ set(world.attempts))}")
            self._check_ending(epoch, ending, records[-1], finished, reused, world)

    def _check_finished(self, name: str, record: AttemptFinished, world: World) -> None:
        """Check that a recorded end is what the driver was told first."""
        told = world.told.get(name)
        if told is None:
            raise BrokenPromiseError(f"{name} is committed, but never ended")
        status = told.status if isinstance(told, StepOutcome) else "failed"
        if record.outcome.status != status:
            raise BrokenPromiseError(f"{name} is recorded as {record.outcome.status}, but was told as {status}")
        if isinstance(told, StepOutcome) and (
            record.outcome.assigned != told.assigned or record.outcome.transition != told.transition
        ):
            raise BrokenPromiseError(f"{name} is recorded with another result than it had")
        if record.parents != self._oracle.tasks[record.key].parents:
            raise BrokenPromiseError(f"{name} is recorded with the parents {record.parents}")

    def _check_reused(self, origin: RunState | None, reused: dict[TaskKey, TaskReused], *, complete: bool) -> None:
        """Check that what is reused is all that the earlier run had finished, with all that it came from."""
        expected: set[TaskKey] = set()
        for key, task in self._oracle.tasks.items():
            known = None if origin is None else origin.tasks.get(key)
            above = (*task.parents, *((task.split,) if task.split else ()))
            if known is not None and known.status in ("succeeded", "caught") and expected.issuperset(above):
                expected.add(key)
        if not expected.issuperset(reused) or (complete and expected != set(reused)):
            wrong = sorted(key.path for key in expected ^ set(reused))
            raise BrokenPromiseError(f"reused and reusable tasks differ: {wrong}")
        self._count("reused", len(reused))

    def _check_ending(  # noqa: PLR0913, PLR0917 # all that there is to compare
        self,
        epoch: int,
        ending: Ending,
        last: Record,
        finished: dict[str, AttemptFinished],
        reused: dict[TaskKey, TaskReused],
        world: World,
    ) -> None:
        """Check that a run ended as it had to."""
        last_ends = {record.key: record for record in finished.values()}
        # That waited to be tried again when the run ended, or failed for good.
        left_failed = {f"{r.key.path}/{r.attempt}" for r in last_ends.values() if r.outcome.status == "failed"}
        failed = [r for r in finished.values() if r.outcome.status == "failed" and not r.will_retry]
        done = {r.key for r in finished.values() if r.outcome.status != "failed"} | set(reused)
        has_ended = TaskKey("end") in done
        expected = "succeeded"
        if world.is_interrupted and not has_ended:
            expected = "cancelled"
        elif failed:
            expected = "failed"
        self._count(expected)
        if not isinstance(last, RunEnded) or (last.status, last.tasks) != (expected, len(done)):
            raise BrokenPromiseError(f"the run is recorded as {last}, but {len(done)} tasks are done and it {expected}")
        if ending.status != expected:
            raise BrokenPromiseError(f"the run is reported as {ending.status}, but it {expected}")
        reported = {f"{each.key.path}/{each.attempt}" for each in ending.failures}
        if reported != left_failed:
            raise BrokenPromiseError(f"reported and recorded failures differ: {sorted(reported ^ left_failed)}")
        if expected == "succeeded" and done != set(self._oracle.tasks):
            missing = sorted(key.path for key in set(self._oracle.tasks) ^ done)
            raise BrokenPromiseError(f"the run succeeded with other tasks than it has: {missing}")
        if epoch > 1 and not world.is_interrupted and expected != "succeeded":
            raise BrokenPromiseError(f"nothing failed, but the run {expected}")

    def _check_state(self, state: RunState, ending: Ending | None) -> None:
        """Check that a reader sees how the run ended."""
        # A process may die between the last record and its own end.
        allowed = ("lost", "succeeded", "failed", "cancelled") if ending is None else (ending.status,)
        if state.status not in allowed:
            raise BrokenPromiseError(f"the run reads {state.status}, not {' or '.join(allowed)}")

    def _check_success(self, state: RunState) -> None:
        """Check that the artifacts are those of a run in which nothing ever failed."""
        for key, expected in self._oracle.tasks.items():
            if dict(state.artifacts(key)) != expected.visible.artifacts():
                raise BrokenPromiseError(f"the artifacts of {key.path} read {dict(state.artifacts(key))}")


def _add_once(names: set[str], name: str, otherwise: str) -> None:
    """Add a name that may not be there."""
    if name in names:
        raise BrokenPromiseError(f"{name} {otherwise}")
    names.add(name)
