"""What is deployed: a flow as an orchestrator can run it, an immutable version of it, and where it runs."""

from collections.abc import Mapping
from typing import Literal

import attrs

from mlp_hookspecs.types.base import Json, Value, frozen_map
from mlp_hookspecs.types.flow import FlowGraph, PlannedStep
from mlp_hookspecs.types.launch import CodeRef
from mlp_hookspecs.types.plugin import PluginId


@attrs.frozen(eq=False, repr=False)
class ParameterInfo(Value):
    """A flow's parameter as deploy targets and user interfaces see it.

    Attributes
    ----------
    name : str
        The name on the command line, with hyphens or underscores as declared.
    type : str
        Readable name of the type, such as ``int`` or ``list[int]``.
    required : bool
        Whether a run must give a value.
    default : str or None
        The default as the text that the command line would take; None where there is none.
    help : str
        One line for people.
    choices : tuple of str
        The allowed values as text; empty where any value of the type will do.
    """

    name: str
    type: str
    required: bool = False
    default: str | None = None
    help: str = ""
    choices: tuple[str, ...] = ()


@attrs.frozen(eq=False, repr=False)
class Schedule(Value):
    """When a deployed flow runs by itself.

    Attributes
    ----------
    cron : str
        Five fields, as crontab(5) has them.
    timezone : str
        An IANA time zone name.
    """

    cron: str
    timezone: str = "UTC"


@attrs.frozen(eq=False, repr=False)
class Trigger(Value):
    """An event that starts a deployed flow.

    Attributes
    ----------
    kind : {"event", "flow"}
        A published event, or another flow's successful end.
    name : str
        The event's or the flow's name.
    parameters : mapping of str to str
        Which field of the event's payload fills which parameter.
    """

    kind: Literal["event", "flow"]
    name: str
    parameters: Mapping[str, str] = attrs.field(factory=dict, converter=frozen_map)


@attrs.frozen(eq=False, repr=False)
class FlowPlan(Value):
    """All that an orchestrator needs to run a flow step by step, with no driver of ours.

    Attributes
    ----------
    graph : FlowGraph
        The steps and their order.
    steps : tuple of PlannedStep
        One per step of the graph, in its order.
    parameters : tuple of ParameterInfo
        What a run may or must be given.
    schedule : Schedule or None
        When the flow runs by itself.
    triggers : tuple of Trigger
        What else starts it.
    project : mapping of str to str
        ``name``, ``branch`` and ``production`` where the flow declares a project.
    begin : tuple of str
        The command that creates the run; ``{parameters}`` stands for a JSON object of parameter values. Its standard
        output is one JSON object: ``run_id``, ``flow``, and ``next`` as for `step`, with the first task.
    step : tuple of str
        The command that runs one task; ``{run_id}``, ``{step}``, ``{task_id}`` and ``{attempt}`` stand for its
        identity, with attempts counted from 0. It ends the attempt when its time limit is over, and answers with a
        caught failure as a success. Its standard output is one JSON object: ``status`` and ``next``, a list of
        objects with ``step`` and ``task_id`` — the tasks that are ready once every earlier one has finished.
    finish : tuple of str
        The command that ends the run; ``{run_id}`` stands for its id and ``{status}`` for ``succeeded``, ``failed`` or
        ``cancelled``. A run succeeds only where its last step has.
    """

    graph: FlowGraph
    steps: tuple[PlannedStep, ...]
    parameters: tuple[ParameterInfo, ...] = ()
    schedule: Schedule | None = None
    triggers: tuple[Trigger, ...] = ()
    project: Mapping[str, str] = attrs.field(factory=dict, converter=frozen_map)
    begin: tuple[str, ...] = ()
    step: tuple[str, ...] = ()
    finish: tuple[str, ...] = ()


@attrs.frozen(eq=False, repr=False)
class DeployRequest(Value):
    """A version of a flow for a target. The core has recorded it before the target sees it.

    Attributes
    ----------
    target : str
        The target's backend name.
    name : str
        The deployment's name, unique in its target.
    version : int
        1-based, rising by one with each deploy of the name.
    plan : FlowPlan
        The flow with its schedule, triggers and the commands that run it.
    code : CodeRef
        The code package.
    parameters : mapping of str to JSON
        Values that are frozen at deploy time.
    configs : mapping of str to JSON
        Configurations that are frozen at deploy time.
    tags : tuple of str
        Tags for every run.
    plugins : tuple of PluginId
        The plugin set at deploy time.
    run_command : tuple of str
        A command that starts a whole run of this version with a driver of ours; arguments ``NAME=VALUE`` that are
        added to it set parameters.
    """

    target: str
    name: str
    version: int
    plan: FlowPlan
    code: CodeRef
    parameters: Mapping[str, Json] = attrs.field(factory=dict, converter=frozen_map)
    configs: Mapping[str, Json] = attrs.field(factory=dict, converter=frozen_map)
    tags: tuple[str, ...] = ()
    plugins: tuple[PluginId, ...] = ()
    run_command: tuple[str, ...] = ()


@attrs.frozen(eq=False, repr=False)
class Deployment(Value):
    """A version that a target has accepted.

    Attributes
    ----------
    target : str
        The target's backend name.
    name : str
        The deployment's name.
    version : int
        The version.
    location : str
        Where the target keeps it: a path, a URL, a job's name.
    details : mapping of str to str
        What else people may want to see.
    """

    target: str
    name: str
    version: int
    location: str = ""
    details: Mapping[str, str] = attrs.field(factory=dict, converter=frozen_map)


@attrs.frozen(eq=False, repr=False)
class DeployDiff(Value):
    """What a deploy would change.

    Attributes
    ----------
    action : str
        ``create``, ``update`` or ``nothing``.
    changes : tuple of str
        One line each, for people.
    """

    action: str
    changes: tuple[str, ...] = ()
