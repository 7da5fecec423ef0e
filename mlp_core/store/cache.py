"""Blobs of stores that are elsewhere, kept on this host: fetched once, verified, mapped by all processes of a user."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from mlp_core.errors import StoreDamaged, StoreFull
from mlp_core.store.content import hash_file
from mlp_core.store.faults import translated
from mlp_core.store.verified import VerifiedFiles, cache_folder, make_private

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlp_hookspecs.handles import ObjectStore

DEFAULT_CACHE_BYTES: Final = 10 * 2**30
"""How many bytes the cache may hold unless a setting says otherwise."""

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class BlobCache:
    """A folder of verified blobs, by digest, of which those that were not read for longest go first.

    Nothing in it is synced: what a power cut leaves of a file is found by verifying everything anew after a start of
    the system.

    Parameters
    ----------
    folder : Path
        The folder, made when the first blob comes in.
    limit : int
        How many bytes it may hold.
    paranoid : bool
        Whether a blob is verified each time that it is asked for.
    """

    def __init__(self, folder: Path, limit: int, *, paranoid: bool) -> None:
        """Make the access; nothing is touched."""
        self._folder = folder
        self._limit = limit
        self._paranoid = paranoid
        self._verified = VerifiedFiles.for_store(f"{folder} {_boot()}")

    @classmethod
    def for_user(cls, limit: int, *, paranoid: bool) -> Self | None:
        """Return the user's cache on this host; None where the user has no home."""
        folder = cache_folder()
        return None if folder is None else cls(folder / "blobs", limit, paranoid=paranoid)

    def path(self, objects: ObjectStore, key: str, digest: str, size: int) -> Path | None:
        """Return the file of a blob, fetched where it is not there; None where there is no room for it.

        Raises
        ------
        FileNotFoundError
            Where the store has no such blob.
        StoreDamaged
            Where the store's blob is not what was written.
        """
        path = self._folder / digest
        if self._is_intact(path, digest, size):
            return path
        if size > self._limit:
            return None
        fetched = self._fetch(objects, key)
        if fetched is None:
            return None
        try:
            with translated(str(fetched)):
                found, length = hash_file(fetched)
            if (found, length) != (digest, size):
                raise damaged(f"{key} in {objects.url}", digest, found)
            fetched.replace(path)
            self._verified.add(path)
        finally:
            fetched.unlink(missing_ok=True)
        self._evict(keep=digest)
        return path

    def _is_intact(self, path: Path, digest: str, size: int) -> bool:
        """Tell whether a blob is there; one that is not what it should be is removed."""
        try:
            if self._paranoid or not self._verified.has(path):
                if hash_file(path) != (digest, size):
                    path.unlink()
                    return False
                self._verified.add(path)
            # Not the times that the file's identity consists of.
            os.utime(self._mark(path))
        except FileNotFoundError:
            if not path.exists():
                return False
            with contextlib.suppress(OSError):
                self._mark(path).touch(mode=0o600)
        except OSError:
            return False
        return True

    @staticmethod
    def _mark(path: Path) -> Path:
        """Return the empty file whose time tells when a blob was last asked for."""
        return path.with_suffix(".used")

    def _fetch(self, objects: ObjectStore, key: str) -> Path | None:
        """Fetch a blob into the cache's folder under a name of its own; None where that cannot be written."""
        try:
            make_private(self._folder)
        except OSError:
            return None
        target = self._folder / f"{os.urandom(8).hex()}.part"
        try:
            objects.download(key, target)
        except StoreFull:  # of the disk that the cache is on
            target.unlink(missing_ok=True)
            return None
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        return target

    def _evict(self, keep: str) -> None:
        """Remove what was not asked for for longest, until the rest fits. Who has it mapped keeps it."""
        with contextlib.suppress(OSError):
            found = self._blobs()
            total = sum(size for _, size, _ in found)
            for _, size, path in sorted(found):
                if total <= self._limit:
                    return
                if path.name != keep:
                    path.unlink(missing_ok=True)
                    self._mark(path).unlink(missing_ok=True)
                    total -= size

    def _blobs(self) -> Sequence[tuple[float, int, Path]]:
        """Return when each blob was last asked for, its size and its file; abandoned pieces count as blobs."""
        found = []
        for entry in os.scandir(self._folder):
            if entry.name.endswith(".used"):
                continue
            with contextlib.suppress(FileNotFoundError):  # removed since
                status = entry.stat()
                used = status.st_mtime
                with contextlib.suppress(FileNotFoundError):
                    used = max(used, self._mark(Path(entry.path)).stat().st_mtime)
                found.append((used, status.st_size, Path(entry.path)))
        return found


def damaged(place: str, expected: str, found: str) -> StoreDamaged:
    """Return the error of content that is not what was written."""
    return StoreDamaged(
        f"{place} is damaged: its content has the digest {found}, not {expected}",
        hint="mlp fsck --repair sets it aside; the step that made it then writes it anew when it runs again",
    )


def _boot() -> str:
    """Return what is another one after each start of the system, where that is told."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
