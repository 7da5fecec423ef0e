"""Objects on a filesystem of fsspec: requests are tried again, transfers parallel, uploads in the background."""

from __future__ import annotations

import errno
import functools
import os
import re
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mlp_core.builtin.fsspec_store import failures
from mlp_core.builtin.fsspec_store.filesystems import S3, PartUploads, filesystem_class, open_filesystem
from mlp_core.builtin.fsspec_store.retrying import Retrying
from mlp_core.builtin.staging import Staging
from mlp_hookspecs.handles import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from mlp_core.builtin.fsspec_store.filesystems import Filesystem, Version

_OWN: Final = "tmp"
"""The folder for what is no object; no object's key begins with it."""

_PROBE: Final = f"{_OWN}/create-if-absent"
"""The object by which servers are asked whether their creation is exclusive: it is there once it was asked."""

_REQUESTS: Final = 8
"""Requests at once for one process's transfers; each has at most one part in memory."""

_UPLOADS: Final = 4
"""Files that one process uploads at once."""

_INSTALL: Final = re.compile(r"^(?:please )?install ([a-z0-9_-]+) to access .*", re.IGNORECASE)
"""How fsspec says most often which distribution is missing."""

_Page = TypeVar("_Page")

_RANGE_BYTES: Final = 8 << 20
_UPLOAD_TRIES: Final = 3


