"""Deploying from the command line: a version runs as it was deployed, whatever becomes of the project."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Project, Ran

CLI = ("-m", "mlp_core.cli")

FLOW = """
import helper

class Flow(FlowSpec):
    scale = Parameter("scale", default=2)
    words = Parameter("words", default="ab,cd", separator=",")

    @step
    def start(self):
        self.scaled = [helper.shout(word) * self.scale for word in self.words]
        print("says", self.scaled, flush=True)
        if self.scale > 8:
            raise ValueError("too much")
        self.next(self.end)

    @step
    def end(self):
        self.model = helper.Model(self.scaled)
"""
HELPER = """
class Model:
    def __init__(self, words):
        self.words = words

def shout(word):
    return word.upper()
"""


@pytest.fixture
def flow(new_project: Project) -> Path:
    """A flow with a module beside it."""
    (new_project.root / "helper.py").write_text(HELPER)
    return new_project.write(FLOW, "flow.py")


def say(project: Project, *words: str, status: int = 0, **variables: str) -> str:
    """Return what a command prints."""
    done = project.command(*CLI, *words, **variables)
    assert done.returncode == status, done.stderr
    assert "mlp_core" not in done.stderr
    return done.stderr if status else done.stdout


def triggered(project: Project, *words: str) -> Ran:
    """Trigger a deployment, wait for its run, and return it."""
    told: dict[str, Any] = json.loads(say(project, "deployments", "trigger", "Flow", *words, "--json"))
    say(project, "logs", f"Flow/{told['run_id']}", "--follow")
    return project.read(told["run_id"])


def test_a_version_runs_as_it_was_deployed(new_project: Project, flow: Path) -> None:
    """Code, helpers and parameters are those of the deploy, though the project has changed or is gone."""
    assert "Flow version 1 is deployed on local" in say(
        new_project, "deploy", "flow.py", "--scale", "3", "--tag", "prod"
    )
    flow.write_text(flow.read_text().replace('"says"', '"shouts"'))
    (new_project.root / "helper.py").write_text(HELPER.replace("upper", "title"))
    first = triggered(new_project)
    assert first.status == "succeeded"
    assert first.value("scaled") == ["ABABAB", "CDCDCD"]
    assert "says" in first.log("start")
    assert set(first.state.tags) == {"prod", "deployment:Flow", "deployment_version:1"}
    assert triggered(new_project, "scale=1", "words=x,yy").value("scaled") == ["X", "YY"]
    say(new_project, "deploy", "flow.py")
    second = triggered(new_project)
    assert second.value("scaled") == ["AbAb", "CdCd"]
    assert "shouts" in second.log("start")
    flow.unlink()
    (new_project.root / "helper.py").unlink()
    assert "says" in triggered(new_project, "--version", "1").log("start")
    assert "back at version 1" in say(new_project, "deployments", "rollback", "Flow")
    assert "says" in triggered(new_project).log("start")


def test_a_deployed_runs_values_load_anywhere(new_project: Project, flow: Path) -> None:
    """A value whose class lies in the deployed code is read back from its package."""
    say(new_project, "deploy", "flow.py")
    run = triggered(new_project)
    flow.unlink()
    (new_project.root / "helper.py").unlink()
    code = f"from mlp_core.client import Run; print(Run('Flow/{run.run_id}').data.model.words)"
    done = new_project.command("-c", code)
    assert done.stdout == "['ABAB', 'CDCD']\n", done.stderr


def test_a_version_runs_in_the_foreground(new_project: Project, flow: Path) -> None:
    """The command that targets call shows the run and ends with its status, wherever it is started."""
    say(new_project, "deploy", "flow.py")
    shown = json.loads(say(new_project, "deployments", "show", "Flow", "--json"))
    command = shown["versions"][0]["run_command"]
    shutil.move(flow, flow.with_suffix(".bak"))
    (new_project.root / "mlp_core").mkdir()
    done = new_project.command(*command[1:], "scale=1", "--run-id-file", "id")
    assert done.returncode == 0, done.stderr
    assert "[start/0] says ['AB', 'CD']" in done.stdout
    assert (new_project.root / "id").read_text() == new_project.read().run_id
    failed = new_project.command(*command[1:], "scale=9")
    assert failed.returncode == 1
    assert "ValueError: too much" in failed.stderr
    assert "mlp_core" not in failed.stderr.replace(str(new_project.root), "")


def test_a_trigger_can_be_waited_for(new_project: Project, flow: Path) -> None:
    """With --wait the log is printed and the status tells how the run ended."""
    say(new_project, "deploy", str(flow))
    shown = say(new_project, "deployments", "trigger", "Flow", "--wait")
    assert "[start/0] says ['ABAB', 'CDCD']" in shown
    assert shown.splitlines()[-1].endswith(" succeeded")
    failed = new_project.command(*CLI, "deployments", "trigger", "Flow", "scale=9", "--wait")
    assert failed.returncode == 1
    assert failed.stdout.splitlines()[-1].endswith(" failed")


def test_deployments_are_looked_after(new_project: Project, flow: Path) -> None:
    """What is deployed is listed and shown; a deleted one is not, and can be brought back."""
    assert "nothing is deployed" in say(new_project, "deployments", "--store", str(made_store(new_project)))
    say(new_project, "deploy", str(flow), "--name", "nightly")
    say(new_project, "deploy", str(flow), "--name", "nightly", "--scale", "5")
    assert "nightly" in say(new_project, "deployments", "list")
    shown = say(new_project, "deployments", "show", "nightly")
    assert shown.startswith("nightly on local: version 2 (active)")
    assert "flow.py" in shown
    assert "version 1 (not active)" in say(new_project, "deployments", "show", "nightly", "--version", "1")
    told = json.loads(say(new_project, "deployments", "show", "nightly", "--json"))
    assert told["active"] == 2
    assert [version["parameters"]["scale"] for version in told["versions"]] == ["5", "2"]
    assert "no longer deployed" in say(new_project, "deployments", "delete", "nightly")
    assert json.loads(say(new_project, "deployments", "--json")) == []
    assert "not active" in say(new_project, "deployments", "show", "nightly")
    say(new_project, "deployments", "rollback", "nightly", "--version", "1")
    assert [each["version"] for each in json.loads(say(new_project, "deployments", "--json"))] == [1]


def made_store(project: Project) -> Path:
    """Return a store without anything in it."""
    store = project.root / "empty"
    project.session(store=str(store)).open_store(create=True)
    return store


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("deploy", "nowhere.py"), "there is no file"),
        (("deploy", "flow.py", "--target", "moon"), "moon"),
        (("deploy", "flow.py", "--name", "../x"), "is refused"),
        (("deploy", "flow.py", "--scale", "much"), "parameter 'scale'"),
        (("deployments", "show"), "which deployment?"),
        (("deployments", "show", "Folw"), "did you mean Flow?"),
        (("deployments", "show", "../Flow"), "is refused"),
        (("deployments", "list", "Flow"), "mlp deployments show Flow"),
        (("deployments", "trigger", "Flow", "--version", "7"), "it has 1"),
        (("deployments", "trigger", "Flow", "--version", "0"), "numbered from 1"),
        (("deployments", "trigger", "Flow", "scael=1"), "did you mean scale?"),
        (("deployments", "trigger", "Flow", "scale=x"), "parameter 'scale'"),
        (("deployments", "trigger", "Flow", "scale"), "it must be NAME=VALUE"),
        (("deployments", "rollback", "Flow"), "no version before 1"),
        (("deployments", "rollback", "Flow", "x=1"), "takes no parameters"),
        (("deployments", "paint", "Flow"), "invalid choice"),
    ],
)
def test_what_is_refused_starts_nothing(new_project: Project, flow: Path, words: tuple[str, ...], message: str) -> None:
    """One message, status 2, and no run."""
    say(new_project, "deploy", str(flow))
    told = say(new_project, *words, status=2)
    assert message in told
    assert told.startswith(("error: ", "nowhere.py"))
    assert new_project.runs() == []
