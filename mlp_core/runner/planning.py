"""What a flow will do before anything starts: graph, parameters and options, checked together and planned."""

from __future__ import annotations

import ast
import json
import types
import typing
from typing import TYPE_CHECKING, Any

import attrs

from mlp_core.errors import FlowError, MlpError, OptionError, UsageError
from mlp_core.graph import parse_flow
from mlp_core.loading import reserved_names
from mlp_core.names import closest, identifier, shown
from mlp_hookspecs import FlowGraph, Option, PlannedStep, StepInfo, StepNode
from mlp_hookspecs.types import OPTIONS_ATTRIBUTE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlp_core.hooks import Hooks
    from mlp_core.session import Session
    from mlp_hookspecs import Json


class FlowErrors(UsageError):  # noqa: N818 # there are several
    """All mistakes that were found in a flow.

    Attributes
    ----------
    errors : tuple of MlpError
        Each with its own place and hint.
    """

    def __init__(self, errors: Sequence[MlpError]) -> None:
        """Collect the mistakes."""
        count = len(errors)
        super().__init__(f"the flow has {count} mistakes" if count > 1 else "the flow has a mistake")
        self.errors = tuple(errors)

    def __str__(self) -> str:
        """Return them all, one after the other."""
        return "\n".join(str(error) for error in self.errors)


@attrs.frozen(eq=False, repr=False)
class CheckedFlow:
    """A flow without mistakes, planned.

    Attributes
    ----------
    flow : type
        The class.
    graph : FlowGraph
        Its graph.
    steps : tuple of PlannedStep
        The plan of each step, in the graph's order.
    """

    flow: type[Any]
    graph: FlowGraph
    steps: tuple[PlannedStep, ...]

    def step(self, name: str) -> PlannedStep:
        """Return a step's plan; KeyError where there is no such step."""
        for step in self.steps:
            if step.node.name == name:
                return step
        raise KeyError(name)


def check_flow(flow: type[Any], session: Session, with_options: Sequence[str] = ()) -> CheckedFlow:
    """Check and plan a flow.

    Parameters
    ----------
    flow : type
        The flow's class.
    session : Session
        Plugins and settings.
    with_options : sequence of str
        What ``--with`` gave: ``retry`` or ``retry:times=2,minutes_between_retries=0``.

    Returns
    -------
    CheckedFlow
        The plan.

    Raises
    ------
    FlowErrors
        Where there are mistakes: all of them at once.
    """
    reserved = reserved_names(flow)
    parsed = parse_flow(flow, reserved)
    errors: list[MlpError] = [*parsed.errors]
    attached: list[Option] = []
    for text in with_options:
        try:
            attached.append(parse_option(text, session.hooks))
        except OptionError as error:
            errors.append(error)
    steps = []
    for node in parsed.graph.steps if not parsed.errors else ():
        options = options_of(flow, node, attached)
        try:
            steps.append(_plan(session.hooks, parsed.graph, node, options))
            _check_catch(flow, steps[-1])
        except MlpError as error:
            errors.append(_located(error, node))
    if errors:
        raise FlowErrors(errors)
    return CheckedFlow(flow, parsed.graph, tuple(steps))


def options_of(flow: type[Any], node: StepNode, attached: Sequence[Option] = ()) -> tuple[Option, ...]:
    """Return a step's options: its own, then the flow's and those of ``--with`` that it does not have itself."""
    own: tuple[Option, ...] = getattr(getattr(flow, node.name), OPTIONS_ATTRIBUTE, ())
    options = list(own)
    for option in (*_flow_options(flow), *attached):
        if "step" in option.levels and all(other.name != option.name for other in options):
            options.append(option)
    return tuple(options)


