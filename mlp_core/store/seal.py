"""What is written beside a run that has ended: what it amounts to, and how its journal ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlp_core.errors import StoreError
from mlp_core.store import layout
from mlp_core.store.content import sha256
from mlp_core.store.growing import GrowingWriter, read_growing
from mlp_core.store.records import RunSealed, decode_line, encode_line

if TYPE_CHECKING:
    from mlp_core.store.records import RunBegan, RunEnded
    from mlp_hookspecs.handles import AppendFile, ObjectStore


def seal_run(objects: ObjectStore, began: RunBegan, ended: RunEnded, file: AppendFile) -> bool:
    """Make one object of a run's journal, and one of what it amounts to; tell whether that could be done.

    Readers can do without, so that nothing is lost where it was not done.
    """
    run = began.run
    key = layout.journal(run.flow, run.run_id)
    try:
        if isinstance(file, GrowingWriter) and not file.seal():
            return False
        journal = read_growing(objects, key)
        sealed = RunSealed(run, began.time, ended, began.has_driver, len(journal), sha256(journal))
        objects.create(layout.seal(run.flow, run.run_id), encode_line(sealed, 0), sync=False)
    except (StoreError, FileNotFoundError):
        return False
    return True


def read_seal(objects: ObjectStore, flow: str, run_id: str) -> RunSealed | None:
    """Return what a run that has ended amounts to; None where that was not written, or is damaged."""
    try:
        decoded = decode_line(objects.read(layout.seal(flow, run_id)).removesuffix(b"\n"))
    except FileNotFoundError:
        return None
    return decoded[1] if decoded is not None and isinstance(decoded[1], RunSealed) else None
