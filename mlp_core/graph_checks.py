"""Whether a flow's steps make a sound graph: every mistake but those of nesting, each with its line and a hint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

from mlp_core.errors import FlowError, NameRefused
from mlp_core.graph_source import FlowSource, StepSource
from mlp_core.loading import class_constants
from mlp_core.names import artifact, closest, identifier
from mlp_core.parameters import parameters_of, problems

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


@attrs.frozen(eq=False, repr=False)
class Draft:
    """A flow's steps and the ways between them, before they are known to be sound.

    Attributes
    ----------
    cls : type
        The flow class.
    source : FlowSource
        What was read.
    start, end : str
        The first and the last step; empty where there is none, or more than one.
    next : mapping of str to tuple of str
        For every step the existing steps that it goes to; none for the last one.
    parents : mapping of str to tuple of str
        The reverse, in the order of the source.
    reserved : frozenset of str
        Names that the platform defines on every flow.
    """

    cls: type
    source: FlowSource
    start: str
    end: str
    next: Mapping[str, tuple[str, ...]]
    parents: Mapping[str, tuple[str, ...]]
    reserved: frozenset[str]

    @classmethod
    def of(cls, flow: type, source: FlowSource, reserved: frozenset[str]) -> Draft:
        """Find the ends, and connect the steps that exist."""
        steps = source.steps
        start = _endpoint(steps, "start", [step.name for step in steps.values() if step.starts])
        end = _endpoint(steps, "end", [step.name for step in steps.values() if step.ends])
        ways = {
            name: tuple(target for target in step.next.next if target in steps) if step.next and name != end else ()
            for name, step in steps.items()
        }
        parents: dict[str, list[str]] = {name: [] for name in steps}
        for name, targets in ways.items():
            for target in targets:
                parents[target].append(name)
        return cls(flow, source, start, end, ways, {name: tuple(found) for name, found in parents.items()}, reserved)

    @property
    def steps(self) -> Mapping[str, StepSource]:
        """The steps by name."""
        return self.source.steps

    def kind(self, name: str) -> str:
        """Return how a step goes on."""
        step = self.steps[name]
        return "end" if name == self.end else step.next.kind if step.next else "linear"

    def hides_ways(self, name: str) -> bool:
        """Whether a mistake in the step, reported elsewhere, hides where it goes."""
        step = self.steps[name]
        if name == self.end:
            return False
        return step.next is None or not step.next.complete or len(self.next[name]) < len(step.next.next)

    def reached(self, begin: Iterable[str], ways: Mapping[str, tuple[str, ...]]) -> set[str]:
        """Return the steps that can be reached from some, these included."""
        seen = set(begin)
        stack = list(seen)
        while stack:
            for target in ways[stack.pop()]:
                if target not in seen:
                    seen.add(target)
                    stack.append(target)
        return seen

    def mistake(self, name: str, message: str, hint: str, *, at_next: bool = False) -> FlowError:
        """Return a mistake of a step, at its ``def`` or at its ``self.next``."""
        step = self.steps[name]
        line = step.next.line if at_next and step.next and step.next.line else step.line
        return FlowError(message, file=step.file, line=line, hint=hint)


def check(draft: Draft) -> list[FlowError]:
    """Return the mistakes in a draft.

    Parameters
    ----------
    draft : Draft
        The flow.

    Returns
    -------
    list of FlowError
        All of them; what only follows from another mistake is left out.
    """
    return [error for one in _CHECKS for error in one(draft)]


def _endpoint(steps: Mapping[str, StepSource], name: str, marked: list[str]) -> str:
    """Return the first or last step: the marked one, else the one of that name, else the only one there is."""
    if len(steps) == 1:
        return next(iter(steps))
    if marked:
        return marked[0] if len(marked) == 1 else ""
    return name if name in steps else ""


def _check_names(draft: Draft) -> Iterator[FlowError]:
    """Check the names of the flow and its steps."""
    source = draft.source
    try:
        identifier(source.name, "flow")
    except NameRefused as refused:
        yield FlowError(refused.message, file=source.file, line=source.line, hint=refused.hint or "shorten it")
    for name in source.steps:
        try:
            identifier(name, "step")
        except NameRefused as refused:
            yield draft.mistake(name, refused.message, refused.hint or "shorten it")
            continue
        if name in draft.reserved:
            yield draft.mistake(name, f"step {name!r} has a name that every flow defines", "rename the step")


def _check_parameters(draft: Draft) -> Iterator[FlowError]:
    """Check the declarations of parameters."""
    for problem in problems(draft.cls, draft.reserved):
        file, line = draft.source.places.get(problem.attribute, (draft.source.file, draft.source.line))
        yield FlowError(problem.message, file=file, line=line, hint=problem.hint)


def _check_assignments(draft: Draft) -> Iterator[FlowError]:
    """Check that no assignment to self hides a step, a parameter or something of the platform's."""
    taken = {
        **dict.fromkeys(draft.reserved, "which every flow defines"),
        **dict.fromkeys(class_constants(draft.cls), "which is an attribute of the class, and those are read-only"),
        **dict.fromkeys(parameters_of(draft.cls), "which is a parameter, and those are read-only"),
        **dict.fromkeys(draft.steps, "which is a step"),
    }
    hint = "give the artifact another name"
    for step in draft.steps.values():
        for name, line in step.assigned:
            if name in taken:
                message = f"step {step.name!r} assigns to self.{name}, {taken[name]}"
                yield FlowError(message, file=step.file, line=line, hint=hint)
                continue
            try:
                artifact(name)
            except NameRefused as refused:
                yield FlowError(refused.message, file=step.file, line=line, hint=refused.hint or "shorten it")


