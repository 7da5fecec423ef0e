"""How the output of attempts is kept: framed chunks of all attempts in one growing file.

A frame is ``magic, CRC-32 of the rest, lengths of attempt id and data, stream, time`` (big endian), then the attempt id
and the data. A frame that fails its checksum is passed over: reading goes on at the next one that does not.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import attrs

from mlp_core.store import layout
from mlp_core.store.growing import GrowingReader

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from mlp_hookspecs.handles import AppendFile, ObjectStore

Stream: TypeAlias = Literal["stdout", "stderr"]

DEFAULT_LIMIT: Final = 32 * 2**20
"""How many bytes of one attempt are kept unless a setting says otherwise."""

_MAGIC: Final = b"\xf5mlp"  # no UTF-8 text contains the first byte
_HEAD: Final = struct.Struct(">4sI")
_BODY: Final = struct.Struct(">HIBd")
_HEADER_SIZE: Final = _HEAD.size + _BODY.size
_STREAMS: Final[tuple[Stream, Stream]] = ("stdout", "stderr")
FLUSH_BYTES: Final = 64 * 1024
"""How much waits for the next flush where an object grows in place."""

PART_BYTES: Final = 2**20
"""The same where each flush makes an object."""

_FLUSH_SECONDS: Final = 1.0
_MAX_CHUNK: Final = 2**20
_WINDOW: Final = 2**20


@attrs.frozen
class LogChunk:
    """A piece of what an attempt printed.

    Attributes
    ----------
    attempt_id : str
        The attempt.
    stream : {"stdout", "stderr"}
        Where it was printed.
    time : float
        Seconds since the epoch when the first of it arrived.
    data : bytes
        The bytes; a character may be split between two chunks.
    """

    attempt_id: str
    stream: Stream
    time: float
    data: bytes


def encode_frame(chunk: LogChunk) -> bytes:
    """Return a chunk as a frame."""
    attempt = chunk.attempt_id.encode()
    body = _BODY.pack(len(attempt), len(chunk.data), _STREAMS.index(chunk.stream), chunk.time) + attempt + chunk.data
    return _HEAD.pack(_MAGIC, zlib.crc32(body)) + body


class LogWriter:
    """The one writer of a log file: joins small prints, and bounds what one attempt may leave.

    Parameters
    ----------
    file : AppendFile
        The log, opened for appending.
    limit : int
        Bytes kept of each attempt; what follows is dropped, and the log says so.
    flush_bytes : int
        How much may wait for the next flush.
    """

    def __init__(self, file: AppendFile, limit: int = DEFAULT_LIMIT, flush_bytes: int = FLUSH_BYTES) -> None:
        """Make the writer."""
        self._flush_bytes = flush_bytes
        self._file = file
        self._limit = limit
        self._kept: dict[str, int] = {}
        self._pending: list[tuple[str, Stream, float, bytearray]] = []
        self._pending_bytes = 0

    def write(self, attempt_id: str, stream: Stream, data: bytes, time: float) -> None:
        """Add what an attempt printed; it is written out with the next flush, by size or after a second of `time`."""
        kept = self._kept.get(attempt_id, 0)
        if kept > self._limit:
            return
        self._kept[attempt_id] = kept + len(data)
        if kept + len(data) > self._limit:
            notice = f"\n[the rest of this attempt's output was dropped: it exceeds {self._limit:,} bytes]\n"
            data = data[: self._limit - kept] + notice.encode()
        last = self._pending[-1] if self._pending else None
        if last is not None and last[0] == attempt_id and last[1] == stream:
            last[3].extend(data)
        else:
            self._pending.append((attempt_id, stream, time, bytearray(data)))
        self._pending_bytes += len(data)
        if self._pending_bytes >= self._flush_bytes or time - self._pending[0][2] >= _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write out what is pending; readers see it then."""
        if not self._pending:
            return
        frames = [
            encode_frame(LogChunk(attempt_id, stream, time, bytes(data[start : start + _MAX_CHUNK])))
            for attempt_id, stream, time, data in self._pending
            for start in range(0, len(data), _MAX_CHUNK)
        ]
        self._pending.clear()
        self._pending_bytes = 0
        self._file.append(b"".join(frames), sync=False)

    def sync(self) -> None:
        """Write out what is pending, and make the log durable."""
        self.flush()
        self._file.append(b"", sync=True)

    def close(self) -> None:
        """Write out what is pending and release the log."""
        try:
            self.flush()
        finally:
            self._file.close()


