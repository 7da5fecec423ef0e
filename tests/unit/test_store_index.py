"""The index of runs: right after every change, built from few reads, and never in anyone's way."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
import threading
from typing import TYPE_CHECKING

import attrs
import pytest

from mlp_core.builtin.file_store import FileStore
from mlp_core.store import Note, RunBegan, RunEnded, RunWriter, Store, TagsChanged, layout
from mlp_core.store import index as index_module
from mlp_core.store.index import RunIndex, RunQuery, RunSummary
from mlp_core.store.lease import Pulse
from mlp_hookspecs.types import FlowGraph, RunContext, StepNode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from mlp_core.store.records import RunSealed
    from mlp_hookspecs.handles import ObjectStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An open store."""
    opened = Store.open(FileStore(tmp_path / "store"), create=True)
    yield opened
    opened.close()


@pytest.fixture
def index(store: Store, tmp_path: Path) -> RunIndex:
    """The index of the store, in a folder that is not there yet."""
    return RunIndex(store.objects, tmp_path / "cache" / "index.sqlite")


def begin(
    store: Store, flow: str = "Flow", at: float = 0.0, *, has_driver: bool = True, **context: object
) -> RunWriter:
    """Create a run."""
    graph = FlowGraph(flow, "start", "start", (StepNode("start", "end", doc="x" * 100_000),))

    def began(run_id: str) -> RunBegan:
        run = attrs.evolve(RunContext(flow, run_id), **context)
        return RunBegan(run, at, "host", 1, graph, has_driver=has_driver)

    return store.create_run(began, at)


def end(writer: RunWriter, status: str = "succeeded") -> str:
    """End a run, and return its id."""
    writer.write([RunEnded(status, "why", writer.began.time + 5, 7)])  # type: ignore[arg-type] # one of three
    writer.close()
    return writer.began.run.run_id


def ids(found: Sequence[RunSummary]) -> list[str]:
    """Return the ids of runs."""
    return [run.run_id for run in found]


def test_a_summary_tells_what_a_list_shows(store: Store, index: RunIndex) -> None:
    """All fields come from the run's first and last record and its segments."""
    run_id = end(
        begin(store, at=100.0, username="me", tags=("a", "b"), origin_run_id="19700101-000000-000000"), "failed"
    )
    store.add_segment("Flow", run_id, "tags-1", TagsChanged(("ü",), ("a",), "you", 200.0))
    assert index.select(RunQuery()) == [
        RunSummary("Flow", run_id, "failed", "me", 100.0, 105.0, "why", 7, "19700101-000000-000000", ("b", "ü"))
    ]


def test_runs_are_found_by_flow_status_tags_and_time(store: Store, index: RunIndex) -> None:
    """Each filter holds alone and together with others; runs come newest first, from all flows."""
    first = end(begin(store, "One", 100.0, tags=("x",)))
    second = end(begin(store, "Two", 200.0, tags=("x", "y")), "failed")
    third = end(begin(store, "One", 300.0), "cancelled")
    running = begin(store, "Two", 400.0)
    fourth = running.began.run.run_id

    def found(query: RunQuery) -> list[str]:
        return ids(index.select(query))

    assert found(RunQuery()) == [fourth, third, second, first]
    assert found(RunQuery(flow="One")) == [third, first]
    assert found(RunQuery(flow="Absent")) == []
    assert found(RunQuery(status=("failed", "cancelled"))) == [third, second]
    assert found(RunQuery(status=("running",))) == [fourth]
    assert found(RunQuery(tags=("x",))) == [second, first]
    assert found(RunQuery(tags=("x", "y"))) == [second]
    assert found(RunQuery(tags=("x", "absent"))) == []
    assert found(RunQuery(since=200.0, until=400.0)) == [third, second]
    assert found(RunQuery(limit=2)) == [fourth, third]
    assert found(RunQuery(flow="Two", tags=("x",), status=("failed",), since=100.0, limit=1)) == [second]
    assert found(RunQuery(flow="x' OR '1'='1")) == []
    running.close()


