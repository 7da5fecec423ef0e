"""Which launchers a run uses: each opened once, before the first task, and left after the last."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Self

from mlp_core.errors import MlpError, UsageError
from mlp_hookspecs import PluginWarning
from mlp_hookspecs.handles import Expecting

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    from mlp_core.hooks import Hooks
    from mlp_core.runner.inbox import Inbox
    from mlp_core.settings import Settings
    from mlp_hookspecs import LaunchRequest, WorkerCommand
    from mlp_hookspecs.handles import Launcher


class Launchers:
    """The launchers of one run.

    Parameters
    ----------
    hooks : Hooks
        The plugins.
    settings : Settings
        The settings.
    inbox : Inbox
        Where launchers push what happens.

    Attributes
    ----------
    inbox : Inbox
        As the parameter.
    """

    def __init__(self, hooks: Hooks, settings: Settings, inbox: Inbox) -> None:
        """Begin with none."""
        self.inbox = inbox
        self._hooks = hooks
        self._settings = settings
        self._stack = ExitStack()
        self._opened: dict[str, Launcher] = {}
        self._capacities: dict[str, int | None] = {}

    def __enter__(self) -> Self:
        """Begin to open launchers."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave all launchers."""
        self.inbox.close()
        self._stack.__exit__(kind, error, trace)

    def close(self) -> None:
        """Leave all launchers now: nobody takes in any more what happens to attempts."""
        self.__exit__(None, None, None)

    def open(self, names: Iterable[str]) -> None:
        """Open launchers by name.

        Raises
        ------
        UnknownBackend
            Where nobody provides one.
        UsageError
            Where one cannot be reached, refuses a setting, or runs tasks where they would not see the store.
        """
        for name in dict.fromkeys(names):
            self._check_store(name)
            try:
                launcher = self._hooks.open_launcher(name, self._settings, self.inbox)
                with self._hooks.using("launcher", name, (OSError, ValueError)):
                    self._opened[name] = launcher.__enter__()
                    self._stack.push(partial(self._leave, name, launcher))
                    if not self._hooks.backend("launcher", name).shares_driver_host:
                        self._capacities[name] = launcher.capacity()
            except (OSError, ValueError) as error:
                message = self._settings.masked(f"launcher {name} cannot be used: {error}")
                refused = UsageError(message, hint="choose another by --launcher")
                for note in getattr(error, "__notes__", ()):
                    refused.add_note(note)
                raise refused from error

    def _check_store(self, name: str) -> None:
        """Refuse a store in this process's memory for a launcher whose tasks are other processes."""
        store: str = self._settings["store"]
        in_this_process = name == "local" and self._settings.get("local.isolation") == "inline"
        if store.startswith("memory://") and not in_this_process:
            raise UsageError(
                f"the store {store} lies in the memory of this process, where the tasks of the launcher {name} do not"
                " see it",
                hint="run them in this process, by --isolation inline, or choose a folder or bucket by --store",
            )

    def capacities(self) -> Mapping[str, int | None]:
        """Return how many attempts each launcher beyond the driver's host takes at once."""
        return self._capacities

    def expect(self, name: str, commands: Sequence[WorkerCommand]) -> None:
        """Tell a launcher which commands will be asked for, where it wants to know."""
        launcher = self._opened[name]
        if isinstance(launcher, Expecting):
            with self._hooks.using("launcher", name):
                launcher.expect(commands)

    def launch(self, name: str, requests: Sequence[LaunchRequest]) -> None:
        """Hand a batch of attempts to a launcher; OSError where it refuses them."""
        try:
            self._hooks.launch_step(name, requests, self._opened[name])
        except (OSError, MlpError) as error:
            masked = self._settings.masked(str(error))
            if masked != str(error):
                raise OSError(masked) from None
            raise

    def cancel(self, name: str, attempt_ids: Sequence[str], grace_seconds: float) -> None:
        """Have a launcher end attempts; OSError or PluginError where that fails."""
        with self._hooks.using("launcher", name):
            self._opened[name].cancel(attempt_ids, grace_seconds)

    def _leave(
        self,
        name: str,
        launcher: Launcher,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave a launcher; what it raises then is a warning, since the run has ended, well or not."""
        try:
            with self._hooks.using("launcher", name):
                launcher.__exit__(kind, error, trace)
        except (OSError, MlpError) as failure:
            warnings.warn(f"launcher {name} did not close: {failure}", PluginWarning, stacklevel=2)
