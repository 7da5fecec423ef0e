"""Which splits are open around each step, and which join closes each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

import attrs

from mlp_core.errors import FlowError
from mlp_core.graph_checks import WORDS, Draft

if TYPE_CHECKING:
    from collections.abc import Iterator


@attrs.frozen(eq=False, repr=False)
class Nesting:
    """How the steps of a flow lie inside its splits, foreaches and gangs.

    Attributes
    ----------
    around : mapping of str to tuple of str
        For every step that is reached the steps whose splits are open, outermost first. For a join these include the
        one that it closes.
    joins : mapping of str to str
        For every split that is joined its join.
    errors : tuple of FlowError
        The mistakes.
    """

    around: Mapping[str, tuple[str, ...]]
    joins: Mapping[str, str]
    errors: tuple[FlowError, ...]


def nest(draft: Draft) -> Nesting:
    """Work out the nesting of a draft; what only follows from another mistake is not reported."""
    walk = _Walk(draft)
    if draft.start:
        walk.run()
    around = {name: tuple(frame.opener for frame in frames) for name, frames in walk.around.items()}
    return Nesting(around, walk.joins, tuple(walk.errors))


@attrs.frozen(eq=False, repr=False)
class _Frame:
    """An open split, and the branch of it: the step that the branch begins with."""

    opener: str
    branch: str


_Frames: TypeAlias = tuple[_Frame, ...]


@attrs.define(eq=False, repr=False)
class _Walk:
    """A walk over the steps, each after those that lead to it, but for the ways back in loops.

    The frames of a step come from the first way to it, and the other ways have to agree. As every opener has frames of
    its own, ways with the same innermost frame have all frames in common.
    """

    draft: Draft
    around: dict[str, _Frames] = attrs.field(factory=dict)
    joins: dict[str, str] = attrs.field(factory=dict)
    doubtful: set[str] = attrs.field(factory=set)
    """Steps that a mistake leads to: what is open around them is a guess."""
    errors: list[FlowError] = attrs.field(factory=list)

    def run(self) -> None:
        """Visit every step that is reached."""
        start = self.draft.start
        order = _forward_order(self.draft)
        position = {name: index for index, name in enumerate(order)}
        self.around[start] = ()
        ways_back: list[tuple[str, str, str]] = []
        for name in order[1:]:
            parents = [parent for parent in self.draft.parents[name] if parent in position]
            forward = [parent for parent in parents if position[parent] < position[name]]
            ways_back += [(name, forward[0], parent) for parent in parents if position[parent] >= position[name]]
            self.around[name] = self.leave(forward[0], name)
            if any(self.is_doubtful(parent) for parent in forward):
                self.doubtful.add(name)
            elif name == self.draft.end:
                self.end(name, forward)
            elif self.draft.steps[name].is_join:
                self.join(name, forward)
            else:
                self.pass_through(name, forward[0], forward[1:])
        for name, first, parent in ways_back:
            if name not in self.doubtful and not self.is_doubtful(parent):
                self.pass_through(name, first, [parent])

    def is_doubtful(self, name: str) -> bool:
        """Tell whether what is open on the ways from a step is a guess."""
        call = self.draft.steps[name].next
        return name in self.doubtful or call is None or not call.complete

    def leave(self, name: str, target: str) -> _Frames:
        """Return what is open on the way from a step to the next."""
        frames = self.around[name]
        if self.draft.steps[name].is_join:
            frames = frames[:-1]
        if self.draft.kind(name) in ("split", "foreach", "parallel"):
            frames = (*frames, _Frame(name, target))
        return frames

    def end(self, name: str, parents: list[str]) -> None:
        """Report the splits that are open at the end."""
        if self.draft.steps[name].is_join:
            return  # it is meant to close them, and that is a mistake by itself
        reported = set()
        for parent in parents:
            for frame in self.leave(parent, name)[-1:]:
                if frame.opener not in reported:
                    reported.add(frame.opener)
                    message = f"{self.split(frame)} is not joined before the end: {parent!r} goes to {name!r}"
                    self.report(parent, message, "put a join in between, a step that takes inputs")

    def join(self, name: str, parents: list[str]) -> None:
        """Let a join close a split, or report why it can't."""
        ways = [(parent, self.leave(parent, name)) for parent in parents]
        bare = next((parent for parent, frames in ways if not frames), None)
        if bare is not None:
            message = f"step {name!r} takes inputs, but no split is open on the way from {bare!r}"
            hint = f"write def {name}(self), or split in a step before it"
            self.errors.append(self.draft.mistake(name, message, hint))
            self.doubtful.add(name)
            return
        opener = ways[0][1][-1].opener
        for parent, frames in ways[1:]:
            if frames[-1].opener != opener:
                message = (
                    f"the join {name!r} is reached from {parents[0]!r} in {self.split(ways[0][1][-1])}, "
                    f"and from {parent!r} in {self.split(frames[-1])}"
                )
                self.report(parent, message, "give each split a join of its own, the inner one first")
                self.doubtful.add(name)
                return
        other = self.joins.setdefault(opener, name)
        if other != name:
            first, second = (step for step in self.draft.steps if step in (name, other))
            message = f"{self.split(ways[0][1][-1])} has two joins, {first!r} and {second!r}"
            self.errors.append(self.draft.mistake(second, message, "let all of its branches lead to one join"))
            self.doubtful.add(name)

    def pass_through(self, name: str, first: str, others: list[str]) -> None:
        """Report a step that is reached inside different splits, or from different branches of one."""
        expected = self.around[name]
        for parent in others:
            frames = self.leave(parent, name)
            same_split = bool(frames and expected) and frames[-1].opener == expected[-1].opener
            if frames == expected or (same_split and self.draft.steps[name].is_join):
                continue
            self.doubtful.add(name)
            if same_split:
                message = f"step {name!r} is reached from two branches of {self.split(frames[-1])}, "
                message += f"from {first!r} and from {parent!r}"
                self.report(parent, message, f"let it join them: def {name}(self, inputs)")
            else:
                where = [self.split(found[-1]) if found else "outside of any split" for found in (expected, frames)]
                message = f"step {name!r} is reached from {first!r}, {where[0]}, and from {parent!r}, {where[1]}"
                self.report(parent, message, "all ways to a step must lie inside the same splits: join before it")
            return

    def split(self, frame: _Frame) -> str:
        """Return what to call an open split in a message."""
        return f"the {WORDS[self.draft.kind(frame.opener)]} of step {frame.opener!r}"

    def report(self, parent: str, message: str, hint: str) -> None:
        """Add a mistake at a step's self.next."""
        self.errors.append(self.draft.mistake(parent, message, hint, at_next=True))


def _forward_order(draft: Draft) -> list[str]:
    """Return the steps that the start leads to, each after those that lead to it, but for ways back in loops."""
    order: list[str] = []
    seen = {draft.start}
    pending: list[tuple[str, Iterator[str]]] = [(draft.start, iter(draft.next[draft.start]))]
    while pending:
        name, targets = pending[-1]
        target = next(targets, None)
        if target is None:
            order.append(name)
            pending.pop()
        elif target not in seen:
            seen.add(target)
            pending.append((target, iter(draft.next[target])))
    return order[::-1]
