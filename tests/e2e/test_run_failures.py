"""What happens when a step fails: by exception, by death, by its time, and what retry and catch make of it."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Isolation, Processes, Project, Ran

FAIL = """
class Stubborn(Exception):
    def __init__(self, a, b):
        super().__init__("does not unpickle")

class Mute(Exception):
    def __str__(self):
        raise ValueError

def deeper():
    raise KeyError("deep")

class Flow(FlowSpec):
    kind = Parameter("kind", default="")

    @step
    def start(self):
        self.before = 1
        print("printed before the end", flush=False)
        if self.kind == "raise":
            raise ValueError("boom\\nsecond line")
        if self.kind == "deep":
            try:
                deeper()
            except KeyError as error:
                raise RuntimeError("outer") from error
        if self.kind == "stubborn":
            raise Stubborn(1, threading.Lock())
        if self.kind == "mute":
            raise Mute
        if self.kind == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "exit":
            os._exit(7)
        if self.kind == "exit 0":
            os._exit(0)
        if self.kind == "sys.exit":
            sys.exit(3)
        if self.kind == "sys.exit 0":
            sys.exit()
        if self.kind == "recursion":
            def again():
                again()
            again()
        if self.kind == "closed":
            os.closerange(3, 256)
        if self.kind == "garbage":
            for fd in range(3, 64):
                try:
                    os.write(fd, b"{not json}\\n[]\\n")
                except OSError:
                    pass
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def failed(project: Project, kind: str, isolation: Isolation) -> Ran:
    """Run a flow whose first step fails."""
    ran = project.run(FAIL, isolation=isolation, parameters={"kind": kind})
    assert ran.status == "failed"
    assert ran.paths == ["start/0"]
    assert ran.result is not None
    assert [failure.key.path for failure in ran.result.failures] == ["start/0"]
    assert ran.result.message.startswith("start/0 failed: ")
    return ran


@pytest.mark.parametrize(
    ("kind", "type_name", "message"),
    [
        ("raise", "ValueError", "ValueError: boom"),
        ("deep", "RuntimeError", "RuntimeError: outer"),
        ("stubborn", "MODULE.Stubborn", "MODULE.Stubborn: does not unpickle"),
        ("mute", "MODULE.Mute", "MODULE.Mute: its message cannot be shown"),
        ("sys.exit", "SystemExit", "SystemExit: 3"),
        ("sys.exit 0", "SystemExit", "SystemExit"),
        ("recursion", "RecursionError", "RecursionError: maximum recursion depth exceeded"),
    ],
)
def test_exceptions(project: Project, kind: str, type_name: str, message: str) -> None:
    """An exception fails the task with its type, its first line, and the user's frames, which are in the log too."""
    ran = failed(project, kind, "inline")
    module = project.write(FAIL).stem
    failure = ran.failure("start")
    assert (failure.kind, failure.type) == ("exception", type_name.replace("MODULE", module))
    assert failure.message == message.replace("MODULE", module)
    assert failure.traceback.startswith("Traceback (most recent call last):\n")
    assert f'{module}.py", line' in failure.traceback
    assert "mlp_core/" not in failure.traceback
    assert failure.traceback in ran.log("start")
    assert ran.outcome("start").assigned == {}


def test_chained_exceptions(project: Project) -> None:
    """A traceback shows what led to the exception, and the exception itself can be loaded."""
    ran = failed(project, "deep", "fork")
    trace = ran.failure("start").traceback
    assert trace.index("KeyError: 'deep'") < trace.index("direct cause") < trace.index("RuntimeError: outer")
    values = ran.session.values(ran.session.open_store(create=False))
    assert str(values.get(ran.failure("start").exception)) == "outer"


