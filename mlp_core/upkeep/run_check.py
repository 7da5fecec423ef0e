"""How one run is checked: every byte of its journal, its segments and its logs, and what they say of each other."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from mlp_core.errors import MlpError, StoreDamaged, StoreError
from mlp_core.store import layout
from mlp_core.store.content import sha256
from mlp_core.store.growing import read_growing
from mlp_core.store.journal import parse_journal
from mlp_core.store.lease import Pulse
from mlp_core.store.logs import LogReader
from mlp_core.store.records import AttemptFinished, RunBegan, RunSealed, TaskReused, decode_line
from mlp_core.store.references import blobs_of, references
from mlp_core.store.seal import hash_logs
from mlp_core.store.state import RunState
from mlp_core.store.target import manifest_digest
from mlp_core.upkeep.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlp_core.store.records import Record
    from mlp_hookspecs.handles import ObjectInfo, ObjectStore
    from mlp_hookspecs.types import ArtifactRef

REMOVED: Final = layout.REMOVED
"""The object of a run that is being deleted; whatever is left of the run goes with it."""

_UNFINISHED: Final = b" ~ unfinished"
_RESTORE: Final = "restore the file from a backup, or remove the run: mlp rm {run}"
_ALONE: Final = ("journal", "logs", "lock", "lease", "seal", REMOVED)


class RunCheck:
    """The check of one run.

    Parameters
    ----------
    objects : ObjectStore
        The store.
    flow, run_id : str
        The run.
    infos : mapping of str to ObjectInfo
        Its objects by what follows the run's prefix in their keys; without the parts of what grows on a bucket.

    Attributes
    ----------
    findings : list of Finding
        What was found.
    blobs : list of (str, str)
        Digest of a blob that is needed, and by whom, as often as it is.
    """

    def __init__(self, objects: ObjectStore, flow: str, run_id: str, infos: Mapping[str, ObjectInfo]) -> None:
        """Make the check; nothing is read yet."""
        self.findings: list[Finding] = []
        self.blobs: list[tuple[str, str]] = []
        self._objects = objects
        self._flow = flow
        self._run_id = run_id
        self._infos = infos
        self._prefix = layout.run(flow, run_id)
        self._records: list[Record] = []
        self._tail = b""
        self._is_intact = True

    @property
    def run(self) -> str:
        """The run's pathspec."""
        return f"{self._flow}/{self._run_id}"

    def check(self) -> None:
        """Check everything."""
        for name, info in self._infos.items():
            if name not in _ALONE and not name.startswith("segments/"):
                self._add("note", info.key, "no object of a run has this name: it does not belong there")
        if REMOVED in self._infos:
            self._add("leftover", self._prefix + REMOVED, "the run was not deleted to its end", "mlp gc finishes it")
            return
        pulse = Pulse.take(self._objects, self._flow, self._run_id)
        content = self._journal()
        if content is None:
            self._without_journal(pulse)
            return
        self._check_journal(content)
        segments = self._check_segments()
        state = self._fold(segments)
        self._check_seal(content, state)
        self._check_logs(layout.logs(self._flow, self._run_id), state)
        self._check_empty()
        if state is not None and state.ended is None:
            self._check_alive(pulse, state.began)
        if state is not None and self._is_intact:
            self._check_tasks(state)
        for record in self._records:
            self._check_references(record)

    def _add(self, severity: str, key: str, problem: str, remedy: str = "", affects: tuple[str, ...] = ()) -> None:
        """Note something."""
        self.findings.append(Finding(severity, key, problem, affects or (self.run,), remedy))  # type: ignore[arg-type] # one of three words

    def _key(self, name: str) -> str:
        """Return the key of one of the run's own objects."""
        return self._prefix + name

    def _resume(self) -> str:
        """Return the command that runs again what is missing."""
        return f"mlp resume FLOW.py --origin-run-id {self._run_id}"

    def _damaged(self, key: str, problem: str, remedy: str = _RESTORE) -> None:
        """Note damage of the journal or of a segment."""
        self._is_intact = False
        self._add("damage", key, problem, remedy.format(run=self.run))

    def _journal(self) -> bytes | None:
        """Return the journal's bytes; None where there is none or it cannot be read."""
        try:
            return read_growing(self._objects, self._key("journal"))
        except FileNotFoundError:
            return None
        except StoreError as error:
            self._damaged(self._key("journal"), f"cannot be read: {error.message}")
            return b""

    def _without_journal(self, pulse: Pulse) -> None:
        """Tell what a folder without a journal is."""
        if "seal" in self._infos:
            self._damaged(self._key("journal"), "the journal of a run that has ended is missing")
        elif self._infos and not (pulse.is_locked and "lock" in self._infos):
            self._add(
                "leftover",
                self._key("journal"),
                "there is none: the run was not created or copied to its end, or its journal was deleted",
                "mlp gc clears what is left of it",
            )

    def _check_alive(self, pulse: Pulse, began: RunBegan) -> None:
        """Tell of a run that has no end and goes on no more."""
        if not began.has_driver:
            key = layout.segment(self._flow, self._run_id, "ended")
            self._add("note", key, "there is none: the run goes on, was never ended, or this was deleted")
        elif not pulse.is_alive(began.lease_seconds):
            problem = "the run has no end: its driver died, or the journal's end was cut off"
            self._add("note", self._key("journal"), problem, f"go on from what was committed: {self._resume()}")

    def _check_tasks(self, state: RunState) -> None:
        """Check that tasks are there from which others have read, and as many as the run's end says."""
        key = self._key("journal")
        for task in list(state.tasks.values()):
            for parent in task.parents:
                if parent not in state.tasks:
                    if not state.began.has_driver:
                        key = layout.segment(self._flow, self._run_id, layout.task_segment(parent))
                    self._damaged(key, f"{task.key.path} has read from {parent.path}, of which nothing is there")
        done = [task for task in state.tasks.values() if task.status in ("succeeded", "caught")]
        if state.ended is not None and not state.began.has_driver and len(done) < state.ended.tasks:
            problem = f"{state.ended.tasks - len(done)} of the {state.ended.tasks} tasks that had ended are missing"
            self._damaged(layout.segments(self._flow, self._run_id), problem)

    def _check_journal(self, content: bytes) -> None:
        """Check the journal, and keep the records of those lines that are intact."""
        key = self._key("journal")
        *lines, self._tail = content.split(b"\n")
        self._check_lines(key, lines)
        if self._is_intact:
            try:
                parse_journal(content, key)
            except StoreDamaged as error:  # such as a last line whose end was changed
                self._damaged(key, error.message)
        began = self._records[0] if self._records else None
        if isinstance(began, RunBegan):
            if (began.run.flow, began.run.run_id) != (self._flow, self._run_id):
                self._damaged(key, f"it is the journal of another run, {began.run.flow}/{began.run.run_id}")
        elif self._is_intact:
            self._damaged(key, "it does not begin with the beginning of a run")

    def _check_lines(self, key: str, lines: list[bytes]) -> None:
        """Check the lines of the journal, and keep the records of those that are intact."""
        expected = position = 0
        for line in lines:
            decoded = _decoded(line)
            if decoded is None and not line.endswith(_UNFINISHED):
                self._damaged(key, f"record {expected} (byte {position}) is not what was written")
                expected += 1
            elif decoded is not None:
                number, record = decoded
                if number != expected:
                    self._damaged(key, f"record {number} (byte {position}) stands where record {expected} should")
                expected = number + 1
                if record is not None:
                    self._records.append(record)
            position += len(line) + 1

    def _check_segments(self) -> list[Record]:
        """Check what others have added, and return their records in the order of their times."""
        found: list[Record] = []
        for name, info in sorted(self._infos.items()):
            if not name.startswith("segments/"):
                continue
            short = name.removeprefix("segments/")
            try:
                layout.segment(self._flow, self._run_id, short)
            except MlpError:
                self._add("note", info.key, "no segment has this name: it does not belong there")
                continue
            if short.startswith(layout.LOG_SEGMENT):
                continue
            found += self._segment(info.key)
        return sorted(found, key=lambda record: record.time)

    def _segment(self, key: str) -> list[Record]:
        """Check one segment, and return its record."""
        try:
            content = self._objects.read(key)
        except FileNotFoundError:  # removed since
            return []
        except StoreError as error:
            self._damaged(key, f"cannot be read: {error.message}")
            return []
        decoded = _decoded(content[:-1]) if content.endswith(b"\n") else None
        if decoded is None or decoded[0] != 0:
            remedy = "what it said is lost; remove the run, or the file if it was a tag edit: mlp rm {run}"
            self._damaged(key, "the segment is not what was written", remedy)
            return []
        if _place(content) not in ("", key):
            self._damaged(key, f"it is another segment, {_place(content)}")
            return []
        records = [] if decoded[1] is None else [decoded[1]]
        if isinstance(decoded[1], RunBegan | RunSealed):
            self._damaged(key, "it has what stands in no segment")
            records = []
        self._records += records
        return records

    def _fold(self, segments: list[Record]) -> RunState | None:
        """Return what the records amount to; None where they are too damaged to tell."""
        began = self._records[0] if self._records else None
        if not isinstance(began, RunBegan):
            return None
        state = RunState(began)
        own = self._records[1 : len(self._records) - len(segments)]
        try:
            for record in (*own, *segments):
                state.apply(record)
        except StoreDamaged as error:
            if self._is_intact:
                self._damaged(self._key("journal"), error.message)
        if self._tail and state.ended is not None and began.has_driver:
            self._damaged(self._key("journal"), f"{len(self._tail)} bytes follow the run's end")
        return state

    def _check_seal(self, journal: bytes, state: RunState | None) -> None:
        """Check the summary of a run that has ended, against the journal too."""
        if "seal" not in self._infos:
            if state is not None and state.ended is not None and state.began.has_driver and self._is_intact:
                self._add(
                    "note", self._key("seal"), "there is none, so that lists of runs have to read the journal instead"
                )
            return
        key = self._key("seal")
        try:
            content = self._objects.read(key)
        except FileNotFoundError:
            return
        except StoreError as error:
            self._add("damage", key, f"cannot be read: {error.message}")
            return
        decoded = _decoded(content[:-1]) if content.endswith(b"\n") else None
        sealed = decoded[1] if decoded is not None else None
        if not content.rstrip(b"\0").endswith(b"\n"):
            problem = "it was not written to its end, as after a power cut: lists of runs read the journal instead"
            self._add("note", key, problem)
        elif not isinstance(sealed, RunSealed):
            self._add("damage", key, "the run's summary is not what was written", "nothing is lost: mlp fsck --repair")
        elif (sealed.run.flow, sealed.run.run_id) != (self._flow, self._run_id):
            self._add("damage", key, f"it is that of another run, {sealed.run.flow}/{sealed.run.run_id}")
        else:
            self._check_sealed(journal, sealed)

    def _check_sealed(self, journal: bytes, sealed: RunSealed) -> None:
        """Check journal and log against what was sealed."""
        if (len(journal), sha256(journal)) != (sealed.size, sealed.digest):
            problem = f"it has {len(journal)} bytes and is not the one that was sealed with {sealed.size}"
            self._damaged(self._key("journal"), problem)
        key = self._key("logs")
        try:
            found = hash_logs(self._objects, key, sealed.logs_size) if sealed.logs_digest else None
        except StoreError:  # which the check of the log itself tells
            return
        if found is not None and found != (sealed.logs_size, sealed.logs_digest):
            problem = "it is not the one" if found[0] == sealed.logs_size else f"it has {found[0]} of the bytes"
            self._add("damage", key, f"{problem} that was sealed with {sealed.logs_size} bytes")

    def _check_logs(self, own: str, state: RunState | None) -> None:
        """Check the frames of all logs, and that they belong to attempts of this run."""
        # Where the driver died, a power cut may have kept output, and not the record of the attempt that printed it.
        has_end = state is not None and state.ended is not None and state.ended.status != "lost"
        known = {key.path for key in state.tasks} if state is not None and has_end and self._is_intact else None
        logs = [name for name in self._infos if name.startswith("segments/" + layout.LOG_SEGMENT)]
        for key in (own, *(self._key(name) for name in logs)):
            try:
                self._check_log(key, known)
            except StoreError as error:
                self._add("damage", key, f"cannot be read: {error.message}")
        for record in self._records:
            if isinstance(record, AttemptFinished) and record.log_digest:
                self._check_attempt_log(record)

    def _check_log(self, key: str, known: set[str] | None) -> None:
        """Check the frames of one log."""
        reader = LogReader(self._objects, key)
        reader.refresh()
        for start, end, is_unfinished in reader.gaps():
            if is_unfinished:
                self._add("note", key, f"bytes {start} to {end} are a frame that was not written to its end")
            else:
                self._add("damage", key, f"bytes {start} to {end} are not what was written; other output is intact")
        for attempt_id in reader.attempt_ids():
            path = attempt_id.rpartition("/")[0]
            if known is not None and path not in known:
                self._add("damage", key, f"it has output of {attempt_id!r}, which is no attempt of this run")

    def _check_attempt_log(self, record: AttemptFinished) -> None:
        """Check the log of an attempt that no driver of ours started against its record."""
        key = layout.segment(self._flow, self._run_id, layout.log_segment(record.key, record.attempt))
        task = f"{self.run}/{record.key.path}"
        try:
            if sha256(self._objects.read(key)) != record.log_digest:
                self._add("damage", key, "it is not what was written", affects=(task,))
        except FileNotFoundError:
            self._add("damage", key, "it is missing", affects=(task,))
        except StoreError:  # which the check of its frames tells
            return

    def _check_empty(self) -> None:
        """Check that what carries no content has none."""
        for name in ("lock", "lease"):
            info = self._infos.get(name)
            if info is not None and info.size:
                self._add("damage", info.key, f"it has {info.size} bytes where there should be none; nothing is lost")

    def _check_references(self, record: Record) -> None:
        """Take up which blobs a record needs, and check what it holds itself."""
        for place, ref in references(record):
            name = self._name(record, place)
            problem = _inline_problem(ref)
            if problem:
                self._add("damage", self._key("journal"), problem, self._resume(), (name,))
            self.blobs += [(digest, name) for digest, _ in blobs_of(ref)]

    def _name(self, record: Record, place: tuple[str, ...]) -> str:
        """Return what a reference is known as."""
        if not isinstance(record, AttemptFinished | TaskReused):
            return f"{self.run} ({'.'.join(place)})"
        task = f"{self.run}/{record.key.path}"
        if place[:2] == ("outcome", "assigned"):
            return f"{task}/{place[2]}"
        return f"{task} ({'.'.join(place)})"


def _decoded(line: bytes) -> tuple[int, Record | None] | None:
    """Return number and record of a line; None where it is not what was written, or nothing that a writer makes."""
    try:
        return decode_line(line)
    except (RecursionError, ValueError, TypeError, AttributeError):
        return None


def _place(content: bytes) -> str:
    """Return the key for which an intact segment was written; empty where it does not say."""
    data = json.loads(content.partition(b" ")[2])
    return str(data.get("at", ""))


def _inline_problem(ref: ArtifactRef) -> str:
    """Tell what is wrong with content that a reference holds itself; empty where nothing is."""
    if ref.parts and manifest_digest(ref.parts) != ref.digest:
        return "the list of a value's parts is not the one that was written"
    for part in ref.parts or (ref,):
        if part.data is not None and (sha256(part.data), len(part.data)) != (part.digest, part.size):
            return "content that lies in the record does not match its hash"
    return ""
