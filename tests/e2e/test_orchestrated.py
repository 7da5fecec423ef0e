"""A flow runs step by step from its plan, with no driver of ours, and its run reads like any other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlp_core.loading import load_flow
from mlp_core.runner import RunOptions, check_flow
from mlp_core.runner.blueprint import draw_blueprint, flow_plan, store_blueprint
from mlp_core.runner.run import freeze
from mlp_core.session import Session
from mlp_hookspecs import wire

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
    frozen = freeze(checked, session, RunOptions(), session.values(store))
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