@pytest.mark.parametrize("way", ["fork", "spawn"])
@pytest.mark.parametrize(
    ("kind", "failure_kind", "message"),
    [
        ("segfault", "killed", "the process was killed by SIGSEGV (segmentation fault)"),
        ("kill", "killed", "the process was killed by SIGKILL (killed); the usual reason is that the machine"),
        ("exit", "exit", "the process exited with status 7 before the step had finished"),
        ("exit 0", "exit", "the process exited with status 0 before the step had finished"),
        ("closed", "exit", "the process exited with status 1 before the step had finished"),
    ],
)
def test_deaths(project: Project, way: Isolation, kind: str, failure_kind: str, message: str) -> None:
    """A process that dies is an attempt that failed, with its reason; what it had printed is in the log."""
    ran = failed(project, kind, way)
    failure = ran.failure("start")
    assert failure.kind == failure_kind
    assert failure.message.startswith(message)
    assert ran.log("start").startswith("printed before the end\n")


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_garbage_in_the_message_stream(project: Project, way: Isolation) -> None:
    """A step that writes into every open descriptor harms nobody but, at most, itself."""
    ran = project.run(FAIL, isolation=way, parameters={"kind": "garbage"})
    assert ran.status in ("succeeded", "failed")
    assert project.run(FAIL, isolation=way).status == "succeeded"


POLICIES = """
class Flow(FlowSpec):
    kind = Parameter("kind", default="")
    counter = Parameter("counter", default="")

    @step
    def start(self):
        self.next(self.work)

    @catch(var="problem")
    @retry(times=2, minutes_between_retries=0)
    @step
    def work(self):
        with open(self.counter, "a") as file:
            file.write(f"{current.retry_count} {current.attempt}\\n")
        print("attempt", current.retry_count)
        self.attempt = current.retry_count
        self.half = threading.Lock() if self.kind == "unpicklable" else "done"
        if self.kind == "always" or (self.kind == "twice" and current.retry_count < 2):
            raise ValueError("no")
        if self.kind == "die":
            os._exit(9)
        self.full = True
        self.next(self.end)

    @step
    def end(self):
        if self.problem:
            print("problem", self.problem.kind, self.problem.type, self.problem.message, self.problem)
"""


def policies(project: Project, kind: str, isolation: Isolation, **options: object) -> tuple[Ran, list[str]]:
    """Run a step with policies, and return its attempts as it counted them itself."""
    counter = project.root / f"count-{time.monotonic_ns()}"
    ran = project.run(POLICIES, isolation=isolation, parameters={"kind": kind, "counter": str(counter)}, **options)
    return ran, counter.read_text().splitlines()


def test_retry(project: Project, isolation: Isolation) -> None:
    """A failed attempt is made again; only the last attempt's artifacts are visible, every attempt's log is kept."""
    ran, attempts = policies(project, "twice", isolation)
    assert ran.status == "succeeded"
    assert attempts == ["0 0", "1 1", "2 2"]
    assert [attempt.will_retry for attempt in ran.state.tasks[ran.key("work")].attempts] == [True, True, False]
    assert (ran.value("attempt"), ran.value("full"), ran.value("problem")) == (2, True, None)
    assert [ran.log("work", n, ("stdout",)) for n in range(3)] == ["attempt 0\n", "attempt 1\n", "attempt 2\n"]
    assert "ValueError: no" in ran.log("work", 1)


def test_catch_after_retries(project: Project, isolation: Isolation) -> None:
    """A step that has failed for good is caught: what it had assigned stays, its failure is an artifact."""
    ran, attempts = policies(project, "always", isolation)
    assert ran.status == "succeeded"
    assert len(attempts) == 3
    assert ran.outcome("work").status == "caught"
    assert "full" not in ran.artifacts()
    assert ran.value("half") == "done"
    problem = ran.value("problem")
    assert (problem.kind, problem.type, problem.message) == ("exception", "ValueError", "ValueError: no")
    assert "raise ValueError" in problem.traceback
    assert ran.log() == "problem exception ValueError ValueError: no ValueError: no\n"


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_catch_after_death(project: Project, way: Isolation) -> None:
    """A killed process is caught too, without running the user's code once more."""
    ran, attempts = policies(project, "die", way)
    assert ran.status == "succeeded"
    assert len(attempts) == 3
    problem = ran.value("problem")
    assert (problem.kind, problem.message) == ("exit", "the process exited with status 9 before the step had finished")
    assert "attempt" not in ran.artifacts()


