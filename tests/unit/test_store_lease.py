"""Leases: how a driver is known to be there, and how one that was away is kept from committing anything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from mlp_core.builtin.file_store import FileStore
from mlp_core.errors import NotFound, RunLocked, StoreError, StoreFenced, StoreUnavailable
from mlp_core.store import AttemptStarted, Note, RunBegan, RunEnded, Store, layout
from mlp_core.store.lease import Lease, Pulse
from mlp_core.store.seal import read_seal
from mlp_hookspecs.types import FlowGraph, RunContext, StepNode, TaskKey
from mlp_reliability.counting import CountingBucket

if TYPE_CHECKING:
    from pathlib import Path

GRAPH = FlowGraph("Flow", "start", "start", (StepNode("start", "end"),))
RUN = ("Flow", "19700101-000000-000000")


def began(run_id: str, lease_seconds: float = 60) -> RunBegan:
    """Return the first record of a run."""
    return RunBegan(RunContext("Flow", run_id), 1.0, "host", 1, GRAPH, lease_seconds=lease_seconds)


def note(text: str) -> Note:
    """Return a record."""
    return Note("test", text, 2.0)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        """Begin at some moment."""
        self.now = 100.0
        self.busy = 5.0

    def pass_by(self, seconds: float, busy: float = 0.0) -> None:
        """Let time go by, of which the process computed for some."""
        self.now += seconds
        self.busy += busy


@pytest.fixture
def clock() -> Clock:
    """A clock."""
    return Clock()


def lease_of(objects: CountingBucket, clock: Clock, seconds: float = 60) -> Lease:
    """Return a lease by a test's clock."""
    return Lease(objects, *RUN, seconds, clock=lambda: clock.now, busy=lambda: clock.busy)


def test_a_driver_that_was_stopped_commits_nothing(bucket: CountingBucket, clock: Clock) -> None:
    """A gap without computing that is longer than the lease ends it for good; shorter ones do not."""
    lease = lease_of(bucket, clock)
    clock.pass_by(59)
    lease.check()
    clock.pass_by(59)
    lease.check()
    clock.pass_by(61)
    with pytest.raises(StoreFenced, match="was stopped for 61 s, longer than its lease of 60 s"):
        lease.check()
    clock.pass_by(1)
    with pytest.raises(StoreFenced):
        lease.check()


def test_a_driver_that_computed_was_not_stopped(bucket: CountingBucket, clock: Clock) -> None:
    """A library that lets no thread run for minutes is no reason to lose a run."""
    lease = lease_of(bucket, clock)
    clock.pass_by(300, busy=290)
    lease.check()


def test_where_creates_have_no_single_winner_the_lease_is_all_there_is(tmp_path: Path, clock: Clock) -> None:
    """Without the store's own fence, a driver that cannot renew its lease commits nothing more."""
    bucket = CountingBucket(tmp_path / "store", creates_once=False)
    lease = lease_of(bucket, clock)
    for _ in range(3):
        clock.pass_by(30)
        lease.renew()
        lease.check()
    for _ in range(2):
        clock.pass_by(30)
        lease.check()
    clock.pass_by(30)
    with pytest.raises(StoreFenced):
        lease.check()


def test_a_lease_is_renewed_until_it_is_closed(bucket: CountingBucket) -> None:
    """Readers see a driver that is there, also when renewing failed for a while, and that it has gone."""
    store = Store.open(bucket, create=True)
    # Always computing: a system too busy to give the thread its turn is not a process that was stopped.
    lease = Lease(store.objects, *RUN, 0.4, busy=time.monotonic)
    lease.start()
    for failing in (set(), {"replace"}, set()):
        bucket.failing = failing
        seen = bucket.requests["replace"]
        deadline = time.monotonic() + 20
        while bucket.requests["replace"] < seen + 2:
            assert time.monotonic() < deadline, "the lease is not renewed"
            time.sleep(0.01)
    assert Pulse.take(bucket, *RUN).is_alive(60)
    lease.close(remove=True)
    assert not Pulse.take(bucket, *RUN).is_alive(60)
    assert not lease._thread.is_alive()


def test_a_lease_that_has_lapsed_is_not_renewed(bucket: CountingBucket, clock: Clock) -> None:
    """The thread finds it too, and lets the lease grow old, so that others may take the run over."""
    lease = lease_of(bucket, clock, 0.04)
    lease.start()
    clock.pass_by(1)
    lease._thread.join(20)
    assert not lease._thread.is_alive()
    with pytest.raises(StoreFenced, match=r"was stopped for 1 s, longer than its lease of 0.04 s"):
        lease.check()
    lease.close(remove=False)
    assert bucket.children(layout.run(*RUN)) == ["lease"]


