"""Which markers bind a function to the contract: the pluggy project name and its two markers."""

from __future__ import annotations

from typing import Final

import pluggy

PROJECT_NAME: Final = "mlp"
"""The pluggy project name; hook names start with it and an underscore."""

ENTRY_POINT_GROUP: Final = "mlp"
"""The entry-point group in which a distribution names its plugin."""

hookspec: Final = pluggy.HookspecMarker(PROJECT_NAME)
"""Marks a specification; only `mlp_hookspecs.specs` uses it."""

hookimpl: Final = pluggy.HookimplMarker(PROJECT_NAME)
"""Marks a plugin's implementation of a hook.

Examples
--------
>>> from mlp_hookspecs import Backend, hookimpl
>>> class Plugin:
...     @hookimpl
...     def mlp_backends(self):
...         return (Backend(kind="launcher", name="slurm", summary="Runs steps as Slurm jobs."),)
>>> Plugin().mlp_backends()[0].name
'slurm'
"""
