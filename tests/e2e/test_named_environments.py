"""Steps in environments that have a name: looked up when the run starts, or when a task does, by whichever way it runs.

Most tests name locks of the interpreter that runs them: what a name leads to is then told by the lock's content alone.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mlp_core.client import client_for
from mlp_core.environments.bundling import this_platform
from mlp_core.environments.catalog import Catalog
from mlp_core.errors import FlowError
from mlp_core.loading import load_flow
from mlp_core.runner import RunOptions, check_flow
from mlp_core.runner.blueprint import draw_blueprint, flow_plan, store_blueprint
from mlp_core.runner.run import freeze, resolve_parameters
from mlp_hookspecs import EnvironmentLock, EnvironmentSpec, wire

if TYPE_CHECKING:
    from conftest import Processes, Project, Ran

NAMING = """
from mlp_core.environments.catalog import Catalog
from mlp_core.environments.bundling import this_platform
from mlp_core.session import Session
from mlp_hookspecs import EnvironmentLock, EnvironmentSpec


def name(content, name):
    catalog = Catalog(Session.open(flags={"plugins.safe": True}).open_store(create=False))
    lock = EnvironmentLock("current", content, "3")
    catalog.keep(EnvironmentSpec("current", {"content": content}), lock, [this_platform()])
    catalog.name(name, lock.digest)
"""
"""A module of a flow's project: what a step calls to name an environment on the fly."""

ONE_STEP = """
class Flow(FlowSpec):
    @named_env(name="{name}")
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass
"""

LATE = """
from naming import name

class Flow(FlowSpec):
    team = Parameter("team", default="fraud")

    @step
    def start(self):
        name("of the run", f"made/{current.run_id}")
        name("of the step", "work")
        name("of the team", f"{self.team}/scoring:v1")
        name("of the task", f"work/{current.run_id}/0")
        self.next(self.work)

    @named_env(name="NAME", fetch_at_exec=True)
    @step
    def work(self):
        self.x = 1
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def keep(project: Project, content: str, *called: str) -> str:
    """Keep a lock in the project's store, name it, and return its digest."""
    catalog = Catalog(project.session().open_store(create=True), "tester")
    lock = EnvironmentLock("current", content, "3")
    catalog.keep(EnvironmentSpec("current", {"content": content}), lock, [this_platform()])
    for name in called:
        catalog.name(name, lock.digest)
    return lock.digest


def info(ran: Ran, path: str) -> dict[str, Any]:
    """Return what the client says of a task's environment."""
    run = ran.state.context
    key = ran.key(path)
    task = client_for(ran.session).run(f"{run.flow}/{run.run_id}")[key.step][key.task_id]
    found: dict[str, Any] = task.environment_info
    return found


@pytest.mark.parametrize("name", ["scoring", "scoring:v1", "team/scoring:stable"])
def test_name_at_start(new_project: Project, name: str) -> None:
    """A step runs in what a name stands for; the run's record has the lock, and the client tells it."""
    digest = keep(new_project, "the one", name)
    ran = new_project.run(ONE_STEP.format(name=name))
    assert ran.status == "succeeded"
    assert info(ran, "start")["digest"] == digest
    assert info(ran, "start")["lock"] == "the one"
    assert info(ran, "end")["backend"] == "current"
    assert "digest" not in info(ran, "end")


def test_digest_and_pathspecs_are_names(new_project: Project) -> None:
    """A lock's digest or its beginning, and the pathspec of a run, step or task that had it, name an environment."""
    digest = keep(new_project, "the one", "scoring")
    first = new_project.run(ONE_STEP.format(name="scoring"))
    path = f"Flow/{first.run_id}"
    for name in (digest, digest[:20], digest.removeprefix("sha256-")[:8], path, f"{path}/start", f"{path}/start/0"):
        ran = new_project.run(ONE_STEP.format(name=name))
        assert (ran.status, info(ran, "start")["digest"]) == ("succeeded", digest), name


