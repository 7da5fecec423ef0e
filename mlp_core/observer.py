"""The process in which observers are told of a run's events: it tails the journal, so that nothing can hold the run up.

`python -P -m mlp_core.observer` reads one JSON object from its standard input: ``settings``, ``plugins``, those of them
that are ``silenced``, folders for ``sys.path`` as ``path``, and ``telling``, a file that names the plugin whose code is
entered; then either an ``event`` that belongs to no run, or ``store``, ``flow``, ``run_id`` and ``cursor``, a file that
remembers across restarts what was told.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlp_core.errors import MlpError, PluginError, StoreError
from mlp_core.hooks import Hooks, build_worker_hooks
from mlp_core.observation import events_of
from mlp_core.store import Store, layout
from mlp_core.store.growing import GrowingReader
from mlp_core.store.journal import parse_journal
from mlp_core.store.lease import Pulse
from mlp_core.store.records import ObserverFailed, RunBegan, RunEnded
from mlp_hookspecs import PluginId, RunContext, wire
from mlp_hookspecs.events import Deployed, Event
from mlp_hookspecs.process import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlp_core.settings import Settings

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
    sys.path += [folder for folder in given["path"] if folder not in sys.path]
    plugins = [wire.decode(PluginId, data) for data in given["plugins"]]
    hooks, settings = build_worker_hooks(plugins, given["settings"])
    silenced = {wire.decode(PluginId, data) for data in given["silenced"]}
    observers = Observers(hooks, Path(given["telling"]), silenced, settings)
    if "event" in given:
        for _, error in observers.tell(wire.decode(Deployed, given["event"])):
            sys.stderr.write(f"warning: {settings.masked(str(error))}\n")
        return 0
    try:
        store = Store.open(hooks.open_store(given["store"]), create=False)
        Telling(observers, store, given).run()
    except (MlpError, OSError) as error:
        sys.stderr.write(f"warning: the observers are told nothing more: {error}\n")
    return 0


class Observers:
    """The observers that are still told of events.

    Parameters
    ----------
    hooks : Hooks
        The plugins.
    telling : pathlib.Path
        The file that says whose code was entered, for the time after a death.
    silenced : set of PluginId
        Who is told nothing.
    settings : Settings
        The settings.
    """

    def __init__(self, hooks: Hooks, telling: Path, silenced: set[PluginId], settings: Settings) -> None:
        """Take over the plugins."""
        self.settings = settings
        self._hooks = hooks
        self._telling = telling
        self.silenced = silenced

    def tell(self, event: Event) -> Iterator[tuple[PluginId, PluginError]]:
        """Tell one event to one after the other, and yield who failed, and how."""
        for plugin in self._hooks.observers():
            if plugin not in self.silenced:
                self._telling.write_text(json.dumps({"plugin": wire.encode(plugin), "event": event.id}))
                others = {other for other in self._hooks.observers() if other != plugin}
                yield from self._hooks.emit(event, silenced=others)
                self._telling.unlink(missing_ok=True)


class Telling:
    """One run's events on their way to the observers.

    Parameters
    ----------
    observers : Observers
        Who is told.
    store : Store
        Where the journal is, and where failures are recorded.
    given : mapping of str to object
        The process's input.
    """

    def __init__(self, observers: Observers, store: Store, given: Mapping[str, Any]) -> None:
        """Begin where the cursor stands."""
        self._observers = observers
        self._store = store
        self._flow, self._run_id = given["flow"], given["run_id"]
        self._cursor = Path(given["cursor"])
        self._told = int(self._cursor.read_text()) if self._cursor.exists() else -1
        self._failures: dict[PluginId, int] = {}
        self._run: RunContext | None = None

    def run(self) -> None:
        """Tail the journal to its end, or to the death of the run's driver."""
        objects = self._store.objects
        key = layout.journal(self._flow, self._run_id)
        content = GrowingReader(objects, key)
        offset = expected = 0
        lease_seconds = 0.0
        pause = _SHORTEST
        while True:
            pulse = Pulse.take(objects, self._flow, self._run_id)
            content.size()
            read = parse_journal(content.read(offset), key, offset, expected)
            offset, expected = read.offset, read.expected
            for number, record in read.records:
                if isinstance(record, RunBegan):
                    self._run, lease_seconds = record.run, record.lease_seconds
                if self._run is not None and number > self._told:
                    for event in events_of(number, record, self._run):
                        self._tell(event)
                    self._remember(number)
                if isinstance(record, RunEnded):
                    return
            if not read.records and not pulse.is_alive(lease_seconds):
                return
            pause = _SHORTEST if read.records else min(2 * pause, _LONGEST)
            time.sleep(pause)

    def _tell(self, event: Event) -> None:
        """Tell one event, and record who failed."""
        for plugin, error in self._observers.tell(event):
            count = self._failures[plugin] = self._failures.get(plugin, 0) + 1
            message = self._observers.settings.masked(str(error))
            if count >= _MAX_FAILURES:
                self._observers.silenced.add(plugin)
                message += f"; it has failed {count} times and is told nothing more of this run"
            failed = ObserverFailed(plugin, event.id, message, time.time())
            try:
                self._store.add_segment(self._flow, self._run_id, f"observer.{uuid.uuid4().hex}", failed)
            except StoreError:
                sys.stderr.write(f"warning: {message}\n")

    def _remember(self, number: int) -> None:
        """Move the cursor; an event told twice is better than one never told."""
        self._told = number
        self._cursor.write_text(str(number))


if __name__ == "__main__":
    sys.exit(main())
