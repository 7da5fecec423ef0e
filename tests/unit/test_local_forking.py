"""Attempts in the care of templates: whatever becomes of a template, each ends once, and none runs in two places."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from mlp_core.builtin.local import mlp_settings
from mlp_core.builtin.local.launcher import LocalLauncher
from mlp_hookspecs import CodeRef, LaunchRequest, RunContext, StepNode, StepRequest, TaskKey, WorkerCommand
from mlp_hookspecs.testing import RecordingSink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="templates are the default on Linux only")

BIG = "x" * 500_000
"""More than fits into a socket."""


class Bench:
    """An open launcher that forks, with a module that templates import."""

    def __init__(self, folder: Path, launcher: LocalLauncher) -> None:
        self.folder = folder
        self.launcher = launcher
        self.sink = RecordingSink()

    def request(self, step: str, *actions: Sequence[Any], padding: str = "") -> LaunchRequest:
        """Return a request for an attempt that performs actions of the kit's worker."""
        step_request = StepRequest(
            run=RunContext("Kit", "20260131-094500-123456"),
            key=TaskKey(step),
            attempt=0,
            node=StepNode(step, "linear"),
            code=CodeRef("kit", "Kit"),
            store=padding,
            settings={"kit": list(actions)},
        )
        command = WorkerCommand(
            argv=(sys.executable, "-m", "mlp_hookspecs.testing.worker"),
            entry="template_entry:load",
            variables={"PYTHONPATH": str(self.folder)},
        )
        return LaunchRequest(step_request.id, step_request, command)

    def submit(self, *requests: LaunchRequest) -> None:
        """Start attempts."""
        for request in requests:
            self.launcher.submit(request)

    def run(self, *requests: LaunchRequest) -> None:
        """Start attempts, and wait for their ends."""
        self.submit(*requests)
        self.wait_for(*requests)

    def wait_for(self, *requests: LaunchRequest) -> None:
        """Wait for ends."""
        self.sink.wait_for_ends([request.id for request in requests], 30)

    def ends(self, *requests: LaunchRequest) -> list[str]:
        """Return how attempts ended; each has done so once."""
        found = []
        for request in requests:
            (end,) = [told for told in self.sink.told(request.id) if told.is_end]
            found.append(end.what if end.failure is None else f"{end.failure.kind}: {end.failure.message}")
        return found


@contextmanager
def opened(folder: Path, entry: str = "", **settings: object) -> Iterator[Bench]:
    """Open a launcher whose templates import a module with some code."""
    code = "import os, sys, time\nfrom pathlib import Path\nfrom mlp_hookspecs.testing.worker import load\n"
    (folder / "template_entry.py").write_text(code + f"HERE = Path({str(folder)!r})\n" + textwrap.dedent(entry))
    defaults = {setting.name: setting.default for setting in mlp_settings()}
    given = {name.replace("_", ".", 1): value for name, value in settings.items()}
    sink = RecordingSink()
    with LocalLauncher({**defaults, "local.isolation": "fork", **given}, sink) as launcher:
        bench = Bench(folder, launcher)
        bench.sink = sink
        yield bench


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Tell whether a process is there and has not ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


GATE = """
(HERE / "importing").touch()
while not (HERE / "gate").exists():
    time.sleep(0.01)
"""


def test_launching_does_not_wait_for_the_import(tmp_path: Path) -> None:
    """Requests that do not fit into the socket are taken at once, while the template still imports the flow."""
    with opened(tmp_path, GATE) as bench:
        requests = [bench.request(f"t{n}", ["write", "stdout", f"{n}\n"], padding=BIG) for n in range(4)]
        launching = threading.Thread(target=bench.submit, args=requests)
        launching.start()
        launching.join(20)
        returned = not launching.is_alive()
        (tmp_path / "gate").touch()
        launching.join()
        bench.wait_for(*requests)
        assert returned, "launching has waited for the template"
        assert bench.ends(*requests) == ["finished"] * 4
        assert [bench.sink.text(request.id, "stdout") for request in requests] == [b"0\n", b"1\n", b"2\n", b"3\n"]


def test_leaving_while_requests_are_on_their_way(tmp_path: Path) -> None:
    """A launcher is left at once, though a template has not read what it was sent."""
    others = set(psutil.Process().children(recursive=True))  # servers of other tests
    with opened(tmp_path, GATE) as bench:
        bench.submit(*(bench.request(f"t{n}", padding=BIG) for n in range(4)))
        wait_until((tmp_path / "importing").exists)
        below = set(psutil.Process().children(recursive=True)) - others
        assert below
    # Who stands by for a killed driver looks around only now and then.
    wait_until(lambda: not any(is_running(process.pid) for process in below))


