"""What a flow's graph means when it runs: linear, split, foreach, switch and recursion, in every isolation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Isolation, Project, Ran


EVERYTHING = """
class Flow(FlowSpec):
    @step
    def start(self):
        self.keep = "kept" * 100
        self.xs = [10, 20]
        self.next(self.outer, foreach="xs")

    @step
    def outer(self):
        self.ys = (letter for letter in "abc"[: self.index + 1])
        self.next(self.inner, foreach="ys")

    @step
    def inner(self):
        self.seen = self.input, self.index, self.foreach_stack()
        self.next(self.inner_join)

    @step
    def inner_join(self, inputs):
        self.seen = [branch.seen for branch in inputs]
        self.items = [branch.input for branch in inputs], [branch.index for branch in inputs]
        self.mine = self.input, self.index
        self.merge_artifacts(inputs, include=["keep"])
        self.next(self.outer_join)

    @step
    def outer_join(self, inputs):
        self.seen = [branch.seen for branch in inputs]
        self.items = [branch.items for branch in inputs]
        self.mine = [branch.mine for branch in inputs]
        self.outside = self.input, self.index, self.foreach_stack()
        self.merge_artifacts(inputs, include=["keep"])
        self.next(self.fork)

    @step
    def fork(self):
        self.next(self.left, self.right)

    @step
    def left(self):
        self.side = "left"
        self.both = 1
        self.next(self.meet)

    @step
    def right(self):
        self.side = "right"
        self.both = 1
        self.next(self.meet)

    @step
    def meet(self, inputs):
        self.sides = inputs.left.side, inputs.right.side, [branch.side for branch in inputs], len(inputs)
        self.merge_artifacts(inputs, exclude=["side"])
        self.next(self.split_nothing)

    @step
    def split_nothing(self):
        self.empty = []
        self.next(self.nothing, foreach="empty")

    @step
    def nothing(self):
        self.next(self.join_of_nothing)

    @step
    def join_of_nothing(self, inputs):
        self.count = len(inputs), list(inputs)
        self.merge_artifacts(inputs)
        self.rounds = 0
        self.next(self.turn)

    @step
    def turn(self):
        self.rounds += 1
        self.more = self.rounds < 3
        self.next({True: self.turn, False: self.choose}, condition="more")

    @step
    def choose(self):
        self.mode = "b"
        self.next({"a": self.never, "b": self.always}, condition="mode")

    @step
    def never(self):
        self.next(self.end)

    @step
    def always(self):
        self.next(self.end)

    @step
    def end(self):
        print(self.keep)
"""


@pytest.fixture(scope="module")
def everything(project: Project, isolation: Isolation) -> Ran:
    """A run of a flow that uses all kinds of transitions."""
    ran = project.run(EVERYTHING, isolation=isolation)
    assert ran.status == "succeeded", ran.state.ended
    return ran


def test_tasks(everything: Ran) -> None:
    """Every task runs once, under its deterministic key; what is not chosen does not run."""
    expected = """
    start/0 outer/0 outer/1 inner/0-0 inner/1-0 inner/1-1 inner_join/0 inner_join/1 outer_join/0 fork/0 left/0 right/0
    meet/0 split_nothing/0 join_of_nothing/0 turn/0 turn/0~1 turn/0~2 choose/0 always/0 end/0
    """
    assert everything.paths == sorted(expected.split())
    assert sorted(path for kind, path in everything.events if kind == "succeeded") == [
        f"{path}/0" for path in everything.paths
    ]


def test_foreach_items(everything: Ran) -> None:
    """A task knows its item, its position and those of all foreach around it."""
    assert everything.value("seen", "outer_join") == [
        [("a", 0, [(0, 2, 10), (0, 1, "a")])],
        [("a", 0, [(1, 2, 20), (0, 2, "a")]), ("b", 1, [(1, 2, 20), (1, 2, "b")])],
    ]


def test_join_of_a_foreach(everything: Ran) -> None:
    """A join sees its branches' items in the order of the split, and itself lies in the foreach around it."""
    assert everything.value("items", "outer_join") == [(["a"], [0]), (["a", "b"], [0, 1])]
    assert everything.value("mine", "outer_join") == [(10, 0), (20, 1)]
    assert everything.value("outside", "outer_join") == (None, None, [])


