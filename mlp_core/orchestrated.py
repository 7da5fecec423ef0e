"""How an orchestrator runs a flow step by step, with no driver of ours: the commands of a `FlowPlan`.

`python -P -m mlp_core.orchestrated begin|step|finish ...`. Each command prints one JSON object and nothing else on its
standard output; what steps print goes to its standard error and to the store. A task's success is committed by
whoever creates its segment first, so that an orchestrator may run a task twice without harm.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs

from mlp_core import names
from mlp_core.errors import MlpError, NotFound, UsageError
from mlp_core.loading import load_code
from mlp_core.parameters import resolve, to_text
from mlp_core.runner.blueprint import Blueprint, read_blueprint
from mlp_core.runner.driver import GRACE_SECONDS
from mlp_core.runner.requests import RunSetup, StepSetup, launch_request
from mlp_core.scheduler import ReadyTask, Scheduler
from mlp_core.session import Session
from mlp_core.store import layout
from mlp_core.store.journal import read_journal
from mlp_core.store.logs import LogChunk
from mlp_core.store.records import AttemptFinished, EnvironmentLocked, RunBegan, RunEnded
from mlp_core.store.segments import read_segments
from mlp_core.store.signing import Signatures
from mlp_core.store.state import RunState
from mlp_core.unpack import code_folder
from mlp_hookspecs import EnvironmentSpec, Failure, ForeachFrame, RunContext, StepOutcome, TaskInput, TaskKey, wire
from mlp_hookspecs.process import kill_tree, run_worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlp_core.store import Store
    from mlp_hookspecs import EnvironmentLock, FlowGraph, PlannedStep


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
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--parameters is no JSON object: {error}") from None
    if not isinstance(given, dict):
        raise UsageError(f"--parameters is no JSON object: {names.shown(arguments.parameters)}")
    as_text = {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}
    texts = {**blueprint.parameters, **as_text}
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
    writer.write(_environments(blueprint), sync=True)
    writer.close()
    first = Scheduler(blueprint.graph).begin().key
    return {"run_id": writer.began.run.run_id, "flow": blueprint.graph.flow, "next": [_named(first)]}


def _environments(blueprint: Blueprint) -> list[EnvironmentLocked]:
    """Return what the journal should say of the environments that were locked when the flow was frozen."""
    records = []
    for step in blueprint.steps:
        lock = blueprint.locks.get(step.node.name)
        if lock is not None:
            spec = step.plan.environment or EnvironmentSpec(lock.backend, {"name": step.plan.environment_name})
            records.append(EnvironmentLocked(spec, lock, (step.node.name,), time.time()))
    return records


def run_step(session: Session, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one attempt at a task, commit it, and return how it went and what follows."""
    store = session.open_store(create=False)
    wanted = names.identifier(arguments.step, "step"), names.task_id(arguments.task_id)
    position = Position.towards(OpenRun.read(store, arguments.flow, arguments.run_id), *wanted)
    task = position.find(*wanted)
    outcome = position.run.outcome(task.key)
    if outcome is None:
        outcome = _carry_out(session, position, task, arguments.attempt)
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
    done = [key for key, task in state.tasks.items() if task.status in ("succeeded", "caught")]
    if status == "succeeded" and not any(key.step == state.graph.end for key in done):
        raise UsageError(
            f"run {arguments.flow}/{arguments.run_id} cannot end as succeeded: its last step has not succeeded",
            hint="run the tasks that are left, or end it as failed",
        )
    record = RunEnded(status, "", time.time(), len(done))
    made = store.add_segment(arguments.flow, arguments.run_id, "ended", record)
    return {"run_id": arguments.run_id, "status": status if made else state.status}


