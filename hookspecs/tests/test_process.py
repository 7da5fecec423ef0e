"""The worker protocol: a worker's life is told to a sink as it is, however it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from mlp_hookspecs import CodeRef, Failure, RunContext, StepNode, StepRequest, TaskKey, WorkerCommand, wire
from mlp_hookspecs.process import (
    LIFELINE_FD,
    WorkerLoop,
    await_end,
    descendants,
    failure_of_exit,
    kill_tree,
    run_worker,
    start_worker,
    worker_environment,
)
from mlp_hookspecs.testing import RecordingSink

if TYPE_CHECKING:
    from collections.abc import Iterator

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


class Troubled(RecordingSink):
    """A sink that raises at what some attempts print, and can hold up whoever logs."""

    def __init__(self) -> None:
        super().__init__()
        self.held = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def log(self, attempt_id: str, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        """Raise, wait or record."""
        if b"trouble" in data:
            raise RuntimeError("no more logs")
        self.held.set()
        self.go_on.wait()
        super().log(attempt_id, stream, data)


def open_files() -> list[str]:
    """Return the descriptors of this process."""
    return [path.name for path in Path("/dev/fd").iterdir()]


@contextmanager
def piped(loop: WorkerLoop, attempt_id: str) -> Iterator[list[int]]:
    """Give an attempt's pipes to a loop, and return the writing ends."""
    pipes = [os.pipe() for _ in range(3)]
    loop.add(attempt_id, *(reader for reader, _ in pipes))
    writers = [writer for _, writer in pipes]
    try:
        yield writers
    finally:
        for fd in writers:
            os.close(fd)


def test_trouble_in_a_callback_is_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in the sink or in a watcher is reported, costs no attempt its end, and holds up no other."""
    reported: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda told: reported.append(str(told.exc_value)))
    sink = Troubled()
    loop = WorkerLoop(sink)
    loop.start()
    reader, writer = os.pipe()

    def stumble() -> None:
        loop.unwatch(reader)
        raise RuntimeError("stumbled")

    loop.call(lambda: loop.watch(reader, stumble))
    loop.call(lambda: 1 / 0)
    os.write(writer, b"x")
    with piped(loop, "bad") as bad, piped(loop, "good") as good:
        os.write(bad[0], b"trouble")
        os.write(good[0], b"fine")
        loop.exited("bad", 3)
        loop.exited("good", 4)
        sink.wait_for_ends(["bad", "good"], 20)
    loop.close()
    assert {"stumbled", "division by zero", "no more logs"} == set(reported)
    for attempt_id, status in (("bad", 3), ("good", 4)):
        end = sink.end(attempt_id)
        assert end is not None
        assert end.failure == failure_of_exit(status)
    assert sink.text("good", "stdout") == b"fine"
    for fd in (reader, writer):
        os.close(fd)


def test_reason_that_the_launcher_knows() -> None:
    """A launcher that knows better than the exit status why an attempt is lost has that told, after the log."""
    sink = RecordingSink()
    loop = WorkerLoop(sink)
    loop.start()
    with piped(loop, "id") as writers:
        os.write(writers[1], b"last words")
        loop.exited("id", -9, Failure("system", "the node has gone"))
        sink.wait_for_ends(["id"], 20)
    loop.close()
    assert [(told.what, told.failure and told.failure.message) for told in sink.told("id")] == [
        ("log", None),
        ("lost", "the node has gone"),
    ]


def test_closing_a_loop_that_is_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a thread still uses is not closed under it: it closes that itself once it goes on."""
    monkeypatch.setattr("mlp_hookspecs.process._JOIN_SECONDS", 0.05)
    sink = Troubled()
    sink.go_on.clear()
    loop = WorkerLoop(sink)
    loop.start()
    before = set(open_files())
    with piped(loop, "id") as writers:
        os.write(writers[0], b"log")
        assert sink.held.wait(20)
        loop.close()
        assert loop._thread.is_alive()
        os.write(writers[0], b"more")  # raises where nobody has the other end open any more
        sink.go_on.set()
        loop._thread.join(20)
        assert not loop._thread.is_alive()
        with pytest.raises(BrokenPipeError):
            os.write(writers[0], b"more")
    assert set(open_files()) <= before


def test_loop_that_never_ran_is_closed() -> None:
    """A loop whose thread was not started leaves nothing open."""
    before = len(open_files())
    loop = WorkerLoop(RecordingSink())
    assert len(open_files()) > before
    loop.close()
    assert len(open_files()) == before


class Slow(RecordingSink):
    """A sink that is slower than whoever writes."""

    def log(self, attempt_id: str, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        """Take some time."""
        time.sleep(0.005)
        super().log(attempt_id, stream, data)


def test_who_writes_for_ever_does_not_hold_up_the_end() -> None:
    """What somebody else goes on writing to a worker's output, once that has ended, is not waited for."""
    sink = Slow()
    loop = WorkerLoop(sink)
    loop.start()
    done = threading.Event()

    def write(fd: int) -> None:
        with suppress(BrokenPipeError):
            while not done.is_set():
                os.write(fd, b"x" * 65536)

    with piped(loop, "id") as writers:
        writing = threading.Thread(target=write, args=(writers[0],))
        writing.start()
        try:
            assert sink.wait_for(lambda: bool(sink.told("id")), 20)
            loop.exited("id", 0)
            sink.wait_for_ends(["id"], 10)
        finally:
            done.set()
            loop.close()
            writing.join()


def test_what_is_left_is_killed_before_the_worker_is_reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the tree is killed, the worker's number is still its own; where that fails, it is reaped all the same."""
    states: list[str] = []

    def look(pid: int) -> None:
        if Path("/proc/self").exists():
            states.append(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0])
        raise OSError("not now")

    monkeypatch.setattr("mlp_hookspecs.process.kill_tree", look)
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(5)"], process_group=0)
    with pytest.raises(OSError, match="not now"):
        await_end(process)
    assert set(states) <= {"Z"}
    assert process.returncode == 5
    assert await_end(process) == 5  # nothing is killed in the name of one that was reaped


def test_worker_has_no_lifeline_but_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher that is a worker itself does not hand on its own lifeline, of which its workers have no descriptor."""
    monkeypatch.setenv(LIFELINE_FD, "99")
    code = "import os; print(os.environ.get('MLP_WORKER_LIFELINE'))"
    reader, writer = os.pipe()
    for lifeline, expected in ((None, b"None\n"), (reader, f"{reader}\n".encode())):
        process, messages = start_worker(WorkerCommand((sys.executable, "-c", code)), lifeline=lifeline)
        out, _ = process.communicate()
        os.close(messages)
        assert out == expected
    for fd in (reader, writer):
        os.close(fd)
