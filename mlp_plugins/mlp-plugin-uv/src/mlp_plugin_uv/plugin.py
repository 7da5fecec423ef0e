"""Which hooks the plugin implements: the option, its plan, and the environment backend behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlp_hookspecs import Backend, StepPlan, hookimpl
from mlp_plugin_uv.options import BACKEND, Pypi

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mlp_hookspecs import EnvironmentLock, EnvironmentSpec, Option, ProvisionedEnvironment, StepInfo


@hookimpl
def mlp_backends() -> Sequence[Backend]:
    """Declare the environment."""
    return (Backend("environment", BACKEND, "Packages from a Python index, locked with hashes and installed by uv."),)


@hookimpl
def mlp_options() -> Sequence[type[Option]]:
    """Declare the decorator."""
    return (Pypi,)


@hookimpl
def mlp_plan_step(step: StepInfo, options: Sequence[Option]) -> StepPlan | None:  # noqa: ARG001 # the hook's signature
    """Plan the environment that the step asks for."""
    for option in options:
        if isinstance(option, Pypi) and option.environment is not None:
            return StepPlan(environment=option.environment)
    return None


@hookimpl
def mlp_resolve_environment(spec: EnvironmentSpec, platforms: Sequence[str]) -> EnvironmentLock:  # noqa: ARG001 # a lock holds for all
    """Lock the requirement."""
    from mlp_plugin_uv.resolve import resolve

    return resolve(spec)


@hookimpl
def mlp_provision_environment(
    lock: EnvironmentLock,
    root: Path,
    packages: Path | None,  # noqa: ARG001 # nothing is bundled yet
) -> ProvisionedEnvironment:
    """Make the environment, or find it made."""
    from mlp_plugin_uv.provision import provision

    return provision(lock, root)
