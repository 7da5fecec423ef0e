"""The store as the rest of the core sees it: open it, create a run, write to it, read runs back."""

from __future__ import annotations

import json
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any, Final

import attrs

from mlp_core import names
from mlp_core.errors import NameRefused, NotFound, StoreDamaged, StoreError, StoreFormatError, StoreUnavailable
from mlp_core.store import layout
from mlp_core.store.blobs import DEFAULT_INLINE_BYTES, Blobs
from mlp_core.store.faults import GuardedObjects
from mlp_core.store.journal import JournalWriter, read_journal
from mlp_core.store.logs import DEFAULT_LIMIT, LogChunk, LogWriter, Stream, encode_frame
from mlp_core.store.records import Record, RunBegan, RunEnded, encode_line
from mlp_core.store.segments import read_segments, segment_names
from mlp_core.store.state import RunState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlp_core.store.index import RunQuery, RunSummary
    from mlp_hookspecs.handles import ObjectStore

FORMAT_VERSION: Final = 1
"""The version of the layout and of the records' meaning; a store of a higher one is refused."""

_MICROSECOND: Final = 1e-6
_RUN_ID_TRIES: Final = 10_000


class Store:
    """A store that is open.

    Parameters
    ----------
    objects : ObjectStore
        Its objects; use `open`.
    """

    def __init__(self, objects: ObjectStore) -> None:
        """Wrap objects that were found to be a store."""
        self.objects = objects

    @classmethod
    def open(cls, objects: ObjectStore, *, create: bool) -> Store:
        """Open a store.

        Parameters
        ----------
        objects : ObjectStore
            The objects, as the store's plugin opened them.
        create : bool
            Whether to make the store where there is none.

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
            guarded.create(layout.FORMAT, json.dumps({"format": FORMAT_VERSION}).encode() + b"\n", sync=True)
            content = guarded.read(layout.FORMAT)
        _check_format(content, guarded.url)
        return cls(guarded)

    @property
    def url(self) -> str:
        """The URL from which the store can be opened again."""
        return self.objects.url

    def blobs(self, *, inline_bytes: int = DEFAULT_INLINE_BYTES, paranoid: bool = False) -> Blobs:
        """Return access to artifacts' bytes."""
        return Blobs(self.objects, inline_bytes=inline_bytes, paranoid=paranoid)

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
                if self.objects.create(layout.journal(flow, run_id), encode_line(began, 0), sync=True):
                    return RunWriter(self.objects, began, stack.pop_all(), log_limit)
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
        return RunReader(self.objects, flow, run_id)

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
        return self.objects.create(layout.segment(flow, run_id, name), encode_line(record, 0), sync=True)

    def add_log_segment(self, flow: str, run_id: str, name: str, chunks: Sequence[LogChunk]) -> bool:
        """Add the output of an attempt that no driver of ours started; return whether the name was free."""
        content = b"".join(encode_frame(chunk) for chunk in chunks)
        return self.objects.create(layout.segment(flow, run_id, name), content, sync=True)

    def _exists(self, flow: str, run_id: str) -> bool:
        """Tell whether there is such a run."""
        try:
            self.objects.info(layout.journal(flow, run_id))
        except FileNotFoundError:
            return False
        return True

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

    Attributes
    ----------
    began : RunBegan
        The first record.
    """

    def __init__(self, objects: ObjectStore, began: RunBegan, resources: ExitStack, log_limit: int) -> None:
        """Take over a run that was just created."""
        self.began = began
        self._objects = objects
        self._log_limit = log_limit
        self._key = layout.journal(began.run.flow, began.run.run_id)
        self._resources = resources
        file = objects.open_append(self._key)
        if file is None:
            raise StoreUnavailable(f"{objects.url} cannot hold runs: it has no objects that grow")
        self._file = file
        self._journal = JournalWriter(file, 1)
        self._logs: LogWriter | None = None
        self._failed = False

    def write(self, records: Sequence[Record], *, sync: bool = True) -> None:
        """Append records to the journal; with `sync` they and all before them survive a power cut after this.

        The end of the run is written only after what was printed is durable.

        Raises
        ------
        StoreError
            Where they could not all be written; nothing of them may be acknowledged. Where there was no room, a later
            call may succeed.
        """
        if self._failed:
            said = read_journal(self._objects, self._key)
            self._journal = JournalWriter(self._file, said.expected, torn=said.torn)
        if self._logs is not None and any(isinstance(record, RunEnded) for record in records):
            self._logs.sync()
        self._failed = True
        self._journal.write(records, sync=sync)
        self._failed = False

    def log(self, attempt_id: str, stream: Stream, data: bytes, time: float) -> None:
        """Keep what an attempt printed; it is written out by size, or by `flush_logs`."""
        if self._logs is None:
            file = self._objects.open_append(layout.logs(self.began.run.flow, self.began.run.run_id))
            if file is None:
                raise StoreUnavailable(f"{self._objects.url} cannot hold logs: it has no objects that grow")
            self._logs = LogWriter(file, self._log_limit)
        self._logs.write(attempt_id, stream, data, time)

    def flush_logs(self) -> None:
        """Let readers see what was printed so far; to be called every second while a run prints."""
        if self._logs is not None:
            self._logs.flush()

    def close(self) -> None:
        """Make the logs durable and let go of the run."""
        with self._resources as stack:
            stack.callback(self._file.close)
            if self._logs is not None:
                stack.callback(self._logs.close)
                self._logs.sync()


class RunReader:
    """Reads a run, and what is added to it later.

    Parameters
    ----------
    objects : ObjectStore
        The store.
    flow, run_id : str
        The run.

    Attributes
    ----------
    state : RunState
        The run as it stood at the last refresh.
    """

    def __init__(self, objects: ObjectStore, flow: str, run_id: str) -> None:
        """Read the run; NotFound where there is none."""
        self._objects = objects
        self._flow = flow
        self._run_id = run_id
        self._seen: set[str] = set()
        # Before the journal: a driver that ends in between has written its last record.
        is_alive = self._is_alive()
        try:
            read = read_journal(objects, layout.journal(flow, run_id))
        except FileNotFoundError:
            raise _no_run(flow, run_id, objects.url) from None
        records = [record for _, record in read.records]
        if not records or not isinstance(records[0], RunBegan):
            raise StoreDamaged(
                f"the journal of {flow}/{run_id} in {objects.url} does not begin with the run's beginning"
            )
        self.state = RunState(records[0], is_alive=is_alive)
        self._offset, self._expected = read.offset, read.expected
        self._apply([*records[1:], *self._new_segments()])

    def refresh(self) -> Sequence[Record]:
        """Take up what was added since, and return it."""
        self.state.is_alive = self._is_alive()
        read = read_journal(self._objects, layout.journal(self._flow, self._run_id), self._offset, self._expected)
        self._offset, self._expected = read.offset, read.expected
        records = [*(record for _, record in read.records), *self._new_segments()]
        self._apply(records)
        return records

    def _is_alive(self) -> bool:
        """Tell whether the run's driver is there."""
        return self._objects.is_locked(layout.lock(self._flow, self._run_id))

    def _apply(self, records: Sequence[Record]) -> None:
        """Fold records in."""
        for record in records:
            self.state.apply(record)

    def _new_segments(self) -> list[Record]:
        """Return the records of segments that were not seen before."""
        new = [name for name in segment_names(self._objects, self._flow, self._run_id) if name not in self._seen]
        self._seen.update(new)
        return read_segments(self._objects, self._flow, self._run_id, new)


def _check_format(content: bytes, url: str) -> None:
    """Refuse a store that this version does not know."""
    try:
        data: Any = json.loads(content)
        version = data["format"]
    except (ValueError, KeyError, TypeError):
        version = None
    if not isinstance(version, str) and (type(version) is not int or version < 1):
        raise StoreDamaged(
            f"{layout.FORMAT} in {url} is damaged, so the store's version is unknown",
            hint="restore the file from a backup, or choose another place by the setting store",
        )
    if version != FORMAT_VERSION:
        raise StoreFormatError(
            f"the store at {url} has format {version!r}, and this version of mlp-core knows format {FORMAT_VERSION}",
            hint="upgrade mlp-core, or choose another place by the setting store",
        )


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
