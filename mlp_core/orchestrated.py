"""How an orchestrator runs a flow step by step, with no driver of ours: the commands of a `FlowPlan`.

`python -P -m mlp_core.orchestrated begin|step|finish ...`. Each command prints one JSON object and nothing else on its
standard output; what steps print goes to its standard error and to the store. A task's success is committed by
whoever creates its segment first, so that an orchestrator may run a task twice without harm.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlp_core import names
from mlp_core.errors import MlpError, NotFound, UsageError
from mlp_core.loading import load_code
from mlp_core.parameters import resolve, to_text
from mlp_core.runner.blueprint import Blueprint, read_blueprint
from mlp_core.runner.requests import RunSetup, StepSetup, launch_request
from mlp_core.scheduler import ReadyTask, Scheduler
from mlp_core.session import Session
from mlp_core.store import layout
from mlp_core.store.logs import LogChunk
from mlp_core.store.records import AttemptFinished, RunBegan, RunEnded
from mlp_core.unpack import code_folder
from mlp_hookspecs import Failure, ForeachFrame, RunContext, StepOutcome, TaskInput, TaskKey, wire
from mlp_hookspecs.process import run_worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlp_core.store import Store
    from mlp_core.store.state import RunState


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; by default those of the process.

    Returns
    -------
    int
        0; 1 where the task failed; 2 for what was refused.
    """
    arguments = _parser().parse_args(argv)
    try:
        session = Session.open(flags={"store": arguments.store})
        answer: dict[str, Any] = arguments.command(session, arguments)
    except MlpError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_status
    sys.stdout.write(json.dumps(answer) + "\n")
    return 1 if answer.get("status") == "failed" and arguments.command is run_step else 0


def begin(session: Session, arguments: argparse.Namespace) -> dict[str, Any]:
    """Create a run from a blueprint, and return its id and first task."""
    store = session.open_store(create=False)
    values = session.values(store)
    blueprint = read_blueprint(store, arguments.blueprint)
    code = blueprint.code
    flow = load_code(code, code_folder(code, values))
    try:
        given = json.loads(arguments.parameters)
    except ValueError as error:
        raise UsageError(f"--parameters is no JSON object: {error}") from None
    if not isinstance(given, dict):
        raise UsageError(f"--parameters is no JSON object: {names.shown(arguments.parameters)}")
    texts = {**blueprint.parameters, **{name: str(value) for name, value in given.items()}}
    resolved = resolve(flow, texts, from_text=True)
    refs = {name: values.put(name, value) for name, value in resolved.items()} | dict(blueprint.constants)
    values.sync()
    username = session.username

    def began(run_id: str) -> RunBegan:
        return RunBegan(
            run=RunContext(
                blueprint.graph.flow, run_id, username=username, namespace=f"user:{username}", tags=blueprint.tags
            ),
            time=time.time(),
            host=platform.node(),
            pid=os.getpid(),
            graph=blueprint.graph,
            parameters=refs,
            parameter_texts={name: to_text(value) for name, value in resolved.items()},
            code=code,
            plugins=blueprint.plugins,
            settings=blueprint.settings,
            steps=blueprint.steps,
            command=tuple(sys.argv),
            metadata={"blueprint": arguments.blueprint},
            has_driver=False,
        )

    writer = store.create_run(began, time.time())
    writer.close()
    first = Scheduler(blueprint.graph).begin().key
    return {"run_id": writer.began.run.run_id, "flow": blueprint.graph.flow, "next": [_named(first)]}


