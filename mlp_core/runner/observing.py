"""How observers are kept beside a run: one process of their own, restarted when it dies, ended when the run has."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from mlp_core.runner.requests import UNSET
from mlp_hookspecs import wire
from mlp_hookspecs.process import kill_tree, worker_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlp_core.session import Session
    from mlp_hookspecs import RunContext

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
        given = {
            "store": store_url,
            "flow": run.flow,
            "run_id": run.run_id,
            "settings": session.settings.portable(),
            "plugins": [wire.encode(plugin) for plugin in plugins],
            "cursor": str(Path(folder) / "cursor"),
        }
        keeper = _Keeper(json.dumps(given).encode())
        keeper.start()
        try:
            yield
        finally:
            keeper.finish()


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
            sys.stderr.write(
                f"warning: the observers were not done {_GRACE_SECONDS:g} s after the run's end and were stopped\n"
            )
            kill_tree(process.pid)
        self._thread.join()
