"""Which files this host has verified already: their identities in a small cache of the user's, never in the store."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Final

_ENTRY: Final = 16
_MAX_BYTES: Final = 4 * 2**20
"""A quarter of a million entries; then the cache starts anew."""


class VerifiedFiles:
    """Files whose content was found to match its hash, by device, inode, size and times.

    A change of content changes a file's times, so that it counts as unknown again; only what rots on the disk goes
    unnoticed until everything is checked.

    Parameters
    ----------
    cache : Path or None
        Where to remember them for other processes; None to remember them in this one only.
    """

    def __init__(self, cache: Path | None) -> None:
        """Make the set; the cache is read when first needed."""
        self._cache = cache
        self._known: set[bytes] | None = None

    @classmethod
    def for_store(cls, url: str) -> VerifiedFiles:
        """Return the user's set for a store."""
        folder = cache_folder()
        name = hashlib.sha256(url.encode()).hexdigest()[:32]
        return cls(None if folder is None else folder / "verified" / name)

    def has(self, path: Path) -> bool:
        """Tell whether a file is known to be intact; FileNotFoundError where there is none."""
        return _identity(path) in self._read()

    def add(self, path: Path) -> None:
        """Remember that a file is intact."""
        identity = _identity(path)
        known = self._read()
        if identity in known:
            return
        known.add(identity)
        if self._cache is None:
            return
        try:
            make_private(self._cache.parent)
            fd = os.open(self._cache, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, identity)
            finally:
                os.close(fd)
        except OSError:
            self._cache = None  # a cache that can't be written saves nothing; verifying again is always right

    def _read(self) -> set[bytes]:
        """Return the known identities."""
        if self._known is None:
            self._known = self._read_cache()
        return self._known

    def _read_cache(self) -> set[bytes]:
        """Return what the cache holds; nothing where it can't be read or has grown too large."""
        if self._cache is None:
            return set()
        try:
            content = self._cache.read_bytes()
            if len(content) > _MAX_BYTES or len(content) % _ENTRY:
                self._cache.unlink(missing_ok=True)
                return set()
        except OSError:
            return set()
        return {content[i : i + _ENTRY] for i in range(0, len(content), _ENTRY)}


def cache_folder() -> Path | None:
    """Return the user's folder for what can be made again; None where the user has no home."""
    given = os.environ.get("XDG_CACHE_HOME")
    if given and os.path.isabs(given):  # noqa: PTH117 # before it is a path
        return Path(given) / "mlp"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "mlp"


def make_private(folder: Path) -> None:
    """Make a folder and all that is missing above it, for nobody else to use, whatever the process's umask."""
    missing = [folder]
    while not missing[-1].parent.is_dir():
        missing.append(missing[-1].parent)
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)


def _identity(path: Path) -> bytes:
    """Return the identity of a file: what changes when its content does."""
    status = path.stat()
    text = f"{path} {status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    return hashlib.blake2b(os.fsencode(text), digest_size=_ENTRY).digest()
