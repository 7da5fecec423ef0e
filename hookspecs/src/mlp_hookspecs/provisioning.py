"""How an environment is made once on a host, whoever asks for it and whoever is killed: for environment backends.

It is built beside its place, under a file lock that its builder and the builder's own processes hold, and renamed when
it is finished and on the disk. The lock ends with the processes that hold it, and what a killed builder left is removed
by the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LOCK: Final = ".{}.lock"
"""The name of the file that the builder of a folder locks."""

BUILDING: Final = ".{}.building"
"""The name of what is not finished yet."""

_WRITE: Final = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
_LOOK: Final = stat.S_IRUSR | stat.S_IXUSR


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
        Where the folder cannot be made, or cannot be used when it is.
    """
    if is_whole(target):
        return
    with file_lock(target.with_name(LOCK.format(target.name))) as descriptor:
        if is_whole(target):
            return
        staging = target.with_name(BUILDING.format(target.name))
        # What is in the way: the leavings of a killed builder, or an environment whose interpreter has gone.
        remove(staging)
        if os.path.lexists(target):
            target.rename(staging)
            remove(staging)
        try:
            make(staging, descriptor)
            protect(staging)
            _write_out(staging)
        except BaseException:
            # Whoever still writes there, or a full disk, must not hide why it could not be made; the next one removes.
            with contextlib.suppress(OSError):
                remove(staging)
            raise
        staging.rename(target)
        if not is_whole(target):
            raise OSError(f"{target} was made, but it cannot be used")


def has_python(target: Path) -> bool:
    """Tell whether an environment is there with an interpreter, and so is what that was made from."""
    return os.access(target / "bin" / "python", os.X_OK)


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[int]:
    """Hold a lock that ends with the block, or with the processes of its holders where that fails or is killed.

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
        # Processes that were forked meanwhile, but not to help, would keep the lock.
        # After a failure it is kept: helpers may still be writing.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def protect(folder: Path) -> None:
    """Take the permission to write from a folder and everything in it; symbolic links are not followed."""
    _protect(folder, folder.stat().st_mode)
    for _, folders, files, descriptor in os.fwalk(folder, onerror=_fail):
        for name in (*folders, *files):
            mode = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
            if not stat.S_ISLNK(mode):
                _protect(name, mode, descriptor)


def remove(folder: Path) -> None:
    """Remove a folder, read-only or not; if it is there."""
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        folder.unlink()
        return
    _open_up(folder, folder.stat().st_mode)
    for _, folders, _, descriptor in os.fwalk(folder, onerror=_fail):
        for name in folders:
            mode = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                _open_up(name, mode, descriptor)
    shutil.rmtree(folder)


def _write_out(folder: Path) -> None:
    """Wait until a folder's file system has everything on its disk: the name of a folder is no use without its files.

    After a loss of power a folder that was renamed too early is there, with empty files in it, and would be taken for
    whole. One by one thousands of files take seconds to write out, and all of them at once some hundredths of one.
    """
    if sys.platform != "linux":
        os.sync()
        return
    import ctypes

    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
    finally:
        os.close(descriptor)


def _protect(path: Path | str, mode: int, descriptor: int | None = None) -> None:
    """Take the permission to write; a folder stays one that its owner can look into."""
    wanted = mode & ~_WRITE | (_LOOK if stat.S_ISDIR(mode) else 0)
    if wanted == mode:
        return
    try:
        os.chmod(path, stat.S_IMODE(wanted), dir_fd=descriptor)
    except PermissionError:
        # A file that is linked from another user's cache: that user alone can change it.
        if stat.S_ISDIR(mode):
            raise


def _open_up(path: Path | str, mode: int, descriptor: int | None = None) -> None:
    """Give a folder's owner all permissions."""
    if mode & stat.S_IRWXU != stat.S_IRWXU:
        os.chmod(path, stat.S_IMODE(mode) | stat.S_IRWXU, dir_fd=descriptor)


def _fail(error: OSError) -> None:
    """Let a walk fail where a folder cannot be read."""
    raise error
