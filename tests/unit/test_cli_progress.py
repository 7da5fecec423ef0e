"""The displays of a run: what each prints for a run's events."""

from __future__ import annotations

import io
import itertools
import json
import re
from typing import TYPE_CHECKING, Any

import attrs
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mlp_core.cli.live import LiveProgress
from mlp_core.cli.progress import JsonProgress, LogLines, PlainProgress, choose_progress
from mlp_core.runner import SilentProgress
from mlp_hookspecs import Failure, FlowGraph, RunContext, StepNode, StepOutcome, TaskKey, Transition

if TYPE_CHECKING:
    import pytest

    from mlp_core.runner import Progress

RUN = RunContext("Try", "20260131-094500-123456", "alice", "user:alice")
GRAPH = FlowGraph(
    "Try",
    "start",
    "end",
    (
        StepNode("start", "foreach", ("work",), foreach="xs", join="join"),
        StepNode("work", "linear", ("join",), parents=("start",), splits=("start",)),
        StepNode("join", "linear", ("end",), is_join=True, parents=("work",), splits=("start",)),
        StepNode("end", "end", parents=("join",)),
    ),
)
FAILED = StepOutcome(
    "failed", failure=Failure("exception", "ValueError: no\x1b[2J", "ValueError"), started_at=1, finished_at=3
)


def tell(progress: Progress) -> None:
    """Tell a display a small run: three items, one retried, one taken over, one failed."""
    start, work = TaskKey("start"), [TaskKey("work", (index,)) for index in range(3)]
    progress.run_started(RUN, GRAPH, "file:///somewhere/store")
    progress.task_started(start, 0)
    progress.task_log(start, 0, "stdout", b"hel")
    progress.task_log(start, 0, "stdout", b"lo\nthere")
    progress.task_finished(
        start, 0, StepOutcome("succeeded", transition=Transition(("work",), count=3)), will_retry=False
    )
    progress.task_started(work[0], 0)
    progress.task_finished(work[0], 0, FAILED, will_retry=True)
    progress.task_started(work[0], 1)
    progress.task_finished(work[0], 1, StepOutcome("succeeded", transition=Transition(("join",))), will_retry=False)
    progress.task_reused(work[1], "Try/20260130-094500-123456/work/1")
    progress.task_started(work[2], 0)
    progress.task_finished(work[2], 0, FAILED, will_retry=False)
    progress.note("a remark\x07")
    progress.run_finished("failed", "work/2 failed")


def test_plain_lines_tell_every_event() -> None:
    """Each line begins with the time; logs with their task; unfinished lines are printed when their task ends."""
    stream = io.StringIO()
    tell(PlainProgress(stream))
    lines = stream.getvalue().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S", line) for line in lines)
    told = [line[20:] for line in lines]
    assert told[0] == "Try/20260131-094500-123456 started; store /somewhere/store"
    assert told[1:5] == ["start/0 started", "[start/0] hello", "[start/0] there", "start/0 done in 0 ms"]
    assert told[6] == r"work/0 failed in 2.0 s: ValueError: no\x1b[2J; it will be tried again"
    assert told[7] == "work/0 (attempt 2) started"
    assert told[9] == "work/1 reused from Try/20260130-094500-123456/work/1"
    assert told[-2] == r"a remark\x07"
    assert re.fullmatch(r"Try/\S+ failed in .* \(3 tasks, 1 reused\): work/2 failed", told[-1])


def test_json_lines_tell_every_event() -> None:
    """Each line is an object with the event's name and time."""
    stream = io.StringIO()
    tell(JsonProgress(stream))
    events: list[dict[str, Any]] = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert all(event["time"] > 0 for event in events)
    assert [event["event"] for event in events].count("task_finished") == 4
    assert events[0]["steps"] == ["start", "work", "join", "end"]
    assert [event["text"] for event in events if event["event"] == "task_log"] == ["hel", "lo\nthere"]
    failed = [event for event in events if event.get("status") == "failed" and "task" in event]
    assert [event["will_retry"] for event in failed] == [True, False]
    assert failed[0]["failure"]["message"] == "ValueError: no\x1b[2J"
    assert events[-1]["event"] == "run_finished"
    assert events[-1]["status"] == "failed"