def test_import_that_does_not_return(tmp_path: Path) -> None:
    """After a time, the attempts that wait for an import are lost, with the reason and with what it has printed."""
    with opened(tmp_path, 'print("importing", flush=True)\ntime.sleep(600)', local_import_timeout=2) as bench:
        requests = [bench.request(f"t{n}") for n in range(2)]
        bench.run(*requests)
        reason = "system: importing the flow took longer than 2 s (local.import_timeout)"
        assert bench.ends(*requests) == [reason, reason]
        assert bench.sink.text(requests[0].id, "stdout") == b"importing\n"


def test_template_that_must_not_fork(tmp_path: Path) -> None:
    """What waits for a template that gives way runs in fresh processes, once each, though it was not all sent yet."""
    thread = "import threading\nthreading.Thread(target=time.sleep, args=(600,), name='poller', daemon=True).start()\n"
    with opened(tmp_path, GATE + thread) as bench:
        note = ["write", "stdout", "ran\n"]
        requests = [bench.request(f"t{n}", note, padding=BIG) for n in range(4)]
        bench.submit(*requests)
        wait_until((tmp_path / "importing").exists)
        (tmp_path / "gate").touch()
        bench.wait_for(*requests)
        assert bench.ends(*requests) == ["finished"] * 4
        assert [bench.sink.text(request.id, "stdout") for request in requests] == [b"ran\n"] * 4
        assert b"forking is not safe here" in bench.sink.text(requests[0].id, "stderr")
        last = bench.request("last", note)
        bench.run(last)
        assert bench.ends(last) == ["finished"]


def test_cancelled_while_the_template_imports(tmp_path: Path) -> None:
    """An attempt that is cancelled ends, although the import goes on; another that waits for the same is not lost."""
    with opened(tmp_path, GATE) as bench:
        cancelled, other = bench.request("cancelled", padding=BIG), bench.request("other", ["write", "stdout", "ran\n"])
        bench.submit(cancelled, other)
        wait_until((tmp_path / "importing").exists)
        bench.launcher.cancel([cancelled.id], 5)
        bench.wait_for(cancelled)
        assert bench.sink.end(other.id) is None
        (tmp_path / "gate").touch()
        bench.wait_for(other)
        assert bench.ends(other) == ["finished"]
        assert bench.sink.text(other.id, "stdout") == b"ran\n"
        assert bench.ends(cancelled) != ["finished"]


def test_all_cancelled_while_the_template_imports(tmp_path: Path) -> None:
    """Many attempts that wait for an import, and are cancelled together, all end, though the import never does."""
    with opened(tmp_path, GATE) as bench:
        requests = [bench.request(f"t{n}") for n in range(20)]
        bench.submit(*requests)
        wait_until((tmp_path / "importing").exists)
        bench.launcher.cancel([request.id for request in requests], 5)
        bench.wait_for(*requests)
        assert "finished" not in bench.ends(*requests)


def test_template_that_talks_nonsense(tmp_path: Path) -> None:
    """A template whose socket somebody else writes to is ended, and its attempts say why; the next get another one."""
    noise = """
    if not (HERE / "once").exists():
        (HERE / "once").touch()
        for entry in os.listdir("/proc/self/fd"):
            try:
                if os.readlink(f"/proc/self/fd/{entry}").startswith("socket:"):
                    os.write(int(entry), b"noise\\n")
            except OSError:
                pass
        time.sleep(600)
    """
    with opened(tmp_path, noise) as bench:
        first, second = bench.request("first"), bench.request("second")
        bench.run(first)
        assert bench.ends(first) == ["system: the template process has said what nobody understands"]
        bench.run(second)
        assert bench.ends(second) == ["finished"]


def test_template_that_dies_with_what_it_was_not_sent(tmp_path: Path) -> None:
    """A template that ends while it imports takes its attempts with it, also those that it was not sent yet."""
    with opened(tmp_path, GATE + "os._exit(7)") as bench:
        requests = [bench.request(f"t{n}", padding=BIG) for n in range(4)]
        bench.submit(*requests)
        (tmp_path / "gate").touch()
        bench.wait_for(*requests)
        assert bench.ends(*requests) == ["exit: the process exited with status 7 before the step had finished"] * 4


def test_helpers_of_the_import_live_as_long_as_the_template(tmp_path: Path) -> None:
    """A process that the flow's import has started serves every task, and ends with the launcher."""
    helper = """
    import subprocess
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (HERE / "helper").write_text(str(helper.pid))
    """
    with opened(tmp_path, helper) as bench:
        for number in range(3):
            child = tmp_path / f"child{number}"
            request = bench.request(f"t{number}", ["start_child", str(child)])
            bench.run(request)
            assert bench.ends(request) == ["finished"]
            wait_until(lambda child=child: not is_running(int(child.read_text())))
            assert is_running(int((tmp_path / "helper").read_text()))
    assert not is_running(int((tmp_path / "helper").read_text()))


