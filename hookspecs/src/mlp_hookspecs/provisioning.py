"""How an environment is made once on a host, whoever asks for it and whoever is killed: for environment backends.

It is built beside its place and renamed when it is finished, under a file lock that its builder and the builder's own
processes hold. The lock ends with the processes that hold it, and what a killed builder left is removed by the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LOCK: Final = ".{}.lock"
"""The name of the file that the builder of a folder locks."""

BUILDING: Final = ".{}.building"
"""The name of what is not finished yet."""

_WRITE: Final = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


def make_once(target: Path, make: Callable[[Path, int], None], is_whole: Callable[[Path], bool]) -> None:
    """Make a folder, or find it made; what is made is read-only.

    Parameters
    ----------
    target : pathlib.Path
        The folder, absolute.
    make : callable
        Gets the path of a folder to make, which is not there and will be renamed, and a descriptor to hand on to the
        processes that it starts (``pass_fds``), so that they keep the lock if this one is killed.
    is_whole : callable
        Tells whether a folder that is there can be used; where it can not, it is made again.

    Raises
    ------
    OSError
        Where the folder cannot be made.
    """
    if is_whole(target):
        return
    with file_lock(target.with_name(LOCK.format(target.name))) as descriptor:
        if is_whole(target):
            return
        staging = target.with_name(BUILDING.format(target.name))
        try:
            # What is in the way: the leavings of a killed builder, or an environment whose interpreter has gone.
            remove(staging)
            if os.path.lexists(target):
                target.rename(staging)
                remove(staging)
            make(staging, descriptor)
            protect(staging)
            staging.rename(target)
        finally:
            remove(staging)


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[int]:
    """Hold a lock that ends with its holders' processes.

    Parameters
    ----------
    path : pathlib.Path
        The file that stands for the lock; made if absent, and left there.

    Yields
    ------
    int
        The descriptor; processes that inherit it hold the lock too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def protect(folder: Path) -> None:
    """Take the permission to write from a folder and everything in it."""
    for _, folders, files, descriptor in os.fwalk(folder, topdown=False):
        for name in (*folders, *files):
            mode = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
            if mode & _WRITE and not stat.S_ISLNK(mode):
                os.chmod(name, stat.S_IMODE(mode) & ~_WRITE, dir_fd=descriptor)
    folder.chmod(stat.S_IMODE(folder.stat().st_mode) & ~_WRITE)


def remove(folder: Path) -> None:
    """Remove a folder, read-only or not; if it is there."""
    if not os.path.lexists(folder):
        return
    for _, folders, _, descriptor in os.fwalk(folder):
        os.fchmod(descriptor, stat.S_IMODE(os.fstat(descriptor).st_mode) | stat.S_IRWXU)
        for name in folders:
            mode = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                os.chmod(name, stat.S_IMODE(mode) | stat.S_IRWXU, dir_fd=descriptor)
    shutil.rmtree(folder)
