"""Which runs there are, without reading them all: a cache in SQLite that readers derive from the journals.

It belongs to one user on one host, lies outside the store and may be deleted at any time. Nobody who writes a run
touches it. A refresh reads the first and last record of those journals that are new or have grown. Where the store has
no local files it lists all objects of a flow's runs instead of looking at each run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import attrs

from mlp_core import names
from mlp_core.errors import NameRefused, StoreDamaged
from mlp_core.store import layout
from mlp_core.store.growing import GrowingReader
from mlp_core.store.lease import Pulse
from mlp_core.store.records import Record, RunBegan, RunEnded, TagsChanged, decode_line
from mlp_core.store.seal import has_lost_its_journal, read_seal
from mlp_core.store.segments import read_segments
from mlp_core.store.state import RunStatus, changed_tags
from mlp_core.store.verified import cache_folder, make_private
from mlp_hookspecs.types import RunContext

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from mlp_hookspecs.handles import ObjectInfo, ObjectStore

SummaryStatus: TypeAlias = RunStatus | Literal["damaged"]

_VERSION: Final = 2
_HEAD_BYTES: Final = 64 * 1024
_MAX_HEAD_BYTES: Final = 256 * 2**20
"""How long a first record may be; it may hold a flow's class and large parameters, but no file without an end."""
_TAIL_BYTES: Final = 16 * 1024
_LOCK_SECONDS: Final = 2.0
_READERS: Final = 16

_TABLES: Final = """
CREATE TABLE runs (
  flow TEXT, run_id TEXT, status TEXT, username TEXT, started_at REAL, finished_at REAL, message TEXT, tasks INTEGER,
  origin_run_id TEXT, tags TEXT, has_driver INTEGER, lease_seconds REAL, size INTEGER, segments INTEGER,
  renewed_at REAL,
  PRIMARY KEY (flow, run_id)
) WITHOUT ROWID;
CREATE TABLE tags (flow TEXT, run_id TEXT, tag TEXT, PRIMARY KEY (tag, flow, run_id)) WITHOUT ROWID;
CREATE INDEX newest ON runs (run_id DESC, flow);
"""

_SELECT: Final = """
SELECT flow, run_id, status, username, started_at, finished_at, message, tasks, origin_run_id, tags FROM runs AS r
WHERE (:flow IS NULL OR flow = :flow)
  AND (:status IS NULL OR status IN (SELECT value FROM json_each(:status)))
  AND (:since IS NULL OR started_at >= :since)
  AND (:until IS NULL OR started_at < :until)
  AND NOT EXISTS (
    SELECT value FROM json_each(:tags)
    WHERE NOT EXISTS (SELECT 1 FROM tags AS t WHERE t.tag = value AND t.flow = r.flow AND t.run_id = r.run_id)
  )
ORDER BY run_id DESC, flow LIMIT :limit
"""


@attrs.frozen
class RunSummary:
    """A run in a list.

    Attributes
    ----------
    flow, run_id : str
        Which.
    status : str
        ``running``, ``lost``, ``succeeded``, ``failed``, ``cancelled``, or ``damaged`` where its first record cannot
        be read.
    username : str
        Who started it.
    started_at : float
        Seconds since the epoch.
    finished_at : float or None
        None where it has not ended.
    message : str
        One line on the reason of a failure.
    tasks : int
        How many tasks have a final outcome; 0 until the run has ended.
    origin_run_id : str or None
        The run that it resumes.
    tags : tuple of str
        Its tags.
    """

    flow: str
    run_id: str
    status: SummaryStatus
    username: str = ""
    started_at: float = 0
    finished_at: float | None = None
    message: str = ""
    tasks: int = 0
    origin_run_id: str | None = None
    tags: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class RunQuery:
    """Which runs are asked for; None and empty ask for nothing in particular.

    Attributes
    ----------
    flow : str or None
        Of this flow.
    status : tuple of str
        With one of these.
    tags : tuple of str
        With all of these.
    since, until : float or None
        Started at or after, and before, these moments in seconds since the epoch.
    limit : int or None
        At most so many.
    """

    flow: str | None = None
    status: tuple[SummaryStatus, ...] = ()
    tags: tuple[str, ...] = ()
    since: float | None = None
    until: float | None = None
    limit: int | None = None


