"""How bytes travel between stores: hashed on the way, a few at a time, in memory that does not grow with them."""

from __future__ import annotations

import hashlib
import os
import secrets
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TYPE_CHECKING, Final, TypeVar

from mlp_core.store.content import digest_text, hash_file
from mlp_core.store.faults import translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Executor
    from pathlib import Path

    from mlp_hookspecs.handles import ObjectStore

    _Item = TypeVar("_Item")
    _Result = TypeVar("_Result")

PIECE: Final = 2**20
"""How much is in memory at once of each object on its way."""


def write_hashed(pieces: Iterable[bytes | memoryview], target: Path) -> tuple[str, int]:
    """Write a new file, and return digest and size of what was written; a failure leaves no file.

    Parameters
    ----------
    pieces : iterable of bytes
        The content.
    target : pathlib.Path
        The file, which must not be there.
    """
    hasher = hashlib.sha256()
    size = 0
    with translated(str(target), absence_passes=False):
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for piece in pieces:
            hasher.update(piece)
            size += len(piece)
            view = memoryview(piece)
            with translated(str(target), absence_passes=False):
                while view:
                    view = view[os.write(fd, view) :]
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    return digest_text(hasher), size


def fetch(objects: ObjectStore, key: str, target: Path, go_on: Callable[[], None] = lambda: None) -> tuple[str, int]:
    """Copy an object into a new file, and return digest and size of what was copied.

    Parameters
    ----------
    objects : ObjectStore
        Where it is.
    key : str
        The object.
    target : pathlib.Path
        The file, which must not be there.
    go_on : callable
        Called between two pieces; it raises to end the copying.

    Raises
    ------
    FileNotFoundError
        Where there is no such object.
    """
    path = objects.local_path(key)
    if path is not None:
        return write_hashed(_pieces(path, go_on), target)
    go_on()
    objects.download(key, target)
    with translated(str(target)):
        return hash_file(target)


def pieces_of(objects: ObjectStore, key: str, size: int) -> Iterator[bytes | memoryview]:
    """Iterate over the content of an object; over nothing where it is not of the size that it should be.

    Raises
    ------
    FileNotFoundError
        Where there is no such object.
    """
    if objects.info(key).size != size:
        return
    path = objects.local_path(key)
    if path is not None:
        yield from _pieces(path)
        return
    staged = objects.staging() / secrets.token_hex(8)
    objects.download(key, staged)
    try:
        yield from _pieces(staged)
    finally:
        staged.unlink()


def _pieces(path: Path, go_on: Callable[[], None] = lambda: None) -> Iterator[memoryview]:
    """Iterate over a local file's content."""
    buffer = memoryview(bytearray(PIECE))
    with translated(str(path)), path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            yield buffer[:size]
            go_on()


def in_parallel(
    pool: Executor,
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    at_once: int,
    stop: Callable[[], None] = lambda: None,
) -> Iterator[_Result]:
    """Call a function for each item in a pool, and iterate over the results as they come.

    Parameters
    ----------
    pool : Executor
        The pool.
    function : callable
        Called with one item.
    items : iterable
        Taken one by one, so that what waits does not grow.
    at_once : int
        How many are in the pool at most.
    stop : callable
        Called where one has failed or nobody wants the rest, before those that are under way are waited for.
    """
    pending: set[Future[_Result]] = set()
    try:
        for item in items:
            if len(pending) >= at_once:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
            pending.add(pool.submit(function, item))
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BaseException:
        stop()
        for future in pending:
            future.cancel()
        wait(pending)
        raise
