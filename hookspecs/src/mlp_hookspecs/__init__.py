"""mlp-hookspecs: the contract between the core of the platform and its plugins."""

from mlp_hookspecs import events, handles, specs, types
from mlp_hookspecs.markers import ENTRY_POINT_GROUP, PROJECT_NAME, hookimpl, hookspec
from mlp_hookspecs.types import *  # noqa: F403 # the types' own list is the public one
from mlp_hookspecs.warnings import CodeWarning, ContractDeprecationWarning, MlpWarning, PluginWarning

__all__ = [
    "ENTRY_POINT_GROUP",
    "PROJECT_NAME",
    "CodeWarning",
    "ContractDeprecationWarning",
    "MlpWarning",
    "PluginWarning",
    "events",
    "handles",
    "hookimpl",
    "hookspec",
    "specs",
    "types",
]
__all__ += types.__all__
