"""What runs on a node: an attempt reports in order, obeys interrupts, leaves no process, and travels by value."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from mlp_hookspecs import Failure, StepOutcome, WorkerCommand, wire
from mlp_plugin_ray import node

if TYPE_CHECKING:
    from pathlib import Path

PROTOCOL = """
import json, os, signal, subprocess, sys, time
request = sys.stdin.read()
def send(message): os.write(int(os.environ["MLP_WORKER_FD"]), json.dumps(message).encode() + b"\\n")
send({"started": {"host": "here", "pid": os.getpid()}})
"""
OUTCOME = 'send({"outcome": {"status": "succeeded", "reads": [request]}})'


class FakeHub:
    """A hub in this process, called as an actor's handle is; it may refuse reports or be dead."""

    def __init__(self, *, refusals: int = 0, absences: int = 0, is_dead: bool = False) -> None:
        self.push = self
        self.frames: list[tuple[str, bytes]] = []
        self.reports = 0
        self._refusals = refusals
        self._absences = absences
        self._is_dead = is_dead

    def remote(self, _attempt_id: str, frames: list[tuple[str, bytes]]) -> FakeHub:
        """Take a report."""
        self.reports += 1
        self._answer: Future[bool] = Future()
        if self._is_dead:
            self._answer.set_exception(ActorDiedError())
        elif self.reports <= self._absences:
            self._answer.set_exception(ActorUnavailableError("restarting", None))
        elif self.reports <= self._refusals:
            self._answer.set_result(False)
        else:
            self.frames += frames
            self._answer.set_result(True)
        return self

    def future(self) -> Future[bool]:
        """Return the answer to the last report."""
        return self._answer

    def text(self, kind: str) -> bytes:
        """Return what was reported of one kind."""
        return b"".join(content for frame, content in self.frames if frame == kind)


def attempt(hub: FakeHub, code: str, *, python: str = sys.executable) -> tuple[str, Any]:
    """Run an attempt whose worker executes code, and return its end."""
    command = WorkerCommand((python, "-c", PROTOCOL + code))
    kind, content = node.run_attempt(hub, "train/0/0", wire.dumps(command).decode(), "the request")
    return kind, wire.loads(StepOutcome if kind == "finished" else Failure, content)


def interrupt_when(hub: FakeHub, text: bytes, pauses: list[float]) -> None:
    """Interrupt this process, as Ray does, once an attempt has printed a text, and again after each pause."""

    def run() -> None:
        while text not in hub.text("stdout"):
            time.sleep(0.01)
        for pause in pauses:
            time.sleep(pause)
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=run, daemon=True).start()


