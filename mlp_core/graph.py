"""What a flow's graph is: read from the class's source and checked, without running anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from mlp_core.errors import FlowError
from mlp_core.graph_checks import Draft, check
from mlp_core.graph_nesting import Nesting, nest
from mlp_core.graph_source import read_flow
from mlp_hookspecs.types.flow import FlowGraph, StepNode

if TYPE_CHECKING:
    from mlp_hookspecs.types.flow import StepKind

__all__ = ["ParsedFlow", "parse_flow"]


@attrs.frozen(eq=False, repr=False)
class ParsedFlow:
    """A flow as its source has it.

    Attributes
    ----------
    graph : FlowGraph
        The graph. Where there are errors it is what could be made out, fit to be shown and not to be run.
    errors : tuple of FlowError
        The mistakes, by file and line; empty for a flow that can run.
    """

    graph: FlowGraph
    errors: tuple[FlowError, ...] = ()


def parse_flow(cls: type, reserved: frozenset[str] = frozenset()) -> ParsedFlow:
    """Read and check the graph of a flow class.

    Parameters
    ----------
    cls : type
        The class; its steps are the functions that ``@step`` marked, inherited ones included.
    reserved : frozenset of str
        Names that the platform defines on every flow, which no step, artifact or parameter may have.

    Returns
    -------
    ParsedFlow
        The graph and its mistakes; none is raised.
    """
    source = read_flow(cls)
    draft = Draft.of(cls, source, reserved)
    nesting = nest(draft)
    errors = [*source.errors, *check(draft), *nesting.errors]
    graph = FlowGraph(
        flow=source.name,
        start=draft.start,
        end=draft.end,
        steps=tuple(_node(draft, nesting, name) for name in source.steps),
        doc=source.doc,
    )
    return ParsedFlow(graph, tuple(sorted(errors, key=lambda error: (error.file, error.line))))


def _node(draft: Draft, nesting: Nesting, name: str) -> StepNode:
    """Return a step of the graph."""
    step = draft.steps[name]
    call = None if name == draft.end else step.next
    kind: StepKind = "end" if name == draft.end else call.kind if call else "linear"
    return StepNode(
        name=name,
        kind=kind,
        next=call.next if call else (),
        is_join=step.is_join,
        foreach=call.foreach if call else None,
        num_parallel=call.num_parallel if call else None,
        condition=call.condition if call else None,
        cases=call.cases if call else (),
        parents=draft.parents[name],
        splits=nesting.around.get(name, ()),
        join=nesting.joins.get(name),
        doc=step.doc,
        file=step.file,
        line=step.line,
    )