def _check_ends(draft: Draft) -> Iterator[FlowError]:
    """Check that there are one first and one last step."""
    source, steps = draft.source, draft.steps
    if not steps:
        if not source.errors:
            message = f"flow {source.name!r} has no step"
            yield FlowError(message, file=source.file, line=source.line, hint="decorate a method with @step")
        return
    first = [name for name in steps if not draft.parents[name]]
    last = [name for name, step in steps.items() if step.next is None]
    marked = {
        "start": [name for name, step in steps.items() if step.starts],
        "end": [name for name, step in steps.items() if step.ends],
    }
    for word, found, likely in (("start", draft.start, first), ("end", draft.end, last)):
        names = marked[word]
        if len(names) > 1:
            message = f"the steps {_listed(names)} are all marked as the {word}"
            yield draft.mistake(names[-1], message, f"keep @step({word}=True) on one of them")
        elif not found:
            hint = f"name a step {word!r}, or mark one with @step({word}=True)"
            if len(likely) == 1:
                hint = f"mark {likely[0]!r} with @step({word}=True), or rename it {word!r}"
            message = f"flow {source.name!r} has no {word} step"
            yield FlowError(message, file=source.file, line=source.line, hint=hint)
        elif word in steps and word != found:
            message = f"step {found!r} is marked as the {word}, but a step is named {word!r} too"
            yield draft.mistake(found, message, "rename that one, or drop the mark")


def _check_ways(draft: Draft) -> Iterator[FlowError]:
    """Check what each step's self.next says, by itself."""
    last = [name for name, step in draft.steps.items() if step.next is None]
    for name, step in draft.steps.items():
        if name == draft.end:
            if step.next is not None and step.next.line:
                yield draft.mistake(name, f"{name!r} is the end, but calls self.next", "drop the call", at_next=True)
        elif step.next is None:
            # The only step that goes nowhere in a flow without an end is what that mistake is about.
            if draft.end or len(last) > 1:
                message = f"step {name!r} does not say what comes next"
                yield draft.mistake(name, message, "end it with self.next(self.a); only the last step has none")
        else:
            for target in step.next.next:
                if target not in draft.steps and target not in draft.source.lost:
                    message = f"step {name!r} goes to {target!r}, which is no step"
                    yield draft.mistake(name, message, _unknown_hint(draft, target), at_next=True)
        if name == draft.start and draft.parents[name]:
            message = f"step {draft.parents[name][0]!r} goes back to the start, {name!r}"
            hint = "the start runs once: put a step behind it and go back to that one"
            yield draft.mistake(draft.parents[name][0], message, hint, at_next=True)


def _unknown_hint(draft: Draft, target: str) -> str:
    """Return what may have been meant by a step that does not exist."""
    if callable(getattr(draft.cls, target, None)) and target not in draft.reserved:
        return f"decorate {target} with @step"
    close = closest(target, draft.steps)
    return f"did you mean {close!r}?" if close else f"the steps are {_listed(draft.steps)}"


