"""Which events a committed record stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from mlp_core.store.records import AttemptFinished, AttemptStarted, EnvironmentLocked, RunBegan, RunEnded, TaskReused
from mlp_hookspecs.events import (
    ArtifactPersisted,
    EnvironmentResolved,
    Event,
    RunFinished,
    RunStarted,
    TaskFinished,
    TaskStarted,
)
from mlp_hookspecs.events import (
    TaskReused as TaskWasReused,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlp_core.store.records import Record
    from mlp_hookspecs import RunContext


def events_of(number: int, record: Record, run: RunContext) -> Sequence[Event]:  # noqa: PLR0911 # one return a kind
    """Return the events of a record.

    Parameters
    ----------
    number : int
        The record's number in the journal.
    record : record
        The record.
    run : RunContext
        The run.

    Returns
    -------
    sequence of Event
        In the order in which they happened; none for records that only the core cares about.
    """
    place: dict[str, Any] = {"sequence": number, "flow": run.flow, "run_id": run.run_id, "time": record.time}
    match record:
        case RunBegan():
            return [
                RunStarted(
                    **place,
                    username=run.username,
                    tags=run.tags,
                    parameters=record.parameter_texts,
                    origin_run_id=run.origin_run_id,
                )
            ]
        case EnvironmentLocked():
            spec, lock = record.spec, record.lock
            return [
                EnvironmentResolved(
                    **place, backend=spec.backend, requirement_digest=spec.digest, lock_digest=lock.digest
                )
            ]
        case AttemptStarted():
            return [TaskStarted(**place, key=record.key, attempt=record.attempt, launcher=record.launcher)]
        case AttemptFinished():
            return _finished(record, place)
        case TaskReused():
            return [TaskWasReused(**place, key=record.key, attempt=0, origin=record.origin)]
        case RunEnded():
            return [RunFinished(**place, status=record.status, message=record.message)]
        case _:
            return []


def _finished(record: AttemptFinished, place: dict[str, Any]) -> Sequence[Event]:
    """Return the events of an attempt's end: its artifacts, then the end itself."""
    outcome = record.outcome
    task: dict[str, Any] = {**place, "key": record.key, "attempt": record.attempt}
    persisted = [
        ArtifactPersisted(**task, name=name, ref=attrs.evolve(ref, data=None))
        for name, ref in outcome.assigned.items()
        if not record.will_retry
    ]
    end = TaskFinished(
        **task,
        status=outcome.status,
        failure=outcome.failure,
        will_retry=record.will_retry,
        seconds=max(0.0, outcome.finished_at - outcome.started_at),
        peak_memory_bytes=outcome.peak_memory_bytes,
    )
    return [*persisted, end]
