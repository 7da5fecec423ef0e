"""An object store in memory that knows what would survive: it can lose its process, or its power, at any operation."""

from __future__ import annotations

import errno
import itertools
import tempfile
import threading
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from mlp_hookspecs.handles import ObjectInfo

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence

_NOT_EVEN_A_NAME = -1

_numbers = itertools.count()


class ProcessDied(BaseException):
    """The process that used the store died here: nothing of it may go on, so that no handler may hold it."""


@attrs.define
class _Object:
    """An object, and how much of it would survive a power cut.

    ``survivor`` is what is found under its name if the name itself is lost: what an earlier object had.
    """

    data: bytearray
    modified_at: float
    durable: int = _NOT_EVEN_A_NAME
    survivor: bytes | None = None
    grows: bool = False

    def surviving(self) -> bytes | None:
        """Return what is durable."""
        return self.survivor if self.durable == _NOT_EVEN_A_NAME else bytes(self.data[: self.durable])


class MemoryStore:
    """An `ObjectStore` in memory.

    Parameters
    ----------
    time : callable
        Returns the time, for the objects' own.
    appends : bool
        Whether there are objects that grow, and locks, as on a disk. A bucket has neither; what it has is durable.
    before : callable or None
        Told of each operation and its key before it is done; what it raises is what becomes of it.
    """

    def __init__(
        self,
        time: Callable[[], float],
        *,
        appends: bool = True,
        before: Callable[[str, str], None] | None = None,
    ) -> None:
        """Make an empty store."""
        self._time = time
        self._url = f"memory://simulated-{next(_numbers)}"
        self.appends = appends
        self._before = before
        self._objects: dict[str, _Object] = {}
        self._removed: dict[str, bytes] = {}
        self._locked: set[str] = set()
        self._mutex = threading.RLock()
        self._staging: tempfile.TemporaryDirectory[str] | None = None

    # ------------------------------------------------------------------------------------------- the store

    @property
    def url(self) -> str:
        """A URL that tells where errors come from."""
        return self._url

    @property
    def creates_once(self) -> bool:
        """Yes."""
        return True

    def create(self, key: str, data: bytes, *, sync: bool) -> bool:
        """Write an object if absent."""
        with self._operation("create", key):
            if key in self._objects:
                return False
            self._put(key, data, sync=sync)
            return True

    def replace(self, key: str, data: bytes, *, sync: bool) -> None:
        """Write an object in the place of an earlier one."""
        with self._operation("replace", key):
            self._put(key, data, sync=sync)

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Return a range."""
        with self._operation("read", key):
            return bytes(self._get(key).data[start : None if end is None else max(start, end)])

    def download(self, key: str, target: Path) -> None:
        """Copy an object to a new file."""
        with self._operation("download", key):
            content = bytes(self._get(key).data)
        with target.open("xb") as file:
            file.write(content)

    def info(self, key: str) -> ObjectInfo:
        """Return size and time."""
        with self._operation("info", key):
            found = self._get(key)
            return ObjectInfo(key, len(found.data), found.modified_at)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Iterate over the objects below a prefix."""
        with self._operation("list", prefix):
            found = [(key, each) for key, each in self._objects.items() if key.startswith(prefix)]
        return iter([ObjectInfo(key, len(each.data), each.modified_at) for key, each in found])

    def children(self, prefix: str) -> Sequence[str]:
        """Return the names below a prefix."""
        with self._operation("children", prefix):
            return sorted({key[len(prefix) :].partition("/")[0] for key in self._objects if key.startswith(prefix)})

    def delete(self, key: str) -> None:
        """Remove an object; a power cut may bring it back."""
        with self._operation("delete", key):
            found = self._objects.pop(key, None)
            content = None if found is None else found.surviving()
            if content is not None:
                self._removed[key] = content

    def staging(self) -> Path:
        """Return a folder for files that are to be adopted."""
        with self._mutex:
            if self._staging is None:
                self._staging = tempfile.TemporaryDirectory(prefix="mlp-memory-store-")
            return Path(self._staging.name)

    def adopt(self, source: Path, key: str, *, sync: bool) -> None:
        """Move a file in."""
        with self._operation("adopt", key):
            self._put(key, source.read_bytes(), sync=sync)
            source.unlink()

    def sync(self, keys: Sequence[str]) -> None:
        """Make objects durable, and what was removed beside them gone for good, as a folder's sync does."""
        for key in keys:
            with self._operation("sync", key):
                found = self._get(key)
                found.durable = len(found.data)
                folder = key.rpartition("/")[0]
                self._removed = {k: left for k, left in self._removed.items() if k.rpartition("/")[0] != folder}

    def local_path(self, key: str) -> Path | None:
        """Return None: nothing here is a file."""
        del key
        return None

    def open_append(self, key: str) -> _AppendFile | None:
        """Open an object that grows."""
        if not self.appends:
            return None
        with self._operation("open_append", key):
            if key not in self._objects:
                self._objects[key] = _Object(bytearray(), self._time(), grows=True)
            self._objects[key].grows = True
            return _AppendFile(self, key)

    @contextmanager
    def _lock(self, key: str) -> Iterator[bool]:
        """Hold a lock."""
        with self._operation("lock", key):
            is_free = key not in self._locked
            self._locked.add(key)
        try:
            yield is_free
        finally:
            if is_free:
                self._locked.discard(key)

    def lock(self, key: str) -> AbstractContextManager[bool] | None:
        """Return a lock."""
        return self._lock(key) if self.appends else None

    def is_locked(self, key: str) -> bool:
        """Tell whether somebody holds a lock."""
        with self._operation("is_locked", key):
            return key in self._locked

    def close(self) -> None:
        """Remove the folder for files."""
        if self._staging is not None:
            self._staging.cleanup()
            self._staging = None

    # ------------------------------------------------------------------------------------------ the harm

    def after_kill(self) -> MemoryStore:
        """Return the store as the next process finds it: whole, and its locks free."""
        found = MemoryStore(self._time, appends=self.appends)
        found._url = self._url
        found._objects = {key: attrs.evolve(each, data=bytearray(each.data)) for key, each in self._objects.items()}
        found._removed = dict(self._removed)
        return found

    def after_power_cut(self, rng: random.Random) -> MemoryStore:
        """Return the store as it may be after a power cut: what was not made durable is there, or not, or in part."""
        found = MemoryStore(self._time, appends=self.appends)
        found._url = self._url
        for key, content in self._removed.items():
            if key not in self._objects and rng.random() < 0.5:  # noqa: PLR2004 # either may be
                found._keep(key, content)
        for key, each in self._objects.items():
            content_left = _cut(each, rng)
            if content_left is not None:
                found._keep(key, content_left)
        return found

    def durable(self, key: str) -> bytes:
        """Return what would survive of an object; empty where nothing would."""
        found = self._objects.get(key)
        return b"" if found is None else found.surviving() or b""

    def content(self, key: str) -> bytearray:
        """Return an object's content itself, for whoever damages it."""
        return self._objects[key].data

    def keys(self) -> Sequence[str]:
        """Return the keys of all objects, sorted."""
        return sorted(self._objects)

    # --------------------------------------------------------------------------------------------- within

    @contextmanager
    def _operation(self, name: str, key: str) -> Iterator[None]:
        """Tell of an operation, and do it alone."""
        with self._mutex:
            if self._before is not None:
                self._before(name, key)
            yield

    def _get(self, key: str) -> _Object:
        """Return an object; FileNotFoundError where there is none."""
        try:
            return self._objects[key]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "no such object", key) from None

    def _put(self, key: str, data: bytes, *, sync: bool) -> None:
        """Write an object."""
        earlier = self._objects.get(key)
        survivor = self._removed.pop(key, None) if earlier is None else earlier.surviving()
        durable = len(data) if sync or not self.appends else _NOT_EVEN_A_NAME
        self._objects[key] = _Object(bytearray(data), self._time(), durable, survivor)

    def _keep(self, key: str, content: bytes) -> None:
        """Have an object that has been there for ever."""
        self._objects[key] = _Object(bytearray(content), self._time(), len(content))


