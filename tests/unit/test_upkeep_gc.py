"""Clearing a store: what a run, a frozen flow or a deployment needs stays, what is young stays, and all else goes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from mlp_core.builtin.file_store import FileStore
from mlp_core.errors import NotFound, RunLocked, UsageError
from mlp_core.runner.blueprint import Blueprint, store_blueprint
from mlp_core.store import RunWriter, Store, layout
from mlp_core.store.growing import PACK, GrowingWriter
from mlp_core.store.records import AttemptFinished, RunBegan, RunEnded, TagsChanged, TaskReused
from mlp_core.upkeep.fsck import check_store
from mlp_core.upkeep.gc import Cleared, clear_store
from mlp_core.upkeep.removal import finish_removal, remove_run
from mlp_core.upkeep.retention import Retention
from mlp_core.upkeep.run_check import REMOVED
from mlp_hookspecs import ArtifactRef, CodeRef, FlowGraph, RunContext, StepNode, StepOutcome, TaskKey

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlp_hookspecs.handles import ObjectStore

GRAPH = FlowGraph("Flow", "start", "end", (StepNode("start", "linear", ("end",)), StepNode("end", "end")))
HOUR = 3600.0
DAY = 24 * HOUR
ALL = Retention(keep=0)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store in a folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    opened = Store.open(FileStore(tmp_path / "store"), create=True)
    yield opened
    opened.close()


def put(store: Store, text: str, age: float = 0.0) -> ArtifactRef:
    """Store a blob of some age."""
    target = store.blobs(inline_bytes=0).target("bytes")
    target.write([text.encode()])
    ref = target.finish("bytes", sync=True)
    path = file_of(store, ref)
    moment = time.time() - age
    os.utime(path, (moment, moment))
    return ref


def file_of(store: Store, ref: ArtifactRef) -> Path:
    """Return the file of a blob."""
    path = store.objects.local_path(layout.blob(ref.digest))
    assert path is not None
    return path


def begin(store: Store, age: float, *, origin: str | None = None, **fields: object) -> RunWriter:
    """Begin a run that began some time ago."""

    def began(run_id: str) -> RunBegan:
        run = RunContext("Flow", run_id, origin_run_id=origin)
        return attrs.evolve(RunBegan(run, time.time() - age, "host", 1, GRAPH), **fields)  # type: ignore[arg-type] # fields

    return store.create_run(began, time.time() - age)


def finished(store: Store, age: float, **assigned: ArtifactRef) -> str:
    """Make a run that has ended, and return its id."""
    writer = begin(store, age)
    writer.write([AttemptFinished(TaskKey("start"), 0, StepOutcome("succeeded", assigned))])
    writer.write([RunEnded("succeeded", "", time.time() - age, 1)])
    writer.close()
    return writer.began.run.run_id


def clear(store: Store, policy: Retention | None = None, grace: float = 0.0, *, dry_run: bool = False) -> Cleared:
    """Clear a store."""
    return clear_store(store, policy or Retention(), now=time.time(), grace=grace, dry_run=dry_run)


def test_only_what_nobody_needs_goes(store: Store) -> None:
    """Blobs of runs, segments, parameters, code, blueprints stay; one that nobody mentions goes."""
    refs = {name: put(store, name) for name in ("kept", "parameter", "package", "segment", "frozen", "lonely")}
    run_id = finished(store, DAY, kept=refs["kept"])
    outcome = StepOutcome("succeeded", {"x": refs["segment"]})
    store.add_segment("Flow", run_id, "task.end.0", AttemptFinished(TaskKey("end"), 0, outcome))
    code = CodeRef("flow", "Flow", package=refs["package"])
    begin(store, DAY, parameters={"p": refs["parameter"]}, code=code).close()
    store_blueprint(store, Blueprint(GRAPH, (), code, constants={"c": refs["frozen"]}))
    planned = clear(store, dry_run=True)
    assert all(file_of(store, ref).exists() for ref in refs.values())
    cleared = clear(store)
    assert planned == cleared == Cleared(blobs=1, size=len("lonely"))
    assert [name for name, ref in refs.items() if not file_of(store, ref).exists()] == ["lonely"]
    assert clear(store) == Cleared()


def test_what_is_young_stays(store: Store) -> None:
    """A blob that is younger than the grace stays, needed or not."""
    old, young = put(store, "old", 3 * HOUR), put(store, "young", HOUR)
    assert clear(store, grace=2 * HOUR).blobs == 1
    assert not file_of(store, old).exists()
    assert file_of(store, young).exists()


def test_what_a_run_that_goes_on_may_have_written_stays(store: Store) -> None:
    """While a run goes on, nothing goes that is newer than it, however short the grace; a very short one is refused."""
    writer = begin(store, 5 * DAY)
    written, before = put(store, "written by a task that is not done", 4 * DAY), put(store, "before", 6 * DAY)
    with pytest.raises(UsageError, match="too short"):
        clear(store, grace=HOUR - 1)
    assert clear(store, grace=HOUR).blobs == 1
    assert file_of(store, written).exists()
    assert not file_of(store, before).exists()
    writer.close()
    assert clear(store, grace=HOUR).blobs == 1


def test_a_blob_that_is_made_new_in_the_last_moment_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes a blob again between the look and the removal finds it there."""
    ref = put(store, "shared", 2 * DAY)
    path = file_of(store, ref)
    rename = Path.rename

    def write_again(self: Path, target: Path) -> Path:
        if self == path:
            os.utime(path)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", write_again)
    assert clear(store, grace=HOUR).blobs == 0
    assert path.read_bytes() == b"shared"


