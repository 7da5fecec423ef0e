"""Whose code was running when a process died: a mark left before each entry into a plugin, and a watchdog for hangs.

A process that runs plugins keeps one small file, mapped into memory, in the user's runtime folder: leaving a mark is a
store into memory, and survives the process however it ends. The file is locked for as long as the process lives, so
that the next command can tell the files of the dead, name the culprit, and remove them.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import fcntl
import itertools
import mmap
import os
import stat
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import attrs

from mlp_hookspecs import PluginId

if TYPE_CHECKING:
    from collections.abc import Iterator

IMPORT: Final = "import"
"""The place of a mark that was left before a plugin's import, where others name a hook."""

_SLOT: Final = 256
_SLOTS: Final = 8
_EMPTY: Final = bytes(_SLOT)
_MERCY: Final = 5.0
_SUFFIX: Final = ".crumb"
_serial = itertools.count()


@attrs.frozen
class Crumb:
    """A mark.

    Attributes
    ----------
    plugin : PluginId
        Whose code was entered.
    place : str
        The hook, or ``import``.
    pid : int
        The process.
    """

    plugin: PluginId
    place: str
    pid: int = 0

    def encoded(self) -> bytes:
        """Return the content of a slot; what is too long is cut off."""
        fields = (self.place, self.plugin.name, self.plugin.distribution, self.plugin.version)
        return "\0".join(fields).encode()[:_SLOT].ljust(_SLOT, b"\0")

    @classmethod
    def decoded(cls, slot: bytes, pid: int) -> Crumb | None:
        """Read a slot; None where it is empty or nonsense."""
        text = "".join(c if c.isprintable() or c == "\0" else "?" for c in slot.rstrip(b"\0").decode(errors="replace"))
        if text.count("\0") != 3:  # noqa: PLR2004 # place, name, distribution, version
            return None
        place, name, distribution, version = text.split("\0")
        return cls(PluginId(name, distribution, version), place, pid)

    def __str__(self) -> str:
        """Tell plugin and place."""
        place = "while it was imported" if self.place == IMPORT else f"in its {self.place}"
        return f"plugin {self.plugin}, {place}"


class Trail:
    """The marks of this process. The file is made when the first is left; where that fails, there are none.

    Parameters
    ----------
    folder : pathlib.Path or None
        Where the file goes.
    """

    def __init__(self, folder: Path | None) -> None:
        """Make an empty trail."""
        self._folder = folder
        self._pid = 0
        self._map: mmap.mmap | None = None
        self._finalizer: weakref.finalize[[Path, int, int], Trail] | None = None
        self._fd = -1
        self._path = Path()
        self._threads = threading.local()
        self._next_slot = itertools.count()

    def enter(self, crumb: bytes) -> bytes:
        """Leave a mark, and return the one that it hides."""
        if self._pid != os.getpid():
            self._begin()
        if self._map is None:
            return _EMPTY
        slot = self._slot()
        before = self._map[slot : slot + _SLOT]
        self._map[slot : slot + _SLOT] = crumb
        return before

    def leave(self, before: bytes) -> None:
        """Take the mark away again; `before` is what `enter` returned."""
        if self._map is not None and self._pid == os.getpid():
            slot = self._slot()
            self._map[slot : slot + _SLOT] = before

    def close(self) -> None:
        """Remove the file; a forked child leaves its parent's alone."""
        if self._map is not None and self._pid == os.getpid():
            self._map.close()
        self._map = None
        if self._finalizer is not None:
            self._finalizer()

    def _slot(self) -> int:
        """Return the offset of this thread's slot; threads beyond the last slot share it."""
        slot: int | None = getattr(self._threads, "slot", None)
        if slot is None:
            slot = self._threads.slot = _SLOT * min(next(self._next_slot), _SLOTS - 1)
        return slot

    def _begin(self) -> None:
        """Make the file, or do without."""
        # A forked child has its parent's file mapped: it gets one of its own, and lets that one be.
        self._map = None
        self._pid = os.getpid()
        if self._folder is None:
            return
        name = f"{self._pid}-{next(_serial)}"
        draft = self._folder / f".{name}"
        try:
            self._fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            # The room is really taken: a store into a page that the full disk cannot hold would kill the process.
            os.write(self._fd, bytes(_SLOT * _SLOTS))
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._path = draft.rename(self._folder / (name + _SUFFIX))
            self._map = mmap.mmap(self._fd, _SLOT * _SLOTS)
        except OSError:
            return
        self._finalizer = weakref.finalize(self, _forget, self._path, self._fd, self._pid)


