"""Records that no driver writes are damage, told as such, whatever their checksums say."""

from __future__ import annotations

import json
import os
import zlib
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from mlp_core.builtin.file_store import FileStore
from mlp_core.cli.text import duration, moment
from mlp_core.client.base import local_time
from mlp_core.client.handle import day_tag
from mlp_core.errors import StoreDamaged
from mlp_core.store import Store, layout
from mlp_core.store.records import (
    AttemptFinished,
    AttemptStarted,
    RunBegan,
    RunEnded,
    TaskReused,
    decode_line,
    encode_line,
)
from mlp_core.store.state import RunState
from mlp_hookspecs import FlowGraph, RunContext, StepNode, StepOutcome, TaskKey, wire

if TYPE_CHECKING:
    from pathlib import Path

RUN_ID = "20260131-094500-123456"
GRAPH = FlowGraph("Flow", "start", "end", (StepNode("start", "linear", ("end",)), StepNode("end", "end")))
BEGAN = RunBegan(RunContext("Flow", RUN_ID), 1.0, "host", 1, GRAPH)
DONE = StepOutcome("succeeded")


def line(text: bytes) -> bytes:
    """Return a line with the right checksum."""
    return b"%08x %s" % (zlib.crc32(text), text)


def with_data(**changes: Any) -> bytes:
    """Return the line of an attempt's end in which fields are something else."""
    data = {"key": {"step": "start"}, "attempt": 0, "outcome": {"status": "succeeded"}, **changes}
    return line(json.dumps({"n": 0, "kind": "AttemptFinished", "data": data}).encode())


def test_a_line_is_read_where_nothing_is_changed() -> None:
    """The lines of these tests are refused for what is changed in them, and nothing else."""
    assert decode_line(with_data()) == (0, AttemptFinished(TaskKey("start"), 0, DONE))


@pytest.mark.parametrize(
    "bad",
    [
        line(b"[" * 100_000),
        line(b'{"a":' * 100_000),
        line(b'{"n":0,"kind":"Note","data":' + b"[" * 100_000),
        line(b'{"n":"0","kind":"Note","data":{}}'),
        line(b'{"n":0.5,"kind":"Later","data":{}}'),
        line(b'{"n":true,"kind":"Later","data":{}}'),
        line(b'{"n":0,"kind":["Note"],"data":{}}'),
        line(b'"Note"'),
        line(b"9" * 100_000),
        line(b"\xff\xfe"),
        with_data(attempt="0"),
        with_data(attempt=None),
        with_data(attempt=True),
        with_data(key={"step": 1}),
        with_data(key={"step": "start", "index": "12"}),
        with_data(outcome={"status": True}),
        with_data(outcome={"status": []}),
        with_data(outcome={"status": {"a": 1}}),
        with_data(outcome=[]),
        with_data(outcome={"status": "failed", "failure": {"kind": 3, "message": "x"}}),
        with_data(outcome={"status": "succeeded", "assigned": [["x", 1]]}),
        with_data(outcome={"status": "succeeded", "assigned": {"x": {"format": "json", "data": "no base64!"}}}),
        with_data(frames=[{"step": "start", "variable": "x", "index": "0", "count": 1}]),
        with_data(time="now"),
    ],
    ids=range(24),
)
def test_what_does_not_fit_is_no_record(bad: bytes) -> None:
    """A value of another type, however deep or long, is damage and no exception."""
    assert decode_line(bad) is None


def test_deep_data_is_no_value() -> None:
    """What is nested more deeply than Python reads is a ValueError, as all that does not fit."""
    with pytest.raises(ValueError, match="nested too deeply"):
        wire.loads(StepOutcome, b'{"status":"succeeded","assigned":' + b"[" * 100_000)


@pytest.mark.parametrize("name", ["../x", "", "a/b", "\x1b[31m", "a" * 200, "_x", "é"])
def test_names_pass_the_grammar(name: str) -> None:
    """A graph or a flow with a name that the grammar refuses is damage."""
    bad = attrs.evolve(GRAPH, steps=(*GRAPH.steps, StepNode(name, "linear", ("end",))))
    for began in (attrs.evolve(BEGAN, graph=bad), attrs.evolve(BEGAN, run=RunContext(name, RUN_ID))):
        with pytest.raises(StoreDamaged, match="has the name"):
            RunState(began)


