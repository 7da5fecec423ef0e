"""Random flows: a tree that an oracle can walk, the graph that the scheduler gets, and what each attempt will do."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import attrs

from mlp_hookspecs import (
    ArtifactRef,
    CatchPolicy,
    FlowGraph,
    Resources,
    RetryPolicy,
    StepNode,
    StepPlan,
    TaskKey,
    Transition,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlp_hookspecs import LaunchRequest

Fate: TypeAlias = Literal["succeeds", "raises", "dies", "exits", "hangs", "obeys late", "raises late", "is refused"]
"""What becomes of an attempt: the last but one answer only when they are asked to end, when their time is over."""

FAR: Final = "far"
"""A launcher beyond the driver's host."""

HERE: Final = "here"
"""A launcher on the driver's host."""

TICK: Final = 1 / 64
"""All times are multiples of it, so that adding and subtracting them is exact."""


@attrs.frozen
class Element:
    """A part of a flow: a step; or a split, foreach, switch or loop around blocks, which are sequences of elements."""

    kind: Literal["step", "split", "foreach", "switch", "loop"]
    blocks: tuple[tuple[Element, ...], ...] = ()


@attrs.frozen
class Visible:
    """The artifacts that a task has once it has ended: ``x`` is its own, ``y`` perhaps an ancestor's."""

    x: ArtifactRef
    y: ArtifactRef | None

    def artifacts(self) -> dict[str, ArtifactRef]:
        """Return them by name."""
        return {"x": self.x} if self.y is None else {"x": self.x, "y": self.y}


def ref(text: str) -> ArtifactRef:
    """Return a small artifact that says a text."""
    data = text.encode()
    return ArtifactRef("text", f"sha256-{hashlib.sha256(data).hexdigest()}", len(data), "str", data)


PARAMETERS: Final = {"y": ref("the parameter y")}
"""The parameters of each run."""


class Flow:
    """A random flow.

    How many items a foreach has, where a switch goes, how often a loop turns and what an attempt does follows from the
    seed and the task alone, so that it does not depend on the order in which things happen.

    Parameters
    ----------
    seed : int
        What it is drawn from.

    Attributes
    ----------
    graph : FlowGraph
        The graph.
    plans : mapping of str to StepPlan
        The plan of each step.
    max_workers : int or None
        The bound on all attempts.
    capacity : int or None
        The bound on those of the launcher beyond the host.
    machine : tuple of float and int
        Cores and mebibytes of the host.
    body : tuple of Element
        What is between start and end.
    names : mapping of tuple of int to str
        The name of the step at each place in the tree.
    """

    def __init__(self, seed: int) -> None:
        """Draw the flow."""
        self.seed = seed
        rng = random.Random(seed)
        self._trouble = rng.choice((0.0, 0.05, 0.2, 0.4))
        sturdy = rng.random() < 0.6  # noqa: PLR2004 # else most failures are final
        self.body = _draw_block(rng, [rng.choice((2, 4, 7, 12))], 0)
        self.names: dict[tuple[int, ...], str] = {}
        self._nodes: list[StepNode] = []
        entry = self._add_block(self.body, "end", (0,))
        self._nodes = [StepNode("start", "linear", (entry,)), *self._nodes, StepNode("end", "end")]
        self.graph = FlowGraph("Simulated", "start", "end", tuple(self._nodes))
        self.nodes = {node.name: node for node in self._nodes}
        self.plans: Mapping[str, StepPlan] = {node.name: _draw_plan(rng, node, sturdy=sturdy) for node in self._nodes}
        self.max_workers = rng.choice((None, 1, 2, 5))
        self.capacity = rng.choice((None, 1, 3))
        self.machine = (rng.choice((1.0, 2.0, 4.0)), rng.choice((0, 4096)))

    # -------------------------------------------------------------------------------------- what is decided

    def draw(self, key: TaskKey, what: str) -> float:
        """Return a number from 0 up to 1 that follows from the task."""
        text = f"{self.seed} {key.path} {what}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest(), "big") / 2**48

    def count(self, key: TaskKey) -> int:
        """Return how many items a foreach task has."""
        return int(self.draw(key, "count") * 4)

    def chosen(self, key: TaskKey, branches: int) -> int:
        """Return the branch that a switch task takes."""
        return int(self.draw(key, "branch") * branches)

    def repeats(self, key: TaskKey) -> bool:
        """Tell whether a loop turns once more."""
        return key.loop < 3 and self.draw(key, "turn") < 0.5  # noqa: PLR2004 # short loops

    def fate(self, key: TaskKey, attempt: int, epoch: int) -> Fate:
        """Return what becomes of an attempt; after the second run everything goes well."""
        draw = self.draw(key, f"fate {attempt} {epoch}")
        if epoch > 1 or draw >= self._trouble:
            return "succeeds"
        fates: list[Fate] = ["raises", "raises", "dies", "exits", "is refused"]
        if self.plans[key.step].timeout_seconds is not None:
            fates += ["hangs", "hangs", "obeys late", "raises late"]
        return fates[int(draw / self._trouble * len(fates))]

    def transition(self, key: TaskKey) -> Transition:
        """Return what the worker of a task answers."""
        node = self.nodes[key.step]
        if node.kind == "foreach":
            return Transition(node.next, self.count(key))
        if node.kind == "switch" and node.cases[0][0] == "again":
            return Transition((node.next[0 if self.repeats(key) else 1],))
        if node.kind == "switch":
            return Transition((node.cases[self.chosen(key, len(node.cases))][1],))
        return Transition(node.next)

    def result(self, key: TaskKey, inputs: Sequence[Visible]) -> Visible:
        """Return what is visible in a task that has ended, from what is in those that it read from."""
        x = ref(f"{key.path} <- {hashlib.sha256(b' '.join(each.x.data or b'' for each in inputs)).hexdigest()[:16]}")
        is_join = self.nodes[key.step].is_join or not inputs
        inherited = PARAMETERS["y"] if is_join else inputs[0].y
        match self.writes(key):
            case "assigns":
                return Visible(x, ref(f"y of {key.path}"))
            case "removes":
                return Visible(x, None)
        return Visible(x, inherited)

    def writes(self, key: TaskKey) -> Literal["assigns", "removes", "keeps"]:
        """Return what a task does to ``y``."""
        return ("assigns", "removes", "keeps", "keeps")[int(self.draw(key, "y") * 4)]

    def assigned(self, request: LaunchRequest) -> tuple[dict[str, ArtifactRef], tuple[str, ...]]:
        """Return what the worker of a request assigns and removes, from the inputs that the request has."""
        key = request.step.key
        inputs = [Visible(each.artifacts["x"], each.artifacts.get("y")) for each in request.step.inputs]
        visible = self.result(key, inputs)
        match self.writes(key):
            case "assigns":
                return visible.artifacts(), ()
            case "removes":
                return {"x": visible.x}, ("y",)
        return {"x": visible.x}, ()

    # ---------------------------------------------------------------------------------- drawing the graph

    def _name(self, place: tuple[int, ...], kind: str) -> str:
        """Name the step at a place."""
        name = f"{kind}_{'_'.join('j' if number < 0 else str(number) for number in place)}"
        self.names[place] = name
        return name

    def _add_block(self, block: Sequence[Element], follow: str, place: tuple[int, ...]) -> str:
        """Add the steps of a sequence that goes on at a step, and return its first step's name."""
        for number in reversed(range(len(block))):
            follow = self._add(block[number], follow, (*place, number))
        return follow

    def _add(self, element: Element, follow: str, place: tuple[int, ...]) -> str:
        """Add the steps of an element, and return its first step's name."""
        if element.kind == "step":
            name = self._name(place, "step")
            self._nodes.append(StepNode(name, "linear", (follow,)))
        elif element.kind == "switch":
            name = self._name(place, "switch")
            entries = tuple(self._add_block(block, follow, (*place, n)) for n, block in enumerate(element.blocks))
            cases = tuple((str(n), entry) for n, entry in enumerate(entries))
            self._nodes.append(StepNode(name, "switch", entries, condition="c", cases=cases))
        elif element.kind == "loop":
            loop = self._name((*place, -1), "loop")
            name = self._add_block(element.blocks[0], loop, (*place, 0))
            cases = (("again", name), ("on", follow))
            self._nodes.append(StepNode(loop, "switch", (name, follow), condition="c", cases=cases))
        else:
            name, join = self._name(place, element.kind), self._name((*place, -1), "join")
            entries = tuple(self._add_block(block, join, (*place, n)) for n, block in enumerate(element.blocks))
            variable = "xs" if element.kind == "foreach" else None
            self._nodes.append(StepNode(name, element.kind, entries, foreach=variable, join=join))
            self._nodes.append(StepNode(join, "linear", (follow,), is_join=True))
        return name


