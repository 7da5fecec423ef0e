"""The worker protocol: a worker's life is told to a sink as it is, however it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlp_hookspecs import CodeRef, RunContext, StepNode, StepRequest, TaskKey, WorkerCommand, wire
from mlp_hookspecs.process import (
    WorkerLoop,
    descendants,
    failure_of_exit,
    kill_tree,
    run_worker,
    worker_environment,
)
from mlp_hookspecs.testing import RecordingSink

ARGV = (sys.executable, "-m", "mlp_hookspecs.testing.worker")


def run(*actions: list[object], command: WorkerCommand | None = None) -> RecordingSink:
    """Run the kit's worker to its end."""
    run_context = RunContext("F", "20260131-094500-123456")
    settings = {"kit": list(actions)}
    request = StepRequest(
        run_context, TaskKey("s"), 0, StepNode("s", "linear"), CodeRef("m", "F"), "", settings=settings
    )
    sink = RecordingSink()
    run_worker(command or WorkerCommand(ARGV), wire.dumps(request), "id", sink)
    return sink


def test_worker_runs_to_its_end() -> None:
    """An agent that serves one attempt tells its start, its log and its outcome, in this order."""
    sink = run(["write", "stdout", "out\n"], ["write", "stderr", "err\n"])
    told = [entry.what for entry in sink.told("id")]
    assert (told[0], told[-1], set(told[1:-1])) == ("started", "finished", {"log"})
    assert (sink.text("id", "stdout"), sink.text("id", "stderr")) == (b"out\n", b"err\n")


@pytest.mark.parametrize(
    ("action", "kind", "text"),
    [
        (["exit", 3], "exit", "the process exited with status 3 before the step had finished"),
        (["kill", int(signal.SIGKILL)], "killed", "killed by SIGKILL .*ran out of memory"),
        (["kill", int(signal.SIGSEGV)], "killed", "killed by SIGSEGV"),
        (["kill", int(signal.SIGTERM)], "killed", "killed by SIGTERM"),
    ],
)
def test_worker_that_dies_is_lost(action: list[object], kind: str, text: str) -> None:
    """What a dying worker wrote is told before its end, which has the reason."""
    sink = run(["write", "stdout", "last\n"], action)
    end = sink.end("id")
    assert end is not None
    assert end.failure is not None
    assert end.failure.kind == kind
    assert re.search(text, end.failure.message)
    assert sink.text("id", "stdout") == b"last\n"


def test_worker_that_cannot_start_is_lost() -> None:
    """A command that does not exist is the system's fault, told to the sink and not raised."""
    end = run(command=WorkerCommand(("/no/such/program",))).end("id")
    assert end is not None
    assert end.failure is not None
    assert end.failure.kind == "system"
    assert "No such file" in end.failure.message


def test_worker_that_reads_nothing_is_lost() -> None:
    """A program that ignores the request and ends well has told no outcome."""
    end = run(command=WorkerCommand((sys.executable, "-c", "pass"))).end("id")
    assert end is not None
    assert end.failure is not None
    assert (end.failure.kind, "status 0" in end.failure.message) == ("exit", True)


def test_what_a_worker_leaves_is_killed(tmp_path: Path) -> None:
    """A process that a worker started and left does not outlive the attempt, nor hold up its end."""
    child = tmp_path / "child"
    sink = run(["start_child", str(child)])
    assert sink.end("id") is not None
    pid = int(child.read_text())
    deadline = time.monotonic() + 10
    while _is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _is_running(pid)


def test_noise_in_the_message_stream() -> None:
    """What a step writes there by mistake is its output, and its outcome still arrives."""
    code = (
        "import os, json; fd = int(os.environ['MLP_WORKER_FD'])\n"
        'os.write(fd, b\'noise\\n{\\n[1]\\n{"started": 1}\\n{"outcome": {"status": 5}}\\n\')\n'
        'os.write(fd, b\'{"started": {"host": "h", "pid": 1}}\\n\')\n'
        'os.write(fd, b\'{"outcome": {"status": "succeeded"}}\\n\')'
    )
    sink = run(command=WorkerCommand((sys.executable, "-c", code)))
    assert [entry.what for entry in sink.told("id")][-2:] == ["started", "finished"]
    assert sink.text("id", "stderr").splitlines()[:3] == [b"noise", b"{", b"[1]"]


@pytest.mark.parametrize(
    ("status", "kind"), [(0, "exit"), (1, "exit"), (-9, "killed"), (-64, "killed"), (-200, "killed")]
)
def test_every_exit_has_a_reason(status: int, kind: str) -> None:
    """Exit statuses and signals, known and unknown, have a text."""
    failure = failure_of_exit(status)
    assert failure.kind == kind
    assert str(abs(status)) in failure.message or "SIG" in failure.message


def test_environment_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command's variables win, and what it unsets is gone."""
    monkeypatch.setenv("KIT_A", "here")
    monkeypatch.setenv("KIT_B", "here")
    made = worker_environment({"KIT_A": "there"}, ["KIT_B"])
    assert (made["KIT_A"], "KIT_B" in made, made["PATH"]) == ("there", False, os.environ["PATH"])


def test_tree_is_killed_with_its_branches() -> None:
    """A process that left the group of its ancestor is found among the descendants, and killed with it."""
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'print(1, flush=True); input()'], "
    code += "start_new_session=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"1\n"
    below = descendants(process.pid)
    assert len(below) == (1 if Path("/proc/self").exists() else 0)
    kill_tree(process.pid)
    assert process.wait() == -signal.SIGKILL
    for pid in below:
        deadline = time.monotonic() + 10
        while _is_running(pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not _is_running(pid)
    process.stdin.close()
    process.stdout.close()


def _is_running(pid: int) -> bool:
    """Tell whether a process is there and has not ended."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_closed_loop_writes_to_nobody(tmp_path: Path) -> None:
    """An end that comes after the loop was closed is forgotten; it does not go to a file that got the pipe's number."""
    loop = WorkerLoop(RecordingSink())
    loop.start()
    loop.close()
    files = [(tmp_path / str(number)).open("wb") for number in range(20)]
    loop.exited("id", 0)
    for file in files:
        file.close()
    assert [path.name for path in tmp_path.iterdir() if path.stat().st_size] == []
