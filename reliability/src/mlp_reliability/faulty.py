"""The filesystem ``faulty://``: a bucket in a local folder whose requests fail, or are done and said to have failed.

The bucket itself is as S3 is today: objects appear whole, listings tell all that is there, and creation if absent has
one winner. Only the way to it is bad. ``faulty:///path/to/folder`` is the URL; how bad it is, is said by arguments,
which for a store are the setting ``storage.options``.
"""

from __future__ import annotations

import errno
import http.client
import math
import os
import random
import stat
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from fsspec import AbstractFileSystem  # noqa: TID253 # fsspec itself imports this module, when it is asked for one

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_T = TypeVar("_T")

_UNFINISHED: Final = ".unfinished-"
"""What the names of files begin with that are no objects yet."""

_LONGEST_THROTTLING: Final = 4
_PAGE: Final = 1000


class SlowDownError(OSError):
    """The server asks for fewer requests, as S3 does: with the status 503."""

    response: ClassVar[dict[str, Any]] = {
        "ResponseMetadata": {"HTTPStatusCode": 503},
        "Error": {"Code": "SlowDown", "Message": "Please reduce your request rate."},
    }


class Faults:
    """Which requests fail, and how.

    Parameters
    ----------
    rate : float
        The share of requests that fail.
    seed : int
        What it is drawn from.
    latency_seconds : float
        The longest that a request takes.

    Attributes
    ----------
    requests, failed, done_but_failed : int
        How many there were, and what became of them.
    told : callable
        Called with the name of each request.
    """

    def __init__(self, rate: float, seed: int, latency_seconds: float) -> None:
        """Begin with no fault."""
        self.told: Callable[[str], None] = lambda _: None
        self._rate = rate
        self._rng = random.Random(seed)
        self._latency = latency_seconds
        self._throttled = 0
        self._mutex = threading.Lock()
        self.requests = 0
        self.failed = 0
        self.done_but_failed = 0

    def carry_out(self, request: Callable[[], _T], name: str = "", *, reads: bool = False) -> _T:
        """Carry out a request, or not, or and say that it failed."""
        self.told(name)
        before, after, latency = self._draw(reads=reads)
        if latency:
            time.sleep(latency)
        if before is not None:
            raise before
        answer = request()
        if after is not None:
            raise after
        return answer

    def _draw(self, *, reads: bool) -> tuple[Exception | None, Exception | None, float]:
        """Return what is raised before the request is carried out, and after it; and how long it takes."""
        with self._mutex:
            self.requests += 1
            latency = self._rng.random() * self._latency
            if self._throttled:
                self._throttled -= 1
                self.failed += 1
                return SlowDownError(errno.EIO, "slow down"), None, latency
            if self._rng.random() >= self._rate:
                return None, None, latency
            self.failed += 1
            if self._rng.random() < 0.1:  # noqa: PLR2004 # now and then
                self._throttled = self._rng.randint(1, _LONGEST_THROTTLING)
            error = self._error(reads=reads)
            if self._rng.random() < 0.5:  # noqa: PLR2004 # either
                return error, None, latency
            self.done_but_failed += 1
            return None, error, latency

    def _error(self, *, reads: bool) -> Exception:
        """Return an error as libraries of buckets raise them."""
        kinds: list[Exception] = [
            SlowDownError(errno.EIO, "slow down"),
            ConnectionResetError(errno.ECONNRESET, "connection reset by peer"),
            TimeoutError(errno.ETIMEDOUT, "no answer"),
            OSError(errno.EIO, "internal error"),
        ]
        if reads:
            kinds.append(http.client.IncompleteRead(b"half of it", 10))
        return self._rng.choice(kinds)


class FaultyFileSystem(AbstractFileSystem):  # type: ignore[misc] # fsspec has no types
    """A bucket in a local folder, with faults.

    Parameters
    ----------
    rate : float
        The share of requests that fail.
    seed : int
        What the faults are drawn from.
    latency_seconds : float
        The longest that a request takes.
    """

    protocol = "faulty"
    cachable = False
    exclusive_create = True

    def __init__(self, *, rate: float = 0.0, seed: int = 0, latency_seconds: float = 0.0, **arguments: object) -> None:
        """Open it; nothing is touched."""
        super().__init__(**arguments)
        self.faults = Faults(rate, seed, latency_seconds)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        """Return the folder that a URL names: always an absolute one."""
        return "/" + path.removeprefix("faulty://").strip("/")

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: object) -> None:
        """Write an object."""
        self.faults.carry_out(lambda: _write(Path(path), value, is_new=mode == "create"), "put")

    def put_file(self, lpath: str, rpath: str, **_: object) -> None:
        """Write an object from a file."""
        self.faults.carry_out(lambda: _write(Path(rpath), Path(lpath).read_bytes(), is_new=False), "put")

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: object) -> bytes:
        """Return a range of an object."""
        return self.faults.carry_out(lambda: _read(Path(path), start or 0, end), "get", reads=True)

    def info(self, path: str, **_: object) -> dict[str, Any]:
        """Return size and time of an object."""
        return self.faults.carry_out(lambda: _info(path), "head")

    def find(self, path: str, *, detail: bool = False, **_: object) -> Any:
        """Return the objects below a folder."""
        found = self.faults.carry_out(lambda: dict(_below(path)), "list")
        self._tell_pages(len(found))
        return found if detail else sorted(found)

    def ls(self, path: str, *, detail: bool = True, **_: object) -> Any:
        """Return what lies in a folder."""
        found = self.faults.carry_out(lambda: _inside(path), "list")
        self._tell_pages(len(found))
        return found if detail else [each["name"] for each in found]

    def _tell_pages(self, found: int) -> None:
        """Tell of the further requests that a bucket's listing takes, which comes in pages."""
        for _ in range(1, math.ceil(found / _PAGE)):
            self.faults.told("list")

    def rm_file(self, path: str) -> None:
        """Remove an object."""
        self.faults.carry_out(Path(path).unlink, "delete")


def _write(path: Path, data: bytes, *, is_new: bool) -> None:
    """Write a file that is whole from its first moment; FileExistsError where it must be new and is not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent / f"{_UNFINISHED}{os.urandom(8).hex()}"
    unfinished.write_bytes(data)
    try:
        if is_new:
            os.link(unfinished, path)
        else:
            unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _read(path: Path, start: int, end: int | None) -> bytes:
    """Return a range of a file."""
    with path.open("rb") as file:
        file.seek(start)
        return file.read() if end is None else file.read(max(0, end - start))


def _info(path: str) -> dict[str, Any]:
    """Return what fsspec tells of a file or folder."""
    status = Path(path).stat()
    kind = "file" if stat.S_ISREG(status.st_mode) else "directory"
    return {"name": path, "size": status.st_size, "type": kind, "mtime": status.st_mtime}


def _below(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the files below a folder."""
    for folder, _, names in os.walk(path):
        for name in names:
            full = f"{folder}/{name}"
            if not name.startswith(_UNFINISHED):
                try:
                    yield full, _info(full)
                except FileNotFoundError:  # removed since
                    continue


def _inside(path: str) -> list[dict[str, Any]]:
    """Return what lies in a folder; a folder without objects is not there."""
    names = [name for name in os.listdir(path) if not name.startswith(_UNFINISHED)]  # noqa: PTH208 # only names
    found = []
    for name in sorted(names):
        full = f"{path}/{name}"
        if Path(full).is_dir() and next(_below(full), None) is None:
            continue
        try:
            found.append(_info(full))
        except FileNotFoundError:  # removed since
            continue
    return found
