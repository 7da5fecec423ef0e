"""What the operating system's errors mean for a store: full, unavailable or failing."""

from __future__ import annotations

import errno
import os
import re
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Final

from mlp_core.errors import StoreError, StoreFenced, StoreFull, StoreUnavailable
from mlp_core.names import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from mlp_hookspecs.handles import AppendFile, ObjectInfo, ObjectStore

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_UNAVAILABLE: Final = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP),
        *(errno.ENAMETOOLONG, errno.ENOENT, errno.ENXIO),
    }
)
_HANDLES: Final = frozenset({errno.EMFILE, errno.ENFILE})
_USER: Final = re.compile("://[^/]*@")
"""What of a URL may be credentials, and is shown to nobody."""


def store_error(error: OSError, place: str) -> StoreError:
    """Return what an error of the operating system is called here.

    Parameters
    ----------
    error : OSError
        The error.
    place : str
        What was read or written, where the error itself names no file.

    Returns
    -------
    StoreError
        To be raised from the error.
    """
    where = error.filename or place
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return StoreFull(
            f"no room left to write {where}: {reason}",
            hint="make room there, or choose another place by the setting store; then run or resume again",
        )
    if error.errno in _UNAVAILABLE:
        return StoreUnavailable(
            f"the store cannot be used: {where}: {reason}",
            hint="check the path and its permissions, or choose another place by the setting store",
        )
    if error.errno == errno.ESTALE:
        return StoreFenced(
            f"another process has taken over {where}", hint="the run goes on where it was resumed; see: mlp list"
        )
    if error.errno in _HANDLES:
        return StoreError(f"cannot open {where}: {reason}", hint="raise the limit of open files: ulimit -n")
    return StoreError(f"the store failed at {where}: {reason}")


@contextmanager
def translated(place: str, *, absence_passes: bool = True) -> Iterator[None]:
    """Raise the store's own errors for those of the operating system.

    Parameters
    ----------
    place : str
        What is read or written, where the error itself names no file.
    absence_passes : bool
        Whether absence stays FileNotFoundError: where something is read, but not where it is made.
    """
    try:
        yield
    except OSError as error:
        if absence_passes and isinstance(error, FileNotFoundError):
            raise
        raise store_error(error, place) from error


def opened(url: str, open_objects: Callable[[str], ObjectStore]) -> ObjectStore:
    """Return the objects of a store; StoreUnavailable where they cannot be reached.

    Parameters
    ----------
    url : str
        The store.
    open_objects : callable
        Opens the objects of a URL.
    """
    if not _is_path(url):
        raise StoreUnavailable(
            f"the store {shown(url)} cannot be opened: no place has such a name",
            hint="choose its place by the setting store",
        )
    try:
        return open_objects(url)
    except OSError as error:
        unavailable = StoreUnavailable(
            f"the store {shown(_USER.sub('://********@', url))} cannot be opened: {error.strerror or error}",
            hint="choose its place by the setting store",
        )
        for note in getattr(error, "__notes__", ()):
            unavailable.add_note(note)
        raise unavailable from error


def _is_path(text: str) -> bool:
    """Tell whether a text can be a path: a zero byte ends one, and some characters are none on this system."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


class GuardedObjects:
    """An object store whose failures are StoreErrors that say where and what to do; absence stays FileNotFoundError.

    Parameters
    ----------
    inner : ObjectStore
        The store as its plugin made it.
    """

    def __init__(self, inner: ObjectStore) -> None:
        """Wrap the store."""
        self._inner = inner

    @property
    def url(self) -> str:
        """The store's URL."""
        return self._inner.url

    @property
    def creates_once(self) -> bool:
        """As `ObjectStore.creates_once`."""
        return self._inner.creates_once

    def _guard(self, key: str, *, is_made: bool = False) -> AbstractContextManager[None]:
        """Return the guard of one operation: of one that makes something, or of one that needs it to be there."""
        return translated(f"{key or 'the store'} in {self._inner.url}", absence_passes=not is_made)

    def create(self, key: str, data: bytes, *, sync: bool) -> bool:
        """As `ObjectStore.create`."""
        with self._guard(key, is_made=True):
            return self._inner.create(key, data, sync=sync)

    def replace(self, key: str, data: bytes, *, sync: bool) -> None:
        """As `ObjectStore.replace`."""
        with self._guard(key, is_made=True):
            self._inner.replace(key, data, sync=sync)

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """As `ObjectStore.read`."""
        with self._guard(key):
            return self._inner.read(key, start, end)

    def download(self, key: str, target: Path) -> None:
        """As `ObjectStore.download`."""
        with self._guard(key):
            self._inner.download(key, target)

    def info(self, key: str) -> ObjectInfo:
        """As `ObjectStore.info`."""
        with self._guard(key):
            return self._inner.info(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """As `ObjectStore.list`."""
        with self._guard(prefix):
            yield from self._inner.list(prefix)

    def children(self, prefix: str) -> Sequence[str]:
        """As `ObjectStore.children`."""
        with self._guard(prefix):
            return self._inner.children(prefix)

    def delete(self, key: str) -> None:
        """As `ObjectStore.delete`."""
        with self._guard(key):
            self._inner.delete(key)

    def staging(self) -> Path:
        """As `ObjectStore.staging`."""
        with self._guard("staging", is_made=True):
            return self._inner.staging()

    def adopt(self, source: Path, key: str, *, sync: bool) -> None:
        """As `ObjectStore.adopt`."""
        with self._guard(key, is_made=True):
            self._inner.adopt(source, key, sync=sync)

    def sync(self, keys: Sequence[str]) -> None:
        """As `ObjectStore.sync`."""
        with self._guard(keys[0] if keys else ""):
            self._inner.sync(keys)

    def local_path(self, key: str) -> Path | None:
        """As `ObjectStore.local_path`."""
        return self._inner.local_path(key)

    def open_append(self, key: str) -> AppendFile | None:
        """As `ObjectStore.open_append`."""
        with self._guard(key, is_made=True):
            inner = self._inner.open_append(key)
        return None if inner is None else _GuardedAppend(inner, f"{key} in {self._inner.url}")

    def lock(self, key: str) -> AbstractContextManager[bool] | None:
        """As `ObjectStore.lock`."""
        inner = self._inner.lock(key)
        return None if inner is None else self._locked(inner, key)

    @contextmanager
    def _locked(self, inner: AbstractContextManager[bool], key: str) -> Iterator[bool]:
        """Guard the taking of a lock, and nothing that is done under it."""
        with self._guard(key, is_made=True):
            free = inner.__enter__()
        try:
            yield free
        finally:
            inner.__exit__(None, None, None)

    def is_locked(self, key: str) -> bool:
        """As `ObjectStore.is_locked`."""
        with self._guard(key):
            return self._inner.is_locked(key)

    def close(self) -> None:
        """As `ObjectStore.close`."""
        self._inner.close()


class _GuardedAppend:
    """An append file whose failures are StoreErrors."""

    def __init__(self, inner: AppendFile, place: str) -> None:
        """Wrap the file."""
        self._inner = inner
        self._place = place

    def append(self, data: bytes, *, sync: bool) -> None:
        """As `AppendFile.append`."""
        try:
            self._inner.append(data, sync=sync)
        except OSError as error:
            raise store_error(error, self._place) from error

    def close(self) -> None:
        """As `AppendFile.close`."""
        self._inner.close()