class FsspecStore:
    """Objects on a filesystem of fsspec. It is opened for each process when that first asks for something.

    Parameters
    ----------
    url : str
        The store's URL, without credentials.
    options : mapping of str to object
        Arguments of the filesystem's class.
    retry_seconds : float
        How long one request is tried in all.

    Raises
    ------
    OSError
        Where the URL is none for a store, or its library is not installed.
    """

    def __init__(self, url: str, options: Mapping[str, Any], *, retry_seconds: float) -> None:
        """Check the URL; nothing is asked of the filesystem yet, nor is a thread started."""
        self._url, self._root = _place(url)
        self._options = options
        self._retry_seconds = retry_seconds
        self._processes: dict[int, _Process] = {}

    def __repr__(self) -> str:
        """Name the place, and nothing of the options, which may be secrets."""
        return f"FsspecStore({self.url!r})"

    @property
    def url(self) -> str:
        """The store's URL."""
        return self._url

    @property
    def creates_once(self) -> bool:
        """Whether creation is exclusive; where that is the server's to say, it was tried."""
        return self._here.creates_once

    def create(self, key: str, data: bytes, *, sync: bool) -> bool:  # noqa: ARG002 # what is there is durable
        """Write an object if absent."""
        here, path = self._here, self._path(key)
        here.settle(key, forget=True)
        while True:
            if not here.creates_once:
                if here.exists(path):
                    return False
                here.ask(key, lambda: here.files.put(path, data))
                return True
            try:
                here.ask(key, lambda: here.files.put_new(path, data), passing=failures.is_conflict)
            except Exception as error:
                if not failures.is_conflict(error):
                    raise
            else:
                return True
            try:
                # The answer to an earlier attempt may have been lost: then the object is this call's own.
                return here.version(path, key).size == len(data) and here.read(path, key, 0, None) == data
            except FileNotFoundError:
                continue  # deleted since

    def replace(self, key: str, data: bytes, *, sync: bool) -> None:  # noqa: ARG002 # what is there is durable
        """Write an object, in the place of an earlier one."""
        here, path = self._here, self._path(key)
        here.settle(key, forget=True)
        here.ask(key, lambda: here.files.put(path, data))

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Return a range of an object."""
        here, path = self._here, self._path(key)
        here.settle(key)
        if end is not None and end <= start:
            here.version(path, key)  # which has to be there
            return b""
        return here.read(path, key, start, end)

    def download(self, key: str, target: Path) -> None:
        """Write an object to a file, in parallel ranges where it is large."""
        here, path = self._here, self._path(key)
        here.settle(key)
        version = here.version(path, key)
        try:
            while (now := here.fetch(path, key, version, target)) != version:
                target.unlink()  # its ranges may be of two objects
                version = now
        except BaseException:
            with suppress(OSError):
                target.unlink()
            raise

    def info(self, key: str) -> ObjectInfo:
        """Return size and time of an object."""
        here = self._here
        here.settle(key)
        version = here.version(self._path(key), key)
        return ObjectInfo(key, version.size, version.modified_at)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Iterate over the objects below a prefix, as the filesystem's pages come."""
        here, folder = self._here, self._path(prefix)
        here.settle_below(prefix)
        for page in here.pages(prefix, functools.partial(here.files.objects, folder)):
            for found in page:
                key = found.key.removeprefix(self._root)
                if not key.startswith(f"{_OWN}/"):
                    yield ObjectInfo(key, found.size, found.modified_at)

    def children(self, prefix: str) -> Sequence[str]:
        """Return the names directly below a prefix, sorted."""
        here, folder = self._here, self._path(prefix)
        here.settle_below(prefix)
        found = set().union(*here.pages(prefix, functools.partial(here.files.names, folder)))
        return sorted(found if prefix else found - {_OWN})

    def delete(self, key: str) -> None:
        """Remove an object."""
        here, path = self._here, self._path(key)
        here.settle(key, forget=True)
        try:
            here.ask(key, lambda: here.files.delete(path), passing=failures.is_absence)
        except FileNotFoundError:
            return

    def staging(self) -> Path:
        """Return this process's folder for unfinished files, removed when its process has ended."""
        return self._here.staging()

    def adopt(self, source: Path, key: str, *, sync: bool) -> None:
        """Upload a file and remove it; without sync in the background."""
        here, path = self._here, self._path(key)
        here.settle(key, forget=True)
        if sync:
            here.upload(source, path, key)
            return
        source.stat()  # absence is told at once
        here.begin_upload(source, path, key)

    def sync(self, keys: Sequence[str]) -> None:
        """Wait for uploads in the background, and raise the failure of one that failed. All else is durable."""
        here = self._here
        for failure in [here.settle(key, forget=True) for key in keys]:
            if failure is not None:
                raise failure

    def local_path(self, key: str) -> None:
        """Return None: objects have no files here."""

    def open_append(self, key: str) -> None:
        """Return None: objects do not grow."""

    def lock(self, key: str) -> None:
        """Return None: there are no locks."""

    def is_locked(self, key: str) -> bool:  # noqa: ARG002 # the protocol's signature
        """Tell that nobody holds a lock."""
        return False

    def close(self) -> None:
        """Let running uploads end, drop the others, and close this process's connections."""
        here = self._processes.pop(os.getpid(), None)
        if here is not None:
            here.close()

    @property
    def _here(self) -> _Process:
        """What this process uses: a filesystem's connections and threads do not survive a fork."""
        found = self._processes.get(os.getpid())
        if found is None:
            opened = functools.partial(open_filesystem, self._url, self._root, self._options)
            ask = Retrying(self._url, self._retry_seconds, failures.masker(self._options))
            made = _Process(opened, self._root, ask)
            found = self._processes.setdefault(os.getpid(), made)  # another thread may have been first
        return found

    def _path(self, key: str) -> str:
        """Return the path of a key. Keys are checked where they are made; this is the last fence."""
        if key.startswith("/") or "\0" in key or ".." in key.split("/"):
            raise OSError(errno.EINVAL, "no key of this store", key)
        return self._root + key