def test_the_index_follows_every_change(store: Store, index: RunIndex) -> None:
    """New runs, ends, lost drivers, tag edits and removed runs are seen by the next query."""

    def statuses() -> list[str]:
        return [run.status for run in index.select(RunQuery())]

    assert statuses() == []
    first, second = begin(store, at=1.0), begin(store, at=2.0)
    assert statuses() == ["running", "running"]
    first.write([Note("kind", "text", 1.0)])
    second.close()
    assert statuses() == ["lost", "running"]
    run_id = end(first)
    assert statuses() == ["lost", "succeeded"]
    store.add_segment("Flow", run_id, "tags-1", TagsChanged(("a",), (), "me", 3.0))
    assert ids(index.select(RunQuery(tags=("a",)))) == [run_id]
    store.add_segment("Flow", run_id, "tags-2", TagsChanged((), ("a",), "me", 4.0))
    assert index.select(RunQuery(tags=("a",))) == []
    for info in list(store.objects.list(layout.run("Flow", run_id))):
        store.objects.delete(info.key)
    assert statuses() == ["lost"]


def test_a_run_without_a_driver_ends_by_a_segment(store: Store, index: RunIndex) -> None:
    """A run that an orchestrator drives is running until its end is a segment."""
    writer = begin(store, has_driver=False)
    writer.close()
    assert [run.status for run in index.select(RunQuery())] == ["running"]
    store.add_segment("Flow", writer.began.run.run_id, "end", RunEnded("failed", "why", 9.0, 3))
    (summary,) = index.select(RunQuery())
    assert (summary.status, summary.finished_at, summary.tasks) == ("failed", 9.0, 3)


def test_runs_that_ended_are_not_read_again(store: Store, index: RunIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """A query over known runs reads no journal, and a first one only the ends of each."""
    for at in range(20):
        writer = begin(store, at=float(at))
        writer.write([Note("kind", "x" * 10_000, 1.0) for _ in range(20)], sync=False)
        end(writer)
    read: list[int] = []
    real = FileStore.read

    def spy(self: FileStore, key: str, start: int = 0, end: int | None = None) -> bytes:
        content = real(self, key, start, end)
        read.append(len(content))
        return content

    monkeypatch.setattr(FileStore, "read", spy)
    assert len(index.select(RunQuery())) == 20
    assert sum(read) < 20 * 300_000
    read.clear()
    assert len(index.select(RunQuery())) == 20
    assert read == []


def test_a_damaged_run_is_listed_and_hides_no_other(store: Store, index: RunIndex) -> None:
    """A journal whose beginning cannot be read shows as damaged, until it is mended."""
    first, second = end(begin(store, at=1.0)), end(begin(store, at=2.0))
    key = layout.journal("Flow", first)
    content = store.objects.read(key)
    store.objects.replace(key, content.replace(b"host", b"hose"), sync=False)
    assert [(run.run_id, run.status) for run in index.select(RunQuery())] == [(second, "succeeded"), (first, "damaged")]
    store.objects.replace(key, content, sync=False)
    assert [run.status for run in index.select(RunQuery())] == ["succeeded", "succeeded"]


def test_what_is_not_ours_is_passed_over(store: Store, index: RunIndex) -> None:
    """Folders with other names, and folders of runs that were never created, are no runs."""
    run_id = end(begin(store))
    others = ("flows/not a flow/x", "flows/notes", "flows/Flow/notes.txt", "flows/Flow/notes/journal")
    for key in (*others, "flows/Flow/20260101-000000-000000/lock"):
        store.objects.create(key, b"", sync=False)
    assert ids(index.select(RunQuery())) == [run_id]


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + bytes(5000)])
def test_a_damaged_cache_is_built_anew(store: Store, index: RunIndex, tmp_path: Path, content: bytes) -> None:
    """Whatever the cache's file holds, the answer is right, and the next one comes from a sound cache."""
    run_id = end(begin(store))
    path = tmp_path / "cache" / "index.sqlite"
    path.parent.mkdir()
    path.write_bytes(content)
    assert ids(index.select(RunQuery())) == [run_id]
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT run_id FROM runs").fetchall() == [(run_id,)]
    database.close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_cache_of_another_version_is_built_anew(store: Store, index: RunIndex, tmp_path: Path) -> None:
    """A cache that another version made is not understood by guessing."""
    run_id = end(begin(store))
    path = tmp_path / "cache" / "index.sqlite"
    path.parent.mkdir()
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE runs (something TEXT)")
    database.execute("PRAGMA user_version = 99")
    database.close()
    assert ids(index.select(RunQuery())) == [run_id]


