"""No name does harm, whatever it is and by whichever way it comes: it is refused in one line, or it is fine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import attrs
import pytest

from mlp_core.cli import main

if TYPE_CHECKING:
    from pathlib import Path

NAMES: Final = {
    "dots": "..",
    "path": "../../etc/x",
    "nul": "a\0b",
    "long": "a" * 10_000,
    "lines": "a\nb",
    "escape": "a\x1b[2Jb",
    "turned": "a\u202eb",
    "isolated": "\u2066a\u2069",
    "unseen": "a\u200bb",
    "hyphenated": "a\u00adb",
    "tagged": "a\U000e0041b",
    "surrogate": "a\udcffb",
    "digits": "\uff11\uff12",
    "combined": "e\u0301",
    "blank": "  ",
    "empty": "",
    "option": "-x",
}
PLAIN: Final = frozenset({"dots", "path", "digits", "combined", "option"})
"""Names that a free text may have: they can be seen, and no path is made of them."""

FLOW: Final = """\
from mlp_core import FlowSpec, Parameter, step


class Flow(FlowSpec):
    alpha = Parameter("alpha", default=1.0)
    beta = Parameter("beta", required=True)  # so that no run begins

    @step
    def start(self):
        self.x = 1
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@attrs.frozen
class Way:
    """A way by which a name comes in.

    Attributes
    ----------
    words : callable
        Returns the command line for a name.
    accepted : frozenset of str
        The names that are nothing special there, or mean nothing at all.
    variables : callable
        Returns the environment variables for a name.
    settings : callable
        Returns the project's file for a name.
    """

    words: Callable[[str], Sequence[str]]
    accepted: frozenset[str] = frozenset()
    variables: Callable[[str], Mapping[str, str]] = lambda _name: {}
    settings: Callable[[str], str] = lambda _name: ""


def checked(*words: str) -> Callable[[str], Sequence[str]]:
    """Return a command line with the name in the place of a star; options take it by an equals sign."""
    return lambda name: [word.replace("*", name) for word in words]


def variable(name: str) -> Way:
    """Return the way through an environment variable, to a run that is refused at the latest for its parameter."""
    return Way(checked("run", "flow.py"), frozenset(NAMES), lambda value: {name: value})


def in_file(name: str) -> Way:
    """Return the way through the project's file, as `variable`."""
    return Way(checked("run", "flow.py"), frozenset(NAMES), settings=lambda value: f"{name} = {toml(value)}\n")


def toml(text: str) -> str:
    """Return a text as TOML; JSON's escapes are TOML's, but for surrogates, which TOML has none of."""
    return json.dumps(text.replace("\udcff", "\ufffd")).replace("\\udb40\\udc41", "\\U000e0041")


