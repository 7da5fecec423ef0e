"""Logs: what attempts printed comes back in order, bounded, while it grows, and whatever was cut off or changed."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlp_core.builtin.file_store import FileStore
from mlp_core.store import layout
from mlp_core.store.logs import LogChunk, LogReader, LogWriter, encode_frame, log_keys, read_logs
from mlp_hookspecs.handles import ObjectInfo
from mlp_hookspecs.types import TaskKey

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RUN = ("Flow", "20260101-000000-000000")
KEY = layout.logs(*RUN)

chunks = st.lists(
    st.builds(
        LogChunk,
        st.sampled_from(["start/0/0", "träin/1/0", ""]),
        st.sampled_from(["stdout", "stderr"]),
        st.floats(0, 1e10),
        st.binary(max_size=40) | st.just(b"\xf5mlp"),
    ),
    min_size=1,
    max_size=5,
)


class MemoryObjects:
    """A store of one object that is whatever a test says."""

    def __init__(self, content: bytes) -> None:
        """Make the store."""
        self.content = content

    def info(self, key: str) -> ObjectInfo:
        """Describe the object."""
        return ObjectInfo(key, len(self.content), 0.0)

    def local_path(self, _key: str) -> None:
        """Have no files."""

    def read(self, _key: str, start: int = 0, end: int | None = None) -> bytes:
        """Return a range of the object."""
        return self.content[start:end]


def chunks_in(content: bytes) -> list[LogChunk]:
    """Return the chunks in a log's content."""
    reader = LogReader(MemoryObjects(content), "log")  # type: ignore[arg-type] # it needs no more of a store
    reader.refresh()
    return list(reader.chunks())


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[FileStore]:
    """A store on a local folder."""
    opened = FileStore(tmp_path / "store")
    yield opened
    opened.close()


@given(chunks)
def test_what_was_written_is_read(written: list[LogChunk]) -> None:
    """Frames come back as they went in, whatever their bytes."""
    assert chunks_in(b"".join(map(encode_frame, written))) == written


@given(chunks, st.data())
def test_a_cut_log_reads_as_its_beginning(written: list[LogChunk], data: st.DataObject) -> None:
    """A dead writer's last complete chunk survives; the unfinished one is not shown."""
    frames = list(map(encode_frame, written))
    content = b"".join(frames)
    cut = data.draw(st.integers(0, len(content)))
    whole = sum(sum(map(len, frames[: number + 1])) <= cut for number in range(len(frames)))
    assert chunks_in(content[:cut]) == written[:whole]


@given(chunks, st.data())
def test_a_changed_bit_costs_one_chunk(written: list[LogChunk], data: st.DataObject) -> None:
    """A damaged chunk is passed over, and all others are read; none is shown that nobody wrote."""
    frames = list(map(encode_frame, written))
    number = data.draw(st.integers(0, len(frames) - 1))
    changed = bytearray(frames[number])
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    content = b"".join([*frames[:number], bytes(changed), *frames[number + 1 :]])
    assert chunks_in(content) == [*written[:number], *written[number + 1 :]]


@given(chunks, st.lists(st.integers(0, 500), max_size=5))
def test_reading_on_is_reading_at_once(written: list[LogChunk], stops: list[int]) -> None:
    """A reader that looks again while the log grows sees every chunk once."""
    content = b"".join(map(encode_frame, written))
    memory = MemoryObjects(b"")
    reader = LogReader(memory, "log")  # type: ignore[arg-type] # as above
    found: list[LogChunk] = []
    for stop in [*sorted(stops), len(content)]:
        memory.content = content[:stop]
        seen = reader.count
        assert reader.refresh() == (reader.count > seen)
        found += reader.chunks(start=seen)
    assert found == written


