"""What a running step can read and what it has written: the state behind a flow's instance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MappingView
from itertools import islice
from typing import TYPE_CHECKING, Any

from mlp_core.artifacts import indexable, is_immutable
from mlp_core.errors import ArtifactError
from mlp_core.names import closest
from mlp_core.worker.inputs import Inputs, item_of, merge_refs
from mlp_hookspecs import ArtifactRef, ForeachFrame, StepRequest, Transition

if TYPE_CHECKING:
    from mlp_core.values import Values


_CHUNK_BYTES = 1 << 18
"""About so much of a foreach's large list is stored, and loaded, together."""

_MOST_CHUNKS = 256
_CHUNK_EXCESS = 2


class TransitionError(Exception):
    """A call of ``self.next`` that does not fit the graph or the artifacts; shown as the user's own mistake."""


class TaskState:
    """The artifacts of one attempt.

    Parameters
    ----------
    request : StepRequest
        What the attempt is.
    values : Values
        Where artifacts are loaded from and stored.
    instance : FlowSpec
        The flow's instance; its attributes are the artifacts that were assigned or loaded.
    max_num_splits : int
        The largest foreach allowed.
    constants : frozenset of str
        Names that cannot be assigned: parameters and class attributes.
    """

    def __init__(
        self,
        request: StepRequest,
        values: Values,
        instance: object,
        *,
        max_num_splits: int,
        constants: frozenset[str],
    ) -> None:
        """Take over what the request makes visible."""
        self.request = request
        self.values = values
        self.reads: set[str] = set()
        self.inputs = Inputs(request.inputs, values, self.reads) if request.node.is_join else None
        self.transition: Transition | None = None
        self.removed: set[str] = set()
        self.constants = constants
        self.merged: dict[str, ArtifactRef] = {}
        self._instance = instance
        self._max_num_splits = max_num_splits
        self._sequence: Any = ()
        self._items: dict[str, Any] = {}
        self._loaded: dict[str, tuple[ArtifactRef, Any]] = {}
        inherited = {} if request.node.is_join or not request.inputs else request.inputs[0].artifacts
        self._inherited: dict[str, ArtifactRef] = {**inherited, **request.parameters}

    # ------------------------------------------------------------------------------------------------ reading

    def load(self, name: str) -> Any:
        """Load an artifact for its first reading.

        Raises
        ------
        AttributeError
            Where there is none; the message names what there is.
        """
        ref = self.merged.get(name) or self._inherited.get(name)
        if ref is None:
            if not name.startswith("_"):
                self.reads.add(f"-{name}")
            raise AttributeError(self._absent(name))
        self.reads.add(name)
        value = self.values.get(ref, name)
        if name not in self.constants:
            self._loaded[name] = (ref, value)
        self._instance.__dict__[name] = value
        return value

    def _absent(self, name: str) -> str:
        """Return the message for an artifact that is not there."""
        step = self.request.key.step
        known = sorted({*self._inherited, *self.merged, *self.assigned()})
        text = f"step {step!r} has no artifact {name!r}"
        if self.request.node.is_join:
            text += "; a join sees its branches through inputs, or after self.merge_artifacts(inputs)"
        close = closest(name, known)
        if close:
            return f"{text}; did you mean {close!r}?"
        return f"{text}; it has {', '.join(known)}" if known else text

    def assigned(self) -> list[str]:
        """Return the names that are set on the instance; what its class defines, as a cached property, is its own."""
        flow = type(self._instance)
        return [name for name in self._instance.__dict__ if name != "_mlp" and not hasattr(flow, name)]

    def has(self, name: str) -> bool:
        """Tell whether an artifact is visible, without loading it."""
        return name in self._inherited or name in self.merged or name in self._instance.__dict__

    def set(self, name: str, value: object) -> None:
        """Assign an artifact on the platform's behalf."""
        self._instance.__dict__[name] = value

    def delete(self, name: str) -> None:
        """Forget an artifact; AttributeError where there is none."""
        if name in self.constants:
            raise AttributeError(f"{name!r} is a parameter or class attribute and cannot be deleted")
        if not self.has(name):
            raise AttributeError(self._absent(name))
        self._instance.__dict__.pop(name, None)
        self._loaded.pop(name, None)
        self.merged.pop(name, None)
        if self._inherited.pop(name, None) is not None:
            self.removed.add(name)

    # ------------------------------------------------------------------------------------------------ foreach

    @property
    def index(self) -> int | None:
        """The position in the innermost foreach."""
        return self.request.frames[-1].index if self.request.frames else None

    @property
    def input(self) -> Any:
        """The item of the innermost foreach; None outside of one."""
        return self.item_of(self.request.frames[-1]) if self.request.frames else None

    def item_of(self, frame: ForeachFrame) -> Any:
        """Return the item of an open foreach, each time the same object."""
        self.reads.add("input")
        if frame.step not in self._items:
            self._items[frame.step] = item_of(frame, self.values)
        return self._items[frame.step]

    def foreach_stack(self) -> list[tuple[int, int, Any]]:
        """Return index, count and item of each open foreach, outermost first."""
        return [(frame.index, frame.count, self.item_of(frame)) for frame in self.request.frames]

    # ------------------------------------------------------------------------------------------------ joining

    def merge(self, inputs: object, include: Iterable[str], exclude: Iterable[str]) -> None:
        """Make the branches' artifacts visible in a join; see `FlowSpec.merge_artifacts`."""
        if not isinstance(inputs, Inputs):
            raise TransitionError("merge_artifacts takes the inputs of a join step")
        tasks = self.request.inputs
        if not tasks and self.request.split is not None:
            tasks = (self.request.split,)
        skip = {*self.assigned(), *self.constants}
        merged = merge_refs(tasks, include=list(include), exclude=list(exclude), skip=skip)
        self.reads.update(f"inputs.{name}" for name in merged)
        self.merged.update(merged)

    # ------------------------------------------------------------------------------------------------ going on

    def next(
        self, targets: tuple[Any, ...], foreach: str | None, condition: str | None, num_parallel: int | None
    ) -> None:  # the arguments of self.next, and no others
        """Record where the task goes; see `FlowSpec.next`."""
        step = self.request.key.step
        if self.transition is not None:
            raise TransitionError(f"step {step!r} calls self.next twice")
        if num_parallel is not None:
            raise TransitionError("num_parallel needs a launcher with gangs")
        chosen = [self._choose(targets, condition)] if condition is not None else [_step_name(t) for t in targets]
        names = tuple(chosen)
        unexpected = [name for name in names if name not in self.request.node.next]
        if unexpected:
            known = ", ".join(self.request.node.next) or "nowhere"
            raise TransitionError(f"step {step!r} goes to {unexpected[0]!r}, but its source says {known}")
        self.transition = self._fan_out(names, foreach) if foreach is not None else Transition(names)

    def _choose(self, targets: tuple[Any, ...], condition: str) -> str:
        """Return the step that a switch goes to."""
        cases: Mapping[Any, Callable[..., Any]] = targets[0]
        value = getattr(self._instance, condition)
        for case, target in cases.items():
            if case == value or str(case) == str(value):
                return _step_name(target)
        known = ", ".join(repr(case) for case in cases)
        raise TransitionError(
            f"step {self.request.key.step!r}: the condition {condition!r} is {value!r}, but the cases are {known}"
        )

    def _fan_out(self, names: tuple[str, ...], foreach: str) -> Transition:
        """Return the transition of a foreach, with the items where each is small."""
        try:
            sequence = getattr(self._instance, foreach)
        except AttributeError as error:
            raise TransitionError(
                f"step {self.request.key.step!r}: foreach={foreach!r} is no artifact: {error}"
            ) from None
        self._sequence = self._indexable(foreach, sequence)
        # The sequence is stored when the step ends, since it may change until then.
        return Transition(names, len(self._sequence))

    def _indexable(self, name: str, value: Any) -> Any:
        """Return what a foreach iterates over as something that has its items by position."""
        place = f"step {self.request.key.step!r}: foreach={name!r}"
        if isinstance(value, Mapping) or not isinstance(value, Iterable):
            hint = "; iterate over its keys or items: list(...)" if isinstance(value, Mapping) else ""
            raise TransitionError(f"{place} is a {type(value).__name__}, which has no items in order{hint}")
        if getattr(value, "shape", None) == ():
            raise TransitionError(f"{place} is an array without dimensions, which has no items")
        most = self._max_num_splits
        if indexable(value):
            if len(value) > most:
                raise TransitionError(
                    f"{place} has {len(value)} items, and at most {most} are allowed; raise --max-num-splits"
                )
            return value
        items = list(islice(value, most + 1))
        if len(items) > most:
            raise TransitionError(
                f"{place} has more than {most} items, which is the most allowed; raise --max-num-splits"
            )
        # What can be read only once, or not be stored, becomes the list of its items.
        if isinstance(value, Iterator | MappingView) and name not in self.constants:
            self.set(name, items)
        return items

    # ------------------------------------------------------------------------------------------------ the end

    def collect(self, formats: Mapping[str, str], *, lenient: bool = False) -> dict[str, ArtifactRef]:
        """Store what was assigned or has changed, and return its references.

        Parameters
        ----------
        formats : mapping of str to str
            The format by name for artifacts by name.
        lenient : bool
            Whether to leave out what cannot be stored, as after a caught failure.

        Raises
        ------
        ArtifactError
            Where a value cannot be stored.
        """
        refs: dict[str, ArtifactRef] = dict(self.merged)
        for name in self.assigned():
            if name in self.constants:
                continue
            value = self._instance.__dict__[name]
            known = self._loaded.get(name)
            if known is not None and known[1] is value and is_immutable(value):
                continue
            try:
                ref = self.values.put(name, value, format=formats.get(name), known=known[0] if known else None)
            except ArtifactError:
                if lenient:
                    continue
                raise
            if known is None or ref != known[0]:
                refs[name] = ref
        self.removed -= refs.keys()
        return refs

    def finish_transition(self, assigned: Mapping[str, ArtifactRef], inline_bytes: int) -> Transition:
        """Return the transition, for a foreach with references of the sequence and of small items."""
        transition = self.transition
        if transition is None:
            if self.request.node.kind == "end":
                return Transition()
            raise TransitionError(f"step {self.request.key.step!r} ended without calling self.next")
        if transition.count is None or self.request.node.foreach is None:
            return transition
        name, sequence = self.request.node.foreach, self._sequence
        items = self._small_items(inline_bytes)
        values = None
        if sequence is getattr(self._instance, name, None):
            values = assigned.get(name) or self.merged.get(name) or self._inherited.get(name)
        elif len(items) < len(sequence):
            values = self.values.put(name, sequence)
        chunks = self._chunks(name, values) if values is not None and len(items) < len(sequence) else ()
        return Transition(transition.steps, len(sequence), values, items, chunks)

    def _chunks(self, name: str, whole: ArtifactRef) -> tuple[ArtifactRef, ...]:
        """Store a large list in chunks, so that its tasks need not load all of it; none where that does not pay."""
        sequence = self._sequence
        count = len(sequence)
        if type(sequence) not in (list, tuple) or count < 2 or whole.size < 2 * _CHUNK_BYTES:  # noqa: PLR2004 # of one there are no chunks
            return ()
        number = min(count, _MOST_CHUNKS, whole.size // _CHUNK_BYTES)
        length = -(-count // number)
        chunks: list[ArtifactRef] = []
        left = _CHUNK_EXCESS * whole.size
        for start in range(0, count, length):
            try:
                chunk = self.values.put(name, sequence[start : start + length], format=whole.format)
            except ArtifactError:  # a format may hold the whole and no part of it
                return ()
            chunks.append(chunk)
            left -= chunk.size
            # Items that share most of what they hold are stored best as a whole.
            if left < 0 or chunk.size > whole.size * 3 // 4:
                return ()
        return tuple(chunks)

    def _small_items(self, inline_bytes: int) -> tuple[ArtifactRef, ...]:
        """Return references of the foreach's items where each is small enough to travel; none otherwise."""
        refs = []
        for item in self._sequence:
            ref = self.values.put_small(item, inline_bytes)
            # One item's size tells whether the rest is worth a try: mixed sizes only cost the attempt.
            if ref is None:
                return ()
            refs.append(ref)
        return tuple(refs)


def _step_name(target: Any) -> str:
    """Return the name of a step that was given as a bound method."""
    name = getattr(target, "__name__", None)
    if not isinstance(name, str):
        raise TransitionError(f"self.next takes steps such as self.train, not {target!r:.60}")
    return name
