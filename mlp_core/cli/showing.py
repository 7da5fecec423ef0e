"""How ``mlp show`` shows a flow, a run, a step, a task or an artifact."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from mlp_core.cli.text import duration, moment, place, plural, put, put_json, safe_line, safe_text, size, table
from mlp_core.client import client_for
from mlp_core.names import Pathspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlp_core.cli.arguments import Parser
    from mlp_core.cli.dispatch import Call
    from mlp_core.client import Task
    from mlp_core.client.handle import RunHandle
    from mlp_core.store import AttemptState, RunState, TaskState

_MOST_TASKS: Final = 50
_MOST_FAILURES: Final = 5


def show_arguments(parser: Parser) -> None:
    """Add the options of ``mlp show``."""
    parser.positional("what", help="a flow's file, or a flow, run, step, task or artifact: Flow/run/step/0/name")
    parser.option("--flow", metavar="NAME", help="the flow, where the file defines several")
    parser.option("--json", action="store_true", help="print JSON")


def show_command(call: Call) -> int:
    """Show what is asked for."""
    what = call.args.what
    if what.endswith(".py") or _is_file(what):
        from mlp_core.cli.checking import show_flow_command
        from mlp_core.cli.dispatch import import_flow

        path = Path(what)
        return show_flow_command(attrs.evolve(call, flow=import_flow(path, call.args.flow), start=path))
    client = client_for(call.session)
    client.namespace = None
    spec = Pathspec.parse(what)
    if spec.artifact is not None:
        from mlp_core.cli.listing import artifacts_command

        call.args.pathspec = what
        return artifacts_command(call)
    run_id = spec.run_id if spec.run_id is not None else client.Flow(spec.flow).latest_run.id
    handle = client.handle(spec.flow, run_id)
    as_json = call.args.json
    if spec.step is None:
        put_json(_run_data(handle)) if as_json else _show_run(handle)
    elif spec.task_id is None:
        handle.require_step(spec.step)
        keys = sorted(handle.tasks(spec.step).values(), key=lambda key: (key.index, key.loop, key.node or 0))
        tasks = [handle.state.tasks[key] for key in keys]
        put_json([_task_data(task) for task in tasks]) if as_json else _show_step(handle, spec.step, tasks)
    else:
        task = client.Task(str(spec))
        state = handle.task(spec.step, spec.task_id)
        put_json(_whole_task_data(task, state)) if as_json else _show_task(handle, task, state)
    return 0


def _is_file(text: str) -> bool:
    """Tell whether a text is the path of a file."""
    try:
        return Path(text).is_file()
    except OSError:  # too long for a path
        return False


def _show_run(run: RunHandle) -> None:
    """Print a run: what it is, its parameters, its steps, what failed, and what to do next."""
    state = run.state
    context, began = state.context, state.began
    until = state.ended.time if state.ended else time.time()
    took = f" after {duration(until - began.time)}" if state.status != "lost" else ""
    reason = f": {safe_line(state.ended.message)}" if state.ended and state.ended.message else ""
    put(f"{run.pathspec}  {state.status}{took}{reason}")
    put(f"  started {moment(began.time)} by {safe_line(context.username)} on {safe_line(began.host)}")
    if began.command:
        put(f"  command {safe_line(' '.join(began.command))}")
    if context.origin_run_id:
        put(f"  resumes {context.flow}/{context.origin_run_id}")
    url = run.client.session.store_url
    if began.settings.get("storage.durability") == "fast" and ("://" not in url or url.startswith("file:")):
        put("  kept    without syncs (storage.durability is fast): a power cut may take it")
    if run.tags:
        put(f"  tags    {', '.join(map(safe_line, sorted(run.tags)))}")
    if began.parameter_texts:
        put("\n" + table(("parameter", "value"), [(n, _shortened(v)) for n, v in began.parameter_texts.items()]))
    put("\n" + table(("step", "tasks", "status", "took"), [_step_row(state, node.name) for node in state.graph.steps]))
    for note in state.notes:
        put(f"note: {safe_line(note.text)}")
    for failed in state.observer_failures:
        put(f"note: observer {safe_line(str(failed.plugin))} failed: {safe_line(failed.message)}")
    _show_failures(run, state)
    code = began.code
    if state.status == "lost" and code is not None and code.root and code.file:
        file = shlex.quote(place(str(Path(code.root, code.file))))
        put(safe_line(f"its driver is gone; to go on from there: mlp resume {file} --origin-run-id {context.run_id}"))
    put(f"\nIts log: mlp logs {run.pathspec}    What it left: mlp artifacts {run.pathspec}")


def _show_failures(run: RunHandle, state: RunState) -> None:
    """Print why tasks failed, each on a line."""
    failed = [task for task in state.tasks.values() if task.status == "failed"]
    if failed:
        put("")
    for task in failed[:_MOST_FAILURES]:
        outcome = task.outcome
        message = outcome.failure.message if outcome is not None and outcome.failure is not None else ""
        put(f"failed: {task.key.path}: {safe_line(message)}    mlp show {run.pathspec}/{task.key.path}")
    if len(failed) > _MOST_FAILURES:
        put(f"... and {plural(len(failed) - _MOST_FAILURES, 'more failed task')}")


def _step_row(state: RunState, step: str) -> tuple[str, ...]:
    """Return a step's cells."""
    tasks = [task for task in state.tasks.values() if task.key.step == step]
    if not tasks:
        return (step, "", "", "")
    counts = [(_status(state, task), 1) for task in tasks]
    words = {word: sum(1 for other, _ in counts if other == word) for word, _ in counts}
    status = next(iter(words)) if len(words) == 1 else ", ".join(f"{count} {word}" for word, count in words.items())
    begun = [at for task in tasks if (at := _began(task)) is not None]
    ended = [at for task in tasks if (at := task.attempts[-1].finished_at) is not None]
    took = duration(max(ended) - min(begun)) if begun and ended else ""
    return (step, str(len(tasks)), status, took)