def test_generator_becomes_a_list(everything: Ran) -> None:
    """A generator that a foreach iterates over is an artifact afterwards: the list of its items."""
    assert everything.value("ys", "outer/1") == ["a", "b"]


def test_join_of_a_split(everything: Ran) -> None:
    """A join reads its branches by the name of their last step, by position, and knows how many there are."""
    assert everything.value("sides", "meet") == ("left", "right", ["left", "right"], 2)
    assert everything.value("both") == 1
    assert "side" not in everything.artifacts("meet")


def test_join_inherits_nothing(everything: Ran) -> None:
    """What a join does not merge is not visible after it."""
    assert "xs" not in everything.artifacts("outer_join")
    assert everything.value("keep") == "kept" * 100


def test_empty_foreach(everything: Ran) -> None:
    """The join of a foreach without items has no inputs; merging gives it what was there before."""
    assert everything.value("count") == (0, [])
    assert everything.value("both", "join_of_nothing") == 1


def test_recursion(everything: Ran) -> None:
    """A step that goes to itself keeps its artifacts from round to round."""
    assert [everything.value("rounds", f"turn/{name}") for name in ("0", "0~1", "0~2")] == [1, 2, 3]


def test_log(everything: Ran) -> None:
    """What a step prints is kept as its log."""
    assert everything.log("end") == "kept" * 100 + "\n"


FOREACH = """
import collections, itertools, numpy, pandas

class Table:
    def __iter__(self):
        return iter("pq")

class Flow(FlowSpec):
    kind = Parameter("kind", default="")
    constant = {3, 1, 2}
    given = Parameter("given", default=[5, 6])

    @step
    def start(self):
        self.constant, self.given
        self.items = {
            "range": lambda: range(3),
            "text": lambda: "ab",
            "tuple": lambda: (1, None),
            "set": lambda: {"x", "y", "z"},
            "keys": lambda: {"k": 1, "l": 2}.keys(),
            "deque": lambda: collections.deque([7, 8]),
            "array": lambda: numpy.arange(4.0),
            "matrix": lambda: numpy.arange(6).reshape(3, 2),
            "series": lambda: pandas.Series(["s" * 9000, "t" * 9000], index=[7, 3]),
            "custom": Table,
            "big": lambda: [bytes([n]) * 20_000 for n in range(3)],
            "mixed": lambda: [1, "x" * 20_000],
            "number": lambda: 5,
            "mapping": lambda: {"a": 1},
            "scalar": lambda: numpy.array(3),
            "many": lambda: range(101),
            "endless": itertools.count,
            "nothing": lambda: None,
        }[self.kind]()
        self.next(self.work, foreach="items")

    @step
    def work(self):
        first, again = self.input, self.input
        assert first is again
        self.seen = first
        self.next(self.join)

    @step
    def join(self, inputs):
        self.seen = [branch.seen for branch in inputs]
        assert [type(branch.input) for branch in inputs] == [type(seen) for seen in self.seen]
        self.merge_artifacts(inputs, include=["items"])
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def over(project: Project, kind: str) -> Ran:
    """Run a foreach over something."""
    return project.run(FOREACH, isolation="inline", parameters={"kind": kind}, max_num_splits=100)


@pytest.mark.parametrize(
    ("kind", "seen"),
    [
        ("range", [0, 1, 2]),
        ("text", ["a", "b"]),
        ("tuple", [1, None]),
        ("keys", ["k", "l"]),
        ("deque", [7, 8]),
        ("array", [0.0, 1.0, 2.0, 3.0]),
        ("series", ["s" * 9000, "t" * 9000]),
        ("custom", ["p", "q"]),
        ("big", [bytes([n]) * 20_000 for n in range(3)]),
        ("mixed", [1, "x" * 20_000]),
    ],
)
def test_foreach_over_what_has_items(project: Project, kind: str, seen: list[object]) -> None:
    """A foreach takes everything that can be iterated over, whether its items are small or large, in its order."""
    ran = over(project, kind)
    assert ran.status == "succeeded", ran.state.ended
    assert ran.value("seen") == seen


CHUNKS = """
import random

