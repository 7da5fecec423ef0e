"""How ``mlp check`` finds a flow's mistakes, and how ``mlp show`` shows a flow's steps and parameters."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import attrs

from mlp_core.cli.text import first_line, place, plural, put, put_json, safe_text, table
from mlp_core.errors import FlowError, MlpError, ParameterError
from mlp_core.parameters import info, parameters_of
from mlp_core.runner import CheckedFlow, FlowErrors, check_flow

if TYPE_CHECKING:
    from pathlib import Path

    from mlp_core.cli.arguments import Parser
    from mlp_core.cli.dispatch import Call
    from mlp_hookspecs import ParameterInfo, PlannedStep, StepNode


def check_arguments(parser: Parser) -> None:
    """Add the options of ``mlp check``."""
    parser.option(
        "--with", dest="with_options", action="append", default=[], metavar="OPTION", help="check with this decorator"
    )
    _add_common(parser)


def check_command(call: Call) -> int:
    """Find a flow's mistakes; the exit status tells whether there are any."""
    try:
        checked = check_flow(call.the_flow, call.session, call.args.with_options)
    except FlowErrors as errors:
        if not call.args.json:
            raise
        put_json({"flow": call.the_flow.__name__, "errors": [_as_data(error) for error in errors.errors]})
        return errors.exit_status
    steps = checked.graph.steps
    if call.args.json:
        put_json({"flow": checked.graph.flow, "errors": [], "steps": [node.name for node in steps]})
    else:
        put(f"{checked.graph.flow}: no mistakes found in {plural(len(steps), 'step')}")
    return 0


def show_flow_arguments(parser: Parser) -> None:
    """Add the options of ``python flow.py show``."""
    _add_common(parser)


def show_flow_command(call: Call) -> int:
    """Show a flow: what it is for, its steps and its parameters."""
    checked = check_flow(call.the_flow, call.session)
    found = _parameters(call.the_flow)
    if call.args.json:
        put_json(
            {
                "flow": checked.graph.flow,
                "doc": checked.graph.doc,
                "start": checked.graph.start,
                "end": checked.graph.end,
                "steps": [_step_data(step) for step in checked.steps],
                "parameters": [attrs.asdict(parameter) for parameter in found],
            }
        )
        return 0
    put(_shown(checked, found, call.start))
    return 0


def _add_common(parser: Parser) -> None:
    parser.option("--flow", metavar="NAME", help="the flow, where the file defines several")
    parser.option("--json", action="store_true", help="print JSON")


def _parameters(flow: type[Any]) -> list[ParameterInfo]:
    """Return the parameters that are well declared."""
    found = []
    for parameter in parameters_of(flow).values():
        with contextlib.suppress(ParameterError):
            found.append(info(parameter))
    return found


def _shown(checked: CheckedFlow, parameters: list[ParameterInfo], start: Path) -> str:
    """Return what people read of a flow."""
    lines = [f"{checked.graph.flow}  ({place(str(start))})"]
    if checked.graph.doc.strip():
        lines += ["", *(f"  {line.strip()}".rstrip() for line in safe_text(checked.graph.doc).strip().splitlines())]
    rows = [
        (step.node.name, _way(step.node), " ".join(f"@{name}" for name in step.options), first_line(step.node.doc))
        for step in checked.steps
    ]
    lines += ["", _filled(("step", "then", "decorators", "what it does"), rows)]
    if parameters:
        rows = [(f"--{p.name}", p.type, _value(p), p.help) for p in parameters]
        lines += ["", _filled(("parameter", "type", "value", "help"), rows)]
    lines += ["", f"Run it: mlp run {place(str(start))}"]
    return "\n".join(lines)


def _filled(header: tuple[str, ...], rows: list[tuple[str, str, str, str]]) -> str:
    """Return a table without its empty columns."""
    columns = [column for column in range(len(header)) if any(row[column] for row in rows)]
    return table([header[column] for column in columns], [[row[column] for column in columns] for row in rows])


def _way(node: StepNode) -> str:
    """Return where a step goes, in words."""
    following = ", ".join(node.next)
    match node.kind:
        case "foreach":
            return f"{following}, for each of {node.foreach}"
        case "parallel":
            return f"{following}, {node.num_parallel} times at once"
        case "switch":
            cases = ", ".join(f"{target} if {value}" for value, target in node.cases)
            return f"by {node.condition}: {cases}"
        case "split":
            return f"{following}, side by side"
        case "end":
            return "(end)"
        case _:
            return following


def _value(parameter: ParameterInfo) -> str:
    """Return what a parameter's value is where none is given, and which are allowed."""
    value = "required" if parameter.required else parameter.default if parameter.default is not None else ""
    return f"{value} (one of {', '.join(parameter.choices)})" if parameter.choices else value


def _step_data(step: PlannedStep) -> dict[str, Any]:
    """Return a step as data."""
    return {**attrs.asdict(step.node), "options": dict(step.options), "plan": attrs.asdict(step.plan)}


def _as_data(error: MlpError) -> dict[str, Any]:
    """Return a mistake as data."""
    place = {"file": error.file, "line": error.line} if isinstance(error, FlowError) else {"file": "", "line": 0}
    return {**place, "kind": type(error).__name__, "message": error.message, "hint": error.hint}
