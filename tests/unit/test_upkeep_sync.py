"""Runs copied between stores: everything of them, once, whole or not at all, whatever fails on the way."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from mlp_core.builtin.file_store import FileStore
from mlp_core.builtin.fsspec_store.store import FsspecStore
from mlp_core.errors import MlpError, NameRefused, NotFound, StoreDamaged, StoreError, StoreFull, UsageError
from mlp_core.store import AttemptFinished, AttemptStarted, LogChunk, RunBegan, RunEnded, Store, TagsChanged, layout
from mlp_core.store.content import sha256
from mlp_core.store.logs import read_logs
from mlp_core.store.seal import read_seal
from mlp_core.upkeep import sync as module
from mlp_core.upkeep.arrival import run_name
from mlp_core.upkeep.gc import clear_store
from mlp_core.upkeep.retention import Retention
from mlp_core.upkeep.run_check import REMOVED
from mlp_core.upkeep.sync import RunSynced, SyncOptions, chosen_runs, sync_runs
from mlp_core.upkeep.transfer import fetch, in_parallel
from mlp_hookspecs.types import ArtifactRef, FlowGraph, RunContext, StepNode, StepOutcome, TaskKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlp_hookspecs.handles import ObjectStore

GRAPH = FlowGraph("Flow", "start", "start", (StepNode("start", "end"),))
KEY = TaskKey("start")
KINDS = list(itertools.product(("file", "memory"), repeat=2))
NAMES = ["-to-".join(kinds) for kinds in KINDS]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what readers remember out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[str], Store]]:
    """A function that opens a new store of some kind."""
    opened: list[Store] = []

    def open_new(kind: str) -> Store:
        name = uuid.uuid4().hex
        objects: ObjectStore = (
            FileStore(tmp_path / name) if kind == "file" else FsspecStore(f"memory://{name}", {}, retry_seconds=0)
        )
        opened.append(Store.open(objects, create=True))
        return opened[-1]

    yield open_new
    for store in opened:
        store.close()


@pytest.fixture(params=KINDS, ids=NAMES)
def pair(request: pytest.FixtureRequest, make: Callable[[str], Store]) -> tuple[Store, Store]:
    """A store with runs and an empty one, of every combination of kinds."""
    source, target = request.param
    return make(source), make(target)


def began(run_id: str, **details: Any) -> RunBegan:
    """Return the first record of a run."""
    return RunBegan(RunContext("Flow", run_id), 1.0, "host", 1, GRAPH, **details)


def add_run(store: Store, now: float, *contents: bytes, ended: bool = True, **details: Any) -> tuple[str, str]:
    """Make a run with some large artifacts and a log, and return its name; one that has not ended is lost."""
    blobs = store.blobs(inline_bytes=10)
    details = details if ended else {**details, "lease_seconds": 0.3}
    writer = store.create_run(lambda run_id: began(run_id, **details), now)
    run_id = writer.began.run.run_id
    assigned = {}
    for number, content in enumerate(contents):
        target = blobs.target("bytes")
        target.write([content])
        assigned[f"x{number}"] = target.finish("builtins.bytes", sync=False)
    blobs.sync()
    writer.write([AttemptStarted(KEY, 0, "local", 1.0)])
    writer.log("start/0/0", "stdout", b"hello\n" * 1000, 2.0)
    outcome = StepOutcome("succeeded", assigned=assigned, started_at=1.0, finished_at=2.0)
    log = store.add_log_segment("Flow", run_id, "log.start.0.0", [LogChunk("start/0/0", "stderr", 5.0, b"more\n")])
    writer.write([AttemptFinished(KEY, 0, outcome, time=3.0, log_digest=log)])
    if ended:
        writer.write([RunEnded("succeeded", "", 4.0, 1)])
    writer.close()
    if not ended:
        time.sleep(0.3)
    return "Flow", run_id


def sync(source: Store, target: Store, *runs: tuple[str, str], **options: bool) -> list[RunSynced]:
    """Copy runs, all by default, and return what became of each, by name."""
    chosen = runs or chosen_runs(source)
    return sorted(sync_runs(source, target.objects, chosen, SyncOptions(**options)), key=lambda each: each.run)


def contents(store: Store) -> dict[str, bytes]:
    """Return all objects that make up a store's runs."""
    prefixes = (layout.FLOWS, layout.BLOBS)
    keys = [info.key for prefix in prefixes for info in store.objects.list(prefix)]
    return {key: store.objects.read(key) for key in sorted(keys) if not key.endswith(("/lock", "/lease"))}


