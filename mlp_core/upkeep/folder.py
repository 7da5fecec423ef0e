"""What a store that is a folder has beside its objects: permissions, things that are no files, unfinished files."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from mlp_core.store import layout
from mlp_core.upkeep.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlp_hookspecs.handles import ObjectStore

STAGING: Final = "tmp"
"""The folder of unfinished files, which are no objects."""

DAMAGED: Final = "damaged/"
"""Where a repair moves what is damaged."""

TARGETS: Final = layout.TARGETS
"""Where deploy targets keep what is theirs."""

FOLDERS: Final = (
    layout.BLOBS,
    layout.FLOWS,
    layout.PARTS,
    layout.BLUEPRINTS,
    layout.DEPLOYMENTS,
    layout.ENVIRONMENTS,
    TARGETS,
    DAMAGED,
)
"""What a store consists of, beside what says what it is."""

ABANDONED_SECONDS: Final = 3600
"""How long what a dead process left unfinished is let alone, since on some network disks locks are not seen."""

_PRIVATE: Final = 0o077
_SHARED: Final = 0o007
_MOST: Final = 100


@attrs.frozen
class Unfinished:
    """What a process left that has ended.

    Attributes
    ----------
    path : Path
        Its folder.
    files, size : int
        How many files it holds, and how many bytes.
    """

    path: Path
    files: int
    size: int


def store_folder(objects: ObjectStore) -> Path | None:
    """Return the folder of a store; None where it is none."""
    path = objects.local_path(layout.FORMAT)
    return None if path is None else path.parent


def check_folder(root: Path, *, shared: bool) -> tuple[list[Finding], set[str]]:
    """Look at every entry of a store's folder.

    Parameters
    ----------
    root : Path
        The folder.
    shared : bool
        Whether the folder's group may read and write.

    Returns
    -------
    findings : list of Finding
        What is no regular file, and what is open to more people than the setting says.
    odd : set of str
        The keys of what is no regular file: it is not to be opened, since that may never return.
    """
    odd: set[str] = set()
    findings: list[Finding] = []
    exposed = 0
    for key, status in _own_entries(root):
        if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
            odd.add(key)
            findings.append(
                Finding("damage", key, "it is no regular file, and was not opened", remedy="look at it, and remove it")
            )
        elif status.st_mode & (_SHARED if shared else _PRIVATE):
            exposed += 1
            if exposed <= _MOST:
                findings.append(_exposed(key, status.st_mode, shared=shared))
    if exposed > _MOST:
        problem = (
            f"{exposed - _MOST} more files and folders are open to more people than the setting storage.shared says"
        )
        findings.append(Finding("exposure", ".", problem, remedy="mlp fsck --repair"))
    return findings, odd


def _exposed(key: str, mode: int, *, shared: bool) -> Finding:
    """Return what is said of one entry."""
    who = "everybody" if mode & _SHARED else "its group"
    setting = "the group" if shared else "its owner alone"
    problem = f"mode {stat.S_IMODE(mode):04o} opens it to {who}, and the setting storage.shared says {setting}"
    return Finding("exposure", key, problem, remedy="mlp fsck --repair")


def close_folder(root: Path, *, shared: bool) -> int:
    """Take the permissions away that the setting does not give, and return from how many entries."""
    closed = 0
    for key, status in _own_entries(root):
        excess = status.st_mode & (_SHARED if shared else _PRIVATE)
        if excess and (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
            with suppress(FileNotFoundError):  # removed since
                (root / key).chmod(stat.S_IMODE(status.st_mode) & ~excess)
                closed += 1
    return closed


def unfinished(root: Path, now: float) -> Iterator[Unfinished]:
    """Iterate over what dead processes have left in the folder of unfinished files."""
    with suppress(FileNotFoundError, NotADirectoryError):
        for path in sorted((root / STAGING).iterdir()):
            with suppress(FileNotFoundError, NotADirectoryError):
                is_old = path.stat().st_mtime < now - ABANDONED_SECONDS
                if is_old and path.is_dir() and not _is_locked(path):
                    files = [status for _, status in _entries(path) if stat.S_ISREG(status.st_mode)]
                    yield Unfinished(path, len(files), sum(status.st_size for status in files))


def remove_unfinished(root: Path) -> None:
    """Remove what dead processes have left in the folder of unfinished files."""
    import shutil

    for each in unfinished(root, time.time()):
        shutil.rmtree(each.path, ignore_errors=True)


def _is_locked(path: Path) -> bool:
    """Tell whether the process that made a folder for unfinished files is there."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _own_entries(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Iterate over what the store has made; what others have put there, and what is unfinished, is not its own."""
    for key, status in _entries(root):
        name = key.partition("/")[0]
        if key == "." or f"{name}/" in FOLDERS or name in (layout.FORMAT, layout.GITIGNORE):
            yield key, status


def _entries(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Iterate over all that lies below a folder and the folder itself, with its path in it; links are not followed."""
    yield ".", root.stat()
    pending = [""]
    while pending:
        prefix = pending.pop()
        with suppress(FileNotFoundError), os.scandir(root / prefix) as entries:  # removed since
            for entry in entries:
                with suppress(FileNotFoundError):
                    yield prefix + entry.name, entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{prefix}{entry.name}/")