class RunIndex:
    """The runs of one store.

    Parameters
    ----------
    objects : ObjectStore
        The store.
    path : Path or None
        The cache's file; None to keep it in memory.
    """

    def __init__(self, objects: ObjectStore, path: Path | None) -> None:
        """Make the index; nothing is touched."""
        self._objects = objects
        self._path = path

    @classmethod
    def for_store(cls, objects: ObjectStore) -> RunIndex:
        """Return the user's index of a store."""
        folder = cache_folder()
        name = hashlib.sha256(objects.url.encode()).hexdigest()[:32]
        return cls(objects, None if folder is None else folder / "index" / f"{name}.sqlite")

    def select(self, query: RunQuery) -> list[RunSummary]:
        """Bring the index up to date and return runs, newest first."""
        import sqlite3

        if self._path is not None:
            for _ in range(2):  # a second time, from nothing, where the first found the file damaged
                try:
                    return self._select(self._path, query)
                except sqlite3.OperationalError:  # locked, read-only, no room: all of them pass, and none is ours
                    break
                except (sqlite3.DatabaseError, _OtherVersion):
                    with contextlib.suppress(OSError):
                        self._path.unlink()
                except OSError:
                    break
        return self._select(None, query)

    def rebuild(self) -> int:
        """Make the index anew, and return of how many runs it tells."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        return len(self.select(RunQuery()))

    def _select(self, path: Path | None, query: RunQuery) -> list[RunSummary]:
        """Refresh and select in one transaction."""
        with contextlib.closing(_connect(path)) as database, database:
            database.execute("BEGIN IMMEDIATE")
            _prepare(database)
            self._refresh(database, query.flow)
            rows = database.execute(
                _SELECT,
                {
                    "flow": query.flow,
                    "status": json.dumps(query.status) if query.status else None,
                    "tags": json.dumps(query.tags),
                    "since": query.since,
                    "until": query.until,
                    "limit": -1 if query.limit is None else query.limit,
                },
            ).fetchall()
        return [RunSummary(*[*row, tuple(json.loads(tags))]) for *row, tags in rows]

    def _refresh(self, database: sqlite3.Connection, flow: str | None) -> None:
        """Take up what is new in one flow, or in all."""
        known = {
            (row[0], row[1]): _Known(*row[2:])
            for row in database.execute(
                "SELECT flow, run_id, status, has_driver, lease_seconds, size, segments, renewed_at"
                " FROM runs WHERE :flow IS NULL OR flow = :flow",
                {"flow": flow},
            )
        }
        changed = []
        for seen in self._runs(flow, known):
            before = known.pop((seen.flow, seen.run_id), None)
            if before is not None and before.tells(seen):
                if before.status != (status := before.status_of(seen)):
                    run = (status, seen.flow, seen.run_id)
                    database.execute("UPDATE runs SET status = ? WHERE flow = ? AND run_id = ?", run)
                continue
            changed.append(seen)
        for seen, found in zip(changed, self._read(changed), strict=True):
            if found is not None:
                _insert(database, *found, seen)
            else:
                known[seen.flow, seen.run_id] = _GONE
        for gone in known:
            database.execute("DELETE FROM runs WHERE flow = ? AND run_id = ?", gone)
            database.execute("DELETE FROM tags WHERE flow = ? AND run_id = ?", gone)

    def _runs(self, flow: str | None, known: Mapping[tuple[str, str], _Known]) -> Iterator[_Seen]:
        """Iterate over the runs in the store; what else lies there is not ours."""
        has_files = self._objects.local_path(layout.FORMAT) is not None
        for name in [flow] if flow is not None else self._objects.children(layout.FLOWS):
            try:
                prefix = layout.flow(name)
            except NameRefused:
                continue
            if not has_files:
                yield from _listed(self._objects, name)
                continue
            for run_id in self._objects.children(prefix):
                with contextlib.suppress(NameRefused):
                    names.run_id(run_id)
                    before = known.get((name, run_id))
                    is_final = before is not None and before.status in _FINAL
                    # Before the journal: a driver that ends in between has written its last record.
                    pulse = _NO_PULSE if is_final else Pulse.take(self._objects, name, run_id)
                    segments = len(self._objects.children(layout.segments(name, run_id)))
                    size = self._size(name, run_id)
                    if size is not None:
                        yield _Seen(name, run_id, pulse, size, segments)

    def _size(self, flow: str, run_id: str) -> int | None:
        """Return how large a run's journal is; None where none was made yet, or the run is being deleted."""
        try:
            return self._objects.info(layout.journal(flow, run_id)).size
        except FileNotFoundError:
            return 0 if has_lost_its_journal(self._objects, flow, run_id) else None

    def _segments(self, seen: _Seen) -> int:
        """Return how many segments a run has by now."""
        return len(self._objects.children(layout.segments(seen.flow, seen.run_id)))

    def _read(self, runs: Sequence[_Seen]) -> Iterator[tuple[RunSummary, _Head | None] | None]:
        """Iterate over what runs amount to, several read at once where each takes its time."""
        if len(runs) < 2 or self._objects.local_path(layout.FORMAT) is not None:  # noqa: PLR2004 # one waits for nobody
            yield from map(self._summary, runs)
            return
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(_READERS, thread_name_prefix="mlp-index") as pool:
            yield from pool.map(self._summary, runs)

    def _summary(self, seen: _Seen) -> tuple[RunSummary, _Head | None] | None:
        """Return what a run's first and last record and its segments say; None where there is no such run."""
        try:
            others = read_segments(self._objects, seen.flow, seen.run_id) if seen.segments else []
            head, last = self._ends(seen)
        except FileNotFoundError:
            if not has_lost_its_journal(self._objects, seen.flow, seen.run_id):
                return None
            return RunSummary(seen.flow, seen.run_id, "damaged"), None
        except StoreDamaged:
            return RunSummary(seen.flow, seen.run_id, "damaged"), None
        ends = [record for record in (last, *others) if isinstance(record, RunEnded)]
        ended = ends[0] if ends else None
        if ended is None and seen.size is not None and read_seal(self._objects, seen.flow, seen.run_id) is not None:
            now = attrs.evolve(seen, size=self._size(seen.flow, seen.run_id), segments=self._segments(seen))
            # Either it has ended in between, or the end of its journal is gone.
            return self._summary(now) if now != seen else (RunSummary(seen.flow, seen.run_id, "damaged"), None)
        is_alive = not head.has_driver or seen.pulse.is_alive(head.lease_seconds)
        summary = RunSummary(
            seen.flow,
            seen.run_id,
            status=ended.status if ended else "running" if is_alive else "lost",
            username=head.run.username,
            started_at=head.began_at,
            finished_at=ended.time if ended else None,
            message=ended.message if ended else "",
            tasks=ended.tasks if ended else 0,
            origin_run_id=head.run.origin_run_id,
            tags=changed_tags(head.run.tags, [record for record in others if isinstance(record, TagsChanged)]),
        )
        return summary, head

    def _ends(self, seen: _Seen) -> tuple[_Head, Record | None]:
        """Return what a run began with, and the last record of its journal."""
        key = layout.journal(seen.flow, seen.run_id)
        sealed = read_seal(self._objects, seen.flow, seen.run_id) if seen.is_sealed else None
        if sealed is not None:
            return _Head(sealed.run, sealed.began_at, sealed.has_driver, 0), sealed.ended
        if seen.size is None:
            began, last = _ends_of(GrowingReader(self._objects, key).read(), key)
        elif seen.size <= _HEAD_BYTES:
            began, last = _ends_of(self._objects.read(key), key)
        else:
            began, last = _first_record(self._objects, key), _last_record(self._objects, key, seen.size)
        if (began.run.flow, began.run.run_id) != (seen.flow, seen.run_id):
            raise StoreDamaged(f"{key} in {self._objects.url} is the journal of another run")
        return _Head(began.run, began.time, began.has_driver, began.lease_seconds), last


