"""Reading a flow's graph from its source: steps, ways, nesting, joins; sound flows of every shape."""

from __future__ import annotations

import linecache
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlp_core.graph import ParsedFlow, parse_flow
from mlp_hookspecs.types.flow import FlowGraph, StepNode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PRELUDE = """
import functools
from types import SimpleNamespace
def step(function=None, *, start=False, end=False):
    if function is None:
        return lambda function: step(function, start=start, end=end)
    function.__mlp_step__ = {"start": start, "end": end}
    return function
def parallel(function):
    function.__mlp_options__ = (SimpleNamespace(name="parallel"),)
    return function
"""


def execute(source: str, file: str) -> dict[str, Any]:
    """Execute source as an import of the file would, and return what it defines."""
    namespace: dict[str, Any] = {"__name__": "flow"}
    for text, name in ((PRELUDE, "<prelude>"), (source, file)):
        exec(compile(text, name, "exec"), namespace)  # noqa: S102 # the tests' own text
    return namespace


def define(folder: Path, source: str, name: str = "Flow") -> Any:
    """Write a flow file, execute it, and return a class of it."""
    file = folder / "flow.py"
    file.write_text(textwrap.dedent(source))
    linecache.cache.pop(str(file), None)  # which would take a change within the clock's tick for none
    return execute(file.read_text(), str(file))[name]


def graph_of(folder: Path, source: str, name: str = "Flow") -> FlowGraph:
    """Return the graph of a flow file that has no mistakes."""
    parsed = parse_flow(define(folder, source, name))
    assert parsed.errors == ()
    return parsed.graph


def test_linear_flow(tmp_path: Path) -> None:
    """Steps come in the order of the source, with docstrings, files, and the lines of their def."""
    graph = graph_of(
        tmp_path,
        '''
        class Flow:
            """Trains.

                Carefully:
                    slowly.
            """

            @step
            def start(self):
                """Begin.

                Then go on.
                """
                self.x = 1
                self.next(self.end)

            @step
            def end(self): pass
        ''',
    )
    file = str(tmp_path / "flow.py")
    assert graph == FlowGraph(
        flow="Flow",
        start="start",
        end="end",
        steps=(
            StepNode("start", "linear", ("end",), doc="Begin.\n\nThen go on.", file=file, line=10),
            StepNode("end", "end", parents=("start",), file=file, line=19),
        ),
        doc="Trains.\n\nCarefully:\n    slowly.",
    )


def test_split_with_branches_of_different_lengths(tmp_path: Path) -> None:
    """Every branch of a split leads to its join, however long it is; the join still lies inside the split it closes."""
    graph = graph_of(
        tmp_path,
        """
        class Flow:
            @step
            def start(self): self.next(self.a, self.b, self.c)
            @step
            def a(self): self.next(self.join)
            @step
            def b(self): self.next(self.b2)
            @step
            def b2(self): self.next(self.b3)
            @step
            def b3(self): self.next(self.join)
            @step
            def c(self): self.next(self.join)
            @step
            def join(self, inputs): self.next(self.end)
            @step
            def end(self): pass
        """,
    )
    assert (graph["start"].kind, graph["start"].next, graph["start"].join) == ("split", ("a", "b", "c"), "join")
    assert graph["b2"].splits == ("start",)
    assert (graph["join"].kind, graph["join"].is_join, graph["join"].splits) == ("linear", True, ("start",))
    assert graph["join"].parents == ("a", "b3", "c")
    assert graph["end"].splits == ()


