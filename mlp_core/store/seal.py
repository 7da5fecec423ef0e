"""What is written beside a run that has ended: what it amounts to, and how its journal ends."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from mlp_core.errors import StoreError
from mlp_core.store import layout
from mlp_core.store.content import digest_text, sha256
from mlp_core.store.growing import GrowingReader, GrowingWriter, read_growing
from mlp_core.store.records import RunSealed, decode_line, encode_line

if TYPE_CHECKING:
    from mlp_core.store.records import RunBegan, RunEnded
    from mlp_hookspecs.handles import AppendFile, ObjectStore

_PIECE: Final = 2**20


def seal_run(objects: ObjectStore, began: RunBegan, ended: RunEnded, file: AppendFile | None) -> bool:
    """Make one object of a run's journal, and one of what it amounts to; tell whether that could be done.

    Readers can do without, so that nothing is lost where it was not done.
    """
    run = began.run
    key = layout.journal(run.flow, run.run_id)
    try:
        if isinstance(file, GrowingWriter) and not file.seal():
            return False
        journal = read_growing(objects, key)
        logs = layout.logs(run.flow, run.run_id)
        with suppress(FileNotFoundError):
            objects.sync([logs])  # a driver that died has not
        logs_size, logs_digest = hash_logs(objects, logs)
        sealed = RunSealed(
            run, began.time, ended, began.has_driver, len(journal), sha256(journal), logs_size, logs_digest
        )
        key = layout.seal(run.flow, run.run_id)
        objects.create(key, encode_line(sealed, 0, key), sync=False)
    except (StoreError, FileNotFoundError):
        return False
    return True


def hash_logs(objects: ObjectStore, key: str, size: int | None = None) -> tuple[int, str]:
    """Return size and digest of a log, or of its beginning; memory does not grow with it."""
    reader, hasher = GrowingReader(objects, key), hashlib.sha256()
    end = reader.size() if size is None else min(size, reader.size())
    for start in range(0, end, _PIECE):
        hasher.update(reader.read(start, min(end, start + _PIECE)))
    return end, digest_text(hasher)


def read_seal(objects: ObjectStore, flow: str, run_id: str) -> RunSealed | None:
    """Return what a run that has ended amounts to; None where that was not written, or is damaged or another run's."""
    try:
        decoded = decode_line(objects.read(layout.seal(flow, run_id)).removesuffix(b"\n"))
    except FileNotFoundError:
        return None
    sealed = decoded[1] if decoded is not None else None
    if not isinstance(sealed, RunSealed) or (sealed.run.flow, sealed.run.run_id) != (flow, run_id):
        return None
    return sealed


def has_lost_its_journal(objects: ObjectStore, flow: str, run_id: str) -> bool:
    """Tell whether a run without a journal had one when it ended, and is not being deleted."""
    if read_seal(objects, flow, run_id) is None:
        return False
    try:
        objects.info(layout.run(flow, run_id) + layout.REMOVED)
    except FileNotFoundError:
        return True
    return False


def unlike_sealed_logs(objects: ObjectStore, flow: str, run_id: str) -> str:
    """Return how the driver's log of a run that has ended differs from what it was then; empty where it does not.

    Where each byte has to come from elsewhere only the length is compared: every frame has a checksum of its own.
    """
    sealed = read_seal(objects, flow, run_id)
    if sealed is None or not sealed.logs_digest:
        return ""
    key = layout.logs(flow, run_id)
    size = GrowingReader(objects, key).size()
    if size < sealed.logs_size:
        return f"{size:,} of its {sealed.logs_size:,} bytes are left"
    if objects.local_path(key) is None or hash_logs(objects, key, sealed.logs_size)[1] == sealed.logs_digest:
        return ""
    return "it is not what was written"