@attrs.frozen
class _Head:
    """What a run began with."""

    run: RunContext
    began_at: float
    has_driver: bool
    lease_seconds: float


_FINAL: Final = frozenset({"succeeded", "failed", "cancelled"})
"""How a run ends that nothing changes any more; one that reads ``lost`` may be given its end by who takes it over."""


class _OtherVersion(Exception):  # noqa: N818 # never seen by a caller
    """The cache was made by another version."""


_NO_PULSE: Final = Pulse(is_locked=False, renewed_at=None, taken_at=0)


@attrs.frozen
class _Seen:
    """What can be seen of a run without reading it; the size is None where its journal consists of parts.

    Whether it is sealed is only looked at where reading the seal saves reading the journal.
    """

    flow: str
    run_id: str
    pulse: Pulse
    size: int | None
    segments: int
    is_sealed: bool = False


@attrs.frozen
class _Known:
    """What is known of a run from before, and decides whether it has to be read again."""

    status: str
    has_driver: bool
    lease_seconds: float
    size: int | None
    segments: int
    renewed_at: float | None

    def tells(self, seen: _Seen) -> bool:
        """Tell whether a run needs no reading."""
        same = (self.size, self.segments) == (seen.size, seen.segments) and self.status != "damaged"
        # Parts may have come without a trace, as long as the lease is renewed.
        return same and (seen.size is not None or (self.status == "lost" and self.renewed_at == seen.pulse.renewed_at))

    def status_of(self, seen: _Seen) -> str:
        """Return the status of a run that was not read again."""
        if self.status in _FINAL or not self.has_driver:
            return self.status
        return "running" if seen.pulse.is_alive(self.lease_seconds) else "lost"


