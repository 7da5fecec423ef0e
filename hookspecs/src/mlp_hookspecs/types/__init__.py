"""The values that cross the border between the core and plugins: frozen, slotted, validated once."""

from mlp_hookspecs.types.artifact import ArtifactPart, ArtifactRef, Attachment
from mlp_hookspecs.types.base import Json, frozen_map
from mlp_hookspecs.types.deploy import DeployDiff, Deployment, DeployRequest
from mlp_hookspecs.types.environment import EnvironmentLock, EnvironmentSpec, ProvisionedEnvironment
from mlp_hookspecs.types.flow import (
    FlowGraph,
    FlowPlan,
    ParameterInfo,
    PlannedStep,
    Schedule,
    StepInfo,
    StepKind,
    StepNode,
    Trigger,
)
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

__all__ = [
    "OPTIONS_ATTRIBUTE",
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
