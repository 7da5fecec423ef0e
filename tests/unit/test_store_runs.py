"""Runs as they are created, watched and ended, where something happens in between."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from mlp_core.builtin.file_store import FileStore
from mlp_core.errors import NotFound, RunLocked, StoreDamaged, StoreError, StoreFenced, StoreUntrusted
from mlp_core.store import Note, RunBegan, RunEnded, Store, layout
from mlp_core.store import store as module
from mlp_core.store.signing import Signer
from mlp_hookspecs.types import FlowGraph, RunContext, StepNode

if TYPE_CHECKING:
    from pathlib import Path

    from mlp_core.store import RunReader
    from mlp_core.store.records import RunSealed
    from mlp_hookspecs.handles import ObjectStore

GRAPH = FlowGraph("Flow", "start", "start", (StepNode("start", "end"),))
RUN = ("Flow", "19700101-000000-000000")
KEY = layout.journal(*RUN)
NOTE = Note("kind", "text", 1.0)


def began(run_id: str) -> RunBegan:
    """Return the first record of a run."""
    return RunBegan(RunContext("Flow", run_id), 1.0, "host", 1, GRAPH)


@pytest.mark.parametrize("create", [True, False])
def test_a_store_of_format_1_is_raised_by_who_writes(tmp_path: Path, create: bool) -> None:  # a parameter
    """Who opens an older store to write marks it as of this version, who reads leaves it as it is."""
    objects = FileStore(tmp_path)
    objects.create(layout.FORMAT, b'{"format": 1}', sync=False)
    store = Store.open(objects, create=create)
    assert objects.read(layout.FORMAT) == (b'{"format": 2}\n' if create else b'{"format": 1}')
    store.close()


def test_ids_are_not_looked_for_without_end(any_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of so many microseconds one has to be free."""
    monkeypatch.setattr(module, "_RUN_ID_TRIES", 3)
    writers = [any_store.create_run(began, 0.0) for _ in range(3)]
    assert [writer.began.run.run_id[-6:] for writer in writers] == ["000000", "000001", "000002"]
    with pytest.raises(StoreError, match="no free run id for 3 microseconds"):
        any_store.create_run(began, 0.0)
    for writer in writers:
        writer.close()


def test_what_is_no_flow_and_no_run_is_passed_over(any_store: Store) -> None:
    """Names that do not pass the grammar are not ours."""
    writer = any_store.create_run(began, 0.0)
    writer.write([RunEnded("succeeded")])
    writer.close()
    for key in ("flows/no flow/x", "flows/Flow/notes/x", "flows/Flow/20260101/x"):
        any_store.objects.create(key, b"", sync=False)
    assert any_store.flows() == ["Flow"]
    assert any_store.run_ids("Flow") == [RUN[1]]


def test_what_is_not_signed_is_not_trusted(tmp_path: Path) -> None:
    """With a key, a run that was written without it may be read, and nothing else."""
    objects = FileStore(tmp_path)
    signed, unsigned = Store.open(objects, create=True, signer=Signer(b"k" * 32)), Store.open(objects, create=True)
    for store, is_trusted in ((signed, True), (unsigned, False)):
        writer = store.create_run(began, 0.0)
        writer.write([NOTE])
        run = ("Flow", writer.began.run.run_id)
        assert store.add_segment(*run, "note", NOTE)
        writer.write([RunEnded("succeeded")])
        writer.close()
        assert [signed.run(*run).is_signed, unsigned.run(*run).is_signed] == [is_trusted, True]
        unsigned.require_signed(unsigned.run(*run))
        if is_trusted:
            signed.require_signed(signed.run(*run))
            assert unsigned.add_segment(*run, "unsigned", NOTE)
        with pytest.raises(StoreUntrusted, match=f"the run Flow/{run[1]} in .* is not signed with the key"):
            signed.require_signed(signed.run(*run))
    objects.close()


def test_a_fenced_run_is_signed_to_its_end(tmp_path: Path) -> None:
    """Who takes a run over signs its end."""
    objects = FileStore(tmp_path)
    store = Store.open(objects, create=True, signer=Signer(b"k" * 32))
    store.create_run(began, 0.0).close()
    assert store.fence(*RUN).is_signed
    store.require_signed(store.run(*RUN))
    store.close()