def test_tag_that_moves_is_looked_up_by_each_run(new_project: Project) -> None:
    """Two runs with a move of the tag between them run in two environments, and each run's record stays."""
    before = keep(new_project, "before", "scoring")
    first = new_project.run(ONE_STEP.format(name="scoring"))
    after = keep(new_project, "after", "scoring")
    second = new_project.run(ONE_STEP.format(name="scoring"))
    assert info(first, "start")["digest"] == before
    assert info(second, "start")["digest"] == after


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("scorin", "did you mean scoring?"),
        ("scoring:v9", "its tags are latest"),
        ("abcdef0123", "mlp env list"),
        ("Flow/20260131-094500-123456/start", "no run"),
        ("Flow/RUN/end", "had no environment of its own"),
        ("Flow/RUN/nope", "has no step"),
        ("Scoring", "lower case"),
        ("../../etc", "refused"),
    ],
)
def test_unknown_name_is_refused_before_anything_starts(new_project: Project, name: str, said: str) -> None:
    """A name that leads nowhere is a usage error with a hint, and there is no run of it."""
    keep(new_project, "the one", "scoring")
    first = new_project.run(ONE_STEP.format(name="scoring"))
    name = name.replace("RUN", first.run_id)
    with pytest.raises(FlowError) as caught:
        new_project.run(ONE_STEP.format(name=name))
    assert "the environment of step 'start' cannot be resolved" in str(caught.value)
    assert said in str(caught.value)
    assert caught.value.exit_status == 2
    assert new_project.runs() == [first.run_id]


def test_command_refuses_an_unknown_name(new_project: Project) -> None:
    """The command ends with status 2 and one message, without a traceback."""
    file = new_project.write(ONE_STEP.format(name="nobody"))
    done = new_project.command("-m", "mlp_core.cli", "run", str(file))
    assert done.returncode == 2
    assert "there is no environment nobody:latest" in done.stderr
    assert "Traceback" not in done.stderr


def test_braces_need_fetch_at_exec(new_project: Project) -> None:
    """A name that is not complete before a task starts is refused where it is to be looked up before."""
    file = new_project.write(ONE_STEP.format(name="made/{run_id}"))
    done = new_project.command("-m", "mlp_core.cli", "run", str(file))
    assert done.returncode == 2
    assert "fetch_at_exec=True" in done.stderr


# --------------------------------------------------------------------------------------------------- when a task starts


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("made/{run_id}", "of the run"),
        ("made/@{METAFLOW_RUN_ID}", "of the run"),
        ("{step_name}", "of the step"),
        ("@{METAFLOW_STEP_NAME}", "of the step"),
        ("{team}/scoring:v1", "of the team"),
        ("@{METAFLOW_INIT_TEAM}/scoring:v1", "of the team"),
        ("{step_name}/{run_id}/{task_id}", "of the task"),
    ],
)
def test_name_at_exec(new_project: Project, name: str, content: str) -> None:
    """A name is completed and looked up when the task starts, so that an earlier step may have given it."""
    (new_project.root / "naming.py").write_text(NAMING)
    ran = new_project.run(LATE.replace("NAME", name))
    assert ran.status == "succeeded", ran.result
    assert info(ran, "work")["lock"] == content
    assert ran.value("x") == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [("nobody/{run_id}", "there is no environment nobody/"), ("{colour}", "has {colour}, which is not known")],
)
def test_unknown_name_at_exec_fails_the_task(new_project: Project, name: str, said: str) -> None:
    """The task fails with one message that has the hint; the tasks before it stay done."""
    (new_project.root / "naming.py").write_text(NAMING)
    file = new_project.write(LATE.replace("NAME", name))
    done = new_project.command("-m", "mlp_core.cli", "run", str(file))
    assert done.returncode == 1
    ran = new_project.read()
    assert [ran.outcome(path).status for path in ("start", "work")] == ["succeeded", "failed"]
    failure = ran.failure("work")
    assert failure.kind == "system"
    assert said in failure.message
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_foreach_with_a_name_for_each_task(new_project: Project) -> None:
    """Tasks of one step run in environments of their own, told apart by the client; a join sees all results."""
    for number in range(4):
        keep(new_project, f"number {number}", f"numbers/{number}")
    ran = new_project.run(
        """
        class Flow(FlowSpec):
            @step
            def start(self):
                self.items = [0, 1, 2, 3]
                self.next(self.work, foreach="items")

            @named_env(name="numbers/{task_id}", fetch_at_exec=True)
            @step
            def work(self):
                self.square = self.input ** 2
                self.next(self.join)

            @step
            def join(self, inputs):
                self.squares = [branch.square for branch in inputs]
                self.next(self.end)

            @step
            def end(self):
                pass
        """
    )
    assert ran.status == "succeeded"
    assert ran.value("squares") == [0, 1, 4, 9]
    assert [info(ran, f"work/{number}")["lock"] for number in range(4)] == [f"number {number}" for number in range(4)]