def _cut(found: _Object, rng: random.Random) -> bytes | None:
    """Return what a power cut leaves of an object; None where nothing."""
    if found.durable == len(found.data):
        return bytes(found.data)
    if found.durable == _NOT_EVEN_A_NAME and rng.random() < 0.5:  # noqa: PLR2004 # either may be
        return found.survivor
    if not found.grows:
        return bytes(found.data)  # its content is durable before its name appears
    end = rng.randint(max(0, found.durable), len(found.data))
    # A file may have its new length before its new content.
    zeros = rng.choice((0, 0, len(found.data) - end))
    return bytes(found.data[:end]) + bytes(zeros)


class _AppendFile:
    """An object that grows."""

    def __init__(self, store: MemoryStore, key: str) -> None:
        """Open it."""
        self._store = store
        self._key = key
        self._size = len(store._get(key).data)

    def append(self, data: bytes, *, sync: bool) -> None:
        """Add bytes."""
        with self._store._operation("append", self._key):
            found = self._store._get(self._key)
            if len(found.data) != self._size:
                raise OSError(errno.ESTALE, "somebody else has written to it", self._key)
            found.data += data
            self._size += len(data)
            found.modified_at = self._store._time()
        if sync:
            with self._store._operation("append_sync", self._key):
                found.durable = len(found.data)

    def close(self) -> None:
        """Release nothing."""