def test_without_a_usable_cache_the_answer_is_the_same(store: Store, tmp_path: Path) -> None:
    """Where the cache cannot be written, or somebody holds it, the index is built in memory."""
    run_id = end(begin(store))
    assert ids(RunIndex(store.objects, None).select(RunQuery())) == [run_id]
    (tmp_path / "file").write_text("")
    assert ids(RunIndex(store.objects, tmp_path / "file" / "index.sqlite").select(RunQuery())) == [run_id]
    (tmp_path / "folder.sqlite").mkdir()
    assert ids(RunIndex(store.objects, tmp_path / "folder.sqlite").select(RunQuery())) == [run_id]
    held = tmp_path / "held.sqlite"
    database = sqlite3.connect(held)
    database.execute("BEGIN EXCLUSIVE")
    assert ids(RunIndex(store.objects, held).select(RunQuery())) == [run_id]
    database.close()


def test_readers_share_the_cache(store: Store, tmp_path: Path) -> None:
    """Many readers at once, while runs are made, all get right answers."""
    made = [end(begin(store, at=float(at))) for at in range(5)]
    answers: list[list[str]] = []

    def ask() -> None:
        index = RunIndex(store.objects, tmp_path / "index.sqlite")
        answers.extend(ids(index.select(RunQuery(until=100.0))) for _ in range(5))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for at in range(5):
        end(begin(store, at=1000.0 + at))
    for thread in threads:
        thread.join()
    assert answers == [made[::-1]] * 20


def test_an_index_is_rebuilt(store: Store, index: RunIndex, tmp_path: Path) -> None:
    """A rebuilt index tells of all runs, and of nothing that somebody wrote into the old one."""
    assert index.rebuild() == 0
    run_id = end(begin(store))
    assert index.rebuild() == 1
    with sqlite3.connect(tmp_path / "cache" / "index.sqlite") as database:
        database.execute("UPDATE runs SET message = 'something else'")
    database.close()
    assert [run.message for run in index.select(RunQuery())] == ["something else"]
    assert index.rebuild() == 1
    assert [(run.run_id, run.message) for run in index.select(RunQuery())] == [(run_id, "why")]
    assert RunIndex(store.objects, None).rebuild() == 1