def run_step(session: Session, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one attempt at a task, commit it, and return how it went and what follows."""
    store = session.open_store(create=False)
    state = store.run(arguments.flow, arguments.run_id)
    position = Position.replay(state)
    task = position.find(names.identifier(arguments.step, "step"), names.task_id(arguments.task_id))
    done = state.tasks.get(task.key)
    outcome = done.outcome if done is not None and done.status in ("succeeded", "caught") else None
    if outcome is None:
        outcome = _attempt(store, position, task, arguments.attempt)
    if outcome.status == "failed":
        failure = outcome.failure or Failure("system", "the worker gave no reason")
        return {"status": "failed", "next": [], "reason": failure.message}
    following = position.following.get(task.key)
    if following is None:
        following = position.scheduler.successors(task, outcome.transition)
    return {"status": outcome.status, "next": [_named(key) for key in following]}


def finish(session: Session, arguments: argparse.Namespace) -> dict[str, Any]:
    """End a run."""
    store = session.open_store(create=False)
    state = store.run(arguments.flow, arguments.run_id)
    status: Literal["succeeded", "failed", "cancelled"] = arguments.status
    if status == "succeeded" and not any(key.step == state.graph.end for key in state.tasks):
        raise UsageError(
            f"run {arguments.flow}/{arguments.run_id} cannot end as succeeded: its last step has not run",
            hint="run the tasks that are left, or end it as failed",
        )
    record = RunEnded(status, "", time.time(), len(state.tasks))
    made = store.add_segment(arguments.flow, arguments.run_id, "ended", record)
    return {"run_id": arguments.run_id, "status": status if made else state.status}


class Position:
    """Where a run stands: its finished tasks told to a fresh scheduler.

    Attributes
    ----------
    state : RunState
        The run.
    scheduler : Scheduler
        As far as the finished tasks lead.
    ready : dict of TaskKey to ReadyTask
        All tasks that have become ready, finished ones too.
    following : dict of TaskKey to sequence of TaskKey
        The tasks that each finished one leads to.
    """

    def __init__(self, state: RunState) -> None:
        """Begin with the first task."""
        self.state = state
        self.scheduler = Scheduler(state.graph)
        self.ready: dict[TaskKey, ReadyTask] = {}
        self.following: dict[TaskKey, Sequence[TaskKey]] = {}

    @classmethod
    def replay(cls, state: RunState) -> Position:
        """Return where a run stands."""
        position = cls(state)
        waiting = deque([position.scheduler.begin()])
        while waiting:
            task = waiting.popleft()
            position.ready[task.key] = task
            known = state.tasks.get(task.key)
            outcome = known.outcome if known is not None else None
            if outcome is not None and outcome.status != "failed":
                position.following[task.key] = position.scheduler.successors(task, outcome.transition)
                waiting.extend(position.scheduler.finished(task, outcome.transition))
        return position

    def find(self, step: str, task_id: str) -> ReadyTask:
        """Return a task by name; NotFound where it is not ready yet or never will be."""
        for key, task in self.ready.items():
            if key.step == step and key.task_id == task_id:
                return task
        raise NotFound(
            f"task {step}/{task_id} is not ready in run {self.state.context.flow}/{self.state.context.run_id}",
            hint=f"ready are {', '.join(key.path for key in self.ready if key not in self.state.tasks) or 'none'}",
        )

    def input(self, key: TaskKey) -> TaskInput:
        """Return a finished task as an input."""
        return TaskInput(key, self.state.artifacts(key), self.ready[key].frames)


def _attempt(store: Store, position: Position, task: ReadyTask, number: int) -> StepOutcome:
    """Run one attempt and commit how it went; of several that succeed the first counts."""
    began = position.state.began
    run = began.run
    planned = next(step for step in began.steps if step.node.name == task.key.step)
    blueprint: Blueprint = read_blueprint(store, began.metadata["blueprint"])
    setup = RunSetup(
        run=run,
        code=blueprint.code,
        store=store.url,
        parameters=began.parameters,
        plugins=blueprint.worker_plugins,
        settings=blueprint.settings,
        cwd=str(Path.cwd()),
    )
    step = StepSetup(planned, launcher="", lock=blueprint.locks.get(task.key.step))
    split = None if task.split is None else position.input(task.split)
    inputs = tuple(position.input(parent) for parent in task.parents)
    request = launch_request(setup, step, task, (inputs, split), (number, None))
    sink = _Collecting()
    run_worker(request.command, wire.dumps(request.step), request.id, sink)
    outcome = sink.outcome
    if sink.chunks:
        store.add_log_segment(run.flow, run.run_id, layout.log_segment(task.key, number), sink.chunks)
    failed = outcome.status == "failed"
    record = AttemptFinished(
        task.key,
        number,
        outcome,
        will_retry=failed and number < step.max_retries,
        parents=task.parents,
        frames=tuple(ForeachFrame(f.step, f.variable, f.index, f.count) for f in task.frames),
        time=time.time(),
    )
    name = layout.task_segment(task.key, number if failed else None)
    if store.add_segment(run.flow, run.run_id, name, record) or failed:
        return outcome
    winner = store.run(run.flow, run.run_id).tasks[task.key].outcome
    return winner if winner is not None else outcome


class _Collecting:
    """A sink that keeps an attempt's log, shows it, and keeps its end."""

    def __init__(self) -> None:
        self.chunks: list[LogChunk] = []
        self.outcome = StepOutcome("failed")

    def started(self, attempt_id: str, host: str, pid: int) -> None:
        """Let it pass."""

    def heartbeat(self, attempt_id: str) -> None:
        """Let it pass."""

    def log(self, attempt_id: str, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        """Keep and show it."""
        self.chunks.append(LogChunk(attempt_id, stream, time.time(), data))
        sys.stderr.buffer.write(data)
        sys.stderr.buffer.flush()

    def finished(self, attempt_id: str, outcome: StepOutcome) -> None:  # noqa: ARG002 # there is one attempt
        """Keep it."""
        self.outcome = outcome

    def lost(self, attempt_id: str, failure: Failure) -> None:  # noqa: ARG002 # as above
        """Keep it."""
        self.outcome = StepOutcome("failed", failure=failure)


def _named(key: TaskKey) -> dict[str, str]:
    """Return a task as the orchestrator sees it."""
    return {"step": key.step, "task_id": key.task_id}


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the commands."""
    parser = argparse.ArgumentParser(prog="mlp_core.orchestrated", description="Run a deployed flow step by step.")
    commands = parser.add_subparsers(required=True)
    beginning = commands.add_parser("begin", help="create a run")
    beginning.add_argument("--blueprint", required=True, metavar="DIGEST")
    beginning.add_argument("--parameters", default="{}", metavar="JSON")
    stepping = commands.add_parser("step", help="run one attempt at a task")
    ending = commands.add_parser("finish", help="end a run")
    for command, function in ((beginning, begin), (stepping, run_step), (ending, finish)):
        command.set_defaults(command=function)
        command.add_argument("--store", required=True, metavar="URL")
        if command is not beginning:
            command.add_argument("--flow", required=True)
            command.add_argument("--run-id", required=True)
    stepping.add_argument("--step", required=True)
    stepping.add_argument("--task-id", required=True)
    stepping.add_argument("--attempt", type=int, default=0)
    ending.add_argument("--status", choices=("succeeded", "failed", "cancelled"), required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
