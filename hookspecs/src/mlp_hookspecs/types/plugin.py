"""What a plugin declares about itself: settings, backends, commands, wraps, and the identity it is known by."""

from contextlib import AbstractContextManager
from typing import Literal

import attrs

from mlp_hookspecs.types.base import Value

BackendKind = Literal["launcher", "environment", "format", "store", "index", "target", "secret"]

SettingType = Literal["str", "int", "float", "bool", "path", "list", "table"]
"""The types that a setting can have: each can be written in a file, a variable and a flag."""


@attrs.frozen(eq=False, repr=False)
class Setting(Value):
    """A setting that a plugin reads.

    It can be given in the file (``[tool.mlp]`` of ``pyproject.toml``, or ``mlp.toml``), as the environment variable
    ``MLP_`` + the name in capitals with dots as underscores, and as the flag ``--`` + the name with dots and
    underscores as hyphens; the flag wins over the variable, and the variable over the file.

    Attributes
    ----------
    name : str
        Lower case, dotted, beginning with the plugin's name: ``ray.address``.
    type : {"str", "int", "float", "bool", "path", "list", "table"}
        A list is of texts, separated by commas in a variable or flag. A table is a mapping of texts to JSON data, as
        JSON in a variable or flag; entries whose names look like secrets are taken from the variable only.
    default : str, int, float, bool, tuple of str or None
        The value when nobody gives one.
    help : str
        One line for people.
    secret : bool
        Whether the value is masked wherever settings are shown or recorded.
    """

    name: str
    type: SettingType = "str"
    default: str | int | float | bool | tuple[str, ...] | None = None
    help: str = ""
    secret: bool = False


@attrs.frozen(eq=False, repr=False)
class Backend(Value):
    """Something that users choose by name and that a plugin provides.

    Attributes
    ----------
    kind : {"launcher", "environment", "format", "store", "index", "target", "secret"}
        What it is; the kind decides which claim hooks are called for it.
    name : str
        The name that users write; for stores and secrets the scheme of the URL.
    summary : str
        One line for people.
    types : tuple of str
        For formats: dotted names of the types that it can encode, such as ``numpy.ndarray``. A format is chosen
        for a value by the most specific of these over the value's MRO.
    shares_driver_host : bool
        For launchers: whether steps run on the driver's own host, with its files and interpreters.
    runs_code : bool
        For formats: whether loading may run what the content names, as unpickling does. Where the setting
        ``storage.pickle`` is ``refuse``, the core calls no such format; where it is ``listed``, the format itself must
        load nothing but what ``storage.pickle_allowed`` lists.
    """

    kind: BackendKind
    name: str
    summary: str
    types: tuple[str, ...] = ()
    shares_driver_host: bool = False
    runs_code: bool = False


@attrs.frozen(eq=False, repr=False)
class Command(Value):
    """A subcommand of ``mlp``.

    Attributes
    ----------
    name : str
        The word after ``mlp``.
    target : str
        ``module:attribute`` of a callable, imported only when the command is called. It gets the arguments after
        the name (a tuple of str) and a `CommandSession`, and returns the exit status.
    summary : str
        One line for ``mlp --help``.
    """

    name: str
    target: str
    summary: str = ""


@attrs.frozen(eq=False, repr=False)
class Wrap(Value):
    """A context manager around a step's body.

    Attributes
    ----------
    priority : int
        Lower ones are entered first, that is, lie outside; equal ones are ordered by name.
    name : str
        Its name, for order and for messages.
    context : context manager
        Entered before the user's code and left after it, in the worker.
    """

    priority: int
    name: str
    context: AbstractContextManager[object]


@attrs.frozen(repr=False)
class PluginId(Value):
    """The identity of a loaded plugin.

    Attributes
    ----------
    name : str
        The entry point's name.
    distribution : str
        The distribution that provides it.
    version : str
        The distribution's version.
    """

    name: str
    distribution: str
    version: str

    def __str__(self) -> str:
        """Name, distribution and version on one line."""
        return f"{self.name} ({self.distribution} {self.version})"
