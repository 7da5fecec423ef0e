"""The scheduler's decisions: which tasks a graph amounts to, and in which order they can be."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from mlp_core.scheduler import ReadyTask, Scheduler
from mlp_hookspecs import ArtifactRef, FlowGraph, StepNode, TaskKey, Transition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# --------------------------------------------------------------------------------- flows as trees, not as graphs


@attrs.frozen
class Step:
    """One step."""


@attrs.frozen
class Split:
    """A static split, its branches and its join."""

    branches: tuple[tuple[Element, ...], ...]


@attrs.frozen
class Foreach:
    """A foreach, its body and its join."""

    body: tuple[Element, ...]


@attrs.frozen
class Switch:
    """A choice between branches."""

    branches: tuple[tuple[Element, ...], ...]


@attrs.frozen
class Loop:
    """A body that a switch repeats; without a body the switch repeats itself."""

    body: tuple[Element, ...]


Element = Step | Split | Foreach | Switch | Loop


def blocks(element: st.SearchStrategy[Element]) -> st.SearchStrategy[tuple[Element, ...]]:
    """Return sequences of elements that follow each other."""
    return st.lists(element, min_size=1, max_size=3).map(tuple)


ELEMENTS: st.SearchStrategy[Element] = st.recursive(
    st.just(Step()),
    lambda inner: st.one_of(
        st.lists(blocks(inner), min_size=2, max_size=3).map(lambda branches: Split(tuple(branches))),
        blocks(inner).map(Foreach),
        st.lists(blocks(inner), min_size=2, max_size=3).map(lambda branches: Switch(tuple(branches))),
        st.lists(inner, max_size=2).map(lambda body: Loop(tuple(body))),
    ),
    max_leaves=8,
)


class Flow:
    """A flow in both forms: the graph that the scheduler gets, and the tree that the oracle walks.

    How many items a foreach has, where a switch goes and how often a loop turns follows from the seed and the task.
    """

    def __init__(self, body: Sequence[Element], seed: int) -> None:
        """Name the steps and draw the graph."""
        self.seed = seed
        self.names: dict[tuple[int, ...], str] = {}
        self._nodes: list[StepNode] = []
        self._body = tuple(body)
        entry = self._draw_block(self._body, "end", (0,))
        self._nodes.append(StepNode("start", "linear", (entry,)))
        self._nodes.append(StepNode("end", "end"))
        self.graph = FlowGraph("F", "start", "end", tuple(self._nodes))

    # ------------------------------------------------------------------------------- decisions

    def _random(self, key: TaskKey) -> random.Random:
        return random.Random(f"{self.seed} {key.path}")  # noqa: S311 # a test's choice

    def count(self, key: TaskKey) -> int:
        """Return how many items a foreach task has."""
        return self._random(key).randrange(4)

    def chosen(self, key: TaskKey, branches: int) -> int:
        """Return the branch that a switch task takes."""
        return self._random(key).randrange(branches)

    def repeats(self, key: TaskKey) -> bool:
        """Tell whether a loop turns once more."""
        return key.loop < 3 and self._random(key).random() < 0.6

    def transition(self, task: ReadyTask) -> Transition:
        """Return what the worker of a task would answer."""
        node = self.graph[task.key.step]
        if node.kind == "foreach":
            return Transition(node.next, self.count(task.key))
        if node.kind == "switch":
            turns_back = node.cases[0][0] == "again"
            if turns_back:
                return Transition((node.next[0 if self.repeats(task.key) else 1],))
            return Transition((node.cases[self.chosen(task.key, len(node.cases))][1],))
        return Transition(node.next)

    # ------------------------------------------------------------------------------- drawing the graph

    def _name(self, place: tuple[int, ...], kind: str) -> str:
        name = f"{kind}_{'_'.join(map(str, place))}"
        self.names[place] = name
        return name

    def _draw_block(self, block: Sequence[Element], follow: str, place: tuple[int, ...]) -> str:
        """Add the steps of a sequence that goes on at a step, and return its first step's name."""
        for number in reversed(range(len(block))):
            follow = self._draw(block[number], follow, (*place, number))
        return follow

    def _draw(self, element: Element, follow: str, place: tuple[int, ...]) -> str:
        match element:
            case Step():
                name = self._name(place, "step")
                self._nodes.append(StepNode(name, "linear", (follow,)))
            case Split(branches):
                name, join = self._name(place, "split"), self._name((*place, -1), "join")
                entries = tuple(self._draw_block(b, join, (*place, n)) for n, b in enumerate(branches))
                self._nodes.append(StepNode(name, "split", entries, join=join))
                self._nodes.append(StepNode(join, "linear", (follow,), is_join=True))
            case Foreach(body):
                name, join = self._name(place, "foreach"), self._name((*place, -1), "join")
                entry = self._draw_block(body, join, (*place, 0))
                self._nodes.append(StepNode(name, "foreach", (entry,), foreach="xs", join=join))
                self._nodes.append(StepNode(join, "linear", (follow,), is_join=True))
            case Switch(branches):
                name = self._name(place, "switch")
                entries = tuple(self._draw_block(b, follow, (*place, n)) for n, b in enumerate(branches))
                cases = tuple((str(n), entry) for n, entry in enumerate(entries))
                self._nodes.append(StepNode(name, "switch", entries, condition="c", cases=cases))
            case Loop(body):
                name = self._name((*place, -1), "loop")
                entry = self._draw_block(body, name, (*place, 0))
                cases = (("again", entry), ("on", follow))
                self._nodes.append(StepNode(name, "switch", (entry, follow), condition="c", cases=cases))
                return entry
        return name

    # ------------------------------------------------------------------------------- the oracle

    def expected(self) -> dict[TaskKey, tuple[TaskKey, ...]]:
        """Return every task of a run with its parents, by walking the tree."""
        return Oracle(self).walk(self._body)


