"""Which hooks the plugin implements: the option `@ray`, its plan, and the launcher behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlp_hookspecs import Backend, Setting, StepPlan, hookimpl
from mlp_plugin_ray.options import BACKEND, Ray

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlp_hookspecs import LaunchRequest, Option, StepInfo
    from mlp_hookspecs.handles import Launcher, LaunchSink, Settings
    from mlp_plugin_ray.launcher import RayLauncher


@hookimpl
def mlp_settings() -> Sequence[Setting]:
    """Declare the settings."""
    return (
        Setting(
            "ray.address",
            help="The cluster: host:port of its head, or auto. By default RAY_ADDRESS, else a local one is started.",
        ),
        Setting("ray.max_pending", "int", 1000, "How many attempts are handed to Ray at once, running or waiting."),
    )


@hookimpl
def mlp_backends() -> Sequence[Backend]:
    """Declare the launcher."""
    return (Backend("launcher", BACKEND, "Tasks of a Ray cluster."),)


@hookimpl
def mlp_options() -> Sequence[type[Option]]:
    """Declare the decorator."""
    return (Ray,)


@hookimpl
def mlp_plan_step(step: StepInfo, options: Sequence[Option]) -> StepPlan | None:  # noqa: ARG001 # the hook's signature
    """Plan where a decorated step runs, and with how much."""
    for option in options:
        if isinstance(option, Ray):
            return StepPlan(launcher=BACKEND, launcher_options=option.launcher_options, resources=option.plan_resources)
    return None


@hookimpl
def mlp_open_launcher(name: str, settings: Settings, sink: LaunchSink) -> RayLauncher:  # noqa: ARG001 # the hook's signature
    """Connect to the cluster."""
    from mlp_plugin_ray.launcher import RayLauncher

    return RayLauncher.open(settings, sink)


@hookimpl
def mlp_launch_step(requests: Sequence[LaunchRequest], launcher: Launcher) -> bool:
    """Hand attempts to Ray."""
    from mlp_plugin_ray.launcher import RayLauncher

    if not isinstance(launcher, RayLauncher):
        raise TypeError(f"not a launcher of this plugin: {launcher!r}")
    launcher.submit(requests)
    return True
