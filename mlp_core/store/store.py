"""The store as the rest of the core sees it: open it, create a run, write to it, read runs back."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Final

import attrs

from mlp_core import names
from mlp_core.errors import (
    NameRefused,
    NotFound,
    RunLocked,
    StoreDamaged,
    StoreError,
    StoreFenced,
    StoreFormatError,
    StoreUnavailable,
    StoreUntrusted,
)
from mlp_core.store import layout
from mlp_core.store.blobs import DEFAULT_INLINE_BYTES, Blobs
from mlp_core.store.cache import DEFAULT_CACHE_BYTES
from mlp_core.store.content import sha256
from mlp_core.store.faults import GuardedObjects
from mlp_core.store.growing import GrowingReader, GrowingWriter, can_append, open_growing
from mlp_core.store.journal import JournalWriter, parse_journal, read_journal
from mlp_core.store.lease import Lease, Pulse
from mlp_core.store.logs import DEFAULT_LIMIT, FLUSH_BYTES, PART_BYTES, LogChunk, LogWriter, Stream, encode_frame
from mlp_core.store.records import Record, RunBegan, RunEnded, encode_line
from mlp_core.store.seal import has_lost_its_journal, read_seal, seal_run
from mlp_core.store.segments import read_segments, segment_names
from mlp_core.store.signing import Signatures
from mlp_core.store.state import RunState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlp_core.store.index import RunQuery, RunSummary
    from mlp_core.store.signing import Signer
    from mlp_hookspecs.handles import AppendFile, ObjectStore

FORMAT_VERSION: Final = 2
"""The version of the layout and of the records' meaning; a store of a higher one is refused.

1: runs are append files, and a driver is known by its lock alone.
2: runs may be in parts, drivers have leases and can be fenced, runs that have ended have seals. What was written before
   needs no change; a store is marked as of this version before this version writes to it, since the one before would
   not notice that a run was taken over.
