"""Folders for unfinished files: each of one process, and removed when that has ended, however it did."""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_ABANDONED_SECONDS: Final = 3600
"""How long an unfinished file is left alone after its process has died."""


class Handle:
    """An open file that forks of this process close at once, so that they neither write to it nor keep its lock."""

    def __init__(self, number: int) -> None:
        """Take over a file descriptor."""
        self.number = number
        os.register_at_fork(after_in_child=self.close)

    def close(self) -> None:
        """Close the file, once."""
        if self.number >= 0:
            os.close(self.number)
            self.number = -1


class Staging:
    """A folder of one process, known to be abandoned once nobody holds the lock on it.

    Parameters
    ----------
    parent : Path
        The folder to make it in, which is there.
    make : callable
        Makes a folder.

    Attributes
    ----------
    path : Path
        The folder.
    """

    def __init__(self, parent: Path, make: Callable[[Path], None]) -> None:
        """Make the folder and lock it, then remove those that dead processes left."""
        self.owner = os.getpid()
        fd = None
        while fd is None:  # else another process took it for abandoned before it was locked
            self.path = parent / os.urandom(8).hex()
            make(self.path)
            fd = _lock_folder(self.path)
        self._handle = Handle(fd)
        # Where nobody closes the store: when it is forgotten, or when the process ends.
        self._finalizer = weakref.finalize(self, _abandon, self.path, self._handle, self.owner)
        with suppress(OSError):
            _sweep(parent)

    def remove(self) -> None:
        """Remove the folder and what was left in it; in a fork of its process, nothing."""
        self._finalizer()


def _abandon(path: Path, handle: Handle, owner: int) -> None:
    """Remove a process's folder; in a fork of the process, nothing."""
    if owner == os.getpid():
        with suppress(OSError):
            _remove_tree(path)
        handle.close()


def _sweep(parent: Path) -> None:
    """Remove what dead processes left; only what is old, since on some network disks locks are not seen."""
    for other in parent.iterdir():
        with suppress(FileNotFoundError):  # removed since
            is_old = other.stat().st_mtime < time.time() - _ABANDONED_SECONDS
            abandoned = _lock_folder(other) if is_old else None
            if abandoned is not None:
                _remove_tree(other)
                os.close(abandoned)


def _lock_folder(path: Path) -> int | None:
    """Return an open folder with the lock on it held; None where somebody else holds it or it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), path.stat()):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _remove_tree(folder: Path) -> None:
    """Remove a folder of unfinished files; shutil would do, and takes longer to import than this does."""
    with os.scandir(folder) as entries:
        for entry in entries:
            path = folder / entry.name
            if entry.is_dir(follow_symlinks=False):
                _remove_tree(path)
            else:
                path.unlink(missing_ok=True)
    folder.rmdir()
