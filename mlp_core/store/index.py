"""Which runs there are, without reading them all: a cache in SQLite that readers derive from the journals.

It belongs to one user on one host, lies outside the store and may be deleted at any time. Nobody who writes a run
touches it. A refresh reads the first and last record of those journals that are new or have grown.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import attrs

from mlp_core import names
from mlp_core.errors import NameRefused, StoreDamaged
from mlp_core.store import layout
from mlp_core.store.records import RunBegan, RunEnded, TagsChanged, decode_line
from mlp_core.store.segments import read_segments
from mlp_core.store.state import RunStatus, changed_tags
from mlp_core.store.verified import cache_folder

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator
    from pathlib import Path

    from mlp_hookspecs.handles import ObjectStore

SummaryStatus: TypeAlias = RunStatus | Literal["damaged"]

_VERSION: Final = 1
_HEAD_BYTES: Final = 64 * 1024
_TAIL_BYTES: Final = 16 * 1024
_LOCK_SECONDS: Final = 2.0

_TABLES: Final = """
CREATE TABLE runs (
  flow TEXT, run_id TEXT, status TEXT, username TEXT, started_at REAL, finished_at REAL, message TEXT, tasks INTEGER,
  origin_run_id TEXT, tags TEXT, has_driver INTEGER, size INTEGER, segments INTEGER,
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
                "SELECT flow, run_id, status, has_driver, size, segments FROM runs WHERE :flow IS NULL OR flow = :flow",
                {"flow": flow},
            )
        }
        for name, run_id in self._runs(flow):
            if self._refresh_run(database, name, run_id, known.get((name, run_id))):
                known.pop((name, run_id), None)
        for gone in known:
            database.execute("DELETE FROM runs WHERE flow = ? AND run_id = ?", gone)
            database.execute("DELETE FROM tags WHERE flow = ? AND run_id = ?", gone)

    def _runs(self, flow: str | None) -> Iterator[tuple[str, str]]:
        """Iterate over the names of runs in the store; what else lies there is not ours."""
        for name in [flow] if flow is not None else self._objects.children(layout.FLOWS):
            try:
                prefix = layout.flow(name)
            except NameRefused:
                continue
            for run_id in self._objects.children(prefix):
                with contextlib.suppress(NameRefused):
                    yield name, names.run_id(run_id)

    def _refresh_run(self, database: sqlite3.Connection, flow: str, run_id: str, before: _Known | None) -> bool:
        """Take up what is new in a run, and tell whether there is one."""
        segments = len(self._objects.children(layout.segments(flow, run_id)))
        is_final = before is not None and before.status in _FINAL
        # Before the journal: a driver that ends in between has written its last record.
        is_alive = not is_final and self._objects.is_locked(layout.lock(flow, run_id))
        try:
            size = self._objects.info(layout.journal(flow, run_id)).size
        except FileNotFoundError:
            return False  # not created to the end, or removed
        if before is not None and before.status != "damaged" and (before.size, before.segments) == (size, segments):
            status = "running" if is_alive or not before.has_driver else "lost"
            if not is_final and status != before.status:
                database.execute("UPDATE runs SET status = ? WHERE flow = ? AND run_id = ?", (status, flow, run_id))
            return True
        try:
            summary, has_driver = self._summary(flow, run_id, size, is_alive=is_alive)
        except StoreDamaged:
            summary, has_driver = RunSummary(flow, run_id, "damaged"), True
        _insert(database, summary, has_driver=has_driver, size=size, segments=segments)
        return True

    def _summary(self, flow: str, run_id: str, size: int, *, is_alive: bool) -> tuple[RunSummary, bool]:
        """Return what a run's first and last record and its segments say, and whether it has a driver."""
        key = layout.journal(flow, run_id)
        began = _first_record(self._objects, key)
        others = read_segments(self._objects, flow, run_id)
        ends = [record for record in (_last_record(self._objects, key, size), *others) if isinstance(record, RunEnded)]
        ended = ends[0] if ends else None
        summary = RunSummary(
            flow,
            run_id,
            status=ended.status if ended else "running" if is_alive or not began.has_driver else "lost",
            username=began.run.username,
            started_at=began.time,
            finished_at=ended.time if ended else None,
            message=ended.message if ended else "",
            tasks=ended.tasks if ended else 0,
            origin_run_id=began.run.origin_run_id,
            tags=changed_tags(began.run.tags, [record for record in others if isinstance(record, TagsChanged)]),
        )
        return summary, began.has_driver


_FINAL: Final = frozenset({"succeeded", "failed", "cancelled"})


class _OtherVersion(Exception):  # noqa: N818 # never seen by a caller
    """The cache was made by another version."""


@attrs.frozen
class _Known:
    """What decides whether a run has to be read again."""

    status: str
    has_driver: bool
    size: int
    segments: int


def _connect(path: Path | None) -> sqlite3.Connection:
    """Open the cache, readable by its user alone."""
    import sqlite3

    if path is None:
        return sqlite3.connect(":memory:", isolation_level=None)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
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


def _insert(database: sqlite3.Connection, summary: RunSummary, *, has_driver: bool, size: int, segments: int) -> None:
    """Write a run's row."""
    values = [*attrs.astuple(summary)[:-1], json.dumps(summary.tags), has_driver, size, segments]
    row = [_storable(value) if isinstance(value, str) else value for value in values]
    database.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    run = (summary.flow, summary.run_id)
    database.execute("DELETE FROM tags WHERE flow = ? AND run_id = ?", run)
    tags = [(*run, _storable(tag)) for tag in summary.tags]
    database.executemany("INSERT OR IGNORE INTO tags VALUES (?, ?, ?)", tags)


def _storable(text: str) -> str:
    """Return a text that SQLite can hold: what lies in a store may have surrogates, which are no characters."""
    return text.encode(errors="backslashreplace").decode()


def _first_record(objects: ObjectStore, key: str) -> RunBegan:
    """Return how a run began."""
    head = piece = objects.read(key, 0, _HEAD_BYTES)
    while piece and b"\n" not in piece:
        piece = objects.read(key, len(head), len(head) * 4)
        head += piece
    line = head.partition(b"\n")[0]
    decoded = decode_line(line)
    if decoded is None or not isinstance(decoded[1], RunBegan):
        raise StoreDamaged(f"{key} in {objects.url} does not tell the run's beginning")
    return decoded[1]


def _last_record(objects: ObjectStore, key: str, size: int) -> RunEnded | None:
    """Return how a run ended, if it has."""
    lines = objects.read(key, max(0, size - _TAIL_BYTES), size).split(b"\n")
    decoded = decode_line(lines[-2]) if len(lines) > 1 else None
    record = None if decoded is None else decoded[1]
    return record if isinstance(record, RunEnded) else None
