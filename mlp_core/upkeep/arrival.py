"""How a run comes into a store from elsewhere: its blobs first, its journal last, so that it is there whole or not.

Whoever is killed in between leaves a store in which the run is not to be seen yet, and the next try goes on from there.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import attrs

from mlp_core.errors import NotFound, StoreDamaged, StoreError, UsageError
from mlp_core.store import layout
from mlp_core.store.blobs import Blobs
from mlp_core.store.content import sha256
from mlp_core.store.faults import translated
from mlp_core.store.growing import read_growing
from mlp_core.store.journal import parse_journal
from mlp_core.store.records import AttemptFinished, Record, RunBegan, RunEnded, RunSealed, encode_line
from mlp_core.store.references import digests_of
from mlp_core.store.seal import read_seal, seal_run
from mlp_core.store.state import RunState
from mlp_core.store.verified import VerifiedFiles
from mlp_core.upkeep.bundle_copies import checked_bundle
from mlp_core.upkeep.removal import finish_removal
from mlp_core.upkeep.run_check import REMOVED

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

    from mlp_hookspecs.handles import ObjectStore

Relation: TypeAlias = Literal["absent", "same", "behind", "ahead"]
"""How a store's own copy of a run stands to the one that arrives."""

_CHECKSUM_BYTES: Final = 9
"""How much stands before the JSON in a segment."""

_NEW_SECONDS: Final = 3600
"""An older blob may be cleared away before the run that relies on it is there: where that costs nothing it is made new,
elsewhere it is looked at again in the end."""

_RELIABLE_SECONDS: Final = 12 * 3600
"""An even older blob is copied again: half of what a clearing allows unless it is told otherwise."""


