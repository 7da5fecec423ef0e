"""Which hooks the plugin implements: the options, their plan, and the environment backend behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlp_hookspecs import Backend, StepPlan, hookimpl
from mlp_plugin_conda.options import BACKEND, Conda, CondaBase

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mlp_hookspecs import EnvironmentLock, EnvironmentSpec, Option, ProvisionedEnvironment, StepInfo


@hookimpl
def mlp_backends() -> Sequence[Backend]:
    """Declare the environment."""
    return (
        Backend("environment", BACKEND, "Packages from conda channels, locked for several platforms by conda-lock."),
    )


@hookimpl
def mlp_options() -> Sequence[type[Option]]:
    """Declare the decorators."""
    return (Conda, CondaBase)


@hookimpl
def mlp_plan_step(step: StepInfo, options: Sequence[Option]) -> StepPlan | None:  # noqa: ARG001 # the hook's signature
    """Plan the environment that the step asks for."""
    base = next((option for option in options if isinstance(option, CondaBase) and not option.disabled), None)
    own = next((option for option in options if isinstance(option, Conda) and not isinstance(option, CondaBase)), None)
    wanted = own.over(base) if own is not None and base is not None else own or base
    if wanted is None or wanted.environment is None:
        return None
    return StepPlan(environment=wanted.environment)


@hookimpl
def mlp_resolve_environment(spec: EnvironmentSpec, platforms: Sequence[str]) -> EnvironmentLock:
    """Lock the requirement."""
    from mlp_plugin_conda.resolve import resolve

    return resolve(spec, platforms)


@hookimpl
def mlp_bundle_environment(lock: EnvironmentLock, platform: str, folder: Path) -> Sequence[str]:
    """Put the packages of a lock into a folder."""
    from mlp_plugin_conda.bundle import bundle

    return bundle(lock, platform, folder)


@hookimpl
def mlp_provision_environment(
    lock: EnvironmentLock, root: Path, packages: Path | None = None
) -> ProvisionedEnvironment:
    """Make the environment, or find it made."""
    from mlp_plugin_conda.provision import provision

    return provision(lock, root, packages)
