"""What becomes of a run whose driver is told to end, or is killed; and how it goes on from there."""

from __future__ import annotations

import signal
from collections import Counter
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from conftest import Isolation, Processes, Project

SLOW = """
import subprocess

class Flow(FlowSpec):
    kind = Parameter("kind", default="")

    @step
    def start(self):
        self.note()
        self.items = [0, 1, 2, 3]
        self.next(self.work, foreach="items")

    @step
    def work(self):
        self.note()
        self.rounds = 0
        self.next(self.loop)

    @step
    def loop(self):
        if not (self.input == 2 and os.path.exists("block")):
            self.note()
        if self.input == 2 and os.path.exists("block"):
            for way in {"": (False, True), "ignore": (True,), "group": (False,)}.get(self.kind, ()):
                subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=way)
            if self.kind == "ignore":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            with open("blocking", "w") as file:
                file.write(str(os.getpid()))
            try:
                while True:
                    time.sleep(0.05)
            finally:
                print("cleaned up")
                if self.kind == "raise":
                    raise ValueError("while cleaning up")
        self.rounds += 1
        self.more = self.rounds < 2
        self.next({True: self.loop, False: self.done}, condition="more")

    @step
    def done(self):
        self.note()
        self.next(self.join)

    @step
    def join(self, inputs):
        self.note()
        self.rounds = [branch.rounds for branch in inputs]
        self.next(self.end)

    @step
    def end(self):
        self.note()

    def note(self):
        with open("tasks", "a") as file:
            file.write(f"{current.step_name}/{current.task_id}\\n")
"""


class Started:
    """A run in a process of its own, which has come to the place where it waits."""

    def __init__(self, project: Project, processes: Processes, *arguments: str, code: str = SLOW) -> None:
        self.project = project
        self.processes = processes
        self.file = project.write(code, "slow.py").name
        (project.root / "block").touch()
        self.process: subprocess.Popen[str] = project.start(self.file, "run", *arguments, mark=processes.mark)
        processes.wait_for(lambda: self.process.poll() is not None or self.is_blocking(), "the run's middle")
        assert self.process.poll() is None, self.process.communicate()

    def wait_until_nothing_else_runs(self) -> None:
        """Wait until the other branches of the foreach have come to their end, and that is recorded."""

        def others() -> bool:
            tasks = self.project.read().state.tasks
            return sum(key.step == "done" and task.status == "succeeded" for key, task in tasks.items()) == 3

        self.processes.wait_for(others, "the other branches")

    def is_blocking(self) -> bool:
        """Tell whether a step waits."""
        path = self.project.root / "blocking"
        return path.exists() and path.stat().st_size > 0

    def end(self, *signals: signal.Signals) -> tuple[int, str, str]:
        """Signal the driver, and return its status and what it printed."""
        for number in signals:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err

    def resume(self, *arguments: str) -> None:
        """Resume the run, without what held it up."""
        (self.project.root / "block").unlink(missing_ok=True)
        done = self.project.command(self.file, "resume", *arguments, mark=self.processes.mark)
        assert done.returncode == 0, done.stderr

    def tasks(self) -> Counter[str]:
        """Return how often each task ran to where it counts itself."""
        return Counter((self.project.root / "tasks").read_text().splitlines())


EVERY_TASK = sorted(
    [f"{step}/{n}" for n in range(4) for step in ("work", "loop", "done")]
    + [f"loop/{n}~1" for n in range(4)]
    + ["start/0", "join/0", "end/0"]
)


