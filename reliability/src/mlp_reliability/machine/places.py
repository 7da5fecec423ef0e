"""Where a machine's stores lie, and what can be done to them from outside."""

from __future__ import annotations

import itertools
import os
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from mlp_core.builtin.file_store import FileStore
from mlp_core.builtin.fsspec_store.store import FsspecStore
from mlp_core.store import layout
from mlp_reliability.memory import MemoryStore

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from mlp_hookspecs.handles import ObjectStore

LONG_AGO: Final = 10 * 24 * 3600.0
"""Older than any lease and any grace."""

_numbers = itertools.count()


class Place(Protocol):
    """A place for a store, which outlives the processes that use it."""

    loses_power: bool

    def open(self) -> ObjectStore:
        """Open it, as a new process does."""

    def age(self, key: str) -> None:
        """Make an object old."""

    def died(self, rng: random.Random) -> None:
        """Do what the death of all its processes does, or the loss of its power."""

    def remove(self) -> None:
        """Remove it."""


class Folder:
    """A folder; nothing is synced, since only processes die here."""

    loses_power = False

    def __init__(self, path: Path) -> None:
        """Name it."""
        self._path = path

    def open(self) -> ObjectStore:
        """Open it."""
        return FileStore(self._path, durable=False)

    def age(self, key: str) -> None:
        """Make a file old."""
        then = time.time() - LONG_AGO
        os.utime(self._path / key, (then, then))

    def died(self, rng: random.Random) -> None:
        """Leave everything as it is."""

    def remove(self) -> None:
        """Leave it to whoever removes the folder above."""


class Bucket:
    """A bucket in this process's memory, through the store for fsspec's filesystems."""

    loses_power = False

    def __init__(self) -> None:
        """Name a new one."""
        self._name = f"machine-{os.getpid()}-{next(_numbers)}"

    def open(self) -> ObjectStore:
        """Open it."""
        return FsspecStore(f"memory://{self._name}", {}, retry_seconds=1)

    def _files(self) -> dict[str, Any]:
        """Return the filesystem's own objects."""
        from fsspec.implementations.memory import MemoryFileSystem

        files: dict[str, Any] = MemoryFileSystem.store
        return files

    def age(self, key: str) -> None:
        """Make an object old."""
        file = self._files()[f"/{self._name}/{key}"]
        file.modified = file.created = type(file.modified).fromtimestamp(
            time.time() - LONG_AGO, tz=file.modified.tzinfo
        )

    def died(self, rng: random.Random) -> None:
        """Leave everything as it is."""

    def remove(self) -> None:
        """Remove its objects."""
        files = self._files()
        for path in [path for path in files if path.startswith(f"/{self._name}/")]:
            del files[path]


class Disk:
    """A model of a disk that loses its power when a process dies."""

    loses_power = True

    def __init__(self) -> None:
        """Make an empty one."""
        self._store = MemoryStore(time.time)

    def open(self) -> ObjectStore:
        """Open it."""
        return self._store

    def age(self, key: str) -> None:
        """Make an object old."""
        self._store._objects[key].modified_at -= LONG_AGO

    def died(self, rng: random.Random) -> None:
        """Lose what was not synced, or parts of it."""
        before, self._store = self._store, self._store.after_power_cut(rng)
        before.close()

    def remove(self) -> None:
        """Remove its folder for files."""
        self._store.close()


def draw_place(kind: str, folder: Path) -> Place:
    """Return a new place of a kind."""
    match kind:
        case "folder":
            return Folder(folder)
        case "bucket":
            return Bucket()
    return Disk()


KINDS: Final = ("folder", "bucket", "disk")
"""The kinds of places."""


def lease_key(objects: ObjectStore, flow: str, run_id: str) -> str:
    """Return the key of the object whose age tells whether a driver is there."""
    lock = layout.lock(flow, run_id)
    return lock if objects.local_path(lock) is not None else layout.lease(flow, run_id)