def test_catch_of_what_cannot_be_stored(project: Project) -> None:
    """An artifact that cannot be stored is caught as well; the others stay."""
    ran, _ = policies(project, "unpicklable", "fork")
    assert ran.status == "succeeded"
    assert ran.value("problem").kind == "artifact"
    assert "artifact 'half' of type _thread.lock cannot be stored" in ran.value("problem").message
    assert ran.value("attempt") == 2
    assert "half" not in ran.artifacts()


@pytest.mark.parametrize("shown", [True, False])
def test_printing_a_caught_exception(project: Project, *, shown: bool) -> None:
    """The log has every attempt's traceback, but the caught one's only where that is wanted; its record always has."""
    code = POLICIES.replace('var="problem"', f'var="problem", print_exception={shown}')
    ran = project.run(code, isolation="inline", parameters={"kind": "always", "counter": os.devnull})
    assert ran.status == "succeeded"
    assert "raise ValueError" in ran.log("work", 1)
    assert ("raise ValueError" in ran.log("work", 2)) is shown
    assert "raise ValueError" in ran.value("problem").traceback


def test_with_retry_and_its_pin(project: Project) -> None:
    """``--with retry`` retries every step but one that says ``retry(times=0)``."""
    code = """
    class Flow(FlowSpec):
        @step
        def start(self):
            if current.retry_count == 0:
                raise ValueError("once")
            self.next(self.pinned)

        @retry(times=0)
        @step
        def pinned(self):
            raise ValueError("for good")
            self.next(self.end)

        @step
        def end(self):
            pass
    """
    ran = project.run(code, with_options=("retry:times=1,minutes_between_retries=0",))
    assert ran.status == "failed"
    assert len(ran.state.tasks[ran.key("start")].attempts) == 2
    assert len(ran.state.tasks[ran.key("pinned")].attempts) == 1


def test_retries_wait(project: Project) -> None:
    """The pause between attempts is kept."""
    code = """
    class Flow(FlowSpec):
        @retry(times=1, minutes_between_retries=0.005)
        @step(start=True, end=True)
        def only(self):
            self.time = time.time()
            if current.retry_count == 0:
                raise ValueError
    """
    ran = project.run(code)
    first, second = ran.state.tasks[ran.key("only")].attempts
    assert first.finished_at is not None
    assert second.started_at is not None
    assert second.started_at - first.finished_at >= 0.28


TIMEOUT = """
import subprocess

class Flow(FlowSpec):
    kind = Parameter("kind", default="")

    @step
    def start(self):
        self.next(self.work)

    @timeout(seconds=1, grace=0.5)
    @step
    def work(self):
        self.before = 1
        try:
            if self.kind == "ignore":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if self.kind == "swallow":
                while True:
                    try:
                        time.sleep(60)
                    except BaseException:
                        print("swallowed")
            if self.kind == "grandchildren":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                for way in (False, True):
                    subprocess.Popen([sys.executable, "-c", CHILD], start_new_session=way)
            while self.kind != "quick":
                time.sleep(0.05)
        finally:
            print("cleaned up")
            if self.kind == "raise":
                raise ValueError("while cleaning up")
        self.next(self.end)

    @step
    def end(self):
        pass

CHILD = '''
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() > 0:
        os._exit(0)
time.sleep(600)
'''
"""


COUNTING_END = """
    def end(self):
        import psutil

        def lives(process):
            try:
                is_child = "time.sleep(600)" in " ".join(process.cmdline())
                return is_child and process.environ().get("MLP_TEST_MARK") == os.environ["MLP_TEST_MARK"]
            except psutil.Error:
                return False

        deadline = time.monotonic() + 1
        while any(map(lives, psutil.process_iter())) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.left = sum(map(lives, psutil.process_iter()))
"""


