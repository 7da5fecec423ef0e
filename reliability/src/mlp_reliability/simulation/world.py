"""The simulated world around a driver: its clock, its inbox, and launchers whose workers crash, hang and lie.

The launchers check everything that the driver asks of them, at the moment when it does.
"""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING, Final

import attrs

from mlp_core.runner.inbox import Ended, Inbox, Message, Signalled, Started
from mlp_core.store import layout
from mlp_core.store.journal import JournalRead, parse_journal
from mlp_core.store.records import AttemptFinished, TaskReused
from mlp_hookspecs import Failure, LaunchRequest, StepOutcome, TaskKey
from mlp_reliability.simulation.flows import FAR, HERE, PARAMETERS, TICK, Flow

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping, Sequence

    from mlp_reliability.memory import MemoryStore
    from mlp_reliability.simulation.oracle import Oracle

EPOCH: Final = 1_700_000_000.0
"""When simulated time begins."""

INTERRUPT_GRACE: Final = 5.0
"""What an interrupted run gives its workers."""

_IDLE_TURNS: Final = 1000


class BrokenPromiseError(Exception):
    """The driver did what it must not do."""


class Clock:
    """Time that passes only while the driver waits."""

    def __init__(self) -> None:
        """Begin."""
        self.now = 0.0

    def time(self) -> float:
        """Return the seconds since the epoch."""
        return EPOCH + self.now

    def monotonic(self) -> float:
        """Return the seconds since the beginning."""
        return self.now


@attrs.define
class Running:
    """An attempt that was launched, as its launcher sees it."""

    request: LaunchRequest
    fate: str
    launcher: str
    started: float | None = None
    has_ended: bool = False
    was_told: bool = False
    is_cancelled: bool = False