def test_nested_foreach_with_switch_inside(tmp_path: Path) -> None:
    """A foreach in a foreach in a split's branch; a switch in it whose cases meet again at a step that is no join."""
    graph = graph_of(
        tmp_path,
        """
        class Flow:
            @step
            def start(self): self.next(self.a, self.b)
            @step
            def a(self): self.next(self.each, foreach="rows")
            @step
            def each(self): self.next(self.cell, foreach='cells')
            @step
            def cell(self): self.next({"x": self.left, "y": self.right, "z": self.left}, condition="kind")
            @step
            def left(self): self.next(self.meet)
            @step
            def right(self): self.next(self.meet)
            @step
            def meet(self): self.next(self.cells_done)
            @step
            def cells_done(self, inputs): self.next(self.rows_done)
            @step
            def rows_done(self, inputs): self.next(self.join)
            @step
            def b(self): self.next(self.join)
            @step
            def join(self, inputs): self.next(self.end)
            @step
            def end(self): pass
        """,
    )
    assert (graph["a"].kind, graph["a"].foreach, graph["a"].join) == ("foreach", "rows", "rows_done")
    assert (graph["each"].foreach, graph["each"].join) == ("cells", "cells_done")
    cell = graph["cell"]
    assert (cell.kind, cell.condition, cell.next, cell.join) == ("switch", "kind", ("left", "right"), None)
    assert cell.cases == (("x", "left"), ("y", "right"), ("z", "left"))
    assert graph["meet"].splits == graph["cells_done"].splits == ("start", "a", "each")
    assert graph["meet"].parents == ("left", "right")
    assert graph["rows_done"].splits == ("start", "a")
    assert graph["join"].splits == ("start",)


def test_recursion(tmp_path: Path) -> None:
    """A switch may go to itself or back to an earlier step, also inside a foreach, and over a whole split."""
    graph = graph_of(
        tmp_path,
        """
        class Flow:
            @step
            def start(self): self.next(self.round)
            @step
            def round(self): self.next(self.a, self.b)
            @step
            def a(self): self.next(self.one, foreach="xs")
            @step
            def one(self): self.next({True: self.one, False: self.two, -1.5: self.a2}, condition="again")
            @step
            def a2(self): self.next(self.two)
            @step
            def two(self): self.next({1: self.one, 0: self.three}, condition="back")
            @step
            def three(self): self.next(self.a_done)
            @step
            def a_done(self, inputs): self.next(self.join)
            @step
            def b(self): self.next(self.join)
            @step
            def join(self, inputs): self.next(self.decide)
            @step
            def decide(self): self.next({"more": self.round, "done": self.end}, condition="how")
            @step
            def end(self): pass
        """,
    )
    assert graph["one"].cases == (("True", "one"), ("False", "two"), ("-1.5", "a2"))
    assert graph["one"].parents == ("a", "one", "two")
    assert graph["two"].cases == (("1", "one"), ("0", "three"))
    assert graph["two"].splits == ("round", "a")
    assert graph["round"].parents == ("start", "decide")
    assert graph["round"].join == "join"


def test_gang(tmp_path: Path) -> None:
    """num_parallel opens a gang of any size that the source can say."""
    graph = graph_of(
        tmp_path,
        """
        class Flow:
            @step
            def start(self): self.next(self.train, num_parallel=self.nodes * 2)
            @step
            @parallel
            def train(self): self.next(self.join)
            @step
            def join(self, inputs): self.next(self.end)
            @step
            def end(self): pass
        """,
    )
    assert (graph["start"].kind, graph["start"].num_parallel) == ("parallel", "self.nodes * 2")
    assert (graph["start"].join, graph["train"].splits) == ("join", ("start",))


@pytest.mark.parametrize("mark", ["@step", "@step()", "@step(start=True, end=True)", "@step(start=True)"])
def test_single_step(tmp_path: Path, mark: str) -> None:
    """A flow's only step is its start and its end, marked or not."""
    graph = graph_of(tmp_path, f"class Flow:\n    {mark}\n    def work(this): this.x = 1\n")
    assert (graph.start, graph.end, graph["work"].kind) == ("work", "work", "end")


def test_marked_ends(tmp_path: Path) -> None:
    """Marks make steps of any name the first and the last one, and self may have another name."""
    graph = graph_of(
        tmp_path,
        """
        class Flow:
            @step(end=True)
            def last(self): pass
            @step(start=True)
            def first(me, /): me.next(me.last)
        """,
    )
    assert (graph.start, graph.end) == ("first", "last")
    assert [node.name for node in graph.steps] == ["last", "first"]


