"""Which runs a policy lets go: the newest, the successful, the tagged and those that go on stay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlp_core.errors import UsageError
from mlp_core.names import new_run_id
from mlp_core.store.index import RunSummary
from mlp_core.upkeep.retention import Retention, removable, span

DAY = 86400.0
NOW = 100 * DAY


def run(day: float, status: str = "succeeded", flow: str = "Flow", *tags: str) -> RunSummary:
    """Return a run of a day."""
    ended = None if status in ("running", "lost") else day * DAY + 1
    return RunSummary(
        flow,
        new_run_id(day * DAY),
        status,
        started_at=day * DAY,
        finished_at=ended,
        tags=tags,  # type: ignore[arg-type] # a status
    )


def days(runs: list[RunSummary]) -> list[float]:
    """Return the days of runs."""
    return [each.started_at / DAY for each in runs]


RUNS = [run(1), run(2, "failed"), run(3), run(4, "failed"), run(5, "lost"), run(6, "running"), run(7, "damaged")]


@pytest.mark.parametrize(
    ("policy", "gone"),
    [
        (Retention(), []),
        (Retention(keep_successful=1), []),
        (Retention(keep=0), [5, 4, 3, 2, 1]),
        (Retention(keep=3), [4, 3, 2, 1]),
        (Retention(keep=100), []),
        (Retention(older_than=96.5 * DAY), [3, 2, 1]),
        (Retention(older_than=0), [5, 4, 3, 2, 1]),
        (Retention(keep=4, older_than=96.5 * DAY), [3, 2, 1]),
        (Retention(keep=6, older_than=96.5 * DAY), [1]),
        (Retention(keep=0, keep_successful=1), [5, 4, 2, 1]),
        (Retention(keep=0, keep_successful=9), [5, 4, 2]),
    ],
)
def test_a_policy_lets_runs_go(policy: Retention, gone: list[int]) -> None:
    """What both limits let go goes; what goes on, or cannot be read, never does."""
    assert days(removable(RUNS, policy, NOW)) == gone


def test_flows_are_counted_apart() -> None:
    """The newest runs are those of each flow."""
    runs = [run(1), run(2), run(3, "succeeded", "Other"), run(4)]
    assert days(removable(runs, Retention(keep=1), NOW)) == [2, 1]
    assert days(removable(runs, Retention(keep=0, keep_successful=1), NOW)) == [2, 1]


def test_a_tag_holds_a_run() -> None:
    """A run with one of the tags stays."""
    runs = [run(1, "failed", "Flow", "a"), run(2, "failed", "Flow", "b"), run(3, "failed", "Flow", "c", "a")]
    assert days(removable(runs, Retention(keep=0, keep_tagged=("a", "x")), NOW)) == [2]


@given(
    st.lists(st.tuples(st.integers(1, 50), st.sampled_from(["succeeded", "failed", "running", "lost"])), max_size=12),
    st.none() | st.integers(0, 5),
    st.none() | st.floats(0, 60 * DAY),
    st.integers(0, 5),
)
def test_more_limits_let_no_more_go(
    drawn: list[tuple[int, str]], keep: int | None, older_than: float | None, successful: int
) -> None:
    """Each further limit keeps runs, and lets none go that would otherwise stay."""
    runs = [run(day + number / 100, status) for number, (day, status) in enumerate(drawn)]
    policy = Retention(keep=keep, older_than=older_than, keep_successful=successful)
    gone = {each.run_id for each in removable(runs, policy, NOW)}
    for wider in (
        Retention(keep=keep, older_than=older_than),
        Retention(keep=keep, keep_successful=successful),
        Retention(older_than=older_than, keep_successful=successful),
    ):
        if wider.removes:
            assert gone <= {each.run_id for each in removable(runs, wider, NOW)}
    if keep is not None:
        newest = sorted(runs, key=lambda each: each.run_id)[len(runs) - min(keep, len(runs)) :]
        assert gone.isdisjoint(each.run_id for each in newest)


def test_spans_are_read_or_refused() -> None:
    """A span is a number and a unit."""
    assert [span(text, "x") for text in ("0", "5s", "90m", "12h", "30d", "4w")] == [
        *(0, 5, 5400, 43200, 30 * DAY, 28 * DAY)
    ]
    for text in ("", "5", "d", "-1d", "1.5h", "1 d", "99999999999d", "٣d"):
        with pytest.raises(UsageError, match="--grace"):
            span(text, "--grace")
