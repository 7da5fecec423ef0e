"""The store as a whole: opened once and for all versions, runs created by many drivers, written, watched and lost."""

from __future__ import annotations

import errno
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from mlp_core.builtin.file_store import FileStore
from mlp_core.errors import (
    NameRefused,
    NotFound,
    StoreDamaged,
    StoreError,
    StoreFormatError,
    StoreFull,
    StoreUnavailable,
)
from mlp_core.store import LogChunk, Note, RunBegan, RunEnded, Store, TagsChanged, layout, read_logs
from mlp_core.store.faults import GuardedObjects, store_error
from mlp_core.store.journal import read_journal
from mlp_hookspecs.types import FlowGraph, RunContext, StepNode, TaskKey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlp_core.builtin.file_store import FileAppend

GRAPH = FlowGraph("Flow", "start", "start", (StepNode("start", "end"),))


def began(run_id: str) -> RunBegan:
    """Return the first record of a run."""
    return RunBegan(RunContext("Flow", run_id), 1.0, "host", 1, GRAPH)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what readers remember out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An open store."""
    opened = Store.open(FileStore(tmp_path / "store"), create=True)
    yield opened
    opened.close()


def test_a_store_is_made_by_whoever_writes_first(tmp_path: Path) -> None:
    """Opening for writing makes a store that says its version and stays out of git; for reading it must be there."""
    objects = FileStore(tmp_path / "store")
    with pytest.raises(StoreUnavailable, match="there is no store at file://"):
        Store.open(objects, create=False)
    assert not (tmp_path / "store").exists()
    Store.open(objects, create=True).close()
    assert objects.read("format.json") == b'{"format": 2}\n'
    assert objects.read(".gitignore") == b"*\n"
    assert Store.open(objects, create=False).url == objects.url


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b'{"format": 3}', StoreFormatError, "has format 3, and this version of mlp-core knows format 2"),
        (b'{"format": "later", "x": 1}', StoreFormatError, "has format 'later'"),
        (b"", StoreDamaged, "format.json"),
        (b"[]", StoreDamaged, "format.json"),
        (b"\xff", StoreDamaged, "format.json"),
    ],
)
def test_a_store_of_another_format_is_refused(
    tmp_path: Path, content: bytes, error: type[StoreError], message: str
) -> None:
    """A newer store is refused with both versions, a damaged statement of the version as damage; nothing is written."""
    objects = FileStore(tmp_path)
    objects.create("format.json", content, sync=False)
    with pytest.raises(error, match=message):
        Store.open(objects, create=True)
    assert objects.children("") == ["format.json"]


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    """A path that is a file, or below one, cannot be a store, and the message names it."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreUnavailable, match=str(path)) as caught:
            Store.open(FileStore(path), create=True)
        assert "setting store" in caught.value.hint


def test_a_run_is_running_while_its_writer_is_there(store: Store) -> None:
    """A run is running from its first moment, says what it ended with, and is lost if its writer goes without."""
    first = store.create_run(began, 0.0)
    second = store.create_run(began, 0.0)
    ids = [writer.began.run.run_id for writer in (first, second)]
    assert ids == ["19700101-000000-000000", "19700101-000000-000001"]
    assert [store.run("Flow", run_id).status for run_id in ids] == ["running", "running"]
    first.write([RunEnded("succeeded", "", 2.0, 0)])
    first.close()
    second.close()
    assert [store.run("Flow", run_id).status for run_id in ids] == ["succeeded", "lost"]
    assert list(store.flows()) == ["Flow"]
    assert list(store.run_ids("Flow")) == ids[::-1]


def test_a_killed_driver_leaves_a_lost_run(tmp_path: Path) -> None:
    """The lock ends with the process, so that nobody has to clean up before the run can be told to be lost."""
    code = """
import sys, time
from pathlib import Path
from mlp_core.builtin.file_store import FileStore
from mlp_core.store import *
from mlp_hookspecs.types import *
store = Store.open(FileStore(Path(sys.argv[1])), create=True)
graph = FlowGraph("Flow", "start", "start", (StepNode("start", "end"),))
writer = store.create_run(lambda run_id: RunBegan(RunContext("Flow", run_id), 1.0, "host", 1, graph), 0.0)
print(writer.began.run.run_id, flush=True)
time.sleep(60)
"""
    driver = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    run_id = driver.stdout.readline().strip()
    store = Store.open(FileStore(tmp_path), create=False)
    assert store.run("Flow", run_id).status == "running"
    driver.kill()
    driver.communicate()
    assert store.run("Flow", run_id).status == "lost"


