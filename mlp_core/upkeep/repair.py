"""What is done about what a check has found: only what cannot lose anything that is still good.

What is damaged is moved away, not deleted, so that whatever makes it writes it anew. No record that was acknowledged is
cut off or changed.
"""

from __future__ import annotations

import stat
import time
from typing import TYPE_CHECKING, Final

import attrs

from mlp_core.errors import MlpError
from mlp_core.store import layout
from mlp_core.store.growing import read_growing
from mlp_core.store.journal import JournalWriter, parse_journal
from mlp_core.store.records import RunBegan, RunEnded
from mlp_core.store.seal import seal_run
from mlp_core.upkeep.arrival import has_object
from mlp_core.upkeep.environment_check import restore_lock
from mlp_core.upkeep.folder import DAMAGED, TARGETS, close_folder, remove_unfinished, store_folder
from mlp_core.upkeep.fsck import FORMAT_CONTENTS, IGNORE_CONTENT

if TYPE_CHECKING:
    from mlp_core.upkeep.findings import Finding, Report
    from mlp_hookspecs.handles import ObjectStore

_MOVED: Final = (layout.BLOBS, layout.BLUEPRINTS, layout.DEPLOYMENTS, layout.ENVIRONMENTS, TARGETS)
_LOCKS: Final = layout.environment_lock("sha256-" + "0" * 64).rpartition("/")[0]
_RUN_PARTS: Final = 4


def repair(objects: ObjectStore, report: Report, *, shared: bool = False) -> Report:
    """Do what is safe about what was found.

    Parameters
    ----------
    objects : ObjectStore
        The store's objects.
    report : Report
        What was found.
    shared : bool
        As for `check_store`.

    Returns
    -------
    Report
        The same, with what was done.
    """
    repairing = _Repair(objects, shared=shared)
    return attrs.evolve(report, findings=tuple(repairing.mend(finding) for finding in report.findings))


class _Repair:
    """One repair of a store."""

    def __init__(self, objects: ObjectStore, *, shared: bool) -> None:
        """Begin; nothing is touched."""
        self._objects = objects
        self._shared = shared
        self._folder = store_folder(objects)
        self._is_closed = False
        self._is_swept = False

    def mend(self, finding: Finding) -> Finding:
        """Do what is safe about one finding, and return it with what was done."""
        try:
            return self._mend(finding)
        except FileNotFoundError:  # gone in the meantime
            return finding
        except MlpError as error:
            return attrs.evolve(finding, repaired=f"could not be repaired: {error.message}")

    def _mend(self, finding: Finding) -> Finding:
        """Choose what to do."""
        key = finding.key
        if finding.severity == "exposure":
            return self._close(finding)
        if finding.severity == "leftover" and key.startswith("tmp/"):
            return self._sweep(finding)
        if key in (layout.FORMAT, layout.GITIGNORE) and not finding.remedy.startswith("upgrade"):
            content = IGNORE_CONTENT if key == layout.GITIGNORE else FORMAT_CONTENTS[-1]
            self._objects.replace(key, content, sync=True)
            return attrs.evolve(finding, repaired="written anew", is_healed=True)
        if finding.severity == "damage" and key.startswith(_MOVED):
            return self._restore(finding) if key.startswith(_LOCKS) else self._move(finding)
        if key.startswith(layout.FLOWS):
            return self._mend_run(finding)
        return finding

    def _close(self, finding: Finding) -> Finding:
        """Take permissions away, for all findings of the kind at once."""
        if self._folder is None:
            return finding
        if not self._is_closed:
            close_folder(self._folder, shared=self._shared)
            self._is_closed = True
        return attrs.evolve(finding, repaired="closed", is_healed=True)

    def _sweep(self, finding: Finding) -> Finding:
        """Remove what dead processes left, for all findings of the kind at once."""
        if self._folder is not None and not self._is_swept:
            remove_unfinished(self._folder)
            self._is_swept = True
        return attrs.evolve(finding, repaired="removed", is_healed=True)

    def _move(self, finding: Finding) -> Finding:
        """Move a damaged object away, so that it is made anew."""
        key = finding.key
        source = self._objects.local_path(key)
        if source is not None and not stat.S_ISREG(source.lstat().st_mode):
            return finding
        self._objects.info(key)
        quarantined = f"{DAMAGED}{key}.{int(time.time() * 1e6)}"
        staged = self._objects.staging() / f"damaged-{time.time_ns():x}"
        if source is not None:
            source.rename(staged)
        else:
            self._objects.download(key, staged)
        self._objects.adopt(staged, quarantined, sync=True)
        if source is None:
            self._objects.delete(key)
        return attrs.evolve(finding, repaired=f"moved to {quarantined}", is_healed=not finding.affects)

    def _restore(self, finding: Finding) -> Finding:
        """Write an environment's lock anew from a run that has it, once what is damaged was moved away."""
        try:
            moved = self._move(finding)
        except FileNotFoundError:  # it is missing
            moved = finding
        if has_object(self._objects, finding.key) or not restore_lock(self._objects, finding.key):
            return moved
        done = ", ".join(filter(None, (moved.repaired, "written anew from a run that has it")))
        return attrs.evolve(moved, repaired=done, is_healed=True)

    def _mend_run(self, finding: Finding) -> Finding:
        """Mend what can be made anew from a run's journal, and mark what was not written to its end."""
        parts = finding.key.split("/")
        if len(parts) != _RUN_PARTS:
            return finding
        _, flow, run_id, name = parts
        if name in ("lock", "lease") and finding.severity == "damage":
            self._objects.replace(finding.key, b"", sync=True)
            return attrs.evolve(finding, repaired="emptied", is_healed=True)
        if name == "seal":
            return self._seal(finding, flow, run_id)
        if name == "journal" and finding.severity == "note":
            return self._mark(finding, flow, run_id)
        return finding

    def _seal(self, finding: Finding, flow: str, run_id: str) -> Finding:
        """Write a run's summary anew, where its journal is intact and tells its end."""
        key = layout.journal(flow, run_id)
        records = [record for _, record in parse_journal(self._objects.read(key), key).records]
        if not records or not isinstance(records[0], RunBegan) or not isinstance(records[-1], RunEnded):
            return finding
        self._objects.delete(finding.key)
        if not seal_run(self._objects, records[0], records[-1], None):
            return finding
        return attrs.evolve(finding, repaired="written anew from the journal", is_healed=True)

    def _mark(self, finding: Finding, flow: str, run_id: str) -> Finding:
        """Mark the unfinished line at a journal's end, where nobody writes to it any more."""
        lock = self._objects.lock(layout.lock(flow, run_id))
        if lock is None:
            return finding
        with lock as is_free:
            if not is_free:
                return finding
            content = read_growing(self._objects, finding.key)
            read = parse_journal(content, finding.key)
            file = self._objects.open_append(finding.key) if read.torn else None
            if file is None:
                return finding
            try:
                JournalWriter(file, read.expected, torn=True).write([], sync=True)
            finally:
                file.close()
        return attrs.evolve(finding, repaired="its unfinished last line was marked as such", is_healed=True)
