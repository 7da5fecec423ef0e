"""How a step runs where the driver is not: the agent makes the environment, and becomes the worker."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from mlp_core.runner.run import Frozen, run_setup
from mlp_hookspecs import EnvironmentLock, StepRequest, TaskInput, TaskKey, WorkerCommand, wire
from mlp_hookspecs.process import run_worker
from mlp_hookspecs.testing import RecordingSink

if TYPE_CHECKING:
    from conftest import Processes, Project, Ran

FLOW = """
import subprocess

class Flow(FlowSpec):
    @step
    def start(self):
        self.x = [1]
        self.next(self.work)

    @step
    def work(self):
        print("working", sys.stdin.read() == "")
        if os.path.exists("block"):
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
            try:
                open("blocking", "w").close()
                time.sleep(60)
            finally:
                print("cleaned up")
        self.x.append(2)
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.fixture
def origin(new_project: Project) -> Ran:
    """A run whose step is to run again, by an agent."""
    ran = new_project.run(FLOW)
    assert ran.status == "succeeded"
    return ran


def request(ran: Ran, lock: EnvironmentLock | None) -> StepRequest:
    """Return the request for the run's second step."""
    began = ran.state.began
    assert began.code is not None
    frozen = Frozen(began.parameters, began.parameter_texts, began.code)
    setup = run_setup(ran.session, began.run, frozen, ran.session.store_url)
    return StepRequest(
        run=began.run,
        key=TaskKey("work"),
        attempt=7,
        node=ran.state.graph["work"],
        code=began.code,
        store=setup.store,
        inputs=(TaskInput(TaskKey("start"), ran.artifacts("start")),),
        plugins=setup.plugins,
        settings=setup.settings,
        lock=lock,
    )


def command(project: Project) -> WorkerCommand:
    """Return the agent's command."""
    return WorkerCommand((sys.executable, "-P", "-m", "mlp_core.agent"), cwd=str(project.root))


@pytest.mark.parametrize("lock", [None, EnvironmentLock("current", content="python", python="3")])
def test_agent_becomes_the_worker(new_project: Project, origin: Ran, lock: EnvironmentLock | None) -> None:
    """The agent speaks the worker's protocol, with an environment and without."""
    sink = RecordingSink()
    run_worker(command(new_project), wire.dumps(request(origin, lock)), "id", sink)
    end = sink.end("id")
    assert end is not None
    assert end.outcome is not None, end.failure
    assert end.outcome.status == "succeeded"
    assert sink.text("id", "stdout") == b"working True\n"
    values = origin.session.values(origin.session.open_store(create=False))
    assert values.get(end.outcome.assigned["x"]) == [1, 2]


def test_agent_cannot_make_the_environment(new_project: Project, origin: Ran) -> None:
    """A backend that nobody provides ends the attempt with the reason in its log."""
    sink = RecordingSink()
    lock = EnvironmentLock("nobody", content="x", python="3")
    run_worker(command(new_project), wire.dumps(request(origin, lock)), "id", sink)
    end = sink.end("id")
    assert end is not None
    assert b"nobody" in sink.text("id", "stderr") or "nobody" in str(end.failure or end.outcome)


def test_agent_s_step_is_asked_to_end(
    new_project: Project, origin: Ran, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request to end reaches the step through agent and guard, and nothing is left behind."""
    (new_project.root / "block").touch()
    monkeypatch.setenv("MLP_TEST_MARK", processes.mark)
    sink = RecordingSink()
    content = wire.dumps(request(origin, None))
    thread = threading.Thread(target=run_worker, args=(command(new_project), content, "id", sink))
    thread.start()
    processes.wait_for((new_project.root / "blocking").exists, "the step")
    import psutil

    (agent,) = [child for child in psutil.Process().children() if "mlp_core" in " ".join(child.cmdline())]
    os.kill(agent.pid, signal.SIGTERM)
    thread.join(10)
    end = sink.end("id")
    assert end is not None
    assert end.outcome is not None
    assert end.outcome.failure is not None
    assert end.outcome.failure.kind == "cancelled"
    assert b"cleaned up" in sink.text("id", "stdout")
    processes.wait_until_gone(2)
