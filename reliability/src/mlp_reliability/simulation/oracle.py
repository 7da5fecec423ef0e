"""What a run of a flow must amount to, found by walking its tree; it knows nothing of graphs, queues and journals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from mlp_hookspecs import TaskKey
from mlp_reliability.simulation.flows import Flow, Visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlp_reliability.simulation.flows import Element

_Place = tuple[int, ...]


@attrs.frozen
class Expected:
    """A task of a run.

    Attributes
    ----------
    parents : tuple of TaskKey
        The tasks that it reads from, in order.
    split : TaskKey or None
        For the join of an empty foreach, the task that opened it.
    visible : Visible
        What is visible in it once it has ended.
    frames : tuple of (str, int, int)
        The open foreach around it: step, position and count.
    """

    parents: tuple[TaskKey, ...]
    split: TaskKey | None
    visible: Visible
    frames: tuple[tuple[str, int, int], ...]


class Oracle:
    """Walks a flow's tree as a reader would: depth first, one branch after the other.

    Attributes
    ----------
    tasks : dict of TaskKey to Expected
        Every task of a run in which nothing fails for good.
    """

    def __init__(self, flow: Flow) -> None:
        """Walk the flow."""
        self._flow = flow
        self._turns: dict[tuple[str, tuple[int, ...]], int] = {}
        self.tasks: dict[TaskKey, Expected] = {}
        start = self._visit("start", (), ())
        self._visit("end", (self._block(flow.body, (0,), (), start),), ())

    def _visit(
        self,
        name: str,
        parents: tuple[TaskKey, ...],
        frames: tuple[tuple[str, int, int], ...],
        split: TaskKey | None = None,
    ) -> TaskKey:
        """Add a task."""
        index = tuple(position for _, position, _ in frames)
        turn = self._turns.get((name, index), 0)
        self._turns[name, index] = turn + 1
        key = TaskKey(name, index, turn)
        visible = self._flow.result(key, [self.tasks[parent].visible for parent in parents])
        self.tasks[key] = Expected(parents, split, visible, frames)
        return key

    def _block(
        self, block: Sequence[Element], place: _Place, frames: tuple[tuple[str, int, int], ...], parent: TaskKey
    ) -> TaskKey:
        """Walk a sequence and return the task that it ends with."""
        for number, element in enumerate(block):
            parent = self._element(element, (*place, number), frames, parent)
        return parent

    def _element(
        self, element: Element, place: _Place, frames: tuple[tuple[str, int, int], ...], parent: TaskKey
    ) -> TaskKey:
        """Walk an element and return the task that it ends with."""
        name = self._flow.names.get(place, "")
        match element.kind:
            case "step":
                return self._visit(name, (parent,), frames)
            case "split":
                split = self._visit(name, (parent,), frames)
                ends = [self._block(block, (*place, n), frames, split) for n, block in enumerate(element.blocks)]
                return self._visit(self._flow.names[*place, -1], tuple(ends), frames)
            case "foreach":
                split = self._visit(name, (parent,), frames)
                count = self._flow.count(split)
                ends = [
                    self._block(element.blocks[0], (*place, 0), (*frames, (name, item, count)), split)
                    for item in range(count)
                ]
                return self._visit(self._flow.names[*place, -1], tuple(ends), frames, None if ends else split)
            case "switch":
                switch = self._visit(name, (parent,), frames)
                branch = self._flow.chosen(switch, len(element.blocks))
                return self._block(element.blocks[branch], (*place, branch), frames, switch)
            case "loop":
                while True:
                    end = self._block(element.blocks[0], (*place, 0), frames, parent)
                    parent = self._visit(self._flow.names[*place, -1], (end,), frames)
                    if not self._flow.repeats(parent):
                        return parent
