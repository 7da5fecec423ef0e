"""Any object store, used by a process that dies between two of its operations, or in the middle of an append."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mlp_reliability.memory import ProcessDied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from mlp_hookspecs.handles import AppendFile, ObjectInfo, ObjectStore


class Process:
    """A process that may die.

    Attributes
    ----------
    is_dead : bool
        Whether it has; whatever it tries then is not done.
    operations : int
        How many operations it has done.
    """

    def __init__(self) -> None:
        """Begin alive."""
        self.is_dead = False
        self.operations = 0
        self._dies_in: int | None = None

    def dies_in(self, operations: int | None) -> None:
        """Let it die before one of its next operations, the first being 1; None lets it live."""
        self._dies_in = operations

    def operate(self) -> None:
        """Do an operation; ProcessDied where it dies first."""
        if self._dies_in is not None and not self.is_dead:
            self._dies_in -= 1
            self.is_dead = self._dies_in <= 0
        if self.is_dead:
            raise ProcessDied
        self.operations += 1


class CrashingObjects:
    """An `ObjectStore` that a process uses.

    Parameters
    ----------
    inner : ObjectStore
        The store.
    process : Process
        Who uses it.
    written : callable
        Returns how much of an append is written by a process that dies in it: a share from 0 up to 1.
    """

    def __init__(self, inner: ObjectStore, process: Process, written: Callable[[], float] = lambda: 0.0) -> None:
        """Wrap a store."""
        self.inner = inner
        self._process = process
        self._written = written

    def __getattr__(self, name: str) -> Any:
        """Return a method that is an operation."""
        method = getattr(self.inner, name)

        def operation(*args: object, **options: object) -> Any:
            self._process.operate()
            return method(*args, **options)

        return operation

    @property
    def url(self) -> str:
        """The store's URL."""
        return self.inner.url

    @property
    def creates_once(self) -> bool:
        """As the store says."""
        return self.inner.creates_once

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Iterate over objects; each is an operation."""
        for info in self.inner.list(prefix):
            self._process.operate()
            yield info

    def sync(self, keys: Sequence[str]) -> None:
        """Make objects durable, one by one."""
        for key in keys:
            self._process.operate()
            self.inner.sync([key])

    def staging(self) -> Path:
        """Return the folder for unfinished files, which is not an operation."""
        return self.inner.staging()

    def local_path(self, key: str) -> Path | None:
        """Return an object's file, which is not an operation."""
        return self.inner.local_path(key)

    def open_append(self, key: str) -> CrashingAppend | None:
        """Open an object that grows."""
        self._process.operate()
        file = self.inner.open_append(key)
        return None if file is None else CrashingAppend(file, self._process, self._written)

    def lock(self, key: str) -> AbstractContextManager[bool] | None:
        """Return a lock."""
        lock = self.inner.lock(key)
        return None if lock is None else self._locked(lock)

    @contextmanager
    def _locked(self, lock: AbstractContextManager[bool]) -> Iterator[bool]:
        """Hold a lock; taking it is an operation."""
        self._process.operate()
        with lock as is_free:
            yield is_free

    def close(self) -> None:
        """Release the store, as the end of a process does too."""
        self.inner.close()


class CrashingAppend:
    """An object that grows, written by a process that may die."""

    def __init__(self, file: AppendFile, process: Process, written: Callable[[], float]) -> None:
        """Wrap it."""
        self._file = file
        self._process = process
        self._written = written

    def append(self, data: bytes, *, sync: bool) -> None:
        """Add bytes; a process that dies may have added some."""
        was_dead = self._process.is_dead
        try:
            self._process.operate()
        except ProcessDied:
            if not was_dead:
                self._file.append(data[: int(len(data) * self._written())], sync=False)
            raise
        self._file.append(data, sync=sync)

    def close(self) -> None:
        """Release it, as the end of a process does too."""
        self._file.close()


class CannotSync:
    """An `ObjectStore` whose sync fails."""

    def __init__(self, inner: ObjectStore) -> None:
        """Wrap a store."""
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        """Do everything else as the store does."""
        return getattr(self._inner, name)

    def sync(self, keys: Sequence[str]) -> None:
        """Fail."""
        raise OSError(errno.EIO, "input/output error", keys[0])