class Oracle:
    """Walks a flow's tree as a reader would: depth first, one branch after the other."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self.tasks: dict[TaskKey, tuple[TaskKey, ...]] = {}
        self._seen: dict[tuple[str, tuple[int, ...]], int] = {}

    def walk(self, body: Sequence[Element]) -> dict[TaskKey, tuple[TaskKey, ...]]:
        """Return the tasks."""
        start = self._visit("start", (), ())
        self._visit("end", (), self._block(body, (0,), (), (start,)))
        return self.tasks

    def _visit(self, name: str, index: tuple[int, ...], parents: tuple[TaskKey, ...]) -> TaskKey:
        turn = self._seen.get((name, index), 0)
        self._seen[name, index] = turn + 1
        key = TaskKey(name, index, turn)
        assert key not in self.tasks
        self.tasks[key] = parents
        return key

    def _block(
        self, block: Sequence[Element], place: tuple[int, ...], index: tuple[int, ...], parents: tuple[TaskKey, ...]
    ) -> tuple[TaskKey, ...]:
        for number, element in enumerate(block):
            parents = (self._element(element, (*place, number), index, parents),)
        return parents

    def _element(
        self, element: Element, place: tuple[int, ...], index: tuple[int, ...], parents: tuple[TaskKey, ...]
    ) -> TaskKey:
        """Walk one element and return the task that it ends with."""
        names = self._flow.names
        match element:
            case Step():
                return self._visit(names[place], index, parents)
            case Split(branches):
                split = self._visit(names[place], index, parents)
                ends = [self._block(b, (*place, n), index, (split,)) for n, b in enumerate(branches)]
                return self._visit(names[*place, -1], index, tuple(end for (end,) in ends))
            case Foreach(body):
                split = self._visit(names[place], index, parents)
                ends = [
                    self._block(body, (*place, 0), (*index, item), (split,)) for item in range(self._flow.count(split))
                ]
                return self._visit(names[*place, -1], index, tuple(end for (end,) in ends))
            case Switch(branches):
                switch = self._visit(names[place], index, parents)
                branch = self._flow.chosen(switch, len(branches))
                (end,) = self._block(branches[branch], (*place, branch), index, (switch,))
                return end
            case Loop(body):
                while True:
                    parents = self._block(body, (*place, 0), index, parents)
                    switch = self._visit(names[*place, -1], index, parents)
                    if not self._flow.repeats(switch):
                        return switch
                    parents = (switch,)


# -------------------------------------------------------------------------------------------------- simulation


def simulate(
    graph: FlowGraph, answer: Callable[[ReadyTask], Transition], pick: Callable[[int], int]
) -> Iterator[ReadyTask]:
    """Run a graph: of the tasks that are ready, one finishes after the other in the order of `pick`."""
    scheduler = Scheduler(graph)
    ready = [scheduler.begin()]
    while ready:
        task = ready.pop(pick(len(ready)))
        yield task
        ready += scheduler.finished(task, answer(task))
    assert scheduler.waiting == ()


def first_to_last(_count: int) -> int:
    """Pick the oldest."""
    return 0


@settings(max_examples=300, deadline=None)
@given(blocks(ELEMENTS), st.integers(0, 2**32), st.randoms(use_true_random=False))
def test_any_order_of_completion_gives_the_same_tasks(body: Sequence[Element], seed: int, order: random.Random) -> None:
    """Whatever finishes first, a run has the tasks that a walk through the flow finds, each once, with its parents."""
    flow = Flow(body, seed)
    found: dict[TaskKey, tuple[TaskKey, ...]] = {}
    last = None
    for task in simulate(flow.graph, flow.transition, order.randrange):
        assert task.key not in found
        assert all(parent in found for parent in task.parents)
        assert tuple(frame.index for frame in task.frames) == task.key.index
        found[task.key] = task.parents
        last = task.key
    assert found == flow.expected()
    assert last == TaskKey("end")


@settings(max_examples=100, deadline=None)
@given(blocks(ELEMENTS), st.integers(0, 2**32))
def test_only_joins_of_nothing_have_no_parents(body: Sequence[Element], seed: int) -> None:
    """A task without parents is the start, or the join of a foreach without items, which names the foreach's task."""
    flow = Flow(body, seed)
    for task in simulate(flow.graph, flow.transition, first_to_last):
        if task.parents:
            assert task.split is None
        elif task.key.step != "start":
            assert task.split is not None
            assert flow.graph[task.split.step].join == task.key.step
            assert flow.count(task.split) == 0
            assert task.key.index == task.split.index


