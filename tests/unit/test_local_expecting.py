"""Templates that are started before there is an attempt for them: ready when one comes, no trouble when none does."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from mlp_core.builtin.local import mlp_settings
from mlp_core.builtin.local.launcher import LocalLauncher
from mlp_hookspecs import CodeRef, LaunchRequest, RunContext, StepNode, StepRequest, TaskKey, WorkerCommand
from mlp_hookspecs.handles import Expecting
from mlp_hookspecs.testing import RecordingSink

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="templates are the default on Linux only")

ENTRY = """
import os, sys
from pathlib import Path
from mlp_hookspecs.testing.worker import load

with (Path(__file__).parent / "pids").open("a") as file:
    file.write(f"{os.getpid()}\\n")
print("importing")
"""


def launcher(sink: RecordingSink, isolation: str = "fork") -> LocalLauncher:
    """Return a launcher with the default settings."""
    return LocalLauncher({**{s.name: s.default for s in mlp_settings()}, "local.isolation": isolation}, sink)


def command(folder: Path, entry: str = ENTRY) -> WorkerCommand:
    """Return the command of attempts whose templates import a module with some code."""
    (folder / "early_entry.py").write_text(entry)
    argv = (sys.executable, "-m", "mlp_hookspecs.testing.worker")
    return WorkerCommand(argv, entry="early_entry:load", variables={"PYTHONPATH": str(folder)})


def request(wanted: WorkerCommand, step: str) -> LaunchRequest:
    """Return a request for an attempt that prints its step's name."""
    asked = StepRequest(
        run=RunContext("Kit", "20260131-094500-123456"),
        key=TaskKey(step),
        attempt=0,
        node=StepNode(step, "linear"),
        code=CodeRef("kit", "Kit"),
        store="",
        settings={"kit": [["write", "stdout", f"{step}\n"]]},
    )
    return LaunchRequest(asked.id, asked, wanted)


def run(opened: LocalLauncher, sink: RecordingSink, *requests: LaunchRequest) -> None:
    """Start attempts, and wait for their ends."""
    for each in requests:
        opened.submit(each)
    sink.wait_for_ends([each.id for each in requests], 30)


def test_attempts_are_forked_from_what_was_expected(tmp_path: Path) -> None:
    """Attempts with an expected command find a process that has imported the worker; it is the only one."""
    sink = RecordingSink()
    wanted = command(tmp_path)
    with launcher(sink) as opened:
        assert isinstance(opened, Expecting)
        opened.expect([wanted, wanted])
        requests = [request(wanted, f"t{number}") for number in range(3)]
        run(opened, sink, *requests)
    assert len((tmp_path / "pids").read_text().split()) == 1
    assert [sink.text(each.id, "stdout") for each in requests] == [b"t0\n", b"t1\n", b"t2\n"]
    assert [end.what for each in requests if (end := sink.end(each.id)) is not None] == ["finished"] * 3


def test_what_is_expected_in_vain_ends_with_the_launcher(tmp_path: Path) -> None:
    """Where no attempt comes, nothing is left of the process, and nobody is told of it."""
    sink = RecordingSink()
    before = set(psutil.Process().children(recursive=True))  # servers of other tests
    with launcher(sink) as opened:
        opened.expect([command(tmp_path)])
        children = set(psutil.Process().children(recursive=True)) - before
        assert children
    psutil.wait_procs(children, timeout=10)
    assert not any(child.is_running() for child in children)


@pytest.mark.parametrize("isolation", ["spawn", "inline"])
def test_launchers_that_fork_nothing_expect_nothing(tmp_path: Path, isolation: str) -> None:
    """Where each task is a fresh process, or none, there is nothing to get ready."""
    with launcher(RecordingSink(), isolation) as opened:
        before = set(psutil.Process().children(recursive=True))
        opened.expect([command(tmp_path)])
        assert set(psutil.Process().children(recursive=True)) == before


def test_failure_before_the_first_attempt_is_told_in_its_log(tmp_path: Path) -> None:
    """What an expected process printed when it ended is printed again by one that an attempt can see."""
    sink = RecordingSink()
    wanted = command(tmp_path, ENTRY + "raise RuntimeError('the platform cannot be imported here')\n")
    with launcher(sink) as opened:
        opened.expect([wanted])
        asked = request(wanted, "t")
        run(opened, sink, asked)
    end = sink.end(asked.id)
    assert end is not None
    assert end.what == "lost"
    assert b"the platform cannot be imported here" in sink.text(asked.id, "stderr")


def test_program_that_is_not_there_is_told_by_the_attempt(tmp_path: Path) -> None:
    """A command that cannot be started is no error as long as it is only expected."""
    sink = RecordingSink()
    wanted = WorkerCommand((str(tmp_path / "no-python"), "-m", "x"), entry="x:y")
    with launcher(sink) as opened:
        opened.expect([wanted])
        asked = request(wanted, "t")
        run(opened, sink, asked)
    end = sink.end(asked.id)
    assert end is not None
    assert end.failure is not None
    assert "could not be started" in end.failure.message