def _show_step(run: RunHandle, step: str, tasks: Sequence[TaskState]) -> None:
    """Print a step's tasks."""
    state = run.state
    put(f"{run.pathspec}/{step}  {plural(len(tasks), 'task')}")
    rows = [
        (
            task.key.task_id,
            _status(state, task),
            str(len(task.attempts)),
            _took(task.attempts[-1]),
            _memory(task.attempts[-1]),
            _reason(task),
        )
        for task in tasks[:_MOST_TASKS]
    ]
    put("\n" + table(("task", "status", "attempts", "took", "memory", "reason"), rows))
    if len(tasks) > _MOST_TASKS:
        put(f"... and {len(tasks) - _MOST_TASKS} more: mlp show {run.pathspec}/{step} --json shows them all")


def _show_task(run: RunHandle, task: Task, state: TaskState) -> None:
    """Print a task: its attempts, where it comes from, its artifacts, and the user's traceback."""
    put(f"{task.pathspec}  {_status(run.state, state)}")
    if state.origin:
        put(f"  reused from {safe_line(state.origin)}")
    for frame in state.frames:
        put(f"  item {frame.index + 1} of {frame.count} of {safe_line(frame.variable)} in {safe_line(frame.step)}")
    rows = [
        (
            str(attempt.number),
            "running" if attempt.outcome is None else attempt.outcome.status,
            moment(attempt.started_at) if attempt.started_at else "",
            _took(attempt),
            _memory(attempt),
            attempt.outcome.host if attempt.outcome else "",
            attempt.launcher,
        )
        for attempt in state.attempts
    ]
    put("\n" + table(("attempt", "status", "started", "took", "memory", "host", "launcher"), rows))
    artifacts = sorted(task.artifacts, key=lambda artifact: artifact.id)
    if artifacts:
        put("\n" + table(("artifact", "type", "size"), [(a.id, a.type, size(a.size)) for a in artifacts]))
    outcome = state.attempts[-1].outcome
    if outcome is not None and outcome.failure is not None:
        failure = outcome.failure
        put(f"\n{failure.kind}: {safe_line(failure.message)}")
        if failure.traceback:
            put(safe_text(failure.traceback.rstrip()))
    put(f"\nIts log: mlp logs {task.pathspec}    A value: mlp artifacts {task.pathspec}/NAME")