@pytest.mark.parametrize("way", ["fork", "spawn", "inline"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_request_to_end(new_project: Project, processes: Processes, way: Isolation, number: signal.Signals) -> None:
    """A run that is asked to end lets its steps clean up, is recorded as cancelled, leaves no process, and resumes."""
    if (way, number) == ("spawn", signal.SIGTERM):
        pytest.skip("no other way than with SIGINT")
    # What a step has started there, nobody can end.
    started = Started(new_project, processes, "--isolation", way, *(("--kind", "alone") if way == "inline" else ()))
    if way != "inline":
        started.wait_until_nothing_else_runs()
    status, _, err = started.end(number)
    assert status == 128 + number
    assert "Traceback" not in err
    processes.wait_until_gone(2)
    ran = new_project.read()
    assert ran.status == "cancelled"
    blocked = next(key.path for key, task in ran.state.tasks.items() if task.status == "failed")
    assert ran.failure(blocked).kind == "cancelled"
    assert "cleaned up" in ran.log(blocked)
    started.resume()
    assert sorted(started.tasks()) == EVERY_TASK
    assert set(started.tasks().values()) == {1}
    assert new_project.read().value("rounds") == [2, 2, 2, 2]


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_cleaning_up_that_fails(new_project: Project, processes: Processes, way: Isolation) -> None:
    """A step that was asked to end is cancelled, whatever it raised while it cleaned up."""
    started = Started(new_project, processes, "--isolation", way, "--kind", "raise")
    assert started.end(signal.SIGINT)[0] == 130
    failure = new_project.read().failure("loop/2")
    assert (failure.kind, failure.message) == ("cancelled", "the step was asked to end")


def test_second_request_kills(new_project: Project, processes: Processes) -> None:
    """A step that ignores the request is killed by a second one at once, without its grace."""
    started = Started(new_project, processes, "--kind", "ignore")
    started.process.send_signal(signal.SIGINT)
    processes.wait_for(lambda: "interrupted" in (started.process.stdout or []).readline(), "the first answer")
    status, _, _ = started.end(signal.SIGINT)
    assert status == 130
    processes.wait_until_gone(1)
    assert new_project.read().status == "cancelled"


@pytest.mark.slow
def test_grace_is_kept(new_project: Project, processes: Processes) -> None:
    """A step that ignores the request is killed once its grace is over."""
    started = Started(new_project, processes, "--kind", "ignore")
    assert started.end(signal.SIGINT)[0] == 130
    processes.wait_until_gone(1)
    ran = new_project.read()
    assert ran.status == "cancelled"
    assert "cleaned up" not in ran.log("loop/2")


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_death_of_the_driver(new_project: Project, processes: Processes, way: Isolation) -> None:
    """A run whose driver is killed reads as lost, leaves no process within two seconds, and resumes."""
    started = Started(new_project, processes, "--isolation", way)
    started.wait_until_nothing_else_runs()
    assert new_project.read().status == "running"
    assert started.end(signal.SIGKILL)[0] == -signal.SIGKILL
    processes.wait_until_gone(2)
    origin = new_project.read()
    assert origin.status == "lost"
    started.resume()
    assert sorted(started.tasks()) == EVERY_TASK
    assert set(started.tasks().values()) == {1}
    resumed = new_project.read()
    assert resumed.status == "succeeded"
    assert resumed.state.context.origin_run_id == origin.run_id
    assert resumed.value("rounds") == [2, 2, 2, 2]
    reused = {key.path for key, task in resumed.state.tasks.items() if task.origin}
    assert {"start/0", "work/0", "work/1"} <= reused
    assert not {"loop/2", "join/0", "end/0"} & reused


def test_death_of_the_template(new_project: Project, processes: Processes) -> None:
    """A template that is killed fails the attempts in its care; others, with another template, go on."""
    started = Started(new_project, processes, "--kind", "group", "--with", "retry:times=1,minutes_between_retries=0")
    (new_project.root / "block").unlink()
    import psutil

    task = psutil.Process(int((new_project.root / "blocking").read_text()))
    template = task.parent()
    assert template is not None
    assert template.pid != started.process.pid
    template.kill()
    out, err = started.process.communicate(timeout=30)
    assert started.process.returncode == 0, out + err
    ran = new_project.read()
    first, second = ran.state.tasks[ran.key("loop/2")].attempts
    assert first.outcome is not None
    assert first.outcome.failure is not None
    assert first.outcome.failure.kind == "killed"
    assert second.outcome is not None
    assert second.outcome.status == "succeeded"
    processes.wait_until_gone(2)


def test_request_while_a_retry_waits(new_project: Project, processes: Processes) -> None:
    """A run that only waits for a retry ends at once."""
    code = """
    class Flow(FlowSpec):
        @retry(times=1, minutes_between_retries=60)
        @step(start=True, end=True)
        def only(self):
            with open("blocking", "w") as file:
                file.write("now")
            raise ValueError("once")
    """
    started = Started(new_project, processes, code=code)
    processes.wait_for(lambda: "tried again" in (started.process.stdout or []).readline(), "the end of the attempt")
    assert started.end(signal.SIGINT)[0] == 130
    assert new_project.read().status == "cancelled"
    processes.wait_until_gone(1)


def test_request_while_the_file_is_imported(new_project: Project, processes: Processes) -> None:
    """A run whose template is still importing the flow's file ends at once."""
    code = """
    if sys.argv[0].endswith("template.py"):
        with open("blocking", "w") as file:
            file.write("now")
        time.sleep(600)

    class Flow(FlowSpec):
        @environment(vars={"A": "b"})
        @step(start=True, end=True)
        def only(self):
            pass
    """
    started = Started(new_project, processes, code=code)
    assert started.end(signal.SIGTERM)[0] == 143
    assert new_project.read().status == "cancelled"
    processes.wait_until_gone(1)


CHAOS = """
class Flow(FlowSpec):
    @step
    def start(self):
        self.items = list(range(30))
        self.next(self.work, foreach="items")

    @retry(times=1, minutes_between_retries=0)
    @step
    def work(self):
        with open("tasks", "a") as file:
            file.write(f"{self.input}\\n")
        self.x = self.input
        self.big = bytes([self.input]) * 10_000
        self.next(self.join)

    @step
    def join(self, inputs):
        self.total = sum(branch.x for branch in inputs), sum(branch.big[0] for branch in inputs)
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["fork", "spawn"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interruption_at_any_time(
    new_project: Project, processes: Processes, way: Isolation, number: signal.Signals
) -> None:
    """Whenever a run is interrupted, it ends soon, leaves no process and no damage, and comes to its end by resumes."""
    import random
    import time

    choose = random.Random(f"{way} {number}")  # noqa: S311 # a test's choice
    file = new_project.write(CHAOS, "chaos.py").name
    command = [file, "run"]
    for _ in range(12):
        process = new_project.start(*command, "--isolation", way, mark=processes.mark)
        time.sleep(choose.uniform(0.0, 0.9 if way == "fork" else 2.5))
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
        assert process.returncode in (0, 128 + number, -number), err
        assert "Traceback" not in err or "KeyboardInterrupt" in err
        processes.wait_until_gone(2)
        if not (new_project.root / ".mlp/flows").exists():
            continue
        command = [file, "resume"]
        ran = new_project.read()
        expected = {"succeeded"} if process.returncode == 0 else {"cancelled", "lost", "succeeded"}
        assert ran.status in expected, ran.state.ended
        if ran.status == "succeeded":
            break
    done = new_project.command(*command, mark=processes.mark)
    assert done.returncode == 0, done.stderr
    assert new_project.read().value("total") == (435, 435)


# ------------------------------------------------------------------------------------------------ resume

BROKEN = """
class Flow(FlowSpec):
    alpha = Parameter("alpha", default=1)

    @step
    def start(self):
        self.note()
        self.items = [0, 1, 2]
        self.next(self.a, foreach="items")

    @step
    def a(self):
        self.note()
        if self.input == BROKEN_ITEM:
            raise ValueError("broken")
        self.x = self.input * self.alpha
        self.big = b"x" * 20_000
        self.next(self.b)

    @step
    def b(self):
        self.note()
        self.y = self.x + 1
        self.next(self.join)

    @step
    def join(self, inputs):
        self.note()
        self.ys = [branch.y for branch in inputs]
        self.next(self.left, self.right)

    @step
    def end(self):
        self.note()
        if END_BREAKS:
            raise ValueError("end")

    def note(self):
        with open("tasks", "a") as file:
            file.write(f"{current.step_name}/{current.task_id} {current.origin_run_id is not None}\\n")
""".replace(
    "        self.next(self.left, self.right)\n",
    """        self.next(self.fork)

    @step
    def fork(self):
        self.note()
        self.next(self.left, self.right)

    @step
    def left(self):
        self.note()
        self.next(self.meet)

    @step
    def right(self):
        self.note()
        self.next(self.meet)

    @step
    def meet(self, inputs):
        self.note()
        self.merge_artifacts(inputs)
        self.next(self.end)
""",
)


def broken(item: int = -1, *, end: bool = False) -> str:
    """Return the flow with some of its mistakes."""
    return BROKEN.replace("BROKEN_ITEM", str(item)).replace("END_BREAKS", str(end))


def ran_tasks(project: Project) -> list[str]:
    """Return the tasks that ran since the last call."""
    path: Path = project.root / "tasks"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return sorted(line.partition(" ")[0] for line in lines)


def test_resume(new_project: Project) -> None:
    """A resumed run takes over what succeeded, and runs the rest with the origin's parameters; so does a third run."""
    first = new_project.run(broken(1), parameters={"alpha": 10}, max_workers=3)
    assert first.status == "failed"
    assert "a/1" in ran_tasks(new_project)
    done = {key.path for key, task in first.state.tasks.items() if task.status == "succeeded"}

    second = new_project.run(broken(end=True), origin=first.state)
    assert second.status == "failed"
    assert not done & set(ran_tasks(new_project))
    assert second.value("ys", "meet") == [1, 11, 21]
    assert second.value("alpha", "meet") == 10

    third = new_project.run(broken(), origin=second.state)
    assert third.status == "succeeded"
    assert ran_tasks(new_project) == ["end/0"]
    assert third.value("ys") == [1, 11, 21]
    origins = {task.origin.split("/")[1] for task in third.state.tasks.values() if task.origin}
    assert origins == {first.run_id, second.run_id}
    assert third.state.context.origin_run_id == second.run_id


def test_resume_from_a_step(new_project: Project) -> None:
    """A named step runs again with all that follows from it, though it had succeeded; what is beside it does not."""
    first = new_project.run(broken())
    assert first.status == "succeeded"
    ran_tasks(new_project)
    for step, expected in [
        ("left", ["end/0", "left/0", "meet/0"]),
        ("b", ["b/0", "b/1", "b/2", "end/0", "fork/0", "join/0", "left/0", "meet/0", "right/0"]),
        ("end", ["end/0"]),
    ]:
        resumed = new_project.run(broken(), origin=first.state, resume_from=step)
        assert (resumed.status, ran_tasks(new_project)) == ("succeeded", expected)
    whole = new_project.run(broken(), origin=first.state)
    assert (whole.status, ran_tasks(new_project)) == ("succeeded", [])
    assert whole.value("ys") == [1, 2, 3]


def test_resume_of_a_changed_foreach(new_project: Project) -> None:
    """Where a step that runs again has other items than before, what is new runs and what is old does not stay."""
    first = new_project.run(broken(end=True))
    ran_tasks(new_project)
    code = broken().replace("self.items = [0, 1, 2]", "self.items = [5]")
    resumed = new_project.run(code, origin=first.state, resume_from="start")
    assert resumed.status == "succeeded"
    assert resumed.value("ys") == [6]
    assert "a/1" not in resumed.paths


def test_resume_refusals(new_project: Project) -> None:
    """An unknown step, parameters, and a parameter that the origin did not have are refused before anything runs."""
    from mlp_core.errors import UsageError

    first = new_project.run(broken(1))
    count = len(new_project.runs())
    with pytest.raises(UsageError, match="no step 'strat' to resume from"):
        new_project.run(broken(), origin=first.state, resume_from="strat")
    with pytest.raises(UsageError, match="a resumed run keeps its parameters, but alpha was given"):
        new_project.run(broken(), origin=first.state, parameters={"alpha": 2})
    added = broken().replace(
        "    @step\n    def start", '    beta = Parameter("beta", default=1)\n\n    @step\n    def start'
    )
    with pytest.raises(UsageError, match="has no parameter 'beta': it was added later"):
        new_project.run(added, origin=first.state)
    assert len(new_project.runs()) == count


def test_caught_failures_are_results(new_project: Project) -> None:
    """A task whose failure was caught succeeded, as far as a resumed run is concerned."""
    code = """
    class Flow(FlowSpec):
        @catch(var="problem")
        @step
        def start(self):
            with open("tasks", "a") as file:
                file.write("start\\n")
            raise ValueError("caught")
            self.next(self.end)

        @step
        def end(self):
            if WRONG:
                raise ValueError
            self.seen = self.problem.message
    """
    first = new_project.run(code.replace("WRONG", "True"))
    second = new_project.run(code.replace("WRONG", "False"), origin=first.state)
    assert (second.status, second.value("seen")) == ("succeeded", "ValueError: caught")
    assert ran_tasks(new_project) == ["start"]
