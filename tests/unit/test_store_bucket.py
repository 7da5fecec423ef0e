"""Runs on stores whose objects cannot grow: followed, listed, sealed, and their blobs fetched once."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from mlp_core.errors import StoreDamaged, StoreError
from mlp_core.store import Note, RunBegan, RunEnded, Store, layout, read_logs
from mlp_core.store.seal import read_seal
from mlp_hookspecs.types import ArtifactRef, FlowGraph, RunContext, StepNode

if TYPE_CHECKING:
    from pathlib import Path

    from mlp_reliability.counting import CountingBucket

GRAPH = FlowGraph("Flow", "start", "start", (StepNode("start", "end"),))
RUN = ("Flow", "19700101-000000-000000")
KEY = layout.journal(*RUN)


def began(run_id: str, lease_seconds: float = 60) -> RunBegan:
    """Return the first record of a run."""
    return RunBegan(RunContext("Flow", run_id), 1.0, "host", 1, GRAPH, lease_seconds=lease_seconds)


def note(text: str) -> Note:
    """Return a record."""
    return Note("test", text, 2.0)


def test_a_run_is_read_back_from_a_bucket(bucket_store: Store, bucket: CountingBucket) -> None:
    """A run is there from its first moment, is followed while it goes on, and sealed when it ends."""
    writer = bucket_store.create_run(began, 0.0)
    follower = bucket_store.follow(*RUN)
    assert follower.state.status == "running"
    assert bucket_store.flows() == ["Flow"]
    assert bucket_store.run_ids("Flow") == [RUN[1]]
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
    assert {follower.state.status, bucket_store.run(*RUN).status} == {"succeeded"}
    assert [chunk.data for chunk in read_logs(bucket, *RUN)] == [b"hello", b"bye"]
    assert sorted(bucket.children(layout.run(*RUN))) == ["journal", "logs", "seal"]
    sealed = read_seal(bucket, *RUN)
    assert sealed is not None
    assert (sealed.run, sealed.size) == (writer.began.run, len(bucket.read(KEY)))
    bucket.requests.clear()
    bucket_store.run(*RUN)
    assert bucket.requests.total() <= 6


def test_a_run_without_a_driver_is_found_on_a_bucket(bucket_store: Store) -> None:
    """A run that an orchestrator drives has no lease and is there once it was begun."""
    writer = bucket_store.create_run(
        lambda run_id: RunBegan(RunContext("Flow", run_id), 1.0, "host", 1, GRAPH, has_driver=False), 0.0
    )
    writer.close()
    assert bucket_store.run_ids("Flow") == [RUN[1]]
    assert bucket_store.run(*RUN).status == "running"
    assert [summary.status for summary in bucket_store.runs()] == ["running"]
    assert bucket_store.add_segment(*RUN, "note", note("x"))


def test_ids_are_free_on_a_bucket(bucket_store: Store) -> None:
    """Two drivers of the same moment get different runs."""
    writers = [bucket_store.create_run(began, 0.0) for _ in range(2)]
    assert len({writer.began.run.run_id for writer in writers}) == 2
    for writer in writers:
        writer.close()


def test_a_run_whose_seal_failed_is_still_found(bucket_store: Store, bucket: CountingBucket) -> None:
    """The lease stays where the journal could not be made one object, and everything can be read."""
    writer = bucket_store.create_run(began, 0.0)
    bucket.failing = {"adopt"}
    writer.write([RunEnded("failed", "why", 3.0)])
    writer.close()
    bucket.failing = set()
    assert bucket_store.run(*RUN).status == "failed"
    assert [summary.status for summary in bucket_store.runs()] == ["failed"]
    assert [summary.message for summary in bucket_store.runs()] == ["why"]


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


def test_a_writer_goes_on_after_a_failure(bucket_store: Store, bucket: CountingBucket) -> None:
    """A bucket that was away for a while costs nothing that was acknowledged."""
    writer = bucket_store.create_run(began, 0.0)
    writer.write([note("one")])
    bucket.failing = {"create"}
    with pytest.raises(StoreError, match="create does not work"):
        writer.write([note("two")])
    bucket.failing = set()
    writer.write([note("three")])
    assert [each.text for each in bucket_store.run(*RUN).notes] == ["one", "three"]
    writer.close()


def test_listing_runs_on_a_bucket_needs_few_requests(bucket_store: Store, bucket: CountingBucket) -> None:
    """Runs are listed together; those that have ended are read once, and never again."""
    for number in range(40):
        writer = bucket_store.create_run(began, float(number))
        writer.write([RunEnded("succeeded", time=3.0)])
        writer.close()
    live = bucket_store.create_run(began, 50.0)
    bucket.requests.clear()
    assert [summary.status for summary in bucket_store.runs("Flow")] == ["running", *["succeeded"] * 40]
    assert bucket.requests["read"] <= 40 + 1
    assert bucket.requests["list"] <= 3
    bucket.requests.clear()
    assert len(bucket_store.runs("Flow")) == 41
    assert bucket.requests.total() <= 5
    live.close()


def stored(bucket_store: Store, content: bytes) -> tuple[Any, ArtifactRef]:
    """Store bytes, and return the access and the reference."""
    blobs = bucket_store.blobs(inline_bytes=0)
    target = blobs.target("bytes")
    target.write([content])
    return blobs, target.finish("builtins.bytes")


def test_blobs_from_elsewhere_are_fetched_once(bucket_store: Store, bucket: CountingBucket, tmp_path: Path) -> None:
    """What was fetched is mapped from this host's cache; what was changed there is fetched anew."""
    blobs, ref = stored(bucket_store, b"x" * 1000)
    assert bytes(blobs.source(ref).buffer()) == b"x" * 1000
    cached = tmp_path / "cache" / "mlp" / "blobs" / ref.digest
    assert cached.read_bytes() == b"x" * 1000
    bucket.delete(layout.blob(ref.digest))
    assert bytes(bucket_store.blobs().source(ref).buffer()) == b"x" * 1000
    cached.write_bytes(b"y" * 1000)
    with pytest.raises(StoreDamaged, match="is missing"):
        bucket_store.blobs().source(ref).buffer()
    assert not cached.exists()


