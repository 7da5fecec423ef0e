"""The fold of a run's records: statuses, visible artifacts, tags, and the same whether read at once or bit by bit."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlp_core.builtin.file_store import FileStore
from mlp_core.errors import StoreDamaged
from mlp_core.store import RunReader, Store
from mlp_core.store.records import (
    AttemptFinished,
    AttemptStarted,
    EnvironmentLocked,
    Note,
    ObserverFailed,
    Record,
    RunBegan,
    RunEnded,
    RunSealed,
    TagsChanged,
    TaskReused,
)
from mlp_core.store.state import RunState, changed_tags
from mlp_hookspecs.types import (
    ArtifactRef,
    EnvironmentLock,
    EnvironmentSpec,
    FlowGraph,
    PluginId,
    RunContext,
    StepNode,
    StepOutcome,
    TaskKey,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

GRAPH = FlowGraph(
    "Flow",
    "start",
    "end",
    (
        StepNode("start", "foreach", ("work",), foreach="xs", join="merge"),
        StepNode("work", "linear", ("merge",), parents=("start",), splits=("start",)),
        StepNode("merge", "linear", ("loop",), is_join=True, parents=("work",), splits=("start",)),
        StepNode("loop", "switch", ("loop", "end"), parents=("merge", "loop")),
        StepNode("end", "end", parents=("loop",)),
    ),
)
START = TaskKey("start")


def ref(text: str) -> ArtifactRef:
    """Return a reference that is told from others by its text."""
    return ArtifactRef("json", f"sha256-{text}", 1, "str")


ALPHA = ref("alpha")
BEGAN = RunBegan(
    RunContext("Flow", "20260101-000000-000000", tags=("a", "b")), 1.0, "host", 1, GRAPH, parameters={"alpha": ALPHA}
)


def done(  # a record has many parts
    key: TaskKey,
    *parents: TaskKey,
    attempt: int = 0,
    status: Literal["succeeded", "caught", "failed"] = "succeeded",
    removed: tuple[str, ...] = (),
    will_retry: bool = False,
    **assigned: str,
) -> AttemptFinished:
    """Return the end of an attempt."""
    outcome = StepOutcome(status, {name: ref(text) for name, text in assigned.items()}, removed)
    return AttemptFinished(key, attempt, outcome, will_retry, parents)


def folded(*records: Record) -> RunState:
    """Return the state after records."""
    state = RunState(BEGAN)
    for record in records:
        state.apply(record)
    return state


def visible(state: RunState, key: TaskKey) -> dict[str, str]:
    """Return the texts of what a task sees, without the parameter that all see."""
    found = dict(state.artifacts(key))
    assert found.pop("alpha") == ALPHA
    return {name: artifact.digest.removeprefix("sha256-") for name, artifact in found.items()}


def test_a_task_sees_its_parents_artifacts_and_its_own() -> None:
    """What the parent saw is inherited, what was assigned wins, and what was removed is gone from there on."""
    work, merge = TaskKey("work", (0,)), TaskKey("merge")
    state = folded(
        done(START, x="1", y="2"),
        done(work, START, x="3", z="4", removed=("y",)),
        done(merge, work, w="5"),
    )
    assert visible(state, START) == {"x": "1", "y": "2"}
    assert visible(state, work) == {"x": "3", "z": "4"}
    assert visible(state, merge) == {"w": "5"}  # a join inherits nothing but the parameters


def test_an_artifact_that_is_assigned_again_after_its_removal_is_visible() -> None:
    """A later step may assign what an earlier one removed."""
    first, second = TaskKey("loop"), TaskKey("loop", loop=1)
    merge = TaskKey("merge")
    state = folded(done(merge, x="1"), done(first, merge, removed=("x",)), done(second, first, x="2"))
    assert visible(state, first) == {}
    assert visible(state, second) == {"x": "2"}


def test_a_chain_of_ten_thousand_tasks_needs_no_recursion() -> None:
    """A loop may go round as often as it likes."""
    keys = [TaskKey("loop", loop=number) for number in range(10_000)]
    state = folded(done(keys[0], x="1"), *(done(key, before) for before, key in pairwise(keys)))
    assert visible(state, keys[-1]) == {"x": "1"}


def test_only_the_final_attempt_is_visible() -> None:
    """An attempt that is made again leaves nothing behind but its record; while one runs the task has no artifacts."""
    state = folded(AttemptStarted(START, 0, "local", 1.0), done(START, status="failed", will_retry=True, x="1"))
    assert state.tasks[START].status == "retrying"
    assert state.artifacts(START) == {}
    state.apply(AttemptStarted(START, 1, "local", 2.0))
    assert state.tasks[START].status == "running"
    assert state.tasks[START].outcome is None
    state.apply(done(START, attempt=1, x="2"))
    assert state.tasks[START].status == "succeeded"
    assert [attempt.number for attempt in state.tasks[START].attempts] == [0, 1]
    assert visible(state, START) == {"x": "2"}


def test_a_reused_task_counts_as_done() -> None:
    """A task taken from an earlier run shows what it left there, and where."""
    outcome = StepOutcome("succeeded", {"x": ref("1")})
    state = folded(TaskReused(START, "Flow/1/start/0", outcome, time=3.0))
    assert (state.tasks[START].status, state.tasks[START].origin) == ("succeeded", "Flow/1/start/0")
    assert [attempt.number for attempt in state.tasks[START].attempts] == [0]
    assert visible(state, START) == {"x": "1"}


@pytest.mark.parametrize(
    "records",
    [
        (done(START), done(START)),
        (AttemptStarted(START, 0, "local", 1.0), AttemptStarted(START, 0, "local", 2.0)),
        (done(START), TaskReused(START, "Flow/1/start/0", StepOutcome("succeeded"))),
        (RunEnded("succeeded"), RunEnded("failed")),
        (BEGAN,),
    ],
)
def test_records_that_contradict_each_other_are_damage(records: tuple[Record, ...]) -> None:
    """An attempt is committed at most once, a run begins and ends once."""
    with pytest.raises(StoreDamaged, match="Flow/20260101-000000-000000"):
        folded(*records)


def test_the_status_tells_whether_somebody_still_works_on_the_run() -> None:
    """Without an end a run is running while its driver lives and lost afterwards; with one it is what the end says."""
    state = folded()
    assert (state.context, state.graph) == (BEGAN.run, GRAPH)
    assert state.status == "lost"
    state.is_alive = True
    assert state.status == "running"
    state.apply(RunEnded("failed", "why", 2.0, 1))
    assert state.status == "failed"
    orchestrated = RunState(RunBegan(BEGAN.run, 1.0, "host", 1, GRAPH, has_driver=False))
    assert orchestrated.status == "running"


changes = st.builds(
    TagsChanged,
    st.lists(st.sampled_from("abcd"), max_size=2).map(tuple),
    st.lists(st.sampled_from("abcd"), max_size=2).map(tuple),
    st.sampled_from(["me", "you"]),
    st.floats(0, 5),
)


@given(st.lists(changes, max_size=5).flatmap(lambda found: st.tuples(st.just(found), st.permutations(found))))
def test_tags_do_not_depend_on_the_order_in_which_edits_are_found(orders: tuple[list[TagsChanged], ...]) -> None:
    """Edits are applied by their times, whatever the order of reading."""
    first, second = orders
    assert changed_tags(("a", "b"), first) == changed_tags(("a", "b"), second)


def test_tags_are_added_and_removed() -> None:
    """A tag that is there is not added twice, and one that is not there is not missed."""
    edits = (TagsChanged(("c", "a"), ("b", "x"), "me", 2.0), TagsChanged(("b",), (), "me", 1.0))
    assert folded(*edits).tags == ("a", "c")


HISTORY: tuple[Record, ...] = (
    done(START, x="1"),
    AttemptStarted(TaskKey("work", (0,)), 0, "local", 1.0),
    done(TaskKey("work", (0,)), START, status="failed", will_retry=True, x="2"),
    done(TaskKey("work", (0,)), START, attempt=1, x="3", removed=("y",)),
    TaskReused(TaskKey("work", (1,)), "Flow/1/work/1", StepOutcome("succeeded", {"y": ref("4")}), (START,)),
    Note("kind", "text", 1.0),
    done(TaskKey("merge"), TaskKey("work", (0,)), TaskKey("work", (1,))),
    done(TaskKey("loop"), TaskKey("merge"), z="5"),
)
histories = st.sets(st.integers(0, len(HISTORY) - 1)).map(lambda chosen: [HISTORY[number] for number in sorted(chosen)])


@given(histories, st.sets(st.integers(0, 8)), st.lists(changes, max_size=3))
def test_following_a_run_is_reading_it_at_once(
    records: list[Record], pauses: set[int], edits: list[TagsChanged]
) -> None:
    """A reader that follows a run while it is written ends with the state that a later reader gets."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(FileStore(Path(folder)), create=True)
        writer = store.create_run(lambda made: attrs.evolve(BEGAN, run=RunContext("Flow", made)), 0.0)
        run_id = writer.began.run.run_id
        follower = store.follow("Flow", run_id)
        for number, record in enumerate([*records, *edits]):
            if isinstance(record, TagsChanged):
                assert store.add_segment("Flow", run_id, f"tags-{number}", record)
            else:
                writer.write([record], sync=False)
            if number in pauses:
                follower.refresh()
                look_at(follower.state)
        assert follower.state.status == "running"
        writer.write([RunEnded("succeeded", "", 9.0, 1)])
        writer.close()
        follower.refresh()
        assert_equal(follower.state, RunReader(store.objects, "Flow", run_id).state)
        store.close()