# ------------------------------------------------------------------------------------------------ single cases


def flow_of(*nodes: StepNode) -> FlowGraph:
    """Return a graph."""
    return FlowGraph("F", "start", "end", nodes)


def paths(tasks: Sequence[ReadyTask]) -> list[str]:
    """Return the tasks' paths."""
    return [task.key.path for task in tasks]


NESTED = flow_of(
    StepNode("start", "foreach", ("inner",), foreach="xs", join="outer_join"),
    StepNode("inner", "foreach", ("work",), foreach="ys", join="inner_join"),
    StepNode("work", "linear", ("inner_join",)),
    StepNode("inner_join", "linear", ("outer_join",), is_join=True),
    StepNode("outer_join", "linear", ("end",), is_join=True),
    StepNode("end", "end"),
)


def test_nested_foreach_counts_positions_outermost_first() -> None:
    """A task inside two foreach has both positions in its key, and both frames with their counts."""
    tasks = list(simulate(NESTED, lambda task: Transition(NESTED[task.key.step].next, 2), first_to_last))
    work = [task for task in tasks if task.key.step == "work"]
    assert paths(work) == ["work/0-0", "work/0-1", "work/1-0", "work/1-1"]
    assert [(frame.variable, frame.index, frame.count) for frame in work[1].frames] == [("xs", 0, 2), ("ys", 1, 2)]
    joins = {task.key.path: [parent.path for parent in task.parents] for task in tasks if "join" in task.key.step}
    assert joins == {
        "inner_join/0": ["work/0-0", "work/0-1"],
        "inner_join/1": ["work/1-0", "work/1-1"],
        "outer_join/0": ["inner_join/0", "inner_join/1"],
    }