def test_fencing_gives_up_in_the_end(any_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where somebody is always quicker and the run does not end, it is under way."""
    writer = any_store.create_run(began, 0.0)
    writer.close()
    tries = []

    def too_late(_reader: RunReader, _ended: RunEnded) -> None:
        tries.append(1)
        raise StoreFenced("somebody else has written")

    if any_store.objects.local_path(KEY) is None:
        any_store.objects.delete(layout.lease(*RUN))
    monkeypatch.setattr(any_store, "_end", too_late)
    with pytest.raises(RunLocked, match="is under way: its driver is process 1 on host"):
        any_store.fence(*RUN)
    assert len(tries) == 10


def test_a_fence_tells_how_many_tasks_were_finished(any_store: Store) -> None:
    """The end that is put to a lost run is of now, and counts what the run had reached."""
    writer = any_store.create_run(began, 0.0)
    writer.close()
    if any_store.objects.local_path(KEY) is None:
        any_store.objects.delete(layout.lease(*RUN))
    before = time.time()
    ended = any_store.fence(*RUN).ended
    assert ended is not None
    assert before <= ended.time <= time.time()
    assert (ended.status, ended.tasks) == ("lost", 0)


def test_a_driver_that_was_away_for_too_long_is_told_so_always(any_store: Store) -> None:
    """The first look after a pause tells it, and each one after that, whatever is asked."""
    writer = any_store.create_run(began, 0.0)
    assert writer.pause == 15
    writer.check()
    writer._lease._seen = (time.monotonic() - 61, time.process_time())
    with pytest.raises(StoreFenced, match="was stopped for 61 s") as first:
        writer.check()
    for act in (writer.check, lambda: writer.write([NOTE])):
        with pytest.raises(StoreFenced) as again:
            act()
        assert again.value is first.value
    writer.close()
    assert any_store.run(*RUN).notes == []


def test_a_run_that_ends_while_it_is_read_has_ended(any_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads a journal, then finds the seal, reads on before it says that the end is missing."""
    writer = any_store.create_run(began, 0.0)
    real = module.read_seal

    def ended(objects: ObjectStore, flow: str, run_id: str) -> RunSealed | None:
        writer.write([NOTE, RunEnded("succeeded")])
        writer.close()
        return real(objects, flow, run_id)

    monkeypatch.setattr(module, "read_seal", ended)
    state = any_store.run(*RUN)
    assert (state.status, state.notes) == ("succeeded", [NOTE])


def test_a_run_that_is_deleted_while_it_is_read_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at a journal and the reading of it, it may go."""
    store = Store.open(FileStore(tmp_path), create=True)
    writer = store.create_run(began, 0.0)
    writer.close()
    real = FileStore.read

    def remove(self: FileStore, key: str, start: int = 0, end: int | None = None) -> bytes:
        if key == KEY:
            FileStore.delete(self, key)
        return real(self, key, start, end)

    monkeypatch.setattr(FileStore, "read", remove)
    with pytest.raises(NotFound, match=f"no run {'/'.join(RUN)}"):
        store.run(*RUN)
    store.close()


def test_a_follower_is_told_that_the_run_was_deleted(any_store: Store) -> None:
    """A run that goes while somebody follows it is no run any more."""
    writer = any_store.create_run(began, 0.0)
    writer.write([RunEnded("succeeded")])
    writer.close()
    follower = any_store.follow(*RUN)
    assert follower.expected == 2
    for prefix in (layout.run(*RUN), layout.parts_of_run(*RUN)):
        for info in list(any_store.objects.list(prefix)):
            any_store.objects.delete(info.key)
    with pytest.raises(NotFound):
        follower.refresh()


def test_a_journal_of_another_run_is_damage(any_store: Store) -> None:
    """A journal that was put to another run's place is not taken for that run's."""
    for _ in range(2):
        writer = any_store.create_run(began, 0.0)
        writer.write([RunEnded("succeeded")])
        writer.close()
    other = layout.journal("Flow", writer.began.run.run_id)
    any_store.objects.replace(KEY, any_store.objects.read(other), sync=False)
    with pytest.raises(StoreDamaged, match="does not begin with the run's beginning"):
        any_store.run(*RUN)
