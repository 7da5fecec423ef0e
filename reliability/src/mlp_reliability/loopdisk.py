"""A real file system whose power can be cut: ext4 in a file, mounted through a loop device, and its shutdown call."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

_SHUTDOWN: Final = 0x8004587D
"""EXT4_IOC_SHUTDOWN."""

_NO_FLUSH: Final = struct.pack("I", 2)
"""EXT4_GOING_FLAGS_NOLOGFLUSH: nothing more reaches the disk, not even what the file system's journal has in memory."""

_BYTES: Final = 16 * 2**20
_TRIES: Final = 100


class LoopDisk:
    """A disk of its own, mounted on a folder while it is open.

    Parameters
    ----------
    image : pathlib.Path
        The file that holds it, made anew.
    folder : pathlib.Path
        Where it is mounted; made if absent.
    """

    def __init__(self, image: Path, folder: Path) -> None:
        """Make the disk; it is mounted by `with`."""
        self._image = image
        self._folder = folder

    def __enter__(self) -> Self:
        with self._image.open("wb") as file:
            file.truncate(_BYTES)
        _call("mkfs.ext4", "-q", "-F", str(self._image))
        self._folder.mkdir(parents=True, exist_ok=True)
        self._mount()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unmount()
        self._image.unlink()

    def cut(self) -> None:
        """Cut the power: what was not synced is gone, and whoever writes gets an error."""
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, _NO_FLUSH)
        finally:
            os.close(fd)

    def power_on(self) -> None:
        """Mount again what is left; nobody has a file open there any more."""
        self._unmount()
        self._mount()

    def _mount(self) -> None:
        """Mount the disk."""
        _call("mount", "-t", "ext4", "-o", "loop", str(self._image), str(self._folder))

    def _unmount(self) -> None:
        """Take the disk from its folder; a process that was just killed may hold it for a moment."""
        for _ in range(_TRIES):
            with suppress(subprocess.CalledProcessError):
                _call("umount", str(self._folder))
                return
            time.sleep(0.02)
        _call("umount", "--lazy", str(self._folder))


def is_available() -> bool:
    """Tell whether this machine and this user can have such disks."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("mkfs.ext4", "mount", "umount"))):
        return False
    with tempfile.TemporaryDirectory(prefix="mlp-loop-") as name:
        try:
            with LoopDisk(Path(name, "image"), Path(name, "disk")) as disk:
                disk.cut()
        except (OSError, subprocess.CalledProcessError):
            return False
    return True


def _call(*command: str) -> None:
    """Call a program of the system; CalledProcessError where it fails."""
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