def test_damage_elsewhere_is_found(bucket_store: Store, bucket: CountingBucket, tmp_path: Path) -> None:
    """A changed blob is refused, is not kept, and the message tells what to do."""
    blobs, ref = stored(bucket_store, b"x" * 1000)
    bucket.replace(layout.blob(ref.digest), b"y" * 1000, sync=False)
    for cache_bytes in (10**9, 0):
        with pytest.raises(StoreDamaged, match="is damaged") as caught:
            bucket_store.blobs(cache_bytes=cache_bytes).source(ref).buffer()
        assert "mlp fsck --repair" in caught.value.hint
    assert not list((tmp_path / "cache" / "mlp" / "blobs").iterdir())
    assert blobs.source(ref) is not None


def test_the_cache_is_bounded(bucket_store: Store, tmp_path: Path) -> None:
    """What was not asked for for longest goes first; what is too large is never kept."""
    refs = [stored(bucket_store, bytes([number]) * 1000)[1] for number in range(5)]
    blobs = bucket_store.blobs(cache_bytes=2500)
    folder = tmp_path / "cache" / "mlp" / "blobs"
    for number, ref in enumerate(refs):
        blobs.source(ref).buffer()
        then = time.time() - 100 + number
        os.utime(folder / ref.digest, (then, then))
        blobs.source(refs[0]).buffer()  # always the last that was asked for
    kept = {path.name for path in folder.iterdir() if path.suffix != ".used"}
    assert kept == {refs[0].digest, refs[4].digest}
    assert bytes(bucket_store.blobs(cache_bytes=10).source(refs[2]).buffer()) == bytes([2]) * 1000
    assert {path.name for path in folder.iterdir() if path.suffix != ".used"} == kept


def test_a_cache_that_cannot_be_written_is_done_without(
    bucket_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading works where the user's cache does not."""
    _, ref = stored(bucket_store, b"x" * 1000)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert bytes(bucket_store.blobs().source(ref).buffer()) == b"x" * 1000


def test_an_old_blob_is_made_new_before_it_is_referred_to(any_store: Store) -> None:
    """What a record is about to name is not removed as unused in between: it is as if it were just written."""
    _, ref = stored(any_store, b"x" * 1000)
    key = layout.blob(ref.digest)
    path = any_store.objects._inner._root / key  # type: ignore[attr-defined]
    os.utime(path, (1000, 1000))
    blobs, again = stored(any_store, b"x" * 1000)
    assert again == ref
    assert any_store.objects.info(key).modified_at > time.time() - 3600
    assert bytes(blobs.source(ref).buffer()) == b"x" * 1000


def test_a_run_in_parts_begins_with_the_first_and_keeps_its_lease_until_it_has_ended(
    bucket_store: Store, bucket: CountingBucket
) -> None:
    """By these two others find it, also when its driver has gone without an end."""
    writer = bucket_store.create_run(began, 0.0)
    assert [info.key for info in bucket.list(layout.parts(KEY))] == [layout.part(KEY, 0, 0)]
    writer.close()
    assert layout.lease(*RUN) in {info.key for info in bucket.list(layout.run(*RUN))}


def test_a_writer_goes_on_after_a_flush_that_failed(bucket_store: Store, bucket: CountingBucket) -> None:
    """What was not written is not acknowledged, and what comes next follows what is there."""
    writer = bucket_store.create_run(began, 0.0)
    writer.write([note("one")], sync=False)
    bucket.failing = {"create"}
    with pytest.raises(StoreError, match="create does not work"):
        writer.flush()
    bucket.failing = set()
    writer.write([note("two")])
    assert [each.text for each in bucket_store.run(*RUN).notes][-1] == "two"
    writer.close()
