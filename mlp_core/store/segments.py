"""What writers other than the driver add to a run: objects with one record each, created once and never changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mlp_core.errors import StoreDamaged
from mlp_core.store import layout
from mlp_core.store.journal import parse_journal
from mlp_core.store.records import is_at

if TYPE_CHECKING:
    from collections.abc import Collection

    from mlp_core.store.records import Record
    from mlp_core.store.signing import Signatures
    from mlp_hookspecs.handles import ObjectStore


_MAX_BYTES: Final = 64 * 2**20
"""How long a segment may be; it holds one record."""


def segment_names(objects: ObjectStore, flow: str, run_id: str) -> list[str]:
    """Return the names of a run's segments that hold records, sorted."""
    found = objects.children(layout.segments(flow, run_id))
    return [name for name in found if not name.startswith(layout.LOG_SEGMENT)]


def read_segments(
    objects: ObjectStore,
    flow: str,
    run_id: str,
    names: Collection[str] | None = None,
    *,
    signatures: Signatures | None = None,
) -> list[Record]:
    """Return the records of segments, in the order of their times; kinds that only a newer version knows are left out.

    Parameters
    ----------
    objects : ObjectStore
        The store.
    flow, run_id : str
        The run.
    names : collection of str or None
        The segments; None for all.
    signatures : Signatures or None
        What watches whether they are signed.

    Raises
    ------
    StoreDamaged
        Where a segment is not what was written.
    """
    found: list[Record] = []
    for name in segment_names(objects, flow, run_id) if names is None else names:
        key = layout.segment(flow, run_id, name)
        check = signatures.watch(key) if signatures is not None else None
        content = objects.read(key, 0, _MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise StoreDamaged(f"the segment {key} in {objects.url} has more than {_MAX_BYTES:,} bytes")
        read = parse_journal(content, f"{key} in {objects.url}", check=check)
        if read.torn or read.expected != 1 or not is_at(content, key):
            raise StoreDamaged(f"the segment {key} in {objects.url} is damaged")
        found += [record for _, record in read.records]
    return sorted(found, key=lambda record: record.time)
