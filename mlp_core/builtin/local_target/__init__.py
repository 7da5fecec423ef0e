"""The deploy target ``local``: which hooks it implements; the rest is imported when something is deployed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlp_hookspecs import Backend, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlp_hookspecs import Deployment, DeployRequest
    from mlp_hookspecs.handles import DeployTarget, TargetContext


@hookimpl
def mlp_backends() -> Sequence[Backend]:
    """Declare the target."""
    return (Backend("target", "local", "Runs on the machine that triggers them."),)


@hookimpl
def mlp_open_target(name: str, context: TargetContext) -> DeployTarget:  # noqa: ARG001 # the hook's signature
    """Open the target."""
    from mlp_core.builtin.local_target.target import LocalTarget

    return LocalTarget(context.objects)


@hookimpl
def mlp_deploy(request: DeployRequest, target: DeployTarget) -> Deployment:
    """Make a version the active one; schedules and triggers wait for a service that this target does not have."""
    from mlp_core.builtin.local_target.target import LocalTarget

    if not isinstance(target, LocalTarget):
        raise TypeError(f"{type(target).__name__} is no target of this plugin")
    return target.activate(request)