def test_a_damaged_cache_that_stays_is_done_without(
    store: Store, index: RunIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the damaged file cannot be removed, the index is built in memory."""
    run_id = end(begin(store))
    path = tmp_path / "cache" / "index.sqlite"
    path.parent.mkdir()
    path.write_bytes(b"no database at all" * 100)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "not the owner")

    monkeypatch.setattr(type(path), "unlink", refuse)
    assert ids(index.select(RunQuery())) == [run_id]
    assert path.read_bytes() == b"no database at all" * 100


def small(store: Store, at: float = 0.0) -> RunWriter:
    """Create a run whose journal is short enough to be read at once."""
    graph = FlowGraph("Flow", "start", "start", (StepNode("start", "end"),))
    return store.create_run(lambda run_id: RunBegan(RunContext("Flow", run_id), at, "host", 1, graph), at)


@pytest.mark.parametrize("make", [small, begin])
@pytest.mark.parametrize("is_known", [True, False])
def test_a_run_that_is_deleted_while_runs_are_listed_is_none(
    any_store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[..., RunWriter],
    is_known: bool,  # a parameter of the test
) -> None:
    """Between the look at a run and the reading of it it may go, with all that was known of it."""
    kept, gone = (end(make(any_store, at=at)) for at in (1.0, 2.0))
    index = RunIndex(any_store.objects, tmp_path / "index.sqlite")
    if is_known:
        assert ids(index.select(RunQuery())) == [gone, kept]
        any_store.add_segment("Flow", gone, "tags-1", TagsChanged(("a",), (), "me", 4.0))
    prefix = layout.run("Flow", gone)
    real = FileStore.read

    def remove(self: FileStore, key: str, start: int = 0, end: int | None = None) -> bytes:
        if key.startswith(prefix):
            for info in list(FileStore.list(self, prefix)):
                FileStore.delete(self, info.key)
        return real(self, key, start, end)

    with monkeypatch.context() as patch:
        patch.setattr(FileStore, "read", remove)
        assert ids(index.select(RunQuery())) == [kept]
        assert index.select(RunQuery(tags=("a",))) == []
    assert ids(index.select(RunQuery())) == [kept]


@pytest.mark.parametrize("make", [small, begin])
def test_what_happened_to_a_journal_is_seen_in_a_list(
    any_store: Store, tmp_path: Path, make: Callable[..., RunWriter]
) -> None:
    """A journal that is gone, that has lost its end, that tells nothing or that is another run's is damage."""
    run_id, other = (end(make(any_store, at=at)) for at in (1.0, 2.0))
    key, seal = (of("Flow", run_id) for of in (layout.journal, layout.seal))
    whole, sealed = any_store.objects.read(key), any_store.objects.read(seal)
    foreign = any_store.objects.read(layout.journal("Flow", other))
    cut = whole[: whole.rindex(b"\n", 0, -1) + 1]
    index = RunIndex(any_store.objects, tmp_path / "index.sqlite")

    def status(content: bytes | None, *, is_sealed: bool) -> list[str]:
        any_store.objects.delete(key)
        any_store.objects.delete(seal)
        if content is not None:
            any_store.objects.create(key, content, sync=False)
        if is_sealed:
            any_store.objects.create(seal, sealed, sync=False)
        index.rebuild()
        return [run.status for run in index.select(RunQuery()) if run.run_id == run_id]

    is_far = any_store.objects.local_path(key) is None  # there the seal is read instead
    assert status(whole, is_sealed=True) == status(whole, is_sealed=False) == ["succeeded"]
    assert status(cut, is_sealed=True) == ["succeeded" if is_far else "damaged"]
    assert status(cut, is_sealed=False) == ["lost"]
    for content in (b"", b"\n", whole[:50], whole[1:], cut[:-1]):
        assert status(content, is_sealed=False) == ["damaged"]
    assert status(foreign, is_sealed=False) == ["damaged"]
    if not is_far:
        assert status(None, is_sealed=True) == ["damaged"]
    assert status(None, is_sealed=False) == []


def test_a_run_that_ends_while_runs_are_listed_has_ended(
    store: Store, index: RunIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads a journal, then finds the seal, looks at the journal again before it says that its end is missing."""
    writer = small(store)
    store.add_segment("Flow", writer.began.run.run_id, "tags-1", TagsChanged(("a",), (), "me", 3.0))
    real = index_module.read_seal

    def ended(objects: ObjectStore, flow: str, run_id: str) -> RunSealed | None:
        if writer.began.run.run_id == run_id and not was_ended:
            was_ended.append(end(writer))
        return real(objects, flow, run_id)

    was_ended: list[str] = []
    monkeypatch.setattr(index_module, "read_seal", ended)
    assert [(run.status, run.tags) for run in index.select(RunQuery())] == [("succeeded", ("a",))]


def test_a_bucket_is_listed_with_what_is_not_ours(bucket_store: Store) -> None:
    """Objects that are no run's, or of a run of which nothing but them is left, are passed over."""
    run_id = end(small(bucket_store))
    for key in ("flows/Flow/notes/journal", "flows/Flow/20260101-000000-000000/seal", "flows/no flow/x/journal"):
        bucket_store.objects.create(key, b"", sync=False)
    assert ids(bucket_store.runs()) == [run_id]


def test_a_run_that_is_running_has_no_outcome_yet(store: Store, index: RunIndex) -> None:
    """What only the end of a run tells is empty until then."""
    writer = small(store, 1.0)
    assert index.select(RunQuery()) == [RunSummary("Flow", writer.began.run.run_id, "running", "", 1.0)]
    writer.close()


def test_a_run_that_goes_takes_its_tags_along(store: Store, index: RunIndex, tmp_path: Path) -> None:
    """The cache does not grow by what is gone."""
    run_id = end(begin(store, tags=("a", "b")))
    assert ids(index.select(RunQuery())) == [run_id]
    for info in list(store.objects.list(layout.run("Flow", run_id))):
        store.objects.delete(info.key)
    assert index.select(RunQuery()) == []
    with contextlib.closing(sqlite3.connect(tmp_path / "cache" / "index.sqlite")) as database:
        assert database.execute("SELECT * FROM tags").fetchall() == []


@pytest.mark.parametrize(
    ("error", "tries"),
    [(sqlite3.OperationalError("locked"), 1), (PermissionError("no"), 1), (sqlite3.DatabaseError("damaged"), 2)],
)
def test_a_cache_is_tried_as_often_as_it_may_help(
    store: Store, index: RunIndex, monkeypatch: pytest.MonkeyPatch, error: Exception, tries: int
) -> None:
    """A damaged cache is tried a second time, from nothing; what is in the way once is not waited for again."""
    run_id = end(begin(store))
    asked: list[Path | None] = []
    real = index_module._connect

    def refuse(path: Path | None) -> sqlite3.Connection:
        asked.append(path)
        if path is not None:
            raise error
        return real(path)

    monkeypatch.setattr(index_module, "_connect", refuse)
    assert ids(index.select(RunQuery())) == [run_id]
    assert len(asked) == tries + 1


def test_an_answer_is_one_transaction(store: Store, index: RunIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other readers wait from the first look at the cache on, so that none makes the tables twice."""
    real = index_module._prepare
    seen: list[bool] = []

    def prepare(database: sqlite3.Connection) -> None:
        seen.append(database.in_transaction)
        real(database)

    monkeypatch.setattr(index_module, "_prepare", prepare)
    assert index.select(RunQuery()) == []
    assert seen == [True]
    assert store.objects.children(layout.FLOWS) == []


@pytest.mark.parametrize(
    ("status", "size", "renewed_at", "tells"),
    [
        ("running", 10, 1.0, True),
        ("running", 10, 2.0, True),
        ("running", 11, 1.0, False),
        ("damaged", 10, 1.0, False),
        ("lost", None, 1.0, True),
        ("lost", None, 2.0, False),
        ("running", None, 1.0, False),
    ],
)
def test_what_is_known_of_a_run_tells_unless_it_may_have_changed(
    status: str,
    size: int | None,
    renewed_at: float,
    tells: bool,  # a parameter of the test
) -> None:
    """A journal's size tells of each change; one in parts is read again unless its driver is gone and stays so."""
    known = index_module._Known(status, True, 60.0, None if size is None else 10, 0, 1.0)  # noqa: FBT003 # a row
    pulse = Pulse(is_locked=True, renewed_at=renewed_at, taken_at=3.0)
    assert known.tells(index_module._Seen("Flow", "id", pulse, size, 0)) is tells


def test_the_last_record_is_found_wherever_what_is_read_begins(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a journal may begin with a line, or be in the middle of one."""
    key = layout.journal("Flow", end(small(store)))
    content = store.objects.read(key)
    for length in (1, len(content.splitlines(keepends=True)[-1])):
        monkeypatch.setattr(index_module, "_TAIL_BYTES", length)
        found = [index_module._last_record(store.objects, key, size) for size in (len(content), len(content) - 1)]
        assert [record is not None for record in found] == [length > 1, False]


def test_numbers_beyond_what_a_cache_can_hold_are_bounded() -> None:
    """The largest and smallest numbers that SQLite knows stay what they are, and what is beyond becomes them."""
    bounded = index_module._bounded
    assert [bounded(2**63 + more) for more in (-1, 0, 5)] == [2**63 - 1] * 3
    assert [bounded(-(2**63) - more) for more in (0, 1, 5)] == [-(2**63)] * 3
    assert (bounded(7), bounded(None), bounded(1.5)) == (7, None, 1.5)