def test_inheritance(tmp_path: Path) -> None:
    """Steps of base classes come first; an overridden one keeps its place and has the lines of what replaced it."""
    source = """
        class Base:
            @step
            def start(self): self.next(self.work)
            @step
            def work(self): self.next(self.end)
            @step
            def end(self): pass
            @step
            def old(self): self.next(self.end)
        class Mixin:
            @step
            def extra(self): self.next(self.end)
        class Flow(Mixin, Base):
            "Mine."
            old = None
            @step
            def more(self): self.next(self.extra)
            @step
            def work(self):
                "Other."
                self.next(self.more)
        class Late(Flow):
            pass
    """
    graph = graph_of(tmp_path, source)
    assert [node.name for node in graph.steps] == ["start", "work", "end", "extra", "more"]
    assert (graph["work"].next, graph["work"].doc, graph["work"].line) == (("more",), "Other.", 20)
    assert graph.doc == "Mine."
    late = graph_of(tmp_path, source, "Late")
    assert (late.flow, late.doc, late.steps) == ("Late", "", graph.steps)


def test_steps_of_other_files(tmp_path: Path) -> None:
    """Base classes may stand in another file: each step names its own."""
    base = tmp_path / "base"
    base.mkdir()
    parent = define(base, "class Base:\n    @step\n    def start(self): self.next(self.end)\n", "Base")
    child = define(tmp_path, "class Flow:\n    @step\n    def end(self): pass\n")
    parsed = parse_flow(type("Both", (child, parent), {}))
    assert parsed.errors == ()
    assert [node.file for node in parsed.graph.steps] == [str(base / "flow.py"), str(tmp_path / "flow.py")]


def test_decorators_between(tmp_path: Path) -> None:
    """Other decorators may stand above and below @step, keep the function's face or replace it: the body is read."""
    graph = graph_of(
        tmp_path,
        """
        def polite(function):
            @functools.wraps(function)
            def inner(self, *args):
                return function(self, *args)
            return inner
        def rude(function):
            def inner(self, *args):
                return function(self, *args)
            return inner
        def configured(**options):
            return polite
        class Callable:
            def __init__(self, function): self.function = function
            def __call__(self, *args): return self.function(*args)
        class Flow:
            @polite
            @step
            @configured(
                a=1,
            )
            def start(self):
                "Polite."
                self.next(self.a, self.b)
            @step
            @rude
            def a(self):
                "Rude."
                self.next(self.join)
            @step
            @rude
            @polite
            def b(self): self.next(self.join)
            @step
            @Callable
            def join(self, inputs): self.next(self.end)
            @step
            @rude
            def end(self): pass
        """,
    )
    assert [(node.name, node.line, node.doc) for node in graph.steps[:2]] == [
        ("start", 22, "Polite."),
        ("a", 27, "Rude."),
    ]
    assert [node.is_join for node in graph.steps] == [False, False, False, True, False]


def test_functions_within_a_step(tmp_path: Path) -> None:
    """What a step's nested classes and functions do with a self of their own is theirs."""
    graph = graph_of(
        tmp_path,
        """
        class Flow:
            @step
            def start(self):
                class Net:
                    def __init__(self): self.end = iter([])
                    async def one(self): return self.next(1)
                    pick = lambda self: self.next
                self.rows = [row.next() for row in ()]
                def inner(): return self.rows
                self.next(self.end)
            @step
            def end(self): pass
        """,
    )
    assert graph["start"].next == ("end",)


def test_local_and_conditional_definitions(tmp_path: Path) -> None:
    """A class may stand in a function, its steps under conditions; of two classes of one name the right one is read."""
    source = """
    def make(deep):
        if not deep:
            class Flow:
                @step
                def start(self): self.next(self.end)
                @step
                def end(self): pass
        else:
            class Flow:
                if deep:
                    @step
                    def start(self): self.next(self.middle)
                else:
                    @step
                    def start(self): self.next(self.end)
                @step
                def middle(self): self.next(self.end)
                @step
                def end(self): pass
        return Flow
    """
    make: Callable[[bool], type] = define(tmp_path, source, "make")
    flat, deep = (parse_flow(make(deep)) for deep in (False, True))
    assert flat.errors == deep.errors == ()
    assert [len(parsed.graph.steps) for parsed in (flat, deep)] == [2, 3]