def look_at(state: RunState) -> Sequence[object]:
    """Return all that can be asked of a state; what it remembers of the answer must not be wrong later."""
    known = [key for key in state.tasks if all(parent in state.tasks for parent in state.tasks[key].parents)]
    return [state.tags, state.status, state.notes, state.tasks, {key: state.artifacts(key) for key in known}]


def assert_equal(one: RunState, other: RunState) -> None:
    """Check that two states say the same."""
    assert look_at(one) == look_at(other)


def test_what_a_damaged_record_tells_is_refused() -> None:
    """A second beginning, a summary among the records, and a task of an unknown step are no driver's doing."""
    other = TaskKey("elsewhere")
    sealed = RunSealed(BEGAN.run, 1.0, RunEnded("succeeded"), has_driver=True, size=0, digest="")
    for record, said in (
        (BEGAN, "begins twice"),
        (sealed, "has its own summary in it"),
        (AttemptStarted(other, 0, "local", 1.0), "which its graph does not have"),
        (AttemptFinished(other, 0, StepOutcome("failed")), "which its graph does not have"),
        (TaskReused(other, "Flow/1/a/0", StepOutcome("failed")), "which its graph does not have"),
    ):
        with pytest.raises(StoreDamaged, match=said):
            folded(record)


def test_a_task_that_goes_back_to_nothing_is_damage() -> None:
    """Parents that are not there, or that go round in a circle, are told rather than followed; an unknown task too."""
    first, second = TaskKey("loop", (), 0), TaskKey("loop", (), 1)
    lost = folded(AttemptFinished(first, 0, StepOutcome("succeeded"), parents=(second,)))
    circle = folded(
        AttemptFinished(first, 0, StepOutcome("succeeded"), parents=(second,)),
        AttemptFinished(second, 0, StepOutcome("succeeded"), parents=(first,)),
    )
    for state in (lost, circle):
        with pytest.raises(StoreDamaged, match="does not tell what loop/0 goes back to"):
            state.artifacts(first)
    with pytest.raises(KeyError):
        lost.artifacts(START)


