"""What the steps of a run get: requirements answered once, environments made once, names looked up now or later."""

from __future__ import annotations

import importlib.util
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from mlp_core.environments.bundling import this_platform
from mlp_core.environments.catalog import Catalog
from mlp_core.errors import FlowError, MlpError, UsageError
from mlp_core.runner.environments import LateEnvironments, StepEnvironments, needs_environment
from mlp_core.runner.inbox import Ended, Inbox, Prepared
from mlp_core.runner.planning import CheckedFlow, check_flow
from mlp_core.runner.requests import StepSetup, expected_commands
from mlp_core.scheduler import ReadyTask
from mlp_core.session import Session
from mlp_hookspecs import EnvironmentLock, EnvironmentSpec, Failure, RunContext, TaskKey

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOY = """
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import attrs

from mlp_hookspecs import *
from mlp_hookspecs import decorator, hookimpl

resolved, made = [], []

@attrs.frozen
class Toy(Option):
    name: ClassVar[str] = "toy"
    package: str = "good"

toy = decorator(Toy)

@hookimpl
def mlp_options():
    return (Toy,)

@hookimpl
def mlp_backends():
    return (
        Backend("environment", "toy", "A toy."),
        Backend("launcher", "far", "On another host.", shares_driver_host=False),
    )

@hookimpl
def mlp_plan_step(step: StepInfo, options: Sequence[Option]):
    packages = [option.package for option in options if isinstance(option, Toy)]
    far = StepPlan(launcher="far") if step.node.name == "far" else StepPlan()
    return attrs.evolve(far, environment=EnvironmentSpec("toy", {"package": packages[0]})) if packages else far

@hookimpl
def mlp_resolve_environment(spec: EnvironmentSpec, platforms: Sequence[str]):
    resolved.append(spec)
    package = spec.requirement["package"]
    if package == "missing":
        raise ValueError("no index has missing")
    base = f"{spec.base.content}+" if spec.base else ""
    return EnvironmentLock("toy", f"{base}{package}", "3")

@hookimpl
def mlp_provision_environment(lock: EnvironmentLock, root: Path):
    made.append(lock.content)
    if lock.content == "broken":
        raise OSError("the disk is full")
    (root / lock.digest).mkdir(exist_ok=True)
    return ProvisionedEnvironment(python=f"/{lock.content}/python")

@hookimpl
def mlp_open_launcher(settings, sink):
    raise OSError("not here")

@hookimpl
def mlp_launch_step(requests, launcher):
    raise OSError("not here")
"""


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """A project with a toy plugin, and caches of its own."""
    site, project = tmp_path / "site", tmp_path / "project"
    info = site / "mlp_plugin_toy-1.0.dist-info"
    info.mkdir(parents=True)
    project.mkdir()
    (project / "mlp.toml").touch()
    (site / "throwaway_toy").mkdir()  # a package: it travels into environments
    (site / "throwaway_toy" / "__init__.py").write_text(TOY)
    (info / "entry_points.txt").write_text("[mlp]\ntoy = throwaway_toy\n")
    requires = "Requires-Dist: mlp-hookspecs>=0.3,<0.4"
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: mlp-plugin-toy\nVersion: 1.0\n{requires}\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield Session.open(start=project, flags={"plugins.allow": ["toy"], "plugins.safe": False})
    sys.modules.pop("throwaway_toy", None)


def toy() -> Any:
    """Return the toy plugin's module."""
    return sys.modules["throwaway_toy"]


def checked(session: Session, tmp_path: Path, **decorators: str) -> CheckedFlow:
    """Return a flow of a chain of steps, each with its decorators."""
    names = [name for name in decorators if name not in ("start", "end")]
    chain = ["start", *names, "end"]
    code = "from mlp_core import FlowSpec, named_env, step\nfrom throwaway_toy import toy\n\nclass Flow(FlowSpec):\n"
    for name, following in zip(chain, [*chain[1:], ""], strict=True):
        body = f"self.next(self.{following})" if following else "pass"
        code += textwrap.indent(f"{decorators.get(name, '')}\n@step\ndef {name}(self):\n    {body}\n", "    ")
    path = tmp_path / "chain.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location("chain", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["chain"] = module
    try:
        spec.loader.exec_module(module)
        return check_flow(module.Flow, session)
    finally:
        del sys.modules["chain"]


