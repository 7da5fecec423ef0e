"""What others do: they read, list and check the store, damage it, copy its runs, and pack them into files."""

from __future__ import annotations

import shutil
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from hypothesis import strategies as st
from hypothesis.stateful import precondition

from mlp_core.errors import MlpError
from mlp_core.store import Store, layout
from mlp_core.store.verified import cache_folder
from mlp_core.upkeep.archive import Archive, export_run
from mlp_core.upkeep.fsck import check_store
from mlp_core.upkeep.sync import SyncOptions, chosen_runs, sync_runs
from mlp_reliability.crashing import CrashingObjects, Process
from mlp_reliability.machine.history import DEATHS, INLINE_BYTES, History, close, step
from mlp_reliability.machine.model import FLOW, WrongError, contents, contents_or_error
from mlp_reliability.memory import ProcessDied

if TYPE_CHECKING:
    from mlp_reliability.machine.places import Place

_READING: Final = ("read", "list", "check", "place")


class ReadingRules(History):
    """The rules of readers, of who copies, and of what rots."""

    @precondition(lambda self: not self._steps[-1].startswith(_READING))
    @step("read")
    def read(self) -> None:
        """Read everything as another process does."""
        store = self._read()
        self._check_all(store)
        close(store, self._raw)

    @precondition(lambda self: not self._steps[-1].startswith(_READING))
    @step("list", forget=st.booleans())
    def list_runs(self, *, forget: bool) -> None:
        """List the runs, by an index that may have been thrown away."""
        cache = cache_folder()
        if forget and cache is not None:
            shutil.rmtree(cache, ignore_errors=True)
        store = self._read()
        listed = {summary.run_id: summary for summary in store.runs(FLOW)}
        for run in self._runs.values():
            summary = listed.get(run.run_id)
            allowed = run.statuses()
            if self._place.loses_power and run.status is None:
                # The index asks for the lease only, which this model of a disk has beside its locks, unlike a real one.
                allowed |= {"running", "lost"}
            if summary is None or summary.status not in allowed:
                raise WrongError(f"run {run.run_id} is listed as {summary}, not {sorted(allowed)}")
            if not run.tags <= set(summary.tags) <= run.tags | run.maybe_tags:
                raise WrongError(f"run {run.run_id} is listed with the tags {summary.tags}, not {sorted(run.tags)}")
        close(store, self._raw)

    @precondition(lambda self: not self._steps[-1].startswith(_READING))
    @step("check")
    def check(self) -> None:
        """Check the store: whatever has died in it, nothing is damaged."""
        objects = self._place.open()
        damaged = [finding for finding in check_store(objects).findings if finding.severity == "damage"]
        if damaged:
            raise WrongError(f"fsck finds {damaged[0].key}: {damaged[0].problem}")
        if objects is not self._raw:
            objects.close()

    # --------------------------------------------------------------------------------------------- damaging

    @precondition(lambda self: self._runs)
    @step(
        "damage",
        draw=st.integers(0, 1000),
        where=st.floats(0, 1, exclude_max=True),
        how=st.sampled_from(["flip", "cut", "no"]),
    )
    def damage(self, draw: int, where: float, how: str) -> None:
        """Damage an object: what is read is right or refused, fsck names it, and it can be put back."""
        key = self._damageable(draw)
        if key is None:
            return
        before = self._raw.read(key)
        after = _damaged(before, where, how)
        if after == before or (after is None and self._is_doubled_or_optional(key)):
            return
        if after is None:
            self._raw.delete(key)
        else:
            self._raw.replace(key, after, sync=True)
        objects = self._place.open()
        findings = check_store(objects).findings
        if not any(finding.key == key and finding.severity == "damage" for finding in findings):
            raise WrongError(f"fsck does not find that {key} was damaged ({how} at {where:.3f})")
        self._check_damaged(Store(objects) if key == layout.FORMAT else Store.open(objects, create=False), key)
        if objects is not self._raw:
            objects.close()
        self._raw.replace(key, before, sync=True)

    def _damageable(self, draw: int) -> str | None:
        """Return a blob, or an object of a run that has ended and been sealed."""
        sealed = [run.run_id for run in self._runs.values() if run.status is not None and self._is_sealed(run.run_id)]
        keys = [layout.journal(FLOW, run_id) for run_id in sealed]
        keys += [info.key for info in self._raw.list(layout.BLOBS)] if self._is_referred() else []
        for run_id in sealed:
            keys += [info.key for info in self._raw.list(layout.segments(FLOW, run_id))]
        keys = sorted(key for key in keys if self._is_needed(key))
        return keys[draw % len(keys)] if keys else None

    def _is_doubled_or_optional(self, key: str) -> bool:
        """Tell whether nobody can know that an object is missing: a journal that is there in parts too, or a tag."""
        return "/segments/" in key or any(True for _ in self._raw.list(layout.parts(key)))

    def _is_referred(self) -> bool:
        """Tell whether blobs are referred to."""
        return any(run.tasks for run in self._runs.values())

    def _is_needed(self, key: str) -> bool:
        """Tell whether an acknowledged task or tag depends on an object."""
        if not key.startswith(layout.BLOBS):
            return self._raw.info(key).size > 0
        contents = {content for run in self._runs.values() for content in run.tasks.values()}
        return key.rpartition("-")[2] in {sha256(c).hexdigest() for c in contents if len(c) > INLINE_BYTES}

    def _is_sealed(self, run_id: str) -> bool:
        """Tell whether a run's seal is there."""
        try:
            return self._raw.info(layout.seal(FLOW, run_id)).size > 0
        except FileNotFoundError:
            return False

    def _check_damaged(self, store: Store, key: str) -> None:
        """Read everything: it may be refused, but what is read must be what was written."""
        for run in self._runs.values():
            found = contents_or_error(store, run.run_id)
            if isinstance(found, dict):
                wrong = {p for p, c in found.items() if c != run.tasks.get(p, run.maybe_tasks.get(p))}
                missing = set(run.tasks) - set(found)
                if wrong or missing:
                    raise WrongError(f"with {key} damaged, {sorted(wrong | missing)} of {run.run_id} read wrong")

    # --------------------------------------------------------------------------------------- copying, packing

    @precondition(lambda self: self._runs)
    @step("sync", number=st.integers(0, 1), death=st.one_of(st.none(), st.integers(1, 60)))
    def sync(self, number: int, death: int | None) -> None:
        """Copy all runs to another store; a copy that was cut off has runs that are whole, or not there."""
        process, place = Process(), self._copies[number]
        raw = place.open()
        target = CrashingObjects(raw, process, self._rng.random)
        source = self._read()
        is_whole = False
        process.dies_in(death)
        try:
            copy = Store.open(target, create=True)
            failed = [
                synced
                for synced in sync_runs(source, copy.objects, chosen_runs(source), SyncOptions())
                if synced.error and synced.run.rpartition("/")[2] in self._runs
            ]
            if failed:
                raise WrongError(f"{failed[0].run} was not copied: {failed[0].error}")
            is_whole = True
        except ProcessDied:
            self._counts.add("a copying process dies")
        process.is_dead = True
        close(source, self._raw)
        raw.close()
        if not is_whole:
            place.died(self._rng)
        self._check_copy(place, is_whole=is_whole)

    def _check_copy(self, place: Place, *, is_whole: bool) -> None:
        """Check that all runs of a copy are as in the store; of a whole copy, that all that do not go on are there."""
        objects = place.open()
        try:
            store = Store.open(objects, create=False)
        except MlpError:
            if is_whole:
                raise
            return
        found = set(store.run_ids(FLOW)) if FLOW in store.flows() else set()
        for run in self._runs.values():
            if run.run_id in found and not _is_begun(store, run.run_id):
                found.discard(run.run_id)
            if is_whole and run.writer is None and not self._is_stopped(run) and run.run_id not in found:
                raise WrongError(f"run {run.run_id} was not copied")
            if run.run_id in found:
                there = contents(store, store.run(FLOW, run.run_id))
                wrong = {p for p, c in there.items() if c != run.tasks.get(p, run.maybe_tasks.get(p))}
                if wrong or (is_whole and run.writer is None and not set(run.tasks) <= set(there)):
                    raise WrongError(f"run {run.run_id} reads otherwise in the copy: {sorted(wrong)}")
        objects.close()

    @precondition(lambda self: any(run.writer is None for run in self._runs.values()))
    @step("pack and unpack", draw=st.integers(0, 100), number=st.integers(0, 1), death=DEATHS)
    def pack_and_unpack(self, draw: int, number: int, death: int | None) -> None:
        """Pack a run that does not go on into a file, and unpack it elsewhere."""
        run = self._chosen([run for run in self._runs.values() if run.writer is None], draw)
        if run is None or self._is_stopped(run):
            return
        source, archive = self._read(), self._folder / "run.tar"
        archive.unlink(missing_ok=True)
        export_run(source, FLOW, run.run_id, archive)
        close(source, self._raw)
        process, place = Process(), self._copies[number]
        raw = place.open()
        process.dies_in(death)
        is_whole = False
        try:
            copy = Store.open(CrashingObjects(raw, process, self._rng.random), create=True)
            with Archive(archive) as opened:
                opened.import_into(copy)
            is_whole = True
        except ProcessDied:
            self._counts.add("an unpacking process dies")
        process.is_dead = True
        raw.close()
        if not is_whole:
            place.died(self._rng)
            self._check_copy(place, is_whole=False)
            return
        store = Store.open(place.open(), create=False)
        run.check_tasks(contents(store, store.run(FLOW, run.run_id)))
        store.close()


def _damaged(content: bytes, where: float, how: str) -> bytes | None:
    """Return damaged content; None for none at all."""
    position = int(where * len(content))
    if how == "no":
        return None
    if how == "cut":
        return content[:position]
    return content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]


def _is_begun(store: Store, run_id: str) -> bool:
    """Tell whether there is a run, and not only a folder that a copy which was cut off has left."""
    return store._exists(FLOW, run_id)
