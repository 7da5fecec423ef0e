"""How bytes on their way into the store are written and hashed at once."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import secrets
from typing import TYPE_CHECKING, Final

from mlp_core.store.faults import translated

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from pathlib import Path

    from mlp_hookspecs.handles import Buffer

_SMALL: Final = 2**20
"""Below this, buffers are gathered; above, each is written as it is."""

_SLICE: Final = 4 * 2**20
"""How much is hashed and written in one go: large beside the cost of a hand-over, small beside the memory."""


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
        """Hash and write at once, on two cores, from a copy of each slice.

        The copy is what makes hash and file agree when another thread goes on changing the value.
        """
        if self._path is None:
            self._path = self._staging() / secrets.token_hex(8)
            with translated(str(self._path)):
                self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with translated(str(self._path)):
            if len(view) <= _SMALL:
                piece = bytes(view)
                self._hasher.update(piece)
                _write_all(self._fd, memoryview(piece))
            else:
                self._put_large(view)

    def _put_large(self, view: memoryview) -> None:
        """Hash in another thread while this one copies and writes."""
        from concurrent.futures import ThreadPoolExecutor

        free = [memoryview(bytearray(_SLICE)) for _ in range(3)]
        with ThreadPoolExecutor(1) as pool:
            busy: list[tuple[Future[None], memoryview]] = []
            for start in range(0, len(view), _SLICE):
                if not free:
                    future, buffer = busy.pop(0)
                    future.result()
                    free.append(buffer)
                buffer = free.pop()
                part = view[start : start + _SLICE]
                piece = buffer[: len(part)]
                piece[:] = part
                busy.append((pool.submit(self._hasher.update, piece), buffer))
                _write_all(self._fd, piece)
            for future, _ in busy:
                future.result()

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
        if self._path is None:
            return sha256(b""), b""
        os.close(self._fd)
        self._fd = -1
        path, self._path = self._path, None
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
    """Return digest and size of a file's content, read through a small buffer so that memory does not grow."""
    hasher = hashlib.sha256()
    buffer = memoryview(bytearray(_SLICE))
    size = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
            size += count
    return digest_text(hasher), size


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
