"""What is left of a run whose processes are killed, in whichever combination: nothing, within two seconds."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import textwrap
import time
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from conftest import Isolation, Processes, Project
    from mlp_core.store.records import Record

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets orphans be found")

SECONDS = 2.0

FAMILIES = """
import subprocess

def family(name):
    # A child, one in a session of its own, a grandchild, and a daemon that is deaf to all polite requests.
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    subprocess.Popen(sleep)
    subprocess.Popen(sleep, start_new_session=True)
    subprocess.Popen(["sh", "-c", "sleep 600 & sleep 600; wait"])
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            with open("ready" + name, "w") as file:
                file.write(str(os.getpid()))
            time.sleep(600)
        os._exit(0)
    os.wait()

class Flow(FlowSpec):
    @step
    def start(self):
        self.items = [0, 1]
        self.next(self.work, foreach="items")

    @step
    def work(self):
        if not os.path.exists("calm"):
            family(str(self.input))
            time.sleep(600)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def below(pid: int) -> list[psutil.Process]:
    """Return all descendants of a process, nearest first."""
    return psutil.Process(pid).children(recursive=True)


def has_ended(pid: int) -> bool:
    """Tell whether a process has ended, reaped or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def python(processes: list[psutil.Process]) -> list[int]:
    """Return those that are the platform's own."""
    own = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()
            if "sleep" not in line[0] and "time.sleep" not in line[-1]:
                own.append(process.pid)
    return own


VICTIMS: dict[str, Callable[[int], list[int]]] = {
    "driver": lambda driver: [driver],
    "driver, then its children": lambda driver: [driver, *(p.pid for p in psutil.Process(driver).children())],
    "children, then the driver": lambda driver: [*(p.pid for p in psutil.Process(driver).children()), driver],
    "driver and all workers": lambda driver: [driver, *python(below(driver))],
    "all workers, the last first, and the driver": lambda driver: [*reversed(python(below(driver))), driver],
    "driver and all that has started": lambda driver: [driver, *(p.pid for p in below(driver))],
}


QUICK = ("driver-fork", "driver and all workers-fork", "driver, then its children-fork", "driver and all workers-spawn")
CASES = [
    pytest.param(whom, way, id=f"{whom}-{way}", marks=() if f"{whom}-{way}" in QUICK else (pytest.mark.slow,))
    for whom in VICTIMS
    for way in ("fork", "spawn")
]


