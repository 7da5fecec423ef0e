"""What a flow is once everything about it is frozen: enough to begin a run of it anywhere, with no project at hand."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

from mlp_core.errors import NotFound, StoreDamaged
from mlp_core.parameters import info, parameters_of
from mlp_core.runner.environments import StepEnvironments
from mlp_core.store import layout
from mlp_hookspecs import (
    ArtifactRef,
    CodeRef,
    EnvironmentLock,
    FlowGraph,
    FlowPlan,
    Json,
    PlannedStep,
    PluginId,
    Schedule,
    Trigger,
    frozen_map,
    wire,
)

if TYPE_CHECKING:
    from mlp_core.runner.planning import CheckedFlow
    from mlp_core.session import Session
    from mlp_core.store import Store

MODULE = "mlp_core.orchestrated"
"""The module whose commands an orchestrator calls."""


@attrs.frozen
class Blueprint:
    """A frozen flow, as it lies in the store.

    Attributes
    ----------
    graph : FlowGraph
        The graph.
    steps : tuple of PlannedStep
        The plan of each step.
    code : CodeRef
        The code, with its package.
    constants : mapping of str to ArtifactRef
        The class's constants.
    parameters : mapping of str to str
        Values that were frozen, as text, by parameter name.
    locks : mapping of str to EnvironmentLock
        The environment of each step that has one.
    plugins : tuple of PluginId
        The plugins in force.
    worker_plugins : tuple of PluginId
        The plugins that workers must have.
    settings : mapping of str to JSON
        The settings, without secrets.
    tags : tuple of str
        Tags of every run.
    """

    graph: FlowGraph
    steps: tuple[PlannedStep, ...]
    code: CodeRef
    constants: Mapping[str, ArtifactRef] = attrs.field(factory=dict, converter=frozen_map)
    parameters: Mapping[str, str] = attrs.field(factory=dict, converter=frozen_map)
    locks: Mapping[str, EnvironmentLock] = attrs.field(factory=dict, converter=frozen_map)
    plugins: tuple[PluginId, ...] = ()
    worker_plugins: tuple[PluginId, ...] = ()
    settings: Mapping[str, Json] = attrs.field(factory=dict, converter=frozen_map)
    tags: tuple[str, ...] = ()


def draw_blueprint(  # noqa: PLR0913 # what a blueprint holds, by keyword
    checked: CheckedFlow,
    session: Session,
    code: CodeRef,
    *,
    constants: Mapping[str, ArtifactRef],
    parameters: Mapping[str, str],
    tags: tuple[str, ...] = (),
) -> Blueprint:
    """Freeze a flow.

    Parameters
    ----------
    checked : CheckedFlow
        The planned flow.
    session : Session
        Plugins and settings.
    code : CodeRef
        The code, with its package.
    constants : mapping of str to ArtifactRef
        The class's constants.
    parameters : mapping of str to str
        Values to freeze, as text.
    tags : tuple of str
        Tags of every run.

    Returns
    -------
    Blueprint
        The frozen flow.
    """
    prepared = StepEnvironments(session).prepare(checked, provision=False)
    return Blueprint(
        graph=checked.graph,
        steps=checked.steps,
        code=code,
        constants=constants,
        parameters=parameters,
        locks={name: step.lock for name, step in prepared.steps.items() if step.lock is not None},
        plugins=tuple(record.id for record in session.hooks.records if record.in_force),
        worker_plugins=session.hooks.worker_plugins(),
        settings=session.settings.portable(),
        tags=tags,
    )


def store_blueprint(store: Store, blueprint: Blueprint) -> str:
    """Store a blueprint, durably, and return its digest."""
    content = wire.dumps(blueprint)
    digest = f"sha256-{hashlib.sha256(content).hexdigest()}"
    store.objects.create(layout.blueprint(digest), content, sync=True)
    return digest


def read_blueprint(store: Store, digest: str) -> Blueprint:
    """Return a stored blueprint.

    Raises
    ------
    NotFound
        Where there is none.
    StoreDamaged
        Where it is not what was written.
    """
    key = layout.blueprint(digest)
    try:
        content = store.objects.read(key)
    except FileNotFoundError:
        raise NotFound(f"there is no blueprint {digest} in {store.url}", hint="deploy the flow again") from None
    if f"sha256-{hashlib.sha256(content).hexdigest()}" != digest:
        raise StoreDamaged(f"{key} in {store.url} is not what was written")
    return wire.loads(Blueprint, content)


def flow_plan(  # noqa: PLR0913 # what a plan holds, by keyword
    checked: CheckedFlow,
    digest: str,
    store_url: str,
    *,
    schedule: Schedule | None = None,
    triggers: tuple[Trigger, ...] = (),
    python: str = sys.executable,
) -> FlowPlan:
    """Return the plan from which an orchestrator runs a frozen flow with no driver of ours.

    Parameters
    ----------
    checked : CheckedFlow
        The planned flow.
    digest : str
        The blueprint's digest.
    store_url : str
        The store that the commands are to use.
    schedule : Schedule, optional
        When the flow runs by itself.
    triggers : tuple of Trigger
        What else starts it.
    python : str
        The interpreter of the commands, as it is called where they will run.

    Returns
    -------
    FlowPlan
        The plan; its commands are templates.
    """
    command = (python, "-P", "-m", MODULE)
    place = ("--store", store_url, "--flow", checked.graph.flow, "--run-id", "{run_id}")
    return FlowPlan(
        graph=checked.graph,
        steps=checked.steps,
        parameters=tuple(info(parameter) for parameter in parameters_of(checked.flow).values()),
        schedule=schedule,
        triggers=triggers,
        begin=(*command, "begin", "--store", store_url, "--blueprint", digest, "--parameters", "{parameters}"),
        step=(*command, "step", *place, "--step", "{step}", "--task-id", "{task_id}", "--attempt", "{attempt}"),
        finish=(*command, "finish", *place, "--status", "{status}"),
    )