class LogReader:
    """Reads a log as it grows; remembers where each chunk lies, so that a log is scanned once.

    Parameters
    ----------
    objects : ObjectStore
        The store.
    key : str
        The log's key.
    """

    def __init__(self, objects: ObjectStore, key: str) -> None:
        """Make the reader; nothing is read yet."""
        self._content = GrowingReader(objects, key)
        self._end = 0
        self._frames: list[tuple[str, Stream, float, int, int]] = []

    def refresh(self) -> bool:
        """Look for new chunks, and tell whether there are any."""
        before = len(self._frames)
        size = self._content.size()
        while self._end < size and self._scan(self._content.read(self._end, self._end + _WINDOW * 2), size):
            pass
        return len(self._frames) > before

    def _scan(self, window: bytes, size: int) -> bool:
        """Take up the frames in a window that begins where the last one ended; tell whether to go on."""
        position = 0
        while position + _HEADER_SIZE <= len(window):
            frame = _frame_at(window, position)
            if frame is not None:
                attempt_id, stream, time, length = frame
                data = position + _HEADER_SIZE + len(attempt_id.encode())
                self._frames.append((attempt_id, stream, time, self._end + data, length))
                position = data + length
                continue
            following = _next_intact(window, position + 1)
            if following is None and _may_be_unfinished(window, position):
                break
            if following is None:
                found = window.find(_MAGIC, position + 1)
                following = found if found >= 0 else len(window) - len(_MAGIC) + 1
            position = following
        self._end += position
        return position > 0 and self._end < size

    def chunks(self, attempt_ids: Collection[str] | None = None, start: int = 0) -> Iterator[LogChunk]:
        """Iterate over the chunks seen so far, in the order of writing.

        Parameters
        ----------
        attempt_ids : collection of str or None
            The attempts of interest; None for all.
        start : int
            How many chunks, of whatever attempt, to pass over: `count` at an earlier moment.
        """
        for attempt_id, stream, time, offset, length in self._frames[start:]:
            if attempt_ids is None or attempt_id in attempt_ids:
                yield LogChunk(attempt_id, stream, time, self._content.read(offset, offset + length))

    @property
    def count(self) -> int:
        """How many chunks were seen so far."""
        return len(self._frames)

    def attempt_ids(self) -> list[str]:
        """Return the attempts that chunks were seen of."""
        return list(dict.fromkeys(frame[0] for frame in self._frames))

    def gaps(self) -> Iterator[tuple[int, int, bool]]:
        """Iterate over the ranges of what was seen that hold no intact frame.

        Yields
        ------
        tuple of int, int and bool
            Begin, end, and whether it may be a frame that was not written to its end rather than one that changed.
        """
        ends = [(0, 0)]
        for attempt_id, _, _, offset, length in self._frames:
            ends.append((offset - _HEADER_SIZE - len(attempt_id.encode()), offset + length))
        size = self._content.size()
        ends.append((size, size))
        for (_, start), (end, _) in itertools.pairwise(ends):
            if start < end:
                window = self._content.read(start, min(end, start + _WINDOW))
                # A power cut may leave a file its new length and not its new content.
                ends_in_zeros = end == size and self._content.read(end - 1, end) == b"\0"
                yield start, end, _may_be_unfinished(window, 0) or ends_in_zeros


def _frame_at(window: bytes, position: int) -> tuple[str, Stream, float, int] | None:
    """Return attempt, stream, time and length of the intact frame at a position; None where there is none."""
    magic, checksum = _HEAD.unpack_from(window, position)
    attempt_length, length, stream, time = _BODY.unpack_from(window, position + _HEAD.size)
    end = position + _HEADER_SIZE + attempt_length + length
    if magic != _MAGIC or end > len(window) or stream >= len(_STREAMS):
        return None
    if zlib.crc32(memoryview(window)[position + _HEAD.size : end]) != checksum:
        return None
    name = window[position + _HEADER_SIZE : position + _HEADER_SIZE + attempt_length]
    return name.decode(errors="replace"), _STREAMS[stream], time, length


def _next_intact(window: bytes, start: int) -> int | None:
    """Return where the next intact frame of a window begins."""
    position = window.find(_MAGIC, start)
    while 0 <= position <= len(window) - _HEADER_SIZE:
        if _frame_at(window, position) is not None:
            return position
        position = window.find(_MAGIC, position + 1)
    return None


def _may_be_unfinished(window: bytes, position: int) -> bool:
    """Tell whether what is at a position may be the beginning of a frame of which the rest is not there yet."""
    if len(window) - position < _HEADER_SIZE:
        return _MAGIC.startswith(window[position : position + len(_MAGIC)])
    magic, _ = _HEAD.unpack_from(window, position)
    attempt_length, length, _, _ = _BODY.unpack_from(window, position + _HEAD.size)
    end = position + _HEADER_SIZE + attempt_length + length
    return bool(magic == _MAGIC and length <= _MAX_CHUNK and end > len(window))


def read_logs(
    objects: ObjectStore, flow: str, run_id: str, attempt_ids: Collection[str] | None = None
) -> Iterator[LogChunk]:
    """Iterate over what attempts of a run printed, each attempt's chunks in order.

    Parameters
    ----------
    objects : ObjectStore
        The store.
    flow, run_id : str
        The run.
    attempt_ids : collection of str or None
        The attempts of interest; None for all.
    """
    for key in log_keys(objects, flow, run_id):
        reader = LogReader(objects, key)
        reader.refresh()
        yield from reader.chunks(attempt_ids)


def log_keys(objects: ObjectStore, flow: str, run_id: str) -> Sequence[str]:
    """Return the keys of a run's logs: the driver's, and those of attempts that no driver of ours started."""
    names = objects.children(layout.segments(flow, run_id))
    others = [layout.segment(flow, run_id, name) for name in names if name.startswith(layout.LOG_SEGMENT)]
    return [layout.logs(flow, run_id), *others]