def test_cell_of_a_notebook() -> None:
    """A class without a file is read where its source is in linecache, as notebooks put it there."""
    source = "class Flow:\n    @step\n    def start(self): self.next(self.end)\n    @step\n    def end(self): pass\n"
    linecache.cache["<cell-7>"] = (len(source), None, source.splitlines(keepends=True), "<cell-7>")
    parsed = parse_flow(execute(source, "<cell-7>")["Flow"])
    assert parsed.errors == ()
    assert (parsed.graph["end"].file, parsed.graph["end"].line) == ("<cell-7>", 5)


def test_script_that_is_run(tmp_path: Path) -> None:
    """A script reads a class of its own; invalid escapes in it do not matter, even where warnings raise."""
    script = tmp_path / "script.py"
    body = "class Flow:\n    @step\n    def start(self):\n        '\\d'\n        self.next(self.end)\n"
    body += "    @step\n    def end(self): pass\n"
    check = "from mlp_core.graph import parse_flow\nimport warnings\nwarnings.simplefilter('error')\n"
    script.write_text(f"{PRELUDE}{body}{check}p = parse_flow(Flow)\nprint(p.errors, p.graph.steps[0].line)\n")
    done = subprocess.run([sys.executable, "-W", "ignore", script], check=True, capture_output=True, text=True)
    assert done.stdout == "() 14\n"


def test_graph_is_deterministic(tmp_path: Path) -> None:
    """Reading a class twice gives equal results."""
    flow = define(tmp_path, "class Flow:\n    @step\n    def start(self): self.next(self.q, self.w)\n")
    one, two = parse_flow(flow), parse_flow(flow)
    assert one.graph == two.graph
    assert [str(error) for error in one.errors] == [str(error) for error in two.errors]


# ------------------------------------------------------------------------------------------------------- random flows


@attrs.define
class Plan:
    """A step of a random flow, and what its node has to say."""

    name: str
    arguments: str = ""
    next: tuple[str, ...] = ()
    kind: str = "linear"
    is_join: bool = False
    is_gang: bool = False
    splits: tuple[str, ...] = ()
    join: str | None = None

    def render(self) -> str:
        """Write the step, with lines that mean nothing to the graph."""
        marks = "    @step\n" + ("    @parallel\n" if self.is_gang else "")
        inputs = ", inputs" if self.is_join else ""
        call = f"self.next({self.arguments})" if self.arguments else "pass"
        body = f"        self.x = [self.y for y in self.next_up]\n        {call}\n"
        return f"{marks}    def {self.name}(self{inputs}):\n{body}"


