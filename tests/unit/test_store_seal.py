"""The seal: what a run that has ended amounts to, and what it shows to be missing."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from mlp_core.errors import StoreDamaged
from mlp_core.store import Note, RunBegan, RunEnded, Store, layout
from mlp_core.store.records import RunSealed, decode_line, encode_line, is_at
from mlp_core.store.seal import has_lost_its_journal, hash_logs, read_seal, seal_run, unlike_sealed_logs
from mlp_hookspecs.types import FlowGraph, RunContext, StepNode
from mlp_reliability.counting import CountingBucket

if TYPE_CHECKING:
    from mlp_core.store import RunWriter

GRAPH = FlowGraph("Flow", "start", "start", (StepNode("start", "end"),))
RUN = ("Flow", "19700101-000000-000000")
KEY, LOGS, SEAL = layout.journal(*RUN), layout.logs(*RUN), layout.seal(*RUN)
ENDED = RunEnded("succeeded", "", 9.0, 3)


def began(run_id: str) -> RunBegan:
    """Return the first record of a run."""
    return RunBegan(RunContext("Flow", run_id), 1.0, "host", 1, GRAPH)


def digest(content: bytes) -> str:
    """Return the digest of content."""
    return f"sha256-{hashlib.sha256(content).hexdigest()}"


def ended_run(store: Store, printed: bytes = b"") -> RunWriter:
    """Make a run that has ended."""
    writer = store.create_run(began, 0.0)
    if printed:
        writer.log("start/0/0", "stdout", printed, 2.0)
    writer.write([ENDED])
    writer.close()
    return writer


def hide_requests_that_fail(store: Store, operation: str) -> None:
    """Let an operation of a store fail."""
    inner = store.objects._inner  # type: ignore[attr-defined] # the guard's
    assert isinstance(inner, CountingBucket)
    inner.failing = {operation}


@pytest.mark.parametrize("printed", [b"", b"x" * 2_500_000], ids=["silent", "talkative"])
def test_a_seal_tells_what_the_run_amounts_to(any_store: Store, printed: bytes) -> None:
    """It has the run, its end, and size and hash of the journal and of the log as they are."""
    writer = ended_run(any_store, printed)
    journal = any_store.objects.read(KEY)
    logs = any_store.objects.read(LOGS) if printed else b""
    assert read_seal(any_store.objects, *RUN) == RunSealed(
        writer.began.run,
        1.0,
        ENDED,
        has_driver=True,
        size=len(journal),
        digest=digest(journal),
        logs_size=len(logs),
        logs_digest=digest(logs),
    )
    assert (len(logs) > len(printed)) == bool(printed)
    assert hash_logs(any_store.objects, LOGS) == (len(logs), digest(logs))
    assert hash_logs(any_store.objects, LOGS, 5) == (min(5, len(logs)), digest(logs[:5]))
    assert hash_logs(any_store.objects, LOGS, 10**9) == (len(logs), digest(logs))
    assert read_seal(any_store.objects, *RUN).time == 9.0  # type: ignore[union-attr]


@pytest.mark.parametrize("operation", ["adopt", "read", "create", "list", "info"])
def test_what_cannot_be_sealed_is_left_as_it_is(bucket_store: Store, operation: str) -> None:
    """A store that fails while a run is sealed costs nothing but the seal."""
    writer = bucket_store.create_run(began, 0.0)
    writer.write([Note("kind", "text", 1.0)])
    hide_requests_that_fail(bucket_store, operation)
    assert not seal_run(bucket_store.objects, writer.began, ENDED, writer._file)
    hide_requests_that_fail(bucket_store, "")
    assert read_seal(bucket_store.objects, *RUN) is None
    assert bucket_store.run(*RUN).status == "running"
    writer.close()


def test_a_journal_that_is_not_there_is_not_sealed(any_store: Store) -> None:
    """Without a journal there is nothing that a seal could tell of."""
    assert seal_run(any_store.objects, began(RUN[1]), ENDED, None) is False
    assert read_seal(any_store.objects, *RUN) is None


@pytest.mark.parametrize("content", [b"", b"damaged", encode_line(ENDED, 0), encode_line(Note("k", "t", 1.0), 0)])
def test_what_is_no_seal_is_none(any_store: Store, content: bytes) -> None:
    """A seal that is damaged, or is another record, counts as absent."""
    any_store.objects.create(SEAL, content, sync=False)
    assert read_seal(any_store.objects, *RUN) is None


@pytest.mark.parametrize("run", [("Other", RUN[1]), ("Flow", "19700101-000000-000001")])
def test_a_seal_of_another_run_is_none(any_store: Store, run: tuple[str, str]) -> None:
    """A seal that was put to another run's place tells nothing there."""
    ended_run(any_store)
    any_store.objects.create(layout.seal(*run), any_store.objects.read(SEAL), sync=False)
    assert read_seal(any_store.objects, *run) is None


