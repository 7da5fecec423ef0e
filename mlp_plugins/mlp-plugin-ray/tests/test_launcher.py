"""The launcher keeps the promises of every launcher on a cluster of two nodes, and loses no attempt without a word."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import attrs
import psutil
import pytest

from mlp_hookspecs import Failure, LaunchRequest, Resources, wire
from mlp_hookspecs.testing import LauncherContract, RecordingSink
from mlp_plugin_ray.launcher import RayLauncher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import TwoNodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

SECOND = {"resources": {"second": 1}}
"""What places an attempt on the second node."""


@pytest.mark.usefixtures("cluster")
class TestRay(LauncherContract):
    """The conformance kit, on the cluster of two nodes."""

    plugin = "mlp_plugin_ray.plugin"
    name = "ray"
    heavy = ("ray",)
    gangs = False

    def test_worker_has_its_surroundings(self, bench: Any, cwd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As in the kit; but what the command leaves of the variables is the node's, not the driver's."""
        monkeypatch.setenv("KIT_DRIVERS", "of the driver")
        actions = [["write_variable", name] for name in ("KIT_SET", "PATH", "HOME", "KIT_DRIVERS")]
        command = self.command(variables={"KIT_SET": "a b"}, unset=("PATH",), cwd=str(cwd))
        request = self.request("one", *actions, ["write_folder"], ["write_input"], command=command)
        bench.run(request)
        text = bench.sink.text(request.id, "stdout").decode()
        assert text.splitlines() == ['"a b"', "null", f'"{os.environ["HOME"]}"', "null", f'"{cwd.resolve()}"', '""']


def make(step: str, *actions: list[Any], **changes: Any) -> LaunchRequest:
    """Return a request for the kit's worker."""
    return attrs.evolve(TestRay().request(step, *actions), **changes)


def settings(address: str | None = None, max_pending: int = 100) -> dict[str, Any]:
    """Return settings."""
    return {"ray.address": address, "ray.max_pending": max_pending}


@pytest.fixture
def sink() -> RecordingSink:
    """Where the launcher pushes."""
    return RecordingSink()


@pytest.fixture
def launcher(cluster: TwoNodes, sink: RecordingSink) -> Iterator[RayLauncher]:
    """An open launcher on the cluster."""
    with RayLauncher.open(settings(cluster.address), sink) as launcher:
        yield launcher


def await_text(sink: RecordingSink, request: LaunchRequest, stream: str = "stdout") -> None:
    """Wait until an attempt has printed."""
    assert sink.wait_for(lambda: bool(sink.text(request.id, stream)))


def worker_of(sink: RecordingSink, request: LaunchRequest) -> psutil.Process:
    """Return an attempt's process, once it has begun."""
    assert sink.wait_for(lambda: any(told.what == "started" for told in sink.told(request.id)))
    [pid] = [told.pid for told in sink.told(request.id) if told.what == "started"]
    return psutil.Process(pid)


def failure_of(sink: RecordingSink, request: LaunchRequest) -> Failure:
    """Return why an attempt was lost, once it was."""
    sink.wait_for_ends([request.id])
    end = sink.end(request.id)
    assert end is not None
    assert end.failure is not None
    return end.failure


def has_gone(process: psutil.Process, seconds: float = 20) -> bool:
    """Tell whether a process ends in time."""
    gone, _ = psutil.wait_procs([process], timeout=seconds)
    return bool(gone)


def speak(*more: list[Any]) -> list[list[Any]]:
    """Return actions of a worker that prints, and then sleeps or does more."""
    return [["write", "stdout", "here\n"], *(more or (["sleep"],))]


# ---------------------------------------------------------------------------------------------------- losses


def test_lost_node(cluster: TwoNodes, launcher: RayLauncher, sink: RecordingSink) -> None:
    """An attempt on a node that is lost is lost, with its log; the other node goes on."""
    gone, stays = make("gone", *speak(), options=SECOND), make("stays", *speak())
    launcher.submit([gone, stays])
    await_text(sink, gone)
    await_text(sink, stays)
    worker = worker_of(sink, gone)
    cluster.lose("second")
    try:
        failure = failure_of(sink, gone)
        assert failure.kind in ("system", "killed")
        assert "node" in failure.message or "worker process" in failure.message
        assert sink.text(gone.id, "stdout") == b"here\n"
        assert has_gone(worker)
        assert sink.end(stays.id) is None
        launcher.cancel([stays.id], 0)
        sink.wait_for_ends([stays.id])
        assert [len([told for told in sink.told(one.id) if told.is_end]) for one in (gone, stays)] == [1, 1]
    finally:
        cluster.add("second")


