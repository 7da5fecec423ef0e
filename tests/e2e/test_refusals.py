"""Every refusal in the table of ``docs/refusals.md`` is as it says: the message, the hint, the exit status, no loss."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import attrs
import pytest

PAGE = Path(__file__).parents[2] / "docs/refusals.md"
MLP = str(Path(sys.executable).with_name("mlp"))
HEAD = "what is wrong"

FLOW = """\
{imports}from mlp_core import FlowSpec, Parameter, step


class Flow(FlowSpec):
    {declarations}
    @step
    def start(self):
        {start}

    @step
    def middle(self):
        {middle}

    @step
    def end(self):
        pass
"""


@attrs.frozen
class Refusal:
    """A row of the table."""

    what: str
    message: str
    hint: str
    status: int


def rows() -> list[Refusal]:
    """Return the rows of all tables of refusals."""
    found: list[Refusal] = []
    is_table = False
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if cells[0] == HEAD or not line.startswith("|"):
            is_table = cells[0] == HEAD
        elif is_table and not line.startswith("|-"):
            what, text, status = cells
            message, _, hint = text.partition(", hint: ")
            found.append(Refusal(what, message, hint.strip("`"), int(status)))
    return found


def flow(start: str = "self.next(self.middle)", middle: str = "self.next(self.end)", **parts: str) -> str:
    """Return a flow's source."""
    texts = {"imports": "", "declarations": "", **parts}
    return FLOW.format(start=start, middle=middle, **texts)


PARAMETERS: Final = flow(
    imports="import enum\n",
    declarations=(
        'alpha = Parameter("alpha", type=float, required=True)\n'
        '    mode = Parameter("mode", type=enum.Enum("Mode", "fast slow"), default="fast")\n'
    ),
)
UNKNOWN_STEP: Final = """\
from mlp_core import FlowSpec, step

class Flow(FlowSpec):
    @step
    def start(self):
        self.next(self.trian)

    @step
    def train(self):
        {train}

    @step
    def end(self):
        pass
"""
UNJOINED: Final = """\
from mlp_core import FlowSpec, step

class Flow(FlowSpec):
    @step
    def start(self):
        self.next(self.a, self.b)

    @step
    def a(self):
        self.next(self.end)

    @step
    def b(self):
        self.next(self.end)

    @step
    def end(self):
        pass
"""
NO_NEXT: Final = """\
from mlp_core import FlowSpec, step

class Flow(FlowSpec):
    @step
    def start(self):
        self.x = 1

    @step
    def end(self):
        pass
"""

Provoke = Callable[[Path], Sequence[str]]


def given(source: str, *options: str) -> Provoke:
    """Run a flow with some options."""

    def provoke(folder: Path) -> Sequence[str]:
        (folder / "flow.py").write_text(source)
        return [MLP, "run", "flow.py", *options]

    return provoke


def after_a_run(*command: str) -> Provoke:
    """Carry out a command beside a flow that has run."""

    def provoke(folder: Path) -> Sequence[str]:
        (folder / "flow.py").write_text(flow())
        subprocess.run([MLP, "run", "flow.py", "--quiet"], cwd=folder, check=True)
        return [MLP, *command]

    return provoke


def newer_store(folder: Path) -> Sequence[str]:
    """Run beside a store of a later version."""
    (folder / ".mlp").mkdir()
    (folder / ".mlp/format.json").write_text('{"format": 99}')
    return given(flow())(folder)


def full_disk(folder: Path) -> Sequence[str]:
    """Run with a store on a disk of 2 MB, which only this process sees."""
    mount = "mkdir small && mount -t tmpfs -o size=2m tmpfs small"
    allowed = subprocess.run(["unshare", "-m", "bash", "-c", mount], cwd=folder, check=False, capture_output=True)
    if allowed.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    (folder / "flow.py").write_text(flow(middle='self.data = b"x" * 4_000_000\n        self.next(self.end)'))
    then = f"{MLP} run flow.py --store small/store; status=$?; {MLP} list Flow --store small/store; exit $status"
    return ["unshare", "-m", "bash", "-c", f"mount -t tmpfs -o size=2m tmpfs small && {then}"]


