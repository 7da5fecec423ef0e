"""What a store asks of a filesystem of fsspec, one request at a time: objects in, ranges out, listings by page."""

from __future__ import annotations

import asyncio
import copy
import os
import threading
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import attrs

from mlp_hookspecs.handles import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

OBJECT_STORES: Final = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"})
"""Protocols whose objects appear whole, and whose creation is exclusive where it is asked for: for ``s3``, where the
server heeds ``If-None-Match``, which not all do."""

S3: Final = ("s3", "s3a")
_TEMPORARY: Final = "tmp/"
"""Where an object lies until it is whole, on filesystems where it could be seen before."""

_MODIFIED: Final = ("mtime", "LastModified", "last_modified", "modified", "updated", "created")


@attrs.frozen
class Version:
    """One object as it is now.

    Attributes
    ----------
    size : int
        Bytes.
    modified_at : float
        Seconds since the epoch.
    tag : str
        Changes with the content, where the filesystem has such a thing.
    """

    size: int
    modified_at: float
    tag: str = ""


class Loop:
    """The event loop of one filesystem, in a thread of its own.

    That of fsspec itself would go on when the store is closed, and no process with a thread should be forked.

    Attributes
    ----------
    loop : asyncio.AbstractEventLoop
        The loop.
    """

    def __init__(self) -> None:
        """Start the thread."""
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="mlp-store", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, with those that the loop has started."""
        asyncio.run_coroutine_threadsafe(self.loop.shutdown_default_executor(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Filesystem:
    """Any filesystem of fsspec, opened for one process.

    Parameters
    ----------
    fs : fsspec.AbstractFileSystem
        The filesystem.
    root : str
        The store's folder in it, as its own path.
    """

    def __init__(self, fs: Any, root: str, loop: Loop | None = None) -> None:
        """Take it over, with the loop that it was made for."""
        self._loop = loop
        self._fs = fs
        self._root = root
        protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        self._is_whole = getattr(fs, "exclusive_create", False) is True or not OBJECT_STORES.isdisjoint(protocols)

    @property
    def creates_once(self) -> bool | None:
        """Whether creation is exclusive; None where that is the server's to say, which has to be tried."""
        return self._is_whole

    def put(self, path: str, data: bytes) -> None:
        """Write an object, whole from its first moment."""
        if self._is_whole:
            self._fs.pipe_file(path, data)
            return
        temporary = self._temporary()
        try:
            self._fs.pipe_file(temporary, data)
            self._publish(temporary, path)
        except BaseException:
            self._discard(temporary)
            raise

    def put_new(self, path: str, data: bytes) -> None:
        """Write an object if absent; an error that `failures.is_conflict` knows where there is one."""
        self._fs.pipe_file(path, data, mode="create")

    def put_file(self, path: str, source: Path) -> None:
        """Write an object from a file."""
        if self._is_whole:
            self._fs.put_file(str(source), path)
            return
        temporary = self._temporary()
        try:
            self._fs.put_file(str(source), temporary)
            self._publish(temporary, path)
        except BaseException:
            self._discard(temporary)
            raise

    def read(self, path: str, start: int, end: int | None) -> bytes:
        """Return a range of an object."""
        data: bytes = self._fs.cat_file(path, start=start, end=end)
        return data

    def version(self, path: str) -> Version:
        """Return what an object is now."""
        found = self._fs.info(path)
        if found["type"] != "file":
            raise FileNotFoundError(path)
        return Version(found["size"], _modified(found), str(found.get("ETag") or found.get("etag") or ""))

    def objects(self, folder: str, page: str) -> tuple[Sequence[ObjectInfo], str]:
        """Return objects below a folder, by their paths, and where the next page begins; at first and at last empty."""
        del page  # there is one
        found = self._fs.find(folder.rstrip("/"), detail=True)
        below = ((path, info) for path, info in found.items() if path.startswith(folder))
        return [ObjectInfo(path, info["size"], _modified(info)) for path, info in below], ""

    def names(self, folder: str, page: str) -> tuple[set[str], str]:
        """Return names in a folder, and where the next page begins, as `objects`."""
        del page  # as above
        try:
            found = self._fs.ls(folder.rstrip("/"), detail=False)
        except FileNotFoundError:
            return set(), ""
        return {path.rstrip("/").removeprefix(folder) for path in found if path.startswith(folder)} - {""}, ""

    def delete(self, path: str) -> None:
        """Remove an object; FileNotFoundError where there is none, or nothing."""
        self._fs.rm_file(path)

    def close(self) -> None:
        """Release what it holds."""
        if self._loop is not None:
            self._loop.close()

    def _temporary(self) -> str:
        """Return the path for an object that is not whole yet."""
        folder = f"{self._root}{_TEMPORARY}"
        self._fs.makedirs(folder.rstrip("/"), exist_ok=True)
        return f"{folder}{os.urandom(8).hex()}"

    def _publish(self, temporary: str, path: str) -> None:
        """Give an object that is whole its name."""
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._fs.mv(temporary, path)

    def _discard(self, temporary: str) -> None:
        """Remove an object that has not become whole, if that is possible."""
        with suppress(Exception):  # another error is on its way already
            self._fs.rm_file(temporary)


