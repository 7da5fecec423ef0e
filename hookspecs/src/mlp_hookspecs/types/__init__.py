"""The values that cross the border between the core and plugins: frozen, slotted, validated once.

Each is imported from its module when it is first used: making these classes is what importing the contract costs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mlp_hookspecs.types.artifact import ArtifactPart, ArtifactRef, Attachment
    from mlp_hookspecs.types.base import Json, frozen_map
    from mlp_hookspecs.types.deploy import (
        DeployDiff,
        Deployment,
        DeployRequest,
        FlowPlan,
        ParameterInfo,
        Schedule,
        Trigger,
    )
    from mlp_hookspecs.types.environment import (
        PLATFORM_FLOORS,
        EnvironmentLock,
        EnvironmentSpec,
        ProvisionedEnvironment,
    )
    from mlp_hookspecs.types.flow import FlowGraph, PlannedStep, StepInfo, StepKind, StepNode
    from mlp_hookspecs.types.launch import (
        CodeRef,
        Failure,
        ForeachFrame,
        LaunchRequest,
        RunContext,
        StepOutcome,
        StepRequest,
        TaskInput,
        TaskKey,
        Transition,
        WorkerCommand,
    )
    from mlp_hookspecs.types.option import OPTIONS_ATTRIBUTE, Option, OptionDecorator, decorator, record_option
    from mlp_hookspecs.types.plan import CatchPolicy, FailureKind, Resources, RetryPolicy, StepPlan
    from mlp_hookspecs.types.plugin import Backend, BackendKind, Command, PluginId, Setting, SettingType, Wrap

HOMES: Final = {
    "ArtifactPart": "mlp_hookspecs.types.artifact",
    "ArtifactRef": "mlp_hookspecs.types.artifact",
    "Attachment": "mlp_hookspecs.types.artifact",
    "Backend": "mlp_hookspecs.types.plugin",
    "BackendKind": "mlp_hookspecs.types.plugin",
    "CatchPolicy": "mlp_hookspecs.types.plan",
    "CodeRef": "mlp_hookspecs.types.launch",
    "Command": "mlp_hookspecs.types.plugin",
    "DeployDiff": "mlp_hookspecs.types.deploy",
    "DeployRequest": "mlp_hookspecs.types.deploy",
    "Deployment": "mlp_hookspecs.types.deploy",
    "EnvironmentLock": "mlp_hookspecs.types.environment",
    "EnvironmentSpec": "mlp_hookspecs.types.environment",
    "Failure": "mlp_hookspecs.types.launch",
    "FailureKind": "mlp_hookspecs.types.plan",
    "FlowGraph": "mlp_hookspecs.types.flow",
    "FlowPlan": "mlp_hookspecs.types.deploy",
    "ForeachFrame": "mlp_hookspecs.types.launch",
    "Json": "mlp_hookspecs.types.base",
    "LaunchRequest": "mlp_hookspecs.types.launch",
    "OPTIONS_ATTRIBUTE": "mlp_hookspecs.types.option",
    "PLATFORM_FLOORS": "mlp_hookspecs.types.environment",
    "Option": "mlp_hookspecs.types.option",
    "OptionDecorator": "mlp_hookspecs.types.option",
    "ParameterInfo": "mlp_hookspecs.types.deploy",
    "PlannedStep": "mlp_hookspecs.types.flow",
    "PluginId": "mlp_hookspecs.types.plugin",
    "ProvisionedEnvironment": "mlp_hookspecs.types.environment",
    "Resources": "mlp_hookspecs.types.plan",
    "RetryPolicy": "mlp_hookspecs.types.plan",
    "RunContext": "mlp_hookspecs.types.launch",
    "Schedule": "mlp_hookspecs.types.deploy",
    "Setting": "mlp_hookspecs.types.plugin",
    "SettingType": "mlp_hookspecs.types.plugin",
    "StepInfo": "mlp_hookspecs.types.flow",
    "StepKind": "mlp_hookspecs.types.flow",
    "StepNode": "mlp_hookspecs.types.flow",
    "StepOutcome": "mlp_hookspecs.types.launch",
    "StepPlan": "mlp_hookspecs.types.plan",
    "StepRequest": "mlp_hookspecs.types.launch",
    "TaskInput": "mlp_hookspecs.types.launch",
    "TaskKey": "mlp_hookspecs.types.launch",
    "Transition": "mlp_hookspecs.types.launch",
    "Trigger": "mlp_hookspecs.types.deploy",
    "WorkerCommand": "mlp_hookspecs.types.launch",
    "Wrap": "mlp_hookspecs.types.plugin",
    "decorator": "mlp_hookspecs.types.option",
    "frozen_map": "mlp_hookspecs.types.base",
    "record_option": "mlp_hookspecs.types.option",
}
"""The module of each name."""

__all__ = [
    "OPTIONS_ATTRIBUTE",
    "PLATFORM_FLOORS",
    "ArtifactPart",
    "ArtifactRef",
    "Attachment",
    "Backend",
    "BackendKind",
    "CatchPolicy",
    "CodeRef",
    "Command",
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
    "Option",
    "OptionDecorator",
    "ParameterInfo",
    "PlannedStep",
    "PluginId",
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
    "frozen_map",
    "record_option",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used; AttributeError for any other."""
    home = HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'mlp_hookspecs.types' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value