def test_live_view_draws_steps_and_lines() -> None:
    """The table shows each step's state; logs stand above it; what a terminal would obey is escaped."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, color_system=None, legacy_windows=False)
    tell(LiveProgress(console))
    shown = stream.getvalue()
    assert "[start/0] hello" in shown
    assert "[start/0] there" in shown
    assert r"work/2 failed in 2.0 s: ValueError: no\x1b[2J" in shown
    last = shown.split("\x1b[?25h")[-1]
    assert re.search(r"Try/20260131-094500-123456 failed in .*: work/2 failed", last)
    final = shown.split("\x1b[?25h")[0].splitlines()[-5:]
    assert any(re.search(r"✓\s+start", line) for line in final)
    assert any(re.search(r"✗\s+work.*3/3\s+1 failed\s+1 reused", line) for line in final)
    assert any(re.search(r"·\s+join", line) for line in final)


def test_live_view_of_many_steps_shows_what_goes_on() -> None:
    """Of a hundred steps a screenful is drawn: those that run or failed are among them."""
    names = [f"s{number}" for number in range(100)]
    steps = [StepNode(name, "linear", (following,)) for name, following in itertools.pairwise(names)]
    graph = FlowGraph("Long", "s0", "s99", (*steps, StepNode("s99", "end")))
    stream = io.StringIO()
    progress = LiveProgress(Console(file=stream, force_terminal=True, width=100, color_system=None))
    progress.run_started(attrs.evolve(RUN, flow="Long"), graph, "s")
    for name in names[:60]:
        progress.task_started(TaskKey(name), 0)
        progress.task_finished(TaskKey(name), 0, StepOutcome("succeeded", transition=Transition(())), will_retry=False)
    progress.task_started(TaskKey("s60"), 0)
    progress.task_finished(TaskKey("s60"), 0, FAILED, will_retry=False)
    progress.run_finished("failed", "")
    final = stream.getvalue().split("\x1b[?25h")[0].splitlines()[-20:]
    assert len(final) == 20
    assert any("✗" in line and "s60" in line for line in final)


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_pieces_join_to_the_lines_that_were_printed(pieces: list[bytes]) -> None:
    """However a text is cut, its lines come out whole and in order, those of two streams apart."""
    lines = LogLines()
    key = TaskKey("start")
    found = [line for piece in pieces for line in lines.add(key, 0, "stdout", piece)]
    lines.add(key, 0, "stderr", b"other")
    rest = lines.finish(key, 0)
    assert rest[-1] == "other"
    whole = b"".join(pieces)
    expected = whole.decode(errors="replace").split("\n") if whole else []
    assert found + rest[:-1] == [line for line in expected if line or line is not expected[-1]]


def test_a_line_without_an_end_is_not_kept_for_ever() -> None:
    """What grows beyond any line's length is passed on."""
    lines = LogLines()
    assert lines.add(TaskKey("start"), 0, "stdout", b"x" * 70_000) == ["x" * 70_000]


def test_the_display_suits_where_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON and quiet are asked for; a terminal is drawn on unless it is dumb; all else gets plain lines."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert isinstance(choose_progress(quiet=True, as_json=True), JsonProgress)
    assert isinstance(choose_progress(quiet=True, as_json=False), SilentProgress)
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert isinstance(choose_progress(quiet=False, as_json=False), PlainProgress)
    monkeypatch.setattr("sys.stdout", Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(choose_progress(quiet=False, as_json=False), PlainProgress)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(choose_progress(quiet=False, as_json=False), LiveProgress)
