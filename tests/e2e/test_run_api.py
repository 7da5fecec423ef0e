"""Runs that are started from Python: in notebooks, functions, scripts and threads."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from mlp_core import FlowSpec, MlpError, Parameter, RunFailed, run, step
from mlp_core.errors import UsageError

if TYPE_CHECKING:
    from conftest import Isolation, Project

CELL = """
from mlp_core import FlowSpec, Parameter, current, step

class Thing:
    def __init__(self, x):
        self.x = x

def helper(x):
    return Thing(2 * x)

class Cell(FlowSpec):
    alpha = Parameter("alpha", default=1)

    @step
    def start(self):
        self.things = [helper(self.alpha), lambda: self_free]
        self.next(self.work, foreach="things")

    @step
    def work(self):
        self.kind = type(self.input).__name__
        self.nodes = [node.name for node in current.graph.steps]
        self.next(self.join)

    @step
    def join(self, inputs):
        self.kinds = [branch.kind for branch in inputs]
        self.first = inputs[0].input
        self.merge_artifacts(inputs, include=["nodes"])
        self.next(self.end)

    @step
    def end(self):
        self.is_same = isinstance(self.first, Thing), self.first.x

self_free = 5
"""

NOTEBOOK = """
import linecache, sys, types

# What IPython does with a cell: its source is known, but lies in no file.
source = CELL
linecache.cache["<cell 1>"] = (len(source), None, source.splitlines(True), "<cell 1>")
module = types.ModuleType("__main__")
sys.modules["__main__"] = module
exec(compile(source, "<cell 1>", "exec"), module.__dict__)

from mlp_core import run
for way in ("fork", "spawn", "inline"):
    done = run(module.Cell, alpha=21, isolation=way, quiet=True, tags=["nb"])
    print(way, done.data.kinds, done.data.is_same, done.data.nodes, done.successful, 'nb' in done.tags)
"""


def test_notebook(new_project: Project) -> None:
    """A class of a notebook's cell runs in every isolation, with the functions and classes that it uses."""
    (new_project.root / "book.py").write_text(NOTEBOOK.replace("CELL", f"{CELL!r}"))
    done = new_project.command("book.py")
    assert done.returncode == 0, done.stderr
    nodes = "['start', 'work', 'join', 'end']"
    assert done.stdout.splitlines() == [
        f"{way} ['Thing', 'function'] (True, 42) {nodes} True True" for way in ("fork", "spawn", "inline")
    ]


def test_source_that_nobody_has(new_project: Project) -> None:
    """A class without source is refused, saying what is missing."""
    code = f"exec({CELL!r})\nfrom mlp_core import run\nrun(Cell)\n"
    (new_project.root / "blind.py").write_text(code)
    done = new_project.command("blind.py")
    assert done.returncode != 0
    assert "FlowErrors" in done.stderr or "FlowError" in done.stderr
    assert "source" in done.stderr


@pytest.mark.parametrize("way", ["fork", "spawn", "inline"])
def test_class_in_a_function(new_project: Project, way: Isolation) -> None:
    """A class that a function defines runs, and may use the function's variables."""
    factor = 3

    class Local(FlowSpec):
        alpha = Parameter("alpha", default=1)

        @step
        def start(self) -> None:
            self.x = factor * self.alpha
            self.next(self.end)

        @step
        def end(self) -> None:
            self.y = self.x + 1

    done = run(Local, alpha=5, isolation=way, store=new_project.root / "store", quiet=True)
    assert done.data.y == 16


def test_failures_are_raised(new_project: Project) -> None:
    """A failed run is an exception that names the run; bad input is another, and leaves no run."""

    class Fails(FlowSpec):
        alpha = Parameter("alpha", default=1)

        @step(start=True, end=True)
        def only(self) -> None:
            raise ValueError("boom")

    store = new_project.root / "store"
    with pytest.raises(RunFailed, match=r"only/0 failed: ValueError: boom") as caught:
        run(Fails, store=store, quiet=True, isolation="inline")
    assert (store / "flows/Fails" / caught.value.run_id).is_dir()
    with pytest.raises(UsageError, match="alhpa"):
        run(Fails, alhpa=2, store=store, quiet=True)
    assert len(list((store / "flows/Fails").iterdir())) == 1


def test_run_in_a_thread(new_project: Project) -> None:
    """A run may be started in any thread, several at once; tasks are not lost with their number."""

    class Count(FlowSpec):
        alpha = Parameter("alpha", default=1)

        @step
        def start(self) -> None:
            self.items = list(range(4))
            self.next(self.work, foreach="items")

        @step
        def work(self) -> None:
            self.x = self.input * self.alpha
            self.next(self.join)

        @step
        def join(self, inputs) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001 # as users write it
            self.total = sum(branch.x for branch in inputs)
            self.next(self.end)

        @step
        def end(self) -> None:
            pass

    found: dict[int, object] = {}

    def start(alpha: int) -> None:
        try:
            found[alpha] = run(Count, alpha=alpha, store=new_project.root / "store", quiet=True).data.total
        except MlpError as error:
            found[alpha] = error

    threads = [threading.Thread(target=start, args=(alpha,)) for alpha in (1, 10, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {1: 6, 10: 60, 100: 600}


def test_script_without_a_guard(new_project: Project) -> None:
    """A script that starts its run wherever it is imported is told where the call belongs, by its first task."""
    code = """
    from mlp_core import run

    class Flow(FlowSpec):
        @step(start=True, end=True)
        def only(self):
            pass

    run(Flow, quiet=True, isolation="spawn")  # __main__
    """
    new_project.write(code, "loud.py")
    done = new_project.command("loud.py")
    assert done.returncode != 0
    assert 'put the call under: if __name__ == "__main__":' in done.stderr + new_project.read().log("only")


def test_run_inside_a_step(project: Project) -> None:
    """A step may run another flow, whose run is one of its own."""
    code = """
    from mlp_core import run

    class Child(FlowSpec):
        x = Parameter("x", default=0)

        @step
        def start(self):
            self.items = [1, 2]
            self.next(self.work, foreach="items")

        @step
        def work(self):
            self.y = self.input * self.x
            self.next(self.join)

        @step
        def join(self, inputs):
            self.total = sum(branch.y for branch in inputs)
            self.next(self.end)

        @step
        def end(self):
            pass

    class Flow(FlowSpec):
        @step(start=True, end=True)
        def only(self):
            child = run(Child, x=5, quiet=True)
            self.total = child.data.total
            self.mine = current.flow_name
    """
    for way in ("fork", "spawn", "inline"):
        ran = project.run(code, isolation=way, flags={"store": str(project.root / way)})
        assert ran.status == "succeeded", ran.log("only")
        assert (ran.value("total", "only"), ran.value("mine", "only")) == (15, "Flow")
