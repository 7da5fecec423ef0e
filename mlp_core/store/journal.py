"""How a run's journal is written and read: numbered, checksummed lines, of which only the last may be unfinished.

A reader trusts nothing but the checksums and the numbers. What follows the last newline was never acknowledged and is
dropped (a power cut may have left zeros there). A line that fails is damage, unless a writer who took up the journal
after a failed write has marked it as unfinished; the next record then has the number that the line would have had.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs

from mlp_core.errors import StoreDamaged, StoreError
from mlp_core.store.growing import read_growing
from mlp_core.store.records import Record, decode_line, encode_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mlp_hookspecs.handles import AppendFile, ObjectStore

LineCheck: TypeAlias = "Callable[[bytes, Record | None], None]"
"""Is told of each line that is read."""

_UNFINISHED: Final = b" ~ unfinished"
"""What is put behind an unfinished line, so that it can never pass for a record."""


@attrs.frozen(eq=False, repr=False)
class JournalRead:
    """What a journal said from some offset on.

    Attributes
    ----------
    records : tuple of (int, record)
        Number and record, in order. Kinds that only a newer version knows are left out.
    offset : int
        Where to go on reading: the end of the last record.
    expected : int
        The number of the next record.
    torn : bool
        Whether an unfinished line follows; normal while somebody writes.
    """

    records: tuple[tuple[int, Record], ...]
    offset: int
    expected: int
    torn: bool


def read_journal(
    objects: ObjectStore, key: str, offset: int = 0, expected: int = 0, *, check: LineCheck | None = None
) -> JournalRead:
    """Read a journal to its end.

    Parameters
    ----------
    objects : ObjectStore
        The store.
    key : str
        The journal's key.
    offset : int
        Where to begin: 0, or where an earlier read ended.
    expected : int
        The number of the record at the offset.
    check : callable or None
        Called with each line, without its newline, and its record.

    Returns
    -------
    JournalRead
        The records from there on.

    Raises
    ------
    FileNotFoundError
        Where there is no such journal.
    StoreDamaged
        Where a record is not what was written; the message names journal and line.
    """
    content = read_growing(objects, key, offset)
    return parse_journal(content, f"{key} in {objects.url}", offset, expected, check=check)


def parse_journal(
    content: bytes, place: str, offset: int = 0, expected: int = 0, *, check: LineCheck | None = None
) -> JournalRead:
    """Return the records in a journal's content from an offset on; as `read_journal`."""
    with _without_collection():
        return _parse(content, place, (offset, expected), check)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Hold the garbage collector, which would go over and over the records made here, none of them garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _parse(content: bytes, place: str, begin: tuple[int, int], check: LineCheck | None) -> JournalRead:
    """Return the records in a journal's content, which begins at an offset and a number."""
    offset, expected = begin
    *lines, tail = content.split(b"\n")
    records: list[tuple[int, Record]] = []
    end = position = offset
    for line in lines:
        position += len(line) + 1
        decoded = decode_line(line)
        if decoded is None and line.endswith(_UNFINISHED):
            continue
        if decoded is None or decoded[0] != expected:
            raise _damaged(place, expected, end)
        number, record = decoded
        if check is not None:
            check(line, record)
        if record is not None:
            records.append((number, record))
        expected += 1
        end = position
    # A whole record followed by something else than a newline is not the beginning of a line: the newline was changed.
    if decode_line(tail[:-1]) is not None and not tail.endswith(b"\0"):
        raise _damaged(place, expected, end)
    return JournalRead(tuple(records), end, expected, torn=bool(tail))


def _damaged(place: str, number: int, offset: int) -> StoreDamaged:
    """Return the error of a record that is not what was written."""
    return StoreDamaged(
        f"the journal {place} is damaged at record {number} (byte {offset})",
        hint="the records before it are intact; restore the file from a backup, or remove the run's folder",
    )


class JournalWriter:
    """The one writer of a journal.

    Parameters
    ----------
    file : AppendFile
        The journal, opened for appending.
    number : int
        The number of the next record.
    torn : bool
        Whether the journal ends in an unfinished line.
    sign : callable or None
        Returns each line as it is to be written.
    """

    def __init__(
        self,
        file: AppendFile,
        number: int = 0,
        *,
        torn: bool = False,
        sign: Callable[[bytes], bytes] | None = None,
    ) -> None:
        """Make the writer."""
        self._sign = sign
        self._file = file
        self._number = number
        self._torn = torn
        self._failed = False

    @property
    def number(self) -> int:
        """The number of the next record."""
        return self._number

    def write(self, records: Sequence[Record], *, sync: bool) -> None:
        """Append records; with `sync` they and all before them survive a power cut once this returns.

        Raises
        ------
        StoreError
            Where they could not all be written. Some may have been: whoever wants to go on makes a new writer from
            what the journal says.
        """
        if self._failed:
            raise StoreError("an earlier write to the journal failed, so nothing more is written to it")
        lines = [encode_line(record, number) for number, record in enumerate(records, self._number)]
        if self._sign is not None:
            lines = [self._sign(line) for line in lines]
        if self._torn:
            lines.insert(0, _UNFINISHED + b"\n")
        self._failed = True
        self._file.append(b"".join(lines), sync=sync)
        self._failed = self._torn = False
        self._number += len(records)

    def close(self) -> None:
        """Release the journal."""
        self._file.close()
