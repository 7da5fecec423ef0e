"""How a ready task becomes a request: what it says, and how its worker is started."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from mlp_core.contents import put_back
from mlp_core.runner.requests import (
    THREAD_VARIABLES,
    UNSET,
    RunSetup,
    StepSetup,
    extra_path,
    launch_request,
    thread_variables,
    worker_command,
)
from mlp_core.scheduler import ReadyTask
from mlp_hookspecs import (
    ArtifactRef,
    CatchPolicy,
    CodeRef,
    EnvironmentLock,
    Failure,
    ForeachFrame,
    PlannedStep,
    PluginId,
    ProvisionedEnvironment,
    Resources,
    RetryPolicy,
    RunContext,
    StepNode,
    StepPlan,
    StepRequest,
    TaskInput,
    TaskKey,
    wire,
)

if TYPE_CHECKING:
    from pathlib import Path

REF = ArtifactRef("json", "sha256-00", 1, "int", b"1")
SETUP = RunSetup(
    run=RunContext("F", "20260131-094500-123456"),
    code=CodeRef("flow", "F", "flow.py", "/project"),
    store="/store",
    parameters={"alpha": REF},
    plugins=(PluginId("p", "mlp-plugin-p", "1.0"),),
    settings={"run.inline_bytes": 8192},
    cwd="/work-folder",
)
PLAN = StepPlan(
    variables={"A": "1", "OMP_NUM_THREADS": "7"},
    resources=Resources(cpu=2.5, memory_mb=10),
    retry=RetryPolicy(1),
    catch=CatchPolicy("problem", print_exception=False),
    formats={"x": "pickle"},
    secrets=("vault://a",),
    launcher_options={"queue": "short"},
)
LOCK = EnvironmentLock("uv", content="lock", python="3.12")


def step(plan: StepPlan = PLAN, **given: Any) -> StepSetup:
    """Return a step."""
    return StepSetup(PlannedStep(StepNode("work", "linear", ("end",)), plan), "local", **given)


def test_request_says_everything() -> None:
    """The request has what the worker needs to know of run, task, attempt and policies, and survives the wire."""
    frame = ForeachFrame("start", "xs", 3, 5, REF)
    task = ReadyTask(TaskKey("work", (3,)), (TaskKey("start"),), (), (frame,))
    inputs = (TaskInput(TaskKey("start"), {"x": REF}),)
    request = launch_request(SETUP, step(), task, (inputs, None), (1, None))
    assert (request.id, request.step.id) == ("work/3/1", "work/3/1")
    assert (request.resources, request.options) == (PLAN.resources, {"queue": "short"})
    sent = request.step
    assert (sent.key, sent.attempt, sent.inputs, sent.split, sent.frames) == (task.key, 1, inputs, None, (frame,))
    assert (sent.store, sent.parameters, sent.plugins) == ("/store", {"alpha": REF}, SETUP.plugins)
    assert (sent.max_retries, sent.catch_variable, sent.print_exception) == (1, "problem", False)
    assert (sent.formats, sent.variables, sent.secrets) == ({"x": "pickle"}, PLAN.variables, ("vault://a",))
    assert wire.loads(StepRequest, wire.dumps(sent)) == sent


@pytest.mark.parametrize(("attempt", "expected"), [(0, False), (1, True), (2, True)])
def test_only_the_last_attempt_is_caught(attempt: int, expected: bool) -> None:
    """A failure is caught once no attempt follows, and by the one that stands in for a dead one."""
    task = ReadyTask(TaskKey("work"))
    caught = Failure("killed", "why") if attempt > 1 else None
    request = launch_request(SETUP, step(), task, ((), None), (attempt, caught))
    assert (request.step.catches, request.step.caught) == (expected, caught)
    plain = attrs.evolve(PLAN, catch=None)
    assert not launch_request(SETUP, step(plain), task, ((), None), (attempt, None)).step.catches


def test_worker_in_the_driver_s_interpreter() -> None:
    """Without an environment the worker runs in this interpreter, with this process's own path, in its folder."""
    command = worker_command(step(), store=SETUP.store, cwd=SETUP.cwd)
    assert command.argv == (sys.executable, "-P", "-m", "mlp_core.worker")
    assert (command.cwd, command.unset) == ("/work-folder", UNSET)
    assert command.variables["MLP_WORKER_PATH"].split(os.pathsep) == extra_path() or not extra_path()
    assert command.variables["A"] == "1"


def test_worker_in_an_environment_on_this_host() -> None:
    """In an environment the worker runs in its interpreter, with its variables, and the platform from a folder."""
    made = ProvisionedEnvironment("/env/bin/python", {"PATH": "/env/bin"}, has_platform=False)
    command = worker_command(step(lock=LOCK, environment=made, closure="/closure"), store=SETUP.store, cwd=SETUP.cwd)
    assert command.argv == ("/env/bin/python", "-P", "-m", "mlp_core.worker")
    assert (command.variables["PATH"], command.variables["PYTHONPATH"]) == ("/env/bin", "/closure")
    assert command.variables["MLP_WORKER_PATH"] == ""


def test_worker_in_an_environment_elsewhere() -> None:
    """On another host an agent makes the environment first."""
    command = worker_command(step(lock=LOCK), store=SETUP.store, cwd=SETUP.cwd)
    assert command.argv[1:] == ("-P", "-m", "mlp_core.agent")


def test_threads_of_numeric_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thread pools have as many threads as the task has cores, unless the user or the step says otherwise."""
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert set(thread_variables(Resources(cpu=2.5)).values()) == {"2"}
    assert set(thread_variables(Resources(cpu=0)).values()) == {"1"}
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    assert "MKL_NUM_THREADS" not in thread_variables(Resources())
    command = worker_command(step(), store=SETUP.store, cwd=SETUP.cwd)
    assert (command.variables["OMP_NUM_THREADS"], command.variables["OPENBLAS_NUM_THREADS"]) == ("7", "2")


def test_path_of_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Folders that the process added are told, also beside the interpreter's own; those that any has are not."""
    beside = f"{sys.prefix}-project"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "/from/variable")
    added = [beside, f"{sys.prefix}/share/mine", "/from/variable", "", "relative", str(tmp_path)]
    monkeypatch.setattr(sys, "path", [*added, *sys.path])
    found = extra_path()
    assert found[:4] == [beside, f"{sys.prefix}/share/mine", str(tmp_path / "relative"), str(tmp_path)]
    own = subprocess.run(
        [sys.executable, "-P", "-c", "import sys; print(*sys.path, sep='\\n')"],
        env={},
        check=True,
        capture_output=True,
        text=True,
    )
    fresh = [folder for folder in own.stdout.splitlines() if "/lib/python" in folder]
    assert fresh
    assert not set(fresh) & set(found)


def test_a_join_s_request_repeats_nothing() -> None:
    """What many branches have in common stands in a join's request once."""
    shared = ArtifactRef("json", "sha256-aa", 8000, "str", b"x" * 8000)
    branches = tuple(
        TaskInput(TaskKey("work", (n,)), {"shared": shared, "own": attrs.evolve(REF, data=b"%d" % n)})
        for n in range(1000)
    )
    request = launch_request(SETUP, step(), ReadyTask(TaskKey("join")), (branches, None), (0, None))
    assert request.step.contents == {"sha256-aa": shared.data}
    assert len(wire.dumps(request.step)) < 500_000
    assert put_back(request.step.inputs, request.step.contents) == branches
