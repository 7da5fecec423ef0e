"""Which hooks the plugin implements: the options, their plan, and the environment backend behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlp_hookspecs import Backend, StepPlan, hookimpl
from mlp_plugin_uv.options import BACKEND, Pypi, PypiBase, Uv

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
    """Declare the decorators."""
    return (Pypi, PypiBase, Uv)


@hookimpl
def mlp_plan_step(step: StepInfo, options: Sequence[Option]) -> StepPlan | None:
    """Plan the environment that the step asks for."""
    if not any(isinstance(option, Pypi | Uv) for option in options):
        return None
    from mlp_plugin_uv.planning import plan

    environment = plan(options, step.node.file)
    return None if environment is None else StepPlan(environment=environment)


@hookimpl
def mlp_resolve_environment(spec: EnvironmentSpec, platforms: Sequence[str]) -> EnvironmentLock:
    """Lock the requirement."""
    from mlp_plugin_uv.resolve import resolve

    return resolve(spec, platforms)


@hookimpl
def mlp_bundle_environment(lock: EnvironmentLock, platform: str, folder: Path) -> Sequence[str]:
    """Put the lock's wheels into the folder."""
    from mlp_plugin_uv.bundle import bundle

    return bundle(lock, platform, folder)


@hookimpl
def mlp_provision_environment(lock: EnvironmentLock, root: Path, packages: Path | None) -> ProvisionedEnvironment:
    """Make the environment, or find it made."""
    from mlp_plugin_uv.provision import provision

    return provision(lock, root, packages)