def test_everything_else_is_kept_in_order() -> None:
    """Environments, remarks and observers' failures are there for readers."""
    environment = EnvironmentLocked(EnvironmentSpec("uv"), EnvironmentLock("uv", "sha256-1", b""), ("start",), 1.0)
    failed = ObserverFailed(PluginId("tape", "mlp-plugin-tape", "1.0"), "1", "torn", 2.0)
    note = Note("environment", "slow", 3.0)
    state = folded(environment, failed, note)
    assert (state.environments, state.observer_failures, state.notes) == ([environment], [failed], [note])


def test_a_run_counts_as_signed_until_a_reader_says_otherwise() -> None:
    """Where there is no key, nothing is missing."""
    assert RunState(BEGAN).is_signed


def test_a_task_ran_in_the_last_environment_that_was_looked_up_for_it() -> None:
    """One of a step is of all its tasks, unless it names some; a task of which none tells ran in the driver's."""
    spec, lock = EnvironmentSpec("uv"), EnvironmentLock("uv", "sha256-1", "")
    start, work, later = (
        EnvironmentLocked(spec, lock, ("start",), 1.0),
        EnvironmentLocked(spec, lock, ("work",), 2.0, task_ids=(TaskKey("work", (0,)).task_id,)),
        EnvironmentLocked(spec, lock, ("start",), 3.0),
    )
    state = folded(start, work)
    assert state.environment_of(START) is start
    assert state.environment_of(TaskKey("work", (0,))) is work
    assert state.environment_of(TaskKey("work", (1,))) is None
    assert state.environment_of(TaskKey("merge")) is None
    assert folded(start, work, later).environment_of(START) is later
