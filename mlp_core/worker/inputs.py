"""What a join reads: its branches' artifacts, by name, by position, and merged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

from mlp_core.errors import MlpError
from mlp_core.names import closest

if TYPE_CHECKING:
    from collections.abc import Collection

    from mlp_core.values import Values
    from mlp_hookspecs import ArtifactRef, ForeachFrame, TaskInput


class MergeError(MlpError):
    """Branches whose artifacts cannot be merged; the message names them."""


class Input:
    """A finished task that a join reads from: its artifacts are attributes, loaded when first read."""

    def __init__(self, task: TaskInput, values: Values, reads: set[str]) -> None:
        """Make a view of a task; what is read of it is noted in `reads`."""
        self._task = task
        self._values = values
        self._reads = reads
        self._items: list[Any] = []

    @property
    def index(self) -> int | None:
        """Its position in its innermost foreach; None outside of one."""
        return self._task.frames[-1].index if self._task.frames else None

    @property
    def input(self) -> Any:
        """Its item of the innermost foreach; None outside of one."""
        self._reads.add("inputs.input")
        if not self._items:
            self._items.append(item_of(self._task.frames[-1], self._values) if self._task.frames else None)
        return self._items[0]

    def __getattr__(self, name: str) -> Any:
        """Load an artifact; AttributeError where the branch has none of that name."""
        if name.startswith("__"):
            raise AttributeError(name)
        ref = self._task.artifacts.get(name)
        self._reads.add(f"inputs.{name}" if ref is not None else f"-inputs.{name}")
        if ref is None:
            close = closest(name, self._task.artifacts)
            hint = f"; did you mean {close!r}?" if close else f"; it has {', '.join(sorted(self._task.artifacts))}"
            raise AttributeError(f"branch {self._task.key.path} has no artifact {name!r}{hint}")
        value = self._values.get(ref, name)
        self.__dict__[name] = value
        return value

    def __repr__(self) -> str:
        """Show which task it is."""
        return f"Input({self._task.key.path!r})"


class Inputs(Sequence[Input]):
    """The branches of a join, in the order of the split; those of a static split are attributes too.

    Examples
    --------
    In a join step: ``inputs.train.model`` reads by the name of the last step of a branch, ``inputs[0].model`` by
    position, ``[i.score for i in inputs]`` all of them.
    """

    def __init__(self, tasks: Sequence[TaskInput], values: Values, reads: set[str]) -> None:
        """Make views of the tasks; what is read of them is noted in `reads`."""
        self._inputs = [Input(task, values, reads) for task in tasks]
        self._steps = [task.key.step for task in tasks]

    @overload
    def __getitem__(self, position: int) -> Input: ...

    @overload
    def __getitem__(self, position: slice) -> list[Input]: ...

    def __getitem__(self, position: int | slice) -> Input | list[Input]:
        """Return a branch by position."""
        return self._inputs[position]

    def __len__(self) -> int:
        """Return how many branches there are."""
        return len(self._inputs)

    def __iter__(self) -> Iterator[Input]:
        """Iterate in the order of the split."""
        return iter(self._inputs)

    def __getattr__(self, name: str) -> Input:
        """Return the branch whose last step has that name; AttributeError where there is none."""
        if name.startswith("_"):
            raise AttributeError(name)
        matches = [branch for branch, step in zip(self._inputs, self._steps, strict=True) if step == name]
        if not matches:
            known = ", ".join(dict.fromkeys(self._steps)) or "none: there are no branches"
            raise AttributeError(f"no branch ends in a step {name!r}; the branches end in {known}")
        return matches[0]

    def __repr__(self) -> str:
        """Show how many there are."""
        return f"<{len(self)} inputs>"


def item_of(frame: ForeachFrame, values: Values) -> Any:
    """Return the item of an open foreach."""
    if frame.item is not None:
        return values.get(frame.item)
    return None if frame.values is None else values.get(frame.values)[frame.index - frame.first]


def merge_refs(
    tasks: Sequence[TaskInput], *, include: Collection[str], exclude: Collection[str], skip: Collection[str]
) -> dict[str, ArtifactRef]:
    """Return the artifacts on which branches agree, by content hash; no value is loaded.

    Parameters
    ----------
    tasks : sequence of TaskInput
        The branches.
    include : collection of str
        Names to take; empty for all.
    exclude : collection of str
        Names to leave out.
    skip : collection of str
        Names that are set already and stay as they are.

    Returns
    -------
    dict of str to ArtifactRef
        What is to become visible.

    Raises
    ------
    MergeError
        Where both lists are given, an included name is missing somewhere, or branches differ.
    """
    if include and exclude:
        raise MergeError("merge_artifacts takes include or exclude, not both")
    found: dict[str, dict[str, ArtifactRef]] = {}
    for task in tasks:
        for name, ref in task.artifacts.items():
            if name in skip or name in exclude or (include and name not in include):
                continue
            found.setdefault(name, {}).setdefault(ref.digest, ref)
    missing = [name for name in include if name not in skip and not all(name in task.artifacts for task in tasks)]
    if missing:
        raise MergeError(f"merge_artifacts: {_listed(missing)} of include is not in every branch")
    conflicts = sorted(name for name, refs in found.items() if len(refs) > 1)
    if conflicts:
        raise MergeError(
            f"merge_artifacts: the branches differ in {_listed(conflicts)}",
            hint=f"set self.{conflicts[0]} before merging, or leave it out: exclude={conflicts!r}",
        )
    return {name: next(iter(refs.values())) for name, refs in found.items()}


def _listed(names: Sequence[str]) -> str:
    """Return names for a message."""
    return ", ".join(repr(name) for name in names)