@pytest.mark.parametrize("kind", ["started", "finished", "reused"])
def test_tasks_are_of_the_graph(kind: str) -> None:
    """A record about a step that the flow does not have is damage."""
    key = TaskKey("other")
    records = {
        "started": AttemptStarted(key, 0, "local", 1.0),
        "finished": AttemptFinished(key, 0, DONE),
        "reused": TaskReused(key, "Flow/1/other/0", DONE),
    }
    with pytest.raises(StoreDamaged, match="other"):
        RunState(BEGAN).apply(records[kind])


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "parents",
    [{"start": "start"}, {"start": "end", "end": "start"}, {"start": "end"}],
    ids=["its own parent", "a ring", "nobody"],
)
def test_tasks_that_go_back_to_nothing_are_damage(parents: dict[str, str]) -> None:
    """Parents that lead in a ring, or to no task, are told; nothing goes round for ever."""
    state = RunState(BEGAN)
    for step, parent in parents.items():
        state.apply(AttemptFinished(TaskKey(step), 0, DONE, parents=(TaskKey(parent),)))
    with pytest.raises(StoreDamaged, match="does not tell what"):
        state.artifacts(TaskKey("start"))


def test_a_journal_belongs_to_its_run(tmp_path: Path) -> None:
    """The journal of another run, or of another flow, is not taken for that of this one."""
    store = Store.open(FileStore(tmp_path), create=True)
    store.objects.create(layout.journal("Flow", RUN_ID), encode_line(BEGAN, 0), sync=False)
    assert store.run("Flow", RUN_ID).context.flow == "Flow"
    for flow, run_id in (("Other", RUN_ID), ("Flow", RUN_ID.replace("123456", "123457"))):
        store.objects.create(layout.journal(flow, run_id), encode_line(BEGAN, 0), sync=False)
        with pytest.raises(StoreDamaged):
            store.run(flow, run_id)


@pytest.mark.parametrize("seconds", [1e300, -1e300, 1e18, float("nan"), float("inf")])
def test_times_that_cannot_be_are_shown_as_unknown(seconds: float) -> None:
    """Whoever is shown a time sees that it is none."""
    assert moment(seconds) == "unknown"
    assert day_tag(seconds) == "date:unknown"
    if not seconds < 0:
        assert duration(seconds) == "unknown"
    with pytest.raises(StoreDamaged, match="which is no time"):
        local_time(seconds)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"format":' * 100_000, b"9" * 100_000])
def test_a_format_that_cannot_be_read_is_damage(tmp_path: Path, content: bytes) -> None:
    """What says which version made the store may be anything, too."""
    (tmp_path / "format.json").write_bytes(content)
    with pytest.raises(StoreDamaged, match="format"):
        Store.open(FileStore(tmp_path), create=False)


def test_a_journal_without_end_is_not_read(tmp_path: Path) -> None:
    """A file with holes says that it is of any size: reading it would take all memory."""
    store = Store.open(FileStore(tmp_path), create=True)
    key = layout.journal("Flow", RUN_ID)
    store.objects.create(key, encode_line(BEGAN, 0), sync=False)
    os.truncate(tmp_path / key, 2**40)
    with pytest.raises(StoreDamaged, match="more than"):
        store.run("Flow", RUN_ID)
    os.truncate(tmp_path / key, len(encode_line(BEGAN, 0)))
    segment = layout.segment("Flow", RUN_ID, "tags.x")
    store.objects.create(segment, b"", sync=False)
    os.truncate(tmp_path / segment, 2**40)
    with pytest.raises(StoreDamaged, match="more than"):
        store.run("Flow", RUN_ID)
    store.objects.delete(segment)
    other = layout.journal("Flow", RUN_ID.replace("123456", "123457"))
    store.objects.create(other, b"no line", sync=False)
    os.truncate(tmp_path / other, 2**40)
    assert [run.status for run in store.runs("Flow")] == ["damaged", "lost"]


@pytest.mark.parametrize("count", [2**63, 10**40, -(10**40)])
def test_a_number_of_any_size_can_be_listed(tmp_path: Path, count: int) -> None:
    """A database has no room for every number that a record may have."""
    store = Store.open(FileStore(tmp_path), create=True)
    ended = RunEnded("succeeded", "", 2.0, count)
    store.objects.create(layout.journal("Flow", RUN_ID), encode_line(BEGAN, 0) + encode_line(ended, 1), sync=False)
    assert [run.status for run in store.runs("Flow")] == ["succeeded"]
