"""Which decorators the plugin brings, and what they accept.

This module is imported wherever a flow file is, so that it needs nothing but what every step's interpreter has.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import ClassVar, Literal

import attrs

from mlp_hookspecs import EnvironmentSpec, Json, Option, decorator, frozen_map
from mlp_hookspecs.requirements import normal_python
from mlp_plugin_conda.requirement import normal_channels, normal_packages, normal_pip

BACKEND = "conda"
"""The environment backend's name."""


def _python(value: object) -> str | None:
    """Convert the field, which may be left out."""
    return None if value is None else normal_python(value)


@attrs.frozen
class Conda(Option):
    """Run a step in an environment of its own, with packages from conda channels.

    Attributes
    ----------
    packages : mapping of str to str
        A version or version specifier, in conda's terms, for each conda package: ``"2.1.0"``, ``"2.1.*"``,
        ``">=2,<3"``, ``"2.1.0=cuda12*"`` with a build, or empty for any. A name may say its channel:
        ``"conda-forge::numpy"``.
    channels : sequence of str
        Names or URLs of channels, the preferred first; by default conda-forge.
    python : str or None
        The interpreter's version, ``3.12`` or ``3.12.1``; by default that of the interpreter which starts the run, to
        its minor version.
    libraries : mapping of str to str
        More packages: another name for `packages`.
    pip : mapping of str to str
        A version or version specifier for each package from the index that uv is configured for.
    disabled : bool
        Keeps a step in the current interpreter, though its flow has the option.

    Examples
    --------
    >>> Conda(packages={"NumPy": "2.1"}, channels=["conda-forge"], python="3.12").packages
    {'numpy': '==2.1'}
    """

    name: ClassVar[str] = "conda"
    levels: ClassVar[tuple[Literal["step", "flow"], ...]] = ("step", "flow")
    packages: Mapping[str, str] = attrs.field(factory=dict, converter=normal_packages)
    channels: tuple[str, ...] = attrs.field(default=(), converter=normal_channels)
    python: str | None = attrs.field(default=None, converter=_python)
    libraries: Mapping[str, str] = attrs.field(factory=dict, converter=normal_packages)
    pip: Mapping[str, str] = attrs.field(factory=dict, converter=normal_pip)
    disabled: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))

    def __attrs_post_init__(self) -> None:
        """Unite the two names of one field."""
        united = normal_packages({**self.libraries, **self.packages})
        object.__setattr__(self, "packages", united)
        object.__setattr__(self, "libraries", frozen_map({}))

    @property
    def environment(self) -> EnvironmentSpec | None:
        """The environment that is asked for; None where the option is disabled."""
        if self.disabled:
            return None
        requirement: dict[str, Json] = {
            "packages": self.packages,
            "channels": list(self.channels),
            "pip": self.pip,
            # Which Python it is where none is asked for, unless the packages are added to an environment that has one.
            "python": self.python,
            "default_python": f"{sys.version_info.major}.{sys.version_info.minor}",
        }
        if self.python is not None:
            del requirement["default_python"]
        return EnvironmentSpec(BACKEND, requirement)

    def over(self, base: Conda) -> Conda:
        """Return this option with what it leaves open taken from another one; packages are united.

        Parameters
        ----------
        base : Conda
            The other one.

        Returns
        -------
        Conda
            What both ask for; where they differ, what this one does.
        """
        return attrs.evolve(
            self,
            packages=_united(base.packages, self.packages),
            pip=_united(base.pip, self.pip),
            channels=self.channels or base.channels,
            python=self.python or base.python,
        )


@attrs.frozen
class CondaBase(Conda):
    """What all steps of a flow have in common, each step's ``@conda`` adding to it; the arguments are the same."""

    name: ClassVar[str] = "conda_base"


conda = decorator(Conda)
conda_base = decorator(CondaBase)


def _united(base: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """Return two sets of packages as one: a package of the second replaces that of the first, whatever its channel."""
    names = {_bare(key) for key in own}
    return {**{key: version for key, version in base.items() if _bare(key) not in names}, **own}


def _bare(key: str) -> str:
    """Return a package's name without its channel and its extras."""
    return key.rpartition("::")[2].partition("[")[0]
