"""Records as lines: where a line says that it stands, and what a line need not say."""

from __future__ import annotations

import zlib

import pytest

from mlp_core.store.records import (
    AttemptFinished,
    Note,
    Record,
    RunBegan,
    RunEnded,
    RunSealed,
    TaskReused,
    decode_line,
    encode_line,
    is_at,
)
from mlp_hookspecs.types import FlowGraph, RunContext, StepOutcome, TaskKey

NOTE = Note("kind", "text", 1.0)
RUN = RunContext("Flow", "19700101-000000-000000")
KEY = "flows/Flow/19700101-000000-000000/segments/note"


def test_a_line_is_what_the_format_says() -> None:
    """Checksum, a space, number, kind and data; and the place where the line stands alone."""
    data = b'"kind":"Note","data":{"kind":"kind","text":"text","time":1.0}}'
    for place, text in (("", b'{"n":12,' + data), ("a/b", b'{"n":12,"at":"a/b",' + data)):
        line = encode_line(NOTE, 12, place)
        assert line == b"%08x %s\n" % (zlib.crc32(text), text)
        assert decode_line(line[:-1]) == (12, NOTE)


def test_a_line_stands_where_it_says() -> None:
    """A line that says its place stands in no other; one that does not say it may stand anywhere."""
    line = encode_line(NOTE, 0, KEY)
    assert is_at(line, KEY)
    assert not any(is_at(line, other) for other in ("", KEY + "2", KEY[:-1], KEY.replace("Flow", "Other")))
    assert is_at(encode_line(NOTE, 0), KEY)
    assert is_at(encode_line(NOTE, 0), "")
    quoted = 'flows/"/note'
    assert is_at(encode_line(NOTE, 0, quoted), quoted)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (
            RunBegan(RUN, 1.0, "host", 1, FlowGraph("Flow", "start", "start", ())),
            {"code": None, "plugins": (), "steps": (), "command": (), "has_driver": True, "lease_seconds": 60},
        ),
        (
            AttemptFinished(TaskKey("start"), 0, StepOutcome("succeeded")),
            {"will_retry": False, "parents": (), "frames": (), "time": 0, "log_digest": ""},
        ),
        (
            TaskReused(TaskKey("start"), "Flow/1/start/0", StepOutcome("succeeded")),
            {"parents": (), "frames": (), "time": 0},
        ),
        (RunEnded("succeeded"), {"message": "", "time": 0, "tasks": 0}),
        (
            RunSealed(RUN, 1.0, RunEnded("succeeded", time=5.0), has_driver=True, size=1, digest="x"),
            {"logs_size": 0, "logs_digest": "", "time": 5.0},
        ),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, dict) else "",
)
def test_what_a_line_leaves_out_has_a_meaning(given: Record, meant: dict[str, object]) -> None:
    """Fields that are not written mean what they meant when the line was written: the format has no other defaults."""
    decoded = decode_line(encode_line(given, 0)[:-1])
    assert decoded is not None
    assert {name: getattr(decoded[1], name) for name in meant} == meant
