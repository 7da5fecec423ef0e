"""mlp-core: flows, steps, parameters, artifacts and runs, on hooks that plugins implement.

Everything public is here, and is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mlp_core.api import FlowSpec, run, step
    from mlp_core.builtin.options import catch, environment, formats, limit, named_env, resources, retry, timeout
    from mlp_core.client import (
        DataArtifact,
        Environment,
        Flow,
        Metaflow,
        Run,
        Step,
        Task,
        default_namespace,
        get_namespace,
        namespace,
    )
    from mlp_core.errors import CaughtFailure, MlpError, RunFailed
    from mlp_core.facts import current
    from mlp_core.launching import Runner
    from mlp_core.parameter_types import JSONType
    from mlp_core.parameters import Parameter

_HOMES: Final = {
    "CaughtFailure": "mlp_core.errors",
    "DataArtifact": "mlp_core.client",
    "Environment": "mlp_core.client",
    "Flow": "mlp_core.client",
    "FlowSpec": "mlp_core.api",
    "JSONType": "mlp_core.parameter_types",
    "Metaflow": "mlp_core.client",
    "MlpError": "mlp_core.errors",
    "Parameter": "mlp_core.parameters",
    "Run": "mlp_core.client",
    "RunFailed": "mlp_core.errors",
    "Runner": "mlp_core.launching",
    "Step": "mlp_core.client",
    "Task": "mlp_core.client",
    "catch": "mlp_core.builtin.options",
    "current": "mlp_core.facts",
    "default_namespace": "mlp_core.client",
    "environment": "mlp_core.builtin.options",
    "formats": "mlp_core.builtin.options",
    "get_namespace": "mlp_core.client",
    "limit": "mlp_core.builtin.options",
    "named_env": "mlp_core.builtin.options",
    "namespace": "mlp_core.client",
    "resources": "mlp_core.builtin.options",
    "retry": "mlp_core.builtin.options",
    "run": "mlp_core.api",
    "step": "mlp_core.api",
    "timeout": "mlp_core.builtin.options",
}

__all__ = [
    "CaughtFailure",
    "DataArtifact",
    "Environment",
    "Flow",
    "FlowSpec",
    "JSONType",
    "Metaflow",
    "MlpError",
    "Parameter",
    "Run",
    "RunFailed",
    "Runner",
    "Step",
    "Task",
    "catch",
    "current",
    "default_namespace",
    "environment",
    "formats",
    "get_namespace",
    "limit",
    "named_env",
    "namespace",
    "resources",
    "retry",
    "run",
    "step",
    "timeout",
]


def __getattr__(name: str) -> Any:
    """Import a public name, or a decorator of a plugin of ours, when it is first used; AttributeError for any other."""
    home = _HOMES.get(name)
    if home is not None:
        value = getattr(importlib.import_module(home), name)
    elif name.startswith("_"):
        value = None
    else:
        from mlp_core.providers import plugin_decorator

        value = plugin_decorator(name)
    if value is None:
        raise AttributeError(f"module 'mlp_core' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, imported or not."""
    return sorted({*globals(), *__all__})