def refs(store: Store, run: tuple[str, str]) -> dict[str, ArtifactRef]:
    """Return the artifacts of a run's task."""
    return dict(store.run(*run).artifacts(KEY))


def values(store: Store, run: tuple[str, str]) -> list[bytes]:
    """Return the values of a run's artifacts, verified."""
    blobs = store.blobs()
    return [bytes(blobs.source(ref).buffer()) for _, ref in sorted(refs(store, run).items())]


def blob_key(content: bytes) -> str:
    """Return the key of a content's blob."""
    return layout.blob(sha256(content))


def test_all_of_a_run_is_copied(pair: tuple[Store, Store]) -> None:
    """Artifacts, logs, tags, the journal and its summary are in the other store, and read the same."""
    source, target = pair
    run = add_run(source, 100.0, b"a" * 100, b"b" * 5_000_000)
    source.add_segment(*run, "tags.1", TagsChanged(("good",), (), "ada", 5.0))
    (synced,) = sync(source, target)
    assert (synced.run, synced.outcome, synced.blobs, synced.error) == ("/".join(run), "copied", 2, None)
    assert synced.size > 5_000_100
    assert values(target, run) == [b"a" * 100, b"b" * 5_000_000]
    state = target.run(*run)
    assert (state.status, state.tags) == ("succeeded", ("good",))
    assert b"".join(chunk.data for chunk in read_logs(target.objects, *run)) == b"hello\n" * 1000 + b"more\n"
    assert contents(target) == contents(source)
    assert read_seal(target.objects, *run) is not None
    assert [each.run_id for each in target.runs()] == [run[1]]