_GONE: Final = _Known("", False, 0, None, 0, None)  # noqa: FBT003 # a row that goes


def _listed(objects: ObjectStore, flow: str) -> Iterator[_Seen]:
    """Iterate over a flow's runs by listing all their objects, a thousand of which are one request."""
    prefix = layout.flow(flow)
    taken_at = time.time()
    runs: dict[str, dict[str, ObjectInfo]] = {}
    for info in objects.list(prefix):
        run_id, _, name = info.key.removeprefix(prefix).partition("/")
        runs.setdefault(run_id, {})[name] = info
    for run_id, found in sorted(runs.items()):
        with contextlib.suppress(NameRefused):
            names.run_id(run_id)
            journal, lease = found.get("journal"), found.get("lease")
            if journal is None and lease is None:
                continue
            pulse = Pulse(journal is None, None if lease is None else lease.modified_at, taken_at)
            segments = sum(name.startswith("segments/") for name in found)
            yield _Seen(flow, run_id, pulse, None if journal is None else journal.size, segments, "seal" in found)


def _connect(path: Path | None) -> sqlite3.Connection:
    """Open the cache, readable by its user alone."""
    import sqlite3

    if path is None:
        return sqlite3.connect(":memory:", isolation_level=None)
    make_private(path.parent)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    return sqlite3.connect(path, timeout=_LOCK_SECONDS, isolation_level=None)


def _prepare(database: sqlite3.Connection) -> None:
    """Make the tables where there are none."""
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version == _VERSION:
        return
    if version:
        raise _OtherVersion
    for statement in _TABLES.split(";"):
        database.execute(statement)
    database.execute(f"PRAGMA user_version = {_VERSION:d}")  # a pragma takes no parameters


def _insert(database: sqlite3.Connection, summary: RunSummary, head: _Head | None, seen: _Seen) -> None:
    """Write a run's row."""
    own = [head is None or head.has_driver, 0 if head is None else head.lease_seconds]
    values = [*attrs.astuple(summary)[:-1], json.dumps(summary.tags), *own]
    values += [seen.size, seen.segments, seen.pulse.renewed_at]
    row = [_storable(value) if isinstance(value, str) else _bounded(value) for value in values]
    marks = ", ".join("?" * len(row))
    database.execute(f"INSERT OR REPLACE INTO runs VALUES ({marks})", row)  # noqa: S608 # nothing but question marks
    run = (summary.flow, summary.run_id)
    database.execute("DELETE FROM tags WHERE flow = ? AND run_id = ?", run)
    tags = [(*run, _storable(tag)) for tag in summary.tags]
    database.executemany("INSERT OR IGNORE INTO tags VALUES (?, ?, ?)", tags)


def _bounded(value: object) -> object:
    """Return a value that SQLite can hold: what lies in a store may have numbers of any size."""
    return max(-(2**63), min(value, 2**63 - 1)) if isinstance(value, int) else value


def _storable(text: str) -> str:
    """Return a text that SQLite can hold: what lies in a store may have surrogates, which are no characters."""
    return text.encode(errors="backslashreplace").decode()


def _first_record(objects: ObjectStore, key: str) -> RunBegan:
    """Return how a run began."""
    head = piece = objects.read(key, 0, _HEAD_BYTES)
    while piece and b"\n" not in piece and len(head) < _MAX_HEAD_BYTES:
        piece = objects.read(key, len(head), len(head) * 4)
        head += piece
    line, newline, _ = head.partition(b"\n")
    decoded = decode_line(line) if newline else None
    if decoded is None or not isinstance(decoded[1], RunBegan):
        raise StoreDamaged(f"{key} in {objects.url} does not tell the run's beginning")
    return decoded[1]


def _ends_of(content: bytes, key: str) -> tuple[RunBegan, Record | None]:
    """Return the first and the last record in a journal's content."""
    lines = content.split(b"\n")[:-1]
    first, last = (decode_line(lines[place]) if lines else None for place in (0, -1))
    if first is None or not isinstance(first[1], RunBegan):
        raise StoreDamaged(f"{key} does not tell the run's beginning")
    return first[1], None if last is None else last[1]


def _last_record(objects: ObjectStore, key: str, size: int) -> RunEnded | None:
    """Return how a run ended, if it has."""
    lines = objects.read(key, max(0, size - _TAIL_BYTES), size).split(b"\n")
    decoded = decode_line(lines[-2]) if len(lines) > 1 else None
    record = None if decoded is None else decoded[1]
    return record if isinstance(record, RunEnded) else None
