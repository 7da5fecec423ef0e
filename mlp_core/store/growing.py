"""Objects that grow, on stores whose objects cannot: numbered parts, packed by the dozen, sealed into one in the end.

A part is created only if absent, so that of two writers who both take themselves for the owner one is told so by the
store. The sealed object has the very bytes that an append file would have; readers look for it first.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import weakref
from typing import IO, TYPE_CHECKING, Final

from mlp_core.errors import StoreDamaged, StoreError, StoreFenced, StoreUnavailable
from mlp_core.store import layout

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from mlp_hookspecs.handles import AppendFile, ObjectStore

PACK: Final = 64
"""How many parts make a pack, so that whoever comes later reads one object instead of that many."""

_READERS: Final = 16
_BLOCK: Final = 2**20
_IN_MEMORY: Final = 16 * 2**20


class GrowingWriter:
    """The one writer of a growing object that consists of parts.

    Parameters
    ----------
    objects : ObjectStore
        The store.
    key : str
        The growing object.
    buffers : bool
        Whether what need not be durable waits for what must, or for `flush`.
    content : bytes
        What the parts written so far hold, for a writer who goes on.
    parts : int
        How many those are.
    """

    def __init__(self, objects: ObjectStore, key: str, *, buffers: bool, content: bytes = b"", parts: int = 0) -> None:
        """Make the writer; nothing is written."""
        self._objects = objects
        self._key = key
        self._buffers = buffers
        self._pending = bytearray()
        self._next = parts
        # What the next pack will hold; None for one that was begun by somebody else, unless it is the first.
        self._unpacked: list[bytes] | None = [content] if parts < PACK else None
        self._spool = objects.staging() / f"{layout.parts(key).replace('/', '.')}{id(self):x}"
        self._spool.write_bytes(content)
        self._failed = False

    def append(self, data: bytes, *, sync: bool) -> None:
        """Add bytes; with `sync` they and all before them are there for good once this returns.

        Raises
        ------
        StoreFenced
            Where another writer has made the next part.
        StoreError
            Where the store failed. Whether the part was made is unknown, so that this writer refuses everything else.
        """
        if self._failed:
            raise StoreUnavailable(f"an earlier write to {self._key} in {self._objects.url} failed")
        self._pending += data
        if sync or not self._buffers:
            self.flush()

    def flush(self) -> None:
        """Write out what is pending; raises as `append`."""
        if not self._pending:
            return
        data = bytes(self._pending)
        self._failed = True
        if not self._objects.create(layout.part(self._key, 0, self._next), data, sync=True):
            raise StoreFenced(
                f"another process has taken over {self._key} in {self._objects.url}",
                hint="the run goes on where it was resumed; see: mlp list",
            )
        self._failed = False
        self._pending.clear()
        with self._spool.open("ab") as file:
            file.write(data)
        if self._unpacked is not None:
            self._unpacked.append(data)
        self._next += 1
        if self._next % PACK == 0:
            self._pack()

    def _pack(self) -> None:
        """Make a pack of the last parts. Readers can do without, so that a failure is none."""
        parts, self._unpacked = self._unpacked, []
        if parts is not None:
            with contextlib.suppress(StoreError):
                self._objects.create(layout.part(self._key, 1, self._next // PACK - 1), b"".join(parts), sync=True)

    def seal(self) -> bool:
        """Make the whole of it one object, and tell whether that was done: readers can do without."""
        self.flush()
        try:
            self._objects.adopt(self._spool, self._key, sync=True)
        except StoreError:
            return False
        return True

    def close(self) -> None:
        """Let go of it; what is pending is dropped."""
        self._spool.unlink(missing_ok=True)


def open_growing(objects: ObjectStore, key: str, *, buffers: bool) -> AppendFile:
    """Open a growing object for its one writer, who goes on at its end.

    Parameters
    ----------
    objects : ObjectStore
        The store.
    key : str
        The object.
    buffers : bool
        As for `GrowingWriter`; an append file needs no such help.
    """
    file = objects.open_append(key)
    if file is not None:
        return file
    reader = GrowingReader(objects, key)
    content = reader.read()
    return GrowingWriter(objects, key, buffers=buffers, content=content, parts=reader.parts)


def can_append(objects: ObjectStore) -> bool:
    """Tell whether a store has append files, by its format's object, which is there in every store."""
    file = objects.open_append(layout.FORMAT)
    if file is None:
        return False
    file.close()
    return True


def read_growing(objects: ObjectStore, key: str, offset: int = 0) -> bytes:
    """Return what a growing object holds from an offset on; FileNotFoundError where there is no such object."""
    try:
        return objects.read(key, offset)
    except FileNotFoundError:
        reader = GrowingReader(objects, key)
        content = reader.read(offset)
        if not reader.exists:
            raise
        return content