"""

MAX_JOURNAL: Final = 2**30
"""How long a journal may be: a hundred times as long as that of 10,000 tasks. What is longer is not read."""

_MICROSECOND: Final = 1e-6
_RUN_ID_TRIES: Final = 10_000
_FENCE_TRIES: Final = 10


class Store:
    """A store that is open.

    Parameters
    ----------
    objects : ObjectStore
        Its objects; use `open`.
    signer : Signer or None
        What signs records, and tells whether those that are read are signed.
    """

    def __init__(self, objects: ObjectStore, signer: Signer | None = None) -> None:
        """Wrap objects that were found to be a store."""
        self.objects = objects
        self.signer = signer

    @classmethod
    def open(cls, objects: ObjectStore, *, create: bool, signer: Signer | None = None) -> Store:
        """Open a store.

        Parameters
        ----------
        objects : ObjectStore
            The objects, as the store's plugin opened them.
        create : bool
            Whether to make the store where there is none, and to mark an older one as of this version.
        signer : Signer or None
            As in the class.

        Returns
        -------
        Store
            The store; its failures are StoreErrors.

        Raises
        ------
        StoreFormatError
            Where a newer version made it.
        StoreUnavailable
            Where there is none, or it cannot be read or, with `create`, written.
        StoreDamaged
            Where it does not say which version made it.
        """
        guarded = GuardedObjects(objects)
        try:
            content = guarded.read(layout.FORMAT)
        except FileNotFoundError:
            if not create:
                raise StoreUnavailable(
                    f"there is no store at {guarded.url}", hint="a run makes one; the setting store names another place"
                ) from None
            guarded.create(layout.GITIGNORE, b"*\n", sync=False)
            guarded.create(layout.FORMAT, _format(), sync=True)
            content = guarded.read(layout.FORMAT)
        if _checked_format(content, guarded.url) < FORMAT_VERSION and create:
            guarded.replace(layout.FORMAT, _format(), sync=True)
        return cls(guarded, signer)

    @property
    def url(self) -> str:
        """The URL from which the store can be opened again."""
        return self.objects.url

    def blobs(
        self,
        *,
        inline_bytes: int = DEFAULT_INLINE_BYTES,
        paranoid: bool = False,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> Blobs:
        """Return access to artifacts' bytes; the arguments are those of `Blobs`."""
        return Blobs(self.objects, inline_bytes=inline_bytes, paranoid=paranoid, cache_bytes=cache_bytes)

    def create_run(self, make: Callable[[str], RunBegan], now: float, *, log_limit: int = DEFAULT_LIMIT) -> RunWriter:
        """Create a run, durably, and take it over.

        Parameters
        ----------
        make : callable
            Returns the first record for a run id.
        now : float
            The moment that the id tells, in seconds since the epoch; the next free microsecond is taken.
        log_limit : int
            Bytes kept of each attempt's output.

        Returns
        -------
        RunWriter
            The run's one writer; it holds the run's lock until it is closed.
        """
        for attempt in range(_RUN_ID_TRIES):
            run_id = names.new_run_id(now + attempt * _MICROSECOND)
            began = make(run_id)
            flow = began.run.flow
            with ExitStack() as stack:
                # The lock comes first: a reader that finds the journal then finds its driver alive.
                lock = self.objects.lock(layout.lock(flow, run_id)) if began.has_driver else None
                if not stack.enter_context(lock or nullcontext(enter_result=True)):
                    continue
                key = layout.journal(flow, run_id)
                first = key if can_append(self.objects) else layout.part(key, 0, 0)
                sign = _signing(self.signer, key)
                line = encode_line(began, 0)
                if self.objects.create(first, line if sign is None else sign(line), sync=True):
                    return RunWriter(self.objects, began, stack.pop_all(), log_limit, sign)
        raise StoreError(f"no free run id for {_RUN_ID_TRIES} microseconds", hint="check the clock")

    def flows(self) -> Sequence[str]:
        """Return the names of the flows that have runs, sorted."""
        return [name for name in self.objects.children(layout.FLOWS) if _is_accepted(layout.flow, name)]

    def run_ids(self, flow: str) -> Sequence[str]:
        """Return the ids of a flow's runs, newest first."""
        found = self.objects.children(layout.flow(flow))
        return [run_id for run_id in reversed(found) if _is_accepted(names.run_id, run_id)]

    def runs(self, flow: str | None = None, query: RunQuery | None = None) -> list[RunSummary]:
        """Return runs, newest first, without reading them all.

        Parameters
        ----------
        flow : str or None
            The flow; None for all.
        query : RunQuery or None
            Which of them; its own flow counts only where none is given.
        """
        from mlp_core.store.index import RunIndex, RunQuery

        asked = query or RunQuery()
        if flow is not None:
            asked = attrs.evolve(asked, flow=names.identifier(flow, "flow"))
        return RunIndex.for_store(self.objects).select(asked)

    def run(self, flow: str, run_id: str) -> RunState:
        """Return a run as it stands.

        Raises
        ------
        NotFound
            Where there is none.
        StoreDamaged
            Where its records are not what was written.
        """
        return self.follow(flow, run_id).state

    def follow(self, flow: str, run_id: str) -> RunReader:
        """Return a reader that can take up what is written later; raises as `run`."""
        return RunReader(self.objects, flow, run_id, self.signer)

    def require_signed(self, state: RunState) -> None:
        """Return where a run may be trusted with what it refers to.

        Raises
        ------
        StoreUntrusted
            Where records are to be signed, and some of the run's are not, or not with the key.
        """
        if not state.is_signed:
            raise StoreUntrusted(
                f"the run {state.context.flow}/{state.context.run_id} in {self.url} is not signed with the key of"
                " storage.signing_key, so nothing that may run code is loaded from it",
                hint="whoever wrote it had no key, or another one; where you trust them, read it without the setting",
            )

    def fence(self, flow: str, run_id: str) -> RunState:
        """Put an end to a run whose driver is gone, so that it can commit nothing even where it comes back.

        Parameters
        ----------
        flow, run_id : str
            The run.

        Returns
        -------
        RunState
            The run, ended.

        Raises
        ------
        RunLocked
            Where its driver is there.
        NotFound, StoreDamaged
            As `run`.
        """
        reader = self.follow(flow, run_id)
        state = reader.state
        for _ in range(_FENCE_TRIES):
            if state.ended is not None:
                return state
            if state.status != "lost":
                break
            ended = RunEnded("lost", f"its driver, process {state.began.pid} on {state.began.host}, was gone")
            with suppress(StoreFenced):  # somebody has written meanwhile
                self._end(reader, attrs.evolve(ended, time=time.time(), tasks=_finished_tasks(state)))
            reader.refresh()
        raise RunLocked(
            f"the run {flow}/{run_id} is under way: its driver is process {state.began.pid} on {state.began.host}",
            hint="wait until it has ended, or end that process",
        )

    def _end(self, reader: RunReader, ended: RunEnded) -> None:
        """Write a run's end at the very place after what was read; nothing where somebody else has written.

        Whoever writes after this looked is found by the store: StoreFenced.
        """
        state = reader.state
        key = layout.journal(state.context.flow, state.context.run_id)
        file = open_growing(self.objects, key, buffers=False)
        try:
            said = read_journal(self.objects, key)
            if said.expected != reader.expected:
                return
            sign = _signing(self.signer, key)
            JournalWriter(file, said.expected, torn=said.torn, sign=sign).write([ended], sync=True)
            seal_run(self.objects, state.began, ended, file)
        finally:
            file.close()

    def add_segment(self, flow: str, run_id: str, name: str, record: Record) -> bool:
        """Add a record to a run from outside its driver, durably; return whether the name was free.

        Parameters
        ----------
        flow, run_id : str
            The run.
        name : str
            The segment's name: `layout.task_segment` for a task, anything unique for others.
        record : Record
            The record.
        """
        if not self._exists(flow, run_id):
            raise _no_run(flow, run_id, self.url)
        key = layout.segment(flow, run_id, name)
        line, sign = encode_line(record, 0, key), _signing(self.signer, key)
        return self.objects.create(key, line if sign is None else sign(line), sync=True)

    def add_log_segment(self, flow: str, run_id: str, name: str, chunks: Sequence[LogChunk]) -> str:
        """Add the output of an attempt that no driver of ours started; return the hash of what lies there now.

        That is another's where the name was not free.
        """
        key, content = layout.segment(flow, run_id, name), b"".join(encode_frame(chunk) for chunk in chunks)
        return sha256(content if self.objects.create(key, content, sync=True) else self.objects.read(key))

    def _exists(self, flow: str, run_id: str) -> bool:
        """Tell whether there is such a run."""
        for key in (layout.journal(flow, run_id), layout.lease(flow, run_id)):
            with suppress(FileNotFoundError):
                self.objects.info(key)
                return True
        return False

    def close(self) -> None:
        """Release the store."""
        self.objects.close()