def test_a_second_time_copies_nothing(pair: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is recognised, and nothing is written, not even where blobs are looked at anew."""
    source, target = pair
    add_run(source, 100.0, b"a" * 100)
    add_run(source, 200.0, b"a" * 100, b"b" * 100)
    assert [(each.outcome, each.blobs) for each in sync(source, target)] in (
        [("copied", 1), ("copied", 1)],
        [("copied", 0), ("copied", 2)],
    )
    before = contents(target)
    for name in ("create", "replace", "adopt"):
        monkeypatch.setattr(type(target.objects), name, None)
    for verify in (False, True):
        assert [(each.outcome, each.size) for each in sync(source, target, verify=verify)] == [("unchanged", 0)] * 2
    assert contents(target) == before


def test_what_was_added_later_follows(pair: tuple[Store, Store]) -> None:
    """Tags, and the end that a lost run was given, are brought over by the next copying."""
    source, target = pair
    run = add_run(source, 100.0, b"a" * 100, ended=False)
    assert [each.outcome for each in sync(source, target)] == ["copied"]
    assert target.run(*run).status == "lost"
    source.add_segment(*run, "tags.1", TagsChanged(("good",), (), "ada", 5.0))
    (synced,) = sync(source, target)
    assert (synced.outcome, synced.blobs) == ("updated", 0)
    assert target.run(*run).tags == ("good",)
    source.fence(*run)
    assert [each.outcome for each in sync(source, target)] == ["updated"]
    ended = target.run(*run).ended
    assert ended is not None
    assert ended == source.run(*run).ended
    assert read_seal(target.objects, *run) == read_seal(source.objects, *run)
    assert [each.outcome for each in sync(source, target)] == ["unchanged"]


def test_what_goes_on_at_the_other_store_stays(pair: tuple[Store, Store]) -> None:
    """A tag, or an end, that a run was given where it was copied to is kept, and can be copied back."""
    source, target = pair
    run = add_run(source, 100.0, b"a" * 100, ended=False)
    sync(source, target)
    target.add_segment(*run, "tags.2", TagsChanged(("there",), (), "ada", 5.0))
    target.fence(*run)
    assert [each.outcome for each in sync(source, target)] == ["unchanged"]
    assert target.run(*run).ended is not None
    assert [each.outcome for each in sync(target, source)] == ["updated"]
    assert source.run(*run).tags == ("there",)
    assert source.run(*run).ended == target.run(*run).ended


def test_a_run_that_goes_on_is_left_for_later(pair: tuple[Store, Store]) -> None:
    """A run whose driver is there is not copied, and nothing of it is."""
    source, target = pair
    writer = source.create_run(began, 100.0)
    try:
        assert [each.outcome for each in sync(source, target)] == ["running"]
        assert contents(target) == {}
    finally:
        writer.close()


def test_two_runs_of_one_name_are_refused(pair: tuple[Store, Store]) -> None:
    """A run whose name another one has in the other store is not copied: both stores are named, others are copied."""
    source, target = pair
    run = add_run(source, 100.0, b"a" * 100, command=("one",))
    assert run == add_run(target, 100.0, b"b" * 100, command=("two",))
    assert {source.objects.info(layout.journal(*run)).size} == {target.objects.info(layout.journal(*run)).size}
    other = add_run(source, 200.0, b"c" * 100)
    before = contents(target)
    first, second = sync(source, target)
    assert (first.outcome, second.outcome) == ("failed", "copied")
    assert isinstance(first.error, UsageError)
    assert source.url in first.error.message
    assert target.url in first.error.message
    assert "another run" in first.error.message
    assert before.items() <= contents(target).items()
    assert values(target, run) == [b"b" * 100]
    assert values(target, other) == [b"c" * 100]


def test_runs_that_went_on_in_both_stores_are_refused(make: Callable[[str], Store]) -> None:
    """A lost run that was given an end in both stores is left as it is in each."""
    source, target = make("file"), make("file")
    run = add_run(source, 100.0, b"a" * 100, ended=False)
    sync(source, target)
    source.fence(*run)
    target.fence(*run)
    (synced,) = sync(source, target)
    assert synced.outcome == "failed"
    assert "went on in both" in str(synced.error)


def test_a_run_that_is_under_way_where_it_would_go_stays(make: Callable[[str], Store]) -> None:
    """The journal of a run is not exchanged while somebody holds its lock."""
    source, target = make("file"), make("file")
    run = add_run(source, 100.0, b"a" * 100, ended=False)
    sync(source, target)
    source.fence(*run)
    before = contents(target)
    lock = target.objects.lock(layout.lock(*run))
    assert lock is not None
    with lock:
        (synced,) = sync(source, target)
    assert "is under way in" in str(synced.error)
    assert contents(target) == before
    assert [each.outcome for each in sync(source, target)] == ["updated"]


def test_damage_is_not_copied(pair: tuple[Store, Store]) -> None:
    """A run of which a blob, the journal, a segment or a log is missing or damaged is not to be seen elsewhere."""
    source, target = pair
    runs = [add_run(source, 100.0 + number, bytes([65 + number]) * 100) for number in range(12)]
    source.objects.delete(blob_key(b"A" * 100))
    source.objects.replace(blob_key(b"B" * 100), b"C" * 100, sync=False)
    source.objects.replace(blob_key(b"C" * 100), b"C" * 101, sync=False)
    journal = layout.journal(*runs[3])
    source.objects.replace(journal, source.objects.read(journal).replace(b"host", b"hOst", 1), sync=False)
    source.objects.replace(layout.segment(*runs[4], "tags.1"), b"nonsense\n", sync=False)
    source.add_segment(*runs[5], "tags.1", TagsChanged(("good",), (), "ada", 5.0))
    of_another = source.objects.read(layout.segment(*runs[5], "tags.1"))
    source.objects.replace(layout.segment(*runs[5], "tags.2"), of_another, sync=False)
    for number, key in enumerate((layout.logs(*runs[6]), layout.segment(*runs[7], "log.start.0.0"))):
        log = source.objects.read(key)
        source.objects.replace(key, log.replace(b"o", b"0"), sync=False)
        absent = key.replace(runs[6 + number][1], runs[8 + number][1])
        for each in (absent, *[info.key for info in source.objects.list(layout.parts(absent))]):
            source.objects.delete(each)
    source.objects.replace(layout.logs(*runs[10]), source.objects.read(layout.logs(*runs[10]))[:-100], sync=False)
    synced = sync(source, target)
    assert [each.outcome for each in synced] == ["failed"] * 11 + ["copied"]
    assert all(isinstance(each.error, StoreDamaged) for each in synced[:11])
    assert [each.run_id for each in target.runs()] == [runs[11][1]]
    assert not any(key.endswith("/journal") and runs[11][1] not in key for key in contents(target))


def test_a_journal_without_its_end_is_damage(pair: tuple[Store, Store]) -> None:
    """A run that has a summary of its end, and whose journal lacks it, is not taken for a lost one."""
    source, target = pair
    run = add_run(source, 100.0, b"a" * 100)
    journal = layout.journal(*run)
    lines = source.objects.read(journal).splitlines(keepends=True)
    source.objects.replace(journal, b"".join(lines[:-1]), sync=False)
    (synced,) = sync(source, target)
    assert isinstance(synced.error, StoreDamaged)
    assert contents(target) == {}


def test_damage_at_the_other_store_is_mended(pair: tuple[Store, Store]) -> None:
    """What is missing or damaged where a run was copied to is copied again when that is asked for."""
    source, target = pair
    run = add_run(source, 100.0, b"a" * 100, b"b" * 100)
    sync(source, target)
    target.objects.delete(blob_key(b"a" * 100))
    target.objects.replace(blob_key(b"b" * 100), b"short", sync=False)
    assert [each.outcome for each in sync(source, target)] == ["unchanged"]
    assert [(each.outcome, each.blobs) for each in sync(source, target, verify=True)] == [("updated", 2)]
    assert values(target, run) == [b"a" * 100, b"b" * 100]


def test_a_summary_that_is_missing_is_made(pair: tuple[Store, Store]) -> None:
    """A copying that was killed just before it wrote what a run amounts to is completed by the next."""
    source, target = pair
    run = add_run(source, 100.0, b"a" * 100)
    sync(source, target)
    target.objects.delete(layout.seal(*run))
    assert [each.outcome for each in sync(source, target)] == ["unchanged"]
    assert contents(target) == contents(source)
    for store in pair:
        store.objects.delete(layout.seal(*run))
    target.objects.delete(layout.journal(*run))
    assert [each.outcome for each in sync(source, target)] == ["copied"]
    assert read_seal(target.objects, *run) is not None


def test_rot_is_found_where_the_file_tells_nothing(make: Callable[[str], Store]) -> None:
    """A file that was damaged without a trace in its times is found too when everything is looked at."""
    source, target = make("file"), make("file")
    run = add_run(source, 100.0, b"a" * 100)
    sync(source, target)
    path = target.objects.local_path(blob_key(b"a" * 100))
    assert path is not None
    before = path.stat()
    path.write_bytes(b"b" * 100)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [(each.outcome, each.blobs) for each in sync(source, target, verify=True)] == [("updated", 1)]
    assert values(target, run) == [b"a" * 100]


def test_a_dry_run_tells_and_writes_nothing(make: Callable[[str], Store], tmp_path: Path) -> None:
    """What would be copied is counted, a shared blob once, and even the store need not be there."""
    source = make("file")
    tagged = add_run(source, 100.0, b"a" * 100)
    add_run(source, 200.0, b"a" * 100, b"b" * 100)
    source.add_segment(*tagged, "tags.1", TagsChanged(("good",), (), "ada", 5.0))
    absent = FileStore(tmp_path / "absent")
    runs = chosen_runs(source)
    told = list(sync_runs(source, absent, runs, SyncOptions(dry_run=True)))
    assert {each.outcome for each in told} == {"copied"}
    assert sum(each.blobs for each in told) == 2
    assert not (tmp_path / "absent").exists()
    target = make("file")
    really = sync(source, target)
    assert sum(each.size for each in told) == sum(each.size for each in really)


def test_old_blobs_are_made_new(make: Callable[[str], Store]) -> None:
    """A blob that nobody may need any more is not relied on as it is: a clearing could remove it in the meantime."""
    source, target = make("file"), make("file")
    add_run(target, 50.0, b"a" * 100)
    add_run(source, 100.0, b"a" * 100)
    path = target.objects.local_path(blob_key(b"a" * 100))
    assert path is not None
    yesterday = time.time() - 86400
    os.utime(path, (yesterday, yesterday))
    assert [(each.outcome, each.blobs) for each in sync(source, target)] == [("copied", 0)]
    assert path.stat().st_mtime > yesterday + 3600


def test_old_blobs_of_a_bucket_are_copied_again(make: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a time cannot be changed an old blob is written again, and one that may go meanwhile is looked at twice."""
    source, target = make("file"), make("memory")
    run = add_run(target, 50.0, b"a" * 100)
    other = add_run(source, 100.0, b"a" * 100)
    key = blob_key(b"a" * 100)
    info = target.objects.info
    ages = {"of blobs": 13 * 3600.0}

    def aged(asked: str) -> Any:
        found = info(asked)
        return attrs.evolve(found, modified_at=time.time() - ages["of blobs"]) if asked == key else found

    monkeypatch.setattr(target.objects, "info", aged)
    assert [(each.outcome, each.blobs) for each in sync(source, target)] == [("copied", 1)]
    another = add_run(source, 200.0, b"a" * 100)
    ages["of blobs"] = 2 * 3600.0
    create = target.objects.create

    def create_after_a_clearing(asked: str, data: bytes, *, sync: bool) -> bool:
        if asked == layout.journal(*another):
            target.objects.delete(key)
        return create(asked, data, sync=sync)

    monkeypatch.setattr(target.objects, "create", create_after_a_clearing)
    assert [each.blobs for each in sync(source, target) if each.outcome == "copied"] == [1]
    assert values(target, run) == values(target, other) == values(target, another) == [b"a" * 100]


def test_what_was_copied_slowly_is_looked_at_again(
    make: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing keeps a blob from going, and copying the run took long, a blob that went is copied again."""
    source, target = make("file"), make("memory")
    run = add_run(source, 100.0, b"a" * 100, b"b" * 100)
    monkeypatch.setattr("mlp_core.upkeep.arrival._NEW_SECONDS", -1)
    create = target.objects.create

    def create_after_a_clearing(asked: str, data: bytes, *, sync: bool) -> bool:
        if asked == layout.journal(*run):
            target.objects.delete(blob_key(b"a" * 100))
        return create(asked, data, sync=sync)

    monkeypatch.setattr(target.objects, "create", create_after_a_clearing)
    assert [(each.outcome, each.blobs) for each in sync(source, target)] == [("copied", 3)]
    assert values(target, run) == [b"a" * 100, b"b" * 100]


def test_which_runs(make: Callable[[str], Store]) -> None:
    """Runs are chosen by name, flow or age; a name that is not there is refused."""
    source = make("file")
    first, second = add_run(source, 100.0), add_run(source, 200.0)
    assert chosen_runs(source) == [first, second]
    assert chosen_runs(source, flow="Flow", since=150.0) == [second]
    assert chosen_runs(source, [second, second, first]) == [second, first]
    for unknown in (("Flow", "20260131-094500-123456"), ("Other", first[1])):
        with pytest.raises(NotFound, match="there is no run"):
            chosen_runs(source, [unknown])
    with pytest.raises(NotFound, match="there is no run"):
        chosen_runs(source, flow="Other")


def test_names_of_runs() -> None:
    """A run is named by flow and id; less or more than that is none."""
    assert run_name("Flow/20260131-094500-123456") == ("Flow", "20260131-094500-123456")
    for text in ("Flow", "Flow/20260131-094500-123456/start"):
        with pytest.raises(NotFound, match="is no run"):
            run_name(text)
    with pytest.raises(NameRefused):
        run_name("../20260131-094500-123456")


def test_what_is_no_run_is_passed_over(pair: tuple[Store, Store]) -> None:
    """What never began, was removed meanwhile, or is being removed fails nothing; one whose journal is missing does."""
    source, target = pair
    add_run(source, 100.0)
    source.objects.create(layout.lock("Flow", "20260131-094500-000001"), b"", sync=False)
    removed, damaged = add_run(source, 200.0), add_run(source, 300.0)
    for run in (removed, damaged):
        for key in (layout.journal(*run), *[info.key for info in source.objects.list(f"{layout.PARTS}Flow/{run[1]}/")]):
            source.objects.delete(key)
    source.objects.create(layout.run(*removed) + REMOVED, b"", sync=False)
    told = sync(source, target, *chosen_runs(source), ("Flow", "20260131-094500-123456"))
    assert [each.outcome for each in told] == ["copied", "failed"]
    assert "missing" in str(told[1].error)


def test_a_deletion_that_was_not_carried_to_its_end(pair: tuple[Store, Store]) -> None:
    """A run that comes back where its deletion was killed stays, since the deletion is carried to its end first."""
    source, target = pair
    run = add_run(source, 100.0, b"a" * 100)
    sync(source, target)
    target.objects.create(layout.run(*run) + REMOVED, b"", sync=False)
    target.objects.delete(layout.journal(*run))
    assert [each.outcome for each in sync(source, target)] == ["copied"]
    assert contents(target) == contents(source)
    clear_store(target, Retention(), now=time.time(), grace=0)
    assert values(target, run) == [b"a" * 100]


def test_a_clearing_beside_a_copying(make: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run needs that is on its way is not cleared away, though nobody refers to it yet."""
    source, target = make("file"), make("file")
    run = add_run(source, 100.0, b"a" * 100, b"b" * 100)
    refused = []

    def clearing(*arguments: Any) -> tuple[str, int]:
        found = fetch(*arguments)
        for grace in (0, 3600):
            try:
                clear_store(target, Retention(), now=time.time() + 86400, grace=grace)
            except UsageError as error:
                refused.append(error.message)
        return found

    monkeypatch.setattr(module, "fetch", clearing)
    assert [each.outcome for each in sync(source, target)] == ["copied"]
    assert refused
    assert all("is too short while" in message for message in refused)
    assert values(target, run) == [b"a" * 100, b"b" * 100]


def test_a_full_disk_ends_everything(make: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that fails is told once, nothing half-copied is to be seen, and the next copying goes on."""
    source, target = make("file"), make("file")
    runs = [add_run(source, 100.0 + number, bytes([number]) * 100) for number in range(20)]
    calls = itertools.count()

    def failing(*arguments: Any) -> tuple[str, int]:
        if next(calls) == 5:
            raise StoreFull("no room left")
        return fetch(*arguments)

    monkeypatch.setattr(module, "fetch", failing)
    with pytest.raises(StoreFull):
        sync(source, target)
    for summary in target.runs():
        assert values(target, (summary.flow, summary.run_id))
    assert len(target.runs()) < 20
    assert not any(target.objects.staging().iterdir())
    sync(source, target)
    assert contents(target) == contents(source)
    assert [values(target, run) for run in runs] == [values(source, run) for run in runs]


@pytest.mark.parametrize("first", ["the same run", "a shorter one", "another run"])
def test_two_at_once_copy_one_run(make: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    """Where somebody else has put the run there in the last moment, it is theirs, made longer, or told."""
    source, target, another = make("file"), make("file"), make("file")
    run = add_run(source, 100.0, b"a" * 100)
    add_run(another, 100.0, b"b" * 100, command=("another",))
    journal = source.objects.read(layout.journal(*run))
    theirs = {
        "the same run": journal,
        "a shorter one": journal[: journal.index(b"\n") + 1],
        "another run": another.objects.read(layout.journal(*run)),
    }[first]
    create = target.objects.create

    def create_later(key: str, data: bytes, *, sync: bool) -> bool:
        if key == layout.journal(*run):
            create(key, theirs, sync=True)
        return create(key, data, sync=sync)

    monkeypatch.setattr(target.objects, "create", create_later)
    (synced,) = sync(source, target)
    assert synced.outcome == ("failed" if first == "another run" else "copied")
    assert target.objects.read(layout.journal(*run)) == (theirs if first == "another run" else journal)


def test_two_at_once_make_one_run_longer(make: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where somebody else has made the run as long as it is in the last moment, nothing is left to do."""
    source, target = make("file"), make("file")
    run = add_run(source, 100.0, ended=False)
    sync(source, target)
    source.fence(*run)
    lock = target.objects.lock

    def lock_later(key: str) -> Any:
        target.objects.replace(layout.journal(*run), source.objects.read(layout.journal(*run)), sync=True)
        return lock(key)

    monkeypatch.setattr(target.objects, "lock", lock_later)
    assert [each.outcome for each in sync(source, target)] == ["unchanged"]
    assert target.run(*run).ended == source.run(*run).ended


def test_a_failure_stops_what_is_under_way(make: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch) -> None:
    """A blob that is being copied when the store fails for another one is given up between two pieces."""
    source, target = make("file"), make("file")
    add_run(source, 100.0, b"a" * 100)
    add_run(source, 200.0, b"b" * 100)
    is_under_way = threading.Event()
    given_up = []

    def copying(_: Any, key: str, __: Any, go_on: Callable[[], None]) -> tuple[str, int]:
        if key == blob_key(b"a" * 100):
            assert is_under_way.wait(20)
            raise StoreFull("no room left")
        is_under_way.set()
        try:
            while True:
                go_on()
                time.sleep(0.001)
        except Exception:
            given_up.append(key)
            raise

    monkeypatch.setattr(module, "fetch", copying)
    with pytest.raises(StoreFull):
        sync(source, target)
    assert given_up == [blob_key(b"b" * 100)]


def test_parallel_work_ends_with_its_first_failure() -> None:
    """What was not begun when something failed is not done, and results come as they are there."""
    from concurrent.futures import ThreadPoolExecutor

    done: list[int] = []

    def work(number: int) -> int:
        if number == 3:
            raise MlpError("three")
        done.append(number)
        return number

    with ThreadPoolExecutor(2) as pool:
        assert sorted(in_parallel(pool, work, range(3), 2)) == [0, 1, 2]
        with pytest.raises(MlpError):
            list(in_parallel(pool, work, range(3, 1000), 2))
    assert len(done) < 10


CHILD = """
import sys
from pathlib import Path
from mlp_core.builtin.file_store import FileStore
from mlp_core.store import Store
from mlp_core.upkeep.arrival import run_name
from mlp_core.upkeep.gc import clear_store
from mlp_core.upkeep.retention import Retention
from mlp_core.upkeep.run_check import REMOVED
from mlp_core.upkeep.sync import SyncOptions, chosen_runs, sync_runs

source = Store.open(FileStore(Path(sys.argv[1])), create=False)
target = Store.open(FileStore(Path(sys.argv[2])), create=True)
for synced in sync_runs(source, target.objects, chosen_runs(source), SyncOptions(), lambda _: print(flush=True)):
    assert synced.error is None
"""


def test_killed_at_any_time_it_goes_on_from_there(tmp_path: Path) -> None:
    """Whenever a copying is killed, every run that can be seen is complete, and the next copying completes the rest."""
    source = Store.open(FileStore(tmp_path / "source", durable=False), create=True)
    random_bytes = random.Random(1).randbytes  # noqa: S311 # a test's choice
    for number in range(30):
        add_run(source, 100.0 + number, random_bytes(200_000), random_bytes(100), b"shared" * 1000)
    expected = contents(source)
    draw = random.Random(2)  # noqa: S311 # as above
    seen = set()
    for attempt in range(5):
        place = tmp_path / f"target{attempt}"
        for _ in range(2):
            command = [sys.executable, "-c", CHILD, str(tmp_path / "source"), str(place)]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
                assert child.stdout is not None
                for _ in range(draw.randrange(1, 100)):  # of some 150 lines
                    child.stdout.readline()
                time.sleep(draw.random() * 0.01)
                child.send_signal(signal.SIGKILL)
            target = Store.open(FileStore(place), create=False)
            for summary in target.runs():
                assert summary.status == "succeeded"
                assert len(values(target, (summary.flow, summary.run_id))) == 3
            seen.add(len(target.runs()))
            target.close()
        target = Store.open(FileStore(place), create=False)
        list(sync_runs(source, target.objects, chosen_runs(source), SyncOptions()))
        assert contents(target) == expected
        target.close()
    source.close()
    assert len(seen) > 3, "the copying was always killed at the same place"


def test_errors_of_the_store_are_the_stores(make: Callable[[str], Store]) -> None:
    """A failing source ends the copying with the store's own error."""
    source, target = make("file"), make("file")
    run = add_run(source, 100.0)
    source.objects.delete(layout.journal(*run))
    path = source.objects.local_path(layout.journal(*run))
    assert path is not None
    path.mkdir()
    with pytest.raises(StoreError):
        sync(source, target)
