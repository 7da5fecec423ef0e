"""How ``mlp list`` lists runs, and ``mlp artifacts`` what tasks left behind."""

from __future__ import annotations

import re
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import attrs

from mlp_core.cli.text import duration, moment, place, put, put_json, safe_line, safe_text, size, table
from mlp_core.client import client_for
from mlp_core.errors import NotFound, UsageError
from mlp_core.names import Pathspec, identifier, shown
from mlp_core.store.index import RunQuery, RunSummary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlp_core.cli.arguments import Parser
    from mlp_core.cli.dispatch import Call
    from mlp_core.client import DataArtifact, Task

_STATUSES: Final = ("running", "succeeded", "failed", "cancelled", "lost", "damaged")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_AGO: Final = re.compile(r"(\d+)([smhdw])")
_DEFAULT_LIMIT: Final = 20
_MOST: Final = 10**9
_TAGS_SHOWN: Final = 4


def list_arguments(parser: Parser) -> None:
    """Add the options of ``mlp list``."""
    parser.positional("flow", nargs="?", help="list the runs of this flow only")
    repeat: dict[str, Any] = {"action": "append", "default": []}
    parser.option("--status", metavar="STATUS", help=f"one of {', '.join(_STATUSES)}; may be repeated", **repeat)
    parser.option("--tag", metavar="TAG", help="with this tag; may be repeated, then with all of them", **repeat)
    parser.option("--namespace", metavar="TAG", help="in this namespace, such as user:alice; by default everybody's")
    parser.option("--since", metavar="TIME", help="started since: 2026-01-31, 2026-01-31T09:45, or 90m, 12h, 7d ago")
    parser.option("--until", metavar="TIME", help="started before then")
    parser.option(
        "-n", "--limit", type=_count, metavar="N", help=f"at most so many; 0 for all; default {_DEFAULT_LIMIT}"
    )
    parser.option("--json", action="store_true", help="print JSON")


def list_command(call: Call) -> int:
    """List runs, newest first."""
    args = call.args
    for status in args.status:
        if status not in _STATUSES:
            raise UsageError(f"there is no status {shown(status)}", hint=f"there are {', '.join(_STATUSES)}")
    client = client_for(call.session)
    client.namespace = args.namespace
    limit = _DEFAULT_LIMIT if args.limit is None else args.limit
    query = RunQuery(
        status=tuple(args.status),
        since=moment_of(args.since, "--since"),
        until=moment_of(args.until, "--until"),
        limit=limit + 1 if limit else None,
    )
    flow = identifier(args.flow, "flow") if args.flow else None
    runs = list(client.runs(flow, args.tag, query=query))
    more = bool(limit) and len(runs) > limit
    runs = runs[:limit] if limit else runs
    if args.json:
        put_json([attrs.asdict(run) for run in runs])
        return 0
    if not runs and flow is not None and not client.store.run_ids(flow):
        raise client.no_flow(flow)
    if not runs:
        filtered = any((args.status, args.tag, args.namespace, args.since, args.until))
        put("no run matches" if filtered else f"no run yet in {place(client.store.url)}; begin with: mlp run FLOW.py")
        return 0
    put(table(("run", "status", "started", "took", "user", "tags"), [_row(run) for run in runs]))
    if more:
        put(f"... and older ones: mlp list --limit {limit * 5}")
    return 0


def artifacts_arguments(parser: Parser) -> None:
    """Add the options of ``mlp artifacts``."""
    parser.positional("pathspec", help="a run, step, task or artifact: Flow/run, Flow/run/step, Flow/run/step/0/name")
    parser.option("--json", action="store_true", help="print JSON")


def artifacts_command(call: Call) -> int:
    """List the artifacts of tasks, or print the value of one."""
    client = client_for(call.session)
    client.namespace = None
    spec = Pathspec.parse(call.args.pathspec)
    if spec.artifact is not None:
        return _print_value(client.DataArtifact(str(spec)), as_json=call.args.json)
    tasks = _tasks(client, spec)
    if call.args.json:
        put_json({task.pathspec: [artifact_data(artifact) for artifact in task.artifacts] for task in tasks})
        return 0
    for number, task in enumerate(tasks):
        if number:
            put("")
        put(safe_line(task.pathspec))
        rows = [
            (f"  {artifact.id}", artifact.type, size(artifact.size), artifact.format, artifact.sha[:12])
            for artifact in sorted(task.artifacts, key=lambda artifact: artifact.id)
        ]
        put(table(("  name", "type", "size", "format", "sha256"), rows) if rows else "  no artifacts")
    return 0


def artifact_data(artifact: DataArtifact) -> dict[str, Any]:
    """Return what JSON tells of an artifact."""
    return {
        "name": artifact.id,
        "type": artifact.type,
        "size": artifact.size,
        "format": artifact.format,
        "digest": artifact.ref.digest,
    }


def _tasks(client: Any, spec: Pathspec) -> Sequence[Task]:
    """Return the tasks of a place: of a run its last step's, or all of a step's, oldest first."""
    if spec.task_id is not None:
        return [client.Task(str(spec))]
    if spec.step is not None:
        return list(client.Step(str(spec)))[::-1]
    run = client.Run(str(spec)) if spec.run_id is not None else client.Flow(spec.flow).latest_run
    end = run.end_task
    if end is not None:
        return [end]
    newest = next(iter(run), None)
    if newest is None:
        raise NotFound(f"{run.pathspec} has no task yet")
    return list(newest)[::-1]


def _print_value(artifact: DataArtifact, *, as_json: bool) -> int:
    """Print an artifact's value: as Python shows it, as far as JSON can tell it, or, into a file or pipe, its bytes."""
    value = artifact.data
    if as_json:
        put_json({**artifact_data(artifact), "value": value})
    elif isinstance(value, bytes | bytearray) and not sys.stdout.isatty():
        sys.stdout.buffer.write(value)  # as they are: mlp artifacts Flow/run/step/0/figure > figure.png
    else:
        put(safe_text(value if isinstance(value, str) else repr(value)))
    return 0


def _row(run: RunSummary) -> tuple[str, ...]:
    """Return a run's cells."""
    if run.status == "damaged":
        return (f"{run.flow}/{run.run_id}", "damaged", "", "", "", "")
    until = run.finished_at if run.finished_at is not None else time.time()
    took = duration(until - run.started_at) if run.status != "lost" else ""
    tags = ", ".join(run.tags[:_TAGS_SHOWN]) + (", ..." if len(run.tags) > _TAGS_SHOWN else "")
    return (f"{run.flow}/{run.run_id}", run.status, moment(run.started_at), took, run.username, tags)


def _count(text: str) -> int:
    """Read a whole number that is not negative; a database takes no larger one."""
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return min(number, _MOST)


_count.__name__ = "whole number"  # argparse names it so in its message


def moment_of(text: str | None, option: str) -> float | None:
    """Return the moment that an option gives, in seconds since the epoch: a date, a time, or how long ago."""
    if text is None:
        return None
    from datetime import datetime

    ago = _AGO.fullmatch(text)
    try:
        if ago:
            return time.time() - float(ago[1]) * _UNITS[ago[2]]
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        hint = "write 2026-01-31, 2026-01-31T09:45, or 90m, 12h, 7d for so long ago"
        raise UsageError(f"{option} {shown(text)} is no time", hint=hint) from None
