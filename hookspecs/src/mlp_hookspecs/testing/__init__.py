"""The conformance kit: for each kind of backend, a class of tests that a plugin's tests derive from.

A derived class, in a test file of the plugin, names the plugin and the backend and supplies what only its author can
know; pytest then runs all tests of the kit against it, with the hooks of the plugin and without the core.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlp_hookspecs.testing.artifacts import MemorySource, MemoryTarget
    from mlp_hookspecs.testing.contract import BackendContract
    from mlp_hookspecs.testing.driver import Driver
    from mlp_hookspecs.testing.environments import EnvironmentContract
    from mlp_hookspecs.testing.formats import FormatContract
    from mlp_hookspecs.testing.launchers import LauncherContract
    from mlp_hookspecs.testing.sinks import RecordingSink
    from mlp_hookspecs.testing.stores import StoreContract

__all__ = [
    "BackendContract",
    "Driver",
    "EnvironmentContract",
    "FormatContract",
    "LauncherContract",
    "MemorySource",
    "MemoryTarget",
    "RecordingSink",
    "StoreContract",
]

_HOMES = {
    "BackendContract": "contract",
    "Driver": "driver",
    "EnvironmentContract": "environments",
    "FormatContract": "formats",
    "LauncherContract": "launchers",
    "MemorySource": "artifacts",
    "MemoryTarget": "artifacts",
    "RecordingSink": "sinks",
    "StoreContract": "stores",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is asked for: the kit's worker, which is in this package, runs where pytest is not."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest

    module = f"{__name__}.{_HOMES[name]}"
    # Failures in the kit's modules are shown in detail, as those in a test file are.
    pytest.register_assert_rewrite(*{module, f"{__name__}.contract"}.difference(sys.modules))
    return getattr(import_module(module), name)
