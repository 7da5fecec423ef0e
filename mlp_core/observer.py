"""The process in which observers are told of a run's events: it tails the journal, so that nothing can hold the run up.

`python -P -m mlp_core.observer` reads one JSON object from its standard input: ``settings`` and ``plugins``, and either
an ``event`` that belongs to no run, or ``store``, ``flow``, ``run_id`` and ``cursor``, a file that remembers across
restarts what was told.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlp_core.errors import MlpError, StoreError
from mlp_core.hooks import Hooks, build_worker_hooks
from mlp_core.observation import events_of
from mlp_core.store import Store, layout
from mlp_core.store.journal import read_journal
from mlp_core.store.records import ObserverFailed, RunBegan, RunEnded
from mlp_hookspecs import PluginId, RunContext, wire
from mlp_hookspecs.events import Deployed
from mlp_hookspecs.process import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Mapping

_SHORTEST, _LONGEST = 0.02, 0.5
_MAX_FAILURES = 3


def main() -> int:
    """Tell the observers of everything until the run has ended.

    Returns
    -------
    int
        The exit status.
    """
    die_with_parent()
    given: dict[str, Any] = json.load(sys.stdin)
    plugins = [wire.decode(PluginId, data) for data in given["plugins"]]
    hooks, _ = build_worker_hooks(plugins, given["settings"])
    if "event" in given:
        for _, error in hooks.emit(wire.decode(Deployed, given["event"])):
            sys.stderr.write(f"warning: {error}\n")
        return 0
    try:
        store = Store.open(hooks.open_store(given["store"]), create=False)
        Telling(hooks, store, given).run()
    except (MlpError, OSError) as error:
        sys.stderr.write(f"warning: the observers are told nothing more: {error}\n")
    return 0


class Telling:
    """One run's events on their way to the observers.

    Parameters
    ----------
    hooks : Hooks
        The observers.
    store : Store
        Where the journal is, and where failures are recorded.
    given : mapping of str to object
        The process's input.
    """

    def __init__(self, hooks: Hooks, store: Store, given: Mapping[str, Any]) -> None:
        """Begin where the cursor stands."""
        self._hooks = hooks
        self._store = store
        self._flow, self._run_id = given["flow"], given["run_id"]
        self._cursor = Path(given["cursor"])
        self._told = int(self._cursor.read_text()) if self._cursor.exists() else -1
        self._failures: dict[PluginId, int] = {}
        self._silenced: set[PluginId] = set()
        self._run: RunContext | None = None

    def run(self) -> None:
        """Tail the journal to its end, or to the death of the run's driver."""
        key = layout.journal(self._flow, self._run_id)
        offset = expected = 0
        pause = _SHORTEST
        while True:
            is_alive = self._store.objects.is_locked(layout.lock(self._flow, self._run_id))
            read = read_journal(self._store.objects, key, offset, expected)
            offset, expected = read.offset, read.expected
            for number, record in read.records:
                if isinstance(record, RunBegan):
                    self._run = record.run
                if self._run is not None and number > self._told:
                    for event in events_of(number, record, self._run):
                        self._tell(event)
            if read.records:
                self._remember(read.records[-1][0])
                if isinstance(read.records[-1][1], RunEnded):
                    return
            elif not is_alive:
                return
            pause = _SHORTEST if read.records else min(2 * pause, _LONGEST)
            time.sleep(pause)

    def _tell(self, event: Any) -> None:
        """Tell one event, and record who failed."""
        for plugin, error in self._hooks.emit(event, silenced=self._silenced):
            count = self._failures[plugin] = self._failures.get(plugin, 0) + 1
            message = str(error)
            if count >= _MAX_FAILURES:
                self._silenced.add(plugin)
                message += f"; it has failed {count} times and is told nothing more of this run"
            failed = ObserverFailed(plugin, event.id, message, time.time())
            try:
                self._store.add_segment(self._flow, self._run_id, f"observer.{uuid.uuid4().hex}", failed)
            except StoreError:
                sys.stderr.write(f"warning: {message}\n")

    def _remember(self, number: int) -> None:
        """Move the cursor; an event told twice is better than one never told."""
        self._told = max(self._told, number)
        self._cursor.write_text(str(self._told))


if __name__ == "__main__":
    sys.exit(main())