def test_node_that_joins(cluster: TwoNodes, launcher: RayLauncher, sink: RecordingSink) -> None:
    """An attempt that no node can take says so in its log, and runs when one joins."""
    request = make("waits", options={"resources": {"third": 1}})
    launcher.submit([request])
    await_text(sink, request, "stderr")
    assert b"the cluster has no node with CPU: 1, third: 1" in sink.text(request.id, "stderr")
    cluster.add("third")
    try:
        sink.wait_for_ends([request.id])
    finally:
        cluster.lose("third")
    end = sink.end(request.id)
    assert end is not None
    assert end.outcome is not None


def test_killed_ray_worker(launcher: RayLauncher, sink: RecordingSink) -> None:
    """Where Ray's own process is killed, the attempt is lost, its worker ends with it, and nothing is run again."""
    request = make("one", *speak())
    launcher.submit([request])
    await_text(sink, request)
    worker = worker_of(sink, request)
    worker.parent().kill()
    failure = failure_of(sink, request)
    assert failure == Failure("killed", "the Ray worker process that watched over the step was killed or crashed")
    assert has_gone(worker)
    following = make("two")
    launcher.submit([following])
    sink.wait_for_ends([following.id])
    assert [told.what for told in sink.told(request.id)] == ["started", "log", "lost"]


def test_killed_hub(launcher: RayLauncher, sink: RecordingSink, tmp_path: Path) -> None:
    """Where the process that passes reports on is killed, running attempts lose log at most, later ones nothing."""
    gate = tmp_path / "gate"
    running = make("running", *speak(["wait_for", [str(gate)]]))
    launcher.submit([running])
    await_text(sink, running)
    [hub] = [process for process in psutil.process_iter(["cmdline"]) if is_hub(process)]
    hub.kill()
    gate.touch()
    sink.wait_for_ends([running.id])
    later = make("later", *speak(["write", "stderr", "done\n"]))
    launcher.submit([later])
    sink.wait_for_ends([later.id])
    assert (sink.text(later.id, "stdout"), sink.text(later.id, "stderr")) == (b"here\n", b"done\n")
    assert [sink.told(one.id)[-1].what for one in (running, later)] == ["finished", "finished"]


def is_hub(process: psutil.Process) -> bool:
    """Tell whether a process is a hub; Ray gives it its title."""
    return any(word.startswith("ray::Hub") for word in process.info["cmdline"] or ())


def test_broken_connection(launcher: RayLauncher, sink: RecordingSink) -> None:
    """Where the process that speaks with Ray dies, every attempt is lost with the reason, and no other is taken."""
    requests = [make(f"t{n}", *speak()) for n in range(6)]
    launcher.submit(requests)
    workers = [worker_of(sink, request) for request in requests[:2]]
    os.kill(launcher._process.pid, signal.SIGKILL)
    reasons = {failure_of(sink, request) for request in requests}
    text = "the connection to Ray has ended: the process that kept it was killed by signal 9"
    assert reasons == {Failure("system", text)}
    with pytest.raises(OSError, match=text):
        launcher.submit([make("late")])
    launcher.cancel([requests[0].id], 0)
    assert all(has_gone(worker) for worker in workers)


# ---------------------------------------------------------------------------------------------------- cancelling


def test_waiting_attempts_are_cancelled(launcher: RayLauncher, sink: RecordingSink) -> None:
    """What Ray has not started yet ends as cancelled, and never starts."""
    requests = [make(f"t{n}", ["sleep"], options=SECOND) for n in range(6)]
    launcher.submit(requests)
    assert sink.wait_for(lambda: sum(bool(sink.told(request.id)) for request in requests) == 2)
    waiting = [request for request in requests if not sink.told(request.id)]
    launcher.cancel([request.id for request in waiting], 60)
    assert {failure_of(sink, request).kind for request in waiting} == {"cancelled"}
    running = [request for request in requests if request not in waiting]
    assert [sink.end(request.id) for request in running] == [None, None]
    launcher.cancel([request.id for request in running], 60)
    assert {failure_of(sink, request).kind for request in running} == {"killed"}
    assert all([told.what for told in sink.told(request.id)] == ["lost"] for request in waiting)


def test_second_cancel_cuts_the_grace_short(launcher: RayLauncher, sink: RecordingSink) -> None:
    """A second request without a grace kills at once what the first would have let go on for long."""
    request = make("one", ["ignore_signals"], *speak())
    launcher.submit([request])
    await_text(sink, request)
    launcher.cancel([request.id], 3600)
    time.sleep(0.5)
    assert sink.end(request.id) is None
    launcher.cancel([request.id], 0)
    assert "SIGKILL" in failure_of(sink, request).message


# ---------------------------------------------------------------------------------------------------- window and order


