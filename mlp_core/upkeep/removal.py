"""How a run is deleted: at no moment does what is left of it look like a run, or like damage.

First an object says that the run is being deleted. Then the journal goes, and with it the run; then all else, and last
what said so. Whoever is killed in between leaves that, and the next clearing goes on from there.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from mlp_core.errors import NotFound, RunLocked, StoreDamaged
from mlp_core.store import layout
from mlp_core.store.lease import DEFAULT_SECONDS, Pulse
from mlp_core.upkeep.run_check import REMOVED

if TYPE_CHECKING:
    from mlp_core.store import Store
    from mlp_hookspecs.handles import ObjectInfo, ObjectStore

_ORCHESTRATED: Final = (
    "python -P -m mlp_core.orchestrated finish --store {url} --flow {flow} --run-id {run_id} --status cancelled"
)


def remove_run(store: Store, flow: str, run_id: str) -> int:
    """Delete a run; its blobs stay until they are cleared away, since other runs may need them.

    Parameters
    ----------
    store : Store
        The store.
    flow, run_id : str
        The run.

    Returns
    -------
    int
        How many bytes went.

    Raises
    ------
    NotFound
        Where there is none.
    RunLocked
        Where it goes on.
    """
    objects = store.objects
    _check_ended(store, flow, run_id)
    lock = objects.lock(layout.lock(flow, run_id))
    if lock is None:
        return _remove(objects, flow, run_id)
    with lock as is_free:
        if not is_free:
            raise RunLocked(f"the run {flow}/{run_id} is under way", hint="wait until it has ended, or end its driver")
        return _remove(objects, flow, run_id)


def finish_removal(objects: ObjectStore, flow: str, run_id: str) -> int:
    """Delete what is left of a run that has no journal any more, or never had one; return how many bytes went."""
    return _remove(objects, flow, run_id)


def remove_empty(objects: ObjectStore, flow: str, run_id: str, before: float) -> None:
    """Remove the folder that a run has left that was deleted, unless it is so new that a run may be about to begin."""
    folder = objects.local_path(layout.run(flow, run_id))
    if folder is not None:
        with suppress(OSError):
            if folder.stat().st_mtime < before:
                _remove_folder(objects, layout.run(flow, run_id))


def _check_ended(store: Store, flow: str, run_id: str) -> None:
    """Refuse a run that goes on, or is not there."""
    try:
        state = store.run(flow, run_id)
    except StoreDamaged:
        if Pulse.take(store.objects, flow, run_id).is_alive(DEFAULT_SECONDS):
            raise RunLocked(f"the run {flow}/{run_id} is under way", hint="wait until it has ended") from None
        return
    except NotFound:
        if not any(objects_of(store.objects, flow, run_id)):
            raise
        return  # what a deletion has left
    if state.status != "running":
        return
    if state.began.has_driver:
        where = f"its driver is process {state.began.pid} on {state.began.host}"
        raise RunLocked(
            f"the run {flow}/{run_id} is under way: {where}", hint="wait until it has ended, or end that process"
        )
    command = _ORCHESTRATED.format(url=store.url, flow=flow, run_id=run_id)
    raise RunLocked(f"the run {flow}/{run_id} was not ended by its orchestrator", hint=f"to end it: {command}")


def objects_of(objects: ObjectStore, flow: str, run_id: str) -> list[ObjectInfo]:
    """Return all objects of a run, blobs left aside."""
    return [
        *objects.list(layout.run(flow, run_id)),
        *objects.list(layout.parts_of_run(flow, run_id)),
    ]


def _remove(objects: ObjectStore, flow: str, run_id: str) -> int:
    """Delete all objects of a run, in the order in which that must be."""
    marker = layout.run(flow, run_id) + REMOVED
    objects.create(marker, b"", sync=True)
    journal = layout.journal(flow, run_id)
    # Where there are parts, a reader begins with the pack, and without one with the first part.
    first = (journal, layout.part(journal, 0, 0), layout.part(journal, 1, 0))
    size = 0
    infos = {info.key: info for info in objects_of(objects, flow, run_id)}
    for key in (*first, *sorted(infos.keys() - {*first, marker})):
        if key in infos:
            objects.delete(key)
            size += infos[key].size
    # A power cut may undo deletions in any order: what says that the run is being deleted must not go before the rest.
    objects.sync([marker])
    objects.delete(marker)
    _remove_folder(objects, layout.run(flow, run_id))
    return size


def _remove_folder(objects: ObjectStore, prefix: str) -> None:
    """Remove the empty folders of a run, where a store has folders; nobody will use their names again."""
    folder = objects.local_path(prefix)
    if folder is not None:
        for path in (folder / "segments", folder):
            with suppress(OSError):  # absent, or somebody has just put something there
                path.rmdir()
