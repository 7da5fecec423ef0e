"""What a step's body says about its successors: the one ``self.next`` at its end, read from the syntax tree."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import attrs

from mlp_core.errors import FlowError, NameRefused
from mlp_core.names import closest, identifier
from mlp_hookspecs.types.flow import StepKind

if TYPE_CHECKING:
    from collections.abc import Iterator

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef

_KEYWORDS = ("foreach", "num_parallel", "condition")
_SWITCH_HINT = 'let a switch decide: self.next({"yes": self.a, "no": self.b}, condition="artifact")'
_MISPLACED: dict[tuple[type[ast.AST], ...], tuple[str, str]] = {
    (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef): (
        "inside a nested function",
        "call it as the last statement of the step itself",
    ),
    (ast.If, ast.IfExp, ast.BoolOp, ast.Match): ("under a condition", _SWITCH_HINT),
    (ast.For, ast.AsyncFor, ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp): (
        "in a loop",
        'call it once, after the loop; self.next(self.a, foreach="items") starts a task for every item',
    ),
    (ast.Try, ast.TryStar): ("inside try", "move it behind the try statement; @retry and @catch handle failures"),
    (ast.With, ast.AsyncWith): ("inside with", "move it behind the with statement"),
    (ast.Return,): ("in a return statement", "drop the return"),
}
"""What self.next may not stand in, and how to mend it; the earlier entry explains better."""

_SHOWN = 60  # characters of an expression in a message
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_LEAVES = frozenset({ast.Constant, ast.Name, ast.Load, ast.Store, ast.Del, str, type(None)})
"""What a walk finds nothing in; lists of nodes hold texts and None here and there."""


@attrs.frozen(eq=False, repr=False)
class NextCall:
    """What ``self.next(...)`` says.

    Attributes
    ----------
    kind : StepKind
        How the step goes on.
    next : tuple of str
        The steps named, in order and without repeats.
    line : int
        The call's line.
    complete : bool
        Whether all that it names could be read; what follows from the missing part is then not reported again.
    foreach, num_parallel, condition, cases
        As in `StepNode`.
    """

    kind: StepKind
    next: tuple[str, ...]
    line: int
    complete: bool = True
    foreach: str | None = None
    num_parallel: str | None = None
    condition: str | None = None
    cases: tuple[tuple[str, str], ...] = ()


@attrs.frozen(eq=False, repr=False)
class StepBody:
    """What the body of a step says.

    Attributes
    ----------
    next : NextCall or None
        The call of ``self.next``; None where there is none.
    assigned : tuple of (str, int)
        The attributes of ``self`` that the body assigns or deletes, and the line of each.
    errors : tuple of FlowError
        The mistakes in the call.
    """

    next: NextCall | None
    assigned: tuple[tuple[str, int], ...]
    errors: tuple[FlowError, ...]


def read_body(function: Function, step: str, file: str) -> StepBody:
    """Read the body of a step.

    Parameters
    ----------
    function : ast.FunctionDef or ast.AsyncFunctionDef
        The step's function.
    step : str
        Its name, for messages.
    file : str
        Its file, for messages.

    Returns
    -------
    StepBody
        What it says; mistakes are in it, none is raised.
    """
    arguments = [*function.args.posonlyargs, *function.args.args]
    if not arguments:
        return StepBody(NextCall("linear", (), 0, complete=False), (), ())
    return _BodyReader(function, step, file, arguments[0].arg).read()


@attrs.define(eq=False, repr=False)
class _BodyReader:
    """Reads one body and collects its mistakes; `me` is the name of the first argument, by custom ``self``."""

    function: Function
    step: str
    file: str
    me: str
    errors: list[FlowError] = attrs.field(factory=list)

    def read(self) -> StepBody:
        """Find self.next and the assignments to self, and read the call."""
        uses: list[ast.Attribute] = []
        assigned: list[tuple[str, int]] = []
        for attribute in self._attributes():
            if not isinstance(attribute.ctx, ast.Load):
                assigned.append((attribute.attr, attribute.lineno))
            elif attribute.attr == "next":
                uses.append(attribute)
        calls = self._calls(uses)
        for call in calls[:-1]:
            self._next_call(call)
        found = self._next_call(calls[-1]) if calls else None
        if found is not None and len(calls) > 1:
            found = attrs.evolve(found, complete=False)
        if found is None and uses:
            found = NextCall("linear", (), uses[-1].lineno, complete=False)
        return StepBody(found, tuple(sorted(assigned, key=lambda pair: pair[1])), tuple(self.errors))

    def _attributes(self) -> Iterator[ast.Attribute]:
        """Yield every ``self.name`` of the body, nested functions included unless they have a ``self`` of their own."""
        # Several times faster than ast.walk, and this walk is most of what follows the parser's own work.
        stack: list[Any] = list(self.function.body)
        while stack:
            node = stack.pop()
            kind = type(node)
            if kind in _LEAVES:
                continue
            if kind is ast.Attribute and type(node.value) is ast.Name:
                if node.value.id == self.me:
                    yield node
                continue
            if kind in _SCOPES and self._rebinds(node.args):
                continue
            for field in kind._fields:
                value = getattr(node, field)
                if type(value) is list:
                    stack += value
                elif isinstance(value, ast.AST):
                    stack.append(value)

    def _rebinds(self, arguments: ast.arguments) -> bool:
        """Tell whether a nested function has an argument of the name of ours."""
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        return any(argument.arg == self.me for argument in named)

    def _calls(self, uses: list[ast.Attribute]) -> list[ast.Call]:
        """Return the calls of self.next in the order of the source; report those that are not the last statement."""
        last = self.function.body[-1]
        tail = last.value if isinstance(last, ast.Expr) else None
        if isinstance(tail, ast.Call) and uses == [tail.func]:
            return [tail]
        parents = {id(child): node for node in ast.walk(self.function) for child in ast.iter_child_nodes(node)}
        calls = []
        for use in sorted(uses, key=lambda use: (use.lineno, use.col_offset)):
            parent = parents[id(use)]
            if isinstance(parent, ast.Call) and parent.func is use:
                calls.append(parent)
            else:
                self._report(use.lineno, "uses self.next without calling it", "call it: self.next(self.a)")
        if len(calls) > 1:
            lines = ", ".join(str(call.lineno) for call in calls)
            conditional = any(self._misplaced(call, parents)[0] == "under a condition" for call in calls)
            hint = _SWITCH_HINT if conditional else "keep one, as the last statement"
            self._report(calls[-1].lineno, f"calls self.next {len(calls)} times, on lines {lines}", hint)
        elif calls and calls[0] is not tail:
            where, hint = self._misplaced(calls[0], parents)
            self._report(calls[0].lineno, f"calls self.next {where}", hint)
        return calls

    def _misplaced(self, call: ast.Call, parents: dict[int, ast.AST]) -> tuple[str, str]:
        """Tell in what a call stands, and how to mend it."""
        around: list[ast.AST] = []
        node = parents[id(call)]
        while node is not self.function:
            around.append(node)
            node = parents[id(node)]
        for kinds, explanation in _MISPLACED.items():
            if any(isinstance(node, kinds) for node in around):
                return explanation
        if isinstance(around[0], ast.Expr):
            where = f"before its last statement, on line {self.function.body[-1].lineno}"
            return where, "make self.next(...) the last statement"
        return "inside another expression", "make self.next(...) a statement of its own, the last one"

    def _next_call(self, call: ast.Call) -> NextCall:
        """Read a call; what cannot be read is reported and left out."""
        keywords, clear = self._keywords(call)
        found = self._one_way(call, keywords)
        return found if clear else attrs.evolve(found, complete=False)

    def _one_way(self, call: ast.Call, keywords: dict[str, ast.expr]) -> NextCall:
        """Read a call that has at most one keyword argument."""
        if any(isinstance(argument, ast.Dict) for argument in call.args):
            return self._switch(call, keywords)
        steps, complete = self._steps(call.args)
        if "condition" in keywords:
            self._report(
                call.lineno,
                "gives self.next a condition without cases",
                'name the cases: self.next({"yes": self.a, "no": self.b}, condition="artifact")',
            )
            return NextCall("switch", steps, call.lineno, complete=False)
        if "foreach" in keywords:
            complete = self._check_single(call, steps, "foreach") and complete
            variable = self._artifact(keywords["foreach"], "foreach")
            return NextCall("foreach", steps, call.lineno, complete, foreach=variable)
        if "num_parallel" in keywords:
            complete = self._check_single(call, steps, "num_parallel") and complete
            size = self._size(keywords["num_parallel"])
            return NextCall("parallel", steps, call.lineno, complete, num_parallel=size)
        if not call.args:
            self._report(call.lineno, "calls self.next without a step", "name the next step: self.next(self.a)")
            complete = False
        return NextCall("split" if len(steps) > 1 else "linear", steps, call.lineno, complete)

    def _keywords(self, call: ast.Call) -> tuple[dict[str, ast.expr], bool]:
        """Return the keyword argument, of several the first, and whether it is clear that it is the one meant."""
        known: dict[str, ast.expr] = {}
        strange = False
        for keyword in call.keywords:
            if keyword.arg in _KEYWORDS:
                known[keyword.arg] = keyword.value
                continue
            strange = True
            if keyword.arg is None:
                self._report(keyword.value.lineno, "hides arguments of self.next behind **", "write them out")
            else:
                close = closest(keyword.arg, _KEYWORDS)
                hint = f"did you mean {close!r}?" if close else f"it takes {', '.join(_KEYWORDS)}"
                self._report(keyword.value.lineno, f"gives self.next an unknown argument {keyword.arg!r}", hint)
        if len(known) > 1:
            self._report(
                call.lineno,
                f"gives self.next both {' and '.join(known)}",
                "use one of them, and a step in between for the other",
            )
        return dict(list(known.items())[:1]), len(known) <= 1 and not strange

    def _check_single(self, call: ast.Call, steps: tuple[str, ...], keyword: str) -> bool:
        """Report a foreach or gang that does not go to exactly one step."""
        if len(call.args) != 1:
            count = f"{len(steps)} steps, {', '.join(steps)}" if steps else "no step"
            hint = f"{keyword} takes one step; that one may split further: self.next(self.a, {keyword}=...)"
            self._report(call.lineno, f"gives {keyword} {count}", hint)
        return len(call.args) == 1

    def _steps(self, arguments: list[ast.expr]) -> tuple[tuple[str, ...], bool]:
        """Return the steps that the arguments name, without repeats, and whether all could be read."""
        steps: list[str] = []
        complete = True
        for argument in arguments:
            step = self._target(argument)
            if step in steps:
                self._report(argument.lineno, f"names the step {step!r} twice in self.next", "name each step once")
                step = None
            if step is None:
                complete = False
            else:
                steps.append(step)
        return tuple(steps), complete

    def _target(self, node: ast.expr) -> str | None:
        """Return the step that an argument names; report anything else."""
        if self._is_own(node):
            return node.attr
        hint = f"write it as an attribute: self.next({self.me}.a)"
        if isinstance(node, ast.Starred):
            hint = "write the steps out: the graph is read before the flow runs"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            hint = f"write {self.me}.{node.value}"
        elif isinstance(node, ast.Name):
            hint = f"write {self.me}.{node.id}"
        elif isinstance(node, ast.Call) and self._is_own(node.func):
            hint = f"write {self.me}.{node.func.attr}, without parentheses"
        self._report(node.lineno, f"gives self.next {_text(node)}, which is no step", hint)
        return None

    def _is_own(self, node: ast.expr) -> TypeGuard[ast.Attribute]:
        """Tell whether an expression is ``self.name``."""
        return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == self.me

    def _switch(self, call: ast.Call, keywords: dict[str, ast.expr]) -> NextCall:
        """Read a switch."""
        complete = len(call.args) == 1
        if not complete:
            self._report(call.lineno, "gives self.next cases and other steps", "give it the cases alone")
        condition = None
        if "condition" in keywords:
            condition = self._artifact(keywords["condition"], "condition")
        elif keywords:
            hint = "a switch chooses one step; let that one go on with " + next(iter(keywords))
            self._report(call.lineno, f"gives a switch {next(iter(keywords))}", hint)
            complete = False
        else:
            hint = 'name the artifact that decides: self.next({...}, condition="artifact")'
            self._report(call.lineno, "gives self.next cases without a condition", hint)
            complete = False
        cases: dict[str, str] = {}
        mapping = next(argument for argument in call.args if isinstance(argument, ast.Dict))
        for key, value in zip(mapping.keys, mapping.values, strict=True):
            complete = self._add_case(cases, key, value) and complete
        if len(mapping.keys) < 2:  # noqa: PLR2004 # nothing to choose from
            count = "one case" if cases else "no case"
            hint = f"write self.next(self.{next(iter(cases.values()))})" if cases else "name at least two"
            self._report(call.lineno, f"gives a switch {count}", hint)
            complete = complete and bool(cases)
        steps = tuple(dict.fromkeys(cases.values()))
        return NextCall("switch", steps, call.lineno, complete, condition=condition, cases=tuple(cases.items()))

    def _add_case(self, cases: dict[str, str], key: ast.expr | None, value: ast.expr) -> bool:
        """Add a case to those read; report what is none."""
        if key is None:
            self._report(value.lineno, "hides cases of a switch behind **", "write them out")
            return False
        step = self._target(value)
        text = _case(key)
        if text is None:
            hint = "write a text, a number, True or False: the graph is read before the flow runs"
            self._report(key.lineno, f"has a case {_text(key)}, which is no literal", hint)
        elif text in cases:
            self._report(key.lineno, f"has two cases for {text!r}", "cases are compared as text; drop one")
        elif step is not None:
            cases[text] = step
            return True
        return False

    def _artifact(self, node: ast.expr, keyword: str) -> str | None:
        """Return the artifact's name that a keyword takes; report anything else."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            try:
                return identifier(node.value, "artifact")
            except NameRefused as refused:
                self._report(
                    node.lineno, f"names no artifact in {keyword}: {refused.message}", refused.hint or "shorten it"
                )
                return None
        hint = f'name an artifact in quotes: {keyword}="items"'
        if self._is_own(node):
            hint = f'write {keyword}="{node.attr}"'
        elif isinstance(node, ast.Name):
            hint = f'assign it to an artifact first: self.{node.id} = {node.id}, then {keyword}="{node.id}"'
        self._report(node.lineno, f"gives {keyword} {_text(node)}, which is no literal name", hint)
        return None

    def _size(self, node: ast.expr) -> str:
        """Return the source text of a gang's size; report a literal that is no size."""
        text = ast.unparse(node)
        literal = node.operand if isinstance(node, ast.UnaryOp) else node
        if isinstance(literal, ast.Constant):
            value = literal.value
            if literal is not node or not isinstance(value, int) or isinstance(value, bool) or value < 1:
                self._report(node.lineno, f"gives num_parallel {_text(node)}", "give a number of tasks, at least 1")
        return text

    def _report(self, line: int, message: str, hint: str) -> None:
        """Add a mistake; the message goes on after the step's name."""
        self.errors.append(FlowError(f"step {self.step!r} {message}", file=self.file, line=line, hint=hint))


def _case(key: ast.expr) -> str | None:
    """Return the text of a case's literal key; None where it is no literal."""
    negative = isinstance(key, ast.UnaryOp) and isinstance(key.op, ast.USub)
    constant = key.operand if isinstance(key, ast.UnaryOp) and negative else key
    value = constant.value if isinstance(constant, ast.Constant) else None
    if not isinstance(value, (str, int, float)) or (negative and isinstance(value, (str, bool))):
        return None
    return f"-{value}" if negative else str(value)


def _text(node: ast.AST) -> str:
    """Return the source text of a node for a message, shortened."""
    text = ast.unparse(node)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
