"""Commands, settings and failures of plugins, as the command line shows them."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import subprocess

    from conftest import Project

CLI = ("-m", "mlp_core.cli")

PLUGIN = """
from mlp_hookspecs import Command, Setting, hookimpl


@hookimpl
def mlp_settings():
    return (Setting("queue.address", "str", "nowhere", "Where the queue is, 100% of it."),)


@hookimpl
def mlp_commands():
    return (
        Command("queue", "lab_queue:main", "Show the queue."),
        Command("crash", "lab_queue:crash", "Fail."),
        Command("crunch", "lab_queue:crunch", "Say nonsense."),
    )


def main(arguments, session):
    session.echo(f"arguments {arguments}")
    session.echo(f"address {session.settings['queue.address']}")
    session.echo(f"runs {[run.id for run in session.client.Flow('Flow')]}")
    session.objects.create("queue/x", b"1", sync=False)
    print("stored", session.objects.read("queue/x"))
    return 3


def crash(arguments, session):
    raise RuntimeError("the queue is gone")


def crunch(arguments, session):
    return "fine"
"""
BROKEN = "raise RuntimeError('broken in two')\n"
FLOW = """
class Flow(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.fixture(scope="module")
def variables(project: Project) -> dict[str, str]:
    """Two installed plugins, one of them broken, and a run."""
    site = project.root.parent / "site"
    site.mkdir()
    for name, code in (("queue", PLUGIN), ("wreck", BROKEN)):
        (site / f"lab_{name}.py").write_text(code)
        info = site / f"mlp_plugin_{name}-1.0.dist-info"
        info.mkdir()
        (info / "entry_points.txt").write_text(f"[mlp]\n{name} = lab_{name}\n")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: mlp-plugin-{name}\nVersion: 1.0\n")
    project.run(FLOW)
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "MLP_NO_PLUGINS": "0", "MLP_STRICT_PLUGINS": "0", "MLP_PLUGINS_ALLOW": "queue,wreck"}


def call(project: Project, variables: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command with the plugins installed."""
    done = project.command(*CLI, *words, **variables)
    assert "Traceback" not in done.stderr
    return done


def test_a_plugins_command_gets_its_arguments_and_tools(project: Project, variables: dict[str, str]) -> None:
    """Settings are taken out of its arguments; it can print, read runs and use the store; its status counts."""
    words = ("queue", "list", "--queue-address", "here", "--all", "-x", "--plugins-timeout=30")
    done = call(project, variables, *words)
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines() == [
        "arguments ('list', '--all', '-x')",
        "address here",
        f"runs {project.runs()}",
        "stored b'1'",
    ]
    quiet = call(project, variables, "queue", "-q")
    assert (quiet.returncode, quiet.stdout) == (3, "stored b'1'\n")


def test_a_plugins_fault_is_blamed(project: Project, variables: dict[str, str]) -> None:
    """What a command raises or answers wrongly names plugin, distribution and version, with status 1."""
    for word, message in (("crash", "the queue is gone"), ("crunch", "fine")):
        done = call(project, variables, word)
        assert done.returncode == 1
        assert message in done.stderr
        assert "queue (mlp-plugin-queue 1.0)" in done.stderr


def test_a_broken_plugin_disables_itself_only(project: Project, variables: dict[str, str]) -> None:
    """A command goes on with one warning that says how to leave the plugin out; strict mode stops at it."""
    done = call(project, variables, "list")
    assert done.returncode == 0
    assert done.stderr.startswith("warning: ")
    assert "broken in two" in done.stderr
    assert "plugins.deny" in done.stderr
    assert call(project, variables, "list", "--plugins-deny", "wreck").stderr == ""
    assert call(project, variables, "list", "--no-plugins").stderr == ""
    strict = call(project, variables, "list", "--plugins-strict")
    assert strict.returncode in (1, 2)
    assert strict.stderr.startswith("error: ")
    assert "broken in two" in strict.stderr


def test_plugins_shows_commands_settings_and_failures(project: Project, variables: dict[str, str]) -> None:
    """The table has every plugin, why one failed, and what commands there are; JSON has the same."""
    done = call(project, variables, "plugins", "--settings")
    for text in ("queue", "mlp-plugin-queue", "wreck is failed: ", "broken in two", "mlp crash", "queue.address"):
        assert text in done.stdout
    told = json.loads(call(project, variables, "plugins", "--json").stdout)
    assert {plugin["name"]: plugin["status"] for plugin in told["plugins"]}["wreck"] == "failed"
    assert [command["name"] for command in told["commands"]] == ["crash", "crunch", "queue"]


def test_a_plugins_settings_are_flags_everywhere(project: Project, variables: dict[str, str]) -> None:
    """Its settings are listed by help and taken before and after a flow's file; misspelt ones are told."""
    project.write(FLOW, "flow.py")
    assert "Where the queue is, 100% of it." in call(project, variables, "run", "--help").stdout
    for words in (("--queue-address", "x", "flow.py"), ("flow.py", "--queue-address", "x")):
        done = call(project, variables, "run", *words, "-q", "--plugins-deny", "wreck")
        assert (done.returncode, done.stderr) == (0, "")
        assert project.read().state.began.settings["queue.address"] == "x"
    wrong = call(project, variables, "list", "--queue-adress", "x", "--plugins-deny", "wreck")
    assert wrong.returncode == 2
    assert "did you mean --queue-address?" in wrong.stderr


def test_an_unknown_command_is_told_the_nearest(project: Project, variables: dict[str, str]) -> None:
    """Commands of plugins count too."""
    assert "did you mean queue?" in call(project, variables, "queeu").stderr
    assert call(project, variables, "queeu").returncode == 2
