"""Runs on stores whose objects cannot grow: parts, packs, seals, leases, and drivers that are fenced."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from mlp_core.builtin.file_store import FileStore
from mlp_core.errors import NotFound, RunLocked, StoreDamaged, StoreError, StoreFenced, StoreUnavailable
from mlp_core.store import Note, RunBegan, RunEnded, Store, layout, read_logs
from mlp_core.store import growing as module
from mlp_core.store.growing import PACK, GrowingReader, GrowingWriter, open_growing, read_growing
from mlp_core.store.lease import Lease, Pulse
from mlp_core.store.seal import read_seal
from mlp_hookspecs.types import ArtifactRef, FlowGraph, RunContext, StepNode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GRAPH = FlowGraph("Flow", "start", "start", (StepNode("start", "end"),))
RUN = ("Flow", "19700101-000000-000000")
KEY = layout.journal(*RUN)


class Bucket(FileStore):
    """Objects in a folder that nobody sees: they cannot grow, there are no locks, and requests are counted."""

    def __init__(self, root: Path, *, creates_once: bool = True) -> None:
        """Make the store."""
        super().__init__(root, durable=False)
        self.has_one_winner = creates_once
        self.requests: Counter[str] = Counter()
        self.failing: set[str] = set()

    @property
    def creates_once(self) -> bool:
        """As the test says."""
        return self.has_one_winner

    def local_path(self, key: str) -> Path | None:  # noqa: ARG002 # a protocol's
        """Have no local files."""
        return None

    def open_append(self, key: str) -> Any:  # noqa: ARG002 # as above
        """Have no objects that grow."""
        return None

    def lock(self, key: str) -> Any:  # noqa: ARG002 # as above
        """Have no locks."""
        return None

    def is_locked(self, key: str) -> bool:  # noqa: ARG002 # as above
        """Have no locks."""
        return False

    def _count(self, operation: str) -> None:
        """Count a request; fail where the test says so."""
        self.requests[operation] += 1
        if operation in self.failing:
            raise OSError(5, f"{operation} does not work")

    def create(self, key: str, data: bytes, *, sync: bool) -> bool:
        """Count, and create."""
        self._count("create")
        return super().create(key, data, sync=sync)

    def replace(self, key: str, data: bytes, *, sync: bool) -> None:
        """Count, and replace."""
        self._count("replace")
        super().replace(key, data, sync=sync)

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Count, and read."""
        self._count("read")
        return super().read(key, start, end)

    def info(self, key: str) -> Any:
        """Count, and look."""
        self._count("info")
        return super().info(key)

    def list(self, prefix: str) -> Any:
        """Count, and list."""
        self._count("list")
        return super().list(prefix)

    def adopt(self, source: Path, key: str, *, sync: bool) -> None:
        """Count, and upload."""
        self._count("adopt")
        super().adopt(source, key, sync=sync)


def began(run_id: str, lease_seconds: float = 60) -> RunBegan:
    """Return the first record of a run."""
    return RunBegan(RunContext("Flow", run_id), 1.0, "host", 1, GRAPH, lease_seconds=lease_seconds)


def note(text: str) -> Note:
    """Return a record."""
    return Note("test", text, 2.0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what readers remember out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Bucket]:
    """The objects of a store that is like a bucket."""
    objects = Bucket(tmp_path / "store")
    yield objects
    objects.close()


@pytest.fixture
def store(bucket: Bucket) -> Store:
    """A store that is like a bucket."""
    return Store.open(bucket, create=True)