RUN: Final = "Flow/20260131-094500-123456"
WAYS: Final[dict[str, Way]] = {
    "flow": Way(checked("show", "*"), frozenset({"option"})),
    "flow to list": Way(checked("list", "*"), frozenset({"empty", "option"})),
    "run": Way(checked("show", "Flow/*"), frozenset({"empty", "blank"})),
    "step": Way(checked("logs", f"{RUN}/*")),
    "task": Way(checked("show", f"{RUN}/start/*")),
    "artifact": Way(checked("artifacts", f"{RUN}/start/0/*")),
    "flow's file": Way(checked("check", "*"), frozenset({"option"})),
    "class": Way(checked("check", "flow.py", "--flow=*")),
    "tag": Way(checked("run", "flow.py", "--tag=*"), PLAIN),
    "added tag": Way(checked("tag", "add", "Flow", "*"), PLAIN),
    "removed tag": Way(checked("tag", "remove", "Flow", "*"), frozenset(NAMES)),
    "wanted tag": Way(checked("list", "--tag=*"), frozenset(NAMES)),
    "namespace": Way(checked("run", "flow.py", "--namespace=*"), PLAIN | {"empty"}),
    "wanted namespace": Way(checked("list", "--namespace=*"), frozenset(NAMES)),
    "parameter": Way(checked("run", "flow.py", "--param=*=1")),
    "parameter's value": Way(checked("run", "flow.py", "--alpha=*"), frozenset({"digits"})),
    "option": Way(checked("run", "flow.py", "--*"), frozenset({"empty"})),
    "decorator": Way(checked("check", "flow.py", "--with=*")),
    "decorator's argument": Way(checked("check", "flow.py", "--with=retry:*=1")),
    "decorator's value": Way(checked("check", "flow.py", "--with=retry:times=*"), frozenset({"digits"})),
    "caught failure's artifact": Way(checked("check", "flow.py", "--with=catch:var=*")),
    "variable of a step": Way(checked("check", "flow.py", "--with=environment:vars={'*=': ''}")),
    "format": Way(checked("check", "flow.py", "--with=formats:names={'x': '*'}")),
    "launcher": Way(checked("run", "flow.py", "--launcher=*")),
    "isolation": Way(checked("run", "flow.py", "--isolation=*")),
    "number": Way(checked("run", "flow.py", "--max-workers=*"), frozenset({"digits"})),
    "store's kind": Way(checked("list", "--store=*://x")),
    "step to resume from": Way(checked("resume", "flow.py", "*")),
    "run to resume": Way(checked("resume", "flow.py", "--origin-run-id=*")),
    "deployment": Way(checked("deploy", "flow.py", "--name=*"), frozenset({"empty"})),
    "deployment to show": Way(checked("deployments", "show", "*")),
    "target": Way(checked("deploy", "flow.py", "--target=*")),
    "target of a deployment": Way(checked("deployments", "show", "Flow", "--target=*"), frozenset({"empty"})),
    "status": Way(checked("list", "--status=*")),
    "moment": Way(checked("list", "--since=*")),
    "command": Way(checked("*"), frozenset({"empty"})),
    "user": Way(checked("run", "flow.py", "--username=*"), PLAIN | {"empty"}),
    "user of the system": variable("LOGNAME"),
    "MLP_USERNAME": variable("MLP_USERNAME"),
    "MLP_STORE": Way(checked("list"), frozenset(NAMES), lambda value: {"MLP_STORE": value}),
    "MLP_RUN_LAUNCHER": variable("MLP_RUN_LAUNCHER"),
    "MLP_RUN_MAX_WORKERS": variable("MLP_RUN_MAX_WORKERS"),
    "MLP_PLUGINS_ALLOW": variable("MLP_PLUGINS_ALLOW"),
    "MLP_PLUGINS_PROVIDER": variable("MLP_PLUGINS_PROVIDER"),
    "MLP_NO_PLUGINS": variable("MLP_NO_PLUGINS"),
    "store in mlp.toml": Way(checked("list"), frozenset(NAMES), settings=lambda value: f"store = {toml(value)}\n"),
    "username in mlp.toml": in_file("username"),
    "launcher in mlp.toml": in_file("run.launcher"),
    "plugin in mlp.toml": in_file("plugins.deny"),
    "pattern in mlp.toml": in_file("package.include"),
    "setting in mlp.toml": Way(checked("run", "flow.py"), settings=lambda value: f"{toml(value)} = 1\n"),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which a flow has run."""
    folder = tmp_path_factory.mktemp("names") / "project"
    folder.mkdir()
    (folder / "mlp.toml").touch()
    (folder / "flow.py").write_text(FLOW)
    command = [sys.executable, "-m", "mlp_core.cli", "run", "flow.py", "--beta=1", "--quiet", "--no-plugins"]
    subprocess.run(command, cwd=folder, check=True)
    return folder


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", WAYS)
def test_odd_names(
    way: str, name: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2 and one short line that is safe to print, or no harm; no file anywhere, and never a fault of ours."""
    taken, text = WAYS[way], NAMES[name]
    variables = {"MLP_NO_PLUGINS": "1", "XDG_CACHE_HOME": str(project / ".cache"), **taken.variables(text)}
    if any("\0" in value for value in variables.values()):
        pytest.skip("no variable can have it")
    for variable_name in [each for each in os.environ if each.startswith("MLP_")]:
        monkeypatch.delenv(variable_name)
    for variable_name, value in variables.items():
        monkeypatch.setenv(variable_name, value)
    (project / "mlp.toml").write_text(taken.settings(text))
    monkeypatch.chdir(project)
    before = files(project.parent)
    status = main(list(taken.words(text)))
    printed = capsys.readouterr()
    if name in taken.accepted:
        assert status in (0, 2), printed
    else:
        assert status == 2, printed
        assert not printed.err.startswith("error: parameter 'beta' is required"), "the name was not refused"
    assert files(project.parent) == before
    assert "internal error" not in printed.err
    assert "Traceback" not in printed.err
    if status:
        assert len([line for line in printed.err.splitlines() if line.startswith("error: ")]) == 1
    for line in (printed.out + printed.err).splitlines():
        assert line.isprintable()
        assert len(line) < 1000


def files(folder: Path) -> set[str]:
    """Return all files below a folder, but for what a run that is refused late or a tag leaves in the store."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    return {name for name in found if not name.startswith(("project/.mlp/", "project/.cache", "project/__pycache__"))}