class OpenRun:
    """A run that orchestrated tasks belong to, read as far as it is asked for.

    The whole of it would be read anew for each of its tasks, so that a run's cost would grow with the square of their
    number.

    Attributes
    ----------
    store : Store
        Where it is.
    state : RunState
        What was read.
    """

    def __init__(self, store: Store, began: RunBegan) -> None:
        """Begin with the first record."""
        self.store = store
        self.state = RunState(began)

    @classmethod
    def read(cls, store: Store, flow: str, run_id: str) -> OpenRun:
        """Open a run; NotFound where there is none."""
        key = layout.journal(flow, run_id)
        signatures = Signatures(store.signer)
        try:
            records = read_journal(store.objects, key, check=signatures.watch(key)).records
        except FileNotFoundError:
            records = ()
        began = records[0][1] if records else None
        if not isinstance(began, RunBegan):
            return cls(store, store.run(flow, run_id).began)  # or the error that says what is wrong
        opened = cls(store, began)
        opened.state.is_signed = signatures.are_good
        store.require_signed(opened.state)
        return opened

    def outcome(self, key: TaskKey) -> StepOutcome | None:
        """Return how a task succeeded, or was caught; None where it has not."""
        if key not in self.state.tasks:
            run = self.state.context
            signatures = Signatures(self.store.signer)
            wanted = [layout.task_segment(key)]
            try:
                records = read_segments(self.store.objects, run.flow, run.run_id, wanted, signatures=signatures)
            except FileNotFoundError:
                return None
            self.state.is_signed = signatures.are_good
            self.store.require_signed(self.state)
            for record in records:
                self.state.apply(record)
        known = self.state.tasks.get(key)  # none where only a newer version knows the kind of the record
        return known.outcome if known is not None else None


class Position:
    """Where a run stands, as far as one task is concerned: the finished tasks before it, told to a fresh scheduler.

    Attributes
    ----------
    run : OpenRun
        The run.
    scheduler : Scheduler
        As far as the finished tasks lead.
    ready : dict of TaskKey to ReadyTask
        The tasks that have become ready on the way, finished ones too.
    following : dict of TaskKey to sequence of TaskKey
        The tasks that each finished one leads to.
    """

    def __init__(self, run: OpenRun) -> None:
        """Begin with the first task."""
        self.run = run
        self.scheduler = Scheduler(run.state.graph)
        self.ready: dict[TaskKey, ReadyTask] = {}
        self.following: dict[TaskKey, Sequence[TaskKey]] = {}

    @classmethod
    def towards(cls, run: OpenRun, step: str, task_id: str) -> Position:
        """Return where a run stands before a task; other branches of the foreach around it are not looked at."""
        graph = run.state.graph
        try:
            target = TaskKey.parse(step, task_id, _depth(graph, step)).index if step in graph else ()
        except ValueError:  # there is no such task, as `find` will tell
            target = ()
        position = cls(run)
        waiting = deque([position.scheduler.begin()])
        while waiting:
            task = waiting.popleft()
            position.ready[task.key] = task
            index = task.key.index
            is_on_the_way = all(here == there for here, there in zip(index, target, strict=False))
            outcome = run.outcome(task.key) if is_on_the_way else None
            if outcome is not None:
                position.following[task.key] = position.scheduler.successors(task, outcome.transition)
                waiting.extend(position.scheduler.finished(task, outcome.transition))
        return position

    def find(self, step: str, task_id: str) -> ReadyTask:
        """Return a task by name; NotFound where it is not ready yet or never will be."""
        for key, task in self.ready.items():
            if key.step == step and key.task_id == task_id:
                return task
        run = self.run.state.context
        ready = ", ".join(key.path for key in self.ready if self.run.outcome(key) is None)
        raise NotFound(
            f"task {step}/{task_id} is not ready in run {run.flow}/{run.run_id}", hint=f"ready are {ready or 'none'}"
        )

    def input(self, key: TaskKey) -> TaskInput:
        """Return a finished task as an input."""
        return TaskInput(key, self.run.state.artifacts(key), self.ready[key].frames)


def _depth(graph: FlowGraph, step: str) -> int:
    """Return how many foreach are open around a step's tasks."""
    node = graph[step]
    splits = node.splits[:-1] if node.is_join else node.splits
    return sum(graph[name].kind == "foreach" for name in splits)


def _carry_out(session: Session, position: Position, task: ReadyTask, number: int) -> StepOutcome:
    """Run an attempt, and where it has failed for good what its policy puts in its place; return how the task went."""
    plan = _planned(position, task).plan
    outcome = _attempt(session, position, task, (number, None))
    retries = plan.retry.times if plan.retry else 0
    if outcome.status != "failed" or plan.catch is None or number < retries:
        return outcome
    # The worker was killed, or its time was over: another one stores the failure, without the user's code.
    failure = outcome.failure or Failure("system", "the worker gave no reason")
    return _attempt(session, position, task, (number + 1, failure))