def age(bucket_store: Store, seconds: float) -> None:
    """Make a run's lease or lock older."""
    inner = bucket_store.objects._inner  # type: ignore[attr-defined]
    path = inner._root / (layout.lease(*RUN) if isinstance(inner, CountingBucket) else layout.lock(*RUN))
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_silent_driver_is_lost_and_can_be_fenced(any_store: Store) -> None:
    """Who has not renewed its lease reads lost; whoever ends its run can do so once, and it commits nothing more."""
    writer = any_store.create_run(began, 0.0)
    writer.write([note("one"), AttemptStarted(TaskKey("start"), 0, "local", 1.0)])
    with pytest.raises(RunLocked, match="is under way: its driver is process 1 on host"):
        any_store.fence(*RUN)
    age(any_store, 61)
    assert any_store.run(*RUN).status == "lost"
    assert [summary.status for summary in any_store.runs()] == ["lost"]
    fenced = any_store.fence(*RUN)
    assert fenced.ended is not None
    assert (fenced.status, fenced.ended.status) == ("lost", "lost")
    assert "process 1 on host" in fenced.ended.message
    assert fenced.ended.tasks == 0
    for _ in range(2):
        with pytest.raises(StoreFenced):
            writer.write([note("two")])
    with pytest.raises(StoreFenced):
        writer.check()
    assert any_store.fence(*RUN).ended == fenced.ended
    assert [each.text for each in any_store.run(*RUN).notes] == ["one"]
    assert [summary.status for summary in any_store.runs()] == ["lost"]
    assert read_seal(any_store.objects, *RUN) is not None
    writer.close()


def test_what_waits_is_not_written_by_a_fenced_driver(bucket_store: Store) -> None:
    """A flush is a write too."""
    writer = bucket_store.create_run(began, 0.0)
    writer.write([note("one")], sync=False)
    age(bucket_store, 61)
    bucket_store.fence(*RUN)
    with pytest.raises(StoreFenced):
        writer.flush()
    assert bucket_store.run(*RUN).notes == []
    writer.close()


def test_a_writer_that_failed_does_not_go_on_after_a_fence(bucket_store: Store, bucket: CountingBucket) -> None:
    """What was written while the bucket was away is found before anything is written behind it."""
    writer = bucket_store.create_run(began, 0.0)
    bucket.failing = {"create"}
    with pytest.raises(StoreError, match="create does not work"):
        writer.write([note("one")])
    bucket.failing = set()
    age(bucket_store, 61)
    bucket_store.fence(*RUN)
    for _ in range(2):
        with pytest.raises(StoreFenced, match="was ended by another process"):
            writer.write([note("two")])
    assert bucket_store.run(*RUN).notes == []
    writer.close()


def test_who_looked_too_early_does_not_end_a_run_twice(any_store: Store) -> None:
    """A run that was ended between somebody's look and his writing is not ended again."""
    writer = any_store.create_run(began, 0.0)
    age(any_store, 61)
    early = any_store.follow(*RUN)
    ended = any_store.fence(*RUN).ended
    any_store._end(early, RunEnded("lost", "again", 9.0))
    assert any_store.run(*RUN).ended == ended
    writer.close()


