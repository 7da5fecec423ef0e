"""Which tasks of a run are ready: the graph's meaning as a state machine, without a disk, a clock or a process.

A task carries its open splits as a stack of frames. A split pushes one frame for each of its branches or items; the
join that closes it pops the frame and is ready once every branch has arrived.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from mlp_hookspecs import ForeachFrame, TaskKey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlp_hookspecs import FlowGraph, StepNode, Transition


@attrs.frozen
class SplitFrame:
    """One open split around a task.

    Attributes
    ----------
    split : TaskKey
        The task that opened it.
    position : int
        Which branch or item this is.
    width : int
        How many there are.
    """

    split: TaskKey
    position: int
    width: int


@attrs.frozen
class ReadyTask:
    """A task whose parents have all finished.

    Attributes
    ----------
    key : TaskKey
        Its identity.
    parents : tuple of TaskKey
        The tasks that it reads from, in the order of the split.
    splits : tuple of SplitFrame
        The open splits around it, outermost first.
    frames : tuple of ForeachFrame
        The open foreach around it, outermost first.
    split : TaskKey or None
        For the join of an empty foreach, the task that opened it.
    """

    key: TaskKey
    parents: tuple[TaskKey, ...] = ()
    splits: tuple[SplitFrame, ...] = ()
    frames: tuple[ForeachFrame, ...] = ()
    split: TaskKey | None = None


@attrs.define(eq=False, repr=False)
class _Join:
    """A join that waits for its branches."""

    width: int
    arrived: dict[int, TaskKey] = attrs.field(factory=dict)


class Scheduler:
    """The state of one run's graph.

    Parameters
    ----------
    graph : FlowGraph
        The flow's graph; it has passed the checks.

    Examples
    --------
    >>> from mlp_hookspecs import FlowGraph, StepNode, Transition
    >>> graph = FlowGraph("F", "start", "end", (StepNode("start", "linear", ("end",)), StepNode("end", "end")))
    >>> scheduler = Scheduler(graph)
    >>> first = scheduler.begin()
    >>> [task.key.path for task in scheduler.finished(first, Transition(("end",)))]
    ['end/0']
    """

    def __init__(self, graph: FlowGraph) -> None:
        """Begin with nothing ready."""
        self._nodes = {node.name: node for node in graph.steps}
        self._start = graph.start
        self._joins: dict[tuple[str, TaskKey], _Join] = {}
        self._rounds: dict[tuple[str, tuple[int, ...]], int] = {}

    def begin(self) -> ReadyTask:
        """Return the first task."""
        return self._task(self._start, (), (), ())

    def finished(self, task: ReadyTask, transition: Transition) -> Sequence[ReadyTask]:
        """Take in that a task has succeeded, and return what has become ready.

        Parameters
        ----------
        task : ReadyTask
            The task; each is told once.
        transition : Transition
            Where it goes.

        Returns
        -------
        sequence of ReadyTask
            In the order of the branches or items.
        """
        node = self._nodes[task.key.step]
        if node.kind == "foreach":
            return self._open_foreach(task, node, transition)
        ready: list[ReadyTask] = []
        for position, name in enumerate(transition.steps):
            splits = task.splits
            if node.kind == "split":
                splits = (*splits, SplitFrame(task.key, position, len(transition.steps)))
            ready += self._arrive(task.key, name, splits, task.frames)
        return ready

    def successors(self, task: ReadyTask, transition: Transition) -> Sequence[TaskKey]:
        """Return the tasks that a finished one leads to, joins included whether or not they still wait.

        Parameters
        ----------
        task : ReadyTask
            The task; it has not been told to `finished`.
        transition : Transition
            Where it goes.

        Returns
        -------
        sequence of TaskKey
            In the order of the branches or items.
        """
        node = self._nodes[task.key.step]
        index = task.key.index
        if node.kind == "foreach" and transition.count:
            return [self._key(transition.steps[0], (*index, position)) for position in range(transition.count)]
        names = (node.join,) if node.kind == "foreach" and node.join is not None else transition.steps
        keys = []
        for name in names:
            closes = self._nodes[name].is_join and node.kind not in ("foreach", "split") and task.splits
            is_foreach = closes and self._nodes[task.splits[-1].split.step].kind == "foreach"
            keys.append(self._key(name, index[:-1] if is_foreach else index))
        return keys

    def _key(self, name: str, index: tuple[int, ...]) -> TaskKey:
        """Return the key of a step's next task at a position."""
        return TaskKey(name, index, self._rounds.get((name, index), 0))

    @property
    def waiting(self) -> tuple[str, ...]:
        """The joins that some branch has reached and some has not, by path; empty when a run has ended well."""
        return tuple(sorted({name for name, _ in self._joins}))

    def _open_foreach(self, task: ReadyTask, node: StepNode, transition: Transition) -> Sequence[ReadyTask]:
        """Return one task for each item, or the join where there is none."""
        count = transition.count or 0
        if count == 0:
            if node.join is None:
                return []
            return [attrs.evolve(self._task(node.join, (), task.splits, task.frames), split=task.key)]
        ready: list[ReadyTask] = []
        for position in range(count):
            frame = _frame(node, transition, position, count)
            splits = (*task.splits, SplitFrame(task.key, position, count))
            ready += self._arrive(task.key, transition.steps[0], splits, (*task.frames, frame))
        return ready

    def _arrive(
        self, parent: TaskKey, name: str, splits: tuple[SplitFrame, ...], frames: tuple[ForeachFrame, ...]
    ) -> Sequence[ReadyTask]:
        """Return the task that a finished one leads to, unless it is a join that still waits."""
        if not self._nodes[name].is_join:
            return [self._task(name, (parent,), splits, frames)]
        frame = splits[-1]
        join = self._joins.setdefault((name, frame.split), _Join(frame.width))
        join.arrived[frame.position] = parent
        if len(join.arrived) < join.width:
            return []
        del self._joins[name, frame.split]
        parents = tuple(join.arrived[position] for position in range(join.width))
        closes_foreach = self._nodes[frame.split.step].kind == "foreach"
        return [self._task(name, parents, splits[:-1], frames[:-1] if closes_foreach else frames)]

    def _task(
        self,
        name: str,
        parents: tuple[TaskKey, ...],
        splits: tuple[SplitFrame, ...],
        frames: tuple[ForeachFrame, ...],
    ) -> ReadyTask:
        """Return a task with its deterministic key: a step that comes round again counts its rounds."""
        key = self._key(name, tuple(frame.index for frame in frames))
        self._rounds[name, key.index] = key.loop + 1
        return ReadyTask(key, parents, splits, frames)


def _frame(node: StepNode, transition: Transition, position: int, count: int) -> ForeachFrame:
    """Return the frame of one item of a foreach, with the item or the least that it can be read from."""
    variable = node.foreach or ""
    if transition.items:
        return ForeachFrame(node.name, variable, position, count, transition.items[position])
    if not transition.chunks:
        return ForeachFrame(node.name, variable, position, count, values=transition.values)
    size = -(-count // len(transition.chunks))
    number = position // size
    return ForeachFrame(node.name, variable, position, count, values=transition.chunks[number], first=number * size)