@pytest.fixture(params=["bucket", "folder"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A store of each sort."""
    objects = Bucket(tmp_path / "store") if request.param == "bucket" else FileStore(tmp_path / "store")
    store = Store.open(objects, create=True)
    yield store
    store.close()


# ---------------------------------------------------------------------------------------------------- growing objects


@pytest.mark.parametrize("parts", [0, 1, PACK - 1, PACK, PACK + 1, 3 * PACK + 5])
def test_parts_read_as_what_was_appended(bucket: Bucket, parts: int) -> None:
    """However many parts there are, and whether they are sealed or not, a reader gets what was appended, in order."""
    writer = GrowingWriter(bucket, KEY, buffers=True)
    follower = GrowingReader(bucket, KEY)
    expected = b""
    for number in range(parts):
        piece = b"%d," % number
        writer.append(piece, sync=True)
        expected += piece
        if number % 50 == 0:
            assert follower.size() == len(expected)
            assert follower.read() == expected
    assert follower.size() == len(expected)
    if parts:
        assert read_growing(bucket, KEY) == expected
        assert read_growing(bucket, KEY, 3) == expected[3:]
    assert writer.seal()
    assert bucket.read(KEY) == expected
    for reader in (follower, GrowingReader(bucket, KEY)):
        assert reader.size() == len(expected)
        assert reader.read(1, 4) == expected[1:4]
        assert reader.read(2) == expected[2:]
        assert reader.read() == expected
    writer.close()
    assert not list(bucket.staging().iterdir())


def test_nothing_is_there_where_nothing_was_written(bucket: Bucket) -> None:
    """An object without a part is absent, also to who looks again."""
    reader = GrowingReader(bucket, KEY)
    assert reader.size() == reader.size() == 0
    assert not reader.exists
    with pytest.raises(FileNotFoundError):
        read_growing(bucket, KEY)


def test_late_readers_need_few_requests(bucket: Bucket) -> None:
    """Who comes late reads packs, and who follows asks for the next part alone."""
    writer = GrowingWriter(bucket, KEY, buffers=True)
    for number in range(10 * PACK + 3):
        writer.append(b"%d," % number, sync=True)
    assert bucket.requests["create"] == 10 * PACK + 3 + 10
    bucket.requests.clear()
    reader = GrowingReader(bucket, KEY)
    reader.size()
    assert bucket.requests["read"] == 10 + 3
    assert bucket.requests["list"] == 1
    bucket.requests.clear()
    assert reader.size() == reader.size()
    assert bucket.requests == {"read": 2}


def test_a_missing_part_is_damage(bucket: Bucket) -> None:
    """What comes after a part that is gone is not passed over in silence, in parts and in packs."""
    writer = GrowingWriter(bucket, KEY, buffers=True)
    for number in range(3 * PACK):
        writer.append(b"%d," % number, sync=True)
    bucket.delete(layout.part(KEY, 0, 5))
    assert len(GrowingReader(bucket, KEY).read()) == len(writer_content(3 * PACK))  # a pack has it
    bucket.delete(layout.part(KEY, 1, 0))
    with pytest.raises(StoreDamaged, match=r"part 5 of .* is missing"):
        GrowingReader(bucket, KEY).read()


def writer_content(parts: int) -> bytes:
    """Return what a test's writer has written."""
    return b"".join(b"%d," % number for number in range(parts))


def test_what_need_not_be_durable_waits(bucket: Bucket) -> None:
    """Small records that need no sync do not cost a request each; a flush shows them."""
    writer = GrowingWriter(bucket, KEY, buffers=True)
    for _ in range(100):
        writer.append(b"x", sync=False)
    assert bucket.requests["create"] == 0
    writer.flush()
    writer.flush()
    assert bucket.requests["create"] == 1
    assert read_growing(bucket, KEY) == b"x" * 100


def test_a_second_writer_is_told_so(bucket: Bucket) -> None:
    """Of two who take themselves for the owner, the one that comes second is refused, and then for ever."""
    first = open_growing(bucket, KEY, buffers=True)
    first.append(b"1", sync=True)
    second = open_growing(bucket, KEY, buffers=True)
    second.append(b"2", sync=True)
    with pytest.raises(StoreFenced, match="taken over"):
        first.append(b"3", sync=True)
    with pytest.raises(StoreUnavailable, match="earlier write"):
        first.append(b"4", sync=True)
    assert read_growing(bucket, KEY) == b"12"


def test_much_content_is_kept_in_a_file(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader of much holds little of it in memory, and reads it all the same."""
    monkeypatch.setattr(module, "_IN_MEMORY", 100)
    writer = GrowingWriter(bucket, KEY, buffers=True)
    reader = GrowingReader(bucket, KEY)
    for number in range(40):
        writer.append(b"%02d" % number * 5, sync=True)
        assert reader.size() == 10 * (number + 1)
        assert reader.read(10 * number, 10 * number + 2) == b"%02d" % number
    assert reader.read() == b"".join(b"%02d" % number * 5 for number in range(40))


def test_packs_and_seals_may_fail(bucket: Bucket) -> None:
    """What only saves readers time costs nothing where it does not work."""
    guarded = Store.open(bucket, create=True).objects
    writer = GrowingWriter(guarded, KEY, buffers=True)
    for number in range(PACK - 1):
        writer.append(b"%d," % number, sync=True)
    writer._pack()  # of too few: none
    bucket.failing = {"adopt"}
    assert not writer.seal()
    assert read_growing(bucket, KEY) == writer_content(PACK - 1)


# ---------------------------------------------------------------------------------------------------- runs


def test_a_run_is_read_back_from_a_bucket(store: Store, bucket: Bucket) -> None:
    """A run is there from its first moment, is followed while it goes on, and sealed when it ends."""
    writer = store.create_run(began, 0.0)
    follower = store.follow(*RUN)
    assert follower.state.status == "running"
    assert store.flows() == ["Flow"]
    assert store.run_ids("Flow") == [RUN[1]]
    writer.write([note("one")], sync=False)
    assert follower.refresh() == []
    writer.flush()
    writer.write([note("two")])
    assert follower.refresh() == [note("one"), note("two")]
    writer.log("start/0/0", "stdout", b"hello", time.time())
    writer.flush()
    assert [chunk.data for chunk in read_logs(bucket, *RUN)] == [b"hello"]
    writer.log("start/0/0", "stdout", b"bye", time.time())
    writer.write([RunEnded("succeeded", time=3.0)])
    writer.close()
    follower.refresh()
    assert {follower.state.status, store.run(*RUN).status} == {"succeeded"}
    assert [chunk.data for chunk in read_logs(bucket, *RUN)] == [b"hello", b"bye"]
    assert sorted(bucket.children(layout.run(*RUN))) == ["journal", "logs", "seal"]
    sealed = read_seal(bucket, *RUN)
    assert sealed is not None
    assert (sealed.run, sealed.size) == (writer.began.run, len(bucket.read(KEY)))
    bucket.requests.clear()
    store.run(*RUN)
    assert bucket.requests.total() <= 6


def test_a_run_without_a_driver_is_found_on_a_bucket(store: Store) -> None:
    """A run that an orchestrator drives has no lease and is there once it was begun."""
    writer = store.create_run(
        lambda run_id: RunBegan(RunContext("Flow", run_id), 1.0, "host", 1, GRAPH, has_driver=False), 0.0
    )
    writer.close()
    assert store.run_ids("Flow") == [RUN[1]]
    assert store.run(*RUN).status == "running"
    assert [summary.status for summary in store.runs()] == ["running"]
    assert store.add_segment(*RUN, "note", note("x"))


def test_ids_are_free_on_a_bucket(store: Store) -> None:
    """Two drivers of the same moment get different runs."""
    writers = [store.create_run(began, 0.0) for _ in range(2)]
    assert len({writer.began.run.run_id for writer in writers}) == 2
    for writer in writers:
        writer.close()


def test_a_run_whose_seal_failed_is_still_found(store: Store, bucket: Bucket) -> None:
    """The lease stays where the journal could not be made one object, and everything can be read."""
    writer = store.create_run(began, 0.0)
    bucket.failing = {"adopt"}
    writer.write([RunEnded("failed", "why", 3.0)])
    writer.close()
    bucket.failing = set()
    assert store.run(*RUN).status == "failed"
    assert [summary.status for summary in store.runs()] == ["failed"]
    assert [summary.message for summary in store.runs()] == ["why"]


def test_a_missing_end_is_damage(any_store: Store) -> None:
    """A journal that was cut at the end of a record is not taken for a run that was lost."""
    writer = any_store.create_run(began, 0.0)
    writer.write([note("x"), RunEnded("succeeded", time=3.0)])
    writer.close()
    whole = any_store.objects.read(KEY)
    any_store.objects.replace(KEY, whole[: whole.rindex(b"\n", 0, -1) + 1], sync=False)
    with pytest.raises(StoreDamaged, match=r"the end of the journal of Flow/.* is missing"):
        any_store.run(*RUN)
    any_store.objects.replace(layout.seal(*RUN), b"damaged", sync=False)
    assert any_store.run(*RUN).status == "lost"


def test_a_writer_goes_on_after_a_failure(store: Store, bucket: Bucket) -> None:
    """A bucket that was away for a while costs nothing that was acknowledged."""
    writer = store.create_run(began, 0.0)
    writer.write([note("one")])
    bucket.failing = {"create"}
    with pytest.raises(StoreError, match="create does not work"):
        writer.write([note("two")])
    bucket.failing = set()
    writer.write([note("three")])
    assert [each.text for each in store.run(*RUN).notes] == ["one", "three"]
    writer.close()


def test_listing_runs_on_a_bucket_needs_few_requests(store: Store, bucket: Bucket) -> None:
    """Runs are listed together; those that have ended are read once, and never again."""
    for number in range(40):
        writer = store.create_run(began, float(number))
        writer.write([RunEnded("succeeded", time=3.0)])
        writer.close()
    live = store.create_run(began, 50.0)
    bucket.requests.clear()
    assert [summary.status for summary in store.runs("Flow")] == ["running", *["succeeded"] * 40]
    assert bucket.requests["read"] <= 40 + 1
    assert bucket.requests["list"] <= 3
    bucket.requests.clear()
    assert len(store.runs("Flow")) == 41
    assert bucket.requests.total() <= 5
    live.close()


# ---------------------------------------------------------------------------------------------------- leases


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


def lease_of(objects: Bucket, clock: Clock, seconds: float = 60) -> Lease:
    """Return a lease by a test's clock."""
    return Lease(objects, *RUN, seconds, clock=lambda: clock.now, busy=lambda: clock.busy)


def test_a_driver_that_was_stopped_commits_nothing(bucket: Bucket, clock: Clock) -> None:
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


def test_a_driver_that_computed_was_not_stopped(bucket: Bucket, clock: Clock) -> None:
    """A library that lets no thread run for minutes is no reason to lose a run."""
    lease = lease_of(bucket, clock)
    clock.pass_by(300, busy=290)
    lease.check()


def test_where_creates_have_no_single_winner_the_lease_is_all_there_is(tmp_path: Path, clock: Clock) -> None:
    """Without the store's own fence, a driver that cannot renew its lease commits nothing more."""
    bucket = Bucket(tmp_path / "store", creates_once=False)
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


def test_a_lease_is_renewed_until_it_is_closed(bucket: Bucket) -> None:
    """Readers see a driver that is there, also when renewing failed for a while, and that it has gone."""
    store = Store.open(bucket, create=True)
    lease = Lease(store.objects, *RUN, 0.4)
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
    assert not any(thread.name == "mlp-lease" for thread in threading.enumerate())


def age(store: Store, seconds: float) -> None:
    """Make a run's lease or lock older."""
    import os

    inner = store.objects._inner  # type: ignore[attr-defined]
    path = inner._root / (layout.lease(*RUN) if isinstance(inner, Bucket) else layout.lock(*RUN))
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_silent_driver_is_lost_and_can_be_fenced(any_store: Store) -> None:
    """Who has not renewed its lease reads lost; whoever ends its run can do so once, and it commits nothing more."""
    writer = any_store.create_run(began, 0.0)
    writer.write([note("one")])
    with pytest.raises(RunLocked, match="is under way: its driver is process 1 on host"):
        any_store.fence(*RUN)
    age(any_store, 61)
    assert any_store.run(*RUN).status == "lost"
    assert [summary.status for summary in any_store.runs()] == ["lost"]
    fenced = any_store.fence(*RUN)
    assert fenced.ended is not None
    assert (fenced.status, fenced.ended.status) == ("lost", "lost")
    assert "process 1 on host" in fenced.ended.message
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


def test_what_waits_is_not_written_by_a_fenced_driver(store: Store) -> None:
    """A flush is a write too."""
    writer = store.create_run(began, 0.0)
    writer.write([note("one")], sync=False)
    age(store, 61)
    store.fence(*RUN)
    with pytest.raises(StoreFenced):
        writer.flush()
    assert store.run(*RUN).notes == []
    writer.close()


def test_a_writer_that_failed_does_not_go_on_after_a_fence(store: Store, bucket: Bucket) -> None:
    """What was written while the bucket was away is found before anything is written behind it."""
    writer = store.create_run(began, 0.0)
    bucket.failing = {"create"}
    with pytest.raises(StoreError, match="create does not work"):
        writer.write([note("one")])
    bucket.failing = set()
    age(store, 61)
    store.fence(*RUN)
    for _ in range(2):
        with pytest.raises(StoreFenced, match="was ended by another process"):
            writer.write([note("two")])
    assert store.run(*RUN).notes == []
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
    import signal

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


# ---------------------------------------------------------------------------------------------------- blobs


def stored(store: Store, content: bytes) -> tuple[Any, ArtifactRef]:
    """Store bytes, and return the access and the reference."""
    blobs = store.blobs(inline_bytes=0)
    target = blobs.target("bytes")
    target.write([content])
    return blobs, target.finish("builtins.bytes")


def test_blobs_from_elsewhere_are_fetched_once(store: Store, bucket: Bucket, tmp_path: Path) -> None:
    """What was fetched is mapped from this host's cache; what was changed there is fetched anew."""
    blobs, ref = stored(store, b"x" * 1000)
    assert bytes(blobs.source(ref).buffer()) == b"x" * 1000
    cached = tmp_path / "cache" / "mlp" / "blobs" / ref.digest
    assert cached.read_bytes() == b"x" * 1000
    bucket.delete(layout.blob(ref.digest))
    assert bytes(store.blobs().source(ref).buffer()) == b"x" * 1000
    cached.write_bytes(b"y" * 1000)
    with pytest.raises(StoreDamaged, match="is missing"):
        store.blobs().source(ref).buffer()
    assert not cached.exists()


def test_damage_elsewhere_is_found(store: Store, bucket: Bucket, tmp_path: Path) -> None:
    """A changed blob is refused, is not kept, and the message tells what to do."""
    blobs, ref = stored(store, b"x" * 1000)
    bucket.replace(layout.blob(ref.digest), b"y" * 1000, sync=False)
    for cache_bytes in (10**9, 0):
        with pytest.raises(StoreDamaged, match="is damaged") as caught:
            store.blobs(cache_bytes=cache_bytes).source(ref).buffer()
        assert "mlp fsck --repair" in caught.value.hint
    assert not list((tmp_path / "cache" / "mlp" / "blobs").iterdir())
    assert blobs.source(ref) is not None


def test_the_cache_is_bounded(store: Store, tmp_path: Path) -> None:
    """What was not asked for for longest goes first; what is too large is never kept."""
    import os

    refs = [stored(store, bytes([number]) * 1000)[1] for number in range(5)]
    blobs = store.blobs(cache_bytes=2500)
    folder = tmp_path / "cache" / "mlp" / "blobs"
    for number, ref in enumerate(refs):
        blobs.source(ref).buffer()
        then = time.time() - 100 + number
        os.utime(folder / ref.digest, (then, then))
        blobs.source(refs[0]).buffer()  # always the last that was asked for
    kept = {path.name for path in folder.iterdir() if path.suffix != ".used"}
    assert kept == {refs[0].digest, refs[4].digest}
    assert bytes(store.blobs(cache_bytes=10).source(refs[2]).buffer()) == bytes([2]) * 1000
    assert {path.name for path in folder.iterdir() if path.suffix != ".used"} == kept


def test_a_cache_that_cannot_be_written_is_done_without(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading works where the user's cache does not."""
    _, ref = stored(store, b"x" * 1000)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert bytes(store.blobs().source(ref).buffer()) == b"x" * 1000


def test_an_old_blob_is_made_new_before_it_is_referred_to(any_store: Store) -> None:
    """What a record is about to name is not removed as unused in between: it is as if it were just written."""
    import os

    _, ref = stored(any_store, b"x" * 1000)
    key = layout.blob(ref.digest)
    path = any_store.objects._inner._root / key  # type: ignore[attr-defined]
    os.utime(path, (1000, 1000))
    blobs, again = stored(any_store, b"x" * 1000)
    assert again == ref
    assert any_store.objects.info(key).modified_at > time.time() - 3600
    assert bytes(blobs.source(ref).buffer()) == b"x" * 1000