def _forget(path: Path, fd: int, pid: int) -> None:
    """Remove a trail's file, once the trail is forgotten or its process ends; a forked child leaves it alone."""
    if pid == os.getpid():
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(fd)


def runtime_folder() -> Path | None:
    """Return the user's own folder for files that need not survive a restart, made if absent; None if it is unsafe."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(base, "mlp") if base else Path(os.environ.get("TMPDIR") or "/tmp", f"mlp-{os.getuid()}")  # noqa: S108 # ownership is checked below
    try:
        folder.mkdir(0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return folder if private else None


def take_dead(folder: Path | None, pid: int | None = None, *, keep: bool = False) -> list[Crumb]:
    """Return the marks of processes that died inside a plugin, and remove the files of all that are dead.

    Parameters
    ----------
    folder : pathlib.Path or None
        The runtime folder.
    pid : int, optional
        Look only at this process's file.
    keep : bool
        Whether to leave the files for a later command.

    Returns
    -------
    list of Crumb
        What each died in; a process with several threads may have several.
    """
    found: list[Crumb] = []
    if folder is None:
        return found
    own = f"{os.getpid()}-"
    start = "" if pid is None else f"{pid}-"
    with contextlib.suppress(OSError):
        for path in sorted(folder.glob(f"{start}*{_SUFFIX}")):
            # Opening a file of our own and closing it again would give up the lock on it.
            if not path.name.startswith(own):
                found += _take(path, keep=keep)
    return found


def _take(path: Path, *, keep: bool) -> list[Crumb]:
    """Read and remove one file, if its process is dead."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return []
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        content = os.read(fd, _SLOT * _SLOTS)
        if not keep:
            path.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return []  # somebody holds the lock: the process lives
        raise
    finally:
        os.close(fd)
    number = path.name.partition("-")[0]
    slots = [content[start : start + _SLOT] for start in range(0, len(content), _SLOT)]
    crumbs = [Crumb.decoded(slot, int(number) if number.isdigit() else 0) for slot in slots]
    return [crumb for crumb in crumbs if crumb is not None]


class Watchdog:
    """Ends the process when a plugin's code does not return.

    It is a context manager; its thread is gone once that is left, so that the process can fork.

    Parameters
    ----------
    seconds : float
        How long each watched piece of code may take.
    """

    def __init__(self, seconds: float) -> None:
        """Make the watchdog; it does nothing until something is watched."""
        self._seconds = seconds
        self._changed = threading.Condition()
        self._message = ""
        self._deadline = 0.0
        self._done = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._thread is not None:
            with self._changed:
                self._done = True
                self._changed.notify()
            self._thread.join()

    @contextlib.contextmanager
    def watch(self, what: str, advice: str) -> Iterator[None]:
        """Watch a piece of code.

        Parameters
        ----------
        what : str
            Whose code it is, for the message.
        advice : str
            What the user can do, for the message.
        """
        self._set(f"{what} has not returned for {self._seconds:g} s; this process ends\n  hint: {advice}")
        # C code that lets no other thread run is beyond our thread; this one needs no interpreter.
        faulthandler.dump_traceback_later(self._seconds + _MERCY, exit=True, file=2)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            self._set("")

    def _set(self, message: str) -> None:
        """Begin or end a watch."""
        with self._changed:
            self._message = message
            self._deadline = time.monotonic() + self._seconds
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="mlp-watchdog", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        """Wait for the deadline of whatever is watched."""
        with self._changed:
            while not self._done:
                left = self._deadline - time.monotonic()
                if self._message and left <= 0:
                    os.write(2, f"{self._message}\n".encode())
                    faulthandler.dump_traceback(file=2)
                    os._exit(1)
                self._changed.wait(left if self._message else None)