def test_many_drivers_get_different_runs(tmp_path: Path) -> None:
    """Processes that create runs in the same microseconds, in a store that none has made yet, get runs of their own."""
    code = """
import sys
from pathlib import Path
from mlp_core.builtin.file_store import FileStore
from mlp_core.store import *
from mlp_hookspecs.types import *
store = Store.open(FileStore(Path(sys.argv[1])), create=True)
graph = FlowGraph("Flow", "start", "start", (StepNode("start", "end"),))
for _ in range(10):
    writer = store.create_run(lambda run_id: RunBegan(RunContext("Flow", run_id), 1.0, sys.argv[2], 1, graph), 0.0)
    writer.write([RunEnded("succeeded", sys.argv[2], 2.0, 0)])
    writer.close()
    print(writer.began.run.run_id)
store.close()
"""
    drivers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(name)], stdout=subprocess.PIPE, text=True)
        for name in range(5)
    ]
    made = {str(name): driver.communicate()[0].split() for name, driver in enumerate(drivers)}
    assert [driver.returncode for driver in drivers] == [0] * 5
    assert len({run_id for ids in made.values() for run_id in ids}) == 50
    store = Store.open(FileStore(tmp_path), create=False)
    for name, ids in made.items():
        states = [store.run("Flow", run_id) for run_id in ids]
        assert {(state.began.host, state.status) for state in states} == {(name, "succeeded")}
        assert {state.ended.message for state in states if state.ended} == {name}


def test_a_run_that_was_never_created_to_the_end_does_not_exist(store: Store) -> None:
    """A driver that died between its lock and its first record leaves a folder, not a run; the id can be taken."""
    run_id = "19700101-000000-000000"
    lock = store.objects.lock(layout.lock("Flow", run_id))
    assert lock is not None
    with lock:
        pass
    assert store.runs() == []
    with pytest.raises(NotFound, match=f"no run Flow/{run_id}"):
        store.run("Flow", run_id)
    with pytest.raises(NotFound):
        store.add_segment("Flow", run_id, "tags-1", Note("kind", "text", 1.0))
    assert store.create_run(began, 0.0).began.run.run_id == run_id


def test_segments_are_created_once(store: Store) -> None:
    """Other writers add records of their own; of two with one name the first stays."""
    writer = store.create_run(began, 0.0)
    run = ("Flow", writer.began.run.run_id)
    reader = store.follow(*run)
    assert store.add_segment(*run, "tags-1", TagsChanged(("a",), (), "me", 3.0))
    assert not store.add_segment(*run, "tags-1", TagsChanged(("b",), (), "me", 4.0))
    assert store.add_segment(*run, "note", Note("kind", "text", 1.0))
    assert reader.refresh() == [Note("kind", "text", 1.0), TagsChanged(("a",), (), "me", 3.0)]
    assert reader.refresh() == []
    assert reader.state.tags == ("a",)
    chunk = LogChunk("start/0/0", "stdout", 1.0, b"text")
    assert store.add_log_segment(*run, layout.log_segment(TaskKey("start"), 0), [chunk])
    assert reader.refresh() == []
    assert list(read_logs(store.objects, *run)) == [chunk]
    key = layout.segment(*run, "note")
    store.objects.replace(key, store.objects.read(key)[:-2], sync=False)
    with pytest.raises(StoreDamaged, match="segments/note"):
        store.run(*run)


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\0", "ü", "a" * 300, ".hidden", "-x"])
def test_names_that_are_no_names_never_reach_the_disk(store: Store, name: str) -> None:
    """Flow, run and segment names pass the grammar before a key is made of them."""
    run_id = store.create_run(began, 0.0).began.run.run_id
    with pytest.raises(NameRefused):
        store.run(name, run_id)
    with pytest.raises(NameRefused):
        store.run("Flow", name)
    with pytest.raises(NameRefused):
        store.add_segment("Flow", run_id, name, Note("kind", "text", 1.0))