def test_window_of_many(cluster: TwoNodes, sink: RecordingSink) -> None:
    """Two hundred attempts through a window of twenty each end once, and both nodes take part."""
    # Ray tells every process which raylet, one a node, has started it.
    requests = [make(f"t{n}", ["write", "stdout", f"{n} "], ["write_variable", "RAY_RAYLET_PID"]) for n in range(200)]
    with RayLauncher.open(settings(cluster.address, max_pending=20), sink) as launcher:
        capacity = launcher.capacity()
        assert capacity == 20
        left = list(requests)
        running: set[str] = set()
        while left or running:
            batch = [left.pop(0) for _ in range(min(len(left), capacity - len(running)))]
            running |= {request.id for request in batch}
            launcher.submit(batch)
            assert sink.wait_for(lambda waiting=frozenset(running): any(sink.end(one) for one in waiting))
            running -= {one for one in running if sink.end(one)}
    for request in requests:
        told = [entry.what for entry in sink.told(request.id)]
        assert (told[0], told[-1], told.count("finished")) == ("started", "finished", 1)
    printed = [sink.text(request.id, "stdout").decode().split() for request in requests]
    assert [int(number) for number, _ in printed] == list(range(200))
    assert len({raylet for _, raylet in printed}) == 2


# ---------------------------------------------------------------------------------------------------- opening


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense"])
def test_bad_address(sink: RecordingSink, address: str) -> None:
    """An address without a cluster is an OSError with the address, before any attempt, and leaves no process."""
    before = psutil.Process().children()
    with pytest.raises(OSError, match=address):
        RayLauncher.open(settings(address), sink)
    assert set(psutil.Process().children()) <= set(before)


def test_wrong_token(cluster: TwoNodes, sink: RecordingSink, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that refuses our token is an OSError too."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    with pytest.raises(OSError, match="Ray"):
        RayLauncher.open(settings(cluster.address), sink)


def test_bad_window(sink: RecordingSink) -> None:
    """A window without room for an attempt is refused."""
    with pytest.raises(ValueError, match=r"ray\.max_pending is 0; it must be at least 1"):
        RayLauncher.open(settings(max_pending=0), sink)


def test_gang_is_refused(launcher: RayLauncher, sink: RecordingSink) -> None:
    """Requests that have to start together are refused rather than started one by one."""
    request = make("one", gang="train/0")
    with pytest.raises(OSError, match="starts no gangs, but train/0 is one"):
        launcher.submit([request])
    assert sink.told(request.id) == []


def test_local_cluster(sink: RecordingSink, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an address there is a cluster for the launcher's time, which asks for a token and leaves no process."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")
    handler = signal.getsignal(signal.SIGTERM)
    fits, never = make("fits", *speak(["write_variable", "RAY_AUTH_MODE"])), make("never", resources=Resources(gpu=64))
    left = make("left", ["ignore_signals"], *speak())
    with RayLauncher.open(settings(), sink) as launcher:
        launcher.submit([fits, never])
        sink.wait_for_ends([fits.id])
        assert sink.text(fits.id, "stdout") == b'here\n"token"\n'
        text = "the local Ray cluster will never have a node with CPU: 1, GPU: 64"
        assert failure_of(sink, never) == Failure("system", text)
        launcher.submit([left])
        await_text(sink, left)
        processes = psutil.Process(launcher._process.pid).children(recursive=True)
        assert any("raylet" in process.name() for process in processes)
    assert failure_of(sink, left).kind == "killed"
    assert psutil.wait_procs(processes, timeout=20)[1] == []
    assert signal.getsignal(signal.SIGTERM) is handler
    assert "RAY_AUTH_TOKEN" not in os.environ


DRIVER = """
import sys, time
from mlp_hookspecs import LaunchRequest, wire
from mlp_hookspecs.testing import RecordingSink
from mlp_plugin_ray.launcher import RayLauncher
launcher = RayLauncher.open({"ray.address": sys.argv[1], "ray.max_pending": 1}, RecordingSink())
launcher.submit([wire.loads(LaunchRequest, sys.argv[2])])
time.sleep(3600)
"""


def test_killed_driver(cluster: TwoNodes, tmp_path: Path) -> None:
    """Nothing outlives a driver that was killed, not even a worker that ignores signals."""
    began = tmp_path / "began"
    request = wire.dumps(make("one", ["ignore_signals"], ["touch", str(began)], ["sleep"])).decode()
    with subprocess.Popen([sys.executable, "-c", DRIVER, cluster.address, request]) as driver:
        TestRay().await_file(began)
        worker = psutil.Process(int(began.read_text()))
        [bridge] = psutil.Process(driver.pid).children()
        driver.kill()
        assert has_gone(worker)
        assert has_gone(bridge)
