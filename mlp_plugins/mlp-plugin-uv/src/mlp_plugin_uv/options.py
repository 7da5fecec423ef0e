"""Which decorators the plugin brings, and what they accept.

This module is imported wherever a flow file is, so that it needs nothing but what every step's interpreter has.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import ClassVar, Literal

import attrs

from mlp_hookspecs import EnvironmentSpec, Option, decorator
from mlp_plugin_uv.requirement import normal_packages, normal_python

BACKEND = "pypi"
"""The environment backend's name."""


def _python(value: object) -> str | None:
    """Convert the field, which may be left out."""
    return None if value is None else normal_python(value)


@attrs.frozen
class Pypi(Option):
    """Run a step in an environment of its own, with packages from the index that uv is configured for.

    Attributes
    ----------
    packages : mapping of str to str
        A version or version specifier for each package: ``"2.1.0"``, ``">=2,<3"``, or empty for any. A name may have
        extras: ``"pandas[parquet]"``.
    python : str or None
        The interpreter's version, ``3.12`` or ``3.12.1``; by default that of the interpreter which starts the run, to
        its minor version.
    disabled : bool
        Keeps a step in the current interpreter, though its flow has the option.

    Examples
    --------
    >>> Pypi(packages={"Scikit_Learn": "1.5.0"}, python="3.12")
    Pypi(packages={'scikit-learn': '==1.5.0'}, python='3.12', disabled=False)
    """

    name: ClassVar[str] = "pypi"
    levels: ClassVar[tuple[Literal["step", "flow"], ...]] = ("step", "flow")
    packages: Mapping[str, str] = attrs.field(factory=dict, converter=normal_packages)
    python: str | None = attrs.field(default=None, converter=_python)
    disabled: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))

    @property
    def environment(self) -> EnvironmentSpec | None:
        """The environment that is asked for; None where the option is disabled."""
        if self.disabled:
            return None
        python = self.python or f"{sys.version_info.major}.{sys.version_info.minor}"
        return EnvironmentSpec(BACKEND, {"packages": self.packages, "python": python})


pypi = decorator(Pypi)