@pytest.fixture
def mark(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> Processes:
    """The processes of runs in this process."""
    monkeypatch.setenv("MLP_TEST_MARK", processes.mark)
    return processes


@pytest.mark.parametrize("kind", ["sleep", "raise", "ignore", "swallow"])
def test_timeout(project: Project, isolation: Isolation, kind: str) -> None:
    """A step that takes too long is asked to end, cleans up, and is killed after its grace if it has not ended."""
    if isolation == "inline" and kind in ("ignore", "swallow"):
        pytest.skip("a thread cannot be killed")
    ran = project.run(TIMEOUT, isolation=isolation, parameters={"kind": kind})
    assert ran.status == "failed"
    failure = ran.failure("work")
    assert (failure.kind, failure.message) == ("timeout", "the attempt took longer than 1 s")
    assert ("cleaned up" in ran.log("work")) == (kind in ("sleep", "raise"))


def test_timeout_leaves_the_quick_alone(project: Project) -> None:
    """A step that ends in time is not touched."""
    assert project.run(TIMEOUT, isolation="fork", parameters={"kind": "quick"}).status == "succeeded"


def test_caught_timeout(project: Project) -> None:
    """A caught timeout is an artifact that says it was one."""
    code = TIMEOUT.replace("@timeout", '@catch(var="problem")\n    @timeout')
    ran = project.run(code, isolation="fork", parameters={"kind": "sleep"})
    assert ran.status == "succeeded"
    assert ran.value("problem").kind == "timeout"


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_timeout_kills_the_whole_tree(project: Project, mark: Processes, way: Isolation) -> None:
    """Children that ignore signals, and grandchildren in sessions of their own, are gone once the attempt is."""
    code = TIMEOUT.replace("    def end(self):\n        pass", COUNTING_END).replace("@timeout", "@catch\n    @timeout")
    ran = project.run(code, isolation=way, parameters={"kind": "grandchildren"})
    assert ran.status == "succeeded", ran.state.ended
    assert ran.outcome("work").failure.kind == "timeout"
    assert ran.value("left") == 0
    mark.wait_until_gone(2)


LEFT_BEHIND = """
import subprocess

class Flow(FlowSpec):
    kind = Parameter("kind", default="")

    @step
    def start(self):
        for way in (False, True):
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=way)
        subprocess.Popen(
            [sys.executable, "-c", "import os, time; os.setsid(); os.fork() == 0 and time.sleep(600)"]
        ).wait()
        if self.kind == "die":
            os._exit(1)
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.mark.parametrize("way", ["fork", "spawn"])
@pytest.mark.parametrize("kind", ["", "die"])
def test_nothing_is_left_behind(project: Project, mark: Processes, way: Isolation, kind: str) -> None:
    """Processes that a step leaves behind, daemons too, end with it, whether it ends well or dies."""
    ran = project.run(LEFT_BEHIND, isolation=way, parameters={"kind": kind})
    assert ran.status == ("failed" if kind else "succeeded")
    mark.wait_until_gone(2)


MANY = """
class Flow(FlowSpec):
    folder = Parameter("folder", default="")

    @step
    def start(self):
        self.items = list(range(6))
        self.next(self.work, foreach="items")

    @step
    def work(self):
        with open(f"{self.folder}/{self.input}", "w"):
            pass
        if self.input == 0:
            while not os.path.exists(f"{self.folder}/1"):
                time.sleep(0.01)
            raise ValueError("first")
        if self.input == 1:
            time.sleep(0.7)
            raise ValueError("second")
        time.sleep(0.7)
        self.done = True
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_a_failure_stops_new_work(project: Project, tmp_path: Path, way: Isolation) -> None:
    """After a failure no task starts, those that run come to their end, and every failure is reported."""
    ran = project.run(MANY, isolation=way, parameters={"folder": str(tmp_path)}, max_workers=2)
    assert ran.status == "failed"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]
    assert ran.paths == ["start/0", "work/0", "work/1"]
    assert ran.result is not None
    assert [(f.key.path, f.failure.message) for f in ran.result.failures] == [
        ("work/0", "ValueError: first"),
        ("work/1", "ValueError: second"),
    ]
    assert ran.result.message == "work/0 failed: ValueError: first, and 1 more failed"


