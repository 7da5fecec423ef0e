"""What is deployed: an immutable version of a flow, where it runs, and what a target would change."""

from collections.abc import Mapping

import attrs

from mlp_hookspecs.types.base import Json, frozen_map
from mlp_hookspecs.types.flow import FlowPlan
from mlp_hookspecs.types.launch import CodeRef
from mlp_hookspecs.types.plugin import PluginId


@attrs.frozen
class DeployRequest:
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


@attrs.frozen
class Deployment:
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


@attrs.frozen
class DeployDiff:
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