def _draw_block(rng: random.Random, budget: list[int], depth: int) -> tuple[Element, ...]:
    """Return a sequence of elements; the budget is what is left of the flow's size."""
    return tuple(_draw_element(rng, budget, depth) for _ in range(rng.randint(1, 3)))


def _draw_element(rng: random.Random, budget: list[int], depth: int) -> Element:
    """Return an element."""
    budget[0] -= 1
    if budget[0] <= 0 or depth > 3:  # noqa: PLR2004 # deep enough for everything inside everything
        return Element("step")
    kind = rng.choice(("step", "split", "foreach", "foreach", "switch", "loop"))
    if kind == "step":
        return Element("step")
    if kind in ("foreach", "loop"):
        return Element(kind, (_draw_block(rng, budget, depth + 1),))  # type: ignore[arg-type]
    return Element(kind, tuple(_draw_block(rng, budget, depth + 1) for _ in range(rng.randint(2, 3))))  # type: ignore[arg-type]


def _draw_plan(rng: random.Random, node: StepNode, *, sturdy: bool) -> StepPlan:
    """Return a step's plan."""
    can_catch = node.kind in ("linear", "split")
    times = rng.randint(2, 4) if sturdy else rng.choice((0, 0, 1))
    has_timeout = rng.random() < 0.4  # noqa: PLR2004 # often
    return StepPlan(
        launcher=rng.choice((HERE, HERE, FAR)),
        resources=Resources(cpu=rng.choice((0.5, 1.0, 1.0, 2.0, 8.0)), memory_mb=rng.choice((0, 0, 1024, 8192))),
        timeout_seconds=rng.choice((2.0, 8.0)) if has_timeout else None,
        grace_seconds=rng.choice((None, 0.0, 1.0)) if has_timeout else None,
        retry=RetryPolicy(times, rng.choice((0.0, 0.5, 4.0))) if times or rng.random() < 0.5 else None,  # noqa: PLR2004
        catch=CatchPolicy(rng.choice((None, "failure"))) if can_catch and rng.random() < 0.3 else None,  # noqa: PLR2004
        concurrency=rng.choice((None, None, None, 1, 2)),
    )
