"""How commands with actions are read, what a folder to work in contains, and how environments are compared."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
import tarfile
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from mlp_core.cli import main
from mlp_core.cli.environments import difference
from mlp_core.environments.workspace import Interpreter, jupyter_folder, kernel_name, write_kernel, write_workspace
from mlp_core.errors import NameRefused, StoreDamaged, UsageError
from mlp_hookspecs import CodeRef, EnvironmentLock

if TYPE_CHECKING:
    from pathlib import Path

CODE = CodeRef("pack.flow", "Flow", "src/pack/flow.py", "/project")
ACTIONS = ("resolve", "create", "show", "list", "diff", "alias", "rm", "bundle")


def package(*names: str) -> bytes:
    """Return a code package with files of these names, which contain their names."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in names:
            text = f"NAME = {name!r}\n".encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text))
    return content.getvalue()


@pytest.fixture
def interpreter(tmp_path: Path) -> Interpreter:
    """The interpreter of the tests, as that of an environment."""
    (tmp_path / "users").touch()
    variables = {"WORD": 'it\'s `a` "$HOME"\nand more'}
    return Interpreter("sha256-1", "tools/it:v1", sys.executable, str(tmp_path / "users"), "", variables)


# ------------------------------------------------------------------------------------------------- actions


@pytest.mark.parametrize("words", [("env",), ("env", "--help"), ("env", "help"), ("help", "env")])
def test_a_command_with_actions_lists_them(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Without an action, and with --help, each is told in a line."""
    assert main(list(words)) == 0
    shown = capsys.readouterr().out
    assert "usage: mlp env COMMAND" in shown
    for action in ACTIONS:
        assert f"\n  {action} " in shown


@pytest.mark.parametrize("action", ACTIONS)
def test_each_action_has_a_help_of_its_own(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It tells the arguments and options, which are not the same for all; every way of asking gives it."""
    assert main(["env", action, "--no-plugins", "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"usage: mlp env {action}" in shown
    assert "--json" in shown
    assert main(["help", "env", action]) == 0
    assert f"usage: mlp env {action}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("resolv",), "did you mean mlp env resolve?"),
        (("\x1b[2J",), "has no command"),
        (("show",), "WHAT"),
        (("show", "x", "--jsn"), "did you mean --json?"),
        (("diff", "x"), "SECOND"),
    ],
)
def test_a_mistake_in_an_action_is_told(
    words: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2, with what was most likely meant, and nothing that a terminal obeys."""
    assert main(["env", *words]) == 2
    told = capsys.readouterr().err
    assert reason in told or reason.lower() in told
    assert "\x1b" not in told


def test_settings_may_stand_before_the_action(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``mlp env --store X list`` is ``mlp env list --store X``."""
    assert main(["env", "--store", str(tmp_path / "none"), "--no-plugins", "list"]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- folders


def test_a_folder_starts_the_interpreter_with_code_and_variables(tmp_path: Path, interpreter: Interpreter) -> None:
    """Both the project's folder and that of the flow's package can be imported from; quotes pass unchanged."""
    folder = tmp_path / "a folder"
    write_workspace(folder, interpreter, CODE, package("src/pack/flow.py", "src/pack/__init__.py", "top.py"))
    code = "import os, sys, top, pack.flow; print(os.environ['WORD'], top.NAME, pack.flow.NAME, sys.argv[1:], sep='|')"
    command = [str(folder / "python"), "-c", code, "x y", "$x"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    word = interpreter.variables["WORD"]
    assert done.stdout == f"{word}|top.py|src/pack/flow.py|['x y', '$x']\n"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (folder / ".gitignore").read_text() == "*\n"


def test_what_was_put_before_the_path_stays_before_that_of_the_day(tmp_path: Path, interpreter: Interpreter) -> None:
    """The script does not freeze the PATH of the shell in which it was made."""
    path = f"/its/own/bin:{os.environ['PATH']}"
    write_workspace(tmp_path / "work", attrs.evolve(interpreter, variables={"PATH": path}), None, None)
    command = [str(tmp_path / "work" / "python"), "-c", "import os; print(os.environ['PATH'])"]
    done = subprocess.run(command, env={"PATH": "/other:/usr/bin:/bin"}, check=True, capture_output=True, text=True)
    assert done.stdout == "/its/own/bin:/other:/usr/bin:/bin\n"


@pytest.mark.parametrize("name", ["X;touch y", "X Y", "", "1X", "X\n"])
def test_a_variable_that_is_none_is_refused(tmp_path: Path, interpreter: Interpreter, name: str) -> None:
    """What a run's record calls a variable cannot become a command of the shell; nothing is written."""
    with pytest.raises(StoreDamaged, match="cannot be set"):
        write_workspace(tmp_path / "work", attrs.evolve(interpreter, variables={name: "1"}), None, None)
    assert [path.name for path in tmp_path.iterdir()] == ["users"]


@pytest.mark.parametrize("file", ["../flow.py", "/etc/flow.py", "a/../../flow.py"])
def test_a_flow_file_outside_of_its_code_is_refused(tmp_path: Path, interpreter: Interpreter, file: str) -> None:
    """What a run's record calls its flow's file cannot lead out of the folder."""
    code = CodeRef("flow", "Flow", file, "/project")
    with pytest.raises(StoreDamaged, match="outside of its code"):
        write_workspace(tmp_path / "work", interpreter, code, package("flow.py"))


def test_an_archive_that_leads_out_of_the_folder_is_refused(tmp_path: Path, interpreter: Interpreter) -> None:
    """Nothing of it is written."""
    with pytest.raises(StoreDamaged, match="below its folder"):
        write_workspace(tmp_path / "work", interpreter, CODE, package("fine.py", "../escaped.py"))
    assert [path.name for path in tmp_path.iterdir()] == ["users"]


def test_only_an_empty_folder_is_used(tmp_path: Path, interpreter: Interpreter) -> None:
    """A file, a link and a folder with something in it are refused, and stay as they are."""
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name in ("file", "full", "link"):
        with pytest.raises(UsageError, match="is refused"):
            write_workspace(tmp_path / name, interpreter, None, None)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]
    write_workspace(tmp_path / "empty", interpreter, None, None)
    assert (tmp_path / "empty" / "python").is_file()


# ------------------------------------------------------------------------------------------------- kernels


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of Jupyter's kernels."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    return tmp_path / "jupyter" / "kernels"


def test_a_kernel_is_written_and_replaced(kernels: Path, interpreter: Interpreter) -> None:
    """Its command is the script beside it; one of ours of the same name is replaced."""
    for content in ("old.py", "new.py"):
        write_kernel("Mine", interpreter, None, package(content), None)
    spec = json.loads((kernels / "mine" / "kernel.json").read_text())
    assert spec["argv"][0] == str(kernels / "mine" / "python")
    assert "{connection_file}" in spec["argv"]
    assert [path.name for path in (kernels / "mine" / "code").iterdir()] == ["new.py"]
    assert [path.name for path in kernels.iterdir()] == ["mine"]


def test_a_kernel_uses_the_folder_that_was_asked_for(kernels: Path, interpreter: Interpreter, tmp_path: Path) -> None:
    """Where a folder was written, the kernel starts its script, and has none of its own."""
    write_kernel("mine", interpreter, None, None, tmp_path / "work")
    spec = json.loads((kernels / "mine" / "kernel.json").read_text())
    assert spec["argv"][0] == str(tmp_path / "work" / "python")
    assert [path.name for path in (kernels / "mine").iterdir()] == ["kernel.json"]


@pytest.mark.parametrize("content", ["{}", '{"metadata": {}}', '{"metadata": null}', "no JSON", "[]"])
def test_somebody_elses_kernel_stays(kernels: Path, interpreter: Interpreter, content: str) -> None:
    """A kernel that we have not written is not replaced, whatever is in it."""
    (kernels / "python3").mkdir(parents=True)
    (kernels / "python3" / "kernel.json").write_text(content)
    with pytest.raises(UsageError, match="--kernel=NAME"):
        write_kernel("python3", interpreter, None, None, None)
    assert (kernels / "python3" / "kernel.json").read_text() == content


@pytest.mark.parametrize("name", ["../x", "a/b", "", "x\x1b", ".hidden"])
def test_a_kernels_name_leads_nowhere_else(kernels: Path, interpreter: Interpreter, name: str) -> None:
    """A name is one part of a path."""
    with pytest.raises(NameRefused):
        write_kernel(name, interpreter, None, None, None)
    assert not kernels.exists()


@pytest.mark.parametrize("source", ["fraud/scoring:v1", "Flow/20260131-094500-123456/step/0-1~2", "0123456789", "a--b"])
def test_every_environment_can_be_a_kernel(
    kernels: Path, interpreter: Interpreter, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name that a kernel gets by itself is one; without the variable it lies where Jupyter looks for it."""
    assert write_kernel(kernel_name(source), interpreter, None, None, None).parent == kernels
    monkeypatch.delenv("JUPYTER_DATA_DIR")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert jupyter_folder().name.lower() == "jupyter"


# ------------------------------------------------------------------------------------------------- differences


def lock(content: str = "", python: str = "3.12", **packages: str) -> EnvironmentLock:
    """Return a lock."""
    return EnvironmentLock("pypi", content or json.dumps(packages), python, packages=packages)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (lock(a="1"), lock(a="1"), {"equal": True}),
        (lock("x", a="1"), lock("y", a="1"), {"equal": False}),
        (
            lock(a="1", b="1"),
            lock(b="2", c="3"),
            {"added": {"c": "3"}, "removed": {"a": "1"}, "changed": {"b": ["1", "2"]}},
        ),
        (lock("x", "3.12"), lock("y", "3.13"), {"python": ["3.12", "3.13"], "backend": None}),
    ],
)
def test_a_difference_names_what_is_not_the_same(
    first: EnvironmentLock, second: EnvironmentLock, expected: dict[str, Any]
) -> None:
    """Packages are added, removed or changed; two locks are equal where their digests are."""
    assert difference(first, second) | expected == difference(first, second)
