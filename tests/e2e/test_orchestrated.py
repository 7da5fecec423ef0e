"""A flow runs step by step from its plan, with no driver of ours, and its run reads like any other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlp_core.loading import load_flow
from mlp_core.orchestrated import OpenRun, Position
from mlp_core.runner import RunOptions, check_flow
from mlp_core.runner.blueprint import draw_blueprint, flow_plan, store_blueprint
from mlp_core.runner.run import freeze, resolve_parameters
from mlp_core.session import Session
from mlp_core.store import layout
from mlp_core.store.records import AttemptFinished
from mlp_hookspecs import StepOutcome, TaskKey, Transition, wire

FLOW = """
from mlp_core import FlowSpec, Parameter, catch, current, retry, step

class Squares(FlowSpec):
    n = Parameter("n", default=3)
    offset = 100

    @step
    def start(self):
        self.numbers = list(range(self.n))
        self.shared = "same"
        print("from start")
        self.next(self.square, foreach="numbers")

    @retry(times=2, minutes_between_retries=0)
    @step
    def square(self):
        if self.input == 1 and current.retry_count == 0:
            raise RuntimeError("the first attempt fails")
        self.result = self.input ** 2 + self.offset
        self.rounds = 0
        self.next(self.again)

    @step
    def again(self):
        self.rounds += 1
        self.more = self.rounds < 2
        self.next({True: self.again, False: self.done}, condition="more")

    @step
    def done(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.results = [branch.result for branch in inputs]
        self.merge_artifacts(inputs, exclude=["result"])
        self.next(self.end)

    @step
    def end(self):
        print(self.results, self.shared)

if __name__ == "__main__":
    Squares()
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the flow's file."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "mlp.toml").write_text("")
    (folder / "squares.py").write_text(FLOW)
    return folder


def write_plan(project: Path) -> tuple[Session, Path]:
    """Freeze the flow and write its plan as JSON."""
    session = Session.open(start=project / "squares.py")
    flow = load_flow(project / "squares.py")
    checked = check_flow(flow, session)
    store = session.open_store(create=True)
    frozen = freeze(
        checked, session, RunOptions(), session.values(store), resolve_parameters(flow, session, RunOptions())
    )
    constants = {name: ref for name, ref in frozen.parameters.items() if name not in frozen.texts}
    blueprint = draw_blueprint(checked, session, frozen.code, constants=constants, parameters={})
    plan = flow_plan(checked, store_blueprint(store, blueprint), store.url)
    path = project / "plan.json"
    path.write_bytes(wire.dumps(plan))
    return session, path


def orchestrate(plan: Path, parameters: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Run the shell script."""
    script = Path(__file__).with_name("orchestrate.sh")
    command = ["bash", str(script), str(plan), json.dumps(parameters), sys.executable]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=plan.parent)


def test_shell_script_runs_a_flow_from_its_plan(project: Path) -> None:
    """Foreach, retry, loop and join come out right, and the store tells the run as it tells any other."""
    session, plan = write_plan(project)
    done = orchestrate(plan, {"n": 3})
    assert done.returncode == 0, done.stderr
    run_id = done.stdout.strip()
    state = session.open_store(create=False).run("Squares", run_id)
    assert state.status == "succeeded"
    assert [key.path for key in state.tasks if key.step == "square"] == ["square/0", "square/1", "square/2"]
    assert {key.path for key in state.tasks if key.step == "again"} == {
        f"again/{index}{turn}" for index in range(3) for turn in ("", "~1")
    }
    values = session.values(session.open_store(create=False))
    end = next(key for key in state.tasks if key.step == "end")
    artifacts = state.artifacts(end)
    assert values.get(artifacts["results"]) == [100, 101, 104]
    assert values.get(artifacts["shared"]) == "same"
    assert values.get(artifacts["n"]) == 3
    retried = next(task for key, task in state.tasks.items() if key.path == "square/1")
    assert [attempt.outcome.status for attempt in retried.attempts if attempt.outcome] == ["failed", "succeeded"]


def test_client_reads_an_orchestrated_run(project: Path) -> None:
    """The client finds the run, its result, its logs and its attempts."""
    from mlp_core.client import client_for

    session, plan = write_plan(project)
    run_id = orchestrate(plan, {"n": 2}).stdout.strip()
    run = client_for(session).run(f"Squares/{run_id}")
    assert run.successful
    assert run.data.results == [100, 101]
    assert run["start"].task.stdout == "from start\n"


def test_code_runs_from_the_package_where_the_project_is_gone(project: Path, tmp_path: Path) -> None:
    """A worker on a host without the project's folder unpacks the recorded code."""
    elsewhere = tmp_path / "gone"
    elsewhere.mkdir()
    for name in ("mlp.toml", "squares.py"):
        (elsewhere / name).write_text((project / name).read_text())
    session, plan = write_plan(elsewhere)
    (elsewhere / "squares.py").unlink()
    done = orchestrate(plan, {"n": 2})
    assert done.returncode == 0, done.stderr
    state = session.open_store(create=False).run("Squares", done.stdout.strip())
    assert state.status == "succeeded"


def test_a_task_that_is_run_twice_commits_once(project: Path) -> None:
    """A second call for a finished task answers with the first one's result."""
    _, plan = write_plan(project)
    commands = json.loads(plan.read_text())

    def call(name: str, **values: str) -> dict[str, Any]:
        words = [word.format(**values) for word in commands[name]]
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=project)
        return dict(json.loads(done.stdout))

    run_id = call("begin", parameters='{"n": 2}')["run_id"]
    first = call("step", run_id=run_id, step="start", task_id="0", attempt="0")
    again = call("step", run_id=run_id, step="start", task_id="0", attempt="1")
    assert first == again
    assert first["next"] == [{"step": "square", "task_id": "0"}, {"step": "square", "task_id": "1"}]


LIMITS = """
import os, signal, time
from mlp_core import FlowSpec, JSONType, Parameter, catch, retry, step, timeout

class Limits(FlowSpec):
    kind = Parameter("kind", default="")
    flag = Parameter("flag", default=True)
    sizes = Parameter("sizes", default=[1])
    extra = Parameter("extra", type=JSONType, default="null")

    @catch(var="problem")
    @retry(times=1, minutes_between_retries=0)
    @timeout(seconds=1, grace=0.5)
    @step
    def start(self):
        try:
            if self.kind == "die":
                os._exit(9)
            if self.kind == "ignore":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while self.kind in ("sleep", "ignore"):
                time.sleep(0.05)
        finally:
            print("cleaned up")
        self.next(self.end)

    @step
    def end(self):
        if self.kind == "fail":
            raise ValueError("at last")

if __name__ == "__main__":
    Limits()
"""


class Orchestrated:
    """A plan, whose commands are called one by one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "mlp.toml").write_text("")
        (folder / "squares.py").write_text(LIMITS)
        self.session, plan = write_plan(folder)
        self.commands = json.loads(plan.read_text())
        self.run_id = ""

    def call(self, name: str, **values: str) -> tuple[int, dict[str, Any], str]:
        """Call a command; return its status, its answer and what it said."""
        words = [word.format(run_id=self.run_id, **values) for word in self.commands[name]]
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=self.folder)
        return done.returncode, json.loads(done.stdout or "{}"), done.stderr

    def begin(self, **parameters: object) -> None:
        """Begin a run."""
        status, answer, said = self.call("begin", parameters=json.dumps(parameters))
        assert status == 0, said
        self.run_id = answer["run_id"]

    def step(self, step: str, attempt: int) -> tuple[int, dict[str, Any], str]:
        """Run an attempt at a step's only task."""
        return self.call("step", step=step, task_id="0", attempt=str(attempt))

    def value(self, name: str, step: str = "start") -> Any:
        """Return an artifact of a task."""
        store = self.session.open_store(create=False)
        state = store.run("Limits", self.run_id)
        (key,) = [key for key in state.tasks if key.step == step]
        return self.session.values(store).get(state.artifacts(key)[name])


@pytest.fixture(scope="module")
def limits(tmp_path_factory: pytest.TempPathFactory) -> Orchestrated:
    """A flow whose step has a time limit, retries and a catch."""
    return Orchestrated(tmp_path_factory.mktemp("limits"))


@pytest.mark.parametrize(
    ("kind", "failure", "message"),
    [
        ("die", "exit", "the process exited with status 9 before the step had finished"),
        ("sleep", "timeout", "the attempt took longer than 1 s"),
        ("ignore", "timeout", "the attempt took longer than 1 s"),
    ],
)
def test_policies_hold_without_a_driver(limits: Orchestrated, kind: str, failure: str, message: str) -> None:
    """A worker that dies or takes too long has failed; for the last attempt the policy's catch stands in."""
    limits.begin(kind=kind)
    status, answer, _ = limits.step("start", 0)
    assert (status, answer) == (1, {"status": "failed", "next": [], "reason": message})
    status, answer, said = limits.step("start", 1)
    assert (status, answer) == (0, {"status": "caught", "next": [{"step": "end", "task_id": "0"}]})
    assert ("cleaned up" in said) == (kind == "sleep")
    problem = limits.value("problem")
    assert (problem.kind, problem.message) == (failure, message)
    assert limits.step("end", 0)[0] == 0
    assert limits.call("finish", status="succeeded")[0] == 0
    state = limits.session.open_store(create=False).run("Limits", limits.run_id)
    start = next(task for key, task in state.tasks.items() if key.step == "start")
    assert [(a.number, a.outcome.status, a.will_retry) for a in start.attempts if a.outcome] == [
        (0, "failed", True),
        (1, "failed", True),
        (2, "caught", False),
    ]


def test_only_a_run_whose_end_succeeded_has_succeeded(limits: Orchestrated) -> None:
    """A run whose last step failed cannot end as succeeded, and only what succeeded is counted."""
    limits.begin(kind="fail")
    assert limits.step("start", 0)[0] == 0
    assert limits.step("end", 0)[0] == 1
    status, _, said = limits.call("finish", status="succeeded")
    assert status == 2
    assert "cannot end as succeeded: its last step has not succeeded" in said
    assert limits.call("finish", status="failed")[1]["status"] == "failed"
    ended = limits.session.open_store(create=False).run("Limits", limits.run_id).ended
    assert ended is not None
    assert (ended.status, ended.tasks) == ("failed", 1)


def test_parameters_are_json(limits: Orchestrated) -> None:
    """Values of any JSON type are read as the parameter's type; text is text."""
    limits.begin(kind="true", flag=False, sizes=[1, 2], extra={"a": [None, "b"]})
    assert limits.step("start", 0)[0] == 0
    assert limits.value("kind") == "true"
    assert limits.value("flag") is False
    assert limits.value("sizes") == [1, 2]
    assert limits.value("extra") == {"a": [None, "b"]}


def test_a_task_reads_what_it_needs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tasks of a foreach have finished, one of them reads a few objects; the join reads each once."""
    session, plan = write_plan(project)
    words = [word.format(parameters='{"n": 40}') for word in json.loads(plan.read_text())["begin"]]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=project)
    run_id = json.loads(done.stdout)["run_id"]
    store = session.open_store(create=False)

    def commit(step: str, index: tuple[int, ...], transition: Transition, loop: int = 0) -> None:
        key = TaskKey(step, index, loop)
        parents = (TaskKey("start"),) if index else ()
        record = AttemptFinished(
            key,
            0,
            StepOutcome("succeeded", transition=transition),
            will_retry=False,
            parents=parents,
            frames=(),
            time=1,
        )
        assert store.add_segment("Squares", run_id, layout.task_segment(key), record)

    commit("start", (), Transition(("square",), 40))
    for number in range(40):
        commit("square", (number,), Transition(("again",)))
    reads: list[str] = []
    read = type(store.objects).read

    def counted(self: Any, key: str, *arguments: Any, **named: Any) -> Any:
        reads.append(key)
        return read(self, key, *arguments, **named)

    monkeypatch.setattr(type(store.objects), "read", counted)
    assert Position.towards(OpenRun.read(store, "Squares", run_id), "again", "7").find("again", "7").key.index == (7,)
    few = len(reads)
    assert few < 8
    for number in range(40):
        for loop, following in ((0, "again"), (1, "done")):
            commit("again", (number,), Transition((following,)), loop)
        commit("done", (number,), Transition(("join",)))
    reads.clear()
    assert len(Position.towards(OpenRun.read(store, "Squares", run_id), "join", "0").find("join", "0").parents) == 40
    assert len(reads) == len(set(reads)) < 4 * 40 + few


@pytest.mark.parametrize(
    ("step", "task_id", "message"),
    [
        ("join", "0", "is not ready"),
        ("nowhere", "0", "is not ready"),
        ("../up", "0", "is refused"),
        ("start", "0/../..", "is refused"),
    ],
)
def test_a_task_that_is_not_ready_is_refused(project: Path, step: str, task_id: str, message: str) -> None:
    """One message and exit status 2, nothing written."""
    _, plan = write_plan(project)
    commands = json.loads(plan.read_text())
    begun = subprocess.run(
        [word.format(parameters="{}") for word in commands["begin"]], capture_output=True, text=True, check=True
    )
    run_id = json.loads(begun.stdout)["run_id"]
    words = [word.format(run_id=run_id, step=step, task_id=task_id, attempt="0") for word in commands["step"]]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
