"""Our own solver answers conda's command line, and what a solver says when it fails reaches the user in short."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from mlp_plugin_conda.conda_lock import explain, find_solver
from mlp_plugin_conda.plugin import mlp_resolve_environment
from mlp_plugin_conda.solver import answer
from mlp_plugin_conda.tools import this_platform

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Channel  # a fixture's class

SOLVER = (sys.executable, "-m", "mlp_plugin_conda.solver")


def ask(*arguments: str) -> tuple[int, dict[str, object]]:
    """Run the solver's command, and return its status and answer."""
    result = subprocess.run([*SOLVER, *arguments], check=False, capture_output=True, text=True)
    return result.returncode, json.loads(result.stdout)


def test_solver_tells_a_version() -> None:
    """conda-lock asks for it."""
    result = subprocess.run([*SOLVER, "--version"], check=True, capture_output=True, text=True)
    assert result.stdout.startswith("conda 2")


@pytest.mark.usefixtures("shared_cache")
def test_options_may_stand_between_specs(channel: Channel) -> None:
    """The command line is conda's: specs and options in any order."""
    status, found = ask(
        "create", "tiny=1.0", "--json", "--dry-run", "--channel", channel.url, "python", "--prefix", "x"
    )
    assert status == 0
    actions: list[dict[str, str]] = found["actions"]["FETCH"]  # type: ignore[index] # JSON
    assert {(action["name"], action["version"]) for action in actions} == {("tiny", "1.0"), ("python", channel.python)}
    assert all(len(action["sha256"]) == 64 for action in actions)


@pytest.mark.usefixtures("shared_cache")
def test_solver_says_why_not(channel: Channel) -> None:
    """Where there is no answer, the JSON has the reason, as conda's has."""
    status, found = ask("create", "tiny=1.0", "no-such-thing", "--json", "--channel", channel.url)
    assert status == 1
    assert found["error"] == "SolverError"
    assert "no-such-thing" in str(found["message"])


def test_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """It is no conda: what it does not do it refuses, with a usage error's status."""
    assert answer(["remove", "numpy"]) == 2
    assert "invalid choice" in capsys.readouterr().err


def test_virtual_packages_come_from_variables() -> None:
    """conda-lock tells what the target platform has in variables; empty ones take something away."""
    environ = {"CONDA_OVERRIDE_GLIBC": "2.28", "CONDA_OVERRIDE_ARCHSPEC": "x86_64", "CONDA_OVERRIDE_CUDA": ""}
    code = """if True:
        import json, os, sys
        from mlp_plugin_conda.solver import virtual_packages
        found = virtual_packages("linux-64", json.loads(sys.argv[1]))
        print([[p.name.normalized, str(p.version), str(p.build_string)] for p in found], flush=True)
        os._exit(0)
    """
    command = [sys.executable, "-c", code, json.dumps(environ)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == str(
        [["__archspec", "1", "x86_64"], ["__glibc", "2.28", "0"], ["__unix", "0", "0"]]
    )


@pytest.mark.parametrize(
    "name", ["conda", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mamba", "micromamba"))]
)
@pytest.mark.usefixtures("shared_cache")
def test_users_solver_is_asked(name: str, channel: Channel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conda, mamba or micromamba on the path is the solver, once a platform."""
    calls = tmp_path / "calls"
    program = tmp_path / "bin" / name
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$1 $CONDA_SUBDIR" >> {calls}\nexec {" ".join(SOLVER)} "$@"\n')
    program.chmod(0o700)
    monkeypatch.delenv("CONDA_EXE")
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    assert find_solver(tmp_path) == str(program)
    lock = mlp_resolve_environment(channel.spec(packages={"tiny": "1.0"}), (this_platform(),))
    assert lock.packages["tiny"] == "1.0"
    assert f"create {this_platform()}\n" in calls.read_text()


def test_solver_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A variable that names no program is the user's mistake, not a reason to take another solver."""
    monkeypatch.setenv("CONDA_EXE", "/no/such/conda")
    with pytest.raises(ValueError, match=r"CONDA_EXE='/no/such/conda' is no program"):
        find_solver(tmp_path)


def failed(stdout: str, message: str = "") -> str:
    """Return what conda-lock prints when a solver fails."""
    return (
        f"Locking dependencies for ['linux-64']...\nCould not lock the environment for platform linux-64\n{message}\n"
        f"    Command: ['conda', 'create']\n    STDOUT:\n{stdout}\n\nTraceback (most recent call last):\n  File ...\n"
    )


@pytest.mark.parametrize(
    ("output", "kind", "text"),
    [
        (
            failed('{"exception_name": "PackagesNotFoundError", "message": "not available:\\n  - nope\\n"}'),
            ValueError,
            "there is no answer for linux-64: not available: - nope",
        ),
        (
            failed('{"exception_name": "LibMambaUnsatisfiableError", "message": "Encountered problems\\n"}'),
            ValueError,
            "there is no answer for linux-64: Encountered problems",
        ),
        (
            failed('{"solver_problems": ["nothing provides nope"], "success": false}'),
            ValueError,
            "there is no answer for linux-64: nothing provides nope",
        ),
        (
            failed('{"error": "SolverError", "message": "No candidates\\n   \u2514\u2500 nope"}'),
            ValueError,
            "there is no answer for linux-64: No candidates nope",
        ),
        (
            failed('{"exception_name": "CondaHTTPError", "message": "https://u:secret@host/t/secret/c: 403"}'),
            OSError,
            "the solver has failed for linux-64: https://***@host/t/***/c: 403",
        ),
        (failed("killed", "killed"), OSError, "the solver has failed for linux-64: killed"),
        ("Traceback (most recent call last):\n  File x\nRuntimeError: bad\n", OSError, "conda-lock has failed: Runtim"),
        ("", OSError, "conda-lock has failed: it says nothing"),
    ],
)
def test_failures_are_explained(output: str, kind: type[Exception], text: str) -> None:
    """The solver's words are shown in one line, without credentials; whether the requirement is at fault is told."""
    error = explain(output)
    assert type(error) is kind
    assert str(error).startswith(text)