def is_alive(pid: int) -> bool:
    """Tell whether a process is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_reports_come_in_order_and_before_the_end() -> None:
    """The start is reported first, then all log, each stream in its order; the end is returned."""
    hub = FakeHub()
    code = "for n in range(300): print(n); print(-n, file=sys.stderr)\nsys.stdout.flush()\n"
    kind, outcome = attempt(hub, code + OUTCOME)
    assert (kind, outcome.status, outcome.reads) == ("finished", "succeeded", ("the request",))
    assert hub.frames[0][0] == "started"
    assert [int(line) for line in hub.text("stdout").split()] == list(range(300))
    assert [int(line) for line in hub.text("stderr").split()] == [-n for n in range(300)]


def test_log_is_gathered() -> None:
    """Many lines, one after the other, become few reports."""
    hub = FakeHub()
    attempt(hub, "for n in range(100): print(n, flush=True); time.sleep(0.002)\n" + OUTCOME)
    assert len(hub.text("stdout").split()) == 100
    assert hub.reports < 30


@pytest.mark.parametrize("trouble", [{"refusals": 3}, {"absences": 3}], ids=["full", "restarting"])
def test_hub_is_asked_again(trouble: dict[str, int]) -> None:
    """What a hub does not take now is reported again, so that nothing is missing or out of order."""
    hub = FakeHub(**trouble)
    attempt(hub, "print('a', flush=True)\n" + OUTCOME)
    assert (hub.frames[0][0], hub.text("stdout")) == ("started", b"a\n")


def test_attempt_survives_its_hub() -> None:
    """Where the hub is dead, the log is lost, and the attempt is not."""
    hub = FakeHub(is_dead=True)
    kind, _ = attempt(hub, "print('a', flush=True); time.sleep(0.3); print('b', flush=True)\n" + OUTCOME)
    assert kind == "finished"
    assert hub.reports == 1


def test_worker_that_cannot_start() -> None:
    """A command that is not there loses the attempt, with the reason."""
    kind, failure = attempt(FakeHub(), "", python="no-such-python")
    assert (kind, failure.kind) == ("lost", "system")
    assert "no-such-python" in failure.message


def test_first_interrupt_asks_and_second_kills() -> None:
    """A worker may end in its own way after the first interrupt; the second kills one that does not."""
    hub = FakeHub()
    interrupt_when(hub, b"ready", [0.0])
    kind, failure = attempt(hub, "print('ready', flush=True); time.sleep(600)")
    assert (kind, failure.kind) == ("lost", "killed")
    assert "SIGTERM" in failure.message

    hub = FakeHub()
    interrupt_when(hub, b"ready", [0.0, 0.5])
    code = "signal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True))\nprint('ready', flush=True)\n"
    kind, failure = attempt(hub, code + "while True: time.sleep(600)")
    assert (kind, failure.kind) == ("lost", "killed")
    assert "SIGKILL" in failure.message
    assert hub.text("stdout") == b"ready\nasked\n"


def test_interrupts_are_given_back() -> None:
    """After an attempt, an interrupt does what it did before."""
    before = signal.getsignal(signal.SIGINT)
    attempt(FakeHub(), OUTCOME)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands orphans over")
@pytest.mark.parametrize("ending", [OUTCOME, "time.sleep(600)"], ids=["finished", "cancelled"])
def test_nothing_is_left_of_an_attempt(ending: str) -> None:
    """However an attempt ends, what its worker has started ends too, even where that detached itself and ignores us."""
    hub = FakeHub()
    interrupt_when(hub, b"ready", [0.0] if ending != OUTCOME else [])
    child = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.getpid()); "
    child += "print('ready', flush=True); time.sleep(600)"
    code = f"process = subprocess.Popen([sys.executable, '-u', '-c', {child!r}], start_new_session=True)\n"
    attempt(hub, code + "time.sleep(0.5)\n" + ending)
    pid = int(hub.text("stdout").split()[0])
    assert not is_alive(pid)


def test_hub_keeps_order_and_bounds() -> None:
    """The hub hands out all reports in order, at once when there are any, and takes no more than its bound."""

    async def talk() -> None:
        hub = node.Hub()
        assert await hub.pull(0.01) == []
        waiting = asyncio.create_task(hub.pull(60))
        await asyncio.sleep(0)
        assert await hub.push("a", [("stdout", b"1")])
        assert await hub.push("b", [("stdout", b"2"), ("stderr", b"3")])
        assert await waiting == [("a", [("stdout", b"1")]), ("b", [("stdout", b"2"), ("stderr", b"3")])]
        taken = 0
        while await hub.push("a", [("stdout", bytes(1 << 20))]):
            taken += 1
        assert 1 <= taken <= 10
        assert await hub.push("a", [("end", b"")])
        assert len(await hub.pull(60)) == taken + 1
        assert await hub.push("a", [("stdout", b"4")])

    asyncio.run(talk())


def test_travels_by_value(tmp_path: Path) -> None:
    """The task and the hub can be unpickled and used where the plugin is not installed."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(node)
    try:
        (tmp_path / "task").write_bytes(cloudpickle.dumps((node.run_attempt, node.Hub)))
    finally:
        cloudpickle.unregister_pickle_by_value(node)
    code = (
        "import sys; sys.modules['mlp_plugin_ray'] = None\n"
        "import pickle; run_attempt, Hub = pickle.load(open('task', 'rb'))\n"
        "from mlp_hookspecs import WorkerCommand, wire\n"
        "Hub()\n"
        "class Hub:\n"
        "    class push:\n"
        "        def remote(*_):\n"
        "            from concurrent.futures import Future\n"
        "            class Ref(Future):\n"
        "                def future(self): return self\n"
        "            answer = Ref(); answer.set_result(True); return answer\n"
        "print(run_attempt(Hub(), 'a', wire.dumps(WorkerCommand((sys.executable, '-c', 'exit(3)'))).decode(), ''))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "exited with status 3" in run.stdout
