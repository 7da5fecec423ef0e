"""A store that is like a bucket, on a folder: what it is asked for is counted, and fails where a test says so."""

from __future__ import annotations

import errno
from collections import Counter
from typing import TYPE_CHECKING

from mlp_core.builtin.file_store import FileStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlp_hookspecs.handles import ObjectInfo


class CountingBucket(FileStore):
    """Objects in a folder that nobody sees: they cannot grow, and there are no locks.

    Parameters
    ----------
    root : Path
        The folder.
    creates_once : bool
        Whether of two who create an object one is told so.

    Attributes
    ----------
    root : Path
        The folder, for whoever makes objects older.
    requests : Counter of str
        How often each operation was asked for.
    failing : set of str
        The operations that fail.
    """

    def __init__(self, root: Path, *, creates_once: bool = True) -> None:
        """Make the store."""
        super().__init__(root, durable=False)
        self.root = root
        self.requests: Counter[str] = Counter()
        self.failing: set[str] = set()
        self._has_one_winner = creates_once

    @property
    def creates_once(self) -> bool:
        """As the test says."""
        return self._has_one_winner

    def local_path(self, _key: str) -> None:
        """Have no local files."""

    def open_append(self, _key: str) -> None:  # type: ignore[override] # a bucket has none
        """Have no objects that grow."""

    def lock(self, _key: str) -> None:  # type: ignore[override] # as above
        """Have no locks."""

    def is_locked(self, _key: str) -> bool:
        """Have no locks."""
        return False

    def create(self, key: str, data: bytes, *, sync: bool) -> bool:
        """Count, and create."""
        self._count("create")
        return super().create(key, data, sync=sync)

    def replace(self, key: str, data: bytes, *, sync: bool) -> None:
        """Count, and replace."""
        self._count("replace")
        super().replace(key, data, sync=sync)

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Count, and read."""
        self._count("read")
        return super().read(key, start, end)

    def info(self, key: str) -> ObjectInfo:
        """Count, and look."""
        self._count("info")
        return super().info(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Count, and list."""
        self._count("list")
        return super().list(prefix)

    def delete(self, key: str) -> None:
        """Count, and remove."""
        self._count("delete")
        super().delete(key)

    def adopt(self, source: Path, key: str, *, sync: bool) -> None:
        """Count, and upload."""
        self._count("adopt")
        super().adopt(source, key, sync=sync)

    def _count(self, operation: str) -> None:
        """Count a request; fail where the test says so."""
        self.requests[operation] += 1
        if operation in self.failing:
            raise OSError(errno.EIO, f"{operation} does not work")
