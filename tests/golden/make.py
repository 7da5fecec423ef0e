"""Make a golden store of the format that this version writes: ``python tests/golden/make.py FOLDER``.

A golden store is kept for every format that was ever released, with what its artifacts are, so that later versions can
be held to reading it. Run this in an empty folder of a neutral name, since a run records where it ran, and its Python.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

FLOW = '''
import os
import time

from mlp_core import FlowSpec, Parameter, current, step


class Golden(FlowSpec):
    """Leaves a bit of everything that a store can hold."""

    count = Parameter("count", type=int, default=3)
    mode = Parameter("mode", default="")
    version = "constant"

    @step
    def start(self):
        self.items = list(range(self.count))
        self.large = bytes(1000)
        self.next(self.work, foreach="items")

    @step
    def work(self):
        print("working on", self.input)
        self.square = self.input**2
        self.text = "ü" * (50 + self.input)
        self.next(self.join)

    @step
    def join(self, inputs):
        if self.mode == "fail":
            raise ValueError("as asked")
        if self.mode == "hang":
            time.sleep(600)
        self.total = sum(each.square for each in inputs)
        self.merge_artifacts(inputs, include=["large"])
        self.next(self.end)

    @step
    def end(self):
        self.table = {"run": current.flow_name, "values": [1.5, None, "x"]}


if __name__ == "__main__":
    Golden()
'''


MLP = [sys.executable, "-c", "import sys; from mlp_core.cli import main; sys.exit(main())"]


def mlp(*arguments: str) -> str:
    """Run a command, and return what it printed."""
    command = [*MLP, *arguments]
    return subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True).stdout


def make(folder: Path) -> None:
    """Make the runs and write down what they hold."""
    os.chdir(folder)
    Path("golden.py").write_text(FLOW)
    Path("mlp.toml").write_text('username = "golden"\n[run]\ninline_bytes = 200\n[local]\nisolation = "spawn"\n')
    mlp("run", "golden.py", "--tag", "first", "--run-id-file", "first")
    first = Path("first").read_text()
    mlp("tag", "add", f"Golden/{first}", "later")
    mlp("run", "golden.py", "--mode", "fail", "--count", "2", "--run-id-file", "failed")
    mlp("resume", "golden.py", "--origin-run-id", Path("failed").read_text(), "--run-id-file", "resumed")
    driver = subprocess.Popen([*MLP, "run", "golden.py", "--mode", "hang", "--run-id-file", "lost"])
    while not (Path("lost").exists() and "join" in mlp("show", f"Golden/{Path('lost').read_text()}")):
        time.sleep(0.5)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    mlp("deploy", "golden.py")
    script = """
import json, sys
from mlp_core import Flow, namespace
namespace(None)
runs = {}
for run in Flow("Golden"):
    tasks = {}
    for step in run:
        for task in step:
            values = {artifact.id: repr(artifact.data) for artifact in task}
            tasks[task.pathspec] = [task.finished, task.successful, values, task.stdout]
    runs[run.id] = [run.successful, sorted(run.user_tags), tasks]
json.dump(runs, sys.stdout, indent=1, sort_keys=True)
"""
    told = subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True).stdout
    Path("expected.json").write_text(told + "\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
