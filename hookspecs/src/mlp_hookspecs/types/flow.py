"""What a flow is: its steps, their order, its parameters, and the plan from which an orchestrator can run it."""

from collections.abc import Mapping
from typing import Literal

import attrs

from mlp_hookspecs.types.base import Json, Value, frozen_map
from mlp_hookspecs.types.plan import StepPlan

StepKind = Literal["linear", "split", "foreach", "parallel", "switch", "end"]


@attrs.frozen(eq=False, repr=False)
class StepNode(Value):
    """One step of a flow's graph.

    Attributes
    ----------
    name : str
        The step's name.
    kind : {"linear", "split", "foreach", "parallel", "switch", "end"}
        How the step goes on: to one step, to several at once, to one step once per item, to a gang,
        to one of several by a condition, or nowhere.
    next : tuple of str
        The steps it may go to, in the order of ``self.next``; for a switch without repeats.
    is_join : bool
        Whether the step takes ``inputs``.
    foreach : str or None
        The artifact iterated over, for ``kind="foreach"``.
    num_parallel : str or None
        Source text of the gang's size, for ``kind="parallel"``.
    condition : str or None
        The artifact that decides, for ``kind="switch"``.
    cases : tuple of (str, str)
        Pairs of the condition's value, as text, and a step, for ``kind="switch"``.
    parents : tuple of str
        The steps that may go to this one, in the order of the source.
    splits : tuple of str
        The open split and foreach steps around this one, outermost first. For a join these include the one it closes.
    join : str or None
        For a split, foreach or parallel step, the join that closes it.
    doc : str
        The step's docstring.
    file : str
        The source file's name, for messages.
    line : int
        The line of ``def``, 1-based.
    """

    name: str
    kind: StepKind
    next: tuple[str, ...] = ()
    is_join: bool = False
    foreach: str | None = None
    num_parallel: str | None = None
    condition: str | None = None
    cases: tuple[tuple[str, str], ...] = ()
    parents: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    join: str | None = None
    doc: str = ""
    file: str = ""
    line: int = 0


@attrs.frozen(eq=False, repr=False)
class FlowGraph(Value):
    """The immutable graph of a flow.

    Attributes
    ----------
    flow : str
        The flow's name.
    start : str
        Name of the first step.
    end : str
        Name of the last step.
    steps : tuple of StepNode
        All steps, in the order of the source.
    doc : str
        The flow's docstring.
    """

    flow: str
    start: str
    end: str
    steps: tuple[StepNode, ...]
    doc: str = ""

    def __getitem__(self, name: str) -> StepNode:
        """Return the step of that name; KeyError if there is none."""
        for node in self.steps:
            if node.name == name:
                return node
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        """Tell whether a step has that name."""
        return any(node.name == name for node in self.steps)


@attrs.frozen(eq=False, repr=False)
class StepInfo(Value):
    """A step as the planning hook sees it.

    Attributes
    ----------
    flow : str
        The flow's name.
    node : StepNode
        The step's place in the graph.
    """

    flow: str
    node: StepNode


@attrs.frozen(eq=False, repr=False)
class PlannedStep(Value):
    """A step with everything that its options decided.

    Attributes
    ----------
    node : StepNode
        The step's place in the graph.
    plan : StepPlan
        The merged plan.
    options : mapping of str to JSON
        The options as data, by name.
    """

    node: StepNode
    plan: StepPlan
    options: Mapping[str, Json] = attrs.field(factory=dict, converter=frozen_map)
