"""Steps in environments of their own without a network, on hosts without caches, and under other Pythons."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from mlp_core import Environment
from mlp_core.client import client_for
from mlp_core.runner.run import Frozen, run_setup
from mlp_hookspecs import StepRequest, TaskInput, TaskKey, WorkerCommand, wire
from mlp_hookspecs.process import run_worker
from mlp_hookspecs.testing import RecordingSink

if TYPE_CHECKING:
    from conftest import Project, Ran

uv_tool = pytest.importorskip("mlp_plugin_uv.tool", reason="needs mlp-plugin-uv")

pytestmark = pytest.mark.timeout(240)

FLOW = """
from mlp_plugin_uv import pypi

class Flow(FlowSpec):
    @step
    def start(self):
        self.x = [1]
        self.next(self.work)

    @pypi(packages={"six": "1.17.0", "toolz": "1.0.0"})
    @step
    def work(self):
        import six, toolz

        self.x.append(six.__version__)
        self.prefix = sys.prefix
        self.next(self.end)

    @step
    def end(self):
        pass
"""

PLUGINS = {"plugins.safe": False, "plugins.allow": ["uv"]}

COUNTED = """
def find_uv_bin():
    return {wrapper!r}
"""
"""A module that stands in for the package `uv`, which is nothing but the way to its program."""


@pytest.fixture(scope="module")
def uv_cache() -> str:
    """The folder where uv keeps what it has downloaded, as the machine has it."""
    cache: str = uv_tool.run_uv(["cache", "dir"]).strip()
    return cache


@pytest.fixture
def offline() -> list[str]:
    """What a command begins with so that it has no network, not even that of this host."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        pytest.skip("needs the namespaces of Linux, and util-linux's unshare")
    words = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-rn"]
    if subprocess.run([*words, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this host allows no namespace without a network")
    probe = "import socket; socket.create_connection(('127.0.0.1', 9), 1)"
    done = subprocess.run([*words, sys.executable, "-c", probe], check=False, capture_output=True, text=True)
    assert "Network is unreachable" in done.stderr
    return words


@pytest.fixture
def counted(new_project: Project, uv_cache: str) -> tuple[Path, dict[str, str]]:
    """A file with a line for each call of uv, and the variables of a process whose calls are counted."""
    folder = new_project.root.parent / "counting"
    folder.mkdir()
    calls, wrapper = folder / "calls", folder / "uv"
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or uv_tool._binary()
    wrapper.write_text(f'#!/bin/sh\necho "$*" >> {calls}\nexec {uv} "$@"\n')
    wrapper.chmod(0o700)
    (folder / "uv.py").write_text(COUNTED.format(wrapper=str(wrapper)))
    calls.touch()
    return calls, {"PYTHONPATH": str(folder), "UV_CACHE_DIR": uv_cache, "MLP_PLUGINS_ALLOW": "uv"}


def run(command: list[str], project: Project, variables: dict[str, str]) -> None:
    """Run a command in a project; it succeeds."""
    environment = {**os.environ, **variables}
    done = subprocess.run(command, cwd=project.root, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def read(project: Project, run_id: str | None = None) -> Ran:
    """Read a run with the plugin that its environments need."""
    session = project.session(plugins_safe=False, plugins_allow=["uv"])
    ran = project.read(run_id)
    return attrs.evolve(ran, session=session)


def bare_host(folder: Path) -> dict[str, str]:
    """Return the variables of a process on a host that has run nothing yet."""
    places = {name: folder / name.lower() for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "UV_CACHE_DIR")}
    for place in places.values():
        place.mkdir(parents=True)
    return {name: str(place) for name, place in places.items()}


def test_second_run_asks_nobody(new_project: Project, counted: tuple[Path, dict[str, str]], offline: list[str]) -> None:
    """The first run resolves and makes; the second calls uv not once, and needs no network."""
    calls, variables = counted
    file = str(new_project.write(FLOW))
    command = [sys.executable, "-m", "mlp_core.cli", "run", file]
    run(command, new_project, variables)
    first = calls.read_text().splitlines()
    assert sum("compile" in call for call in first) == 1
    calls.write_text("")
    run([*offline, *command], new_project, variables)
    assert calls.read_text() == ""
    newest, oldest = (new_project.read(run_id) for run_id in new_project.runs())
    assert newest.value("x") == oldest.value("x") == [1, "1.17.0"]
    assert newest.state.environments[0].lock == oldest.state.environments[0].lock


def test_removed_environment_is_made_again_without_a_resolve(
    new_project: Project, counted: tuple[Path, dict[str, str]], offline: list[str]
) -> None:
    """A host that has lost an environment makes it from uv's cache: nothing is resolved, and no network is needed."""
    calls, variables = counted
    file = str(new_project.write(FLOW))
    command = [sys.executable, "-m", "mlp_core.cli", "run", file]
    run(command, new_project, variables)
    calls.write_text("")
    run([*offline, *command], new_project, {**variables, "XDG_CACHE_HOME": str(new_project.root.parent / "other")})
    assert calls.read_text()
    assert "compile" not in calls.read_text()
    assert new_project.read().value("x") == [1, "1.17.0"]


def bundled(project: Project, uv_cache: str, monkeypatch: pytest.MonkeyPatch) -> Ran:
    """Return a run whose environment's packages are in the store."""
    monkeypatch.setenv("UV_CACHE_DIR", uv_cache)
    ran = project.run(FLOW, flags=PLUGINS)
    assert ran.status == "succeeded"
    files = Environment(f"Flow/{ran.run_id}/work", client=client_for(ran.session)).bundle()
    assert {"six-1.17.0", "toolz-1.0.0"} <= {"-".join(name.split("-")[:2]) for name in files}
    return ran


def test_bundle_suffices_on_a_bare_host(
    new_project: Project, uv_cache: str, offline: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the bundle in the store, a host with empty caches and no network runs the flow; without it, it does not."""
    ran = bundled(new_project, uv_cache, monkeypatch)
    file = str(new_project.write(FLOW))
    command = [*offline, sys.executable, "-m", "mlp_core.cli", "run", file]
    run(command, new_project, {**bare_host(tmp_path / "bare"), "MLP_PLUGINS_ALLOW": "uv"})
    second = new_project.read()
    assert second.run_id != ran.run_id
    assert second.value("x") == [1, "1.17.0"]
    assert str(second.value("prefix")).startswith(str(tmp_path / "bare"))
    shutil.rmtree(new_project.root / ".mlp" / "environments" / "bundles")
    environment = {**os.environ, **bare_host(tmp_path / "barer"), "MLP_PLUGINS_ALLOW": "uv", "UV_HTTP_RETRIES": "0"}
    done = subprocess.run(
        command, cwd=new_project.root, env=environment, check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert "the environment of step 'work' could not be made" in done.stderr
    assert "Traceback" not in done.stderr


def test_agent_makes_a_bundled_environment(
    new_project: Project, uv_cache: str, offline: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a host that is not the driver's, with nothing but the store, the agent makes it and runs the step in it."""
    ran = bundled(new_project, uv_cache, monkeypatch)
    began = ran.state.began
    assert began.code is not None
    frozen = Frozen(began.parameters, began.parameter_texts, began.code)
    setup = run_setup(ran.session, began.run, frozen, ran.session.store_url)
    request = StepRequest(
        run=began.run,
        key=TaskKey("work"),
        attempt=7,
        node=ran.state.graph["work"],
        code=began.code,
        store=setup.store,
        inputs=(TaskInput(TaskKey("start"), ran.artifacts("start")),),
        plugins=setup.plugins,
        settings=setup.settings,
        lock=ran.state.environments[0].lock,
    )
    argv = (*offline, sys.executable, "-P", "-m", "mlp_core.agent")
    sink = RecordingSink()
    command = WorkerCommand(argv, variables=bare_host(tmp_path / "remote"), cwd=str(tmp_path))
    run_worker(command, wire.dumps(request), "id", sink)
    end = sink.end("id")
    assert end is not None
    assert end.outcome is not None, (end.failure, sink.text("id", "stderr"))
    assert end.outcome.status == "succeeded", (end.outcome, sink.text("id", "stderr"))
    values = ran.session.values(ran.session.open_store(create=False))
    assert values.get(end.outcome.assigned["x"]) == [1, "1.17.0"]
    assert values.get(end.outcome.assigned["prefix"]).startswith(str(tmp_path / "remote"))


# --------------------------------------------------------------------------------------------------- other Pythons

ACROSS = """
from mlp_plugin_uv import pypi

class Row:
    def __init__(self, x):
        self.x = x

class Flow(FlowSpec):
    kind = Parameter("kind", default="data")

    @step
    def start(self):
        self.there = Row(1) if self.kind == "data" else (lambda: 1)
        self.next(self.work)

    @pypi(packages={"six": "1.17.0"}, python="PYTHON")
    @step
    def work(self):
        if self.kind != "back":
            assert (self.there.x if self.kind == "data" else self.there()) == 1
        self.back = Row(2) if self.kind == "data" else (lambda: 2)
        self.version = sys.version_info[:2]
        self.next(self.end)

    @step
    def end(self):
        self.read = self.back.x if self.kind == "data" else self.back()
"""


@pytest.fixture(params=["3.12", "3.13"])
def python(request: pytest.FixtureRequest, uv_cache: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Another minor version than this one's, where the machine has it."""
    wanted: str = request.param
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    if wanted == own or wanted not in {".".join(found.split(".")[:2]) for found, _ in uv_tool.installed_pythons()}:
        pytest.skip(f"needs a Python {wanted} beside this {own}")
    monkeypatch.setenv("UV_CACHE_DIR", uv_cache)
    return wanted


def test_artifacts_are_read_on_both_sides(new_project: Project, python: str) -> None:
    """Instances of the flow file's classes go to a step under another Python, and come back from it."""
    ran = new_project.run(ACROSS.replace("PYTHON", python), flags=PLUGINS)
    assert ran.status == "succeeded", ran.result
    assert ran.value("version") == tuple(int(part) for part in python.split("."))
    assert ran.value("read") == 2


@pytest.mark.parametrize(("kind", "step"), [("there", "work"), ("back", "end")])
def test_functions_by_value_are_refused(new_project: Project, python: str, kind: str, step: str) -> None:
    """A lambda holds bytecode: the other side refuses it with a message that names both versions."""
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    ran = new_project.run(ACROSS.replace("PYTHON", python), flags=PLUGINS, parameters={"kind": kind})
    assert ran.status == "failed"
    failure = ran.failure(step)
    assert failure.kind == "exception"
    wrote, reads = (own, python) if kind == "there" else (python, own)
    assert f"bytecode of Python {wrote}, which Python {reads} cannot run" in failure.message