class World(Inbox):
    """Inbox, launchers and workers of one simulated run.

    Parameters
    ----------
    flow : Flow
        The flow.
    oracle : Oracle
        What must come of it.
    rng : random.Random
        What decides how long things take and in which order they are told.
    epoch : int
        How often the flow was run before.
    store : MemoryStore
        Where the driver commits.
    run : tuple of str
        Flow and run id.
    clock : Clock
        The time.
    """

    def __init__(  # noqa: PLR0913 # what a world is made of
        self,
        *,
        flow: Flow,
        oracle: Oracle,
        rng: random.Random,
        epoch: int,
        store: MemoryStore,
        run: tuple[str, str],
        clock: Clock,
    ) -> None:
        """Begin with nothing running."""
        super().__init__()
        self.inbox = self
        self.happened: list[str] = []
        self.attempts: dict[str, Running] = {}
        self.told: dict[str, StepOutcome | Failure] = {}
        self.launched: dict[TaskKey, int] = {}
        self.is_interrupted = False
        self.has_failed = False
        self._flow = flow
        self._oracle = oracle
        self._rng = rng
        self._epoch = epoch
        self._store = store
        self._key = layout.journal(*run)
        self._clock = clock
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._idle = 0
        self._journal = bytearray()
        self._parts = 0
        self._read = JournalRead((), 0, 0, torn=False)
        self.finished_records: dict[tuple[TaskKey, int], AttemptFinished] = {}
        self._reused: set[TaskKey] = set()
        if rng.random() < 0.15:  # noqa: PLR2004 # not too often
            self._interrupt_later()

    # ------------------------------------------------------------------------------------------- the inbox

    def wait(self, timeout: float | None) -> list[Message]:
        """Let time pass until something has happened, or until the timeout, and return what has."""
        messages = self._told(super().wait(0))
        deadline = None if timeout is None else self._clock.now + timeout
        if not messages:
            self._pass(deadline)
            messages = self._told(super().wait(0))
        self._idle = 0 if messages else self._idle + 1
        if self._idle > _IDLE_TURNS:
            raise BrokenPromiseError("the driver turns without end, and nothing happens")
        return messages

    def _pass(self, deadline: float | None) -> None:
        """Let time pass until the next event or the deadline."""
        if deadline is None and all(each.was_told for each in self.attempts.values()):
            raise BrokenPromiseError("the driver waits for ever: nothing runs that could wake it")
        if not self._events or (deadline is not None and deadline < self._events[0][0]):
            self._clock.now = self._clock.now if deadline is None else deadline
            return
        # A driver that is busy finds several messages at once, and timers that are overdue.
        self._clock.now = self._events[0][0] + self._rng.choice((0, 0, 0, 1, 16)) * TICK
        while self._events and self._events[0][0] <= self._clock.now:
            heapq.heappop(self._events)[2]()

    def _told(self, messages: list[Message]) -> list[Message]:
        """Note what the driver is told now."""
        for message in messages:
            if isinstance(message, Signalled):
                self.is_interrupted = True
                self.happened.append(f"{self._clock.now} told signal")
                continue
            attempt = self.attempts.get(message.attempt_id)
            self.happened.append(f"{self._clock.now} told {type(message).__name__} {message.attempt_id}")
            if attempt is None:
                continue
            if isinstance(message, Started) and attempt.started is None:
                attempt.started = self._clock.now
            if isinstance(message, Ended) and message.attempt_id not in self.told:
                attempt.was_told = True
                self.told[message.attempt_id] = message.result
                self.has_failed = self.has_failed or self._is_final_failure(attempt, message.result)
        return messages

    def _at(self, seconds: float, event: Callable[[], None]) -> None:
        """Have something happen later."""
        heapq.heappush(self._events, (self._clock.now + seconds, next(self._numbers), event))

    def _interrupt_later(self) -> None:
        """Ask the driver's process to end, perhaps twice."""
        first = self._rng.randrange(2000) * TICK
        self._at(first, lambda: self.signalled(2))
        if self._rng.random() < 0.5:  # noqa: PLR2004 # half of the users are impatient
            self._at(first + self._rng.randrange(200) * TICK, lambda: self.signalled(2))

    # --------------------------------------------------------------------------------------- the launchers

    def capacities(self) -> Mapping[str, int | None]:
        """Return how many attempts the launcher beyond the host takes."""
        return {FAR: self._flow.capacity}

    def launch(self, name: str, requests: Sequence[LaunchRequest]) -> None:
        """Start a batch of attempts."""
        refused = any(self._fate(request) == "is refused" for request in requests)
        for request in requests:
            self._check_launch(name, request)
            self.launched[request.step.key] = request.step.attempt
            self.happened.append(f"{self._clock.now} launch {request.id} on {name}")
        for request in requests:
            attempt = Running(request, "is refused" if refused else self._fate(request), name)
            self.attempts[request.id] = attempt
            self._check_limits()
            if not refused:
                self._begin(request.id, attempt)
            else:
                attempt.has_ended = True
        if refused:
            raise OSError(11, "the launcher has no room")

    def _fate(self, request: LaunchRequest) -> str:
        """Return what becomes of a request."""
        return self._flow.fate(request.step.key, request.step.attempt, self._epoch)

    def cancel(self, name: str, attempt_ids: Sequence[str], grace_seconds: float) -> None:
        """Ask attempts to end, and kill them after the grace."""
        for attempt_id in attempt_ids:
            attempt = self.attempts.get(attempt_id)
            if attempt is None or attempt.launcher != name:
                raise BrokenPromiseError(f"{attempt_id} is cancelled on {name}, where it does not run")
            self.happened.append(f"{self._clock.now} cancel {attempt_id} with {grace_seconds}")
            self._check_cancel(attempt_id, attempt, grace_seconds)
            attempt.is_cancelled = True
            if not attempt.has_ended:
                self._obey(attempt_id, attempt, grace_seconds)

    # ------------------------------------------------------------------------------------------ the workers

    def _begin(self, attempt_id: str, attempt: Running) -> None:
        """Have a worker begin, work, and end."""
        rng = self._rng
        fate = attempt.fate
        delay = rng.choice((0, 1, 8)) * TICK
        limit = self._flow.plans[attempt.request.step.key.step].timeout_seconds
        longest = 128 if limit is None else int(limit / TICK) // 2
        lasts = rng.randrange(1, longest) * TICK
        if fate == "exits" and rng.random() < 0.5:  # noqa: PLR2004 # a worker may end before it has begun
            self._at(delay, lambda: self._end(attempt_id, attempt))
            return
        self._at(delay, lambda: self.started(attempt_id, "simulated", 0))
        if rng.random() < 0.1:  # noqa: PLR2004 # told twice, or late
            self._at(delay + rng.randrange(64) * TICK, lambda: self.started(attempt_id, "simulated", 0))
        if fate not in ("hangs", "obeys late", "raises late"):
            self._at(delay + lasts, lambda: self._end(attempt_id, attempt))
        if rng.random() < 0.2:  # noqa: PLR2004 # logs that come before, between or after
            when = delay + rng.randrange(256) * TICK
            self._at(when, lambda: self.log_chunk(attempt_id))

    def log_chunk(self, attempt_id: str) -> None:
        """Print something."""
        from mlp_core.runner.inbox import Logged

        self._queue.put(Logged(attempt_id, "stdout", f"{attempt_id}\n".encode(), self._clock.time()))

    def _obey(self, attempt_id: str, attempt: Running, grace: float) -> None:
        """Have a worker answer to being cancelled: it ends at once, at the last moment, or is killed."""
        within = min(grace, self._rng.randrange(64) * TICK)
        attempt.fate = {"obeys late": "succeeds", "raises late": "raises"}.get(attempt.fate, "dies")
        if within >= grace:
            attempt.fate = "dies"
        self._at(within, lambda: self._end(attempt_id, attempt))

    def _end(self, attempt_id: str, attempt: Running) -> None:
        """Have an attempt end, and tell it: sometimes twice, sometimes differently the second time."""
        if attempt.has_ended:
            return
        attempt.has_ended = True
        request = attempt.request.step
        fate = attempt.fate
        if fate in ("dies", "exits"):
            self.lost(attempt_id, Failure("killed" if fate == "dies" else "exit", f"the worker {fate}"))
        elif fate == "raises" and not request.catches:
            self.finished(attempt_id, StepOutcome("failed", failure=Failure("exception", "it raises")))
        else:
            assigned, removed = self._flow.assigned(attempt.request)
            status = "caught" if fate == "raises" or request.caught is not None else "succeeded"
            transition = self._flow.transition(request.key)
            self.finished(
                attempt_id,
                StepOutcome(status, assigned=assigned, removed=removed, transition=transition),  # type: ignore[arg-type]
            )
        if self._rng.random() < 0.1:  # noqa: PLR2004 # the promise of telling once is not kept
            late = self._rng.choice((0, 1, 64)) * TICK
            self._at(late, lambda: self.lost(attempt_id, Failure("killed", "told a second time")))

    # ------------------------------------------------------------------------------------------ the checks

    def _check_launch(self, name: str, request: LaunchRequest) -> None:
        """Check that an attempt may start now, with what it is given."""
        step = request.step
        key, number = step.key, step.attempt
        expected = self._oracle.tasks.get(key)
        if expected is None:
            raise BrokenPromiseError(f"{key.path} is started, which no run of this flow has")
        if request.id != f"{key.path}/{number}" or request.id in self.attempts:
            raise BrokenPromiseError(f"{request.id} is started twice")
        if number != self.launched.get(key, -1) + 1:
            raise BrokenPromiseError(f"{request.id} is started after attempt {self.launched.get(key)}")
        if self.has_failed or self.is_interrupted:
            raise BrokenPromiseError(f"{request.id} is started after the run's failure or interruption")
        if (self._flow.plans[key.step].launcher or HERE) != name:
            raise BrokenPromiseError(f"{request.id} is started on {name}")
        self._read_durable()
        self._check_inputs(request)
        if number > 0:
            self._check_retry(request)
        elif step.caught is not None:
            raise BrokenPromiseError(f"{request.id} stands in for an attempt that was never made")

    def _check_inputs(self, request: LaunchRequest) -> None:
        """Check that an attempt reads from exactly the tasks that it must, all durable, and sees what it must."""
        step = request.step
        expected = self._oracle.tasks[step.key]
        keys = tuple(each.key for each in step.inputs)
        if keys != expected.parents:
            raise BrokenPromiseError(f"{request.id} reads from {keys}, not {expected.parents}")
        if (None if step.split is None else step.split.key) != expected.split:
            raise BrokenPromiseError(f"{request.id} joins the empty foreach of {step.split}, not {expected.split}")
        frames = tuple((frame.step, frame.index, frame.count) for frame in step.frames)
        if frames != expected.frames:
            raise BrokenPromiseError(f"{request.id} has the frames {frames}, not {expected.frames}")
        if dict(step.parameters) != PARAMETERS:
            raise BrokenPromiseError(f"{request.id} has other parameters")
        for given in (*step.inputs, *((step.split,) if step.split else ())):
            if not self._is_durable(given.key):
                raise BrokenPromiseError(f"{request.id} is started before {given.key.path} is durable")
            if dict(given.artifacts) != self._oracle.tasks[given.key].visible.artifacts():
                raise BrokenPromiseError(f"{request.id} sees other artifacts of {given.key.path} than there are")

    def _check_retry(self, request: LaunchRequest) -> None:
        """Check that a further attempt follows a failed one, whose record is durable, after its pause."""
        key, number = request.step.key, request.step.attempt
        plan = self._flow.plans[key.step]
        times = plan.retry.times if plan.retry else 0
        record = self.finished_records.get((key, number - 1))
        if record is None or not record.will_retry or record.outcome.status != "failed":
            raise BrokenPromiseError(f"{request.id} is started, but the attempt before it was not recorded as failed")
        stands_in = number > times
        if stands_in and (plan.catch is None or number > times + 1):
            raise BrokenPromiseError(f"{request.id} is one attempt too many")
        if stands_in != (request.step.caught is not None):
            raise BrokenPromiseError(f"{request.id} is told {request.step.caught} of the attempt before")
        if request.step.catches != (plan.catch is not None and number >= times):
            raise BrokenPromiseError(f"{request.id} is told wrongly whether it catches")
        pause = plan.retry.delay_seconds if plan.retry and not stands_in else 0
        if self._clock.time() < record.time + pause:
            raise BrokenPromiseError(f"{request.id} is started {self._clock.time() - record.time} s after its failure")

    def _check_cancel(self, attempt_id: str, attempt: Running, grace: float) -> None:
        """Check that an attempt is cancelled for one of the two reasons that there are, with the right grace."""
        plan = self._flow.plans[attempt.request.step.key.step]
        limit = plan.timeout_seconds
        is_overdue = limit is not None and attempt.started is not None and self._clock.now >= attempt.started + limit
        own = INTERRUPT_GRACE if plan.grace_seconds is None else plan.grace_seconds
        by_timeout = is_overdue and grace == own
        by_interrupt = self.is_interrupted and grace in (INTERRUPT_GRACE, 0.0)
        if not by_timeout and not by_interrupt:
            raise BrokenPromiseError(f"{attempt_id} is cancelled with a grace of {grace} s for no reason")

    def _check_limits(self) -> None:
        """Check that what runs now is within every limit."""
        running = [each for each in self.attempts.values() if not each.has_ended]
        flow = self._flow
        if flow.max_workers is not None and len(running) > flow.max_workers:
            raise BrokenPromiseError(f"{len(running)} attempts run, not at most {flow.max_workers}")
        steps = [each.request.step.key.step for each in running]
        for step in dict.fromkeys(steps):
            limit = flow.plans[step].concurrency
            if limit is not None and steps.count(step) > limit:
                raise BrokenPromiseError(f"{steps.count(step)} tasks of {step} run, not at most {limit}")
        far = sum(each.launcher == FAR for each in running)
        if flow.capacity is not None and far > flow.capacity:
            raise BrokenPromiseError(f"{far} attempts run on {FAR}, which takes {flow.capacity}")
        here = [each.request.resources for each in running if each.launcher == HERE]
        cpu, memory = sum(each.cpu for each in here), sum(each.memory_mb for each in here)
        cores, mebibytes = flow.machine
        if len(here) > 1 and (cpu > cores or (mebibytes and memory > mebibytes)):
            raise BrokenPromiseError(f"{cpu} cores and {memory} MiB are used, of {cores} and {mebibytes}")

    def _is_final_failure(self, attempt: Running, result: StepOutcome | Failure) -> bool:
        """Tell whether the end of an attempt fails the run."""
        if isinstance(result, StepOutcome) and result.status != "failed":
            return False
        step = attempt.request.step
        plan = self._flow.plans[step.key.step]
        times = plan.retry.times if plan.retry else 0
        return step.attempt >= times + (1 if plan.catch is not None else 0)

    def _read_durable(self) -> None:
        """Take up what has become durable in the journal."""
        content = self._store.durable(self._key)
        while part := self._store.durable(layout.part(self._key, 0, self._parts)):
            self._journal += part
            self._parts += 1
        content = content or bytes(self._journal)
        read = parse_journal(content[self._read.offset :], self._key, self._read.offset, self._read.expected)
        for _, record in read.records:
            if isinstance(record, AttemptFinished):
                self.finished_records[record.key, record.attempt] = record
            elif isinstance(record, TaskReused):
                self._reused.add(record.key)
        self._read = read

    def _is_durable(self, key: TaskKey) -> bool:
        """Tell whether a task's result is durable."""
        if key in self._reused:
            return True
        record = self.finished_records.get((key, self.launched.get(key, -1)))
        return record is not None and not record.will_retry and record.outcome.status != "failed"