def test_join_has_its_parents_in_the_order_of_the_split() -> None:
    """Branches that finish in reverse still reach the join in the order of the items, and only once all are there."""
    graph = flow_of(
        StepNode("start", "foreach", ("work",), foreach="xs", join="join"),
        StepNode("work", "linear", ("join",)),
        StepNode("join", "linear", ("end",), is_join=True),
        StepNode("end", "end"),
    )
    scheduler = Scheduler(graph)
    work = scheduler.finished(scheduler.begin(), Transition(("work",), 3))
    assert scheduler.finished(work[2], Transition(("join",))) == []
    assert scheduler.waiting == ("join",)
    assert scheduler.finished(work[0], Transition(("join",))) == []
    (join,) = scheduler.finished(work[1], Transition(("join",)))
    assert [parent.path for parent in join.parents] == ["work/0", "work/1", "work/2"]
    assert join.frames == ()
    assert scheduler.waiting == ()


def test_empty_foreach_goes_to_its_join() -> None:
    """A foreach without items is followed by its join, without parents, inside the foreach around both."""
    first = Scheduler(NESTED)
    (outer, _) = first.finished(first.begin(), Transition(("inner",), 2))
    (join,) = first.finished(outer, Transition(("work",), 0))
    assert (join.key.path, join.parents, join.split) == ("inner_join/0", (), outer.key)
    assert join.frames == outer.frames
    assert join.splits == outer.splits


def test_switch_goes_one_way() -> None:
    """Only the chosen step of a switch is ready, and what both ways lead to is no join."""
    graph = flow_of(
        StepNode("start", "switch", ("a", "b"), condition="c", cases=(("x", "a"), ("y", "b"))),
        StepNode("a", "linear", ("end",)),
        StepNode("b", "linear", ("end",)),
        StepNode("end", "end"),
    )
    assert paths(list(simulate(graph, lambda t: Transition(graph[t.key.step].next[-1:]), first_to_last))) == [
        "start/0",
        "b/0",
        "end/0",
    ]


def test_recursion_counts_its_rounds() -> None:
    """A step that a switch repeats has the same key but for the round, in each foreach item for itself."""
    graph = flow_of(
        StepNode("start", "foreach", ("loop",), foreach="xs", join="join"),
        StepNode("loop", "switch", ("loop", "join"), condition="c", cases=(("again", "loop"), ("done", "join"))),
        StepNode("join", "linear", ("end",), is_join=True),
        StepNode("end", "end"),
    )

    def answer(task: ReadyTask) -> Transition:
        if task.key.step == "start":
            return Transition(("loop",), 2)
        if task.key.step == "loop":
            # The first item turns twice, the second once.
            return Transition(("loop" if task.key.loop < 1 - task.key.index[0] else "join",))
        return Transition(graph[task.key.step].next)

    tasks = list(simulate(graph, answer, first_to_last))
    assert paths(tasks) == ["start/0", "loop/0", "loop/1", "loop/0~1", "join/0", "end/0"]
    assert [parent.path for parent in tasks[4].parents] == ["loop/0~1", "loop/1"]


