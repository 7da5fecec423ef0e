"""What a run's records amount to: a pure fold, the same whether they come at once or one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import attrs

from mlp_core import names
from mlp_core.errors import NameRefused, StoreDamaged
from mlp_core.store.records import (
    AttemptFinished,
    AttemptStarted,
    EnvironmentLocked,
    Note,
    ObserverFailed,
    Record,
    RunBegan,
    RunEnded,
    TagsChanged,
    TaskReused,
)
from mlp_hookspecs.types import ForeachFrame, StepOutcome, TaskKey

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlp_hookspecs.types import ArtifactRef, FlowGraph, RunContext

RunStatus: TypeAlias = Literal["running", "lost", "succeeded", "failed", "cancelled"]
TaskStatus: TypeAlias = Literal["running", "retrying", "succeeded", "caught", "failed"]


@attrs.frozen
class AttemptState:
    """One attempt at a task.

    Attributes
    ----------
    number : int
        0-based.
    launcher : str
        The launcher; empty where an orchestrator started it.
    started_at : float or None
        When it was handed to the launcher, by the driver's clock.
    finished_at : float or None
        When its end was committed; None while it runs.
    outcome : StepOutcome or None
        How it ended; None while it runs.
    will_retry : bool
        Whether another attempt follows.
    """

    number: int
    launcher: str = ""
    started_at: float | None = None
    finished_at: float | None = None
    outcome: StepOutcome | None = None
    will_retry: bool = False


@attrs.frozen
class TaskState:
    """One task.

    Attributes
    ----------
    key : TaskKey
        The task.
    attempts : tuple of AttemptState
        Its attempts in order; for a reused task one, which the earlier run made.
    parents : tuple of TaskKey
        The tasks that it read from, in order.
    frames : tuple of ForeachFrame
        The open foreach around it.
    origin : str or None
        Pathspec of the task in an earlier run that did the work.
    """

    key: TaskKey
    attempts: tuple[AttemptState, ...] = ()
    parents: tuple[TaskKey, ...] = ()
    frames: tuple[ForeachFrame, ...] = ()
    origin: str | None = None

    @property
    def outcome(self) -> StepOutcome | None:
        """How the task ended for good; None while it has not."""
        last = self.attempts[-1]
        return None if last.will_retry else last.outcome

    @property
    def status(self) -> TaskStatus:
        """Where the task stands. In a run that is lost or over, ``running`` means that the task was never finished."""
        last = self.attempts[-1]
        if last.outcome is None:
            return "running"
        return "retrying" if last.will_retry else last.outcome.status


class RunState:
    """A run as its records tell it.

    Parameters
    ----------
    began : RunBegan
        The first record.
    is_alive : bool
        Whether its driver was there when the reading began; it decides between ``running`` and ``lost``.

    Attributes
    ----------
    began : RunBegan
        The first record.
    ended : RunEnded or None
        The last record, once it is there.
    tasks : dict of TaskKey to TaskState
        The tasks, in the order in which they first occurred.
    environments : list of EnvironmentLocked
        The environments.
    notes : list of Note
        Remarks.
    observer_failures : list of ObserverFailed
        What observers did wrong.
    is_alive : bool
        As the parameter; a reader renews it.
    is_signed : bool
        Whether all records are signed that must be, where there is a key; a reader renews it.
    """

    def __init__(self, began: RunBegan, *, is_alive: bool = False) -> None:
        """Begin the fold."""
        self.began = began
        self.ended: RunEnded | None = None
        self.tasks: dict[TaskKey, TaskState] = {}
        self.environments: list[EnvironmentLocked] = []
        self._environment: dict[tuple[str, str], EnvironmentLocked] = {}
        self.notes: list[Note] = []
        self.observer_failures: list[ObserverFailed] = []
        self.is_alive = is_alive
        self.is_signed = True
        self._tag_changes: list[TagsChanged] = []
        self._nodes = {node.name: node for node in began.graph.steps}
        for name in (began.run.flow, *self._nodes):
            if not _is_identifier(name):
                raise self._contradiction(f"has the name {names.shown(name)}")
        self._visible: dict[TaskKey, Mapping[str, ArtifactRef]] = {}

    @property
    def context(self) -> RunContext:
        """What all tasks of the run share."""
        return self.began.run

    @property
    def graph(self) -> FlowGraph:
        """The flow's graph."""
        return self.began.graph

    @property
    def status(self) -> RunStatus:
        """Where the run stands."""
        if self.ended is not None:
            return self.ended.status
        return "running" if self.is_alive or not self.began.has_driver else "lost"

    @property
    def tags(self) -> tuple[str, ...]:
        """The run's tags, in the order in which they were added."""
        return changed_tags(self.began.run.tags, self._tag_changes)

    def environment_of(self, key: TaskKey) -> EnvironmentLocked | None:
        """Return the environment that a task ran in last; None for the driver's interpreter."""
        return self._environment.get((key.step, key.task_id)) or self._environment.get((key.step, ""))

    def apply(self, record: Record) -> None:  # noqa: C901 # one case a kind
        """Take up a further record.

        Raises
        ------
        StoreDamaged
            Where the record contradicts those before it, as no driver would write them.
        """
        match record:
            case AttemptStarted():
                self._apply_started(record)
            case AttemptFinished():
                self._apply_finished(record)
            case TaskReused():
                self._apply_reused(record)
            case EnvironmentLocked():
                self._apply_locked(record)
            case TagsChanged():
                self._tag_changes.append(record)
            case ObserverFailed():
                self.observer_failures.append(record)
            case Note():
                self.notes.append(record)
            case RunEnded():
                if self.ended is not None:
                    raise self._contradiction("ends twice")
                self.ended = record
            case RunBegan():
                raise self._contradiction("begins twice")
            case _:  # RunSealed, the only kind that is left
                raise self._contradiction("has its own summary in it")

    def _check(self, key: TaskKey) -> None:
        """Refuse a task of a step that the graph does not have."""
        if key.step not in self._nodes:
            raise self._contradiction(f"has a task of the step {names.shown(key.step)}, which its graph does not have")

    def _apply_locked(self, record: EnvironmentLocked) -> None:
        """Take in an environment: of some tasks of its steps, or of all, those that had another one before too."""
        self.environments.append(record)
        for step in record.steps:
            if not record.task_ids:
                self._environment = {place: old for place, old in self._environment.items() if place[0] != step}
            for task_id in record.task_ids or ("",):
                self._environment[step, task_id] = record

    def _apply_started(self, record: AttemptStarted) -> None:
        """Take up the start of an attempt."""
        self._check(record.key)
        task = self.tasks.get(record.key) or TaskState(record.key)
        if any(attempt.number == record.attempt for attempt in task.attempts):
            raise self._contradiction(f"starts attempt {record.attempt} of {record.key.path} twice")
        attempt = AttemptState(record.attempt, record.launcher, record.time)
        self.tasks[record.key] = attrs.evolve(task, attempts=(*task.attempts, attempt))

    def _apply_finished(self, record: AttemptFinished) -> None:
        """Take up the end of an attempt; its start may not have been recorded."""
        self._check(record.key)
        task = self.tasks.get(record.key) or TaskState(record.key)
        begun = [attempt for attempt in task.attempts if attempt.number == record.attempt]
        if begun and begun[0].outcome is not None:
            raise self._contradiction(f"commits attempt {record.attempt} of {record.key.path} twice")
        first = begun[0] if begun else AttemptState(record.attempt)
        attempt = AttemptState(
            first.number, first.launcher, first.started_at, record.time, record.outcome, record.will_retry
        )
        others = [other for other in task.attempts if other.number != record.attempt]
        attempts = (*others, attempt) if others else (attempt,)
        if len(attempts) > 1:
            attempts = tuple(sorted(attempts, key=lambda each: each.number))
        self.tasks[record.key] = TaskState(record.key, attempts, record.parents, record.frames)

    def _apply_reused(self, record: TaskReused) -> None:
        """Take up a task of an earlier run."""
        self._check(record.key)
        if record.key in self.tasks:
            raise self._contradiction(f"reuses {record.key.path}, which it has run")
        attempt = AttemptState(0, "", None, record.time, record.outcome)
        self.tasks[record.key] = TaskState(record.key, (attempt,), record.parents, record.frames, record.origin)

    def _contradiction(self, what: str) -> StoreDamaged:
        """Return the error of a record that contradicts an earlier one."""
        return StoreDamaged(f"the journal of {self.context.flow}/{self.context.run_id} {what}")

    def artifacts(self, key: TaskKey) -> Mapping[str, ArtifactRef]:
        """Return all that is visible in a task that has ended.

        A task sees what its parent saw, without what it removed and with what it assigned. A join inherits nothing of
        its inputs. The run's parameters and constants are visible everywhere.

        Raises
        ------
        KeyError
            Where the task is unknown.
        """
        chain: list[TaskState] = []
        visible: Mapping[str, ArtifactRef] | None = None
        current: TaskKey | None = key
        while current is not None and visible is None:
            visible = self._visible.get(current)
            if visible is None:
                task = self.tasks.get(current)
                if task is None and not chain:
                    raise KeyError(current)
                if task is None or len(chain) > len(self.tasks):
                    raise self._contradiction(f"does not tell what {key.path} goes back to")
                chain.append(task)
                current = None if self._nodes[current.step].is_join or not task.parents else task.parents[0]
        if visible is None:
            visible = self.began.parameters
        for task in reversed(chain):
            outcome = task.outcome
            if outcome is None:
                return {}
            if outcome.assigned or outcome.removed:
                visible = {**visible, **outcome.assigned}
                for name in outcome.removed:
                    visible.pop(name, None)
            self._visible[task.key] = visible
        return visible


def _is_identifier(name: str) -> bool:
    """Tell whether a name passes the grammar: what lies in a store may have any."""
    try:
        names.identifier(name, "name")
    except NameRefused:
        return False
    return True


def changed_tags(tags: Sequence[str], changes: Sequence[TagsChanged]) -> tuple[str, ...]:
    """Return tags after changes, which may be given in any order."""
    current = dict.fromkeys(tags)
    for change in sorted(changes, key=lambda each: (each.time, each.username, each.added, each.removed)):
        for tag in change.removed:
            current.pop(tag, None)
        current.update(dict.fromkeys(change.added))
    return tuple(current)