def test_runs_go_with_what_only_they_need(store: Store) -> None:
    """A run that the policy lets go is deleted, and its blobs with it, but not those that another run shares."""
    shared, own = put(store, "shared"), put(store, "own")
    old = finished(store, 9 * DAY, shared=shared, own=own)
    new = finished(store, DAY, shared=shared)
    planned = clear(store, Retention(older_than=5 * DAY), dry_run=True)
    assert list(store.run_ids("Flow")) == [new, old]
    cleared = clear(store, Retention(older_than=5 * DAY))
    assert planned == cleared
    assert (cleared.runs, cleared.blobs) == ([f"Flow/{old}"], 1)
    assert list(store.run_ids("Flow")) == [new]
    assert file_of(store, shared).exists()
    assert check_store(store.objects).findings == ()


def test_runs_that_others_took_tasks_from_stay(store: Store) -> None:
    """A run whose tasks a kept run has taken over stays for their output, also through several runs; others go."""
    first, unused = finished(store, 9 * DAY), finished(store, 8 * DAY)
    for age, origin, source in ((7 * DAY, unused, first), (6 * DAY, first, None)):
        writer = begin(store, age, origin=origin)
        if source is not None:
            reused = TaskReused(TaskKey("start"), f"Flow/{source}/start/0", StepOutcome("succeeded"))
            writer.write([reused])
        writer.write([RunEnded("succeeded", "", time.time() - age, 1)])
        writer.close()
    last = store.run_ids("Flow")[0]
    middle = store.run_ids("Flow")[1]
    assert set(clear(store, Retention(keep=2)).runs) == {f"Flow/{unused}"}
    assert list(store.run_ids("Flow")) == [last, middle, first]
    assert set(clear(store, Retention(keep=1)).runs) == {f"Flow/{middle}", f"Flow/{first}"}


def test_a_run_that_goes_on_is_never_removed(store: Store) -> None:
    """Neither a policy nor a command removes a run whose driver is there; when it is gone, both do."""
    writer = begin(store, 9 * DAY)
    run_id = writer.began.run.run_id
    assert clear(store, ALL, grace=HOUR).runs == []
    with pytest.raises(RunLocked, match="under way"):
        remove_run(store, "Flow", run_id)
    writer.close()
    assert clear(store, ALL).runs == [f"Flow/{run_id}"]
    with pytest.raises(NotFound):
        remove_run(store, "Flow", run_id)