def test_a_log_of_many_windows_is_read(objects: FileStore) -> None:
    """A log larger than what is read at once comes back whole, also with a large chunk that is damaged."""
    writer = LogWriter(objects.open_append("log"), limit=2**30)
    for number in range(300):
        writer.write(f"train/{number}/0", "stdout", bytes([number % 251]) * 20_000, float(number))
    writer.write("big/0/0", "stdout", b"b" * 2_500_000, 300.0)
    writer.write("last/0/0", "stderr", b"end", 301.0)
    writer.close()
    reader = LogReader(objects, "log")
    assert reader.refresh()
    assert not reader.refresh()
    assert reader.attempt_ids() == [*(f"train/{number}/0" for number in range(300)), "big/0/0", "last/0/0"]
    assert b"".join(chunk.data for chunk in reader.chunks({"big/0/0"})) == b"b" * 2_500_000
    assert [len(chunk.data) for chunk in reader.chunks({"train/7/0", "last/0/0"})] == [20_000, 3]
    content = bytearray(objects.read("log"))
    content[3_000_000] ^= 1
    damaged = chunks_in(bytes(content))
    assert len(damaged) == reader.count - 1
    assert damaged[-1].data == b"end"


def test_small_prints_are_joined_and_written_by_size_time_or_flush(objects: FileStore) -> None:
    """Readers see what was printed after a second, after much of it, and after a flush; not before."""
    writer = LogWriter(objects.open_append(KEY))

    def seen() -> list[tuple[str, bytes]]:
        return [(chunk.stream, chunk.data) for chunk in read_logs(objects, *RUN)]

    writer.write("a/0/0", "stdout", b"one ", 0.0)
    writer.write("a/0/0", "stdout", b"two ", 0.5)
    assert seen() == []
    writer.write("a/0/0", "stderr", b"err", 1.0)
    assert seen() == [("stdout", b"one two "), ("stderr", b"err")]
    writer.write("a/0/0", "stdout", b"x" * 70_000, 1.1)
    assert len(seen()) == 3
    writer.write("a/0/0", "stdout", b"end", 1.2)
    writer.flush()
    assert seen()[3:] == [("stdout", b"end")]
    writer.close()


def test_what_one_attempt_leaves_is_bounded(objects: FileStore) -> None:
    """Beyond the limit the log says once that the rest was dropped; other attempts are not affected."""
    writer = LogWriter(objects.open_append(KEY), limit=10)
    for _ in range(5):
        writer.write("a/0/0", "stdout", b"123456", 0.0)
    writer.write("b/0/0", "stdout", b"1234567890", 0.0)
    writer.close()
    text = b"".join(chunk.data for chunk in read_logs(objects, *RUN, {"a/0/0"}))
    assert text == b"1234561234\n[the rest of this attempt's output was dropped: it exceeds 10 bytes]\n"
    assert [chunk.data for chunk in read_logs(objects, *RUN, {"b/0/0"})] == [b"1234567890"]


def test_other_writers_logs_are_read_too(objects: FileStore) -> None:
    """An attempt that no driver of ours started has a segment of its own."""
    chunk = LogChunk("train/1/0", "stdout", 1.0, b"from elsewhere")
    name = layout.log_segment(TaskKey("train", (1,)), 0)
    objects.create(layout.segment(*RUN, name), encode_frame(chunk), sync=True)
    objects.create(layout.segment(*RUN, "tags-1"), b"", sync=True)
    assert list(log_keys(objects, *RUN)) == [KEY, layout.segment(*RUN, "log.train.1.0")]
    assert list(read_logs(objects, *RUN)) == [chunk]


def test_a_run_that_printed_nothing_has_no_log(objects: FileStore) -> None:
    """No log is no error."""
    assert list(read_logs(objects, *RUN)) == []


def test_zeros_at_the_end_are_unfinished() -> None:
    """What a power cut has left of the last frame is told from one that changed: a part of it, zeros, or both."""
    first, second = (encode_frame(LogChunk("start/0/0", "stdout", 1.0, text)) for text in (b"one", b"two"))
    for left in (second[:10], bytes(len(second)), second[:10] + bytes(len(second) - 10)):
        reader = LogReader(MemoryObjects(first + left), "log")  # type: ignore[arg-type] # as above
        reader.refresh()
        assert list(reader.gaps()) == [(len(first), len(first) + len(left), True)]
    reader = LogReader(MemoryObjects(first[:-1] + b"x" + second), "log")  # type: ignore[arg-type] # as above
    reader.refresh()
    assert list(reader.gaps()) == [(0, len(first), False)]