def test_a_run_that_lost_its_journal_is_told_from_one_that_is_deleted(any_store: Store) -> None:
    """A seal without a journal is damage, unless the run is being deleted or was never there."""
    assert not has_lost_its_journal(any_store.objects, *RUN)
    ended_run(any_store)
    any_store.objects.delete(KEY)
    if any_store.objects.local_path(KEY) is None:  # on a bucket a gc has removed the parts since
        for info in list(any_store.objects.list(layout.parts(KEY))):
            any_store.objects.delete(info.key)
    assert has_lost_its_journal(any_store.objects, *RUN)
    with pytest.raises(StoreDamaged, match=r"journal is missing from") as caught:
        any_store.run(*RUN)
    assert "backup" in caught.value.hint
    any_store.objects.create(layout.run(*RUN) + layout.REMOVED, b"", sync=False)
    assert not has_lost_its_journal(any_store.objects, *RUN)


def test_a_log_is_compared_with_the_seal(any_store: Store) -> None:
    """A log that was cut off is told everywhere, one that was changed where it is near; what was added later is not."""

    def found() -> str:
        return unlike_sealed_logs(any_store.objects, *RUN)

    assert found() == ""
    ended_run(any_store, b"printed")
    content = any_store.objects.read(LOGS)
    is_near = any_store.objects.local_path(LOGS) is not None
    assert found() == ""
    any_store.objects.replace(LOGS, content + b"more", sync=False)
    assert found() == ""
    any_store.objects.replace(LOGS, content[:-1] + b"?", sync=False)
    assert found() == ("it is not what was written" if is_near else "")
    any_store.objects.replace(LOGS, content[:-1], sync=False)
    assert found() == f"{len(content) - 1} of its {len(content)} bytes are left"


def test_a_seal_without_a_log_says_nothing_of_it(any_store: Store) -> None:
    """A seal of before logs were hashed does not speak of them."""
    sealed = RunSealed(RunContext(*RUN), 1.0, ENDED, has_driver=True, size=0, digest=digest(b""))
    any_store.objects.create(SEAL, encode_line(sealed, 0), sync=False)
    assert unlike_sealed_logs(any_store.objects, *RUN) == ""


def test_sealing_makes_the_log_durable(any_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that died has not done that; the seal is one record, numbered like any other."""
    writer = any_store.create_run(began, 0.0)
    writer.log("start/0/0", "stdout", b"printed", 2.0)
    writer.flush()
    synced: list[str] = []
    monkeypatch.setattr(any_store.objects, "sync", synced.extend)
    assert seal_run(any_store.objects, writer.began, ENDED, writer._file) is True
    assert synced == [LOGS]
    line = any_store.objects.read(SEAL)
    assert line.endswith(b"\n")
    decoded = decode_line(line[:-1])
    assert decoded is not None
    assert decoded[0] == 0
    assert is_at(line, SEAL)
    assert not is_at(line, layout.seal("Other", RUN[1]))
    writer.close()
