"""How observers are kept beside a run: one process of their own, ended when the run has.

When it dies or does not come back from an observer, that observer is blamed on the run, and a new process goes on with
the others where the last one stood.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mlp_core.errors import MlpError
from mlp_core.runner.requests import UNSET, extra_path
from mlp_core.store.records import ObserverFailed
from mlp_hookspecs import PluginId, wire
from mlp_hookspecs.process import failure_of_exit, kill_tree, worker_environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlp_core.session import Session
    from mlp_hookspecs import RunContext
    from mlp_hookspecs.events import Deployed

CALL_SECONDS = 10.0
"""How long an observer may take over one event."""

GRACE_SECONDS = 10.0
"""How long the observers may take over what is left when the run has ended."""

_MAX_DEATHS = 3
_LOOK_SECONDS = 0.25

_Report: TypeAlias = Callable[[PluginId, str, str], None]


@contextlib.contextmanager
def observers(session: Session, run: RunContext, store_url: str) -> Iterator[None]:
    """Keep the observers informed while a run goes on; does nothing where no plugin observes.

    Parameters
    ----------
    session : Session
        Plugins and settings.
    run : RunContext
        The run.
    store_url : str
        Where its journal is.
    """

    def report(plugin: PluginId, event: str, message: str) -> None:
        failed = ObserverFailed(plugin, event, message, time.time())
        try:
            store = session.open_store(create=False)
            store.add_segment(run.flow, run.run_id, f"observer.{os.urandom(16).hex()}", failed)
        except MlpError:
            sys.stderr.write(f"warning: {message}\n")

    with _told(session, {"store": store_url, "flow": run.flow, "run_id": run.run_id}, report):
        yield


def tell(session: Session, event: Deployed) -> None:
    """Tell the observers of an event that belongs to no run, and wait for them a while.

    Parameters
    ----------
    session : Session
        Plugins and settings.
    event : Deployed
        The event; what it is about has been recorded.
    """

    def report(_plugin: PluginId, _event: str, message: str) -> None:
        sys.stderr.write(f"warning: {message}\n")

    with _told(session, {"event": wire.encode(event)}, report):
        pass


@contextlib.contextmanager
def _told(session: Session, what: Mapping[str, Any], report: _Report) -> Iterator[None]:
    """Keep a process that tells the observers of something, and let it finish in the end."""
    plugins = session.hooks.observers()
    if not plugins:
        yield
        return
    import tempfile

    with tempfile.TemporaryDirectory(prefix="mlp-observer-") as folder:
        given = {
            "settings": session.settings.portable(),
            "plugins": [wire.encode(plugin) for plugin in plugins],
            "path": extra_path(),
            "cursor": str(Path(folder) / "cursor"),
            "telling": str(Path(folder) / "telling"),
            **what,
        }
        keeper = _Keeper(given, report)
        keeper.start()
        try:
            yield
        finally:
            keeper.finish()


class _Keeper:
    """Starts the process, and starts it again without whom it died or waited for."""

    def __init__(self, given: dict[str, Any], report: _Report) -> None:
        self._given = given
        self._report = report
        self._telling = Path(given["telling"])
        self._silenced: list[PluginId] = []
        self._deaths: list[PluginId | None] = []
        self._deadline: float | None = None
        self._thread = threading.Thread(target=self._keep, name="mlp-observers", daemon=True)

    def start(self) -> None:
        """Start the first process in this thread, whose end would end it; watch it in another."""
        self._process = self._launch()
        self._thread.start()

    def finish(self) -> None:
        """Give the observers some time for what is left, then end them."""
        self._deadline = time.monotonic() + GRACE_SECONDS
        self._thread.join()

    def _launch(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mlp_core.observer"],
            stdin=subprocess.PIPE,
            env=worker_environment({}, UNSET),
            process_group=0,
        )
        given = {**self._given, "silenced": [wire.encode(plugin) for plugin in self._silenced]}
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(given).encode())
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        return process

    def _keep(self) -> None:
        """Watch the process until it has told everything."""
        while self._process.poll() != 0:
            try:
                status = self._process.wait(timeout=_LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                if not self._has_time():
                    return
                continue
            if status != 0 and not self._take_death(status):
                return

    def _has_time(self) -> bool:
        """End the process where its time is over; return whether it, or another in its place, goes on."""
        plugin, event, seconds = self._now_telling()
        if plugin is not None and seconds > CALL_SECONDS:
            self._end_process()
            self._silence(plugin, event, f"it has not come back for {CALL_SECONDS:g} s")
            if self._deadline is not None:
                self._deadline = time.monotonic() + GRACE_SECONDS
            self._process = self._launch()
        elif self._deadline is not None and time.monotonic() > self._deadline:
            self._end_process()
            text = f"the observers were not done {GRACE_SECONDS:g} s after the run's end and were stopped"
            if plugin is not None:
                self._report(plugin, event, f"plugin {plugin}: {text}")
            sys.stderr.write(f"warning: {text}\n")
            return False
        return True

    def _take_death(self, status: int) -> bool:
        """Blame a death, and start another process; return False where there is no sense in it."""
        plugin, event, _ = self._now_telling()
        self._deaths.append(plugin)
        count = self._deaths.count(plugin)
        reason = failure_of_exit(status).message.partition(" before")[0]
        if plugin is None:
            if count >= _MAX_DEATHS:
                sys.stderr.write(f"warning: the observers are told nothing more: {reason}\n")
                return False
        elif count >= _MAX_DEATHS:
            self._silence(plugin, event, f"{reason}, {count} times")
        else:
            self._report(plugin, event, f"plugin {plugin} ended the observers' process: {reason}")
        self._telling.unlink(missing_ok=True)
        self._process = self._launch()
        return True

    def _silence(self, plugin: PluginId, event: str, reason: str) -> None:
        """Tell a plugin nothing more, and record why."""
        self._silenced.append(plugin)
        self._telling.unlink(missing_ok=True)
        self._report(plugin, event, f"plugin {plugin} is told nothing more of this run: {reason}")

    def _end_process(self) -> None:
        """Kill the process with all that it has started."""
        kill_tree(self._process.pid)
        self._process.wait()

    def _now_telling(self) -> tuple[PluginId | None, str, float]:
        """Return whose code the process has entered, with which event, and for how many seconds it has been there."""
        try:
            since = self._telling.stat().st_mtime
            told = json.loads(self._telling.read_bytes())
            return wire.decode(PluginId, told["plugin"]), str(told["event"]), time.time() - since
        except (OSError, ValueError, KeyError, TypeError):
            return None, "", 0.0
