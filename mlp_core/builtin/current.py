"""How a step runs in the interpreter that runs the driver: the environment that needs no resolving."""

from __future__ import annotations

import platform
import sys
from typing import TYPE_CHECKING

from mlp_hookspecs import Backend, EnvironmentLock, EnvironmentSpec, ProvisionedEnvironment, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence


@hookimpl
def mlp_backends() -> Sequence[Backend]:
    """Declare the environment."""
    return (Backend("environment", "current", "The interpreter that runs the driver, as it is."),)


@hookimpl
def mlp_resolve_environment(spec: EnvironmentSpec, platforms: Sequence[str]) -> EnvironmentLock:  # noqa: ARG001 # the hook's signature
    """Name the interpreter's version; what it contains is whatever it contains."""
    version = platform.python_version()
    return EnvironmentLock(spec.backend, content=f"python {version}", python=version)


@hookimpl
def mlp_provision_environment() -> ProvisionedEnvironment:
    """Return this interpreter."""
    return ProvisionedEnvironment(python=sys.executable, has_platform=True)