class Flow(FlowSpec):
    kind = Parameter("kind", default="")

    @step
    def start(self):
        if self.kind == "shared":
            common = "s" * 600_000
            self.items = [{"common": common, "number": n} for n in range(11)]
        elif self.kind == "one":
            self.items = ["x" * 600_000]
        elif self.kind == "uneven":
            self.items = [n * 100_000 * "x" for n in range(11)]
        else:
            self.items = [str(n) + "x" * 100_000 for n in range(11)]
        if self.kind == "tuple":
            self.items = tuple(self.items)
        self.next(self.outer, foreach="items")

    @step
    def outer(self):
        self.letters = "ab"
        self.next(self.inner, foreach="letters")

    @step
    def inner(self):
        self.seen = [(index, count, self.short(item)) for index, count, item in self.foreach_stack()]
        self.next(self.inner_join)

    @step
    def inner_join(self, inputs):
        self.seen = [branch.seen for branch in inputs]
        self.next(self.join)

    @step
    def join(self, inputs):
        self.seen = [branch.seen for branch in inputs]
        self.items = [self.short(branch.input) for branch in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass

    def short(self, item):
        if isinstance(item, dict):
            return item["number"], len(item["common"])
        return item[:2], len(item)
"""


@pytest.mark.parametrize(
    ("kind", "is_chunked"), [("", True), ("tuple", True), ("uneven", True), ("shared", False), ("one", False)]
)
def test_foreach_over_a_large_list(project: Project, kind: str, is_chunked: bool) -> None:
    """A large list is stored in chunks too, unless its items are mostly one; tasks find their own items either way."""
    ran = project.run(CHUNKS, isolation="inline", parameters={"kind": kind})
    assert ran.status == "succeeded", ran.state.ended
    transition = ran.outcome("start").transition
    assert bool(transition.chunks) is is_chunked
    items = ran.value("items", "start")
    short = [(item["number"], len(item["common"])) if kind == "shared" else (item[:2], len(item)) for item in items]
    assert ran.value("items", "join") == short
    count = len(items)
    assert ran.value("seen", "join") == [
        [[(n, count, short[n]), (i, 2, ("ab"[i], 1))] for i in range(2)] for n in range(count)
    ]
    values = ran.session.values(ran.session.open_store(create=False))
    if is_chunked:
        loaded = [values.get(chunk) for chunk in transition.chunks]
        assert [item for chunk in loaded for item in chunk] == list(items)
        assert len({len(chunk) for chunk in loaded[:-1]}) == 1
        assert len(loaded) > 2


def test_foreach_over_a_matrix(project: Project) -> None:
    """The items of an array of two dimensions are its rows."""
    assert [row.tolist() for row in over(project, "matrix").value("seen")] == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(("kind", "type_name"), [("set", "set"), ("series", "Series"), ("deque", "deque")])
def test_foreach_leaves_collections_what_they_are(project: Project, kind: str, type_name: str) -> None:
    """A collection without positions is still itself after a foreach over it; only what can be read once changes."""
    ran = over(project, kind)
    assert type(ran.value("items")).__name__ == type_name
    assert sorted(ran.value("seen")) == sorted(ran.value("items"))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("number", "foreach='items' is a int, which has no items in order"),
        ("mapping", "iterate over its keys or items: list(...)"),
        ("scalar", "foreach='items' is an array without dimensions"),
        ("many", "foreach='items' has 101 items, and at most 100 are allowed; raise --max-num-splits"),
        ("endless", "foreach='items' has more than 100 items, which is the most allowed; raise --max-num-splits"),
        ("nothing", "foreach='items' is a NoneType"),
    ],
)
def test_foreach_over_what_has_none(project: Project, kind: str, message: str) -> None:
    """What cannot be iterated over, or has too many items, fails the step with the reason and nobody's traceback."""
    ran = over(project, kind)
    assert ran.status == "failed"
    assert message in ran.failure("start").message
    assert "mlp_core/" not in ran.failure("start").traceback


def test_foreach_over_parameters_and_constants(project: Project) -> None:
    """A foreach may iterate over a parameter, and over a class attribute, whatever its type."""
    code = FOREACH.replace('foreach="items"', 'foreach="FROM"').replace("[self.kind]()", '["text"]()')
    for name, seen in (("given", [5, 6]), ("constant", [1, 2, 3])):
        ran = project.run(code.replace("FROM", name), isolation="inline")
        assert ran.status == "succeeded", ran.state.ended
        assert sorted(ran.value("seen")) == seen


SWITCH = """
class Flow(FlowSpec):
    kind = Parameter("kind", default="")

    @step
    def start(self):
        self.mode = {"text": "b", "number": 2, "true": True, "unknown": "z", "none": None}.get(self.kind)
        if self.kind == "missing":
            del self.mode
        self.next({"a": self.left, "b": self.right, 2: self.left, True: self.right}, condition="mode")

    @step
    def left(self):
        self.next(self.end)

    @step
    def right(self):
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.mark.parametrize(("kind", "step"), [("text", "right"), ("number", "left"), ("true", "right")])
def test_switch(project: Project, kind: str, step: str) -> None:
    """A switch goes to the step whose key equals the artifact: text, numbers and truth values."""
    ran = project.run(SWITCH, isolation="inline", parameters={"kind": kind})
    assert ran.paths == sorted(["start/0", f"{step}/0", "end/0"])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("unknown", "the condition 'mode' is 'z', but the cases are 'a', 'b', 2, True"),
        ("none", "the condition 'mode' is None, but the cases are 'a', 'b', 2, True"),
        ("missing", "'mode'"),
    ],
)
def test_switch_to_nowhere(project: Project, kind: str, message: str) -> None:
    """A value that no case has fails the step with the artifact's name, the value and the cases."""
    ran = project.run(SWITCH, isolation="inline", parameters={"kind": kind})
    assert ran.status == "failed"
    assert message in ran.failure("start").message
    assert "mlp_core/" not in ran.failure("start").traceback


def test_single_step(project: Project, isolation: Isolation) -> None:
    """A flow may have one step only."""
    code = """
    class Flow(FlowSpec):
        @step(start=True, end=True)
        def only(self):
            self.x = 1
    """
    ran = project.run(code, isolation=isolation)
    assert (ran.status, ran.paths, ran.value("x", "only")) == ("succeeded", ["only/0"], 1)


INHERITANCE = """
class Base(FlowSpec):
    alpha = Parameter("alpha", default=1)
    beta = Parameter("beta", default=10)
    rate = 0.5

    @retry(times=1, minutes_between_retries=0)
    @step
    def start(self):
        self.trail = [type(self).__name__, self.alpha, self.beta, self.rate, self.helper()]
        self.next(self.middle)

    @step
    def middle(self):
        self.trail.append("base")
        self.next(self.end)

    @step
    def end(self):
        pass

    def helper(self):
        return "base's"


class Flow(Base):
    beta = Parameter("beta", default=20)
    rate = 0.75

    @step
    def middle(self):
        super().helper()
        self.trail.append("derived")
        self.next(self.extra)

    @step
    def extra(self):
        self.next(self.end)

    def helper(self):
        return "derived's, over " + super().helper()
"""


def test_inheritance(project: Project) -> None:
    """A flow has its bases' steps, parameters, constants, methods and decorators, unless it has its own."""
    ran = project.run(INHERITANCE)
    assert ran.status == "succeeded", ran.state.ended
    assert ran.paths == ["end/0", "extra/0", "middle/0", "start/0"]
    assert ran.value("trail") == ["Flow", 1, 20, 0.75, "derived's, over base's", "derived"]
    (start,) = [planned for planned in ran.state.began.steps if planned.node.name == "start"]
    assert start.plan.retry is not None


def test_a_base_class_in_the_same_file_is_not_the_flow(project: Project) -> None:
    """Of a class and its base in one file, the command runs the class."""
    project.write(INHERITANCE, "family.py")
    done = project.command("-m", "mlp_core.cli", "run", "family.py", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert project.read().value("trail")[0] == "Flow"


MERGE = """
class Flow(FlowSpec):
    kind = Parameter("kind", default="")
    rate = 3

    @step
    def start(self):
        self.same = [1, 2]
        self.touched = {"a": {1, 2, "three"}}
        self.gone = 1
        self.next(self.a, self.b)

    @step
    def a(self):
        self.x, self.y, self.z = 1, "a", [1]
        self.touched
        self.only = True
        self.next(self.join)

    @step
    def b(self):
        self.x, self.y, self.z = 2, "b", [1]
        del self.gone
        self.touched["a"]
        self.next(self.join)

    @step
    def join(self, inputs):
        if self.kind == "conflict":
            self.merge_artifacts(inputs)
        elif self.kind == "set before":
            self.x = self.y = 0
            self.merge_artifacts(inputs)
        elif self.kind == "exclude":
            self.merge_artifacts(inputs, exclude=["x", "y"])
        elif self.kind == "include":
            self.merge_artifacts(inputs, include=["same"])
        elif self.kind == "both":
            self.merge_artifacts(inputs, include=["same"], exclude=["x"])
        elif self.kind == "missing":
            self.merge_artifacts(inputs, include=["only"])
        elif self.kind == "conflict included":
            self.merge_artifacts(inputs, include=["x"])
        elif self.kind == "no inputs":
            self.merge_artifacts([1, 2])
        elif self.kind == "unknown branch":
            inputs.c.x
        elif self.kind == "unknown artifact":
            inputs.a.same2
        elif self.kind == "own":
            self.same
        elif self.kind == "read a branch":
            inputs.a.x, inputs[1].input, hasattr(inputs.b, "none")
        elif self.kind == "change":
            self.merge_artifacts(inputs, include=["same", "z"])
            self.z.append(2)
            del self.same
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def merged(project: Project, kind: str, isolation: Isolation = "inline") -> Ran:
    """Run a join that merges in some way."""
    return project.run(MERGE, isolation=isolation, parameters={"kind": kind})


def test_merge_takes_what_branches_agree_on(project: Project, isolation: Isolation) -> None:
    """What is equal by content is merged, also what one branch has alone; what is excluded or set before is not."""
    ran = merged(project, "exclude", isolation)
    assert ran.status == "succeeded", ran.state.ended
    assert sorted(ran.artifacts()) == ["gone", "kind", "only", "rate", "same", "touched", "z"]
    assert ran.value("z") == [1]


def test_merge_leaves_what_is_set(project: Project) -> None:
    """An artifact that the join has set is no conflict, and stays."""
    ran = merged(project, "set before")
    assert (ran.value("x"), ran.value("y"), ran.value("same")) == (0, 0, [1, 2])


def test_merge_includes_only(project: Project) -> None:
    """With include nothing else is merged."""
    assert sorted(merged(project, "include").artifacts()) == ["kind", "rate", "same"]


def test_merged_artifacts_can_be_changed(project: Project) -> None:
    """What was merged can be changed in place and deleted like any artifact."""
    ran = merged(project, "change")
    assert ran.value("z") == [1, 2]
    assert "same" not in ran.artifacts()


@pytest.mark.parametrize(
    ("kind", "reads"),
    [
        ("include", ("inputs.same", "kind")),
        ("exclude", ("inputs.gone", "inputs.only", "inputs.same", "inputs.touched", "inputs.z", "kind")),
        ("unknown artifact", ("-inputs.same2", "kind")),
        ("read a branch", ("-inputs.none", "inputs.input", "inputs.x", "kind")),
    ],
)
def test_what_a_join_reads_is_recorded(project: Project, kind: str, reads: tuple[str, ...]) -> None:
    """What a join read of its branches, or merged, is part of its record, as is what it asked for in vain."""
    assert merged(project, kind).outcome("join").reads == reads


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("conflict", "the branches differ in 'x', 'y'"),
        ("conflict included", "the branches differ in 'x'"),
        ("both", "merge_artifacts takes include or exclude, not both"),
        ("missing", "'only' of include is not in every branch"),
        ("no inputs", "merge_artifacts takes the inputs of a join step"),
        ("unknown branch", "no branch ends in a step 'c'; the branches end in a, b"),
        ("unknown artifact", "branch a/0 has no artifact 'same2'; did you mean 'same'?"),
        ("own", "step 'join' has no artifact 'same'; a join sees its branches through inputs"),
    ],
)
def test_merge_refusals(project: Project, kind: str, message: str) -> None:
    """A join that cannot be made fails with the names that are to blame, and the user's own line."""
    ran = merged(project, kind)
    assert ran.status == "failed"
    failure = ran.failure("join")
    assert message in failure.message
    assert '.py", line' in failure.traceback
    assert "mlp_core/" not in failure.traceback
