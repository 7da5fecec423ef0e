"""How bytes on their way into the store are written and hashed at once."""

from __future__ import annotations

import errno
import hashlib
import io
import mmap
import os
import pickle
import sys
from typing import TYPE_CHECKING, Final

from mlp_core.store.faults import translated

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlp_hookspecs.handles import Buffer

_SMALL: Final = 2**20
"""Below this, buffers are gathered."""

_LARGE: Final = 8 * 2**20
"""From here on a second thread is worth its start."""

_WINDOW: Final = 16 * 2**20
"""How much of a large buffer is handed to the other thread at once: a multiple of every system's page."""

_FLUSHED: Final = 64 * 2**20
"""How much is written between two syncs: a disk that begins early has done most of its work in the end."""


class Content:
    """Bytes on their way: in memory while they are few, then in an unfinished file; hashed as they pass.

    Parameters
    ----------
    staging : callable
        Returns the folder for unfinished files.

    Attributes
    ----------
    size : int
        Bytes so far.
    """

    def __init__(self, staging: Callable[[], Path]) -> None:
        """Begin."""
        self.size = 0
        self._staging = staging
        self._gathered = bytearray()
        self._hasher = hashlib.sha256()
        self._path: Path | None = None
        self._fd = -1

    def write(self, view: memoryview) -> None:
        """Append bytes."""
        self.size += len(view)
        if len(view) < _SMALL:
            self._gathered += view
            if len(self._gathered) >= _SMALL:
                self._drain()
            return
        self._drain()
        self._put(view)

    def _drain(self) -> None:
        """Write out what was gathered."""
        if self._gathered:
            gathered, self._gathered = self._gathered, bytearray()
            self._put(memoryview(gathered))

    def _put(self, view: memoryview) -> None:
        """Write and hash bytes that another thread may be changing: what is hashed is always what was written."""
        with translated(str(self._file())):
            if len(view) >= _LARGE:
                self._put_large(view)
                return
            for start in range(0, len(view), _SMALL):
                piece = bytes(view[start : start + _SMALL])
                self._hasher.update(piece)
                _write_all(self._fd, memoryview(piece))

    def _file(self) -> Path:
        """Return the unfinished file, which is made for the first bytes that go there."""
        if self._path is None:
            self._path = self._staging() / os.urandom(8).hex()
            with translated(str(self._path)):
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        return self._path

    def _put_large(self, view: memoryview) -> None:
        """Write while one thread hashes behind, from the file, which takes no copy, and another one syncs."""
        from concurrent.futures import ThreadPoolExecutor

        begin = os.lseek(self._fd, 0, os.SEEK_CUR)
        with ThreadPoolExecutor(1) as hashing, ThreadPoolExecutor(1) as syncing:
            tasks = []
            for start in range(0, len(view), _WINDOW):
                part = view[start : start + _WINDOW]
                _write_all(self._fd, part)
                tasks.append(hashing.submit(self._hash_written, begin + start, len(part)))
                if (start + _WINDOW) % _FLUSHED == 0 and hasattr(os, "fdatasync"):
                    tasks.append(syncing.submit(os.fdatasync, self._fd))
            for task in tasks:
                task.result()

    def _hash_written(self, start: int, length: int) -> None:
        """Hash a range of the file."""
        _hash_mapped(self._fd, start, length, self._hasher)

    def finish(self, room: int) -> tuple[str, bytes | Path]:
        """End the content.

        Parameters
        ----------
        room : int
            Up to how many bytes are returned rather than left in a file.

        Returns
        -------
        tuple of str and bytes or Path
            The digest, and the content or the unfinished file that has it.
        """
        if self._path is None and self.size <= room:
            data = bytes(self._gathered)
            return sha256(data), data
        self._drain()
        path = self._file()
        os.close(self._fd)
        self._path, self._fd = None, -1
        return digest_text(self._hasher), path

    def discard(self) -> None:
        """Drop everything."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._path is not None:
            self._path.unlink(missing_ok=True)


class ContentFile(io.BufferedIOBase):
    """A file whose writes go to a content.

    Parameters
    ----------
    content : Content
        The content.
    """

    def __init__(self, content: Content) -> None:
        """Make the file."""
        super().__init__()
        self._content = content

    def writable(self) -> bool:
        """Tell that it is for writing."""
        return True

    def tell(self) -> int:
        """Return how much the content has so far."""
        return self._content.size

    def write(self, data: Buffer, /) -> int:  # type: ignore[override] # typeshed's buffer protocol is wider
        """Append bytes."""
        view = pickle.PickleBuffer(data).raw()
        self._content.write(view)
        return len(view)


def hash_file(path: Path) -> tuple[str, int]:
    """Return digest and size of a file's content; memory does not grow with it, and a failing disk raises OSError."""
    hasher = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size >= _LARGE and sys.platform == "linux":
            _hash_cached(file.fileno(), size, hasher)
        else:
            size = 0
            while piece := file.read(_SMALL):
                hasher.update(piece)
                size += len(piece)
    return digest_text(hasher), size


def _hash_cached(fd: int, size: int, hasher: hashlib._Hash) -> None:
    """Hash a file in place, in the system's cache: an eighth faster than from a copy of it.

    Each range is first sent nowhere, which costs next to nothing: it makes the system read the disk and report what
    fails there. Reading the map alone would end the process by SIGBUS.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for start in range(0, size, _WINDOW):
            end = min(size, start + _WINDOW)
            position = start
            while position < end:
                sent = os.sendfile(nowhere, fd, position, end - position)
                if not sent:
                    raise OSError(errno.EIO, "the file ended while it was read")
                position += sent
            _hash_mapped(fd, start, end - start, hasher)
    finally:
        os.close(nowhere)


def _hash_mapped(fd: int, start: int, length: int, hasher: hashlib._Hash) -> None:
    """Hash a range of a file through a passing map, so that it does not count as this process's memory."""
    lead = start % mmap.ALLOCATIONGRANULARITY
    with mmap.mmap(fd, lead + length, offset=start - lead, access=mmap.ACCESS_READ) as mapped:
        view = memoryview(mapped)[lead:]
        hasher.update(view)
        view.release()


def sha256(data: bytes | bytearray) -> str:
    """Return the digest of bytes, as ``sha256-<64 hex digits>``."""
    return digest_text(hashlib.sha256(data))


def digest_text(hasher: hashlib._Hash) -> str:
    """Return a hash with the name of its algorithm."""
    return "sha256-" + hasher.hexdigest()


def _write_all(fd: int, view: memoryview) -> None:
    """Write all bytes."""
    while view:
        view = view[os.write(fd, view) :]
