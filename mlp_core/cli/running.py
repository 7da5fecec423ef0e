"""How ``mlp run`` and ``mlp resume`` run a flow, and what they say when it fails."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mlp_core.cli import parameters
from mlp_core.cli.progress import choose_progress
from mlp_core.cli.report import print_error
from mlp_core.cli.text import place, plural, safe_line, safe_text
from mlp_core.errors import NotFound, RunCancelled, RunFailed, UsageError
from mlp_core.runner import RunOptions, RunResult, run_flow

if TYPE_CHECKING:
    import argparse

    from mlp_core.cli.arguments import Parser
    from mlp_core.cli.dispatch import Call
    from mlp_core.runner.ending import TaskFailure
    from mlp_core.session import Session
    from mlp_core.store import RunState

_SHOWN_FAILURES = 3
_ISOLATIONS = ("fork", "spawn", "inline")


def run_arguments(parser: Parser) -> None:
    """Add the options of ``mlp run``."""
    parameters.add_parameter_options(parser)
    _add_options(parser)


def run_command(call: Call) -> int:
    """Run a flow."""
    return _run(call, attrs.evolve(_options(call.args), parameters=parameters.texts(call.args), from_text=True))


def resume_arguments(parser: Parser) -> None:
    """Add the options of ``mlp resume``."""
    parser.positional("step", nargs="?", help="run this step again, and all after it, though they succeeded")
    parser.option("--origin-run-id", metavar="ID", help="the run to resume; by default the flow's newest")
    _add_options(parser)


def resume_command(call: Call) -> int:
    """Run a flow again, without what succeeded in an earlier run."""
    options = _options(call.args)
    origin = _origin(call, call.args.origin_run_id)
    return _run(call, attrs.evolve(options, origin=origin, resume_from=call.args.step))


def run_to_end(flow: type[Any], session: Session, options: RunOptions, args: argparse.Namespace, prog: str) -> int:
    """Run a flow with the display that suits, and return the exit status.

    Parameters
    ----------
    flow : type
        The flow's class.
    session : Session
        The project.
    options : RunOptions
        What is asked for.
    args : argparse.Namespace
        What `add_output_options` added.
    prog : str
        The command that resumes a run, for the hint after a failure; empty for none.
    """
    result = run_flow(flow, session, options, choose_progress(quiet=args.quiet, as_json=args.json))
    if result.status == "succeeded":
        return 0
    if not args.json:
        _show_failures(result, prog, _store_flag(session))
    if result.status == "cancelled":
        return 128 + result.signal if result.signal else RunCancelled.exit_status
    return RunFailed.exit_status


def _add_options(parser: Parser) -> None:
    """Add what run and resume have in common."""
    repeat: dict[str, Any] = {"action": "append", "default": []}
    parser.option("--tag", metavar="TAG", help="give the run a tag; may be repeated", **repeat)
    parser.option("--namespace", metavar="TAG", help="the namespace that the client sees inside the run")
    parser.option(
        "--with", dest="with_options", metavar="OPTION", help="decorate every step: retry or retry:times=2", **repeat
    )
    parser.option("--max-workers", type=_count, metavar="N", help="at most so many tasks at once")
    parser.option("--max-num-splits", type=_count, metavar="N", help="refuse a foreach over more items")
    parser.option("--launcher", metavar="NAME", help="where steps run that do not say it themselves")
    parser.option(
        "--isolation",
        choices=_ISOLATIONS,
        metavar="HOW",
        help="how tasks on this machine are kept apart: fork, spawn, or inline for debugging",
    )
    parser.option("--run-id-file", type=Path, metavar="PATH", help="write the run's id to this file")
    parser.option("--flow", metavar="NAME", help="the flow, where the file defines several")
    add_output_options(parser)


def add_output_options(parser: Parser) -> None:
    """Add what decides how a run is displayed."""
    parser.option("-q", "--quiet", action="store_true", help="print nothing but failures")
    parser.option("--json", action="store_true", help="print a JSON object a line for each event")


def _options(args: argparse.Namespace) -> RunOptions:
    """Return the options as the runner takes them."""
    return RunOptions(
        tags=tuple(args.tag),
        namespace=args.namespace,
        max_workers=args.max_workers,
        max_num_splits=args.max_num_splits,
        with_options=tuple(args.with_options),
        launcher=args.launcher,
        isolation=args.isolation,
        run_id_file=args.run_id_file,
        command=tuple(sys.argv),
        owns_process=True,
    )


def _run(call: Call, options: RunOptions) -> int:
    """Run the call's flow."""
    session = call.with_flags(options.flags())
    prog = f"mlp resume {place(str(call.start))}" if call.prog == "mlp" else f"{call.prog} resume"
    return run_to_end(call.the_flow, session, options, call.args, prog)