def test_a_disk_that_was_full_for_a_while_costs_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """A write that did not fit raises StoreFull; once there is room the journal goes on, and reads as it should."""
    code = """
import resource, sys
from pathlib import Path
from mlp_core.builtin.file_store import FileStore
from mlp_core.errors import StoreFull
from mlp_core.store import *
from mlp_core.store.journal import read_journal
from mlp_hookspecs.types import *
store = Store.open(FileStore(Path(sys.argv[1])), create=True)
graph = FlowGraph("Flow", "start", "start", (StepNode("start", "end"),))
writer = store.create_run(lambda run_id: RunBegan(RunContext("Flow", run_id), 1.0, "host", 1, graph), 0.0)
writer.write([Note("before", "text", 1.0)])
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
for _ in range(2):
    try:
        writer.write([Note("fits", "text", 2.0), Note("too long", "x" * 2000, 2.0), Note("behind", "text", 2.0)])
    except StoreFull as error:
        print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
writer.write([RunEnded("failed", "no room", 3.0, 0)])
writer.close()
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.count("no room left to write") == 2
    assert "/journal" in done.stdout
    assert "hint: make room there" in done.stdout
    store = Store.open(FileStore(tmp_path), create=False)
    state = store.run("Flow", "19700101-000000-000000")
    assert state.status == "failed"
    assert [note.kind for note in state.notes] == ["before", "fits"]


def test_a_failed_sync_is_never_followed_by_an_acknowledgement(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a sync has failed, the run accepts nothing more, though later syncs would report success."""
    writer = store.create_run(began, 0.0)

    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("os.fdatasync", fail)
        with pytest.raises(StoreError, match="Input/output error"):
            writer.write([Note("kind", "text", 1.0)])
    with pytest.raises(StoreError, match="at an earlier sync, so nothing more is written"):
        writer.write([RunEnded("succeeded")])
    writer.close()
    assert store.run("Flow", writer.began.run.run_id).status == "lost"


def test_logs_are_kept_and_durable_when_the_run_is_closed(store: Store) -> None:
    """What was printed is there for readers after a flush, and all of it when the writer is closed."""
    writer = store.create_run(began, 0.0)
    run = ("Flow", writer.began.run.run_id)
    writer.log("start/0/0", "stdout", b"one", time.time())
    writer.flush()
    assert [chunk.data for chunk in read_logs(store.objects, *run)] == [b"one"]
    writer.log("start/0/0", "stderr", b"two", time.time())
    writer.close()
    assert [chunk.data for chunk in read_logs(store.objects, *run)] == [b"one", b"two"]


def test_a_changed_journal_is_damage_and_not_another_run(store: Store) -> None:
    """A reader names journal and record; a journal without its beginning is damage too."""
    writer = store.create_run(began, 0.0)
    writer.write([Note("kind", "text", 1.0), RunEnded("succeeded")])
    writer.close()
    run = ("Flow", writer.began.run.run_id)
    key = layout.journal(*run)
    content = store.objects.read(key)
    for spoiled in (content.replace(b"text", b"test"), content[content.index(b"\n") + 1 :], b"", content[:10]):
        store.objects.replace(key, spoiled, sync=False)
        with pytest.raises(StoreDamaged, match="19700101-000000-000000"):
            store.run(*run)
    store.objects.replace(key, content, sync=False)
    assert len(read_journal(store.objects, key).records) == 3


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, StoreFull),
        (errno.EDQUOT, StoreFull),
        (errno.EFBIG, StoreFull),
        (errno.EACCES, StoreUnavailable),
        (errno.EROFS, StoreUnavailable),
        (errno.EPERM, StoreUnavailable),
        (errno.EIO, StoreError),
        (errno.EMFILE, StoreError),
    ],
)
def test_every_failure_of_the_disk_has_its_error(number: int, error: type[StoreError]) -> None:
    """The error tells what happened, where, and for most what to do."""
    found = store_error(OSError(number, "reason", "/path/of/file"), "key")
    assert type(found) is error
    assert "/path/of/file" in found.message
    assert "reason" in found.message
    assert bool(found.hint) == (number != errno.EIO)
    assert "key" in store_error(OSError(number, "reason"), "key").message


class Failing:
    """An object store in which everything fails."""

    url = "fail://"

    def __getattr__(self, _name: str) -> object:
        """Return a method that fails."""

        def fail(*_arguments: object, **_options: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        return fail


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("create", ("k", b"")),
        ("replace", ("k", b"")),
        ("read", ("k",)),
        ("info", ("k",)),
        ("children", ("k/",)),
        ("delete", ("k",)),
        ("staging", ()),
        ("adopt", (Path("x"), "k")),
        ("sync", (["k"],)),
        ("open_append", ("k",)),
        ("is_locked", ("k",)),
    ],
)
def test_every_operation_is_guarded(method: str, arguments: tuple[object, ...]) -> None:
    """Whatever a store's plugin raises from whichever operation, it arrives as the store's error."""
    objects = GuardedObjects(Failing())  # type: ignore[arg-type] # a store in name only
    options = {"sync": True} if method in ("create", "replace", "adopt") else {}
    with pytest.raises(StoreFull, match="fail://"):
        getattr(objects, method)(*arguments, **options)
    with pytest.raises(StoreFull):
        list(objects.list("k/"))