def _attempt(session: Session, position: Position, task: ReadyTask, attempt: tuple[int, Failure | None]) -> StepOutcome:
    """Run one attempt and commit how it went; of several that succeed the first counts."""
    store, began = position.run.store, position.run.state.began
    run, (number, caught) = began.run, attempt
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
    planned = _planned(position, task)
    plan = planned.plan
    step = StepSetup(planned, launcher="", lock=blueprint.locks.get(task.key.step))
    sink = _Collecting(plan.timeout_seconds, GRACE_SECONDS if plan.grace_seconds is None else plan.grace_seconds)
    try:
        if plan.environment_at_exec and caught is None:  # who stores a failure runs none of the user's code
            step = attrs.evolve(step, lock=_look_up(session, position, task, number))
    except (MlpError, OSError, ValueError) as error:
        message = f"the environment of step {task.key.step!r} cannot be resolved: {error}"
        outcome = StepOutcome("failed", failure=Failure("system", message))
    else:
        split = None if task.split is None else position.input(task.split)
        inputs = tuple(position.input(parent) for parent in task.parents)
        request = launch_request(setup, step, task, (inputs, split), (number, caught))
        run_worker(request.command, wire.dumps(request.step), request.id, sink)
        outcome = sink.outcome
    log_digest = ""
    if sink.chunks:
        log_digest = store.add_log_segment(run.flow, run.run_id, layout.log_segment(task.key, number), sink.chunks)
    failed = outcome.status == "failed"
    record = AttemptFinished(
        task.key,
        number,
        outcome,
        will_retry=failed and caught is None and (number < step.max_retries or plan.catch is not None),
        parents=task.parents,
        frames=tuple(ForeachFrame(f.step, f.variable, f.index, f.count) for f in task.frames),
        time=time.time(),
        log_digest=log_digest,
    )
    name = layout.task_segment(task.key, number if failed else None)
    if store.add_segment(run.flow, run.run_id, name, record) or failed:
        return outcome
    winner = position.run.outcome(task.key)
    return winner if winner is not None else outcome


def _look_up(session: Session, position: Position, task: ReadyTask, number: int) -> EnvironmentLock:
    """Return the environment that a task's step names, as it is now, and record it."""
    from mlp_core.environments.resolving import Resolver, task_values

    store, began = position.run.store, position.run.state.began
    key = task.key
    values = task_values(began.run, key, began.parameter_texts)
    found = Resolver.of(session, store).resolve_plan(_planned(position, task).plan, values)
    record = EnvironmentLocked(found.spec, found.lock, (key.step,), time.time(), (key.task_id,))
    store.add_segment(began.run.flow, began.run.run_id, layout.environment_segment(key, number), record)
    return found.lock


def _planned(position: Position, task: ReadyTask) -> PlannedStep:
    """Return a task's step with its plan."""
    return next(step for step in position.run.state.began.steps if step.node.name == task.key.step)


class _Collecting:
    """A sink that keeps an attempt's log, shows it, keeps its end, and ends it when its time is over."""

    def __init__(self, limit: float | None, grace: float) -> None:
        self.chunks: list[LogChunk] = []
        self.outcome = StepOutcome("failed")
        self._limit = limit
        self._grace = grace
        self._is_late = False
        self._is_over = threading.Event()

    def started(self, attempt_id: str, host: str, pid: int) -> None:  # noqa: ARG002 # there is one attempt, and it is here
        """Begin to count its time."""
        if self._limit is not None:
            threading.Thread(target=self._watch, args=(pid, self._limit), daemon=True).start()

    def _watch(self, pid: int, limit: float) -> None:
        """End the worker when its time is over, and kill it when its grace is over too."""
        if self._is_over.wait(limit):
            return
        self._is_late = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
            if not self._is_over.wait(self._grace):
                kill_tree(pid)
                os.kill(pid, signal.SIGKILL)  # it need not lead its group

    def heartbeat(self, attempt_id: str) -> None:
        """Let it pass."""

    def log(self, attempt_id: str, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        """Keep and show it."""
        self.chunks.append(LogChunk(attempt_id, stream, time.time(), data))
        sys.stderr.buffer.write(data)
        sys.stderr.buffer.flush()

    def finished(self, attempt_id: str, outcome: StepOutcome) -> None:  # noqa: ARG002 # there is one attempt
        """Keep it."""
        self._is_over.set()
        if self._is_late and outcome.status == "failed":
            failure = outcome.failure or Failure("system", "the worker gave no reason")
            text = f"the attempt took longer than {self._limit:g} s"
            outcome = attrs.evolve(outcome, failure=attrs.evolve(failure, kind="timeout", message=text))
        self.outcome = outcome

    def lost(self, attempt_id: str, failure: Failure) -> None:
        """Keep it."""
        self.finished(attempt_id, StepOutcome("failed", failure=failure))


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
