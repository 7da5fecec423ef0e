"""A small correct store, and stores with one mistake each."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

from mlp_hookspecs import Backend, hookimpl
from mlp_hookspecs.handles import ObjectInfo


class ToyAppend:
    """An open file."""

    mode = "ab"

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open(self.mode, buffering=0)

    def append(self, data: bytes, *, sync: bool) -> None:
        """Write."""
        self.file.write(data)

    def close(self) -> None:
        """Close."""
        self.file.close()


class ToyStore:
    """Objects as files."""

    appending = ToyAppend

    def __init__(self, url: str) -> None:
        self.root = Path(url.removeprefix("toy://"))

    @property
    def url(self) -> str:
        """The URL."""
        return f"toy://{self.root}"

    @property
    def creates_once(self) -> bool:
        """Links are exclusive."""
        return True

    def path(self, key: str) -> Path:
        """The file of a key."""
        return self.root / "objects" / key

    def staged(self, data: bytes) -> Path:
        """A new complete file."""
        path = self.staging() / uuid.uuid4().hex
        path.write_bytes(data)
        return path

    def create(self, key: str, data: bytes, *, sync: bool) -> bool:
        """Link a new file."""
        source = self.staged(data)
        self.path(key).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, self.path(key))
        except FileExistsError:
            return False
        finally:
            source.unlink()
        return True

    def replace(self, key: str, data: bytes, *, sync: bool) -> None:
        """Rename a new file."""
        self.adopt(self.staged(data), key, sync=sync)

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Read a range."""
        return self.path(key).read_bytes()[start:end]

    def download(self, key: str, target: Path) -> None:
        """Copy."""
        shutil.copyfile(self.path(key), target)

    def info(self, key: str) -> ObjectInfo:
        """Size and time."""
        if self.path(key).is_dir():
            raise FileNotFoundError(key)
        status = self.path(key).stat()
        return ObjectInfo(key, status.st_size, status.st_mtime)

    def list(self, prefix: str):
        """All files below."""
        top = self.root / "objects"
        for path in sorted((top / prefix).rglob("*")):
            if path.is_file():
                yield self.info(path.relative_to(top).as_posix())

    def children(self, prefix: str) -> list[str]:
        """Names below."""
        folder = self.root / "objects" / prefix
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def delete(self, key: str) -> None:
        """Unlink."""
        self.path(key).unlink(missing_ok=True)

    def staging(self) -> Path:
        """A folder."""
        folder = self.root / "staging"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def adopt(self, source: Path, key: str, *, sync: bool) -> None:
        """Rename."""
        self.path(key).parent.mkdir(parents=True, exist_ok=True)
        source.replace(self.path(key))

    def sync(self, keys: list[str]) -> None:
        """Nothing: toys do not survive power cuts."""

    def local_path(self, key: str) -> Path | None:
        """The file."""
        return self.path(key)

    def open_append(self, key: str) -> ToyAppend | None:
        """Open."""
        return self.appending(self.path(key))

    @contextmanager
    def lock(self, key: str):
        """Lock a file."""
        self.path(key).parent.mkdir(parents=True, exist_ok=True)
        with self.path(key).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def is_locked(self, key: str) -> bool:
        """Try with a shared lock."""
        if not self.path(key).exists():
            return False
        with self.path(key).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def close(self) -> None:
        """Nothing to do."""


class Overwriting(ToyStore):
    """Creates over what is there."""

    def create(self, key: str, data: bytes, *, sync: bool) -> bool:
        self.replace(key, data, sync=sync)
        return True


class LookingFirst(ToyStore):
    """Looks whether a key is free, and then takes it."""

    def create(self, key: str, data: bytes, *, sync: bool) -> bool:
        if self.path(key).exists():
            return False
        time.sleep(0.001)
        self.replace(key, data, sync=sync)
        return True


class InPlace(ToyStore):
    """Writes under the final name."""

    def replace(self, key: str, data: bytes, *, sync: bool) -> None:
        self.path(key).parent.mkdir(parents=True, exist_ok=True)
        with self.path(key).open("wb", buffering=0) as file:
            for start in range(0, len(data), 4096):
                file.write(data[start : start + 4096])


class EndBlind(ToyStore):
    """Reads to the end, whatever was asked for."""

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        return super().read(key, start)


class Shallow(ToyStore):
    """Lists only what lies directly below."""

    def list(self, prefix: str):
        for info in super().list(prefix):
            if "/" not in info.key.removeprefix(prefix):
                yield info


class Unsorted(ToyStore):
    """Names children in any order."""

    def children(self, prefix: str) -> list[str]:
        return super().children(prefix)[::-1]


class Touchy(ToyStore):
    """Cannot delete what is not there."""

    def delete(self, key: str) -> None:
        self.path(key).unlink()


class EmptyForAbsent(ToyStore):
    """Reads nothing from nothing."""

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        return super().read(key, start, end) if self.path(key).exists() else b""


class Untidy(ToyStore):
    """Stages among the objects."""

    def staging(self) -> Path:
        folder = self.root / "objects" / "staging"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


