"""Which promises a store keeps: an object is there whole or not at all, and one writer wins."""

from __future__ import annotations

import os
import subprocess
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from mlp_hookspecs import BackendKind
from mlp_hookspecs.testing.contract import BackendContract
from mlp_hookspecs.testing.driver import Driver, child_command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlp_hookspecs.handles import ObjectStore, Settings

KEY = "flows/Flow/20260131-094500-123456/2-1~3@1.json"
WRITERS = 4
OBJECTS = 25
ROUNDS = 8
LARGE = bytes(range(256)) * (80 << 10) + b"end"
"""Larger than what stores move in one piece: 20 MiB and a bit."""


class StoreContract(BackendContract):
    """The tests of a store.

    A derived class supplies the fixture `url`, a new place for each test; and the fixture `settings`, where those of
    the plugin's own with their defaults are not enough.

    Attributes
    ----------
    across_processes : bool
        Whether other processes see what one of them wrote.

    Examples
    --------
    >>> import pytest
    >>> from mlp_hookspecs.testing import StoreContract
    >>> class TestTape(StoreContract):
    ...     plugin = "mlp_plugin_tape"
    ...     name = "tape"
    ...
    ...     @pytest.fixture
    ...     def url(self, tmp_path):
    ...         return f"tape://{tmp_path}"
    """

    kind: ClassVar[BackendKind] = "store"
    across_processes: ClassVar[bool] = True

    @pytest.fixture
    def url(self) -> str:
        """The URL of a place where nothing is yet."""
        raise NotImplementedError

    @pytest.fixture
    def settings(self, driver: Driver) -> Settings:
        """The settings with which the store is opened, JSON data."""
        return driver.settings({})

    @pytest.fixture
    def store(self, driver: Driver, url: str, settings: Settings) -> Iterator[ObjectStore]:
        """The open store."""
        store: ObjectStore = driver.call("mlp_open_store", url=url, settings=settings)
        yield store
        store.close()

    @pytest.fixture
    def second(self, driver: Driver, store: ObjectStore, settings: Settings) -> Iterator[ObjectStore]:
        """The same store, opened a second time from the URL that the first gives."""
        second: ObjectStore = driver.call("mlp_open_store", url=store.url, settings=settings)
        yield second
        second.close()

    # ------------------------------------------------------------------------------------------ objects

    def test_what_is_written_is_read(self, store: ObjectStore, second: ObjectStore) -> None:
        """An object is what was written, also for who opens the store again; empty and large ones too."""
        for number, data in enumerate((b"", b"x", bytes(range(256)) * (1 << 15))):
            assert store.create(f"a/{number}", data, sync=True) is True
            assert store.read(f"a/{number}") == second.read(f"a/{number}") == data

    def test_keys_keep_their_names(self, store: ObjectStore) -> None:
        """Names of flows, runs, tasks and deployments are keys as they are."""
        keys = [KEY, "UPPER", "a/b/c/d/e/f/g", f"long/{'x' * 128}", "blobs/ab/sha256-" + "0" * 64]
        for key in keys:
            store.create(key, key.encode(), sync=False)
        assert {info.key for info in store.list("")} == set(keys)
        assert [store.read(key) for key in keys] == [key.encode() for key in keys]

    def test_ranges(self, store: ObjectStore) -> None:
        """A range is cut off where the object ends."""
        store.create(KEY, b"0123456789", sync=False)
        assert store.read(KEY, 3) == b"3456789"
        assert store.read(KEY, 3, 5) == b"34"
        assert store.read(KEY, 8, 100) == b"89"
        assert store.read(KEY, 10) == store.read(KEY, 50, 60) == store.read(KEY, 4, 4) == b""

    def test_absent_objects(self, store: ObjectStore) -> None:
        """What is not there cannot be read, and can be deleted; a folder is no object."""
        store.create("a/b/c", b"", sync=False)
        for key in ("absent", "a/absent", "a/b"):
            with pytest.raises(FileNotFoundError):
                store.info(key)
        with pytest.raises(FileNotFoundError):
            store.read("absent")
        store.delete("absent")
        assert store.children("absent/") == []
        assert list(store.list("absent/")) == []

    def test_create_does_not_overwrite(self, store: ObjectStore, second: ObjectStore) -> None:
        """Only the first create of a key makes it."""
        assert store.create(KEY, b"first", sync=False) is True
        assert second.create(KEY, b"second", sync=True) is False
        assert store.read(KEY) == b"first"

    def test_replace_overwrites(self, store: ObjectStore, second: ObjectStore) -> None:
        """A replace makes an object or takes the place of one, whatever their sizes."""
        store.replace(KEY, b"a longer one", sync=False)
        second.replace(KEY, b"short", sync=True)
        assert store.read(KEY) == b"short"

    def test_delete(self, store: ObjectStore, second: ObjectStore) -> None:
        """A deleted object is gone for everybody, and can be made again."""
        store.create(KEY, b"x", sync=True)
        second.delete(KEY)
        with pytest.raises(FileNotFoundError):
            store.read(KEY)
        assert store.create(KEY, b"y", sync=False) is True

    def test_info(self, store: ObjectStore) -> None:
        """Size and time are the object's; a replace makes it newer, not older."""
        before = time.time()
        store.create(KEY, b"12345", sync=False)
        info = store.info(KEY)
        assert (info.key, info.size) == (KEY, 5)
        # The clocks of a store and of this host may differ.
        assert abs(info.modified_at - before) < 24 * 3600
        store.replace(KEY, b"1", sync=False)
        assert store.info(KEY).size == 1
        assert store.info(KEY).modified_at >= info.modified_at

    def test_listing(self, store: ObjectStore) -> None:
        """A prefix lists what lies below it at any depth, and nothing beside it."""
        for key in ("runs/1/journal", "runs/1/logs", "runs/10/journal", "runs/2/a/b", "runs-other/x", "top"):
            store.create(key, b"abc", sync=False)
        listed = {info.key: info.size for info in store.list("runs/1/")}
        assert listed == {"runs/1/journal": 3, "runs/1/logs": 3}
        assert len(list(store.list("runs/"))) == 4
        assert store.children("runs/") == ["1", "10", "2"]
        assert store.children("runs/2/") == ["a"]
        assert store.children("") == ["runs", "runs-other", "top"]

    # ------------------------------------------------------------------------------------------ many at once

    def test_it_says_whether_creates_are_exclusive(self, store: ObjectStore) -> None:
        """The core is told whether it may rely on `create` alone."""
        assert store.creates_once in (True, False)

    def test_one_creator_wins(self, plugin_writers: list[subprocess.Popen[str]], store: ObjectStore) -> None:
        """Of processes that create the same keys at the same moment, exactly one makes each, and its data is there."""
        if not store.creates_once:
            pytest.skip("the store does not promise it")
        for writer in plugin_writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        made = [_answer(writer) for writer in plugin_writers]
        for number in range(OBJECTS):
            winners = [writer for writer in range(WRITERS) if made[writer][number]]
            assert len(winners) == 1, f"{len(winners)} of {WRITERS} processes believe that they made one object"
            assert store.read(f"race/{number}") == (str(winners[0]) * 5000).encode()

    @pytest.fixture
    def plugin_writers(self, url: str, settings: Settings) -> Iterator[list[subprocess.Popen[str]]]:
        """Processes that are about to create the same objects."""
        if not self.across_processes:
            pytest.skip("each process has a store of its own")
        given = {"url": url, "settings": dict(settings), "keys": [f"race/{number}" for number in range(OBJECTS)]}
        with _children(
            *(child_command(self.plugin, "create", **given, data=str(writer) * 5000) for writer in range(WRITERS))
        ) as writers:
            assert [_answer(writer) for writer in writers] == ["ready"] * WRITERS
            yield writers

    def test_one_creator_wins_among_threads(self, store: ObjectStore) -> None:
        """Of threads that create the same key at the same moment, exactly one makes it, and its data is there."""
        if not store.creates_once:
            pytest.skip("the store does not promise it")
        ready = threading.Barrier(WRITERS)

        def create(writer: int) -> list[bool]:
            made = []
            for number in range(ROUNDS):
                ready.wait()
                made.append(store.create(f"race/{number}", str(writer).encode(), sync=False))
            return made

        with ThreadPoolExecutor(WRITERS) as threads:
            made = list(threads.map(create, range(WRITERS)))
        for number in range(ROUNDS):
            winners = [writer for writer in range(WRITERS) if made[writer][number]]
            assert len(winners) == 1, f"{len(winners)} of {WRITERS} threads believe that they made one object"
            assert store.read(f"race/{number}") == str(winners[0]).encode()

    def test_threads_share_a_store(self, store: ObjectStore, tmp_path: Path) -> None:
        """Several threads use one open store for everything at once, and none disturbs another."""

        def use(thread: int) -> None:
            for number in range(5):
                key, data = f"{thread}/{number}", f"{thread} {number} ".encode() * 2000
                assert store.create(key, data, sync=number == 0) is True
                assert store.read(key, 3, 9) == data[3:9]
                source = store.staging() / f"{thread}-{number}"
                source.write_bytes(data[::-1])
                store.adopt(source, key, sync=False)
                store.sync([key])
                store.download(key, tmp_path / f"{thread}-{number}")
                assert (tmp_path / f"{thread}-{number}").read_bytes() == store.read(key) == data[::-1]
                store.replace(key, b"x" * (thread + 1), sync=False)
                assert store.info(key).size == thread + 1
                assert {info.key for info in store.list(f"{thread}/")} == {key}
                assert store.children(f"{thread}/") == [str(number)]
                store.delete(key)

        with ThreadPoolExecutor(WRITERS) as threads:
            list(threads.map(use, range(WRITERS)))

    def test_store_survives_a_fork(self, store: ObjectStore) -> None:
        """A store that was opened, and used, before a fork works in the child, and then still in the parent."""
        if not self.across_processes:
            pytest.skip("each process has a store of its own")
        store.create("parent", b"parent", sync=False)
        with warnings.catch_warnings():
            # Python warns of forks in processes with threads, which a store may have: that is what is tested.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            status = 1
            with suppress(BaseException):
                status = 0 if store.read("parent") == b"parent" and store.create("child", b"", sync=True) else 2
            os._exit(status)
        assert _status(child) == 0, "a store that was opened before a fork does not work in the child"
        assert store.read("child") == b""
        assert store.create("child", b"parent", sync=False) is False
        assert store.children("") == ["child", "parent"]

    def test_objects_are_never_seen_half_written(self, store: ObjectStore, second: ObjectStore) -> None:
        """Whoever reads while an object is created or replaced sees the old one, the new one, or none; listings too."""
        sizes = {100_000, 250_000}

        def write() -> None:
            for number in range(30):
                store.replace("one/replaced", b"a" * 100_000 if number % 2 else b"b" * 250_000, sync=False)
                store.create(f"one/{number}", b"c" * 100_000, sync=False)

        seen = set()
        writer = threading.Thread(target=write)
        writer.start()
        while writer.is_alive():
            for info in second.list("one/"):
                seen.add(info.size)
            for key in ("one/replaced", *(f"one/{name}" for name in second.children("one/")[-3:])):
                with suppress(FileNotFoundError):
                    data = second.read(key)
                    seen.add(len(data))
                    assert len(set(data)) == 1, "an object had content of two writes"
        assert seen <= sizes, f"objects were seen with {sorted(seen - sizes)} bytes, which nobody wrote"

    # ------------------------------------------------------------------------------------------ files, durability

    def test_finished_files_are_adopted(self, store: ObjectStore, second: ObjectStore) -> None:
        """A file from the staging folder becomes an object under its key, or takes the place of one."""
        for data in (b"first" * 1000, b"second"):
            source = store.staging() / "file"
            source.write_bytes(data)
            store.adopt(source, KEY, sync=data == b"second")
            if data != b"second":
                store.sync([KEY])
            assert second.read(KEY) == data
            assert not source.exists(), "an adopted file is moved, not copied"

    def test_large_files_are_adopted_and_downloaded(
        self, store: ObjectStore, second: ObjectStore, tmp_path: Path
    ) -> None:
        """Large objects are whole on both ways; one that was adopted without sync is at once there for this store."""
        (store.staging() / "file").write_bytes(LARGE)
        store.adopt(store.staging() / "file", KEY, sync=False)
        assert store.info(KEY).size == len(LARGE)
        assert store.read(KEY, len(LARGE) - 5) == LARGE[-5:]
        store.sync([KEY])
        second.download(KEY, tmp_path / "large")
        assert (tmp_path / "large").read_bytes() == LARGE
        store.create("empty", b"", sync=True)
        second.download("empty", tmp_path / "empty")
        assert (tmp_path / "empty").read_bytes() == b""

    def test_absent_objects_are_not_downloaded(self, store: ObjectStore, tmp_path: Path) -> None:
        """What is not there cannot be downloaded, and leaves no file."""
        with pytest.raises(FileNotFoundError):
            store.download("absent", tmp_path / "file")
        assert not (tmp_path / "file").exists()

    def test_failed_adoptions_are_told(self, store: ObjectStore) -> None:
        """That a file could not be adopted is told: at once, or when the object is to be made durable."""

        def adopt() -> None:
            store.adopt(store.staging() / "absent", KEY, sync=False)
            store.sync([KEY])

        with pytest.raises(FileNotFoundError):
            adopt()

    def test_staging_is_not_part_of_the_store(self, store: ObjectStore) -> None:
        """What is not finished is no object."""
        (store.staging() / "unfinished").write_bytes(b"x")
        assert list(store.list("")) == []
        assert store.children("") == []

    def test_local_file_is_the_object(self, store: ObjectStore) -> None:
        """Where the store names a local file for an object, it has the object's content."""
        store.create(KEY, b"content", sync=False)
        path = store.local_path(KEY)
        if path is None:
            pytest.skip("the store has no local files")
        assert path.read_bytes() == b"content"

    def test_syncing_what_was_written(self, store: ObjectStore) -> None:
        """Objects can be made durable afterwards, several at once, and twice."""
        keys = [f"sync/{number}" for number in range(3)]
        store.create(keys[0], b"x", sync=False)
        store.replace(keys[1], b"x", sync=False)
        (store.staging() / "file").write_bytes(b"x")
        store.adopt(store.staging() / "file", keys[2], sync=False)
        store.sync(keys)
        store.sync(keys[:1])
        store.sync([])
        assert [store.read(key) for key in keys] == [b"x"] * 3

    # ------------------------------------------------------------------------------------------ growing, locks

    def test_growing_object(self, store: ObjectStore, second: ObjectStore) -> None:
        """What was appended can be read at once by everybody, and a later writer goes on at the end."""
        file = store.open_append(KEY)
        if file is None:
            pytest.skip("the store has no growing objects")
        file.append(b"one\n", sync=True)
        assert second.read(KEY) == b"one\n"
        file.append(b"two\n", sync=False)
        assert second.read(KEY, 4) == b"two\n"
        assert second.info(KEY).size == 8
        file.close()
        again = second.open_append(KEY)
        assert again is not None
        again.append(b"three\n", sync=False)
        again.close()
        assert store.read(KEY) == b"one\ntwo\nthree\n"

    def test_lock_excludes(self, driver: Driver, store: ObjectStore, url: str, settings: Settings) -> None:
        """Of two processes one gets the lock; the other is told so at once, and anybody can see it."""
        with self._holder(driver, store, url, settings) as holder:
            assert _answer(holder) is True
            assert store.is_locked("locks/run") is True
            lock = store.lock("locks/run")
            assert lock is not None
            with lock as is_free:
                assert is_free is False, "a second process got a lock that was held"
            assert store.is_locked("locks/run") is True, "asking for a held lock has freed it"
            holder.communicate("stop\n")
        assert store.is_locked("locks/run") is False

    def test_lock_ends_with_its_process(self, driver: Driver, store: ObjectStore, url: str, settings: Settings) -> None:
        """A process that is killed does not keep its lock."""
        with self._holder(driver, store, url, settings) as holder:
            assert _answer(holder) is True
            holder.kill()
            holder.wait()
        lock = store.lock("locks/run")
        assert lock is not None
        with lock as is_free:
            assert is_free is True
            assert store.is_locked("locks/run") is True
        assert store.is_locked("locks/run") is False

    def test_looking_does_not_lock(self, store: ObjectStore, second: ObjectStore) -> None:
        """A lock that nobody ever took is free, and looking at it leaves it so."""
        lock = store.lock("locks/run")
        if lock is None:
            pytest.skip("the store has no locks")
        assert second.is_locked("locks/run") is False
        with lock as is_free:
            assert is_free is True

    @contextmanager
    def _holder(
        self, driver: Driver, store: ObjectStore, url: str, settings: Settings
    ) -> Iterator[subprocess.Popen[str]]:
        """Start a process that holds a lock until it reads a line."""
        if store.lock("locks/other") is None:
            pytest.skip("the store has no locks")
        command = child_command(driver.plugin, "lock", url=url, settings=dict(settings), key="locks/run")
        with _children(command) as (holder,):
            yield holder

    # ------------------------------------------------------------------------------------------ opening

    def test_opening_writes_nothing(self, driver: Driver, url: str, settings: Settings) -> None:
        """To look is not to make: a store that was only opened and read is as empty as before."""
        for _ in range(2):
            store: ObjectStore = driver.call("mlp_open_store", url=url, settings=settings)
            assert store.children("") == []
            assert list(store.list("")) == []
            store.close()

    def test_url_is_of_the_backend(self, store: ObjectStore, url: str) -> None:
        """The store's own URL has the scheme by which it was found, so that any host finds the plugin again."""
        scheme = url.partition("://")[0] if "://" in url else self.name
        assert store.url.startswith(f"{scheme}:")


@contextmanager
def _children(*commands: list[str]) -> Iterator[list[subprocess.Popen[str]]]:
    """Start processes, and end them whatever happens."""
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for command in commands
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def _status(child: int) -> int | None:
    """Return how a fork ended; one that hangs is killed."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None


def _answer(process: subprocess.Popen[str]) -> Any:
    """Return the next line that a process says, which is JSON."""
    import json

    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the process has ended without an answer"
    return json.loads(line)
