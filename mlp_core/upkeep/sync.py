"""How runs are copied from one store to another: a few at a time, each to be seen only when it is complete."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import attrs

from mlp_core import names
from mlp_core.errors import MlpError, NotFound, StoreDamaged, UsageError
from mlp_core.store import layout
from mlp_core.store.growing import GrowingReader
from mlp_core.store.references import digests_of
from mlp_core.upkeep.arrival import Arrival, Copied, Relation
from mlp_core.upkeep.bundle_copies import bundles_of, checked_bundle
from mlp_core.upkeep.run_check import REMOVED
from mlp_core.upkeep.transfer import PIECE, fetch, in_parallel, write_hashed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from mlp_core.store import Store
    from mlp_hookspecs.handles import ObjectStore

Outcome: TypeAlias = Literal["copied", "updated", "unchanged", "running", "failed"]
"""What became of a run: ``running`` ones are left for later."""

_RUNS: Final = 4
_BLOBS: Final = 8
"""How many runs, and how many blobs of all of them, are on their way at once."""

_HEAD_BYTES: Final = 64 * 1024
"""How much of two journals of one size is compared: the first record, most often, which no two runs share."""


@attrs.frozen
class RunSynced:
    """What became of one run.

    Attributes
    ----------
    run : str
        The run, ``Flow/20260131-094500-123456``.
    outcome : str
        What became of it.
    blobs : int
        How many blobs were copied for it.
    size : int
        How many bytes were copied for it, blobs or not.
    error : MlpError or None
        Why it could not be copied.
    """

    run: str
    outcome: Outcome
    blobs: int = 0
    size: int = 0
    error: MlpError | None = None


@attrs.frozen(kw_only=True)
class SyncOptions:
    """How to copy.

    Attributes
    ----------
    dry_run : bool
        Whether to find out only what there is to copy.
    verify : bool
        Whether to look at the blobs of runs that are complete already, too.
    """

    dry_run: bool = False
    verify: bool = False


@attrs.define
class Tally:
    """How far a copying has come; read by whoever shows it.

    Attributes
    ----------
    runs : int
        Runs that are done.
    blobs, size : int
        Blobs and bytes copied, or, with a dry run, to be copied.
    """

    runs: int = 0
    blobs: int = 0
    size: int = 0


class _Stopped(Exception):  # noqa: N818 # never seen by a caller
    """Another run has failed for good, or the user has interrupted."""


def chosen_runs(
    source: Store, runs: Sequence[tuple[str, str]] = (), *, flow: str | None = None, since: float | None = None
) -> list[tuple[str, str]]:
    """Return which runs to copy: flow and id, oldest first within a flow.

    Parameters
    ----------
    source : Store
        Where they are.
    runs : sequence of (str, str)
        Runs by name; none for all.
    flow : str or None
        Only those of this flow.
    since : float or None
        Only those begun since, in seconds since the epoch.

    Raises
    ------
    NotFound
        Where a run or flow that was named is not there.
    """
    first = names.new_run_id(since) if since is not None else ""
    known = {each: source.run_ids(each) for each in {name for name, _ in runs}}
    for each, run_id in runs:
        if run_id not in known[each]:
            raise NotFound(f"there is no run {each}/{run_id} in {source.url}", hint="list the runs with: mlp list")
    if runs:
        found = list(dict.fromkeys(runs))
    else:
        flows = source.flows() if flow is None else [flow]
        found = [(each, run_id) for each in flows for run_id in reversed(source.run_ids(each))]
        if flow is not None and not found:
            raise NotFound(f"there is no run of flow {flow} in {source.url}")
    return [(each, run_id) for each, run_id in found if run_id >= first and flow in (None, each)]


def sync_runs(
    source: Store,
    target: ObjectStore,
    runs: Iterable[tuple[str, str]],
    options: SyncOptions,
    told: Callable[[Tally], None] = lambda _: None,
) -> Iterator[RunSynced]:
    """Copy runs, and iterate over what became of each that is there, as they are done.

    A run that cannot be copied does not keep others from it; a store that fails ends everything.

    Parameters
    ----------
    source : Store
        Where they are.
    target : ObjectStore
        The objects of the store that they go to; with a dry run there may be none yet.
    runs : iterable of (str, str)
        Flows and ids.
    options : SyncOptions
        How.
    told : callable
        Called now and then with how far it is, from any thread.

    Raises
    ------
    StoreError
        Where one of the stores failed.
    """
    with ThreadPoolExecutor(_RUNS) as pool, ThreadPoolExecutor(_BLOBS) as blob_pool:
        syncing = _Syncing(source, target, options, told, blob_pool)
        for synced in in_parallel(pool, syncing.run, runs, _RUNS, syncing.stopped.set):
            if synced is not None:
                yield synced


class _Syncing:
    """One copying between two stores: what its runs share."""

    def __init__(
        self,
        source: Store,
        target: ObjectStore,
        options: SyncOptions,
        told: Callable[[Tally], None],
        pool: ThreadPoolExecutor,
    ) -> None:
        """Begin; nothing is read."""
        self.stopped = threading.Event()
        self.source = source
        self.target = target
        self.options = options
        self.pool = pool
        # One a folder of blobs: two runs that share a blob do not copy it twice.
        self.copying = [threading.Lock() for _ in range(256)]
        self._planned: set[str] = set()  # by a dry run, which leaves nothing to be found by the next run
        self._tally = Tally()
        self._lock = threading.Lock()
        self._told = told

    def run(self, name: tuple[str, str]) -> RunSynced | None:
        """Copy one run; None where it is none, since it never began or was removed."""
        self.go_on()
        synced: RunSynced | None
        try:
            synced = _RunSync(self, *name).copy()
        except (StoreDamaged, UsageError) as error:
            synced = RunSynced("/".join(name), "failed", error=error)
        except FileNotFoundError:
            synced = self._gone(*name)
        self.count(runs=1)
        return synced

    def _gone(self, flow: str, run_id: str) -> RunSynced | None:
        """Return what became of a run that has no journal, or lost something else while it was copied."""
        prefix = layout.run(flow, run_id)
        left = {info.key.removeprefix(prefix) for info in self.source.objects.list(prefix)}
        # A driver that died before its first record leaves its lock, a deletion what it has not come to.
        if REMOVED in left or left <= {"lock", "lease"}:
            return None
        error = StoreDamaged(f"something of {prefix} is missing from {self.source.url}", hint="see: mlp fsck")
        return RunSynced(f"{flow}/{run_id}", "failed", error=error)

    def go_on(self) -> None:
        """Raise where everything is to end."""
        if self.stopped.is_set():
            raise _Stopped

    def is_planned(self, digest: str) -> bool:
        """Tell whether a dry run has counted a blob already; from now on it has."""
        with self._lock:
            known = digest in self._planned
            self._planned.add(digest)
        return known

    def count(self, *, runs: int = 0, blobs: int = 0, size: int = 0) -> None:
        """Count what was copied."""
        with self._lock:
            self._tally.runs += runs
            self._tally.blobs += blobs
            self._tally.size += size
        self._told(self._tally)


class _RunSync:
    """The copying of one run."""

    def __init__(self, syncing: _Syncing, flow: str, run_id: str) -> None:
        """Begin; nothing is read."""
        self._all = syncing
        self._flow = flow
        self._run_id = run_id
        self._name = f"{flow}/{run_id}"
        self._from = syncing.source.objects
        self._dry_run = syncing.options.dry_run
        self._verify = syncing.options.verify
        self._arrival = Arrival(syncing.target, flow, run_id, self._from.url, verify=self._verify)
        self._blobs = 0
        self._size = 0
        self._lock = threading.Lock()

    def copy(self) -> RunSynced:
        """Copy the run, or what of it is not there yet."""
        if not self._verify and self._is_complete():
            return RunSynced(self._name, "unchanged")
        copied, logs = Copied.read(self._from, self._flow, self._run_id)
        if not copied.has_ended and self._all.source.run(self._flow, self._run_id).status == "running":
            return RunSynced(self._name, "running")
        if self._dry_run:
            relation = self._copy(copied, logs)
        else:
            with self._arrival.held():
                relation = self._copy(copied, logs)
        outcome: Outcome = "copied" if relation == "absent" else "updated" if self._size else "unchanged"
        return RunSynced(self._name, outcome, self._blobs, self._size)

    def _copy(self, copied: Copied, logs: Sequence[str]) -> Relation:
        """Copy what is not there yet, and return how what was there stood to it."""
        relation, there = self._arrival.relation(copied.journal), self._arrival.segment_names()
        is_new = relation in ("absent", "behind")
        new = [name for name in copied.segments if name not in there]
        self._copy_blobs(copied.blobs if is_new or self._verify else copied.blobs_of(new))
        self._copy_bundles(copied)
        for name in new:
            self._add_segment(name, copied.segments[name])
        for name in logs:
            if name not in there:
                self._copy_log(copied, name)
        self._copy_log(copied, "")
        if is_new:
            self._count(size=len(copied.journal))
        if not self._dry_run:
            self._arrival.finish(copied, relation)
            if self._arrival.doubtful:
                self._copy_blobs(self._arrival.doubtful)
        return relation

    def _is_complete(self) -> bool:
        """Tell whether all of the run is there, by names and sizes: nothing of a run changes but by growing."""
        target, journal = self._all.target, layout.journal(self._flow, self._run_id)
        here, there = _size(self._from, journal), _size(target, journal)
        if here is None or here != there:
            return False
        for key in (layout.logs(self._flow, self._run_id), layout.seal(self._flow, self._run_id)):
            if (_size(self._from, key) or 0) > (_size(target, key) or 0):
                return False
        if self._from.read(journal, 0, _HEAD_BYTES) != target.read(journal, 0, _HEAD_BYTES):
            return False
        segments = layout.segments(self._flow, self._run_id)
        return set(self._from.children(segments)) <= set(target.children(segments))

    def _copy_blobs(self, blobs: Mapping[str, int]) -> None:
        """Copy the blobs that are not there, durably."""
        for _ in in_parallel(self._all.pool, self._copy_blob, blobs.items(), _BLOBS):
            self._all.go_on()
        if not self._dry_run:
            self._arrival.sync_blobs()

    def _copy_blob(self, blob: tuple[str, int]) -> None:
        """Copy a blob where it is not there."""
        digest, size = blob
        key = layout.blob(digest)
        with self._all.copying[int(digest[7:9], 16)]:
            self._all.go_on()
            if not self._arrival.needs_blob(digest, size):
                return
            if self._dry_run:
                if not self._all.is_planned(digest):
                    self._count(blobs=1, size=size)
                return
            staged = self._arrival.new_file()
            try:
                # The size first: what is not what was written may be of any.
                is_intact = self._from.info(key).size == size
                is_intact = is_intact and fetch(self._from, key, staged, self._all.go_on) == (digest, size)
            except FileNotFoundError:
                is_intact = False
            if not is_intact:
                staged.unlink(missing_ok=True)
                place = f"{key} in {self._from.url}"
                raise StoreDamaged(
                    f"{self._name} cannot be copied: {place} is missing or damaged", hint="see: mlp fsck"
                )
            self._arrival.add_blob(staged, digest, size)
        self._count(blobs=1, size=size)

    def _copy_bundles(self, copied: Copied) -> None:
        """Copy the bundles of the run's environments that are not there, their files first."""
        for key, content in bundles_of(self._from, copied.all_records).items():
            is_there = self._arrival.has_bundle(key)
            if not is_there or self._verify:
                self._copy_blobs(digests_of([checked_bundle(key, content, self._from.url)]))
            if not self._dry_run:
                self._arrival.add_bundle(key, content)
            if not is_there:
                self._count(size=len(content))

    def _add_segment(self, name: str, content: bytes) -> None:
        """Copy a segment that holds a record."""
        if not self._dry_run:
            self._arrival.add_segment(name, content)
        self._count(size=len(content))

    def _copy_log(self, copied: Copied, name: str) -> None:
        """Copy a segment that holds a log, or, without a name, the driver's log where it is longer than there."""
        key = layout.segment(self._flow, self._run_id, name) if name else layout.logs(self._flow, self._run_id)
        reader = GrowingReader(self._from, key)
        size = reader.size()
        if not name and size <= GrowingReader(self._all.target, key).size():
            if copied.sealed is not None and size < copied.sealed.logs_size:
                copied.check_log(name, "", size, self._from.url)
            return
        if not self._dry_run:
            staged = self._arrival.new_file()
            digest, _ = write_hashed(self._log_pieces(reader, size), staged)
            try:
                copied.check_log(name, digest, size, self._from.url)
            except StoreDamaged:
                staged.unlink()
                raise
            self._arrival.add_log(key, staged)
        self._count(size=size)

    def _log_pieces(self, reader: GrowingReader, size: int) -> Iterator[bytes]:
        """Iterate over the content of a log."""
        for start in range(0, size, PIECE):
            self._all.go_on()
            yield reader.read(start, min(size, start + PIECE))

    def _count(self, *, blobs: int = 0, size: int = 0) -> None:
        """Count what was copied."""
        with self._lock:
            self._blobs += blobs
            self._size += size
        self._all.count(blobs=blobs, size=size)


def _size(objects: ObjectStore, key: str) -> int | None:
    """Return the size of an object; None where there is none."""
    try:
        return objects.info(key).size
    except FileNotFoundError:
        return None