@attrs.define
class Flows:
    """Draws a flow of nested blocks, from its end to its start."""

    draw: Callable[[st.SearchStrategy[Any]], Any]
    plans: dict[str, Plan] = attrs.field(factory=dict)

    def add(self, kind: str, splits: tuple[str, ...], **fields: Any) -> Plan:
        """Add a step with a new name."""
        plan = Plan(f"s{len(self.plans)}", kind=kind, splits=splits, **fields)
        self.plans[plan.name] = plan
        return plan

    def go(self, plan: Plan, *targets: str, keyword: str = "") -> str:
        """Let a step go on, and return its name."""
        plan.next = targets
        plan.arguments = ", ".join(f"self.{target}" for target in targets) + keyword
        return plan.name

    def switch(self, plan: Plan, *targets: str) -> str:
        """Let a step choose, and return its name."""
        plan.next = tuple(dict.fromkeys(targets))
        cases = ", ".join(f"{index!r}: self.{target}" for index, target in enumerate(targets))
        plan.arguments = f"{{{cases}}}, condition='c'"
        return plan.name

    def block(self, depth: int, splits: tuple[str, ...], after: str) -> str:
        """Draw a block that goes on to a step, and return the block's first step, which is no join."""
        kinds = ["step", "chain", "split", "foreach", "gang", "switch", "loop"] if depth else ["step"]
        kind = self.draw(st.sampled_from(kinds))
        if kind == "chain":
            return self.block(depth - 1, splits, self.block(depth - 1, splits, after))
        if kind in ("split", "foreach", "gang"):
            return self.joined(kind, depth, splits, after)
        if kind == "switch":
            # A switch goes to no join, so where one follows the cases meet before it.
            meet = self.plain(splits, after) if self.is_join(after) or self.draw(st.booleans()) else after
            plan = self.add("switch", splits)
            cases = [self.block(depth - 1, splits, meet) for _ in range(self.draw(st.integers(1, 3)))]
            return self.switch(plan, *cases, meet)
        if kind == "loop":
            done = self.plain(splits, after) if self.is_join(after) else after
            plan = self.add("switch", splits)
            first = self.block(depth - 1, splits, plan.name) if self.draw(st.booleans()) else plan.name
            self.switch(plan, first, done)
            return first
        return self.plain(splits, after)

    def plain(self, splits: tuple[str, ...], after: str) -> str:
        """Add a step that goes on to one."""
        return self.go(self.add("linear", splits), after)

    def is_join(self, name: str) -> bool:
        """Tell whether a step takes inputs."""
        return name in self.plans and self.plans[name].is_join

    def joined(self, kind: str, depth: int, splits: tuple[str, ...], after: str) -> str:
        """Draw a split, foreach or gang, and its join."""
        opener = self.add({"gang": "parallel"}.get(kind, kind), splits)
        inside = (*splits, opener.name)
        join = self.add("linear", inside, is_join=True)
        self.go(join, after)
        opener.join = join.name
        if kind == "gang":
            return self.go(
                opener, self.go(self.add("linear", inside, is_gang=True), join.name), keyword=", num_parallel=3"
            )
        count = 1 if kind == "foreach" else self.draw(st.integers(2, 3))
        branches = [self.block(depth - 1, inside, join.name) for _ in range(count)]
        return self.go(opener, *branches, keyword=", foreach='xs'" if kind == "foreach" else "")


@st.composite
def plans(draw: Callable[[st.SearchStrategy[Any]], Any]) -> list[Plan]:
    """Draw the steps of a sound flow, in any order."""
    flows = Flows(draw)
    flows.plans["end"] = Plan("end", kind="end")
    first = flows.block(draw(st.integers(0, 4)), (), "end")
    flows.plans["start"] = Plan("start", f"self.{first}", (first,))
    return draw(st.permutations(list(flows.plans.values())))


def parse(folder: Path, steps: list[Plan]) -> ParsedFlow:
    """Parse a flow of these steps."""
    return parse_flow(define(folder, "class Flow:\n" + "".join(plan.render() for plan in steps)))


def simulate(graph: FlowGraph, random: Any) -> None:
    """Run a graph as a driver would, with any choices, and fail where it gets stuck or joins too early or too late."""
    distance = {graph.end: 0}
    for _ in graph.steps:
        for node in graph.steps:
            known = [distance[name] for name in node.next if name in distance]
            if known and node.name not in distance:
                distance[node.name] = 1 + min(known)
    waiting: dict[int, tuple[str, int]] = {}
    sizes: list[int] = []
    ready: list[tuple[str, tuple[tuple[str, int], ...]]] = [(graph.start, ())]
    ended = tasks = 0
    while ready:
        name, frames = ready.pop(random.randrange(len(ready)))
        node = graph[name]
        assert tuple(opener for opener, _ in frames) == node.splits
        if node.is_join:
            _, instance = frames[-1]
            join, arrived = waiting.pop(instance, (name, 0))
            assert join == name == graph[frames[-1][0]].join
            if arrived + 1 < sizes[instance]:
                waiting[instance] = (name, arrived + 1)
                continue
            frames = frames[:-1]
        tasks += 1
        if node.kind in ("split", "foreach", "parallel"):
            targets = node.next * (1 if node.kind == "split" else random.randint(1, 2))
            frames = (*frames, (name, len(sizes)))
            sizes.append(len(targets))
            ready += [(target, frames) for target in targets]
        elif node.kind == "switch":
            chosen = random.choice(node.next) if tasks < 100 else min(node.next, key=lambda n: distance.get(n, 1000))
            ready.append((chosen, frames))
        elif node.kind == "linear":
            ready.append((node.next[0], frames))
        else:
            assert not frames
            ended += 1
    assert (ended, waiting) == (1, {})


