"""Which events a committed record stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mlp_core.observation import events_of
from mlp_core.store.records import (
    AttemptFinished,
    AttemptStarted,
    EnvironmentLocked,
    Note,
    ObserverFailed,
    RunBegan,
    RunEnded,
    TagsChanged,
    TaskReused,
)
from mlp_hookspecs import (
    ArtifactRef,
    EnvironmentLock,
    EnvironmentSpec,
    Failure,
    FlowGraph,
    PluginId,
    RunContext,
    StepOutcome,
    TaskKey,
    events,
)

if TYPE_CHECKING:
    from mlp_core.store.records import Record

RUN = RunContext("F", "20260131-094500-123456", username="ada", tags=("t",), origin_run_id="20260130-094500-123456")
KEY = TaskKey("work", (2,))
REF = ArtifactRef("json", "sha256-00", 1, "int", b"1")
PLUGIN = PluginId("p", "mlp-plugin-p", "1.0")
GRAPH = FlowGraph("F", "start", "end", ())


def only(record: Record, number: int = 7) -> events.Event:
    """Return the one event of a record."""
    (event,) = events_of(number, record, RUN)
    assert (event.sequence, event.flow, event.run_id, event.time) == (number, "F", RUN.run_id, record.time)
    return event


def test_begin_and_end_of_a_run() -> None:
    """The first and the last record tell whose run it was, and how it ended."""
    began = only(RunBegan(RUN, 1.0, "host", 5, GRAPH, parameters={"a": REF}, parameter_texts={"alpha": "1"}))
    assert isinstance(began, events.RunStarted)
    assert (began.username, began.tags, began.parameters) == ("ada", ("t",), {"alpha": "1"})
    assert began.origin_run_id == RUN.origin_run_id
    ended = only(RunEnded("failed", "why", 2.0, 3))
    assert isinstance(ended, events.RunFinished)
    assert (ended.status, ended.message) == ("failed", "why")


def test_attempts() -> None:
    """An attempt's end tells its artifacts, without their content, and then the end."""
    started = only(AttemptStarted(KEY, 1, "local", 3.0))
    assert isinstance(started, events.TaskStarted)
    assert (started.key, started.attempt, started.launcher) == (KEY, 1, "local")
    outcome = StepOutcome("succeeded", {"x": REF, "y": REF}, started_at=1.0, finished_at=3.5, peak_memory_bytes=9)
    *persisted, finished = events_of(4, AttemptFinished(KEY, 1, outcome, will_retry=False, time=4.0), RUN)
    assert [type(event).__name__ for event in persisted] == 2 * ["ArtifactPersisted"]
    assert [getattr(event, "name", "") for event in persisted] == ["x", "y"]
    assert all(isinstance(event, events.ArtifactPersisted) and event.ref.data is None for event in persisted)
    assert isinstance(finished, events.TaskFinished)
    assert (finished.status, finished.seconds, finished.peak_memory_bytes) == ("succeeded", 2.5, 9)
    assert len({event.id for event in (*persisted, finished)}) == 3


def test_failed_attempts() -> None:
    """What an attempt left that will be made again was not persisted; clocks that differ make no negative time."""
    failure = Failure("killed", "why")
    outcome = StepOutcome("failed", {"x": REF}, failure=failure, started_at=5.0, finished_at=4.0)
    (event,) = events_of(4, AttemptFinished(KEY, 0, outcome, will_retry=True, time=4.0), RUN)
    assert isinstance(event, events.TaskFinished)
    assert (event.failure, event.will_retry, event.seconds) == (failure, True, 0)


def test_reused_tasks_and_environments() -> None:
    """A reused task names the one that did the work; an environment its requirement and lock."""
    reused = only(TaskReused(KEY, "F/1/work/2", StepOutcome("succeeded"), (), (), 1.0))
    assert isinstance(reused, events.TaskReused)
    assert (reused.key, reused.origin) == (KEY, "F/1/work/2")
    spec, lock = EnvironmentSpec("uv"), EnvironmentLock("uv", content="x", python="3.12")
    resolved = only(EnvironmentLocked(spec, lock, ("work",), 1.0))
    assert isinstance(resolved, events.EnvironmentResolved)
    assert (resolved.backend, resolved.requirement_digest, resolved.lock_digest) == ("uv", spec.digest, lock.digest)


@pytest.mark.parametrize(
    "record",
    [
        TagsChanged(("a",), (), "ada", 1.0),
        ObserverFailed(PLUGIN, "event", "why", 1.0),
        Note("environment", "text", 1.0),
    ],
)
def test_records_of_nobody_s_business(record: Record) -> None:
    """Some records are the core's own."""
    assert events_of(1, record, RUN) == []