class RunWriter:
    """The one writer of a run.

    Parameters
    ----------
    objects : ObjectStore
        The store.
    began : RunBegan
        The first record, which is written.
    resources : ExitStack
        What to release in the end: the run's lock.
    log_limit : int
        Bytes kept of each attempt's output.
    sign : callable or None
        Signs the journal's lines.

    Attributes
    ----------
    began : RunBegan
        The first record.
    """

    def __init__(
        self,
        objects: ObjectStore,
        began: RunBegan,
        resources: ExitStack,
        log_limit: int,
        sign: Callable[[bytes], bytes] | None = None,
    ) -> None:
        """Take over a run that was just created."""
        self._sign = sign
        self.began = began
        self._objects = objects
        self._log_limit = log_limit
        self._key = layout.journal(began.run.flow, began.run.run_id)
        self._resources = resources
        self._file = open_growing(objects, self._key, buffers=True)
        self._journal = JournalWriter(self._file, 1, sign=sign)
        self._logs: LogWriter | None = None
        self._log_file: AppendFile | None = None
        self._failed = False
        self._fenced: StoreFenced | None = None
        self._is_sealed = False
        self._lease = Lease(objects, began.run.flow, began.run.run_id, began.lease_seconds)
        if began.has_driver:
            self._lease.start()

    @property
    def pause(self) -> float:
        """After how many seconds at the latest `check` is to be called again."""
        return self._lease.pause

    def check(self) -> None:
        """Return where this process still owns the run; StoreFenced where it does not."""
        if self._fenced is not None:
            raise self._fenced
        try:
            self._lease.check()
        except StoreFenced as error:
            self._fenced = error
            raise

    def write(self, records: Sequence[Record], *, sync: bool = True) -> None:
        """Append records to the journal; with `sync` they and all before them survive a power cut after this.

        The end of the run is written only after what was printed is durable.

        Raises
        ------
        StoreFenced
            Where another process has taken the run over, or this one was stopped for too long; from then on always.
        StoreError
            Where they could not all be written; nothing of them may be acknowledged. Where there was no room, a later
            call may succeed.
        """
        self.check()
        if self._failed:
            self._take_up()
        ended = next((record for record in records if isinstance(record, RunEnded)), None)
        if self._logs is not None and ended is not None:
            self._logs.sync()
        self._failed = True
        try:
            self._journal.write(records, sync=sync)
        except StoreFenced as error:
            self._fenced = error
            raise
        self._failed = False
        if ended is not None:
            self._is_sealed = self._seal(ended)

    def _take_up(self) -> None:
        """Go on with the journal as it is after a write that failed."""
        if isinstance(self._file, GrowingWriter):
            self._file.close()
            self._file = open_growing(self._objects, self._key, buffers=True)
        said = read_journal(self._objects, self._key)
        if any(isinstance(record, RunEnded) for _, record in said.records):
            self._fenced = StoreFenced(
                f"the run {self.began.run.flow}/{self.began.run.run_id} was ended by another process",
                hint="it goes on where it was resumed; see: mlp list",
            )
            raise self._fenced
        self._journal = JournalWriter(self._file, said.expected, torn=said.torn, sign=self._sign)

    def _seal(self, ended: RunEnded) -> bool:
        """Make the run cheap to read, and tell whether all of that could be done: readers can do without."""
        logs = self._log_file
        is_sealed = logs.seal() if isinstance(logs, GrowingWriter) else True
        return seal_run(self._objects, self.began, ended, self._file) and is_sealed

    def log(self, attempt_id: str, stream: Stream, data: bytes, time: float) -> None:
        """Keep what an attempt printed; it is written out by size, or by `flush`."""
        if self._logs is None:
            key = layout.logs(self.began.run.flow, self.began.run.run_id)
            file = self._log_file = open_growing(self._objects, key, buffers=False)
            flush_bytes = PART_BYTES if isinstance(file, GrowingWriter) else FLUSH_BYTES
            self._logs = LogWriter(file, self._log_limit, flush_bytes)
        self._logs.write(attempt_id, stream, data, time)

    def flush(self) -> None:
        """Let readers see what was printed and written so far; to be called every second while anything was."""
        if self._logs is not None:
            self._logs.flush()
        if isinstance(self._file, GrowingWriter) and not self._failed:
            self.check()
            self._failed = True
            self._file.flush()
            self._failed = False

    def close(self) -> None:
        """Make the logs durable and let go of the run."""
        with self._resources as stack:
            stack.callback(self._file.close)
            if not self.began.has_driver and isinstance(self._file, GrowingWriter):
                self._file.seal()  # by which readers find the run
            # By its lease readers find a run whose journal is in parts.
            stack.callback(self._lease.close, remove=self._is_sealed)
            if self._logs is not None:
                stack.callback(self._logs.close)
                self._logs.sync()


