"""The digits on a Ray cluster of two nodes: a launcher that is not on the driver's host changes nothing for a flow."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from mlp_core.client import Flow

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
MLP = Path(sys.executable).with_name("mlp")

FLOW = """
import os, signal
from mlp_core import FlowSpec, current, retry, step
from mlp_plugin_ray import ray


class Fragile(FlowSpec):
    @step
    def start(self):
        self.items = [0, 1, 2]
        self.next(self.middle, foreach="items")

    @ray(resources={"second": 0.5})
    @retry(times=1, minutes_between_retries=0)
    @step
    def middle(self):
        print(f"item {self.input}, attempt {current.retry_count}", flush=True)
        self.raylet = os.environ["RAY_RAYLET_PID"]
        if (self.input, current.retry_count) == (1, 0):
            os.kill(os.getpid(), signal.SIGKILL)
        self.double = 2 * self.input
        self.next(self.join)

    @step
    def join(self, inputs):
        self.doubles = [branch.double for branch in inputs]
        self.raylets = {branch.raylet for branch in inputs}
        self.on_ray = "RAY_RAYLET_PID" in os.environ
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of the head of a cluster whose second node has the resource ``second``."""
    keeper = ROOT / "mlp_plugins/mlp-plugin-ray/tests/two_nodes.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")  # else Ray kills tasks when other processes fill the memory
        with subprocess.Popen([sys.executable, keeper], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            found = process.stdout.readline().decode().strip()
            process.stdin.write(b"add second\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"done\n"
            patch.setenv("RAY_ADDRESS", found)
            yield found


def raylets_at_work() -> set[str]:
    """Return the nodes, by their raylets, that run a worker of ours now."""
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        if "mlp_core.worker" in (process.info["cmdline"] or ()):
            try:
                found.add(process.environ().get("RAY_RAYLET_PID", ""))
            except psutil.Error:
                continue
    return found - {""}


@pytest.mark.usefixtures("address")
def test_digits_on_two_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example runs as it is, its tasks on both nodes, and reads back like any other run."""
    command = [MLP, "run", ROOT / "examples/digits.py", "--launcher", "ray", "--folds", "3", "--store", "store"]
    raylets = set()
    with subprocess.Popen(command, cwd=tmp_path) as run:
        while run.poll() is None:
            raylets |= raylets_at_work()
            time.sleep(0.5)
    assert run.returncode == 0
    assert len(raylets) == 2
    monkeypatch.setenv("MLP_STORE", str(tmp_path / "store"))
    found = Flow("Digits").latest_successful_run
    assert found is not None
    tasks = list(found["train"])
    assert len(tasks) == len(found["start"].task.data.candidates)
    assert found.data.accuracy > 0.96
    assert all(task.data.model in task.stdout for task in tasks)


@pytest.mark.usefixtures("address")
def test_decorated_step_is_retried_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decorated step runs on the node that it asks for, the others at home; a killed attempt is made again."""
    (tmp_path / "flow.py").write_text(FLOW)
    subprocess.run([MLP, "run", "flow.py", "--store", "store"], cwd=tmp_path, check=True)
    monkeypatch.setenv("MLP_STORE", str(tmp_path / "store"))
    run = Flow("Fragile").latest_successful_run
    assert run is not None
    assert (run["join"].task.data.doubles, run["join"].task.data.on_ray) == ([0, 2, 4], False)
    assert len(run["join"].task.data.raylets) == 1
    attempts = {task.data.double: task.stdout for task in run["middle"]}
    assert attempts == {
        0: "item 0, attempt 0\n",
        2: "item 1, attempt 1\n",
        4: "item 2, attempt 0\n",
    }


def test_unreachable_cluster(tmp_path: Path) -> None:
    """A cluster that does not answer ends the command with its address, before a task has started."""
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}
    command = [MLP, "run", ROOT / "examples/digits.py", "--launcher", "ray", "--store", "store"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode in (1, 2)
    assert "no Ray cluster answers at 127.0.0.1:1" in run.stderr
    assert "Traceback" not in run.stderr
    assert "started" not in run.stdout