@pytest.mark.parametrize("isolation", ["fork", "spawn"])
def test_batch_without_descriptors(tmp_path: Path, isolation: str) -> None:
    """What cannot be started is lost and has not run, what was started goes on, and no descriptor is left open."""
    program = f"""
    import os, sys, time
    from pathlib import Path
    from tests.unit.test_local_forking import opened
    folder = Path({str(tmp_path)!r})
    with opened(folder, local_isolation={isolation!r}) as bench:
        first = bench.request("first")
        bench.run(first)
        before = len(os.listdir("/proc/self/fd"))
        gate = str(folder / "gate")
        waiting = ["wait_for", [gate]]
        requests = [bench.request(f"t{{n}}", ["touch", str(folder / f"ran{{n}}")], waiting) for n in range(60)]
        bench.submit(*requests)
        lost = sum(bench.sink.end(request.id) is not None for request in requests)
        Path(gate).touch()
        bench.wait_for(*requests)
        last = bench.request("last")
        bench.run(last)
        ends = bench.ends(*requests, last)
        for number, end in enumerate(ends[:-1]):
            assert (end == "finished") == (folder / f"ran{{number}}").exists(), (number, end)
            assert end == "finished" or "Too many open files" in end, end
        assert ends[-1] == "finished", ends[-1]
        while len(os.listdir("/proc/self/fd")) > before:
            time.sleep(0.01)
        print(lost, ends.count("finished"))
    """
    done = subprocess.run(
        ["/bin/sh", "-c", 'ulimit -n 100; exec "$@"', "sh", sys.executable, "-c", textwrap.dedent(program)],
        cwd=Path(__file__).parents[2],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    lost, finished = map(int, done.stdout.split())
    assert lost > 0
    assert finished > 10
    assert lost + finished == 61


MAC = """
import mlp_hookspecs.trees as trees
trees._prctl = lambda: None
trees._processes = lambda: []
trees.own_children = lambda: []
"""
"""What makes Linux look like a system without parent-death signals, subreapers and lists of processes."""


@pytest.mark.parametrize("isolation", ["fork", "spawn"])
def test_lifeline_of_a_driver_that_is_killed(tmp_path: Path, isolation: str) -> None:
    """Where the kernel does not tell of the driver's death, its lifeline does: workers end with all in their group."""
    (tmp_path / "sitecustomize.py").write_text(MAC)  # on the path of the driver and of all that it starts
    program = f"""
    from pathlib import Path
    import time
    from tests.unit.test_local_forking import opened
    folder = Path({str(tmp_path)!r})
    with opened(folder, local_isolation={isolation!r}) as bench:
        started = ["start_child", str(folder / "child")]
        request = bench.request("one", started, ["touch", str(folder / "worker")], ["sleep"])
        bench.submit(request)
        time.sleep(600)
    """
    driver = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    try:
        wait_until((tmp_path / "worker").exists)
        pids = [process.pid for process in psutil.Process(driver.pid).children(recursive=True)]
        assert int((tmp_path / "child").read_text()) in pids
    finally:
        driver.kill()
        driver.wait()
    try:
        wait_until(lambda: not any(map(is_running, pids)))
    finally:
        for pid in filter(is_running, pids):
            os.kill(pid, signal.SIGKILL)


def test_attempts_of_a_killed_template_end_once(tmp_path: Path) -> None:
    """A template that is killed while its attempts begin and wait loses them once each; later ones run elsewhere."""
    others = set(psutil.Process().children())  # servers of other tests
    with opened(tmp_path) as bench:
        bench.run(bench.request("warm"))
        rounds = [[bench.request(f"t{k}x{n}", ["sleep"]) for n in range(4)] for k in range(3)]
        for requests in rounds:
            bench.submit(*requests)
            wait_until(lambda first=requests[0]: bench.sink.told(first.id))
            (guard,) = set(psutil.Process().children()) - others
            (template,) = guard.children()
            template.kill()
            bench.wait_for(*requests)
            assert not guard.is_running()
        ends = Counter(end.partition(":")[0] for requests in rounds for end in bench.ends(*requests))
        assert ends == {"killed": 12}
        last = bench.request("last")
        bench.run(last)
        assert bench.ends(last) == ["finished"]


SIBLINGS = """
import os, signal, socket, subprocess, sys
from mlp_core.builtin.local.template import Server

sibling = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], process_group=0)
server = Server(socket.socketpair()[0], lambda request: None, None)
server._children[sibling.pid] = "a/0/0"
pid = os.fork()
if pid == 0:
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(0)
ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(ended, sibling.poll())
sibling.kill()
sibling.wait()
"""


def test_a_fork_that_is_asked_to_end_before_it_is_a_task_spares_its_siblings() -> None:
    """It has the template's handlers still, and the list of the template's children."""
    done = subprocess.run([sys.executable, "-c", SIBLINGS], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == [str(-signal.SIGTERM), "None"], done.stderr
