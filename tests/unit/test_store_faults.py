"""What the system's errors mean for a store, and how a store that cannot be opened is told."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mlp_core.builtin.file_store import FileStore
from mlp_core.errors import StoreError, StoreFenced, StoreFull, StoreUnavailable
from mlp_core.store.faults import GuardedObjects, opened, store_error, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, StoreFull),
        (errno.EDQUOT, StoreFull),
        (errno.EACCES, StoreUnavailable),
        (errno.EROFS, StoreUnavailable),
        (errno.EMFILE, StoreError),
        (errno.EIO, StoreError),
    ],
)
def test_each_error_has_a_meaning(number: int, kind: type[StoreError]) -> None:
    """A full store, one that cannot be used, and one that fails are three things; each names the place."""
    error = store_error(OSError(number, os.strerror(number)), "the place")
    assert type(error) is kind
    assert "the place" in error.message
    assert os.strerror(number) in error.message
    assert type(store_error(OSError(number, os.strerror(number), "its own"), "the place")) is kind


def test_absence_passes_where_something_is_read() -> None:
    """Absence stays FileNotFoundError for who reads, and is the store's error for who makes something."""
    with pytest.raises(FileNotFoundError), translated("there"):
        raise FileNotFoundError(errno.ENOENT, "absent")
    with pytest.raises(StoreUnavailable), translated("there", absence_passes=False):
        raise FileNotFoundError(errno.ENOENT, "absent")


@pytest.mark.parametrize("url", ["a\0b", "bad \udc00 name \ud800"])
def test_what_cannot_be_a_place_is_refused(url: str) -> None:
    """A name that no system takes is refused before anything is opened."""
    with pytest.raises(StoreUnavailable, match="no place has such a name"):
        opened(url, lambda _: pytest.fail("it is opened"))


def test_what_cannot_be_opened_is_told_without_credentials() -> None:
    """The reason is told, with the notes that a plugin left; a user's name and password in the URL are not."""

    def refuse(_url: str) -> None:
        error = OSError(errno.ECONNREFUSED, "nobody answers")
        error.add_note("from plugin tape")
        raise error

    with pytest.raises(StoreUnavailable) as caught:
        opened("tape://ada:secret@host/folder", refuse)  # type: ignore[arg-type] # it never returns
    assert "nobody answers" in caught.value.message
    assert "secret" not in str(caught.value)
    assert caught.value.__notes__ == ["from plugin tape"]


def test_somebody_elses_write_is_a_fence() -> None:
    """What says that the file was changed by another process is the store's fence."""
    error = store_error(OSError(errno.ESTALE, "stale"), "the journal")
    assert isinstance(error, StoreFenced)
    assert error.message == "another process has taken over the journal"


def test_the_system_s_own_words_are_shown() -> None:
    """The reason is what the system calls it, or the error's text where it has no such words."""
    assert store_error(OSError(errno.EIO, "its words"), "it").message == "the store failed at it: its words"
    assert store_error(OSError("text alone"), "it").message == "the store failed at it: text alone"
    for error, told in ((OSError(errno.EIO, "its words"), "opened: its words"), (OSError("alone"), "opened: alone")):

        def refuse(_url: str, error: OSError = error) -> None:
            raise error

        with pytest.raises(StoreUnavailable) as caught:
            opened("tape://x", refuse)  # type: ignore[arg-type] # it never returns
        assert caught.value.message.endswith(told)


@pytest.mark.parametrize(
    "make",
    [
        lambda objects: objects.create("k", b"", sync=False),
        lambda objects: objects.replace("k", b"", sync=False),
        lambda objects: objects.staging(),
        lambda objects: objects.adopt(Path("x"), "k", sync=False),
        lambda objects: objects.open_append("k"),
        lambda objects: objects.lock("k").__enter__(),
    ],
    ids=["create", "replace", "staging", "adopt", "open_append", "lock"],
)
def test_what_is_made_cannot_be_absent(make: Callable[[GuardedObjects], object], tmp_path: Path) -> None:
    """A missing folder is the store's failure for who makes something there, with its place."""
    with pytest.raises(StoreUnavailable, match=r"in absent:|absent: "):
        make(GuardedObjects(Absent(tmp_path)))