class _Process:
    """What one process has open: the filesystem, its threads, the uploads that are under way.

    Parameters
    ----------
    opened : callable
        Opens the filesystem.
    root : str
        The store's folder in it.
    ask : Retrying
        Carries out requests.
    """

    def __init__(self, opened: Callable[[], Filesystem], root: str, ask: Retrying) -> None:
        """Open nothing yet."""
        self._opened = opened
        self._root = root
        self._lock = threading.Lock()
        self._files: Filesystem | None = None
        self._staging: Staging | None = None
        self._is_exclusive: bool | None = None
        self._requests = ThreadPoolExecutor(_REQUESTS, "mlp-request")
        self._uploads = ThreadPoolExecutor(_UPLOADS, "mlp-upload")
        self._pending: dict[str, Future[None]] = {}
        self.ask = ask

    @property
    def files(self) -> Filesystem:
        """The filesystem."""
        if self._files is None:
            with self._lock:
                if self._files is None:
                    self._files = self._open()
        return self._files

    def _open(self) -> Filesystem:
        """Open the filesystem, which asks nobody."""
        try:
            return self._opened()
        except Exception as error:  # arguments that its class does not take are told in many ways
            raise self.ask.told(error, "") from error

    @property
    def creates_once(self) -> bool:
        """Whether creation is exclusive."""
        if self._is_exclusive is None:
            declared = self.files.creates_once
            self._is_exclusive = self._refuses_a_second() if declared is None else declared
        return self._is_exclusive

    def _refuses_a_second(self) -> bool:
        """Tell whether the server refuses to create what is there, by trying it."""
        for _ in range(2):  # the first time that a store is asked, the first of them makes the object
            try:
                self.ask(_PROBE, lambda: self.files.put_new(f"{self._root}{_PROBE}", b""), passing=failures.is_conflict)
            except Exception as error:
                if not failures.is_conflict(error):
                    raise
                return True
        return False

    def pages(self, prefix: str, ask_for: Callable[[str], tuple[_Page, str]]) -> Iterator[_Page]:
        """Yield the pages of a listing, each of which is tried again by itself."""
        begin = ""
        while True:
            page, begin = self.ask(prefix, functools.partial(ask_for, begin))
            yield page
            if not begin:
                return

    def exists(self, path: str) -> bool:
        """Tell whether there is an object."""
        try:
            self.version(path, path)
        except FileNotFoundError:
            return False
        return True

    def version(self, path: str, key: str) -> Version:
        """Return what an object is now; FileNotFoundError where there is none."""
        return self.ask(key, lambda: self.files.version(path))

    def read(self, path: str, key: str, start: int, end: int | None) -> bytes:
        """Return a range of an object."""
        try:
            return self.ask(key, lambda: self.files.read(path, start, end), passing=failures.is_past_the_end)
        except Exception as error:
            if failures.is_past_the_end(error):
                return b""
            raise

    def fetch(self, path: str, key: str, version: Version, target: Path) -> Version:
        """Write an object to a new file; return what it is after that: where it has changed, the file is no object."""
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:

            def fetch(start: int) -> bool:
                end = min(start + _RANGE_BYTES, version.size)
                view = memoryview(self.read(path, key, start, end))
                while view:
                    written = os.pwrite(fd, view, start)
                    view, start = view[written:], start + written
                return start == end

            is_whole = all(self._each(fetch, range(0, version.size, _RANGE_BYTES)))
        finally:
            os.close(fd)
        if is_whole and version.size <= _RANGE_BYTES:
            return version  # it came in one piece
        now = self.version(path, key)
        if now == version and not is_whole:
            raise self.ask.told(OSError(errno.EIO, "fewer bytes came than there are"), key)
        return now

    def upload(self, source: Path, path: str, key: str) -> None:
        """Write an object from a file, and remove the file, whatever becomes of the object."""
        try:
            size = source.stat().st_size
            files = self.files
            if size <= _RANGE_BYTES:
                data = source.read_bytes()
                self.ask(key, lambda: files.put(path, data))
            elif isinstance(files, PartUploads):
                self._upload_parts(files, source, path, key)
            else:
                self.ask(key, lambda: files.put_file(path, source))
        finally:
            source.unlink(missing_ok=True)

    def _upload_parts(self, files: PartUploads, source: Path, path: str, key: str) -> None:
        """Write an object in parts, each of which is tried again by itself."""
        tries = 0
        while not self._try_parts(files, source, path, key, is_last=tries == _UPLOAD_TRIES - 1):
            tries += 1

    def _try_parts(self, files: PartUploads, source: Path, path: str, key: str, *, is_last: bool) -> bool:
        """Write an object in parts; return False where the upload has vanished, unless it is the last."""
        size = source.stat().st_size
        part = files.part_size(size)
        upload = self.ask(key, lambda: files.begin_upload(path))
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:

            def send(start: int) -> str:
                data = os.pread(fd, part, start)
                return self.ask(key, lambda: files.upload_part(path, upload, start // part + 1, data))

            tags = self._each(send, range(0, size, part))
            self.ask(key, lambda: files.end_upload(path, upload, tags))
        except BaseException as error:
            files.abort_upload(path, upload)
            # Somebody ended the upload; or this did, and the answer was lost. Only a new one can tell.
            if isinstance(error, FileNotFoundError) and not is_last:
                return False
            raise
        finally:
            os.close(fd)
        return True

    def _each(self, function: Callable[[int], Any], items: Sequence[int]) -> list[Any]:
        """Call a function with each item, several at once, and return the answers in order."""
        if len(items) == 1:
            return [function(items[0])]
        futures = [self._requests.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            for future in futures:
                if not future.cancelled():
                    future.exception()  # it may be using what is about to be closed
            raise

    def begin_upload(self, source: Path, path: str, key: str) -> None:
        """Upload a file in the background."""
        future = self._uploads.submit(self.upload, source, path, key)
        with self._lock:
            self._pending[key] = future

    def settle(self, key: str, *, forget: bool = False) -> BaseException | None:
        """Wait until no upload of a key is under way; return how the last one failed, until that is forgotten."""
        future = self._pending.get(key)
        if future is None:
            return None
        failure = future.exception()
        if forget or failure is None:
            with self._lock:
                if self._pending.get(key) is future:
                    del self._pending[key]
        return failure

    def settle_below(self, prefix: str) -> None:
        """Wait until no upload below a prefix is under way."""
        with self._lock:
            keys = [*self._pending]
        for key in keys:
            if key.startswith(prefix):
                self.settle(key)

    def staging(self) -> Path:
        """Return the folder for unfinished files."""
        with self._lock:
            if self._staging is None:
                self._staging = Staging(_staging_parent(), functools.partial(Path.mkdir, mode=0o700))
            return self._staging.path

    def close(self) -> None:
        """End the threads, close the connections, remove unfinished files."""
        self._uploads.shutdown(cancel_futures=True)
        self._requests.shutdown()
        if self._files is not None:
            self._files.close()
        if self._staging is not None:
            self._staging.remove()


def _place(url: str) -> tuple[str, str]:
    """Return the protocol and the folder of a URL; OSError where it is none for a store. The URL is never shown."""
    protocol, _, rest = url.partition("://")
    authority = rest.partition("/")[0]
    if ":" in authority.rpartition("@")[0] or ("@" in authority and protocol in (*S3, "gs", "gcs")):
        raise OSError(
            errno.EINVAL,
            "it has credentials, which a store's URL never has: give them by the environment, such as"
            " AWS_ACCESS_KEY_ID, or by the variable MLP_STORAGE_OPTIONS, as JSON",
        )
    if not rest.strip("/") or "?" in rest or "#" in rest or "\0" in rest or ".." in rest.split("/"):
        raise OSError(errno.EINVAL, f"it names no bucket or folder; one looks like {protocol}://bucket/folder")
    if protocol in ("local", "file"):
        raise OSError(errno.EINVAL, "a local folder is named by its path, or by a URL like file:///path")
    try:
        kind = filesystem_class(protocol)
    except ValueError as error:
        raise OSError(errno.EPROTONOSUPPORT, f"neither a plugin nor fsspec knows {protocol}") from error
    except ImportError as error:
        text = _INSTALL.sub(r"pip install \1", str(error))
        command = "pip install 'mlp-core[s3]'" if protocol in S3 else text
        raise OSError(errno.ENOPKG, f"the library for {protocol} is not installed: {command}") from error
    return f"{protocol}://{rest.strip('/')}", str(kind._strip_protocol(url)).rstrip("/") + "/"  # noqa: SLF001 # how fsspec itself is asked


def _staging_parent() -> Path:
    """Return a folder of this user's own among the temporary ones."""
    parent = Path(tempfile.gettempdir()) / f"mlp-staging-{os.getuid()}"
    parent.mkdir(mode=0o700, exist_ok=True)
    status = parent.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or parent.is_symlink():
        raise OSError(errno.EPERM, "the folder for unfinished files is not this user's alone", str(parent))
    return parent
