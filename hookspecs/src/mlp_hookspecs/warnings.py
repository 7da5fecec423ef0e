"""Which warnings the platform gives about plugins, so that users can filter them by class."""

from __future__ import annotations


class MlpWarning(UserWarning):
    """The base of all warnings of the platform."""


class PluginWarning(MlpWarning):
    """A plugin was disabled or misbehaved; the message names it, its distribution and version."""


class ContractDeprecationWarning(MlpWarning, DeprecationWarning):
    """A plugin uses a part of the contract that will be removed; the message names the replacement."""


class CodeWarning(MlpWarning):
    """Something in the flow's code may not do what its author expects."""
