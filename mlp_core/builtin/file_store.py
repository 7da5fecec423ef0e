"""The builtin store ``file``: objects as files below a local folder, durable where the caller asks for it."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mlp_core.builtin.staging import Handle, Staging
from mlp_hookspecs import Backend, hookimpl
from mlp_hookspecs.handles import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlp_hookspecs.handles import Settings

_STAGING: Final = "tmp"
"""The folder for unfinished files; no object's key begins with it."""

_FULL_SYNC: Final = getattr(fcntl, "F_FULLFSYNC", None)  # macOS, whose fsync leaves data in the drive's cache
_HAS_OFD_LOCKS: Final = sys.platform == "linux"  # elsewhere the structure below is another
_FLOCK: Final = struct.Struct("hhqqi4x")  # struct flock with 64-bit offsets: type, whence, start, length, pid
_LOCK_ALL: Final = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


@hookimpl
def mlp_backends() -> Sequence[Backend]:
    """Declare the store."""
    return (Backend(kind="store", name="file", summary="A folder on this machine or on a mounted disk."),)


@hookimpl
def mlp_open_store(url: str, settings: Settings) -> FileStore:
    """Open the folder that a path or a ``file:`` URL names."""
    durable = settings.get("storage.durability") != "fast"
    return FileStore(_folder(url), durable=durable, shared=settings.get("storage.shared") is True)


def _folder(url: str) -> Path:
    """Return the folder of a URL; OSError where it is on another host."""
    if not url.startswith("file:"):
        return Path(url).expanduser()
    from urllib.parse import unquote, urlsplit

    parts = urlsplit(url)
    path = unquote(parts.path, errors="surrogateescape")
    if parts.netloc not in ("", "localhost"):
        raise OSError(errno.EINVAL, f"it names the host {parts.netloc}; a file URL looks like file:///path", url)
    if not path.startswith("/") or "\0" in path:
        raise OSError(errno.EINVAL, "it names no path; a file URL looks like file:///path", url)
    return Path(path)