class SpiedFile:
    """A file that is appended to, which says what is made durable, and that it is closed."""

    def __init__(self, inner: FileAppend, key: str, told: list[tuple[str, str, bool]]) -> None:
        """Wrap a file."""
        self._inner, self._key, self._told = inner, key, told

    def __getattr__(self, name: str) -> Any:
        """Be the file in all else."""
        return getattr(self._inner, name)

    def append(self, data: bytes, *, sync: bool) -> None:
        """Append, and tell."""
        self._told.append(("append", self._key, sync))
        self._inner.append(data, sync=sync)

    def close(self) -> None:
        """Close, and tell."""
        self._told.append(("close", self._key, False))
        self._inner.close()


class SpiedStore(FileStore):
    """A store on a local folder that says what is made durable."""

    def __init__(self, root: Path) -> None:
        """Open the folder."""
        super().__init__(root)
        self.told: list[tuple[str, str, bool]] = []

    def create(self, key: str, data: bytes, *, sync: bool) -> bool:
        """Create, and tell."""
        self.told.append(("create", key, sync))
        return super().create(key, data, sync=sync)

    def replace(self, key: str, data: bytes, *, sync: bool) -> None:
        """Replace, and tell."""
        self.told.append(("replace", key, sync))
        super().replace(key, data, sync=sync)

    def open_append(self, key: str) -> FileAppend:
        """Open, so that what is done is told."""
        return cast("FileAppend", SpiedFile(super().open_append(key), key, self.told))

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Read, and tell."""
        self.told.append(("read", key, False))
        return super().read(key, start, end)

    def close(self) -> None:
        """Close, and tell."""
        self.told.append(("close", "", False))
        super().close()

    def take(self) -> list[tuple[str, str, bool]]:
        """Return what was told since the last time."""
        told, self.told = self.told, []
        return told


def test_what_the_store_is_and_what_lies_beside_a_run_is_durable(tmp_path: Path) -> None:
    """A store's format, and what others than the driver add, is there after a power cut; a store is marked once."""
    objects = SpiedStore(tmp_path / "store")
    Store.open(objects, create=True)
    assert objects.take() == [
        ("read", "format.json", False),
        ("create", ".gitignore", False),
        ("create", "format.json", True),
        ("read", "format.json", False),
    ]
    store = Store.open(objects, create=True)
    assert objects.take() == [("read", "format.json", False)]
    objects.replace("format.json", b'{"format": 1}\n', sync=False)
    Store.open(objects, create=True)
    assert objects.take()[-1] == ("replace", "format.json", True)
    writer = store.create_run(began, 0.0)
    run_id = writer.began.run.run_id
    writer.close()
    objects.take()
    assert store.add_segment("Flow", run_id, "tags-1", TagsChanged(("a",), (), "me", 1.0))
    chunk = LogChunk("start/0/0", "stdout", 1.0, b"text")
    first = store.add_log_segment("Flow", run_id, "log-1", [chunk])
    assert [(what, sync) for what, _, sync in objects.take()] == [("create", True), ("create", True)]
    assert store.add_log_segment("Flow", run_id, "log-1", [chunk, chunk]) == first
    store.close()
    assert objects.take()[-1] == ("close", "", False)


def test_a_run_is_durable_from_its_first_record_on(tmp_path: Path) -> None:
    """Its driver writes without reading, lets go of the journal, and whoever ends it in its place does so too."""
    objects = SpiedStore(tmp_path / "store")
    store = Store.open(objects, create=True)
    objects.take()
    writer = store.create_run(began, 0.0)
    run_id = writer.began.run.run_id
    key = layout.journal("Flow", run_id)
    writer.write([Note("test", "one", 1.0)])
    writer.close()
    told = [each for each in objects.take() if each[1] == key]
    assert told == [("create", key, True), ("append", key, True), ("close", key, False)]
    store.fence("Flow", run_id)
    told = [each for each in objects.take() if each[1] == key and each[0] != "read"]
    assert told == [("append", key, True), ("close", key, False)]