class GrowingReader:
    """Reads a growing object, whatever it consists of, and what is added later.

    What was read of parts is kept, in a temporary file where it is much, so that nothing is asked for twice.

    Parameters
    ----------
    objects : ObjectStore
        The store.
    key : str
        The object.

    Attributes
    ----------
    parts : int
        How many parts were read.
    exists : bool
        Whether there was such an object when it was last looked at.
    """

    def __init__(self, objects: ObjectStore, key: str) -> None:
        """Make the reader; nothing is read yet."""
        self._objects = objects
        self._key = key
        self._is_one = False
        self._content = _Kept()
        self._block: tuple[int, bytes] = (0, b"")
        self.parts = 0
        self.exists = False

    def size(self) -> int:
        """Return how many bytes there are by now.

        Raises
        ------
        StoreDamaged
            Where a part is missing.
        """
        if not self._is_one and not self.parts:
            self._look()
        elif not self._is_one:
            self._read_next()
        if not self._is_one:
            return self._content.size
        try:
            return self._objects.info(self._key).size
        except FileNotFoundError:  # removed
            self.exists = False
            return 0

    def read(self, start: int = 0, end: int | None = None) -> bytes:
        """Return the bytes of a range, of those that were there when `size` was last called."""
        if not self._is_one and not self.parts:
            self._look()
        if not self._is_one:
            return self._content.read(start, end)
        if end is None or self._objects.local_path(self._key) is not None:
            return self._objects.read(self._key, start, end)
        first, block = self._block
        if not first <= start <= end <= first + len(block):
            first, block = start, self._objects.read(self._key, start, max(end, start + _BLOCK))
            self._block = (first, block)
        return block[start - first : end - first]

    def _look(self) -> None:
        """Find out what there is: one object, or parts."""
        try:
            self._objects.info(self._key)
            self._is_one = self.exists = True
        except FileNotFoundError:
            self._read_parts()

    def _read_parts(self) -> None:
        """Read all parts that are there: packs where there are some, then the parts since."""
        found = {info.key for info in self._objects.list(layout.parts(self._key))}
        packs = _count(found, lambda number: layout.part(self._key, 1, number), 0)
        count = _count(found, lambda number: layout.part(self._key, 0, number), packs * PACK)
        keys = [layout.part(self._key, 1, number) for number in range(packs)]
        keys += [layout.part(self._key, 0, number) for number in range(packs * PACK, count)]
        numbers = [int(key.rpartition("/")[2]) for key in found if key.startswith(layout.part(self._key, 0, 0)[:-8])]
        if any(number >= count for number in numbers):
            # A reader who lists while parts are made may miss none: each is there before the next one.
            raise StoreDamaged(
                f"part {count} of {self._key} is missing from {self._objects.url}",
                hint="what was written before it is intact; see: mlp fsck",
            )
        for content in read_all(self._objects, keys):
            self._content.add(content)
        self.parts = count
        self.exists = count > 0

    def _read_next(self) -> None:
        """Read the parts made since, by their numbers. The sealed object has no more than they."""
        with contextlib.suppress(FileNotFoundError):
            while True:
                self._content.add(self._objects.read(layout.part(self._key, 0, self.parts)))
                self.parts += 1


class _Kept:
    """Bytes that are added to: in memory while they are few, then in a temporary file that goes with this."""

    def __init__(self) -> None:
        """Make it, empty."""
        self.size = 0
        self._memory = bytearray()
        self._file: IO[bytes] | None = None

    def add(self, content: bytes) -> None:
        """Add bytes."""
        self.size += len(content)
        self._memory += content
        if self.size > _IN_MEMORY:
            if self._file is None:
                import tempfile

                self._file = tempfile.TemporaryFile()  # noqa: SIM115 # closed by the next line, in the end
                weakref.finalize(self, self._file.close)
            self._file.seek(0, os.SEEK_END)
            self._file.write(self._memory)
            self._memory.clear()

    def read(self, start: int, end: int | None) -> bytes:
        """Return the bytes of a range."""
        if self._file is None:
            return bytes(self._memory[start:end])
        self._file.seek(start)
        return self._file.read(-1 if end is None else max(0, end - start))


def _count(found: Collection[str], key: Callable[[int], str], start: int) -> int:
    """Return the first number from `start` on whose key is not there."""
    return next(number for number in itertools.count(start) if key(number) not in found)


def read_all(objects: ObjectStore, keys: Sequence[str]) -> Iterator[bytes]:
    """Iterate over the contents of objects in order, of which a few are read at once where each takes its time."""
    if len(keys) < 2 or objects.local_path(keys[0]) is not None:  # noqa: PLR2004 # one alone waits for nobody
        yield from map(objects.read, keys)
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_READERS, thread_name_prefix="mlp-read") as pool:
        for start in range(0, len(keys), _READERS):
            yield from pool.map(objects.read, keys[start : start + _READERS])