class FileStore:
    """Objects as files below a folder, which is made when the first is written.

    Parameters
    ----------
    root : Path
        The folder.
    durable : bool
        Whether what is synced survives a power cut. Otherwise nothing is ever synced: the system writes it when it
        likes, and after a power cut files may be missing, empty or damaged.
    shared : bool
        Whether the folder's group may read and write what is made.
    """

    def __init__(self, root: Path, *, durable: bool = True, shared: bool = False) -> None:
        """Make the store; nothing is touched."""
        self._root = Path(os.path.abspath(root))  # noqa: PTH100 # resolve() would follow links that may change
        self.durable = durable
        self._shared = shared
        self._file_mode = 0o660 if shared else 0o600
        self._stagings: dict[int, Staging] = {}
        self._durable_folders: set[Path] = set()
        self._durable_contents: set[str] = set()

    @property
    def url(self) -> str:
        """The folder as a URL."""
        return self._root.as_uri()

    @property
    def creates_once(self) -> bool:
        """Links are exclusive, on this machine and on network disks."""
        return True

    def create(self, key: str, data: bytes, *, sync: bool) -> bool:
        """Write a file if absent, complete from its first moment."""
        target = self._path(key)
        if target.exists():
            return False
        source = self._write_staged(data, sync=sync)
        try:
            self._make_folder(target.parent)
            os.link(source, target)
        except FileExistsError:
            return False
        finally:
            source.unlink()
        self._durable_contents.discard(key)  # of an earlier object
        if sync:
            self._sync_folders([target.parent])
        return True

    def replace(self, key: str, data: bytes, *, sync: bool) -> None:
        """Write a file in the place of an earlier one."""
        source = self._write_staged(data, sync=True)  # else a power cut could leave the new name with no content
        try:
            self._move(source, key, sync=sync)
        except OSError:
            source.unlink(missing_ok=True)
            raise

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Return a range of a file."""
        with self._path(key).open("rb", buffering=0) as file:
            if start:
                file.seek(start)
            if end is None:
                return file.read()
            return _read_up_to(file.fileno(), max(0, end - start))

    def download(self, key: str, target: Path) -> None:
        """Copy a file."""
        import shutil

        with self._path(key).open("rb"):  # else an absent one would be found after the target is made
            try:
                shutil.copyfile(self._path(key), target)
            except OSError:
                with suppress(OSError):
                    target.unlink()
                raise

    def info(self, key: str) -> ObjectInfo:
        """Return size and time of a file."""
        status = self._path(key).stat()
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(errno.ENOENT, "no object of that key", key)
        return ObjectInfo(key, status.st_size, status.st_mtime)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Iterate over the files below a folder."""
        pending = [prefix]
        while pending:
            folder = pending.pop()
            for entry in self._entries(folder):
                key = folder + entry.name
                if entry.is_dir(follow_symlinks=False):
                    pending.append(key + "/")
                    continue
                with suppress(FileNotFoundError):  # removed since
                    status = entry.stat()
                    yield ObjectInfo(key, status.st_size, status.st_mtime)

    def children(self, prefix: str) -> Sequence[str]:
        """Return the names in a folder, sorted."""
        return sorted(entry.name for entry in self._entries(prefix))

    def _entries(self, prefix: str) -> Sequence[os.DirEntry[str]]:
        """Return what a folder holds, without what is unfinished; nothing where it is absent."""
        try:
            with os.scandir(self._path(prefix)) as entries:
                return [e for e in entries if prefix or e.name != _STAGING]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def delete(self, key: str) -> None:
        """Remove a file."""
        self._path(key).unlink(missing_ok=True)

    def staging(self) -> Path:
        """Return this process's folder for unfinished files, removed when its process has ended."""
        found = self._stagings.get(os.getpid())
        if found is None:
            self._make_folder(self._root / _STAGING)
            made = Staging(self._root / _STAGING, self._make_folder)
            found = self._stagings.setdefault(os.getpid(), made)
            if found is not made:  # another thread was first
                made.remove()
        return found.path

    def adopt(self, source: Path, key: str, *, sync: bool) -> None:
        """Move a file in. Its content is durable before its name appears, for it may take the place of one that was."""
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fchmod(fd, self._file_mode)
            if self.durable:
                _sync(fd, source)
        finally:
            os.close(fd)
        self._move(source, key, sync=sync)

    def sync(self, keys: Sequence[str]) -> None:
        """Make files and their names durable."""
        if not self.durable:
            return
        paths = [self._path(key) for key in keys]
        for key, path in zip(keys, paths, strict=True):
            if key not in self._durable_contents:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    _sync(fd, path)
                finally:
                    os.close(fd)
        self._sync_folders(sorted({path.parent for path in paths}))
        self._durable_contents.difference_update(keys)

    def local_path(self, key: str) -> Path | None:
        """Return the file."""
        return self._path(key)

    def open_append(self, key: str) -> FileAppend:
        """Open a file for appending."""
        path = self._path(key)
        self._make_folder(path.parent)
        return FileAppend(path, self)

    @contextmanager
    def lock(self, key: str) -> Iterator[bool]:
        """Hold a lock that the system takes back when this process ends, and that its forks do not keep."""
        path = self._path(key)
        self._make_folder(path.parent)
        fd = Handle(self._open_or_make(path, os.O_RDWR))
        try:
            yield _take_lock(fd.number)
        finally:
            fd.close()

    def is_locked(self, key: str) -> bool:
        """Tell whether a lock is held."""
        try:
            fd = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return _is_locked(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Remove the folder for unfinished files."""
        staging = self._stagings.pop(os.getpid(), None)
        if staging is not None:
            staging.remove()

    def _path(self, key: str) -> Path:
        """Return the file of a key. Keys are checked where they are made; this is the last fence."""
        if key.startswith("/") or "\0" in key or ".." in key.split("/"):
            raise OSError(errno.EINVAL, "no key of this store", key)
        return self._root / key

    def _write_staged(self, data: bytes, *, sync: bool) -> Path:
        """Write a new unfinished file."""
        path = self.staging() / os.urandom(8).hex()
        fd = self._make(path, os.O_WRONLY)
        try:
            _write_all(fd, data, path)
            if sync and self.durable:
                _sync(fd, path)
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(fd)
        return path

    def _make(self, path: Path, flags: int) -> int:
        """Open a new file; FileExistsError where there is one."""
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, self._file_mode)
        if self._shared:
            os.fchmod(fd, self._file_mode)  # whatever the umask left of it
        return fd

    def _open_or_make(self, path: Path, flags: int) -> int:
        """Open a file, made if absent."""
        if not self._shared:
            return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, self._file_mode)
        with suppress(FileExistsError):
            return self._make(path, flags)
        return os.open(path, flags | os.O_CLOEXEC)  # maybe another user's, whose mode is not ours to set

    def _move(self, source: Path, key: str, *, sync: bool) -> None:
        """Give a file with durable content its name."""
        target = self._path(key)
        self._make_folder(target.parent)
        source.replace(target)
        if sync:
            self._sync_folders([target.parent])
        else:
            self._durable_contents.add(key)

    def _make_folder(self, folder: Path, *, is_last_try: bool = False) -> None:
        """Make a folder and those above it."""
        try:
            folder.mkdir(mode=0o770 if self._shared else 0o700)
        except FileExistsError:
            if not folder.is_dir():
                raise
        except FileNotFoundError:
            if not folder.parent.is_dir():
                self._make_folder(folder.parent)
            elif is_last_try:  # one in which nothing can be made, such as /proc
                raise
            self._make_folder(folder, is_last_try=True)  # somebody else may just have made the one above
        else:
            if self._shared:
                # Whatever the umask left of it; what is made in a folder with setgid belongs to that folder's group.
                folder.chmod(0o770 | folder.stat().st_mode & stat.S_ISGID)
            if self.durable and folder in self._root.parents:
                _sync_folder(folder.parent)  # once and for all: `_sync_folders` does not climb above the store

    def _sync_folders(self, folders: Sequence[Path]) -> None:
        """Make the names in folders durable, and the folders' own names up to the root's.

        That a folder was there before does not mean that it is durable: another process may have just made it. Once
        this one has synced the name of a folder it stays so.
        """
        if not self.durable:
            return
        pending = dict.fromkeys(folders)
        named = set()
        for start in folders:
            folder = start
            while folder != self._root.parent and folder not in self._durable_folders and folder not in named:
                named.add(folder)
                folder = folder.parent
                pending[folder] = None
        for folder in pending:
            _sync_folder(folder)
        self._durable_folders |= named


class FileAppend:
    """A file that one process appends to.

    Parameters
    ----------
    path : Path
        The file, made if absent.
    store : FileStore
        The store it is part of.
    """

    def __init__(self, path: Path, store: FileStore) -> None:
        """Open the file."""
        self._path = path
        self._store = store
        self._owner = os.getpid()
        self._name_is_durable = False
        self._failed: OSError | None = None
        self._handle = Handle(store._open_or_make(path, os.O_WRONLY | os.O_APPEND))  # noqa: SLF001 # of this module
        self._size = os.fstat(self._handle.number).st_size

    def append(self, data: bytes, *, sync: bool) -> None:
        """Add bytes; OSError where they could not all be written or made durable, ESTALE where somebody else wrote.

        After a failed sync the system may have forgotten what it could not write, so that no later sync would tell:
        the file then refuses everything.
        """
        if self._failed is not None:
            text = f"{self._failed.strerror} at an earlier sync, so nothing more is written"
            raise OSError(self._failed.errno, text, str(self._path))
        if self._owner != os.getpid():
            raise OSError(errno.EPERM, "the file belongs to the process that forked this one", str(self._path))
        self._write(data)
        if not sync or not self._store.durable:
            return
        self._failed = OSError(errno.EINTR, os.strerror(errno.EINTR))  # unless something else is found to be the reason
        try:
            _sync_data(self._handle.number, self._path)
            if not self._name_is_durable:
                self._store._sync_folders([self._path.parent])  # noqa: SLF001 # one module, one idea of what is durable
                self._name_is_durable = True
        except OSError as error:
            self._failed = error
            raise
        self._failed = None

    def _write(self, data: bytes) -> None:
        """Write at the very end that this writer knows of: what it does not know was written by another one."""
        number = self._handle.number
        fcntl.flock(number, fcntl.LOCK_EX)
        try:
            if os.fstat(number).st_size != self._size:
                raise OSError(errno.ESTALE, "another process has written to it", str(self._path))
            try:
                _write_all(number, data, self._path)
            finally:
                self._size = os.fstat(number).st_size
        finally:
            fcntl.flock(number, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file."""
        self._handle.close()


def _take_lock(fd: int) -> bool:
    """Lock an open file if nobody has, and tell whether it worked."""
    try:
        if _HAS_OFD_LOCKS:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _LOCK_ALL)
        else:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _is_locked(fd: int) -> bool:
    """Tell whether an open file is locked."""
    if _HAS_OFD_LOCKS:
        kind, *_ = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _LOCK_ALL))
        return bool(kind != fcntl.F_UNLCK)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back when the file is closed
    except BlockingIOError:
        return True
    return False


def _write_all(fd: int, data: bytes, path: Path) -> None:
    """Write all bytes; the error names the file."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _read_up_to(fd: int, size: int) -> bytes:
    """Read until there are `size` bytes or the file ends."""
    pieces = []
    while size > 0 and (piece := os.read(fd, size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _sync(fd: int, path: Path) -> None:
    """Make an open file or folder durable; the error names it."""
    try:
        if _FULL_SYNC is not None:
            fcntl.fcntl(fd, _FULL_SYNC)
        else:
            os.fsync(fd)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _sync(fd, folder)
    finally:
        os.close(fd)


def _sync_data(fd: int, path: Path) -> None:
    """Make an open file's content durable, without its times; the error names it."""
    if not hasattr(os, "fdatasync"):
        _sync(fd, path)
        return
    try:
        os.fdatasync(fd)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