class Absent(FileStore):
    """A store in which everything is absent."""

    @property
    def url(self) -> str:
        """A name of its own."""
        return "absent:"

    def _refuse(self, *_arguments: object, **_options: object) -> Any:
        """Say that it is not there."""
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    create = replace = staging = adopt = open_append = read = info = delete = sync = is_locked = download = _refuse

    @contextmanager
    def lock(self, _key: str) -> Any:
        """Return a lock that cannot be taken."""
        yield self._refuse()


@pytest.mark.parametrize(
    "look",
    [
        lambda objects: objects.read("k"),
        lambda objects: objects.info("k"),
        lambda objects: objects.delete("k"),
        lambda objects: objects.download("k", Path("x")),
        lambda objects: objects.sync(["k"]),
        lambda objects: objects.is_locked("k"),
    ],
    ids=["read", "info", "delete", "download", "sync", "is_locked"],
)
def test_what_is_read_may_be_absent(look: Callable[[GuardedObjects], object], tmp_path: Path) -> None:
    """For who reads, absence is no failure of the store."""
    with pytest.raises(FileNotFoundError):
        look(GuardedObjects(Absent(tmp_path)))


def test_a_guarded_store_does_what_the_store_does(tmp_path: Path) -> None:
    """Every operation reaches the store, with all that was given, and what it returns comes back."""
    inner = FileStore(tmp_path / "store")
    objects = GuardedObjects(inner)
    assert (objects.url, objects.creates_once) == (inner.url, True)
    assert objects.create("a/k", b"12345", sync=True)
    assert not objects.create("a/k", b"", sync=True)
    objects.replace("a/l", b"abc", sync=True)
    assert (objects.read("a/k"), objects.read("a/k", 1), objects.read("a/k", 1, 3)) == (b"12345", b"2345", b"23")
    assert (objects.info("a/k").size, [info.key for info in objects.list("a/")]) == (5, ["a/k", "a/l"])
    assert objects.children("") == ["a"]
    objects.download("a/k", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"12345"
    staged = objects.staging() / "file"
    staged.write_bytes(b"staged")
    objects.adopt(staged, "a/m", sync=True)
    assert objects.read("a/m") == b"staged"
    objects.sync(["a/m"])
    objects.sync([])
    objects.delete("a/m")
    assert objects.children("a/") == ["k", "l"]
    assert objects.local_path("a/k") == inner.local_path("a/k")
    file = objects.open_append("log")
    assert file is not None
    file.append(b"1", sync=True)
    file.close()
    assert objects.read("log") == b"1"
    for _ in range(2):
        lock = objects.lock("lock")
        assert lock is not None
        with lock as is_free:
            assert is_free
            assert objects.is_locked("lock")
    assert not objects.is_locked("lock")
    objects.close()


def test_closing_reaches_the_store(tmp_path: Path) -> None:
    """A guard, and the guard of a file that grows, close what they guard."""
    closed: list[str] = []

    class Closing(FileStore):
        def close(self) -> None:
            closed.append("store")
            super().close()

    objects = GuardedObjects(Closing(tmp_path))
    before = len(list(Path("/dev/fd").iterdir()))
    file = objects.open_append("log")
    assert file is not None
    file.close()
    objects.close()
    assert closed == ["store"]
    assert len(list(Path("/dev/fd").iterdir())) <= before


def test_what_fails_under_a_lock_is_not_the_lock_s_failure(tmp_path: Path) -> None:
    """An error of what is done under a lock passes as it is, and the lock is free again."""
    objects = GuardedObjects(FileStore(tmp_path))
    lock = objects.lock("lock")
    assert lock is not None
    with pytest.raises(FileNotFoundError, match="mine"), lock:
        raise FileNotFoundError("mine")
    assert not objects.is_locked("lock")
    objects.close()


def test_a_lock_is_let_go_of_when_its_work_is_done_or_fails() -> None:
    """The guard of a lock ends with it, whatever happens under it."""
    ended: list[str] = []

    class Locks:
        url = "memory://"

        @contextmanager
        def lock(self, key: str) -> Iterator[bool]:
            yield True
            ended.append(key)

    objects = GuardedObjects(Locks())  # type: ignore[arg-type] # nothing else is asked of it
    for key in ("first", "second"):
        lock = objects.lock(key)
        assert lock is not None
        with suppress(KeyError), lock as is_free:
            assert is_free
            if key == "second":
                raise KeyError(key)
        assert ended[-1] == key