def test_running_tasks_succeed_after_a_failure(project: Project, tmp_path: Path) -> None:
    """What runs while another task fails is committed when it succeeds."""
    code = MANY.replace('raise ValueError("second")', "pass")
    ran = project.run(code, parameters={"folder": str(tmp_path)}, max_workers=2)
    assert (ran.status, ran.outcome("work/1").status) == ("failed", "succeeded")
    assert ran.value("done", "work/1") is True


@pytest.mark.parametrize("minutes", [0, 10])
def test_retries_that_are_left_have_failed(project: Project, minutes: int) -> None:
    """A task that waits to be tried again when another one's failure ends the run is among the failures."""
    code = f"""
    class Flow(FlowSpec):
        @step
        def start(self):
            self.next(self.a, self.b)

        @retry(times=1, minutes_between_retries={minutes})
        @step
        def a(self):
            raise ValueError(f"attempt {{current.attempt}}")
            self.next(self.join)

        @step
        def b(self):
            raise ValueError("for good")
            self.next(self.join)

        @step
        def join(self, inputs):
            self.next(self.end)

        @step
        def end(self):
            pass
    """
    ran = project.run(code, isolation="inline", max_workers=1)
    assert ran.status == "failed"
    assert ran.result is not None
    assert [(f.key.path, f.attempt, f.failure.message) for f in ran.result.failures] == [
        ("b/0", 0, "ValueError: for good"),
        ("a/0", 0, "ValueError: attempt 0"),
    ]
    assert ran.result.message == "b/0 failed: ValueError: for good, and 1 more failed"


def test_memory_limit(project: Project) -> None:
    """A step that outgrows its address space fails with a MemoryError of its own."""
    code = """
    import resource

    class Flow(FlowSpec):
        @step(start=True, end=True)
        def only(self):
            resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
            self.x = bytearray(2**31)
    """
    for way in ("fork", "spawn"):
        failure = project.run(code, isolation=way).failure("only")
        assert (failure.kind, failure.type) == ("exception", "MemoryError")


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[Path]:
    """Make a control group with a memory limit (version 1), where this system lets us."""
    root = Path("/sys/fs/cgroup/memory")
    group = root / f"mlp-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no control groups of version 1 to write to")
    try:
        (group / "memory.limit_in_bytes").write_text(str(limit))
        with contextlib.suppress(OSError):
            (group / "memory.swappiness").write_text("0")
        yield group
    finally:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            try:
                group.rmdir()
            except OSError:
                time.sleep(0.05)
            else:
                break


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_out_of_memory_kill(project: Project, way: Isolation) -> None:
    """A step that the kernel kills for its memory is an attempt that failed, with the likely reason, and is retried."""
    code = """
    class Flow(FlowSpec):
        group = Parameter("group", default="")

        @retry(times=1, minutes_between_retries=0)
        @step(start=True, end=True)
        def only(self):
            if current.retry_count == 0:
                with open(self.group + "/cgroup.procs", "w") as file:
                    file.write(str(os.getpid()))
                held = []
                while True:
                    held.append(b"x" * 2**20)
    """
    with memory_group(100 << 20) as group:
        ran = project.run(code, isolation=way, parameters={"group": str(group)})
    assert ran.status == "succeeded", ran.state.ended
    first, _ = ran.state.tasks[ran.key("only")].attempts
    assert first.outcome is not None
    assert first.outcome.failure is not None
    assert first.outcome.failure.kind == "killed"
    assert "ran out of memory" in first.outcome.failure.message