def test_retry_looks_the_name_up_again(new_project: Project) -> None:
    """An attempt that found nothing is tried again like any that failed, and finds what was named meanwhile."""
    (new_project.root / "naming.py").write_text(NAMING)
    ran = new_project.run(
        """
        import threading
        from naming import name

        class Flow(FlowSpec):
            @step
            def start(self):
                self.next(self.work, self.other)

            @retry(times=40, minutes_between_retries=0.005)
            @named_env(name="made/{run_id}", fetch_at_exec=True)
            @step
            def work(self):
                self.next(self.join)

            @step
            def other(self):
                time.sleep(0.5)
                name("late", f"made/{current.run_id}")
                self.next(self.join)

            @step
            def join(self, inputs):
                self.next(self.end)

            @step
            def end(self):
                pass
        """
    )
    assert ran.status == "succeeded"
    attempts = ran.state.tasks[ran.key("work")].attempts
    assert len(attempts) > 1
    assert "there is no environment made/" in str(attempts[0].outcome)
    assert info(ran, "work")["lock"] == "late"


def test_catch_at_exec(new_project: Project) -> None:
    """Where there is no such environment, the policy of the step may put a failure in the result's place."""
    (new_project.root / "naming.py").write_text(NAMING)
    code = LATE.replace("NAME", "nobody").replace("    @named_env", '    @catch(var="problem")\n    @named_env')
    ran = new_project.run(code)
    assert ran.status == "succeeded"
    assert "there is no environment nobody" in str(ran.value("problem"))


def test_resume_looks_up_what_had_failed(new_project: Project) -> None:
    """A run that found no environment goes on once there is one; what was done is not done again."""
    (new_project.root / "naming.py").write_text(NAMING)
    code = LATE.replace("NAME", "later")
    first = new_project.run(code)
    assert first.status == "failed"
    keep(new_project, "named afterwards", "later")
    file = str(new_project.write(code))
    done = new_project.command("-m", "mlp_core.cli", "resume", file, "--origin-run-id", first.run_id)
    assert done.returncode == 0, done.stderr
    second = new_project.read()
    assert info(second, "work")["lock"] == "named afterwards"
    assert [key.path for key, task in second.state.tasks.items() if task.origin] == ["start/0"]


SLOW = """
import time
from collections.abc import Sequence
from pathlib import Path

from mlp_hookspecs import *
from mlp_hookspecs import hookimpl


@hookimpl
def mlp_backends():
    return (Backend("environment", "slow", "One that takes its time."),)


@hookimpl
def mlp_resolve_environment(spec: EnvironmentSpec, platforms: Sequence[str]) -> EnvironmentLock:
    return EnvironmentLock("slow", "slow", "3")


@hookimpl
def mlp_provision_environment(lock: EnvironmentLock, root: Path) -> ProvisionedEnvironment:
    Path("making").touch()
    time.sleep(60)
    raise OSError("nobody waited so long")
"""


def test_interrupt_while_an_environment_is_made(new_project: Project, processes: Processes, tmp_path: Path) -> None:
    """A run that is told to end does so at once, though the environment of a task is still being made."""
    site = tmp_path / "site"
    info = site / "mlp_plugin_slow-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "throwaway_slow.py").write_text(SLOW)
    (info / "entry_points.txt").write_text("[mlp]\nslow = throwaway_slow\n")
    requires = "Requires-Dist: mlp-hookspecs>=0.3,<0.4"
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: mlp-plugin-slow\nVersion: 1.0\n{requires}\n")
    catalog = Catalog(new_project.session().open_store(create=True), "tester")
    lock = EnvironmentLock("slow", "slow", "3")
    catalog.keep(EnvironmentSpec("slow", {}), lock, [this_platform()])
    catalog.name("slow", lock.digest)
    (new_project.root / "naming.py").write_text(NAMING)
    file = str(new_project.write(LATE.replace("NAME", "slow")))
    variables = {"MLP_NO_PLUGINS": "0", "MLP_PLUGINS_ALLOW": "slow", "PYTHONPATH": str(site)}
    with new_project.start("-m", "mlp_core.cli", "run", file, mark=processes.mark, **variables) as process:
        try:
            processes.wait_for((new_project.root / "making").exists, "the environment")
            process.terminate()
            _, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 128 + 15, err
    ran = new_project.read()
    assert ran.status == "cancelled"
    assert ran.failure("work").kind == "cancelled"
    processes.wait_until_gone(2)


# --------------------------------------------------------------------------------------------------- without a driver


