"""How a store is cleared of what nobody needs, beside runs that go on.

A blob goes only if no run, frozen flow, deployment or bundle mentions it, and only if it is older than a grace, and
older than every run that goes on: whatever such a run has written, and not yet said, is newer than the run. Whoever
writes a blob again that is there already makes it new first.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import attrs

from mlp_core import names
from mlp_core.errors import NameRefused, NotFound, RunLocked, StoreDamaged, UsageError
from mlp_core.store import layout
from mlp_core.store.growing import read_growing
from mlp_core.store.lease import DEFAULT_SECONDS, Pulse
from mlp_core.store.records import TaskReused
from mlp_core.upkeep.environment_clearing import unneeded_environments
from mlp_core.upkeep.folder import DAMAGED, TARGETS, remove_unfinished, store_folder, unfinished
from mlp_core.upkeep.references import blueprint_of, hashes_in, locks_in, run_records
from mlp_core.upkeep.removal import finish_removal, remove_empty, remove_run
from mlp_core.upkeep.retention import Retention, removable
from mlp_core.upkeep.run_check import REMOVED
from mlp_core.upkeep.transfer import in_parallel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlp_core.store import Store
    from mlp_core.store.index import RunSummary
    from mlp_hookspecs.handles import ObjectInfo, ObjectStore

DEFAULT_GRACE: Final = 24 * 3600.0
LEAST_GRACE: Final = 3600.0
"""How old what is removed must be, unless nothing goes on: whoever finds a blob younger than this relies on it."""

_SILENT_SECONDS: Final = 7 * 86400.0
"""A run without a driver that has written nothing for so long is not waited for."""

_IN_RUN: Final = 3
_AT_ONCE: Final = 16
_RELISTED: Final = 64
"""After how many blobs it is looked whether runs have begun."""


@attrs.define
class Cleared:
    """What was removed, or would be.

    Attributes
    ----------
    runs : list of str
        Runs that the policy lets go.
    blobs, parts, leftovers : int
        How many blobs; parts of what is one object now; objects that something unfinished has left.
    locks, answers, bundles : int
        Of environments: how many locks; what requirements were answered with; lists of the locks' files.
    size : int
        Bytes of all of it.
    kept : str
        Why no blob could go; empty where that was possible.
    """

    runs: list[str] = attrs.field(factory=list)
    blobs: int = 0
    parts: int = 0
    leftovers: int = 0
    locks: int = 0
    answers: int = 0
    bundles: int = 0
    size: int = 0
    kept: str = ""


def clear_store(  # noqa: PLR0913 # by keyword
    store: Store,
    policy: Retention,
    *,
    now: float,
    grace: float = DEFAULT_GRACE,
    dry_run: bool = False,
    told: Callable[[Cleared], None] = lambda _: None,
) -> Cleared:
    """Remove the runs that a policy lets go, and all that nobody needs then.

    Parameters
    ----------
    store : Store
        The store.
    policy : Retention
        Which runs are kept.
    now : float
        Seconds since the epoch.
    grace : float
        How old what is removed must be at least, in seconds.
    dry_run : bool
        Whether to find out only what would be removed.
    told : callable
        Called now and then with what was removed so far.

    Returns
    -------
    Cleared
        What was removed.

    Raises
    ------
    UsageError
        Where the grace is too short while runs go on.
    """
    clearing = _Clearing(store, now, grace, told, dry_run=dry_run)
    clearing.everything(policy)
    return clearing.cleared


class _Clearing:
    """One clearing of a store."""

    def __init__(
        self, store: Store, now: float, grace: float, told: Callable[[Cleared], None], *, dry_run: bool
    ) -> None:
        """Begin; nothing is touched."""
        self.cleared = Cleared()
        self._store = store
        self._objects = store.objects
        self._now = now
        self._told = told
        self._dry_run = dry_run
        self._runs = _all_runs(self._objects)
        self._infos = _infos(self._objects)
        ended = {(run.flow, run.run_id) for run in store.runs() if run.status in ("succeeded", "failed", "cancelled")}
        live = [run for run in self._runs if run not in ended and self._goes_on(*run)]
        if live and grace < LEAST_GRACE:
            raise UsageError(
                f"a grace of {grace:g} s is too short while {live[0][0]}/{live[0][1]} goes on",
                hint="allow an hour at least: --grace 1h, or wait until no run goes on",
            )
        # A run may have found a blob that was written less than an hour before it began, and relied on it.
        began = [_moment(run_id) - LEAST_GRACE for _, run_id in live]
        self._before = min([now - grace, *began])
        self._leftover_before = now - max(grace, LEAST_GRACE) if live else now - grace
        self._needed: set[bytes] = set()
        self._seen: set[tuple[str, str]] = set()
        self._gone: dict[tuple[str, str], set[bytes]] = {}

    def everything(self, policy: Retention) -> None:
        """Remove all that can go."""
        self._finish_removals()
        self._remove_runs(policy)
        self._remove_parts()
        self._remove_unfinished()
        try:
            self._mark()
            self._remove_environments()
        except StoreDamaged as error:
            self.cleared.kept = error.message
            return
        self._remove_blobs()
        self._remove_quarantined()

    def _count(self, size: int) -> None:
        """Count what was removed."""
        self.cleared.size += size
        self._told(self.cleared)

    def _goes_on(self, flow: str, run_id: str) -> bool:
        """Tell whether a run may still write."""
        try:
            if self._store.run(flow, run_id).status != "running":
                return False
        except NotFound:
            # Being created, perhaps: the lock comes before the journal.
            return self._objects.is_locked(layout.lock(flow, run_id))
        except StoreDamaged:
            return Pulse.take(self._objects, flow, run_id).is_alive(DEFAULT_SECONDS)
        newest = max((info.modified_at for info in self._infos[flow, run_id]), default=0.0)
        return newest > self._now - _SILENT_SECONDS or self._objects.is_locked(layout.lock(flow, run_id))

    def _finish_removals(self) -> None:
        """Remove what deletions and creations have left that were not carried to their end."""
        for flow, run_id in self._runs:
            infos = self._infos[flow, run_id]
            keys = {info.key for info in infos}
            if not infos and not self._dry_run:
                remove_empty(self._objects, flow, run_id, self._leftover_before)
            is_being_removed = layout.run(flow, run_id) + REMOVED in keys
            if not is_being_removed and not self._is_abandoned(flow, run_id, infos):
                continue
            self.cleared.leftovers += len(infos)
            self._count(sum(info.size for info in infos))
            if not self._dry_run:
                finish_removal(self._objects, flow, run_id)

    def _is_abandoned(self, flow: str, run_id: str, infos: list[ObjectInfo]) -> bool:
        """Tell whether something has no journal, and nobody is about to write one."""
        journal, prefix = layout.journal(flow, run_id), layout.run(flow, run_id)
        keys = {info.key for info in infos}
        heads = (journal, layout.part(journal, 0, 0), layout.part(journal, 1, 0), layout.seal(flow, run_id))
        if not keys.isdisjoint(heads) or any(info.modified_at > self._leftover_before for info in infos):
            return False
        return infos != [] and not self._objects.is_locked(prefix + "lock")

    def _remove_runs(self, policy: Retention) -> None:
        """Remove the runs that the policy lets go and no kept one needs."""
        if not policy.removes:
            return
        runs = self._store.runs()
        for run in self._unneeded(runs, removable(runs, policy, self._now)):
            name = (run.flow, run.run_id)
            try:
                needed = self._mentioned(*name)
                size = sum(info.size for info in self._infos[name])
                if not self._dry_run:
                    remove_run(self._store, *name)
            except (NotFound, RunLocked, StoreDamaged):  # gone or going on by now, or not to be judged
                continue
            self._gone[name] = needed
            self.cleared.runs.append(f"{run.flow}/{run.run_id}")
            self._count(size)

    def _unneeded(self, runs: list[RunSummary], going: list[RunSummary]) -> list[RunSummary]:
        """Return those of the runs that no run that stays has taken a task from, whose output lies there."""
        leaving = {(run.flow, run.run_id): run for run in going}
        staying = [run for run in runs if (run.flow, run.run_id) not in leaving]
        while staying:
            run = staying.pop()
            for origin in self._origins(run):
                held = leaving.pop(origin, None)
                if held is not None:
                    staying.append(held)
        return list(leaving.values())

    def _origins(self, run: RunSummary) -> set[tuple[str, str]]:
        """Return the runs that a run has taken tasks from."""
        if run.origin_run_id is None:
            return set()
        try:
            records = list(run_records(self._objects, run.flow, run.run_id))
        except FileNotFoundError:
            return set()
        except StoreDamaged:
            return {(run.flow, run.origin_run_id)}
        origins = [record.origin.split("/") for record in records if isinstance(record, TaskReused)]
        return {(origin[0], origin[1]) for origin in origins if len(origin) > 1}

    def _remove_parts(self) -> None:
        """Remove the parts of what is one object now; the last stays, since it keeps an earlier driver out."""
        for run in self._runs:
            infos = {info.key: info for info in self._infos[run]} if run not in self._gone else {}
            for key in (layout.journal(*run), layout.logs(*run)):
                parts = [info for info in infos.values() if info.key.startswith(layout.parts(key))]
                if not parts or key not in infos or infos[key].modified_at > self._leftover_before:
                    continue
                last = max((info.key for info in parts if "/0/" in info.key), default="")
                for info in parts:
                    if info.key != last:
                        self.cleared.parts += 1
                        self._remove(info)

    def _remove(self, info: ObjectInfo) -> None:
        """Remove an object, and count it."""
        if not self._dry_run:
            self._objects.delete(info.key)
        self._count(info.size)

    def _remove_unfinished(self) -> None:
        """Remove unfinished files of processes that have ended."""
        folder = store_folder(self._objects)
        if folder is None:
            return
        for each in unfinished(folder, self._now):
            self.cleared.leftovers += each.files
            self._count(each.size)
        if not self._dry_run:
            remove_unfinished(folder)

    def _mark(self) -> None:
        """Find out which blobs are needed; StoreDamaged where that cannot be known."""
        self._mark_runs()
        for prefix in (layout.BLUEPRINTS, layout.DEPLOYMENTS, TARGETS):
            for info in self._objects.list(prefix):
                with suppress(FileNotFoundError):
                    self._needed |= hashes_in(self._objects.read(info.key))
                    if prefix == layout.BLUEPRINTS:
                        self._mark_locks(info.key)
        self._needed |= unneeded_environments(self._objects, self._needed, self._before).needed

    def _mark_locks(self, key: str) -> None:
        """Take up the locks that a frozen flow has; StoreDamaged where it is not what was written."""
        try:
            locks = blueprint_of(self._objects, key.removeprefix(layout.BLUEPRINTS)).locks
        except StoreDamaged:
            raise _unknown(key) from None
        self._needed |= {bytes.fromhex(lock.digest[7:]) for lock in locks.values()}

    def _mark_runs(self) -> None:
        """Take up what runs need that were not seen before, and what they may be taking from one that was removed."""
        new = [run for run in _all_runs(self._objects) if run not in self._seen and run not in self._gone]
        at_once = 1 if store_folder(self._objects) is not None else _AT_ONCE
        with ThreadPoolExecutor(at_once, thread_name_prefix="mlp-gc") as pool:
            for found in in_parallel(pool, lambda run: self._mentioned(*run), new, at_once):
                self._needed |= found
        self._seen.update(new)

    def _mentioned(self, flow: str, run_id: str) -> set[bytes]:
        """Return the hashes that a run mentions, with those of a run just removed that it is resuming.

        Raises
        ------
        StoreDamaged
            Where a record that is damaged may have mentioned others.
        """
        key = layout.journal(flow, run_id)
        try:
            content = read_growing(self._objects, key)
        except FileNotFoundError:
            return set()
        found = _hashes_of(key, content)
        for name in self._objects.children(layout.segments(flow, run_id)):
            segment = layout.segments(flow, run_id) + name
            if not name.startswith(layout.LOG_SEGMENT):
                with suppress(FileNotFoundError):
                    found |= _hashes_of(segment, self._objects.read(segment))
        if b'"kind":"RunEnded"' not in content:
            for (origin_flow, origin), needed in self._gone.items():
                if origin_flow == flow and origin.encode() in content:
                    found |= needed
        return found

    def _remove_environments(self) -> None:
        """Remove the locks that nobody needs, with what leads to them and what they lead to."""
        if not self._dry_run:
            self._mark_runs()
        # Looked at again: a run may have made an answer new that it is about to use. The way to a lock goes first.
        going = unneeded_environments(self._objects, self._needed, self._before)
        self._needed |= going.needed
        for kind in ("answers", "locks", "bundles"):
            for info in getattr(going, kind):
                if self._dry_run or self._is_old(info.key):
                    setattr(self.cleared, kind, getattr(self.cleared, kind) + 1)
                    self._remove(info)

    def _is_old(self, key: str) -> bool:
        """Tell whether an object is there, and nobody has written it anew since it was listed."""
        try:
            return self._objects.info(key).modified_at < self._before
        except FileNotFoundError:
            return False

    def _remove_blobs(self) -> None:
        """Remove the blobs that are old enough and not needed."""
        for number, info in enumerate(self._candidates()):
            if number % _RELISTED == 0 and not self._dry_run:
                self._mark_runs()
            if bytes.fromhex(info.key[-64:]) in self._needed:
                continue
            if self._dry_run or self._take_away(info.key):
                self.cleared.blobs += 1
                self._count(info.size)

    def _candidates(self) -> Iterator[ObjectInfo]:
        """Iterate over the blobs that are old enough and not known to be needed; what else lies there stays."""
        for info in self._objects.list(layout.BLOBS):
            digest = info.key.rpartition("/")[2]
            with suppress(StoreDamaged):
                is_old = layout.blob(digest) == info.key and info.modified_at < self._before
                if is_old and bytes.fromhex(digest[7:]) not in self._needed:
                    yield info

    def _take_away(self, key: str) -> bool:
        """Remove a blob unless somebody has just made it new, and tell whether it went."""
        path = self._objects.local_path(key)
        try:
            if path is None:
                if self._objects.info(key).modified_at >= self._before:
                    return False
                self._objects.delete(key)
                return True
            if path.stat().st_mtime >= self._before:
                return False
            aside = self._objects.staging() / path.name
            path.rename(aside)
        except FileNotFoundError:
            return False
        if aside.stat().st_mtime >= self._before:  # made new between the look and the move
            aside.rename(path)
            return False
        aside.unlink()
        return True

    def _remove_quarantined(self) -> None:
        """Remove what repairs have moved away, once it is old and what took its place is there or not needed."""
        for info in self._objects.list(DAMAGED):
            if info.modified_at < self._before:
                self.cleared.leftovers += 1
                self._remove(info)


def _all_runs(objects: ObjectStore) -> list[tuple[str, str]]:
    """Return flow and id of everything that is or was a run."""
    found: dict[tuple[str, str], None] = {}
    for top in (layout.FLOWS, layout.PARTS):
        for flow in objects.children(top):
            for run_id in objects.children(f"{top}{flow}/"):
                with suppress(NameRefused):
                    found[names.identifier(flow, "flow"), names.run_id(run_id)] = None
    return list(found)


def _infos(objects: ObjectStore) -> defaultdict[tuple[str, str], list[ObjectInfo]]:
    """Return the objects of all runs by flow and id."""
    found = defaultdict(list)
    for top in (layout.FLOWS, layout.PARTS):
        for info in objects.list(top):
            parts = info.key.split("/")
            if len(parts) > _IN_RUN:
                found[parts[1], parts[2]].append(info)
    return found


def _moment(run_id: str) -> float:
    """Return the moment that a run's id tells, in seconds since the epoch."""
    from datetime import UTC, datetime

    return datetime.strptime(run_id, "%Y%m%d-%H%M%S-%f").replace(tzinfo=UTC).timestamp()


def _hashes_of(key: str, content: bytes) -> set[bytes]:
    """Return the hashes that a journal or segment mentions, and its locks'; StoreDamaged where it is damaged."""
    _check_lines(key, content)
    try:
        return hashes_in(content) | locks_in(content)
    except ValueError:
        raise _unknown(key) from None


def _check_lines(key: str, content: bytes) -> None:
    """Raise StoreDamaged where a line is not what was written; the last may be unfinished."""
    for number, line in enumerate(content.split(b"\n")[:-1]):
        if line[:9] != b"%08x " % zlib.crc32(line[9:]) and not line.endswith(b" ~ unfinished"):
            raise _unknown(f"line {number + 1} of {key}")


def _unknown(place: str) -> StoreDamaged:
    """Return the error of damage that may hide what is needed."""
    return StoreDamaged(f"{place} is damaged, so that it is not known which blobs are needed", hint="see: mlp fsck")
