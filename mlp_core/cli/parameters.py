"""How a flow's parameters become options, and options become values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlp_core.cli.arguments import Parser, escaped
from mlp_core.errors import ParameterError, UsageError
from mlp_core.names import shown
from mlp_core.parameters import info, parameters_of, resolve

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from mlp_hookspecs import ParameterInfo

_PREFIX = "parameter:"


def add_parameter_options(parser: Parser) -> None:
    """Add the option that gives any parameter by name."""
    parser.option(
        "--param", action="append", default=[], metavar="NAME=VALUE", help="give a parameter; may be repeated"
    )


def add_parameters(parser: Parser, flow: type[Any]) -> dict[str, str]:
    """Add an option for each parameter of a flow.

    Parameters
    ----------
    parser : Parser
        The parser.
    flow : type
        The flow's class.

    Returns
    -------
    dict of str to str
        Parameters whose option has another meaning already, by the option.
    """
    if "--param" not in parser.flags:
        return {}
    clashes = {}
    for parameter in parameters_of(flow).values():
        try:
            described = info(parameter)
        except ParameterError:
            continue  # the check of the whole flow tells what is wrong with it
        spellings = list(dict.fromkeys(f"--{spelling}" for spelling in _spellings(described.name)))
        taken = [spelling for spelling in spellings if spelling in parser.flags]
        if taken:
            clashes.update(dict.fromkeys(taken, described.name))
            continue
        parser.option(
            *spellings,
            section="parameters",
            boolean=described.type.split(" ")[0] == "bool",
            dest=_PREFIX + described.name,
            metavar=escaped(described.type),
            help=escaped(_help(described)),
        )
    return clashes


def values(flow: type[Any], args: argparse.Namespace, username: str) -> dict[str, Any]:
    """Return the values that a run starts with, by attribute.

    Parameters
    ----------
    flow : type
        The flow's class.
    args : argparse.Namespace
        The options as they were read.
    username : str
        Who starts the run.

    Raises
    ------
    ParameterError
        Where a value is missing, unknown or refused.
    """
    return resolve(flow, texts(args), from_text=True, user_name=username)


def texts(args: argparse.Namespace) -> dict[str, str]:
    """Return the parameters that were given, as text by name."""
    given = pairs(args.param, "--param")
    for name, value in vars(args).items():
        if name.startswith(_PREFIX) and value is not None:
            parameter = name.removeprefix(_PREFIX)
            if any(_same(parameter, other) for other in given):
                raise UsageError(f"parameter {parameter} is given twice, by --{parameter} and by --param")
            given[parameter] = value
    return given


def pairs(given: Sequence[str], option: str) -> dict[str, str]:
    """Return names and values of ``NAME=VALUE`` texts; UsageError where one is none or a name is given twice."""
    found: dict[str, str] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        name = name.strip()
        if not equals or not name:
            raise UsageError(f"{option} {shown(pair)} is refused", hint="it must be NAME=VALUE: alpha=0.1")
        if any(_same(name, other) for other in found):
            raise UsageError(f"parameter {shown(name)} is given twice")
        found[name] = value
    return found


def _spellings(name: str) -> tuple[str, str, str]:
    """Return how an option may be written: as declared, and with hyphens or underscores throughout."""
    return name, name.replace("_", "-"), name.replace("-", "_")


def _same(name: str, other: str) -> bool:
    """Tell whether two names are one parameter's."""
    return name.replace("-", "_") == other.replace("-", "_")


def _help(parameter: ParameterInfo) -> str:
    """Return what the help says of a parameter."""
    parts = [parameter.help] if parameter.help else []
    if parameter.choices:
        parts.append(f"one of {', '.join(parameter.choices)}")
    parts.append("required" if parameter.required else f"default {parameter.default}" if parameter.default else "")
    return "; ".join(part for part in parts if part)
