"""How observers are kept beside a run: one process of their own, restarted when it dies, ended when the run has."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlp_core.runner.requests import UNSET
from mlp_hookspecs import wire
from mlp_hookspecs.process import kill_tree, worker_environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlp_core.session import Session
    from mlp_hookspecs import PluginId, RunContext
    from mlp_hookspecs.events import Deployed

_GRACE_SECONDS = 10.0
_MAX_STARTS = 3


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
    plugins = session.hooks.observers()
    if not plugins:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="mlp-observer-") as folder:
        cursor = str(Path(folder) / "cursor")
        place = {"store": store_url, "flow": run.flow, "run_id": run.run_id, "cursor": cursor}
        keeper = _keeper(session, plugins, place)
        keeper.start()
        try:
            yield
        finally:
            keeper.finish()


def tell(session: Session, event: Deployed) -> None:
    """Tell the observers of an event that belongs to no run, and wait for them a while.

    Parameters
    ----------
    session : Session
        Plugins and settings.
    event : Deployed
        The event; what it is about has been recorded.
    """
    plugins = session.hooks.observers()
    if plugins:
        keeper = _keeper(session, plugins, {"event": wire.encode(event)})
        keeper.start()
        keeper.finish()


def _keeper(session: Session, plugins: Sequence[PluginId], what: Mapping[str, Any]) -> _Keeper:
    """Return what keeps a process that tells the observers of something."""
    common = {"settings": session.settings.portable(), "plugins": [wire.encode(plugin) for plugin in plugins]}
    return _Keeper(json.dumps({**common, **what}).encode())


class _Keeper:
    """Starts the process, and starts it again when it dies."""

    def __init__(self, given: bytes) -> None:
        self._given = given
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, name="mlp-observers", daemon=True)
        self._finishing = False

    def start(self) -> None:
        """Start the first process in this thread, whose end would end it; watch it in another."""
        self._process = self._launch()
        self._thread.start()

    def _launch(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mlp_core.observer"],
            stdin=subprocess.PIPE,
            env=worker_environment({}, UNSET),
            process_group=0,
        )
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(self._given)
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        return process

    def _keep(self) -> None:
        """Wait for the process's end; a death is followed by a new one, which goes on at the cursor."""
        for _ in range(_MAX_STARTS - 1):
            if self._process is None or self._process.wait() == 0 or self._finishing:
                return
            self._process = self._launch()
        if self._process is not None:
            self._process.wait()

    def finish(self) -> None:
        """Give the observers some time for what is left, then end them."""
        self._thread.join(timeout=_GRACE_SECONDS)
        self._finishing = True
        process = self._process
        if self._thread.is_alive() and process is not None:
            sys.stderr.write(f"warning: the observers were not done after {_GRACE_SECONDS:g} s more and were stopped\n")
            kill_tree(process.pid)
        self._thread.join()