class Copying(ToyStore):
    """Adopts a copy."""

    def adopt(self, source: Path, key: str, *, sync: bool) -> None:
        self.path(key).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, self.path(key))


class Vague(ToyStore):
    """Does not say whether its creates are exclusive."""

    creates_once = None


class Distracted(ToyStore):
    """Looks first whether a key is free, and takes another thread's word for it."""

    def create(self, key: str, data: bytes, *, sync: bool) -> bool:
        self.taken = self.path(key).exists()
        time.sleep(0.001)
        if not self.taken:
            self.replace(key, data, sync=sync)
        return not self.taken


class OneThread(ToyStore):
    """Keeps what it is asked for in one place."""

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        self.asked = key
        time.sleep(0.001)
        return super().read(self.asked, start, end)


class OneProcess(ToyStore):
    """Works only where it was opened."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.owner = os.getpid()

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        if self.owner != os.getpid():
            raise OSError("not my process")
        return super().read(key, start, end)


class FirstPart(ToyStore):
    """Downloads the first part of large objects."""

    def download(self, key: str, target: Path) -> None:
        target.write_bytes(self.read(key, 0, 16 << 20))


class Littering(ToyStore):
    """Makes the file before it looks for the object."""

    def download(self, key: str, target: Path) -> None:
        target.touch()
        super().download(key, target)


class Forgetful(ToyStore):
    """Adopts in the background what it never gets to."""

    def adopt(self, source: Path, key: str, *, sync: bool) -> None:
        if sync:
            super().adopt(source, key, sync=sync)


class Late(ToyStore):
    """Adopts in the background, and does not know of it itself."""

    def adopt(self, source: Path, key: str, *, sync: bool) -> None:
        self.later = source, key
        if sync:
            self.sync([key])

    def sync(self, keys: list[str]) -> None:
        if keys:
            super().adopt(*self.later, sync=True)


class Silent(ToyStore):
    """Says nothing of what it could not adopt."""

    def adopt(self, source: Path, key: str, *, sync: bool) -> None:
        if source.exists():
            super().adopt(source, key, sync=sync)


class Eager(ToyStore):
    """Makes something as soon as it is opened."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.create("format", b"1", sync=True)


class TruncatingAppend(ToyAppend):
    """Begins anew."""

    mode = "wb"


class Truncating(ToyStore):
    """Forgets what had been appended."""

    appending = TruncatingAppend


class BufferingAppend(ToyAppend):
    """Keeps what was appended to itself."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("ab")


class Buffering(ToyStore):
    """Shows what was appended only at the end."""

    appending = BufferingAppend


class Lasting(ToyStore):
    """Locks by the presence of a file."""

    @contextmanager
    def lock(self, key: str):
        is_free = self.create(f"{key}.held", b"", sync=False)
        yield is_free
        if is_free:
            self.delete(f"{key}.held")

    def is_locked(self, key: str) -> bool:
        return self.path(f"{key}.held").exists()


class Private(ToyStore):
    """Locks against its own process only."""

    held = threading.Lock()

    @contextmanager
    def lock(self, key: str):
        is_free = self.held.acquire(blocking=False)
        yield is_free
        if is_free:
            self.held.release()

    def is_locked(self, key: str) -> bool:
        return self.held.locked()


class Nameless(ToyStore):
    """Calls itself something else."""

    @property
    def url(self) -> str:
        return str(self.root)


class Plugin:
    """A plugin around a store."""

    def __init__(self, store: type[ToyStore]) -> None:
        self.store = store

    @hookimpl
    def mlp_backends(self) -> list[Backend]:
        """Declare it."""
        return [Backend("store", "toy", "A toy.")]

    @hookimpl
    def mlp_open_store(self, url: str) -> ToyStore:
        """Open it; a toy has no settings."""
        return self.store(url)


good = Plugin(ToyStore)
BROKEN = {
    Overwriting: "test_create_does_not_overwrite",
    LookingFirst: "test_one_creator_wins",
    InPlace: "test_objects_are_never_seen_half_written",
    EndBlind: "test_ranges",
    Shallow: "test_listing",
    Unsorted: "test_listing",
    Touchy: "test_absent_objects",
    EmptyForAbsent: "test_absent_objects",
    Untidy: "test_staging_is_not_part_of_the_store",
    Copying: "test_finished_files_are_adopted",
    Vague: "test_it_says_whether_creates_are_exclusive",
    Distracted: "test_one_creator_wins_among_threads",
    OneThread: "test_threads_share_a_store",
    OneProcess: "test_store_survives_a_fork",
    FirstPart: "test_large_files_are_adopted_and_downloaded",
    Littering: "test_absent_objects_are_not_downloaded",
    Forgetful: "test_finished_files_are_adopted",
    Late: "test_large_files_are_adopted_and_downloaded",
    Silent: "test_failed_adoptions_are_told",
    Eager: "test_opening_writes_nothing",
    Truncating: "test_growing_object",
    Buffering: "test_growing_object",
    Lasting: "test_lock_ends_with_its_process",
    Private: "test_lock_excludes",
    Nameless: "test_url_is_of_the_backend",
}
globals().update({store.__name__: Plugin(store) for store in BROKEN})
