"""mlp-hookspecs: the contract between the core of the platform and its plugins.

Everything public is here, and is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mlp_hookspecs.markers import ENTRY_POINT_GROUP, PROJECT_NAME, hookimpl, hookspec
from mlp_hookspecs.types import HOMES
from mlp_hookspecs.warnings import CodeWarning, ContractDeprecationWarning, MlpWarning, PluginWarning

if TYPE_CHECKING:
    from mlp_hookspecs import events, handles, specs, types
    from mlp_hookspecs.types import (
        OPTIONS_ATTRIBUTE,
        PLATFORM_FLOORS,
        ArtifactPart,
        ArtifactRef,
        Attachment,
        Backend,
        BackendKind,
        CatchPolicy,
        CodeRef,
        Command,
        DeployDiff,
        Deployment,
        DeployRequest,
        EnvironmentLock,
        EnvironmentSpec,
        Failure,
        FailureKind,
        FlowGraph,
        FlowPlan,
        ForeachFrame,
        Json,
        LaunchRequest,
        Option,
        OptionDecorator,
        ParameterInfo,
        PlannedStep,
        PluginId,
        ProvisionedEnvironment,
        Resources,
        RetryPolicy,
        RunContext,
        Schedule,
        Setting,
        SettingType,
        StepInfo,
        StepKind,
        StepNode,
        StepOutcome,
        StepPlan,
        StepRequest,
        TaskInput,
        TaskKey,
        Transition,
        Trigger,
        WorkerCommand,
        Wrap,
        decorator,
        frozen_map,
        record_option,
    )

__all__ = [
    "ENTRY_POINT_GROUP",
    "OPTIONS_ATTRIBUTE",
    "PLATFORM_FLOORS",
    "PROJECT_NAME",
    "ArtifactPart",
    "ArtifactRef",
    "Attachment",
    "Backend",
    "BackendKind",
    "CatchPolicy",
    "CodeRef",
    "CodeWarning",
    "Command",
    "ContractDeprecationWarning",
    "DeployDiff",
    "DeployRequest",
    "Deployment",
    "EnvironmentLock",
    "EnvironmentSpec",
    "Failure",
    "FailureKind",
    "FlowGraph",
    "FlowPlan",
    "ForeachFrame",
    "Json",
    "LaunchRequest",
    "MlpWarning",
    "Option",
    "OptionDecorator",
    "ParameterInfo",
    "PlannedStep",
    "PluginId",
    "PluginWarning",
    "ProvisionedEnvironment",
    "Resources",
    "RetryPolicy",
    "RunContext",
    "Schedule",
    "Setting",
    "SettingType",
    "StepInfo",
    "StepKind",
    "StepNode",
    "StepOutcome",
    "StepPlan",
    "StepRequest",
    "TaskInput",
    "TaskKey",
    "Transition",
    "Trigger",
    "WorkerCommand",
    "Wrap",
    "decorator",
    "events",
    "frozen_map",
    "handles",
    "hookimpl",
    "hookspec",
    "record_option",
    "specs",
    "types",
]

_MODULES = ("events", "handles", "specs", "types")


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used; AttributeError for any other."""
    if name in _MODULES:
        return importlib.import_module(f"mlp_hookspecs.{name}")
    home = HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'mlp_hookspecs' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value