def from_python(folder: Path) -> Sequence[str]:
    """Start a run from Python with a tag that no command line could give."""
    (folder / "flow.py").write_text(flow())
    code = "import mlp_core, flow, sys\ntry:\n    mlp_core.run(flow.Flow, tags=['a\\0b'])\n"
    code += "except mlp_core.MlpError as error:\n    print(error)\n    sys.exit(error.exit_status)"
    return [sys.executable, "-c", code]


def not_there(*command: str) -> Provoke:
    """Carry out a command in an empty folder."""
    return lambda _folder: [MLP, *command]


def blocked_store(folder: Path) -> Sequence[str]:
    """Run with a store whose place is taken by a file."""
    (folder / "taken").touch()
    return given(flow(), "--store", "taken")(folder)


CASES: Final[dict[str, Provoke]] = {
    "a step that does not exist": given(UNKNOWN_STEP.format(train="self.next(self.end)")),
    "a split without a join": given(UNJOINED),
    "a step that does not call `self.next`": given(NO_NEXT),
    "several mistakes at once": given(UNKNOWN_STEP.format(train="self.x = 1")),
    "a file without a flow": given("x = 1\n"),
    "no such file": not_there("run", "absent.py"),
    "a missing parameter": given(PARAMETERS),
    "a value of the wrong type": given(PARAMETERS, "--alpha", "x"),
    "a value that is not among the allowed ones": given(PARAMETERS, "--alpha", "1", "--mode", "slw"),
    "an unknown parameter": given(PARAMETERS, "--alpha", "1", "--mod", "slow"),
    "a setting's value of the wrong type": given(flow(), "--run-inline-bytes", "lots"),
    "an unknown decorator": given(flow(), "--with", "retri"),
    "a decorator of a plugin that is not installed": given(flow(), "--with", "card"),
    "a decorator's argument that does not exist": given(flow(), "--with", "retry:tims=1"),
    "an unknown launcher": given(flow(), "--launcher", "slrum"),
    "a deploy target of a plugin that is not installed": after_a_run("deploy", "flow.py", "--target", "airflow"),
    "a store of an unknown kind": given(flow(), "--store", "tape://reel"),
    "a value that cannot be stored": given(
        flow(imports="import threading\n", start="self.lock = threading.Lock()\n        self.next(self.middle)")
    ),
    "a store that cannot be written": blocked_store,
    "a store of a newer format": newer_store,
    "a full disk": full_disk,
    "no store where one is to be read": not_there("list"),
    "a run that is not there": after_a_run("show", "Flow/20260131-094500-123456"),
    "`..` or a slash in a name": after_a_run("show", "Flow/../x"),
    "a path as the name of a deployment": after_a_run("deploy", "flow.py", "--name", "../x"),
    "a NUL character": from_python,
    "a line break": given(flow(), "--tag", "a\nb"),
    "ten thousand characters": given(flow(), "--tag", "a" * 10_000),
    "a character that turns the text around": after_a_run("artifacts", "Flow/20260131-094500-123456/start/0/\u202ex"),
}


def test_every_row_has_a_case() -> None:
    """The page promises nothing that is not tried here, and nothing is tried here that it does not tell."""
    assert {row.what for row in rows()} == set(CASES)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.what)
def test_refusal_is_as_told(row: Refusal, tmp_path: Path) -> None:
    """One message, the hint and the exit status that the page tells; no traceback; what had run stays readable."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = CASES[row.what](tmp_path)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    printed = done.stdout + done.stderr
    assert done.returncode == row.status, printed
    assert "Traceback" not in printed
    for message in re.findall("`(.+?)`", row.message):
        assert re.search(re.escape(message).replace(re.escape("..."), ".*"), printed), printed
    if row.hint:
        assert f"hint: {row.hint}" in printed
    if row.status == 2:
        assert " started" not in printed, "a task was started"
    if (tmp_path / ".mlp/format.json").exists() and row.what != "a store of a newer format":
        subprocess.run([MLP, "list"], cwd=tmp_path, env=environment, check=True)
