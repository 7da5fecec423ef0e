"""The row ``hostile`` in its short form, and that what it watches for would be seen."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from mlp_reliability import run_row
from mlp_reliability.hostile.watch import control_characters

if TYPE_CHECKING:
    from pathlib import Path

WATCHED = """
import os, pathlib, pickle, subprocess, sys
from mlp_reliability.hostile.watch import Watch

inside = pathlib.Path(sys.argv[1])
watch = Watch(inside, inside.parent)
with watch.on():
    {action}
print(watch.found, watch.unpickled)
"""


@pytest.mark.reliability
@pytest.mark.timeout(600)
def test_short_form(tmp_path: Path) -> None:
    """Nothing escapes, nothing is executed, nothing shows a traceback, and every kind of case was tried."""
    result = run_row("hostile", tmp_path)
    assert result.violations == []
    for kind in ("names", "parameters", "client", "journals", "texts", "deployments", "pickles", "logs", "archives"):
        assert result.details[kind] > result.n / 100, kind


@pytest.mark.parametrize(
    ("action", "seen"),
    [
        ("open(inside / 'x', 'w').close()", "[] []"),
        ("open(inside.parent / 'x', 'w').close()", "writes"),
        ("open(inside / '..' / 'secret').close()", "reads"),
        ("os.mkdir(inside.parent / 'x')", "os.mkdir"),
        ("os.rename(inside / 'mine', inside.parent / 'x')", "os.rename"),
        ("(inside / 'link').symlink_to('x'); os.remove(inside / 'link')", "[] []"),
        ("subprocess.run(['true'])", "starts a process"),
        ("os.system('true')", "starts a process"),
        ("pickle.loads(pickle.dumps(pathlib.PurePath('x')))", "pathlib.PurePosixPath"),
    ],
)
def test_the_watch_sees(tmp_path: Path, action: str, seen: str) -> None:
    """Writing and reading elsewhere, starting and unpickling are noted; what is done inside is not."""
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "mine").touch()
    (tmp_path / "secret").touch()
    command = [sys.executable, "-c", WATCHED.format(action=action), str(inside)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ}).stdout
    assert seen in said


def test_control_characters_are_found() -> None:
    """What a terminal obeys is told from what it shows."""
    assert control_characters("plain\n\ttext é 漢字 🙂") == []
    assert control_characters("\x1b[31m\x9b \u202e\r\0") == ["\0", "\r", "\x1b", "\x9b", "\u202e"]


def test_planted_pickles_work(tmp_path: Path) -> None:
    """The pickles of the row do leave a trace where they are loaded: that none is there means that none was."""
    import random

    from mlp_reliability.hostile.pickles import stream

    left = 0
    for seed in range(40):
        canary = tmp_path / str(seed)
        canary.mkdir()
        code = stream(random.Random(seed), canary)  # noqa: S311 # a test's choice
        command = [sys.executable, "-c", "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"]
        subprocess.run(command, input=code, capture_output=True, check=False)
        left += any(canary.iterdir())
        assert pickle.PROTO in code
    assert left > 10
