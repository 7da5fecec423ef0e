"""What the store says of a deployment: its versions, and which of them is the active one."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from mlp_hookspecs import Deployment, DeployRequest, Json, frozen_map


@attrs.frozen
class Version:
    """A version of a flow, as it is recorded.

    Attributes
    ----------
    request : DeployRequest
        What the target gets.
    blueprint : str
        Digest of the frozen flow.
    time : float
        When it was recorded, in seconds since the epoch.
    username : str
        Who deployed it.
    with_options : tuple of str
        What ``--with`` gave.
    flags : mapping of str to JSON
        Settings that were not at their defaults.
    """

    request: DeployRequest
    blueprint: str
    time: float
    username: str
    with_options: tuple[str, ...] = ()
    flags: Mapping[str, Json] = attrs.field(factory=dict, converter=frozen_map)


@attrs.frozen
class Active:
    """Which version of a name is the active one.

    Attributes
    ----------
    deployment : Deployment
        What the target answered.
    time : float
        Since when, in seconds since the epoch.
    username : str
        Who made it so.
    """

    deployment: Deployment
    time: float
    username: str


@attrs.frozen
class Order:
    """What is asked for with a deploy.

    Attributes
    ----------
    target : str
        The target.
    name : str
        The deployment's name; empty for the flow's.
    parameters : mapping of str to str
        Values to freeze, as text by name.
    tags : tuple of str
        Tags of every run.
    with_options : tuple of str
        Options to attach to every step, as ``--with`` gives them.
    """

    target: str = "local"
    name: str = ""
    parameters: Mapping[str, str] = attrs.field(factory=dict, converter=frozen_map)
    tags: tuple[str, ...] = ()
    with_options: tuple[str, ...] = ()