def test_one_of_many_who_fence_a_run_ends_it(any_store: Store) -> None:
    """Whoever takes over at the same moment as others sees the run end once."""
    writer = any_store.create_run(began, 0.0)
    age(any_store, 61)
    ends: list[Any] = []
    threads = [threading.Thread(target=lambda: ends.append(any_store.fence(*RUN).ended)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ends) == 8
    assert len(set(ends)) == 1
    assert any_store.run(*RUN).ended == ends[0]
    writer.close()


def test_a_run_that_is_not_there_cannot_be_fenced(any_store: Store) -> None:
    """There is no such run, and none is made."""
    with pytest.raises(NotFound):
        any_store.fence(*RUN)
    assert any_store.flows() == []


def test_a_stopped_process_commits_nothing_when_it_goes_on(tmp_path: Path) -> None:
    """A driver that was stopped past its lease writes nothing, though its lock was never free and nobody took over."""
    code = """
import os, signal, sys, time
from pathlib import Path
from mlp_core.builtin.file_store import FileStore
from mlp_core.errors import StoreFenced
from mlp_core.store import *
from mlp_hookspecs.types import *
store = Store.open(FileStore(Path(sys.argv[1])), create=True)
graph = FlowGraph("Flow", "start", "start", (StepNode("start", "end"),))
writer = store.create_run(
    lambda run_id: RunBegan(RunContext("Flow", run_id), 1.0, "host", 1, graph, lease_seconds=1.0), 0.0)
print("begun", flush=True)
sys.stdin.readline()
try:
    writer.write([Note("test", "too late", 2.0)])
except StoreFenced as error:
    print(error.message, flush=True)
"""
    driver = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    assert driver.stdout is not None
    assert driver.stdout.readline() == "begun\n"
    driver.send_signal(signal.SIGSTOP)
    store = Store.open(FileStore(tmp_path), create=False)
    deadline = time.monotonic() + 30
    while store.run(*RUN).status == "running":
        assert time.monotonic() < deadline, "a stopped driver counts as being there"
        time.sleep(0.1)
    time.sleep(0.5)
    driver.send_signal(signal.SIGCONT)
    said, _ = driver.communicate("go on\n", timeout=30)
    assert "was stopped for" in said
    assert store.run(*RUN).notes == []
    assert store.run(*RUN).status == "lost"
    store.close()


def test_a_pulse_lasts_as_long_as_the_lease() -> None:
    """A driver is there up to the end of its lease, and only while its lock is held and the lease is there."""
    for taken_at, is_alive in ((100.0, True), (159.9, True), (160.0, False)):
        assert Pulse(is_locked=True, renewed_at=100.0, taken_at=taken_at).is_alive(60) == is_alive
    assert not Pulse(is_locked=False, renewed_at=100.0, taken_at=100.0).is_alive(60)
    assert not Pulse(is_locked=True, renewed_at=None, taken_at=100.0).is_alive(60)


@pytest.mark.parametrize(
    ("away", "computed", "is_over"), [(60, 0, False), (60.5, 0, True), (70, 35, False), (70, 30, True)]
)
def test_what_counts_as_away(bucket: CountingBucket, clock: Clock, away: float, computed: float, is_over: bool) -> None:
    """Longer than the lease, and without having computed for half of that time."""
    lease = lease_of(bucket, clock)
    clock.pass_by(away, computed)
    if is_over:
        with pytest.raises(StoreFenced):
            lease.check()
    else:
        lease.check()


def test_a_lease_counts_from_its_last_renewal(tmp_path: Path, clock: Clock) -> None:
    """Where creates have no single winner, the message tells how long ago the lease was renewed."""
    lease = lease_of(CountingBucket(tmp_path / "store", creates_once=False), clock)
    clock.pass_by(100, 100)
    lease.renew()
    for _ in range(2):
        clock.pass_by(30, 30)
        lease.check()
    clock.pass_by(5, 5)
    with pytest.raises(StoreFenced, match="was stopped for 65 s"):
        lease.check()


def test_the_time_of_the_lock_is_the_lease(tmp_path: Path, clock: Clock) -> None:
    """Where locks are files, renewing makes the lock's file new, and a file that is gone is the store's failure."""
    objects = FileStore(tmp_path)
    key = layout.lock(*RUN)
    objects.create(key, b"", sync=False)
    path = objects.local_path(key)
    assert path is not None
    os.utime(path, (0, 0))
    lease = Lease(objects, *RUN, 60, clock=lambda: clock.now, busy=lambda: clock.busy)
    assert lease.pause == 15
    lease.renew()
    assert path.stat().st_mtime > time.time() - 60
    path.unlink()
    with pytest.raises(StoreUnavailable, match=r"lock: No such file"):
        lease.renew()
    assert objects.children("") == ["flows"]
    lease.close(remove=True)
    objects.close()


def test_renewing_a_lease_needs_no_sync(bucket: CountingBucket, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that a power cut takes back is one of a driver that is gone; closing leaves it unless it is to go."""
    asked: list[tuple[str, bytes, bool]] = []
    real = bucket.replace

    def spy(key: str, data: bytes, *, sync: bool) -> None:
        asked.append((key, data, sync))
        real(key, data, sync=sync)

    monkeypatch.setattr(bucket, "replace", spy)
    lease = lease_of(bucket, clock)
    lease.renew()
    assert asked == [(layout.lease(*RUN), b"", False)]
    lease.close(remove=False)
    assert bucket.children(layout.run(*RUN)) == ["lease"]
    lease.close(remove=True)
    assert bucket.children(layout.run(*RUN)) == []


def test_a_lease_that_cannot_be_removed_stays(bucket: CountingBucket, clock: Clock) -> None:
    """Readers can do with an old lease of a run that has ended."""
    lease = Lease(Store.open(bucket, create=True).objects, *RUN, 60, clock=lambda: clock.now, busy=lambda: clock.busy)
    lease.renew()
    bucket.failing = {"delete"}
    lease.close(remove=True)
    assert bucket.children(layout.run(*RUN)) == ["lease"]


def test_a_lease_in_use_holds_up_no_end_of_the_process(bucket: CountingBucket, clock: Clock) -> None:
    """The thread that renews it ends with the process, whatever it waits for."""
    assert lease_of(bucket, clock)._thread.daemon