def keep(session: Session, content: str, name: str) -> EnvironmentLock:
    """Keep a lock of the toy, and name it."""
    catalog = Catalog(session.open_store(create=True), "tester")
    lock = EnvironmentLock("toy", content, "3")
    catalog.keep(EnvironmentSpec("toy", {"package": content}), lock, [this_platform()])
    catalog.name(name, lock.digest)
    return lock


def test_requirement_of_several_steps_is_answered_once(session: Session, tmp_path: Path) -> None:
    """Two steps with one requirement share lock and environment; the record has both, and others have none."""
    flow = checked(session, tmp_path, start='@toy(package="a")', middle='@toy(package="a")', other='@toy(package="b")')
    prepared = StepEnvironments(session).prepare(flow)
    assert [spec.requirement["package"] for spec in toy().resolved] == ["a", "b"]
    assert toy().made == ["a", "b"]
    assert {record.lock.content: record.steps for record in prepared.records} == {
        "a": ("start", "middle"),
        "b": ("other",),
    }
    environments = {name: step.environment and step.environment.python for name, step in prepared.steps.items()}
    assert environments == {"start": "/a/python", "middle": "/a/python", "other": "/b/python", "end": None}
    assert prepared.steps["start"].closure
    assert prepared.steps["end"].closure == ""
    assert all("(resolved now)" in note for note in prepared.notes)
    assert [needs_environment(step) for step in flow.steps] == [True, True, True, False]


def test_second_run_resolves_nothing(session: Session, tmp_path: Path) -> None:
    """What the store has an answer to is not asked again; the notes do not say that it was resolved."""
    flow = checked(session, tmp_path, start='@toy(package="a")')
    first = StepEnvironments(session).prepare(flow)
    second = StepEnvironments(session).prepare(flow)
    assert len(toy().resolved) == 1
    assert second.records[0].lock == first.records[0].lock
    assert "(resolved now)" not in second.notes[0]


def test_known_locks_are_taken_as_they_are(session: Session, tmp_path: Path) -> None:
    """A frozen flow's locks are used without asking anybody, for names too."""
    flow = checked(session, tmp_path, start='@toy(package="a")', middle='@named_env(name="gone")')
    lock = EnvironmentLock("toy", "frozen", "3")
    prepared = StepEnvironments(session, known={"start": lock, "middle": lock}).prepare(flow)
    assert toy().resolved == []
    assert prepared.steps["start"].lock == prepared.steps["middle"].lock == lock
    assert prepared.records[0].steps == ("start", "middle")


def test_steps_elsewhere_get_the_lock_alone(session: Session, tmp_path: Path) -> None:
    """Where the launcher's tasks run on another host nothing is made here; nor where it is not to be."""
    flow = checked(session, tmp_path, start='@toy(package="a")', far='@toy(package="b")')
    prepared = StepEnvironments(session).prepare(flow)
    assert toy().made == ["a"]
    assert prepared.steps["far"].lock is not None
    assert prepared.steps["far"].environment is None
    StepEnvironments(session).prepare(flow, provision=False)
    assert toy().made == ["a"]


def test_refusals_name_the_step(session: Session, tmp_path: Path) -> None:
    """What cannot be resolved, or is not there, is a mistake in the flow's file; what cannot be made is not."""
    with pytest.raises(FlowError, match="the environment of step 'middle' cannot be resolved: no index has missing"):
        StepEnvironments(session).prepare(checked(session, tmp_path, middle='@toy(package="missing")'))
    with pytest.raises(FlowError, match="there is no environment nobody:latest") as caught:
        StepEnvironments(session).prepare(checked(session, tmp_path, middle='@named_env(name="nobody")'))
    assert caught.value.exit_status == 2
    with pytest.raises(MlpError, match="the environment of step 'middle' could not be made: the disk is full"):
        StepEnvironments(session).prepare(checked(session, tmp_path, middle='@toy(package="broken")'))


def test_name_with_additions(session: Session, tmp_path: Path) -> None:
    """Beside a name, what the step's other decorators ask for is added to the named lock; backends must be one."""
    base = keep(session, "base", "tools")
    flow = checked(session, tmp_path, start='@named_env(name="tools")\n@toy(package="a")')
    prepared = StepEnvironments(session).prepare(flow)
    assert toy().resolved[-1].base == base
    lock = prepared.steps["start"].lock
    assert lock is not None
    assert lock.content == "base+a"
    other = EnvironmentLock("current", "x", "3")
    catalog = Catalog(session.open_store(create=True), "tester")
    catalog.keep(EnvironmentSpec("current", {}), other, [this_platform()])
    catalog.name("tools", other.digest)
    with pytest.raises(FlowError, match="packages of toy cannot be added to an environment of current"):
        StepEnvironments(session).prepare(flow)