@attrs.frozen(eq=False, repr=False)
class Copied:
    """What a run says of itself, read where it comes from.

    Attributes
    ----------
    journal : bytes
        Its journal, to the last byte.
    segments : mapping of str to bytes
        The segments that hold records, by name.
    records : tuple of Record
        What the journal says.
    segment_records : mapping of str to tuple of Record
        What the segments say, by name.
    sealed : RunSealed or None
        What the run amounts to, where that was read too.
    """

    journal: bytes
    segments: Mapping[str, bytes]
    records: tuple[Record, ...]
    segment_records: Mapping[str, tuple[Record, ...]]
    sealed: RunSealed | None = None

    @classmethod
    def read(cls, objects: ObjectStore, flow: str, run_id: str) -> tuple[Copied, list[str]]:
        """Read a run in a store.

        Returns
        -------
        copied : Copied
            What it says.
        logs : list of str
            The names of the segments that hold logs.

        Raises
        ------
        FileNotFoundError
            Where there is no such run.
        StoreDamaged
            As `check`.
        NameRefused
            Where there is a segment of a name that none can have.
        """
        sealed = read_seal(objects, flow, run_id)
        journal = read_growing(objects, layout.journal(flow, run_id))
        if sealed is not None and (sealed.size, sealed.digest) != (len(journal), sha256(journal)):
            raise StoreDamaged(
                f"the journal of {flow}/{run_id} in {objects.url} is not what it was when the run ended",
                hint="see: mlp fsck",
            )
        keys = {name: layout.segment(flow, run_id, name) for name in objects.children(layout.segments(flow, run_id))}
        logs = [name for name in keys if name.startswith(layout.LOG_SEGMENT)]
        segments = {name: objects.read(key) for name, key in keys.items() if not name.startswith(layout.LOG_SEGMENT)}
        copied = attrs.evolve(cls.check(flow, run_id, journal, segments, objects.url), sealed=sealed)
        copied.check_logs(logs, objects.url)
        return copied, logs

    @classmethod
    def check(cls, flow: str, run_id: str, journal: bytes, segments: Mapping[str, bytes], place: str) -> Copied:
        """Check what was read, as far as it can be checked without the blobs.

        Parameters
        ----------
        flow, run_id : str
            The run that it should be.
        journal : bytes
            The journal.
        segments : mapping of str to bytes
            The segments that hold records.
        place : str
            Where they come from, for messages.

        Raises
        ------
        StoreDamaged
            Where it is another run, is not what was written, or contradicts itself.
        """
        records = [record for _, record in parse_journal(journal, f"of {flow}/{run_id} in {place}").records]
        first = records[0] if records else None
        if not isinstance(first, RunBegan) or (first.run.flow, first.run.run_id) != (flow, run_id):
            raise StoreDamaged(f"the journal of {flow}/{run_id} in {place} does not tell its beginning")
        others: dict[str, tuple[Record, ...]] = {}
        for name, content in segments.items():
            read = parse_journal(content, f"of segment {name} of {flow}/{run_id} in {place}")
            key = layout.segment(flow, run_id, name)
            if read.torn or read.expected != 1 or _place(content) not in ("", key):
                raise StoreDamaged(f"the segment {name} of {flow}/{run_id} in {place} is damaged")
            others[name] = tuple(record for _, record in read.records)
        state = RunState(first)
        for record in (*records[1:], *sorted(itertools.chain(*others.values()), key=lambda record: record.time)):
            state.apply(record)
        return cls(journal, segments, tuple(records), others)

    @property
    def has_ended(self) -> bool:
        """Whether the run says how it ended."""
        everything = itertools.chain(self.records, *self.segment_records.values())
        return any(isinstance(record, RunEnded) for record in everything)

    @property
    def all_records(self) -> tuple[Record, ...]:
        """What journal and segments say."""
        return (*self.records, *itertools.chain.from_iterable(self.segment_records.values()))

    @property
    def blobs(self) -> dict[str, int]:
        """The blobs that the run needs: size by digest."""
        return digests_of(self.records) | self.blobs_of(self.segments)

    @property
    def name(self) -> str:
        """The run, ``Flow/20260131-094500-123456``."""
        began = self.records[0]
        return f"{began.run.flow}/{began.run.run_id}" if isinstance(began, RunBegan) else ""

    @property
    def _log_digests(self) -> dict[str, str]:
        """The hashes of the segments that hold logs, by name, as far as records tell them."""
        return {
            layout.log_segment(record.key, record.attempt): record.log_digest
            for record in itertools.chain(self.records, *self.segment_records.values())
            if isinstance(record, AttemptFinished) and record.log_digest
        }

    def check_logs(self, names: Collection[str], place: str) -> None:
        """Raise StoreDamaged where one of the segments that hold logs is not among those that are there."""
        for name in self._log_digests:
            if name not in names:
                raise StoreDamaged(f"the log {name} of {self.name} is missing from {place}", hint="see: mlp fsck")

    def check_log(self, name: str, digest: str, size: int, place: str) -> None:
        """Check a log by what the records say of it.

        Parameters
        ----------
        name : str
            The segment that holds it; empty for the driver's own.
        digest : str
            The hash of its content.
        size : int
            Its length.
        place : str
            Where it comes from, for the message.

        Raises
        ------
        StoreDamaged
            Where it is not what was written.
        """
        if name:
            is_intact = self._log_digests.get(name, digest) == digest
        elif self.sealed is None or not self.sealed.logs_digest:
            is_intact = True
        else:
            # A longer one is not what was sealed, but holds it.
            is_intact = size > self.sealed.logs_size or digest == self.sealed.logs_digest
        if not is_intact:
            what = f"log {name}" if name else "log"
            raise StoreDamaged(f"the {what} of {self.name} in {place} is damaged", hint="see: mlp fsck")

    def blobs_of(self, segments: Iterable[str]) -> dict[str, int]:
        """Return the blobs that some of the segments refer to: size by digest."""
        return digests_of(itertools.chain.from_iterable(self.segment_records[name] for name in segments))