def _finished_tasks(state: RunState) -> int:
    """Return how many tasks of a run have a final outcome."""
    return sum(task.outcome is not None for task in state.tasks.values())


class RunReader:
    """Reads a run, and what is added to it later.

    Parameters
    ----------
    objects : ObjectStore
        The store.
    flow, run_id : str
        The run.
    signer : Signer or None
        What tells whether records are signed.

    Attributes
    ----------
    state : RunState
        The run as it stood at the last refresh.
    expected : int
        The number of the journal's next record.
    """

    def __init__(self, objects: ObjectStore, flow: str, run_id: str, signer: Signer | None = None) -> None:
        """Read the run; NotFound where there is none."""
        self._objects = objects
        self._signatures = Signatures(signer)
        self._flow = flow
        self._run_id = run_id
        self._seen: set[str] = set()
        self._content = GrowingReader(objects, layout.journal(flow, run_id))
        self._offset = self.expected = 0
        # Before the journal: a driver that ends in between has written its last record.
        pulse = Pulse.take(objects, flow, run_id)
        records = self._new_records()
        began = records[0] if records else None
        if not isinstance(began, RunBegan) or (began.run.flow, began.run.run_id) != (flow, run_id):
            raise StoreDamaged(
                f"the journal of {flow}/{run_id} in {objects.url} does not begin with the run's beginning"
            )
        self.state = RunState(began)
        self._update(pulse, [*records[1:], *self._new_segments()])
        if self.state.ended is None and read_seal(objects, flow, run_id) is not None:
            self.refresh()  # it may have ended in between
            if self.state.ended is None:
                raise StoreDamaged(
                    f"the end of the journal of {flow}/{run_id} in {objects.url} is missing",
                    hint="what is left is intact; to see what is wrong: mlp fsck",
                )

    def refresh(self) -> Sequence[Record]:
        """Take up what was added since, and return it."""
        pulse = Pulse.take(self._objects, self._flow, self._run_id)
        records = [*self._new_records(), *self._new_segments()]
        self._update(pulse, records)
        return records

    def _new_records(self) -> list[Record]:
        """Return what the journal holds beyond what was read before."""
        key = layout.journal(self._flow, self._run_id)
        if self._content.size() > MAX_JOURNAL:
            raise StoreDamaged(f"the journal {key} in {self._objects.url} has more than {MAX_JOURNAL:,} bytes")
        try:
            content = self._content.read(self._offset) if self._content.exists else None
        except FileNotFoundError:  # removed since
            content = None
        if content is None:
            if has_lost_its_journal(self._objects, self._flow, self._run_id):
                raise StoreDamaged(
                    f"the journal {key} is missing from {self._objects.url}",
                    hint="restore the file from a backup; to see what is left: mlp fsck",
                )
            raise _no_run(self._flow, self._run_id, self._objects.url)
        check = self._signatures.watch(key)
        read = parse_journal(content, f"{key} in {self._objects.url}", self._offset, self.expected, check=check)
        self._offset, self.expected = read.offset, read.expected
        return [record for _, record in read.records]

    def _update(self, pulse: Pulse, records: Sequence[Record]) -> None:
        """Fold records in."""
        for record in records:
            self.state.apply(record)
        self.state.is_signed = self._signatures.are_good
        self.state.is_alive = pulse.is_alive(self.state.began.lease_seconds)

    def _new_segments(self) -> list[Record]:
        """Return the records of segments that were not seen before."""
        new = [name for name in segment_names(self._objects, self._flow, self._run_id) if name not in self._seen]
        self._seen.update(new)
        return read_segments(self._objects, self._flow, self._run_id, new, signatures=self._signatures)