def _run_data(run: RunHandle) -> dict[str, Any]:
    """Return a run as data."""
    state = run.state
    return {
        "flow": run.flow,
        "run_id": run.run_id,
        "status": state.status,
        "message": state.ended.message if state.ended else "",
        "started_at": state.began.time,
        "finished_at": state.ended.time if state.ended else None,
        "username": state.context.username,
        "namespace": state.context.namespace,
        "origin_run_id": state.context.origin_run_id,
        "tags": sorted(run.tags),
        "parameters": dict(state.began.parameter_texts),
        "command": list(state.began.command),
        "host": state.began.host,
        "plugins": [attrs.asdict(plugin) for plugin in state.began.plugins],
        "notes": [note.text for note in state.notes],
        "tasks": [_task_data(task) for task in state.tasks.values()],
    }


def _task_data(task: TaskState) -> dict[str, Any]:
    """Return a task as data."""
    return {
        "task": task.key.path,
        "status": task.status,
        "origin": task.origin,
        "parents": [parent.path for parent in task.parents],
        "attempts": [_attempt_data(attempt) for attempt in task.attempts],
    }


def _attempt_data(attempt: AttemptState) -> dict[str, Any]:
    """Return an attempt as data."""
    outcome = attempt.outcome
    failure = outcome.failure if outcome is not None else None
    return {
        "attempt": attempt.number,
        "launcher": attempt.launcher,
        "started_at": attempt.started_at,
        "finished_at": attempt.finished_at,
        "status": outcome.status if outcome is not None else "running",
        "will_retry": attempt.will_retry,
        "host": outcome.host if outcome is not None else "",
        "pid": outcome.pid if outcome is not None else 0,
        "peak_memory_bytes": outcome.peak_memory_bytes if outcome is not None else 0,
        "cpu_seconds": outcome.cpu_seconds if outcome is not None else 0,
        "failure": attrs.asdict(failure, filter=attrs.filters.exclude("exception")) if failure is not None else None,
    }


def _whole_task_data(task: Task, state: TaskState) -> dict[str, Any]:
    """Return a task with its artifacts as data."""
    from mlp_core.cli.listing import artifact_data

    return {**_task_data(state), "artifacts": [artifact_data(artifact) for artifact in task.artifacts]}


def _status(state: RunState, task: TaskState) -> str:
    """Return where a task stands, in words that hold for its run too."""
    if task.origin is not None:
        return "reused"
    if task.status in ("running", "retrying") and state.status != "running":
        return "unfinished"
    return task.status


def _began(task: TaskState) -> float | None:
    """Return when a task was first started."""
    return task.attempts[0].started_at


def _took(attempt: AttemptState) -> str:
    """Return how long the user's code ran."""
    outcome = attempt.outcome
    return duration(outcome.finished_at - outcome.started_at) if outcome is not None and outcome.started_at else ""


def _memory(attempt: AttemptState) -> str:
    """Return the largest memory."""
    return size(attempt.outcome.peak_memory_bytes) if attempt.outcome and attempt.outcome.peak_memory_bytes else ""


def _reason(task: TaskState) -> str:
    """Return why a task failed, for a table."""
    outcome = task.attempts[-1].outcome
    return _shortened(outcome.failure.message) if outcome is not None and outcome.failure is not None else ""


def _shortened(text: str) -> str:
    """Return a text that fits a column."""
    line = " ".join(text.split())
    return line if len(line) <= 80 else line[:77] + "..."  # noqa: PLR2004 # a column's worth