RANDOM = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@RANDOM
@given(steps=plans(), random=st.randoms(use_true_random=False))
def test_sound_flows_are_understood(tmp_path: Path, steps: list[Plan], random: Any) -> None:
    """Any nesting of splits, foreaches, gangs, switches and loops is accepted, and every node says what was meant."""
    parsed = parse(tmp_path, steps)
    assert parsed.errors == ()
    assert [node.name for node in parsed.graph.steps] == [plan.name for plan in steps]
    for node, plan in zip(parsed.graph.steps, steps, strict=True):
        assert (node.kind, node.next, node.is_join) == (plan.kind, plan.next, plan.is_join)
        assert (node.splits, node.join) == (plan.splits, plan.join)
        assert node.parents == tuple(other.name for other in steps if plan.name in other.next)
    simulate(parsed.graph, random)


def breaks(steps: list[Plan]) -> Iterator[list[Plan]]:
    """Yield flows that can't be sound, each one change away from a sound one."""
    for index, plan in enumerate(steps):
        rest = steps[:index] + steps[index + 1 :]
        if plan.arguments:
            yield [*rest, attrs.evolve(plan, arguments="")]
            yield [*rest, attrs.evolve(plan, arguments=plan.arguments.replace(f"self.{plan.next[0]}", "self.nowhere"))]
            yield [*rest, attrs.evolve(plan, arguments=f"self.start, {plan.arguments}")]
            yield [*rest, attrs.evolve(plan, arguments=f"{plan.arguments}, foreech='xs'")]
        else:
            yield [*rest, attrs.evolve(plan, arguments="self.start")]
        yield rest
        yield [*rest, attrs.evolve(plan, is_join=not plan.is_join)]
        yield [*steps, plan]
        yield [*steps, Plan("lonely", "self.end")]


@RANDOM
@given(steps=plans(), data=st.data())
def test_broken_flows_are_refused(tmp_path: Path, steps: list[Plan], data: st.DataObject) -> None:
    """A flow with a step missing, renamed, unreached, without next, or with wrong arguments has errors with lines."""
    parsed = parse(tmp_path, data.draw(st.sampled_from(list(breaks(steps)))))
    assert parsed.errors
    for error in parsed.errors:
        assert error.file == str(tmp_path / "flow.py")
        assert error.line > 0
        assert error.message
        assert error.hint


@RANDOM
@given(steps=plans(), data=st.data(), random=st.randoms(use_true_random=False))
def test_what_is_accepted_can_run(tmp_path: Path, steps: list[Plan], data: st.DataObject, random: Any) -> None:
    """However the ways of a flow are rewired: what is accepted runs to its end with every join complete."""
    names = [plan.name for plan in steps]
    changed = {plan.name: plan for plan in steps}
    for _ in range(data.draw(st.integers(1, 2))):
        plan = changed[data.draw(st.sampled_from(names))]
        targets = [plan.next[0]] if plan.next else []
        targets.append(data.draw(st.sampled_from(names)))
        both = ", ".join(f"self.{target}" for target in targets)
        ways = [
            plan.arguments.replace(f"self.{targets[0]}", f"self.{targets[-1]}"),
            f"self.{targets[-1]}",
            both,
            f"{{'x': self.{targets[0]}, 'y': self.{[*targets, 'end'][1]}}}, condition='c'",
            f"self.{targets[0]}, foreach='xs'",
        ]
        flip = data.draw(st.sampled_from([False, False, False, True]))
        changed[plan.name] = attrs.evolve(plan, arguments=data.draw(st.sampled_from(ways)), is_join=flip ^ plan.is_join)
    parsed = parse(tmp_path, list(changed.values()))
    if not parsed.errors:
        simulate(parsed.graph, random)