# --------------------------------------------------------------------------------------------------- when a task starts

RUN = RunContext("Flow", "20260131-094500-123456")


def late(session: Session, flow: CheckedFlow, step: str = "middle") -> list[Prepared | Ended]:
    """Prepare one attempt at a step, and return what the driver is told."""
    environments = StepEnvironments(session)
    prepared = environments.prepare(flow)
    assert prepared.steps[step].lock is None, "it was looked up too early"
    inbox = Inbox()
    task = ReadyTask(TaskKey(step), (), ())
    LateEnvironments(environments, inbox, RUN, {"team": "fraud"}).begin("middle/0/0", prepared.steps[step], task)
    told = [each for each in inbox.wait(20) if isinstance(each, Prepared | Ended)]
    environments.close()
    return told


def test_late_name_is_completed_and_found(session: Session, tmp_path: Path) -> None:
    """The driver is told the step with its environment, and what the journal is to say of that one task."""
    keep(session, "found", f"fraud/{RUN.run_id}/middle/0")
    flow = checked(
        session, tmp_path, middle='@named_env(name="{team}/{run_id}/{step_name}/{task_id}", fetch_at_exec=True)'
    )
    (told,) = late(session, flow)
    assert isinstance(told, Prepared)
    assert told.attempt_id == "middle/0/0"
    assert told.step.environment is not None
    assert told.step.environment.python == "/found/python"
    assert (told.record.steps, told.record.task_ids) == (("middle",), ("0",))


def test_late_additions_are_resolved_then(session: Session, tmp_path: Path) -> None:
    """What is added to a name that is looked up late is resolved late."""
    keep(session, "base", "tools")
    flow = checked(session, tmp_path, middle='@named_env(name="tools", fetch_at_exec=True)\n@toy(package="a")')
    (told,) = late(session, flow)
    assert isinstance(told, Prepared)
    assert told.record.lock.content == "base+a"


@pytest.mark.parametrize(
    ("decorators", "said"),
    [
        ('@named_env(name="nobody", fetch_at_exec=True)', "there is no environment nobody:latest"),
        ('@named_env(name="x/{colour}", fetch_at_exec=True)', "known are team"),
        ('@named_env(name="tools", fetch_at_exec=True)\n@toy(package="missing")', "no index has missing"),
        ('@named_env(name="broken", fetch_at_exec=True)', "the disk is full"),
    ],
)
def test_late_failures_are_lost_attempts(session: Session, tmp_path: Path, decorators: str, said: str) -> None:
    """Whatever goes wrong ends the attempt, with the reason and its hint as the message."""
    keep(session, "base", "tools")
    keep(session, "broken", "broken")
    (told,) = late(session, checked(session, tmp_path, middle=decorators))
    assert isinstance(told, Ended)
    assert isinstance(told.result, Failure)
    assert told.result.kind == "system"
    assert said in told.result.message


# --------------------------------------------------------------------------------------------------- what is expected


def test_expected_commands_are_few_and_distinct(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher is told the commands of steps in environments here, each once, and no more than there are cores."""
    steps = {f"s{number}": f'@toy(package="p{number // 2}")' for number in range(6)}
    flow = checked(session, tmp_path, **steps, far='@toy(package="elsewhere")')
    prepared = StepEnvironments(session).prepare(flow)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    (found,) = expected_commands(prepared.steps, store="file:///store").values()
    assert [command.argv[0] for command in found] == ["/p0/python", "/p1/python"]
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    (found,) = expected_commands(prepared.steps, store="file:///store").values()
    assert [command.argv[0] for command in found] == ["/p0/python", "/p1/python", "/p2/python"]
    plain = {name: StepSetup(step.planned, step.launcher) for name, step in prepared.steps.items()}
    assert expected_commands(plain, store="file:///store") == {}


def test_backend_that_nobody_has(session: Session, tmp_path: Path) -> None:
    """A name that leads to a lock of a plugin that is not there is refused with what is."""
    catalog = Catalog(session.open_store(create=True), "tester")
    lock = EnvironmentLock("nix", "x", "3")
    catalog.keep(EnvironmentSpec("nix", {}), lock, [this_platform()])
    catalog.name("tools", lock.digest)
    with pytest.raises(UsageError, match="nix"):
        StepEnvironments(session).prepare(checked(session, tmp_path, middle='@named_env(name="tools")'))
