"""Which promises a launcher keeps: every attempt ends exactly once, its log comes before, and nothing outlives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from mlp_hookspecs import (
    Backend,
    BackendKind,
    CodeRef,
    LaunchRequest,
    RunContext,
    StepNode,
    StepRequest,
    TaskKey,
    WorkerCommand,
    wire,
)
from mlp_hookspecs.testing.contract import BackendContract
from mlp_hookspecs.testing.driver import Driver, child_command
from mlp_hookspecs.testing.sinks import RecordingSink

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlp_hookspecs.handles import Launcher

MANY = 30
SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT)


class Bench:
    """An open launcher and the sink that it pushes to.

    Parameters
    ----------
    driver : Driver
        Calls the plugin.
    launcher : Launcher
        The launcher, entered.
    sink : RecordingSink
        The sink.
    patience : float
        Seconds to wait for ends.
    """

    def __init__(self, driver: Driver, launcher: Launcher, sink: RecordingSink, patience: float) -> None:
        """Bundle them."""
        self.patience = patience
        self.driver = driver
        self.launcher = launcher
        self.sink = sink

    def launch(self, *requests: LaunchRequest) -> None:
        """Start attempts."""
        taken = self.driver.call("mlp_launch_step", requests=requests, launcher=self.launcher)
        assert taken is True, f"launching was answered with {taken!r} instead of True"

    def run(self, *requests: LaunchRequest) -> None:
        """Start attempts, and wait for their ends."""
        self.launch(*requests)
        self.wait_for(*requests)

    def wait_for(self, *requests: LaunchRequest) -> None:
        """Wait for the ends of attempts."""
        self.sink.wait_for_ends([request.id for request in requests], self.patience)


class LauncherContract(BackendContract):
    """The tests of a launcher, with workers that only the kit knows.

    A derived class needs nothing but the names, where the launcher's settings have defaults that work. Its workers
    must run on this host, or see its files and have this interpreter.

    Attributes
    ----------
    settings : mapping of str to object
        Settings to open it with, on top of their defaults.
    separate : bool
        Whether attempts run in processes of their own, several at once.
    gangs : bool
        Whether requests that form a gang are started together.
    patience : float
        Seconds after which a test gives up waiting for what has to happen.

    Examples
    --------
    >>> from mlp_hookspecs.testing import LauncherContract
    >>> class TestSlurm(LauncherContract):
    ...     plugin = "mlp_plugin_slurm"
    ...     name = "slurm"
    ...     settings = {"slurm.partition": "test"}
    """

    kind: ClassVar[BackendKind] = "launcher"
    settings: ClassVar[Mapping[str, Any]] = {}
    separate: ClassVar[bool] = True
    gangs: ClassVar[bool] = True
    patience: ClassVar[float] = 60

    @pytest.fixture
    def bench(self, driver: Driver) -> Iterator[Bench]:
        """An open launcher."""
        with self._opened(driver) as bench:
            yield bench
        # Something may have been told too late for the test to see it.
        for attempt_id in bench.sink.attempt_ids():
            self.check_order(bench.sink, attempt_id)

    @pytest.fixture
    def cwd(self, tmp_path: Path) -> Path:
        """The working folder of the workers."""
        folder = tmp_path / "work"
        folder.mkdir()
        return folder

    # ------------------------------------------------------------------------------------------ running

    def test_capacity(self, bench: Bench) -> None:
        """The capacity is a number of attempts, or None for no limit."""
        capacity = bench.launcher.capacity()
        assert capacity is None or capacity >= 1

    def test_attempt_runs(self, bench: Bench) -> None:
        """An attempt starts, writes its log, and ends with the outcome of its worker."""
        request = self.request("one", ["write", "stdout", "hello\n"], ["write", "stderr", "oh\n"])
        bench.run(request)
        self.check_order(bench.sink, request.id)
        end = bench.sink.end(request.id)
        assert end is not None
        assert end.outcome is not None, f"the attempt was lost: {end.failure}"
        assert (end.outcome.status, end.outcome.reads) == ("succeeded", (request.step.id,))
        assert bench.sink.text(request.id, "stdout") == b"hello\n"
        assert bench.sink.text(request.id, "stderr") == b"oh\n"

    def test_failed_outcome_is_passed_on(self, bench: Bench) -> None:
        """A worker that tells of a failure has finished, not been lost."""
        request = self.request("one", ["fail"])
        bench.run(request)
        end = bench.sink.end(request.id)
        assert end is not None
        assert end.outcome is not None
        assert end.outcome.status == "failed"
        assert end.outcome.failure is not None

    def test_many_attempts(self, bench: Bench) -> None:
        """Many attempts, in one batch and in several, end once each, each with its own outcome and its own log."""
        requests = [self.request(f"t{n}", ["write", "stdout", f"task {n}\n"]) for n in range(MANY)]
        bench.launch(*requests[:10])
        bench.launch(*requests[10:])
        bench.wait_for(*requests)
        for n, request in enumerate(requests):
            self.check_order(bench.sink, request.id)
            end = bench.sink.end(request.id)
            assert end is not None
            assert end.outcome is not None
            assert end.outcome.reads == (request.step.id,)
            assert bench.sink.text(request.id, "stdout") == f"task {n}\n".encode()

    def test_long_log_is_complete(self, bench: Bench) -> None:
        """A log of some megabytes arrives whole and in order, before the end is told."""
        line = "0123456789" * 9 + "\n"
        request = self.request("one", ["write", "stdout", line, 20_000], ["write", "stdout", "end\n"])
        bench.run(request)
        self.check_order(bench.sink, request.id)
        text = bench.sink.text(request.id, "stdout")
        assert (len(text), text[-4:]) == (len(line) * 20_000 + 4, b"end\n")

    def test_worker_has_its_surroundings(self, bench: Bench, cwd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The worker has the command's variables, lacks the removed ones, and runs in the command's folder."""
        if not self.separate:
            pytest.skip("the launcher runs attempts in this process")
        monkeypatch.setenv("KIT_REMOVED", "still there")
        monkeypatch.setenv("KIT_KEPT", "kept")
        actions = [["write_variable", name] for name in ("KIT_SET", "KIT_REMOVED", "KIT_KEPT")]
        command = self.command(variables={"KIT_SET": "a b"}, unset=("KIT_REMOVED",), cwd=str(cwd))
        request = self.request("one", *actions, ["write_folder"], ["write_input"], command=command)
        bench.run(request)
        lines = [json.loads(line) for line in bench.sink.text(request.id, "stdout").splitlines()]
        assert lines == ["a b", None, "kept", str(cwd.resolve()), ""]

    def test_launching_returns_at_once(self, bench: Bench, tmp_path: Path) -> None:
        """Attempts that cannot end before the launching has returned do end after it."""
        gate = tmp_path / "gate"
        requests = [self.request(f"t{n}", ["wait_for", [str(gate)]]) for n in range(3)]
        launching = threading.Thread(target=bench.launch, args=requests)
        launching.start()
        launching.join(self.patience)
        returned = not launching.is_alive()
        ended = [request.id for request in requests if bench.sink.end(request.id)]
        gate.touch()
        launching.join()
        bench.wait_for(*requests)
        assert returned, "launching has waited for what it launched"
        assert ended == []

    # ------------------------------------------------------------------------------------------ dying

    @pytest.mark.parametrize("status", [0, 3])
    def test_exit_without_an_outcome(self, bench: Bench, status: int) -> None:
        """A worker that ends without having told an outcome is lost, with its exit status; its log is kept."""
        self.need_processes()
        request = self.request("one", ["write", "stdout", "last words\n"], ["exit", status])
        bench.run(request)
        self.check_order(bench.sink, request.id)
        failure = self.failure(bench.sink, request.id)
        assert failure.kind == "exit"
        assert str(status) in failure.message
        assert bench.sink.text(request.id, "stdout") == b"last words\n"

    @pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
    def test_death_by_signal(self, bench: Bench, number: signal.Signals) -> None:
        """A worker that was killed is lost, with the signal; other attempts are not concerned."""
        self.need_processes()
        dying = self.request("dying", ["write", "stdout", "last words\n"], ["kill", int(number)])
        other = self.request("other")
        bench.run(dying, other)
        self.check_order(bench.sink, dying.id)
        failure = self.failure(bench.sink, dying.id)
        assert failure.kind == "killed"
        assert number.name in failure.message
        assert bench.sink.text(dying.id, "stdout").startswith(b"last words\n")
        end = bench.sink.end(other.id)
        assert end is not None
        assert end.outcome is not None

    def test_worker_that_leaves_children(self, bench: Bench, tmp_path: Path) -> None:
        """An attempt ends when its worker does, although a process that it started still holds its output open."""
        self.need_processes()
        child = tmp_path / "child"
        request = self.request("one", ["start_child", str(child)], ["write", "stdout", "done\n"])
        bench.run(request)
        assert bench.sink.text(request.id, "stdout") == b"done\n"
        assert self.have_gone(child), "a process that the worker left behind is still there"

    # ------------------------------------------------------------------------------------------ ending

    def test_cancelled_attempt_ends(self, bench: Bench, tmp_path: Path) -> None:
        """A cancelled attempt ends, is told once, and the others go on."""
        self.need_processes()
        began, gate = tmp_path / "began", tmp_path / "gate"
        cancelled = self.request("cancelled", ["touch", str(began)], ["sleep"])
        other = self.request("other", ["wait_for", [str(gate)]])
        bench.launch(cancelled, other)
        self.await_file(began)
        bench.launcher.cancel([cancelled.id], 5)
        bench.wait_for(cancelled)
        assert self.have_gone(began), "the worker is still there"
        assert bench.sink.end(other.id) is None
        gate.touch()
        bench.wait_for(other)
        self.check_order(bench.sink, cancelled.id)
        self.check_order(bench.sink, other.id)

    def test_cancelling_kills_the_whole_tree(self, bench: Bench, tmp_path: Path) -> None:
        """After the grace, a worker that ignores signals is killed together with the processes that it started."""
        self.need_processes()
        began, child = tmp_path / "began", tmp_path / "child"
        request = self.request("one", ["ignore_signals"], ["start_child", str(child)], ["touch", str(began)], ["sleep"])
        bench.launch(request)
        self.await_file(began)
        bench.launcher.cancel([request.id], 0.2)
        bench.wait_for(request)
        self.check_order(bench.sink, request.id)
        assert self.have_gone(began, child), "the worker, or a process that it started, is still there"

    def test_cancelling_what_has_ended(self, bench: Bench) -> None:
        """To cancel an attempt that has ended, or one that never was, changes nothing."""
        request = self.request("one")
        bench.run(request)
        bench.launcher.cancel([request.id, "unknown/0/0"], 0.1)
        bench.run(self.request("two"))
        self.check_order(bench.sink, request.id)
        assert bench.sink.told("unknown/0/0") == []

    def test_cancelling_at_once(self, bench: Bench) -> None:
        """An attempt that is cancelled before it has begun ends like any other."""
        self.need_processes()
        request = self.request("one", ["sleep"])
        bench.launch(request)
        bench.launcher.cancel([request.id], 0.5)
        bench.wait_for(request)
        assert [told.what for told in bench.sink.told(request.id) if told.is_end] in (["lost"], ["finished"])

    def test_leaving_ends_everything(self, driver: Driver, tmp_path: Path) -> None:
        """No worker, and nothing that one started, is left once the launcher was left."""
        self.need_processes()
        began, child = tmp_path / "began", tmp_path / "child"
        with self._opened(driver) as bench:
            bench.launch(self.request("one", ["start_child", str(child)], ["touch", str(began)], ["sleep"]))
            self.await_file(began)
        assert self.have_gone(began, child), "the worker, or a process that it started, is still there"

    def test_workers_end_with_their_driver(self, driver: Driver, backend: Backend, tmp_path: Path) -> None:
        """Workers on the driver's own host are gone soon after a driver that was killed."""
        self.need_processes()
        if not backend.shares_driver_host:
            pytest.skip("the launcher's workers are on other hosts, and may go on")
        began = tmp_path / "began"
        request = self.request("one", ["touch", str(began)], ["sleep"])
        command = child_command(
            driver.plugin,
            "launch",
            name=self.name,
            settings=dict(self.settings),
            requests=[wire.encode(request)],
        )
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        try:
            self.await_file(began)
        finally:
            process.kill()
            process.communicate()
        assert self.have_gone(began), "the worker is still there"

    # ------------------------------------------------------------------------------------------ gangs, reattaching

    def test_gang_starts_together(self, bench: Bench, tmp_path: Path) -> None:
        """The members of a gang run at the same time: each waits for all the others."""
        if not self.gangs:
            pytest.skip("the launcher says that it starts no gangs")
        self.need_processes()
        paths = [str(tmp_path / f"member{n}") for n in range(3)]
        members = [
            self.request(f"m{n}", ["touch", path], ["wait_for", paths], gang="gang") for n, path in enumerate(paths)
        ]
        bench.run(*members)
        for member in members:
            self.check_order(bench.sink, member.id)

    def test_reattaching_to_nothing(self, bench: Bench) -> None:
        """Attempts that no driver started cannot be taken up."""
        assert list(bench.launcher.reattach(["unknown/0/0"])) == []
        assert list(bench.launcher.reattach([])) == []

    # ------------------------------------------------------------------------------------------ what the tests use

    def command(self, **changes: Any) -> WorkerCommand:
        """Return the command of the kit's worker."""
        variables = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **changes.pop("variables", {})}
        return WorkerCommand(
            argv=(sys.executable, "-m", "mlp_hookspecs.testing.worker"),
            entry="mlp_hookspecs.testing.worker:load",
            variables=variables,
            **changes,
        )

    def request(
        self, step: str, *actions: Sequence[Any], command: WorkerCommand | None = None, gang: str | None = None
    ) -> LaunchRequest:
        """Return a request for an attempt that performs the worker's actions."""
        request = StepRequest(
            run=RunContext("Kit", "20260131-094500-123456"),
            key=TaskKey(step),
            attempt=0,
            node=StepNode(step, "linear"),
            code=CodeRef("kit", "Kit"),
            store="",
            settings={"kit": list(actions)},
        )
        return LaunchRequest(request.id, request, command or self.command(), gang=gang)

    def check_order(self, sink: RecordingSink, attempt_id: str) -> None:
        """Check that an attempt ended exactly once, after all else, and that it started exactly once if it finished."""
        told = sink.told(attempt_id)
        ends = [entry for entry in told if entry.is_end]
        assert len(ends) == 1, f"{len(ends)} ends of {attempt_id} were told; there must be one"
        assert told[-1] is ends[0], f"after the end of {attempt_id}, {told[-1].what} was told"
        starts = [index for index, entry in enumerate(told) if entry.what == "started"]
        if ends[0].what == "finished":
            assert len(starts) == 1, f"{len(starts)} starts of {attempt_id} were told; there must be one"
            assert told[starts[0]].pid > 0

    def failure(self, sink: RecordingSink, attempt_id: str) -> Any:
        """Return why an attempt was lost."""
        end = sink.end(attempt_id)
        assert end is not None
        assert end.failure is not None, f"{attempt_id} has an outcome, though its worker told none"
        return end.failure

    def need_processes(self) -> None:
        """Skip a test that ends workers, where they are this process."""
        if not self.separate:
            pytest.skip("the launcher runs attempts in this process")

    def await_file(self, path: Path) -> None:
        """Wait until a worker has made a file."""
        deadline = time.monotonic() + self.patience
        while not path.exists():
            assert time.monotonic() < deadline, f"the worker did not begin within {self.patience:g} s"
            time.sleep(0.01)

    def have_gone(self, *paths: Path) -> bool:
        """Tell whether the processes that made files have ended, or do so soon; those that have not are killed."""
        pids = [int(path.read_text()) for path in paths]
        deadline = time.monotonic() + min(self.patience, 10)
        while any(map(_is_alive, pids)) and time.monotonic() < deadline:
            time.sleep(0.01)
        left = [pid for pid in pids if _is_alive(pid)]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return not left

    @contextmanager
    def _opened(self, driver: Driver) -> Iterator[Bench]:
        """Open the launcher for the time of a block."""
        sink = RecordingSink()
        launcher: Launcher = driver.call(
            "mlp_open_launcher", name=self.name, settings=driver.settings(self.settings), sink=sink
        )
        with launcher as entered:
            assert entered is launcher, "entering the launcher must return the launcher itself"
            yield Bench(driver, launcher, sink, self.patience)


def _is_alive(pid: int) -> bool:
    """Tell whether a process is there and has not ended; one that nobody has waited for yet has."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return not Path("/proc/self").exists()
    return state != "Z"