def test_items_travel_in_frames_where_they_are_small() -> None:
    """A frame has the item where the transition has it, and otherwise the sequence."""
    from mlp_hookspecs import ArtifactRef

    item, values = ArtifactRef("json", "sha256-1", 1, "int", b"1"), ArtifactRef("pickle", "sha256-2", 9, "list")
    for items in ((item, item), ()):
        scheduler = Scheduler(NESTED)
        tasks = scheduler.finished(scheduler.begin(), Transition(("inner",), 2, values, items))
        expected = (item, None) if items else (None, values)
        assert [(task.frames[0].item, task.frames[0].values) for task in tasks] == [expected, expected]


def test_single_step_flow() -> None:
    """A flow whose start is its end has one task."""
    graph = FlowGraph("F", "only", "only", (StepNode("only", "end"),))
    assert paths(list(simulate(graph, lambda _task: Transition(), first_to_last))) == ["only/0"]


@given(st.integers(1, 40), st.data())
def test_items_in_chunks(count: int, data: st.DataObject) -> None:
    """However many chunks a sequence is cut into, each task gets the one with its own item."""
    length = -(-count // data.draw(st.integers(1, count)))
    numbers = [list(range(start, min(start + length, count))) for start in range(0, count, length)]
    chunks = tuple(ArtifactRef("json", f"sha256-{number:064}", 1, "list") for number in range(len(numbers)))
    graph = FlowGraph(
        "F",
        "start",
        "end",
        (
            StepNode("start", "foreach", ("work",), foreach="xs", join="end"),
            StepNode("work", "linear", ("end",), splits=("start",)),
            StepNode("end", "end", is_join=True, splits=("start",)),
        ),
    )
    scheduler = Scheduler(graph)
    tasks = scheduler.finished(scheduler.begin(), Transition(("work",), count, None, (), chunks))
    for position, task in enumerate(tasks):
        (frame,) = task.frames
        assert (frame.step, frame.variable, frame.index, frame.count) == ("start", "xs", position, count)
        assert frame.values is not None
        assert numbers[chunks.index(frame.values)][frame.index - frame.first] == position


@settings(max_examples=100, deadline=None)
@given(blocks(ELEMENTS), st.integers(0, 2**32), st.randoms(use_true_random=False))
def test_successors_are_what_follows(body: Sequence[Element], seed: int, order: random.Random) -> None:
    """What a task leads to is told before it has finished: what gets ready then, and the joins that still wait."""
    flow = Flow(body, seed)
    scheduler = Scheduler(flow.graph)
    ready = [scheduler.begin()]
    expected = flow.expected()
    children: dict[TaskKey, list[TaskKey]] = {key: [] for key in expected}
    for key, parents in expected.items():
        for parent in parents:
            children[parent].append(key)
    while ready:
        task = ready.pop(order.randrange(len(ready)))
        transition = flow.transition(task)
        told = list(scheduler.successors(task, transition))
        following = scheduler.finished(task, transition)
        assert {new.key for new in following} <= set(told)
        # The join of an empty foreach reads from nobody.
        assert told == children[task.key] or (transition.count == 0 and told == [new.key for new in following])
        ready += following


def test_waiting_tells_which_joins_wait() -> None:
    """Joins that some branch has reached are told by name, sorted, once each."""
    scheduler = Scheduler(NESTED)
    first, second = scheduler.finished(scheduler.begin(), Transition(("inner",), 2))
    (work, *_) = scheduler.finished(first, Transition(("work",), 2))
    (other, *_) = scheduler.finished(second, Transition(("work",), 2))
    scheduler.finished(work, Transition(("inner_join",)))
    scheduler.finished(other, Transition(("inner_join",)))
    assert scheduler.waiting == ("inner_join",)


def test_a_foreach_over_nothing_that_no_join_closes_ends_there() -> None:
    """Without a join there is nothing that could follow a foreach without items."""
    graph = flow_of(StepNode("start", "foreach", ("end",), foreach="xs"), StepNode("end", "end"))
    scheduler = Scheduler(graph)
    first = scheduler.begin()
    assert scheduler.finished(first, Transition(("end",), 0)) == []