class Arrival:
    """A run on its way into a store. Its methods may be called from several threads, `finish` after all others.

    Parameters
    ----------
    objects : ObjectStore
        The store where it goes.
    flow, run_id : str
        The run.
    source : str
        Where it comes from, for messages.
    verify : bool
        Whether blobs that are there are verified again, though this host has done so before.
    """

    def __init__(self, objects: ObjectStore, flow: str, run_id: str, source: str, *, verify: bool = False) -> None:
        """Begin; nothing is written."""
        self._objects = objects
        self._flow = flow
        self._run_id = run_id
        self._source = source
        self._key = layout.journal(flow, run_id)
        self._verified = VerifiedFiles.for_store(objects.url)
        self._blobs = Blobs(objects, paranoid=verify, verified=self._verified)
        self._began = time.time()
        self._relied: dict[str, int] = {}
        self._adopted: list[str] = []
        self._old: dict[str, int] = {}
        self._other_keys: list[str] = []

    def relation(self, journal: bytes) -> Relation:
        """Tell how the run that is there already, if any, stands to the one that arrives.

        Raises
        ------
        UsageError
            Where it is another one.
        """
        try:
            there = read_growing(self._objects, self._key)
        except FileNotFoundError:
            return "absent"
        if there == journal:
            return "same"
        if journal.startswith(there):
            return "behind"
        if there.startswith(journal):
            return "ahead"
        began = there.partition(b"\n")[0] == journal.partition(b"\n")[0]
        what = "went on in both since it was copied" if began else "is another run there"
        raise UsageError(
            f"{self._flow}/{self._run_id} of {self._source} cannot be put into {self._objects.url}: it {what}",
            hint=f"remove one of the two: mlp rm {self._flow}/{self._run_id}",
        )

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep others from writing to the run, and from clearing away what it needs, where the store has locks.

        What a deletion has left that was not carried to its end goes first, since the next clearing would carry it to
        its end.

        Raises
        ------
        UsageError
            Where somebody else writes to the run.
        """
        lock = self._objects.lock(layout.lock(self._flow, self._run_id))
        with lock or contextlib.nullcontext(enter_result=True) as is_free:
            if not is_free:
                raise UsageError(
                    f"{self._flow}/{self._run_id} is under way in {self._objects.url}", hint="wait until it has ended"
                )
            if has_object(self._objects, layout.run(self._flow, self._run_id) + REMOVED):
                finish_removal(self._objects, self._flow, self._run_id)
            yield

    def needs_blob(self, digest: str, size: int) -> bool:
        """Tell whether a blob is yet to be brought: none is there, it is damaged, or too old to be relied on.

        Raises
        ------
        StoreDamaged
            Where the digest is none.
        """
        key = layout.blob(digest)
        path = self._objects.local_path(key)
        try:
            info = self._objects.info(key)
            if info.size != size:
                return True
            if path is not None:
                self._blobs.verified_path(digest, size)
        except (FileNotFoundError, StoreDamaged):
            return True
        age = time.time() - info.modified_at
        if age > _RELIABLE_SECONDS and path is None:
            return True
        if age > _NEW_SECONDS:
            self._old[digest] = size
        self._relied[digest] = size
        return False

    def has_bundle(self, key: str) -> bool:
        """Tell whether an intact bundle is there."""
        return self._bundle(key) is not None

    def add_bundle(self, key: str, content: bytes) -> bool:
        """Take in a bundle whose files are durable, unless one is there; tell whether that was done.

        One that is so old that it may be cleared away before the run is there that relies on it is made new.
        """
        there = self._bundle(key)
        if there is None:
            self._objects.replace(key, content, sync=True)
        elif time.time() - self._objects.info(key).modified_at > _NEW_SECONDS:
            self._objects.replace(key, there, sync=True)
        return there is None

    def _bundle(self, key: str) -> bytes | None:
        """Return a bundle that is there; None where there is none that is intact."""
        try:
            content = self._objects.read(key)
            checked_bundle(key, content, self._objects.url)
        except (FileNotFoundError, StoreDamaged):
            return None
        return content

    def new_file(self) -> Path:
        """Return a path for a file that is to be taken in."""
        return self._objects.staging() / secrets.token_hex(8)

    def add_blob(self, staged: Path, digest: str, size: int) -> None:
        """Take in a file whose content was found to have a digest and a size."""
        key = layout.blob(digest)
        self._adopt(staged, key)
        self._relied[digest] = size
        self._adopted.append(key)

    def segment_names(self) -> set[str]:
        """Return the names of the segments that are there."""
        return set(self._objects.children(layout.segments(self._flow, self._run_id)))

    def sync_blobs(self) -> None:
        """Make the blobs durable; nothing that names them may be added before."""
        renewed = [path for digest in self._old if (path := self._objects.local_path(layout.blob(digest))) is not None]
        for path in renewed:
            with translated(str(path), absence_passes=False):
                os.utime(path)
        try:
            self._objects.sync([layout.blob(digest) for digest in sorted(self._relied)])
        except StoreError:
            # The system may report a failure only once: what was added has to be written anew.
            for key in self._adopted:
                with contextlib.suppress(StoreError):
                    self._objects.delete(key)
            raise
        adopted = [path for key in self._adopted if (path := self._objects.local_path(key)) is not None]
        for path in (*renewed, *adopted):
            self._verified.add(path)

    @property
    def doubtful(self) -> dict[str, int]:
        """The blobs to look at again when the run is there, as nothing has kept them from going: size by digest."""
        if self._objects.local_path(layout.FORMAT) is not None:
            return {}
        return dict(self._relied if time.time() - self._began > _NEW_SECONDS else self._old)

    def add_segment(self, name: str, content: bytes) -> None:
        """Take in a segment that holds a record; one that is there stays."""
        key = layout.segment(self._flow, self._run_id, name)
        self._objects.create(key, content, sync=False)
        self._other_keys.append(key)

    def add_log(self, key: str, staged: Path) -> None:
        """Take in a log: that of the driver in the place of a shorter one, or a segment that holds one."""
        self._adopt(staged, key)
        self._other_keys.append(key)

    def _adopt(self, staged: Path, key: str) -> None:
        """Move a file in, or remove it."""
        try:
            self._objects.adopt(staged, key, sync=False)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise

    def finish(self, copied: Copied, relation: Relation) -> None:
        """Make all else durable, and then the run visible, or as long as it is where it comes from; to be `held`.

        Parameters
        ----------
        copied : Copied
            The run.
        relation : str
            What `relation` told.

        Raises
        ------
        UsageError
            Where somebody has put another run there in the meantime.
        """
        self._objects.sync(self._other_keys)
        journal = copied.journal
        if relation == "absent" and not self._objects.create(self._key, journal, sync=True):
            relation = self.relation(journal)
        if relation == "behind":
            self._objects.replace(self._key, journal, sync=True)
        began, ended = copied.records[0], copied.records[-1]
        if relation == "ahead" or not isinstance(began, RunBegan) or not isinstance(ended, RunEnded):
            return
        key = layout.seal(self._flow, self._run_id)
        if has_object(self._objects, key):
            return
        if copied.sealed is not None:
            self._objects.create(key, encode_line(copied.sealed, 0, key), sync=False)
        else:
            seal_run(self._objects, began, ended, None)


def has_object(objects: ObjectStore, key: str) -> bool:
    """Tell whether there is an object of a key."""
    try:
        objects.info(key)
    except FileNotFoundError:
        return False
    return True


def _place(segment: bytes) -> str:
    """Return the key that a segment says it belongs under; empty where it says none, as earlier ones."""
    return str(json.loads(segment[_CHECKSUM_BYTES:]).get("at", ""))


def run_name(text: str) -> tuple[str, str]:
    """Return flow and id of a run that was given as ``Flow/20260131-094500-123456``.

    Raises
    ------
    NameRefused
        Where a part is refused.
    NotFound
        Where it is no run.
    """
    from mlp_core.names import Pathspec

    spec = Pathspec.parse(text)
    if spec.run_id is None or spec.step is not None:
        raise NotFound(f"{spec} is no run", hint="one looks like Flow/20260131-094500-123456")
    return spec.flow, spec.run_id
