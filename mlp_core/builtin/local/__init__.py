"""How steps run on the driver's own host: the launcher `local`, with three ways of keeping tasks apart."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from mlp_hookspecs import Backend, Setting, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlp_core.builtin.local.launcher import LocalLauncher
    from mlp_hookspecs import LaunchRequest
    from mlp_hookspecs.handles import Launcher, LaunchSink, Settings


@hookimpl
def mlp_settings() -> Sequence[Setting]:
    """Declare the settings."""
    # On macOS the system's own libraries do not survive a fork without an exec.
    default = "fork" if platform.system() == "Linux" else "spawn"
    return (
        Setting("local.isolation", default=default, help="How tasks are kept apart: fork, spawn or inline."),
        Setting(
            "local.fork_driver",
            "bool",
            default=False,
            help="Whether the first template may be a fork of the driver; commands set it, since they own the process.",
        ),
        Setting("local.start_timeout", "float", 30.0, "Seconds after which a forked task without a sign is respawned."),
        Setting("local.import_timeout", "float", 600.0, "Seconds that a template may take to import the flow's file."),
    )


@hookimpl
def mlp_backends() -> Sequence[Backend]:
    """Declare the launcher."""
    return (Backend("launcher", "local", "Processes on this host.", shares_driver_host=True),)


@hookimpl
def mlp_open_launcher(name: str, settings: Settings, sink: LaunchSink) -> LocalLauncher:  # noqa: ARG001 # the hook's signature
    """Open it."""
    from mlp_core.builtin.local.launcher import LocalLauncher

    return LocalLauncher(settings, sink)


@hookimpl
def mlp_launch_step(requests: Sequence[LaunchRequest], launcher: Launcher) -> bool:
    """Start attempts."""
    from mlp_core.builtin.local.launcher import LocalLauncher

    if not isinstance(launcher, LocalLauncher):
        raise TypeError(f"not a launcher of this plugin: {launcher!r}")
    for request in requests:
        launcher.submit(request)
    return True