def _origin(call: Call, run_id: str | None) -> RunState:
    """Return the run to resume: the named one, else the flow's newest of the same user."""
    from mlp_core.client import client_for

    flow = call.the_flow.__name__
    client = client_for(call.session)
    if run_id is not None:
        prefix, _, last = run_id.rpartition("/")
        if prefix not in ("", flow):
            raise UsageError(f"run {safe_line(run_id)} is not one of {flow}", hint=f"give an id, or {flow}/ID")
        return client.handle(flow, last).state
    newest = next((run for run in client.runs(flow) if run.status != "damaged"), None)
    if newest is None:
        hint = f"run it first, or name another's run by --origin-run-id: mlp list {flow}"
        raise NotFound(f"there is no run of {flow} by {client.username} to resume", hint=hint)
    if newest.status == "running":
        hint = "wait for its end, or name another by --origin-run-id"
        raise UsageError(f"the newest run, {flow}/{newest.run_id}, is still running", hint=hint)
    return client.handle(flow, newest.run_id).state


def _store_flag(session: Session) -> str:
    """Return the option that a command needs to find the run; empty where it finds it by itself."""
    import shlex

    is_flag = session.settings.source("store").startswith("flag ")
    return f" --store {shlex.quote(place(session.store_url))}" if is_flag else ""


def _show_failures(result: RunResult, prog: str, store_flag: str) -> None:
    """Print why tasks failed, and what to do next."""
    for failed in result.failures[:_SHOWN_FAILURES]:
        print_error(_described(result, failed), label=False)
    more = len(result.failures) - _SHOWN_FAILURES
    if more > 0:
        print_error(f"... and {plural(more, 'more failed task')}: mlp show {result.flow}/{result.run_id}", label=False)
    message = f"run {result.flow}/{result.run_id} {result.status}: {result.message}"
    hints = []
    if result.failures:
        first = result.failures[0]
        hints.append(f"its log: mlp logs {result.flow}/{result.run_id}/{first.key.path}{store_flag}")
    if prog:
        hints.append(f"once mended, go on from there: {prog}{store_flag}")
    print_error("\n  hint: ".join([safe_line(message), *hints]))


def _described(result: RunResult, failed: TaskFailure) -> str:
    """Return why a task failed: the user's traceback, else the end of what it printed."""
    failure = failed.failure
    attempts = f", attempt {failed.attempt + 1}" if failed.attempt else ""
    lines = [f"{result.flow}/{result.run_id}/{failed.key.path} failed ({failure.kind}{attempts})"]
    if failure.traceback:
        lines.append(failure.traceback.rstrip())
    else:
        lines.append(f"{failure.type}: {failure.message}" if failure.type else failure.message)
        # The platform's own refusals are printed by the task as well, in more lines.
        if failed.log_tail.strip() and failure.message.partition(";")[0] not in failed.log_tail:
            lines.append("the last that it printed:")
            lines += [f"| {line}" for line in failed.log_tail.rstrip().splitlines()[-10:]]
    return safe_text("\n".join(lines))


def _count(text: str) -> int:
    """Read a positive whole number."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


_count.__name__ = "positive whole number"  # argparse names it so in its message