def parse_option(text: str, hooks: Hooks) -> Option:
    """Return the option that a ``--with`` text stands for.

    Parameters
    ----------
    text : str
        ``name`` or ``name:field=value,field=value``; values are Python literals or plain text.
    hooks : Hooks
        Where the options are.

    Raises
    ------
    OptionError
        Where the name or a field is unknown, or a value is refused.
    """
    name, _, rest = text.partition(":")
    option = hooks.option(name.strip())
    fields = {field.alias: field for field in attrs.fields(option)}
    try:
        hints = typing.get_type_hints(option)
    except NameError:  # the plugin's module names a type that it imports for type checkers alone
        hints = {}
    given: dict[str, Any] = {}
    for piece in _split_fields(rest):
        field, equals, value = piece.partition("=")
        field = field.strip()
        if not equals or field not in fields:
            close = closest(field, fields)
            hint = f"did you mean {close!r}?" if close else f"it takes {', '.join(fields) or 'no arguments'}"
            raise OptionError(f"--with {shown(text)}: {name} has no argument {shown(field)}", hint=hint)
        if field in given:
            raise OptionError(f"--with {shown(text)}: {name} has the argument {field!r} twice", hint="keep one of them")
        given[field] = _literal(value.strip(), hints.get(fields[field].name))
    try:
        return option(**given)
    except (TypeError, ValueError) as error:
        raise OptionError(f"--with {shown(text)}: {error}") from error


def _flow_options(flow: type[Any]) -> list[Option]:
    """Return the options of a flow and its bases, the most derived first."""
    return [option for base in flow.__mro__ for option in base.__dict__.get(OPTIONS_ATTRIBUTE, ())]


def _plan(hooks: Hooks, graph: FlowGraph, node: StepNode, options: Sequence[Option]) -> PlannedStep:
    """Plan one step, and refuse what its place in the graph excludes."""
    names = [option.name for option in options]
    for option in options:
        if names.count(option.name) > 1 and not option.repeatable:
            raise OptionError(f"step {node.name!r} has @{option.name} more than once", hint="keep one of them")
        hooks.option(option.name)
    plan = hooks.plan_step(StepInfo(graph.flow, node), options)
    if plan.catch is not None and node.kind in ("foreach", "switch", "parallel"):
        raise OptionError(
            f"step {node.name!r} has @catch, but where it goes depends on what it computes",
            hint="move what may fail to the step before, or leave @catch out",
        )
    if node.kind == "parallel":
        raise OptionError(f"step {node.name!r} uses num_parallel, for which no launcher here has gangs")
    for format_name in plan.formats.values():
        hooks.backend("format", format_name)
    if plan.environment is not None:
        hooks.backend("environment", plan.environment.backend)
    if plan.launcher is not None:
        hooks.backend("launcher", plan.launcher)
    return PlannedStep(node, plan, {option.name: _as_data(option) for option in options})


def _check_catch(flow: type[Any], step: PlannedStep) -> None:
    """Refuse a variable for the caught failure that no artifact may have as its name."""
    variable = step.plan.catch.variable if step.plan.catch is not None else None
    if variable is None:
        return
    identifier(variable, "the artifact of @catch")
    if hasattr(flow, variable):
        raise OptionError(
            f"the artifact of @catch is {variable!r}, which is something else in {flow.__name__}",
            hint="choose a name that is no step, parameter or method, such as var='failure'",
        )


def _as_data(option: Option) -> Json:
    """Return an option as JSON data; what JSON cannot hold is told as text, since nothing is built from it again."""
    return json.loads(json.dumps(attrs.asdict(option), default=str))


def _located(error: MlpError, node: StepNode) -> MlpError:
    """Return an error about a step with the step's place, unless it has one."""
    if isinstance(error, FlowError) or not isinstance(error, UsageError):
        return error
    return FlowError(error.message, file=node.file, line=node.line, hint=error.hint)


def _split_fields(text: str) -> list[str]:
    """Split at the commas that are not inside brackets or quotes."""
    pieces, depth, quote, current = [], 0, "", ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "," and depth == 0:
            pieces.append(current)
            current = ""
            continue
        current += character
    return [piece for piece in [*pieces, current] if piece.strip()]


def _literal(text: str, hint: Any) -> Any:
    """Return a value from text: a Python literal unless text is asked for, else the text itself."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    if hint is str or (is_union and str in typing.get_args(hint)):
        return text
    try:
        return ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text.lower(), text))
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two where it is nested too deeply
        return text
