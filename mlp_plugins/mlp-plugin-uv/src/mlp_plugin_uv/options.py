"""Which decorators the plugin brings, and what they accept.

This module is imported wherever a flow file is, so that it needs nothing but what every step's interpreter has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

import attrs

from mlp_hookspecs import Option, OptionDecorator, decorator
from mlp_hookspecs.requirements import normal_python
from mlp_plugin_uv.normal import normal_index, normal_names, normal_packages

BACKEND: Final = "pypi"
"""The environment backend's name."""

Levels = tuple[Literal["step", "flow"], ...]


def _python(value: object) -> str | None:
    """Convert the field, which may be left out."""
    return None if value is None else normal_python(value)


def _file(value: object) -> str | None:
    """Convert the field, which may be left out."""
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip() or value.startswith("/") or not value.isprintable():
        raise ValueError(f"file={value!r} is refused: it must be a path relative to the flow's file")
    return value.strip()


def _project(value: object) -> str | None:
    """Convert the field, which may be left out."""
    if value is None or (isinstance(value, str) and value.strip() and value.isprintable()):
        return value.strip() if value is not None else None
    raise ValueError(f"project={value!r} is refused: it must be the path of a folder with a pyproject.toml")


def _extras(value: object) -> tuple[str, ...]:
    """Convert the field."""
    return normal_names("extras", value)


def _groups(value: object) -> tuple[str, ...]:
    """Convert the field."""
    return normal_names("groups", value)


def _index(value: object) -> str | None:
    """Convert the field, which may be left out."""
    return None if value is None else normal_index(value)


def _indexes(value: object) -> tuple[str, ...]:
    """Convert the field."""
    if isinstance(value, str) or not isinstance(value, tuple | list):
        raise TypeError(f"extra_indexes={value!r} is refused: it must be a sequence of URLs")
    return tuple(map(normal_index, value))


_IS_BOOL: Final = attrs.validators.instance_of(bool)


@attrs.frozen
class Pypi(Option):
    """Run a step in an environment of its own, with packages from a Python index.

    Attributes
    ----------
    packages : mapping of str to str
        A version or version specifier for each package: ``"2.1.0"``, ``">=2,<3"``, or empty for any. A name may have
        extras: ``"pandas[parquet]"``.
    python : str or None
        The interpreter's version, ``3.12`` or ``3.12.1``; by default that of the interpreter which starts the run, to
        its minor version, or that of the environment which the packages are added to.
    file : str or None
        A file that says what else is needed, relative to the flow's: a requirements file, ``pyproject.toml``,
        ``pylock.toml``, or a script with a block of metadata.
    extras, groups : tuple of str
        Which extras and dependency groups of a ``pyproject.toml`` are needed too.
    index : str or None
        The index, as a URL or ``name=URL``; by default the one that uv is configured for. Without credentials.
    extra_indexes : tuple of str
        Indexes that are asked before it.
    disabled : bool
        Keeps a step in the current interpreter, though its flow has the option.

    Examples
    --------
    >>> Pypi(packages={"Scikit_Learn": "1.5.0"}, python="3.12").packages
    {'scikit-learn': '==1.5.0'}
    """

    name: ClassVar[str] = "pypi"
    levels: ClassVar[Levels] = ("step", "flow")
    packages: Mapping[str, str] = attrs.field(factory=dict, converter=normal_packages)
    python: str | None = attrs.field(default=None, converter=_python)
    file: str | None = attrs.field(default=None, converter=_file)
    extras: tuple[str, ...] = attrs.field(default=(), converter=_extras)
    groups: tuple[str, ...] = attrs.field(default=(), converter=_groups)
    index: str | None = attrs.field(default=None, converter=_index)
    extra_indexes: tuple[str, ...] = attrs.field(default=(), converter=_indexes)
    disabled: bool = attrs.field(default=False, validator=_IS_BOOL)


@attrs.frozen
class PypiBase(Pypi):
    """Give every step of a flow an environment, which a step's ``@pypi`` adds to.

    The fields are those of `Pypi`. The packages of both are united, where a step's version wins; of every other field
    a step's holds if it is given. A step with ``@pypi(disabled=True)`` runs in the current interpreter.

    Examples
    --------
    >>> PypiBase(packages={"numpy": ">=2"}).name
    'pypi_base'
    """

    name: ClassVar[str] = "pypi_base"


@attrs.frozen
class Uv(Option):
    """Run a step in the environment of the uv project that the flow belongs to.

    Where the project has a ``uv.lock``, that is the environment's lock. The project's own code is not installed: it
    travels with the flow.

    Attributes
    ----------
    project : str or None
        The project's folder, relative to the flow's file; by default the nearest above it with a ``pyproject.toml``.
    extras, groups : tuple of str
        Which of its extras and dependency groups are needed too.
    python : str or None
        The interpreter's version; by default that of the interpreter which starts the run.
    disabled : bool
        Keeps a step in the current interpreter, though its flow has the option.

    Examples
    --------
    >>> Uv(groups=["train"]).groups
    ('train',)
    """

    name: ClassVar[str] = "uv"
    levels: ClassVar[Levels] = ("step", "flow")
    project: str | None = attrs.field(default=None, converter=_project)
    extras: tuple[str, ...] = attrs.field(default=(), converter=_extras)
    groups: tuple[str, ...] = attrs.field(default=(), converter=_groups)
    python: str | None = attrs.field(default=None, converter=_python)
    disabled: bool = attrs.field(default=False, validator=_IS_BOOL)


class FlowDecorator(OptionDecorator[PypiBase]):
    """A decorator of flows alone, though its option holds for their steps."""

    def __call__(self, /, *values: Any, **fields: Any) -> Any:
        """Record the option on a class, or return a decorator that does; TypeError for anything else."""
        if len(values) == 1 and not fields and callable(values[0]):
            return super().__call__(self._flow(values[0]))
        record = super().__call__(*values, **fields)
        return lambda flow: record(self._flow(flow))

    def _flow(self, flow: Any) -> Any:
        """Return what is decorated, if it is a class."""
        if not isinstance(flow, type):
            raise TypeError(f"@{self.option.name} decorates a flow; a step takes @{Pypi.name}, which is added to it")
        return flow


pypi = decorator(Pypi)
pypi_base = FlowDecorator(PypiBase)
uv = decorator(Uv)
