"""The journal: whatever was cut off, changed or half written, a reader never takes something wrong for a record."""

from __future__ import annotations

import gc
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlp_core.builtin.file_store import FileStore
from mlp_core.errors import StoreDamaged, StoreError, StoreFull
from mlp_core.store.journal import JournalRead, JournalWriter, parse_journal, read_journal
from mlp_core.store.records import (
    KINDS,
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
    decode_line,
    encode_line,
)
from mlp_hookspecs.types import (
    ArtifactPart,
    ArtifactRef,
    Attachment,
    CodeRef,
    EnvironmentLock,
    EnvironmentSpec,
    Failure,
    FlowGraph,
    ForeachFrame,
    PlannedStep,
    PluginId,
    RunContext,
    StepNode,
    StepOutcome,
    StepPlan,
    TaskKey,
    Transition,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

REF = ArtifactRef(
    "pickle", "sha256-" + "0" * 64, 3, "int", b"\x00\xff\n", (ArtifactPart("p", "d", 1, b"x"),), {"a": "b"}
)
KEY = TaskKey("train", (2, 0), 1, 3)
OUTCOME = StepOutcome(
    "failed",
    {"x": REF},
    ("y",),
    Transition(("end",), 3, items=(REF,)),
    Failure("exception", "no", "ValueError", "Traceback\n", REF),
    ("alpha",),
    (Attachment("card", "main", REF),),
    1.5,
    2.5,
    1024,
    0.25,
    "host",
    7,
)
NODE = StepNode("train", "linear", ("end",))
RECORDS: tuple[Record, ...] = (
    RunBegan(
        RunContext("Flow", "20260101-000000-000000", "me", "user:me", ("a",), None, {"name": "p"}, {"x": 1}),
        1.0,
        "host",
        42,
        FlowGraph("Flow", "train", "end", (NODE,)),
        {"alpha": REF},
        {"alpha": "1"},
        CodeRef("flow", "Flow", "flow.py", "/root", REF, b"\x80"),
        (PluginId("ray", "mlp-plugin-ray", "1.0"),),
        {"ray.address": "auto", "x": [1, None]},
        (PlannedStep(NODE, StepPlan(launcher="local"), {"retry": {"times": 3}}),),
        ("mlp", "run"),
        {"python": "3.11"},
        has_driver=False,
        lease_seconds=2.0,
    ),
    EnvironmentLocked(EnvironmentSpec("uv", {"a": ["b"]}), EnvironmentLock("uv", "text\n", "3.12"), ("train",), 2.0),
    AttemptStarted(KEY, 0, "local", 3.0),
    AttemptFinished(
        KEY,
        0,
        OUTCOME,
        will_retry=True,
        parents=(TaskKey("start"),),
        frames=(ForeachFrame("start", "xs", 2, 5),),
        time=4.0,
    ),
    TaskReused(KEY, "Flow/1/train/0", OUTCOME, (TaskKey("start"),), (), 5.0),
    TagsChanged(("a", "ü"), ("b",), "me", 6.0),
    ObserverFailed(PluginId("x", "y", "1"), "id", "why", 7.0),
    Note("kind", 'text with "quotes"\nand lines\u2028', 8.0),
    RunEnded("succeeded", "", 9.0, 2),
    RunSealed(RunContext("Flow", "20260101-000000-000000"), 1.0, RunEnded("failed", "why"), False, 7, "sha256-0"),  # noqa: FBT003 # as it comes
)

notes = st.builds(Note, st.text(max_size=5), st.text(max_size=30), st.floats(0, 1e10))
keys = st.builds(TaskKey, st.sampled_from("abc"), st.lists(st.integers(0, 99), max_size=2).map(tuple))
finished = st.builds(
    AttemptFinished, keys, st.integers(0, 3), st.builds(StepOutcome, st.just("succeeded")), st.booleans()
)
journals = st.lists(notes | finished, min_size=1, max_size=6)


def lines_of(records: Sequence[Record]) -> bytes:
    """Return a journal's content."""
    return b"".join(encode_line(record, number) for number, record in enumerate(records))


def records_of(read: JournalRead) -> list[Record]:
    """Return the records of a reading, having checked their numbers."""
    assert [number for number, _ in read.records] == list(range(read.expected))
    return [record for _, record in read.records]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_every_kind_of_record_comes_back_equal(record: Record) -> None:
    """A record is equal to what was written, whatever its fields hold."""
    line = encode_line(record, 17)
    assert line.count(b"\n") == 1
    assert decode_line(line[:-1]) == (17, record)


def test_every_kind_is_covered_and_fully_filled() -> None:
    """The examples above are of all kinds and leave no field at its default, so that none is missed."""
    assert {type(record) for record in RECORDS} == set(KINDS.values())
    for record in RECORDS[:1]:
        unset = [f.name for f in attrs.fields(type(record)) if getattr(record, f.name) == f.default]
        assert unset == []


@given(journals)
def test_what_is_written_is_read(records: list[Record]) -> None:
    """A journal reads back record by record, complete and in order."""
    content = lines_of(records)
    read = parse_journal(content, "journal")
    assert records_of(read) == records
    assert (read.offset, read.torn) == (len(content), False)


@given(journals, st.data())
def test_a_cut_journal_reads_as_its_beginning(records: list[Record], data: st.DataObject) -> None:
    """Wherever a journal is cut off, exactly the records before the cut are read."""
    content = lines_of(records)
    cut = data.draw(st.integers(0, len(content)))
    read = parse_journal(content[:cut], "journal")
    whole = content[:cut].count(b"\n")
    assert records_of(read) == records[:whole]
    assert read.torn == (not content[:cut].endswith(b"\n") and cut > 0)


@given(journals, st.data())
def test_every_changed_bit_is_noticed(records: list[Record], data: st.DataObject) -> None:
    """A single changed bit anywhere is damage, in the last record too; no record is ever wrong."""
    content = bytearray(lines_of(records))
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(StoreDamaged, match=r"the journal some/journal is damaged at record \d+ \(byte \d+\)"):
        parse_journal(bytes(content), "some/journal")


@given(journals, st.data())
def test_overwritten_bytes_never_make_a_wrong_record(records: list[Record], data: st.DataObject) -> None:
    """Whatever is written over a part of a journal, it is damage, or nothing more than the beginning is read."""
    content = bytearray(lines_of(records))
    start = data.draw(st.integers(0, len(content) - 1))
    junk = data.draw(st.binary(max_size=80))
    content[start : start + len(junk)] = junk
    try:
        read = parse_journal(bytes(content), "journal")
    except StoreDamaged:
        return
    found = records_of(read)
    assert found == records[: len(found)]


@given(journals, st.lists(st.integers(0, 2000), max_size=5))
def test_reading_on_is_reading_at_once(records: list[Record], stops: list[int]) -> None:
    """A reader that stops and goes on, at any byte while the journal grows, sees what one reading at the end sees."""
    content = lines_of(records)
    offset = expected = 0
    found = []
    for stop in [*sorted(min(stop, len(content)) for stop in stops), len(content)]:
        read = parse_journal(content[offset:stop], "journal", offset, expected)
        found += read.records
        offset, expected = read.offset, read.expected
    assert (found, offset, expected) == (
        list(parse_journal(content, "journal").records),
        len(content),
        len(records),
    )


@given(journals, journals, st.data())
def test_a_journal_is_taken_up_behind_an_unfinished_line(
    before: list[Record], after: list[Record], data: st.DataObject
) -> None:
    """After a failed write a new writer goes on; what was unfinished is no record, and all others are."""
    content = lines_of(before)
    cuts = st.integers(0, len(content))
    memory = MemoryFile(content[: data.draw(cuts)])
    for records in (after, after):
        read = parse_journal(memory.content, "journal")
        JournalWriter(memory, read.expected, torn=read.torn).write(records, sync=True)
    found = records_of(parse_journal(memory.content, "journal"))
    whole = len(found) - 2 * len(after)
    assert found == [*before[:whole], *after, *after]


@given(journals, journals, st.data())
def test_damage_is_noticed_behind_an_unfinished_line_too(
    before: list[Record], after: list[Record], data: st.DataObject
) -> None:
    """The line that was given up does not hide a changed record next to it."""
    content = lines_of(before)
    torn = content[: data.draw(st.integers(1, len(content) - 1))]
    memory = MemoryFile(torn)
    read = parse_journal(torn, "journal")
    JournalWriter(memory, read.expected, torn=read.torn).write(after, sync=True)
    changed = bytearray(memory.content)
    position = data.draw(st.sampled_from([*range(read.offset), *range(len(torn) + 14 * read.torn, len(changed))]))
    changed[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(StoreDamaged):
        parse_journal(bytes(changed), "journal")


def test_zeros_at_the_end_are_an_unfinished_line() -> None:
    """A power cut may leave the file longer than what was written, filled with zeros."""
    content = lines_of(RECORDS)
    for cut in (len(content), len(content) - 1, len(content) - 20):
        read = parse_journal(content[:cut] + bytes(4096), "journal")
        assert len(read.records) == len(RECORDS) - (cut < len(content))
        assert read.torn


def test_a_repeated_or_missing_record_is_damage() -> None:
    """Numbers have no gap and no repetition."""
    first, second, third = (encode_line(RECORDS[7], number) for number in range(3))
    with pytest.raises(StoreDamaged, match="at record 1"):
        parse_journal(first + third, "journal")
    with pytest.raises(StoreDamaged, match="at record 2"):
        parse_journal(first + second + second, "journal")


def test_kinds_of_a_newer_version_are_passed_over() -> None:
    """A record of an unknown kind counts, but is not returned; unknown fields are ignored."""
    texts = [
        b'{"n":0,"kind":"Later","data":{"a":1}}',
        b'{"n":1,"kind":"Note","data":{"kind":"k","text":"t","time":1,"z":2}}',
    ]
    content = b"".join(b"%08x %s\n" % (zlib.crc32(text), text) for text in texts)
    read = parse_journal(content, "journal")
    assert read.records == ((1, Note("k", "t", 1)),)
    assert read.expected == 2


def test_a_journal_in_a_store_is_written_and_read(tmp_path: Path) -> None:
    """The writer appends to the store's file, numbered from where it was told to begin."""
    objects = FileStore(tmp_path)
    writer = JournalWriter(objects.open_append("j"))
    writer.write(RECORDS[:3], sync=False)
    writer.write(RECORDS[3:], sync=True)
    assert writer.number == len(RECORDS)
    before = len(list(Path("/dev/fd").iterdir()))
    writer.close()
    assert len(list(Path("/dev/fd").iterdir())) == before - 1
    assert records_of(read_journal(objects, "j")) == list(RECORDS)
    assert records_of(read_journal(objects, "j")) == list(RECORDS)


def test_a_writer_stops_after_a_failed_write() -> None:
    """After a failure the journal's end is unknown, so that this writer refuses to go on."""
    file = MemoryFile(b"")
    writer = JournalWriter(file)
    file.room = 10
    with pytest.raises(StoreFull):
        writer.write(RECORDS[:1], sync=True)
    file.room = None
    with pytest.raises(StoreError, match="an earlier write"):
        writer.write(RECORDS[:1], sync=True)
    assert len(file.content) == 10


def test_damage_right_behind_the_last_record_is_noticed() -> None:
    """A newline that became another byte is no unfinished line; one that was not written yet, or became zeros, is."""
    content = lines_of(RECORDS[:2])
    with pytest.raises(StoreDamaged, match="at record 1"):
        parse_journal(content[:-1] + b"x", "journal")
    for tail in (content[:-1], content[:-1] + b"\0", content[:-2]):
        assert parse_journal(tail, "journal").torn
    with pytest.raises(StoreDamaged, match=rf"at record 1 \(byte {content.index(bytes([10])) + 1}\)"):
        parse_journal(content[:-3] + b"xx\n", "journal")


def test_every_line_is_checked_by_whoever_asks() -> None:
    """The check is told each line without its newline, and its record, those of newer versions too."""
    text = b'{"n":2,"kind":"Later","data":{"a":1}}'
    content = lines_of(RECORDS[:2]) + b"%08x %s\n" % (zlib.crc32(text), text)
    told: list[object] = []
    parse_journal(content, "journal", check=lambda line, record: told.append((line, record)))
    assert told == list(zip(content.split(b"\n")[:3], [*RECORDS[:2], None], strict=True))


def test_lines_are_signed_before_they_are_written() -> None:
    """What is written is what the signer returns of each line; the numbers go on where the writer was told to begin."""
    file = MemoryFile(b"")
    JournalWriter(file, 7, sign=lambda line: b"signed " + line).write(RECORDS[:2], sync=True)
    assert file.content == b"".join(b"signed " + encode_line(record, 7 + n) for n, record in enumerate(RECORDS[:2]))


@pytest.mark.parametrize("is_enabled", [True, False])
def test_the_garbage_collector_is_left_as_it_was(is_enabled: bool) -> None:  # a parameter of the test
    """It rests while records are made, after damage too, and goes on only where it went before."""
    states: list[bool] = []
    before = gc.isenabled()
    try:
        (gc.enable if is_enabled else gc.disable)()
        parse_journal(lines_of(RECORDS[:1]), "journal", check=lambda _line, _record: states.append(gc.isenabled()))
        states.append(gc.isenabled())
        with pytest.raises(StoreDamaged):
            parse_journal(b"x\n", "journal")
        states.append(gc.isenabled())
    finally:
        (gc.enable if before else gc.disable)()
    assert states == [False, is_enabled, is_enabled]


class MemoryFile:
    """An append file in memory that can be full."""

    def __init__(self, content: bytes) -> None:
        """Make the file."""
        self.content = content
        self.room: int | None = None

    def append(self, data: bytes, *, sync: bool) -> None:
        """Add bytes, as many as there is room for."""
        del sync
        fits = data if self.room is None else data[: self.room - len(self.content)]
        self.content += fits
        if len(fits) < len(data):
            raise StoreFull("no room")

    def close(self) -> None:
        """Do nothing."""