def _signing(signer: Signer | None, key: str) -> Callable[[bytes], bytes] | None:
    """Return what signs the lines of an object; None where nothing does."""
    return None if signer is None else lambda line: signer.sign(line, key)


def _format() -> bytes:
    """Return what marks a store as one of this version."""
    return json.dumps({"format": FORMAT_VERSION}).encode() + b"\n"


def _checked_format(content: bytes, url: str) -> int:
    """Return a store's version; errors where it is damaged or not known."""
    try:
        data: Any = json.loads(content)
        version = data["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        version = None
    if not isinstance(version, str) and (type(version) is not int or version < 1):
        raise StoreDamaged(
            f"{layout.FORMAT} in {url} is damaged, so the store's version is unknown",
            hint="restore the file from a backup, or choose another place by the setting store",
        )
    if isinstance(version, str) or version > FORMAT_VERSION:
        raise StoreFormatError(
            f"the store at {url} has format {version!r}, and this version of mlp-core knows format {FORMAT_VERSION}",
            hint="upgrade mlp-core, or choose another place by the setting store",
        )
    return version


def _is_accepted(check: Callable[[str], str], name: str) -> bool:
    """Tell whether a name found in the store passes the grammar; others are not ours."""
    try:
        check(name)
    except NameRefused:
        return False
    return True


def _no_run(flow: str, run_id: str, url: str) -> NotFound:
    """Return the error of a run that is not there."""
    return NotFound(f"there is no run {flow}/{run_id} in {url}", hint="list the runs with: mlp list")
