"""The harness itself: its command, its rows, and how bugs are planted."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from mlp_reliability import ROWS, Result
from mlp_reliability.__main__ import main
from mlp_reliability.bugs import BUGS
from mlp_reliability.planting import variables

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", ROWS)
def test_row_is_there(name: str) -> None:
    """Each row's module exists, and its long form is no shorter than its short one."""
    row = ROWS[name]
    assert importlib.util.find_spec(f"mlp_reliability.{row.module}") is not None
    assert 0 < row.short <= row.long


@pytest.mark.parametrize("name", BUGS)
def test_bug_has_a_row_and_a_place(name: str) -> None:
    """Each planted bug breaks a module that exists, and names a row that must find it."""
    assert BUGS[name].row in ROWS
    assert importlib.util.find_spec(BUGS[name].module) is not None


def test_list_names_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    """The command lists the rows."""
    assert main(["list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(ROWS)


def test_result_tells_its_command() -> None:
    """A result names the command that repeats it, and goes into JSON."""
    result = Result("simulation", 3, 7, ["broken"], {"runs": 3})
    assert result.to_json() == {
        "row": "simulation",
        "n": 3,
        "seed": 7,
        "violations": ["broken"],
        "details": {"runs": 3},
        "command": "python -m mlp_reliability simulation -n 3 --seed 7",
    }


@pytest.mark.parametrize("first", ["", "import json.decoder; "], ids=["later", "already imported"])
def test_patch_is_applied_on_import(tmp_path: Path, first: str) -> None:
    """A planted bug changes its module in a process that the harness starts, and in that one's children."""
    stub = tmp_path / "mlp_reliability" / "bugs"
    stub.mkdir(parents=True)
    (stub.parent / "__init__.py").touch()
    (stub / "__init__.py").write_text(
        "class Bug:\n"
        "    module = 'json.decoder'\n"
        "    def plant(self, module):\n"
        "        module.planted = True\n"
        "BUGS = {'it': Bug()}\n"
    )
    environment = variables("it")
    environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{environment['PYTHONPATH']}"
    code = f"{first}import subprocess, sys, json.decoder; print(json.decoder.planted, flush=True); "
    child = "subprocess.run([sys.executable, '-c', 'import json.decoder; print(json.decoder.planted)'], check=True)"
    done = subprocess.run(
        [sys.executable, "-c", code + child], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "True"]