@pytest.mark.parametrize(("whom", "way"), CASES)
def test_killed_processes_leave_nothing(new_project: Project, processes: Processes, way: Isolation, whom: str) -> None:
    """However many of a run's processes are killed at once, none of the others is there two seconds later."""
    file = new_project.write(FAMILIES, "families.py").name
    driver = new_project.start(file, "run", "--isolation", way, "--max-workers", "2", mark=processes.mark)
    ready = [new_project.root / f"ready{number}" for number in range(2)]
    processes.wait_for(lambda: all(path.exists() for path in ready) or driver.poll() is not None, "the families")
    assert driver.poll() is None, driver.communicate()
    assert processes.count() > 10
    for pid in VICTIMS[whom](driver.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    driver.communicate(timeout=20)
    processes.wait_until_gone(SECONDS)
    assert new_project.read().status == "lost"


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_stopped_driver(new_project: Project, processes: Processes, way: Isolation) -> None:
    """Tasks go on under a driver that is stopped, and it takes in their ends when it goes on, or can be killed."""
    code = FAMILIES.replace('if not os.path.exists("calm")', 'if self.input == 1 and not os.path.exists("calm")')
    code = code.replace(
        "        self.next(self.join)\n",
        '        open(f"done{self.input}", "w").close()\n        self.next(self.join)\n',
        1,
    )
    code = code.replace(
        "time.sleep(600)\n        open", 'while not os.path.exists("calm"): time.sleep(0.01)\n        open'
    )
    file = new_project.write(code, "families.py").name
    for is_killed in (True, False):
        driver = new_project.start(file, "run", "--isolation", way, "--max-workers", "2", mark=processes.mark)
        processes.wait_for((new_project.root / "ready1").exists, "the middle of the run")
        driver.send_signal(signal.SIGSTOP)
        if is_killed:
            driver.kill()
            driver.communicate(timeout=20)
            processes.wait_until_gone(SECONDS)
            assert new_project.read().status == "lost"
            for name in ("ready1", "done0"):
                (new_project.root / name).unlink(missing_ok=True)
            continue
        (new_project.root / "calm").touch()
        processes.wait_for((new_project.root / "done1").exists, "the end of a task")
        time.sleep(0.2)
        assert new_project.read().status == "running"
        driver.send_signal(signal.SIGCONT)
        _, err = driver.communicate(timeout=20)
        assert driver.returncode == 0, err
        assert new_project.read().status == "succeeded"
        processes.wait_until_gone(SECONDS)


def test_flood_is_held_back(new_project: Project, processes: Processes) -> None:
    """A step that prints faster than the driver writes does not fill the driver's memory, and its time is kept."""
    code = """
    class Flow(FlowSpec):
        @timeout(seconds=3, grace=1)
        @step(start=True, end=True)
        def only(self):
            line = ("x" * 1000 + "\\n") * 1000
            while True:
                sys.stdout.write(line)
    """
    file = new_project.write(code, "flood.py").name
    driver = new_project.start(file, "run", "--quiet", mark=processes.mark)
    largest = 0
    while driver.poll() is None:
        with contextlib.suppress(psutil.Error):
            largest = max(largest, psutil.Process(driver.pid).memory_info().rss)
        time.sleep(0.05)
    out, err = driver.communicate()
    assert driver.returncode == 1, out + err
    assert new_project.read().failure("only").kind == "timeout"
    assert largest < 300e6, f"{largest / 1e6:.0f} MB"


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_driver_that_may_commit_nothing_more(
    new_project: Project, processes: Processes, monkeypatch: pytest.MonkeyPatch, way: Isolation
) -> None:
    """Where the journal takes nothing more, workers and all that they have started end before anything else does."""
    from mlp_core.errors import StoreError
    from mlp_core.store import RunWriter
    from mlp_core.store.records import AttemptFinished

    write, close = RunWriter.write, RunWriter.close
    left: list[list[psutil.Process]] = []
    before = set(below(os.getpid()))
    refused_at = 0.0

    def refuse(self: RunWriter, records: Sequence[Record], *, sync: bool = True) -> None:
        nonlocal refused_at
        if any(isinstance(record, AttemptFinished) and record.key.step == "quick" for record in records):
            refused_at = time.monotonic()
            raise StoreError("another driver has taken the run over")
        write(self, records, sync=sync)

    def look(self: RunWriter) -> None:
        left.append([process for process in below(os.getpid()) if process not in before])
        close(self)

    monkeypatch.setattr(RunWriter, "write", refuse)
    monkeypatch.setattr(RunWriter, "close", look)
    code = FAMILIES.partition("class Flow")[0] + textwrap.dedent("""
    class Flow(FlowSpec):
        @step
        def start(self):
            self.next(self.slow, self.quick)

        @step
        def slow(self):
            family("0")
            time.sleep(600)
            self.next(self.join)

        @step
        def quick(self):
            while not os.path.exists("ready0"):
                time.sleep(0.01)
            self.next(self.join)

        @step
        def join(self, inputs):
            self.next(self.end)

        @step
        def end(self):
            pass
    """)
    with pytest.raises(StoreError, match="another driver has taken the run over"):
        new_project.run(code, isolation=way, max_workers=2)
    assert time.monotonic() - refused_at < SECONDS
    assert left == [[]], [process.cmdline() for process in left[0]]
    daemon = int((new_project.root / "ready0").read_text())
    processes.wait_for(lambda: has_ended(daemon), "the end of the daemon", SECONDS)