def _check_joins(draft: Draft) -> Iterator[FlowError]:
    """Check what a step is that takes inputs, and what goes straight to it."""
    for name, step in draft.steps.items():
        kind = draft.kind(name)
        if not step.is_join:
            continue
        if name in (draft.start, draft.end):
            which = "start" if name == draft.start else "end"
            hint = "drop inputs" if name == draft.start else "join in a step before it"
            yield draft.mistake(name, f"{name!r} is the {which}, but takes inputs", hint)
        elif kind in ("split", "foreach", "parallel", "switch"):
            message = f"step {name!r} joins and goes on with a {WORDS[kind]}"
            yield draft.mistake(name, message, "join in one step, and put the other into the step after it")
        for parent in draft.parents[name]:
            how = draft.kind(parent)
            if how == "linear" or name == draft.start:
                continue
            message = f"the {WORDS[how]} of step {parent!r} goes straight to the join {name!r}"
            yield draft.mistake(parent, message, "put a step in between", at_next=True)


def _check_gangs(draft: Draft) -> Iterator[FlowError]:
    """Check that num_parallel and @parallel come together, and that a join follows."""
    for name, targets in draft.next.items():
        opens = draft.kind(name) == "parallel"
        for target in targets:
            is_gang = draft.steps[target].is_gang
            if opens and not is_gang:
                message = f"step {name!r} starts {target!r} with num_parallel, but that has no @parallel"
                yield draft.mistake(name, message, f"decorate {target} with @parallel", at_next=True)
            elif is_gang and not opens:
                message = f"step {name!r} goes to {target!r}, which is @parallel, without num_parallel"
                yield draft.mistake(name, message, f"write self.next(self.{target}, num_parallel=...)", at_next=True)
            if draft.steps[name].is_gang and not draft.steps[target].is_join:
                message = f"step {name!r} is @parallel, but {target!r} after it is no join"
                yield draft.mistake(name, message, f"write def {target}(self, inputs)", at_next=True)


def _check_reach(draft: Draft) -> Iterator[FlowError]:
    """Check that every step is reached, every loop has a switch in it, and every way leads to the end."""
    loops = list(_loops(draft))
    looping = {name for loop in loops for name in loop}
    for loop in loops:
        if draft.start in loop:
            continue  # the way back to the start is a mistake by itself
        message = f"the steps {' -> '.join([*loop, loop[0]])} are a loop that no switch leaves"
        hint = "let a step of the loop decide by a switch whether to go round again"
        yield draft.mistake(loop[-1], message, hint, at_next=True)
    if not draft.start:
        return
    reached = draft.reached([draft.start], draft.next)
    if not any(name in looping or draft.hides_ways(name) for name in reached):
        for name in draft.steps:
            if name not in reached:
                message = f"step {name!r} is never reached"
                yield draft.mistake(name, message, f"go to it: self.next(self.{name}), or remove it")
    if not draft.end:
        return
    leads_on = [name for name in draft.steps if draft.hides_ways(name)]
    stuck = reached - draft.reached([draft.end, *leads_on, *looping], draft.parents)
    reported: set[str] = set()
    for name in draft.steps:
        if name in stuck - reported and draft.kind(name) == "switch":
            message = f"after step {name!r} the flow can never end: none of its cases leads to {draft.end!r}"
            yield draft.mistake(name, message, "let one of the cases leave the loop", at_next=True)
            reported |= draft.reached([name], draft.next)


def _loops(draft: Draft) -> Iterator[list[str]]:
    """Yield the loops that no switch is part of, each from its first step in the source."""
    ways = {name: () if draft.kind(name) == "switch" else targets for name, targets in draft.next.items()}
    order = {name: index for index, name in enumerate(draft.steps)}
    done: set[str] = set()
    for root in draft.steps:
        path: list[str] = []
        pending = [iter((root,))]
        while pending:
            target = next(pending[-1], None)
            if target is None:
                pending.pop()
                done.update(path[-1:])
                del path[-1:]
            elif target in path:
                loop = path[path.index(target) :]
                first = loop.index(min(loop, key=order.__getitem__))
                yield loop[first:] + loop[:first]
            elif target not in done:
                path.append(target)
                pending.append(iter(ways[target]))


def _listed(names: Iterable[str]) -> str:
    """Return names for a message; of many the first ones."""
    found = list(names)
    return ", ".join(found[:_MANY]) + (f" and {len(found) - _MANY} more" if len(found) > _MANY else "")


_MANY = 10
WORDS = {"split": "split", "foreach": "foreach", "parallel": "gang", "switch": "switch", "linear": "way"}
_CHECKS: tuple[Callable[[Draft], Iterator[FlowError]], ...] = (
    _check_names,
    _check_parameters,
    _check_assignments,
    _check_ends,
    _check_ways,
    _check_joins,
    _check_gangs,
    _check_reach,
)