@runtime_checkable
class PartUploads(Protocol):
    """A filesystem that takes an object in parts, several at once, and shows it when all have come."""

    def part_size(self, size: int) -> int:
        """Return the size of the parts of a file."""

    def begin_upload(self, path: str) -> str:
        """Begin an object of several parts, and return the upload's id."""

    def upload_part(self, path: str, upload: str, number: int, data: bytes) -> str:
        """Write a part, counted from 1, and return what `end_upload` needs to know of it."""

    def end_upload(self, path: str, upload: str, tags: Sequence[str]) -> None:
        """Make the object of its parts; FileNotFoundError where the upload has already ended."""

    def abort_upload(self, path: str, upload: str) -> None:
        """Remove the parts of an upload, if that is possible."""


class MemoryFilesystem(Filesystem):
    """The filesystem in this process's memory, shared by its threads."""

    def put_new(self, path: str, data: bytes) -> None:
        """Write an object if absent; fsspec's own way looks first and writes then."""
        from fsspec.implementations.memory import MemoryFile

        made = MemoryFile(self._fs, path, data)
        if self._fs.store.setdefault(path, made) is not made:
            raise FileExistsError(path)


def filesystem_class(protocol: str) -> Any:
    """Import the class of a protocol, with what it reads from disk; no thread is started, so that forks can follow.

    Raises
    ------
    ValueError
        Where fsspec knows no such protocol.
    ImportError
        Where its library is not installed; the message says how to install it.
    """
    from fsspec.registry import get_filesystem_class

    kind = get_filesystem_class(protocol)
    if protocol in S3:
        from mlp_core.builtin.fsspec_store.s3 import aws_data

        aws_data()
    return kind


def open_filesystem(url: str, root: str, options: Mapping[str, Any]) -> Filesystem:
    """Open a filesystem for this process.

    Parameters
    ----------
    url : str
        The store's URL.
    root : str
        The store's folder, as the filesystem's own path.
    options : mapping of str to object
        Arguments of the filesystem's class.
    """
    protocol = url.partition("://")[0]
    kind = filesystem_class(protocol)
    # Of a URL such as sftp://host/folder the host is an argument, too.
    given = copy.deepcopy({**kind._get_kwargs_from_urls(url), **options})  # noqa: SLF001 # how fsspec itself asks
    given |= {"use_listings_cache": False, "skip_instance_cache": True}
    if not kind.async_impl:
        return (MemoryFilesystem if protocol == "memory" else Filesystem)(kind(**given), root)
    loop = Loop()
    try:
        if protocol in S3:
            from mlp_core.builtin.fsspec_store.s3 import open_s3

            return open_s3(kind, root, given, loop)
        return Filesystem(kind(**given, loop=loop.loop), root, loop)
    except BaseException:
        loop.close()
        raise


def _modified(info: Mapping[str, Any]) -> float:
    """Return the time of a filesystem's entry, which each calls differently."""
    for name in _MODIFIED:
        value = info.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, str):
            with suppress(ValueError):
                return datetime.fromisoformat(value).timestamp()
    raise OSError("the filesystem does not tell when an object was made, which the store has to know")