def test_what_says_that_a_run_is_being_deleted_goes_after_the_rest_is_gone_for_good(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut may undo deletions that are not durable, and must not bring back a part that looks like damage."""
    run_id = finished(store, DAY)
    marker = layout.run("Flow", run_id) + REMOVED
    done: list[tuple[str, str]] = []
    monkeypatch.setattr(store, "objects", Told(store.objects, done))
    remove_run(store, "Flow", run_id)
    assert done[-2:] == [("sync", marker), ("delete", marker)]
    assert ("delete", layout.seal("Flow", run_id)) in done[:-2]


class Told:
    """Objects that write down what is deleted and made durable."""

    def __init__(self, objects: ObjectStore, done: list[tuple[str, str]]) -> None:
        self._objects = objects
        self._done = done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objects, name)

    def delete(self, key: str) -> None:
        """Delete, and write it down."""
        self._done.append(("delete", key))
        self._objects.delete(key)

    def sync(self, keys: Sequence[str]) -> None:
        """Make durable, and write it down."""
        self._done += [("sync", key) for key in keys]
        self._objects.sync(keys)


def test_an_orchestrated_run_that_was_not_ended_is_told_how(store: Store) -> None:
    """A run without a driver goes on until somebody ends it; the refusal tells the command."""
    writer = begin(store, 9 * DAY, has_driver=False)
    run_id = writer.began.run.run_id
    writer.close()
    with pytest.raises(RunLocked) as refused:
        remove_run(store, "Flow", run_id)
    assert "orchestrated finish" in refused.value.hint
    store.add_segment("Flow", run_id, "ended", RunEnded("cancelled", "", time.time(), 0))
    remove_run(store, "Flow", run_id)
    assert list(store.run_ids("Flow")) == []


def test_damage_keeps_every_blob(store: Store) -> None:
    """Where a damaged record may have mentioned a blob, no blob goes; the damaged run can be removed."""
    lonely = put(store, "lonely")
    run_id = finished(store, DAY)
    path = store.objects.local_path(layout.journal("Flow", run_id))
    assert path is not None
    path.write_bytes(path.read_bytes().replace(b"succeeded", b"sacceeded", 1))
    cleared = clear(store)
    assert (cleared.blobs, "damaged" in cleared.kept) == (0, True)
    assert clear(store, ALL).runs == []
    remove_run(store, "Flow", run_id)
    assert clear(store).blobs == 1
    assert not file_of(store, lonely).exists()


def test_a_deletion_that_was_cut_off_is_no_damage_and_is_finished(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every step of a deletion the whole run is there or nothing like one, and a clearing ends it."""
    deletes = 0

    class Killed(BaseException):
        """The process is gone."""

    real = FileStore.delete

    def delete(self: FileStore, key: str) -> None:
        nonlocal deletes
        if not deletes:
            raise Killed
        deletes -= 1
        real(self, key)

    for step in range(8):
        run_id = finished(store, DAY + step)
        store.add_segment("Flow", run_id, "tags.1", TagsChanged(("a",), (), "me", 1.0))
        deletes = step
        with monkeypatch.context() as patch:
            patch.setattr(FileStore, "delete", delete)
            try:
                remove_run(store, "Flow", run_id)
            except Killed:
                assert step < 6
        left = {info.key.rpartition("/")[2] for info in store.objects.list(layout.run("Flow", run_id))}
        assert ("journal" in left) == (step == 0)
        if step:
            with pytest.raises(NotFound):
                store.run("Flow", run_id)
        findings = check_store(store.objects).findings
        assert {finding.severity for finding in findings} <= {"leftover"}
        assert (left == set()) == (findings == ())
        assert REMOVED in left or not left
        clear(store)
        assert list(store.run_ids("Flow")) == []
        assert check_store(store.objects).findings == ()


def test_what_never_became_a_run_goes_when_it_is_old(store: Store) -> None:
    """A lock, a log or a segment without a journal is left alone while it is young, and then removed."""
    prefix = layout.run("Flow", "20260101-000000-000000")
    store.objects.create(prefix + "logs", b"", sync=False)
    assert clear(store, grace=DAY).leftovers == 0
    path = store.objects.local_path(prefix + "logs")
    assert path is not None
    os.utime(path, (1e9, 1e9))
    assert clear(store, grace=DAY, dry_run=True).leftovers == 1
    assert clear(store, grace=DAY).leftovers == 1
    assert list(store.run_ids("Flow")) == []


def test_a_journal_that_somebody_deleted_is_no_leftover(store: Store) -> None:
    """What is left of a run that had ended, and whose journal is gone, is damage: it is told and not cleared away."""
    run_id = finished(store, 9 * DAY)
    store.objects.delete(layout.journal("Flow", run_id))
    (finding,) = check_store(store.objects).findings
    assert (finding.severity, finding.key) == ("damage", layout.journal("Flow", run_id))
    assert clear(store).leftovers == 0
    remove_run(store, "Flow", run_id)
    assert check_store(store.objects).findings == ()


def test_parts_of_what_is_one_object_go(store: Store) -> None:
    """Of the parts of a sealed object all go but the last, which keeps an earlier driver out; unsealed ones stay."""
    run_id = finished(store, DAY)
    key = layout.journal("Flow", run_id)
    writer = GrowingWriter(store.objects, key, buffers=False)
    lines = store.objects.read(key).split(b"\n")[:-1]
    for line in lines:
        writer.append(line + b"\n", sync=True)
    writer.close()
    last = layout.part(key, 0, len(lines) - 1)
    assert len(lines) < PACK
    assert clear(store).parts == len(lines) - 1
    assert [info.key for info in store.objects.list(layout.parts(key))] == [last]
    assert clear(store).parts == 0
    remove_run(store, "Flow", run_id)
    assert list(store.objects.list(layout.PARTS)) == []
    other = layout.journal("Flow", "20260101-000000-000000")
    store.objects.create(layout.part(other, 0, 0), b"", sync=False)
    assert clear(store).parts == 0


def test_a_run_in_parts_is_deleted_beginning_with_its_beginning(store: Store) -> None:
    """No reader finds the run once its first part is gone, however many are left."""
    key = layout.journal("Flow", "20260101-000000-000000")
    for number in range(3):
        store.objects.create(layout.part(key, 0, number), b"x\n", sync=False)
    order: list[str] = []
    real = store.objects.delete
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.objects, "delete", lambda name: (order.append(name), real(name))[1])
        finish_removal(store.objects, "Flow", "20260101-000000-000000")
    assert order[0] == layout.part(key, 0, 0)
    assert order[-1].endswith(REMOVED)


def test_what_repairs_moved_away_goes_when_it_is_old(store: Store) -> None:
    """Quarantined objects are kept for the grace."""
    store.objects.create("damaged/blobs/aa/x.1", b"bad", sync=False)
    assert clear(store, grace=DAY).leftovers == 0
    assert clear(store).leftovers == 1


def test_unfinished_files_of_dead_processes_go(store: Store, tmp_path: Path) -> None:
    """What a process left unfinished goes an hour after; what belongs to one that lives stays."""
    mine = store.objects.staging()
    (mine / "file").write_bytes(b"mine")
    left = mine.parent / "0123456789abcdef"
    left.mkdir()
    (left / "file").write_bytes(b"left")
    assert clear(store).leftovers == 0
    for folder in (left, mine):
        os.utime(folder, (1e9, 1e9))
    (finding,) = check_store(store.objects).findings
    assert finding.severity == "leftover"
    assert clear(store, dry_run=True) == Cleared(leftovers=1, size=4)
    assert clear(store).leftovers == 1
    assert (mine / "file").exists()
    assert not left.exists()
    assert tmp_path.exists()
