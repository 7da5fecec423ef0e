"""Attempts inside the driver's own process: each ends once, whatever it raises and whenever it is interrupted."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
import types
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from mlp_core.builtin.local.inline import Inline
from mlp_hookspecs import CodeRef, LaunchRequest, RunContext, StepNode, StepOutcome, StepRequest, TaskKey, WorkerCommand
from mlp_hookspecs.testing import RecordingSink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ENTRY = "inline_entry"


class Bench:
    """An inline launcher, with steps that are functions."""

    def __init__(self) -> None:
        self.sink = RecordingSink()
        self.inline = Inline(self.sink)
        self.steps: dict[str, Callable[[], None]] = {}

    def perform(self, request: StepRequest) -> StepOutcome:
        """Run the step of a request."""
        self.steps.get(request.key.step, lambda: None)()
        return StepOutcome("succeeded")

    def request(self, step: str, python: str = sys.executable, **command: object) -> LaunchRequest:
        """Return a request for a step."""
        request = StepRequest(
            RunContext("F", "20260131-094500-123456"), TaskKey(step), 0, StepNode(step, "linear"), CodeRef("m", "F"), ""
        )
        return LaunchRequest(request.id, request, WorkerCommand((python,), entry=f"{ENTRY}:prepare", **command))

    def run(self, *requests: LaunchRequest) -> list[str]:
        """Run attempts to their ends, and return what those were; each has one."""
        for request in requests:
            self.inline.submit(request)
        return self.ends(*requests)

    def ends(self, *requests: LaunchRequest) -> list[str]:
        """Wait for the ends of attempts, and return what those were; each has one."""
        self.sink.wait_for_ends([request.id for request in requests], 30)
        found = []
        for request in requests:
            (end,) = [told for told in self.sink.told(request.id) if told.is_end]
            found.append("finished" if end.failure is None else f"{end.failure.kind}: {end.failure.message}")
        return found


@contextmanager
def _bench() -> Iterator[Bench]:
    bench = Bench()
    module = types.ModuleType(ENTRY)
    module.prepare = lambda _request: bench.perform  # type: ignore[attr-defined] # a module for this test
    sys.modules[ENTRY] = module
    try:
        yield bench
    finally:
        bench.inline.close()
        del sys.modules[ENTRY]


@pytest.fixture
def bench() -> Iterator[Bench]:
    """An inline launcher."""
    with _bench() as made:
        yield made


@pytest.mark.parametrize("error", [OSError("disk gone"), SystemExit(3), MemoryError("none left")])
def test_error_outside_of_the_step(bench: Bench, error: BaseException) -> None:
    """What the worker's own code raises is the end of that attempt, and of no other."""

    def raise_it() -> None:
        raise error

    bench.steps["bad"] = raise_it
    ends = bench.run(bench.request("bad"), bench.request("good"))
    assert ends == [f"system: the step could not be run: {type(error).__name__}: {error}", "finished"]


def test_interrupts_at_any_time(bench: Bench) -> None:
    """However often and whenever attempts are interrupted, each ends once, and the next one runs."""
    choose = random.Random(5)  # noqa: S311 # a test's choice
    deadline = 0.0

    def busy() -> None:
        while time.monotonic() < deadline:
            sum(range(50))

    for number in range(150):
        bench.steps[f"s{number}"] = busy
        request = bench.request(f"s{number}")
        deadline = time.monotonic() + choose.uniform(0, 0.004)
        bench.inline.submit(request)
        for _ in range(choose.randint(0, 3)):
            time.sleep(choose.uniform(0, 0.002))
            bench.inline.signal(request.id, signal.SIGTERM)
        (end,) = bench.ends(request)
        assert end in (
            "finished",
            "cancelled: the step was interrupted",
            "cancelled: the attempt was cancelled before it began",
        )
    assert bench.run(bench.request("last")) == ["finished"]
    assert not bench.inline.is_there("last/0/0")


def test_interrupt_that_comes_too_late_is_nobody_elses(bench: Bench) -> None:
    """A step that holds an interrupt up until it has ended does not pass it on to the next one."""
    entered, go = threading.Event(), threading.Event()

    def deaf() -> None:
        entered.set()
        go.wait()  # in C: the interrupt comes only after it

    bench.steps["deaf"] = deaf
    first, second = bench.request("deaf"), bench.request("second")
    bench.inline.submit(first)
    entered.wait(10)
    bench.inline.submit(second)
    assert bench.inline.signal(first.id, signal.SIGTERM)
    assert bench.inline.signal(first.id, signal.SIGKILL)
    go.set()
    assert bench.ends(first, second) == ["cancelled: the step was interrupted", "finished"]


def test_other_interpreter_is_refused(bench: Bench) -> None:
    """A step whose environment has an interpreter of its own does not run in this one; the message says what to do."""
    ran: list[str] = []
    bench.steps["other"] = lambda: ran.append("other")
    request = bench.request("other", python="/envs/abc/bin/python")
    (end,) = bench.run(request)
    assert end == (
        f"system: step other runs with the interpreter /envs/abc/bin/python, and isolation inline has only"
        f" {sys.executable}; choose fork or spawn"
    )
    assert not ran
    assert not [told for told in bench.sink.told(request.id) if told.what == "started"]


def test_surroundings(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step has the command's variables, lacks those that it unsets, and is in its folder; afterwards all is back."""
    monkeypatch.setenv("KIT_REMOVED", "still there")
    monkeypatch.setenv("KIT_SET", "before")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "work"
    folder.mkdir()
    seen: list[object] = []
    bench.steps["look"] = lambda: seen.extend(
        (os.environ.get("KIT_SET"), os.environ.get("KIT_REMOVED"), os.getcwd())  # noqa: PTH109 # text is compared
    )
    request = bench.request("look", variables={"KIT_SET": "given"}, unset=("KIT_REMOVED",), cwd=str(folder))
    assert bench.run(request) == ["finished"]
    assert seen == ["given", None, str(folder)]
    after = (os.environ["KIT_SET"], os.environ["KIT_REMOVED"], os.getcwd())  # noqa: PTH109 # as above
    assert after == ("before", "still there", str(tmp_path))


def test_output_of_the_step_alone(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """What the step prints is its log; what others print meanwhile goes where it would have gone."""

    def talk() -> None:
        print("from the step")  # noqa: T201 # what steps do
        other = threading.Thread(target=print, args=("from elsewhere",))
        other.start()
        other.join()

    bench.steps["talk"] = talk
    request = bench.request("talk")
    assert bench.run(request) == ["finished"]
    assert bench.sink.text(request.id, "stdout") == b"from the step\n"
    assert capsys.readouterr().out == "from elsewhere\n"


def test_closing_interrupts(tmp_path: Path) -> None:
    """A launcher that is left while a step runs ends that step, and starts none of those that wait."""
    with _bench() as bench:
        entered = threading.Event()

        def long() -> None:
            entered.set()
            while True:
                time.sleep(0.01)

        bench.steps["long"] = long
        bench.steps["next"] = (tmp_path / "next").touch
        requests = [bench.request("long"), bench.request("next")]
        for request in requests:
            bench.inline.submit(request)
        entered.wait(10)
        closing = threading.Thread(target=bench.inline.close)
        closing.start()
        closing.join(20)
        assert not closing.is_alive()
        assert bench.ends(requests[0]) == ["cancelled: the step was interrupted"]
    assert not (tmp_path / "next").exists()
