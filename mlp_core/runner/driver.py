"""How a run goes on: one loop that launches what is ready, commits what has ended, and starts what follows from it.

Each turn takes all messages that are there. What ended is committed as one group, and nothing downstream of it starts
before that; attempts that were ready already need not wait for it and are launched first.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import attrs

from mlp_core.errors import MlpError
from mlp_core.plugins import blame_death, forgive_death
from mlp_core.runner.admission import Admission, Demand, Machine, lacking_gpus
from mlp_core.runner.ending import Ending, TaskFailure
from mlp_core.runner.inbox import Ended, Logged, Message, Prepared, Signalled, Started
from mlp_core.runner.requests import RunSetup, StepSetup, launch_request
from mlp_core.runner.timers import Clock, Timers
from mlp_core.scheduler import ReadyTask, Scheduler
from mlp_core.store.records import AttemptFinished, AttemptStarted, Note, Record, RunEnded, TaskReused
from mlp_hookspecs import ArtifactRef, Failure, ForeachFrame, Resources, StepOutcome, TaskInput, TaskKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mlp_core.runner.environments import LateEnvironments
    from mlp_core.runner.launchers import Launchers
    from mlp_core.runner.progress import Progress
    from mlp_core.runner.reuse import Reuse
    from mlp_core.store import RunWriter
    from mlp_hookspecs import FlowGraph, LaunchRequest

GRACE_SECONDS = 5.0
"""How long workers have to end when the run is interrupted."""

_FLUSH_SECONDS = 1.0
_TAIL_BYTES = 2000


@attrs.define(eq=False, repr=False)
class _Attempt:
    """An attempt that waits or runs, and how the one before it failed."""

    task: ReadyTask
    number: int
    failed: TaskFailure | None = None
    caught: Failure | None = None
    timed_out: bool = False
    pid: int = 0
    tail: deque[bytes] = attrs.field(factory=lambda: deque(maxlen=8))


@attrs.frozen(eq=False, repr=False)
class _Done:
    """A finished task, as far as others read from it."""

    artifacts: Mapping[str, ArtifactRef]
    frames: tuple[ForeachFrame, ...]


class Driver:
    """Runs one flow once.

    Parameters
    ----------
    graph : FlowGraph
        The flow's graph.
    setup : RunSetup
        What all tasks have in common.
    steps : mapping of str to StepSetup
        What all tasks of each step have in common.
    writer : RunWriter
        The run's journal and logs.
    launchers : Launchers
        The launchers, open.
    max_workers : int or None
        At most so many tasks at once.
    progress : Progress
        Where to report.
    reuse : Reuse
        What an earlier run has done already.
    late : LateEnvironments or None
        What prepares the attempts whose environment is looked up when they start.
    machine : Machine or None
        What this host has to give; None to measure it.
    clock : Clock
        The time.
    """

    def __init__(  # noqa: PLR0913 # all keyword-only, made in one place
        self,
        *,
        graph: FlowGraph,
        setup: RunSetup,
        steps: Mapping[str, StepSetup],
        writer: RunWriter,
        launchers: Launchers,
        max_workers: int | None,
        progress: Progress,
        reuse: Reuse,
        late: LateEnvironments | None = None,
        machine: Machine | None = None,
        clock: Clock = time,
    ) -> None:
        """Prepare a run that has not begun."""
        self._inbox = launchers.inbox
        self._launchers = launchers
        self._setup = setup
        self._steps = steps
        self._writer = writer
        self._progress = progress
        self._reuse = reuse
        self._late = late
        self._clock = clock
        self._scheduler = Scheduler(graph)
        gpus = self._gpus_asked_for()
        machine = machine or Machine.measure(with_gpus=bool(gpus))
        self._admission = self._make_admission(machine, max_workers)
        self._lacking = lacking_gpus(machine, gpus)
        self._attempts: dict[str, _Attempt] = {}
        self._preparing: set[str] = set()
        self._done: dict[TaskKey, _Done] = {}
        self._timers: Timers[tuple[Literal["retry", "timeout"], str]] = Timers(clock)
        self._failures: list[TaskFailure] = []
        self._cancelled = False
        self._end = graph.end
        self._has_ended = False
        self._delayed = 0
        self._tasks = 0
        self._unflushed_since: float | None = None

    def run(self) -> Ending:
        """Run to the end.

        Returns
        -------
        Ending
            How it ended; the record of it is durable.

        Raises
        ------
        StoreError
            Where the journal could not be written: the run is then as good as killed, and can be resumed.
        """
        if self._lacking:
            self._note("resources", self._lacking)
        self._add_ready([self._scheduler.begin()])
        self._launch()
        while self._attempts_live():
            self._turn(self._inbox.wait(self._timeout()))
        ending = self._ending()
        self._writer.write([RunEnded(ending.status, ending.message, self._clock.time(), self._tasks)], sync=True)
        self._progress.run_finished(ending.status, ending.message)
        return ending

    # ------------------------------------------------------------------------------------------------ a turn

    def _turn(self, messages: Sequence[Message]) -> None:
        """Take in what has happened, and do what follows."""
        self._writer.check()
        ended: list[tuple[_Attempt, StepOutcome]] = []
        for message in messages:
            match message:
                case Logged():
                    self._log(message)
                case Started():
                    self._started(message)
                case Ended() if self._admission.is_running(message.attempt_id):
                    ended.append(self._take(message))
                case Ended():
                    continue  # a launcher that tells an end twice, or too early: the first that can be counts
                case Prepared():
                    self._start_prepared(message)
                case Signalled():
                    self._interrupt()
        self._fire_timers()
        self._flush()
        decided = self._decide(ended)
        self._launch()
        if decided:
            self._commit(decided)
            self._launch()

    def _take(self, message: Ended) -> tuple[_Attempt, StepOutcome]:
        """Free what an attempt held, and return how it ended."""
        attempt = self._attempts.pop(message.attempt_id)
        self._preparing.discard(message.attempt_id)
        self._admission.release(message.attempt_id)
        result = message.result
        outcome = StepOutcome("failed", failure=result) if isinstance(result, Failure) else result
        failure = outcome.failure if outcome.status == "failed" else None
        if failure is not None and attempt.timed_out:
            # Also an exception: it was raised while the step was being ended.
            limit = self._steps[attempt.task.key.step].planned.plan.timeout_seconds
            text = f"the attempt took longer than {limit:g} s"
            failure = attrs.evolve(failure, kind="timeout", message=text)
            outcome = attrs.evolve(outcome, failure=blame_death(failure, attempt.pid))
        elif failure is not None and self._cancelled and failure.kind in ("killed", "exit"):
            outcome = attrs.evolve(outcome, failure=Failure("cancelled", "the run was interrupted"))
            forgive_death(attempt.pid)
        elif failure is not None and failure.kind in ("killed", "exit"):
            outcome = attrs.evolve(outcome, failure=blame_death(failure, attempt.pid))
        return attempt, outcome

    def _decide(
        self, ended: Sequence[tuple[_Attempt, StepOutcome]]
    ) -> Sequence[tuple[_Attempt, StepOutcome, _Attempt | None]]:
        """Return the attempt that follows each failed one.

        One failure that is final stops all new work, also the attempts that would follow others of the same turn.
        """
        decided = [(attempt, outcome, self._next_attempt(attempt, outcome)) for attempt, outcome in ended]
        final = [outcome for _, outcome, again in decided if outcome.status == "failed" and again is None]
        if not final and not self._stopping:
            return decided
        self._failures += [_failure(attempt, outcome) for attempt, outcome in ended if outcome.status == "failed"]
        self._admission.drop_waiting()
        return [(attempt, outcome, None) for attempt, outcome in ended]

    def _next_attempt(self, attempt: _Attempt, outcome: StepOutcome) -> _Attempt | None:
        """Return what the step's policies make follow an attempt."""
        if outcome.status != "failed":
            return None
        step = self._steps[attempt.task.key.step]
        failed = _failure(attempt, outcome)
        if attempt.number < step.max_retries:
            return _Attempt(attempt.task, attempt.number + 1, failed)
        if step.planned.plan.catch is not None and attempt.caught is None:
            return _Attempt(attempt.task, attempt.number + 1, failed, caught=failed.failure)
        return None

    def _commit(self, decided: Sequence[tuple[_Attempt, StepOutcome, _Attempt | None]]) -> None:
        """Make ends durable, then start what follows from them."""
        now = self._clock.time()
        records: list[Record] = [
            AttemptFinished(
                attempt.task.key,
                attempt.number,
                outcome,
                will_retry=again is not None,
                parents=attempt.task.parents,
                frames=_bare(attempt.task.frames),
                time=now,
            )
            for attempt, outcome, again in decided
        ]
        self._writer.write(records, sync=True)
        for attempt, outcome, again in decided:
            self._progress.task_finished(attempt.task.key, attempt.number, outcome, again is not None)
            if again is not None:
                self._delay(again)
            elif outcome.status != "failed":
                self._add_ready(self._finish(attempt.task, outcome))

    def _finish(self, task: ReadyTask, outcome: StepOutcome) -> Sequence[ReadyTask]:
        """Take in a task's result, and return what is ready now."""
        self._tasks += 1
        self._has_ended = self._has_ended or task.key.step == self._end
        inherited = self._inherited(task)
        artifacts = inherited
        if outcome.assigned or outcome.removed:
            kept = {name: ref for name, ref in inherited.items() if name not in outcome.removed}
            artifacts = {**kept, **outcome.assigned}
        self._done[task.key] = _Done(artifacts, task.frames)
        return self._scheduler.finished(task, outcome.transition)

    def _inherited(self, task: ReadyTask) -> Mapping[str, ArtifactRef]:
        """Return what a task sees of its parents before it runs."""
        if not task.parents or self._steps[task.key.step].planned.node.is_join:
            return {**self._setup.parameters}
        return self._done[task.parents[0]].artifacts

    # ------------------------------------------------------------------------------------------------ starting

    def _make_admission(self, machine: Machine, max_workers: int | None) -> Admission:
        """Return the queue of attempts."""
        limits = {
            name: step.planned.plan.concurrency
            for name, step in self._steps.items()
            if step.planned.plan.concurrency is not None
        }
        capacities = self._launchers.capacities()
        return Admission(machine, max_workers=max_workers, limits=limits, capacities=capacities)

    def _gpus_asked_for(self) -> Mapping[str, float]:
        """Return how many GPUs a task asks for, by step, for those steps that run on this host and ask for any."""
        resources = {
            name: step.planned.plan.resources
            for name, step in self._steps.items()
            if step.launcher not in self._launchers.capacities()
        }
        return {name: asked.gpu for name, asked in resources.items() if asked is not None and asked.gpu > 0}

    def _add_ready(self, tasks: Iterable[ReadyTask]) -> None:
        """Queue tasks; those that an earlier run has done are finished at once, with all that follows from them."""
        if self._stopping:
            return
        waiting = deque(tasks)
        reused: list[Record] = []
        while waiting:
            task = waiting.popleft()
            found = self._reuse.find(task)
            if found is None:
                self._queue(_Attempt(task, 0))
                continue
            origin, outcome = found
            frames = _bare(task.frames)
            reused.append(TaskReused(task.key, origin, outcome, task.parents, frames, self._clock.time()))
            self._progress.task_reused(task.key, origin)
            waiting.extend(self._finish(task, outcome))
        if reused:
            self._writer.write(reused, sync=True)

    def _queue(self, attempt: _Attempt) -> None:
        """Queue an attempt for admission."""
        key = attempt.task.key
        step = self._steps[key.step]
        attempt_id = f"{key.path}/{attempt.number}"
        self._attempts[attempt_id] = attempt
        resources = step.planned.plan.resources or Resources()
        self._admission.add(Demand(attempt_id, key.step, step.launcher, resources))

    def _launch(self) -> None:
        """Start what is admitted, in one batch for each launcher."""
        if self._stopping:
            return
        batches: dict[str, list[_Attempt]] = {}
        for demand in self._admission.admit():
            batches.setdefault(demand.launcher, []).append(self._attempts[demand.id])
        now = self._clock.time()
        for name, attempts in batches.items():
            records: list[Record] = [AttemptStarted(a.task.key, a.number, name, now) for a in attempts]
            # Not synced: a start that a power cut takes away is a task that did not happen.
            self._writer.write(records, sync=False)
            self._note_unflushed()
            for attempt in attempts:
                self._progress.task_started(attempt.task.key, attempt.number)
            self._start(name, attempts)

    def _start(self, name: str, attempts: Sequence[_Attempt]) -> None:
        """Hand a batch to its launcher, but for those attempts that wait for their environment."""
        requests = []
        for attempt in attempts:
            step = self._steps[attempt.task.key.step]
            # Who stores a caught failure runs none of the user's code, and needs no environment.
            if self._late is not None and step.planned.plan.environment_at_exec and attempt.caught is None:
                attempt_id = f"{attempt.task.key.path}/{attempt.number}"
                self._preparing.add(attempt_id)
                self._late.begin(attempt_id, step, attempt.task)
            else:
                requests.append(self._request(attempt, step))
        self._hand_over(name, requests)

    def _start_prepared(self, message: Prepared) -> None:
        """Record the environment of an attempt, and hand it to its launcher, unless it was cancelled meanwhile."""
        if message.attempt_id not in self._preparing:
            return
        self._preparing.remove(message.attempt_id)
        attempt = self._attempts[message.attempt_id]
        self._writer.write([message.record], sync=False)
        self._hand_over(message.step.launcher, [self._request(attempt, message.step)])

    def _request(self, attempt: _Attempt, step: StepSetup) -> LaunchRequest:
        """Return the request for an attempt."""
        inputs = self._inputs(attempt.task)
        return launch_request(self._setup, step, attempt.task, inputs, (attempt.number, attempt.caught))

    def _hand_over(self, name: str, requests: Sequence[LaunchRequest]) -> None:
        """Hand a batch to its launcher; a batch that it refuses is lost."""
        if not requests:
            return
        try:
            self._launchers.launch(name, requests)
        except (OSError, MlpError) as error:
            for request in requests:
                self._inbox.lost(request.id, Failure("system", f"launcher {name}: {error}"))

    def _inputs(self, task: ReadyTask) -> tuple[tuple[TaskInput, ...], TaskInput | None]:
        """Return the finished tasks that a task reads from."""
        split = None if task.split is None else self._input(task.split)
        return tuple(self._input(parent) for parent in task.parents), split

    def _input(self, key: TaskKey) -> TaskInput:
        """Return a finished task as an input."""
        done = self._done[key]
        return TaskInput(key, done.artifacts, done.frames)

    # ------------------------------------------------------------------------------------------------ time

    def _timeout(self) -> float:
        """Return how long to wait for messages at most."""
        waits = [self._writer.pause]
        if (seconds := self._timers.seconds()) is not None:
            waits.append(seconds)
        if self._unflushed_since is not None:
            waits.append(self._unflushed_since + _FLUSH_SECONDS - self._clock.monotonic())
        return max(0.0, min(waits))

    def _fire_timers(self) -> None:
        """Do what is due."""
        while (due := self._timers.take()) is not None:
            kind, attempt_id = due
            attempt = self._attempts.get(attempt_id)
            if attempt is None:
                continue
            if kind == "retry":
                self._delayed -= 1
                if not self._stopping:
                    self._queue(attempt)
            else:
                attempt.timed_out = True
                step = self._steps[attempt.task.key.step]
                grace = step.planned.plan.grace_seconds
                self._cancel(step.launcher, [attempt_id], GRACE_SECONDS if grace is None else grace)

    def _delay(self, attempt: _Attempt) -> None:
        """Queue a further attempt after its policy's pause."""
        retry = self._steps[attempt.task.key.step].planned.plan.retry
        seconds = retry.delay_seconds if retry is not None and attempt.caught is None else 0
        if seconds <= 0:
            self._queue(attempt)
            return
        attempt_id = f"{attempt.task.key.path}/{attempt.number}"
        self._attempts[attempt_id] = attempt
        self._delayed += 1
        self._timers.set(seconds, ("retry", attempt_id))

    def _started(self, message: Started) -> None:
        """Begin to count an attempt's time."""
        attempt = self._attempts.get(message.attempt_id)
        if attempt is None:
            return
        if message.host == os.uname().nodename:
            attempt.pid = message.pid
        limit = self._steps[attempt.task.key.step].planned.plan.timeout_seconds
        if limit is not None:
            self._timers.set(limit, ("timeout", message.attempt_id))

    # ------------------------------------------------------------------------------------------------ logs

    def _log(self, message: Logged) -> None:
        """Keep and pass on what an attempt printed."""
        attempt = self._attempts.get(message.attempt_id)
        if attempt is None:
            return
        attempt.tail.append(message.data[-_TAIL_BYTES:])
        self._writer.log(message.attempt_id, message.stream, message.data, message.time)
        self._progress.task_log(attempt.task.key, attempt.number, message.stream, message.data)
        self._note_unflushed()

    def _note_unflushed(self) -> None:
        """Note that something was written that readers do not see yet."""
        if self._unflushed_since is None:
            self._unflushed_since = self._clock.monotonic()

    def _flush(self) -> None:
        """Let readers see what was written, once a second."""
        if self._unflushed_since is not None and self._clock.monotonic() >= self._unflushed_since + _FLUSH_SECONDS:
            self._writer.flush()
            self._unflushed_since = None

    # ------------------------------------------------------------------------------------------------ ending

    @property
    def _stopping(self) -> bool:
        """Whether no new work is to start."""
        return self._cancelled or bool(self._failures)

    def _attempts_live(self) -> bool:
        """Tell whether there is anything to wait for."""
        if self._stopping:
            return self._admission.running > 0
        return self._admission.running > 0 or len(self._admission) > 0 or self._delayed > 0

    def _interrupt(self) -> None:
        """End all workers; a second request kills them."""
        grace = 0.0 if self._cancelled else GRACE_SECONDS
        if not self._cancelled:
            self._progress.note("interrupted: waiting for the running tasks to end; once more kills them")
        self._cancelled = True
        self._admission.drop_waiting()
        for attempt_id in self._preparing:
            self._inbox.lost(attempt_id, Failure("cancelled", "the run was interrupted"))
        self._preparing.clear()
        running: dict[str, list[str]] = {}
        for demand in self._admission.running_demands():
            running.setdefault(demand.launcher, []).append(demand.id)
        for name, attempt_ids in running.items():
            self._cancel(name, attempt_ids, grace)

    def _cancel(self, launcher: str, attempt_ids: Sequence[str], grace: float) -> None:
        """Have a launcher end attempts; one that cannot is noted, and its attempts end when they do."""
        try:
            self._launchers.cancel(launcher, attempt_ids, grace)
        except (OSError, MlpError) as error:
            self._note("launcher", f"launcher {launcher} could not end {', '.join(attempt_ids)}: {error}")

    def _note(self, kind: str, text: str) -> None:
        """Record a remark, and tell it."""
        self._writer.write([Note(kind, text, self._clock.time())], sync=False)
        self._progress.note(text)

    def _ending(self) -> Ending:
        """Return how the run ended; what waited to be tried again has failed as well."""
        waiting = (attempt.failed for attempt in self._attempts.values())
        failures = (*self._failures, *(failed for failed in waiting if failed is not None))
        if self._cancelled and not self._has_ended:
            return Ending("cancelled", "the run was interrupted", failures)
        if failures:
            first = failures[0]
            more = f", and {len(failures) - 1} more failed" if len(failures) > 1 else ""
            return Ending("failed", f"{first.key.path} failed: {first.failure.message}{more}", failures)
        return Ending("succeeded")


def _bare(frames: tuple[ForeachFrame, ...]) -> tuple[ForeachFrame, ...]:
    """Return frames without items and sequences: the journal has them once, in the transition of the split."""
    return tuple(ForeachFrame(frame.step, frame.variable, frame.index, frame.count) for frame in frames)


def _failure(attempt: _Attempt, outcome: StepOutcome) -> TaskFailure:
    """Return why an attempt failed, with the end of what it printed."""
    failure = outcome.failure or Failure("system", "the worker gave no reason")
    tail = b"".join(attempt.tail)[-_TAIL_BYTES:].decode(errors="replace")
    return TaskFailure(attempt.task.key, attempt.number, failure, tail)
