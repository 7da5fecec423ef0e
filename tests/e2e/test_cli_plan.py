"""`mlp plan` tells what a run would do, and does none of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from mlp_plugin_uv.tool import run_uv

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Project

pytestmark = pytest.mark.timeout(300)

CLI = ("-m", "mlp_core.cli")

FLOW = """
from mlp_plugin_uv import pypi

class Flow(FlowSpec):
    alpha = Parameter("alpha", required=True)

    @step
    def start(self):
        self.next(self.work)

    @retry(times=2)
    @resources(cpu=1, memory=100)
    @pypi(packages={"six": "1.17.0"})
    @step
    def work(self):
        self.next(self.other)

    @pypi(packages={"six": "1.17.0"})
    @step
    def other(self):
        self.next(self.named)

    @named_env(name="tools/six:stable")
    @step
    def named(self):
        self.next(self.end)

    @named_env(name="tools/{run_id}", fetch_at_exec=True)
    @step
    def end(self):
        pass
"""


@pytest.fixture
def variables(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of commands with the plugin, whose home is the test's."""
    (tmp_path / "home").mkdir()
    runtime = tmp_path_factory.mktemp("runtime")
    runtime.chmod(0o700)
    return {
        "MLP_NO_PLUGINS": "0",
        "MLP_PLUGINS_ALLOW": "uv",
        "HOME": str(tmp_path / "home"),
        "XDG_RUNTIME_DIR": str(runtime),
        "UV_CACHE_DIR": run_uv(["cache", "dir"]).strip(),
    }


def say(project: Project, variables: dict[str, str], *words: str, status: int = 0) -> str:
    """Return what a command prints."""
    done = project.command(*CLI, *words, timeout=200, **variables)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback (most recent call last)" not in done.stderr
    return done.stderr if status else done.stdout


def planned(project: Project, variables: dict[str, str], *words: str) -> dict[str, Any]:
    """Return a plan as data, its environments by the first step that has them."""
    data: dict[str, Any] = json.loads(say(project, variables, "plan", "flow.py", "--json", *words))
    data["environments"] = {each["steps"][0]: each for each in data["environments"]}
    return data


def snapshot(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return what there is below a folder, so that any change is seen."""
    return {
        str(path): (info.st_mode, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
        for path in [folder, *folder.rglob("*")]
        for info in [path.lstat()]
    }


def test_a_plan_follows_what_has_been_done(new_project: Project, variables: dict[str, str]) -> None:
    """What is to be resolved, then only to be built, then ready is told as such, by requirement and by name."""
    new_project.write(FLOW, "flow.py")
    first = planned(new_project, variables)
    work = first["environments"]["work"]
    assert not first["store_exists"]
    assert work["steps"] == ["work", "other"]
    assert (work["environment"], work["to_do"]) == (None, "resolve, fetch and build it")
    assert first["environments"]["named"]["to_do"] == "fail"
    assert first["environments"]["end"]["at_exec"]
    say(new_project, variables, "env", "resolve", "flow.py", "--step", "work", "--alias", "tools/six:stable")
    second = planned(new_project, variables)
    work, named = second["environments"]["work"], second["environments"]["named"]
    assert (work["to_do"], work["bundled"], work["on_this_host"]) == ("fetch and build it", False, False)
    assert named["environment"] == work["environment"]
    assert named["name"] == "tools/six:stable"
    say(new_project, variables, "env", "bundle", "tools/six:stable")
    assert planned(new_project, variables)["environments"]["work"]["to_do"] == "make it from its bundle"
    say(new_project, variables, "env", "create", "tools/six:stable")
    assert planned(new_project, variables)["environments"]["work"]["to_do"] == "nothing"
    text = say(new_project, variables, "plan", "flow.py")
    assert "Nothing was done. Run it: mlp run flow.py" in text
    assert "to do        look it up when a task starts" in text


def test_steps_are_told_with_all_that_was_planned(new_project: Project, variables: dict[str, str]) -> None:
    """Launcher, resources, retries, missing parameters and responsible plugins are told; options count."""
    new_project.write(FLOW, "flow.py")
    data = planned(new_project, variables, "--with", "timeout:seconds=90", "--alpha", "1")
    steps = {each["step"]: each for each in data["steps"]}
    assert data["missing_parameters"] == []
    assert (steps["work"]["retries"], steps["work"]["resources"]["memory_mb"]) == (2, 100)
    assert {each["timeout_seconds"] for each in steps.values()} == {90}
    assert {each["launcher"] for each in steps.values()} == {"local"}
    assert data["plugins"]["environment pypi"].startswith("uv (mlp-plugin-uv ")
    assert planned(new_project, variables)["missing_parameters"] == ["alpha"]
    assert "to be given: --alpha" in say(new_project, variables, "plan", "flow.py")
    done = new_project.command("flow.py", "plan", timeout=60, **variables)
    assert "to be given: --alpha" in done.stdout


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--launcher", "moon"), "moon"),
        (("--with", "pypi:packages={'six': 'x y'}"), "x y"),
        (("--alhpa", "1"), "did you mean --alpha?"),
        (("--alpha", "1", "--param", "alpha=2"), "given twice"),
    ],
)
def test_what_a_run_refuses_a_plan_refuses(
    new_project: Project, variables: dict[str, str], words: tuple[str, ...], reason: str
) -> None:
    """Mistakes end it with status 2 and a message."""
    new_project.write(FLOW, "flow.py")
    assert reason in say(new_project, variables, "plan", "flow.py", *words, status=2)


@pytest.mark.parametrize("is_resolved", [False, True])
def test_a_plan_leaves_no_trace(
    new_project: Project, variables: dict[str, str], tmp_path: Path, is_resolved: bool
) -> None:
    """Project, store, cache and home are the same after a plan, to the time of change, with a store and without.

    It needs no network either: as root it is made where there is none.
    """
    new_project.write("import helper\n" + FLOW, "flow.py")
    new_project.write("", "helper.py")
    if is_resolved:
        say(new_project, variables, "env", "resolve", "flow.py", "--step", "work", "--alias", "tools/six:stable")
        shutil.rmtree(new_project.root / "__pycache__")
    before = snapshot(tmp_path)
    command = [sys.executable, *CLI, "plan", "flow.py"]
    if sys.platform == "linux" and os.geteuid() == 0 and shutil.which("unshare"):
        command = ["unshare", "-n", *command]
    done = subprocess.run(
        command,
        cwd=new_project.root,
        env={**os.environ, **variables},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert ("not yet" in done.stdout) is not is_resolved
    assert snapshot(tmp_path) == before