def plan_of(project: Project, code: str) -> Path:
    """Freeze a flow and write its plan as JSON, as a deploy target for an orchestrator gets it."""
    file = project.write(code, "planned.py")
    session = project.session()
    flow = load_flow(file)
    checked = check_flow(flow, session)
    store = session.open_store(create=True)
    resolved = resolve_parameters(flow, session, RunOptions())
    frozen = freeze(checked, session, RunOptions(), session.values(store), resolved)
    constants = {name: ref for name, ref in frozen.parameters.items() if name not in frozen.texts}
    blueprint = draw_blueprint(checked, session, frozen.code, constants=constants, parameters={})
    plan = project.root / "plan.json"
    plan.write_bytes(wire.dumps(flow_plan(checked, store_blueprint(store, blueprint), store.url)))
    return plan


def orchestrate(plan: Path) -> subprocess.CompletedProcess[str]:
    """Run a plan as an orchestrator does."""
    command = ["bash", str(Path(__file__).with_name("orchestrate.sh")), str(plan), "{}", sys.executable]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=plan.parent)


def test_deployed_version_keeps_what_the_name_stood_for(new_project: Project) -> None:
    """A frozen flow runs in what its name stood for when it was frozen, wherever the name has moved since."""
    before = keep(new_project, "before", "scoring")
    plan = plan_of(new_project, ONE_STEP.format(name="scoring"))
    keep(new_project, "after", "scoring")
    done = orchestrate(plan)
    assert done.returncode == 0, done.stderr
    ran = new_project.read(done.stdout.strip())
    assert ran.status == "succeeded"
    assert info(ran, "start")["digest"] == before


@pytest.mark.parametrize(("name", "content"), [("made/{run_id}", "of the run"), ("{team}/scoring:v1", "of the team")])
def test_orchestrated_step_looks_its_name_up(new_project: Project, name: str, content: str) -> None:
    """A task that an orchestrator starts looks up what an earlier one has named, and its run's record has it."""
    (new_project.root / "naming.py").write_text(NAMING)
    done = orchestrate(plan_of(new_project, LATE.replace("NAME", name)))
    assert done.returncode == 0, done.stderr
    ran = new_project.read(done.stdout.strip())
    assert info(ran, "work")["lock"] == content


def test_orchestrated_step_without_an_environment_fails(new_project: Project) -> None:
    """Its task fails with the same message as a run's, which the orchestrator gets as the reason."""
    (new_project.root / "naming.py").write_text(NAMING)
    plan = plan_of(new_project, LATE.replace("NAME", "nobody"))
    done = orchestrate(plan)
    assert done.returncode == 1
    ran = new_project.read(done.stdout.strip())
    assert "there is no environment nobody:latest" in ran.failure("work").message


# --------------------------------------------------------------------------------------------------- with more packages

ADDED = """
import json, sys

from mlp_core import *
from mlp_plugin_uv import pypi


class Flow(FlowSpec):
    @pypi(packages={"six": "1.16.0"})
    @step
    def start(self):
        import six

        self.six = six.__version__
        self.next(self.work)

    @named_env(name="Flow/{run_id}/start", fetch_at_exec=True)
    @pypi(packages={"toolz": "ADDED"})
    @step
    def work(self):
        import six, toolz

        self.both = six.__version__, toolz.__version__
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Flow()
"""


@pytest.mark.timeout(200)
def test_packages_are_added_to_a_named_environment(new_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside @named_env the packages of @pypi are added to the environment, which keeps every version it has."""
    uv = pytest.importorskip("mlp_plugin_uv.tool")
    with monkeypatch.context() as patch:
        patch.delenv("XDG_CACHE_HOME")
        cache = uv.run_uv(["cache", "dir"]).strip()
    file = new_project.root / "added.py"
    file.write_text(ADDED.replace("ADDED", "0.12.1"))
    variables = {"MLP_NO_PLUGINS": "0", "UV_CACHE_DIR": cache}
    done = new_project.command("added.py", "run", timeout=150, **variables)
    assert done.returncode == 0, done.stderr
    ran = new_project.read()
    assert ran.value("both") == ("1.16.0", "0.12.1")
    base, more = (record.lock for record in ran.state.environments)
    assert {name: more.packages[name] for name in base.packages} == dict(base.packages)
    assert set(more.packages) - set(base.packages) == {"toolz"}
    file.write_text(ADDED.replace('"toolz": "ADDED"', '"six": ">1.16.0"'))
    done = new_project.command("added.py", "run", timeout=150, **variables)
    assert done.returncode == 1
    assert "six" in new_project.read().failure("work").message
    assert "1.16.0" in new_project.read().failure("work").message