@pytest.mark.parametrize(
    ("left", "is_unfinished"),
    [(b"hello", False), (b"\xf5m", True), (b"\xf5mlp\1", True), (b"\xf5mlp" + bytes(18) + b"\1", False)],
)
def test_what_is_too_short_for_a_frame_is_unfinished_only_if_it_begins_like_one(
    left: bytes,
    is_unfinished: bool,  # a parameter of the test
) -> None:
    """Otherwise something else lies there."""
    reader = LogReader(MemoryObjects(left), "log")  # type: ignore[arg-type] # as above
    assert not reader.refresh()
    assert list(reader.gaps()) == [(0, len(left), is_unfinished)]


class RecordingFile:
    """A log that takes down what is done with it."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.appended: list[tuple[bytes, bool]] = []
        self.is_closed = False

    def append(self, data: bytes, *, sync: bool) -> None:
        """Take down bytes, and whether they are to be durable."""
        self.appended.append((data, sync))

    def close(self) -> None:
        """Take it down."""
        self.is_closed = True


def test_a_writer_waits_for_enough_and_makes_durable_what_it_is_asked_to() -> None:
    """A flush comes with the very byte that is enough, each time anew; sync and close leave nothing behind."""
    file = RecordingFile()
    writer = LogWriter(file, flush_bytes=4)

    def frame(data: bytes, time: float) -> bytes:
        return encode_frame(LogChunk("a/0/0", "stdout", time, data))

    for _ in range(2):
        writer.write("a/0/0", "stdout", b"123", 1000.0)
        assert file.appended == []
        writer.write("a/0/0", "stdout", b"4", 1000.5)
        assert file.appended == [(frame(b"1234", 1000.0), False)]
        file.appended.clear()
    writer.write("a/0/0", "stdout", b"5", 1001.0)
    writer.sync()
    assert file.appended == [(frame(b"5", 1001.0), False), (b"", True)]
    writer.write("a/0/0", "stdout", b"6", 1002.0)
    writer.close()
    assert file.appended[2:] == [(frame(b"6", 1002.0), False)]
    assert file.is_closed


def test_an_attempt_may_fill_its_limit() -> None:
    """What fits to the byte is kept without a notice, which comes with the next byte."""
    file = RecordingFile()
    writer = LogWriter(file, limit=4, flush_bytes=1)
    for data in (b"1234", b"5", b"6"):
        writer.write("a/0/0", "stdout", data, 0.0)
    notice = b"\n[the rest of this attempt's output was dropped: it exceeds 4 bytes]\n"
    assert [chunk.data for chunk in chunks_in(b"".join(data for data, _ in file.appended))] == [b"1234", notice]


@pytest.mark.parametrize("garbage", [b"x", b"x" * 30])
def test_a_frame_behind_garbage_is_read_however_it_grows(garbage: bytes) -> None:
    """Wherever a look at the log ended, the next one finds the frame when it is complete."""
    chunk = LogChunk("a/0/0", "stdout", 1.0, b"text")
    content = garbage + encode_frame(chunk)
    for seen in range(len(content)):
        objects = MemoryObjects(content[:seen])
        reader = LogReader(objects, "log")  # type: ignore[arg-type] # it needs no more of a store
        assert not reader.refresh()
        objects.content = content
        assert reader.refresh()
        assert list(reader.chunks()) == [chunk]


@pytest.mark.parametrize("data", [b"", b"text"])
def test_a_frame_behind_one_that_claims_more_than_there_is_is_read(data: bytes) -> None:
    """A length that changed hides nothing, not even the smallest frame."""
    changed = bytearray(encode_frame(LogChunk("", "stdout", 1.0, b"first")))
    changed[10:14] = (1000).to_bytes(4, "big")
    following = LogChunk("", "stderr", 2.0, data)
    assert chunks_in(bytes(changed) + encode_frame(following)) == [following]


def test_a_stream_that_is_none_is_passed_over() -> None:
    """A frame with its right checksum and a stream that nobody knows hides no other."""
    body = struct.pack(">HIBd", 0, 0, 2, 0.0)
    known = LogChunk("a/0/0", "stdout", 1.0, b"text")
    assert chunks_in(struct.pack(">4sI", b"\xf5mlp", zlib.crc32(body)) + body + encode_frame(known)) == [known]
