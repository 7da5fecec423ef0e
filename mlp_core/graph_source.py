"""Where a flow's steps stand in the source: found on the class, read from the files or cells that define it."""

from __future__ import annotations

import ast
import inspect
import linecache
import sys
import threading
import warnings
from collections.abc import Mapping
from types import FunctionType
from typing import TYPE_CHECKING, Any

import attrs

from mlp_core.errors import FlowError
from mlp_core.graph_next import Function, NextCall, read_body
from mlp_core.parameters import Parameter
from mlp_hookspecs.types.option import OPTIONS_ATTRIBUTE

if TYPE_CHECKING:
    from collections.abc import Iterator

# Python 3.11 counts the depth of a tree for all threads together, and fails where two build one at once.
_PARSING = threading.Lock()

STEP_ATTRIBUTE = "__mlp_step__"
"""The attribute that ``@step`` sets on a function: a dictionary with ``start`` and ``end``."""


@attrs.frozen(eq=False, repr=False)
class StepSource:
    """A step as the source has it.

    Attributes
    ----------
    name : str
        The step's name.
    file, line
        Where it stands: the line of ``def``, 1-based.
    doc : str
        Its docstring.
    is_join : bool
        Whether it takes ``inputs``.
    starts, ends : bool
        Whether it is marked by ``@step(start=True)`` or ``@step(end=True)``.
    is_gang : bool
        Whether it has the option ``@parallel``.
    next : NextCall or None
        Its ``self.next``; None where there is none.
    assigned : tuple of (str, int)
        The attributes of ``self`` that it assigns or deletes, and the line of each.
    """

    name: str
    file: str
    line: int
    doc: str = ""
    is_join: bool = False
    starts: bool = False
    ends: bool = False
    is_gang: bool = False
    next: NextCall | None = None
    assigned: tuple[tuple[str, int], ...] = ()


@attrs.frozen(eq=False, repr=False)
class FlowSource:
    """A flow as the source has it.

    Attributes
    ----------
    name : str
        The flow's name.
    doc : str
        Its docstring.
    file, line
        Where the class stands; empty and 0 where its source was not found.
    steps : mapping of str to StepSource
        The steps, base classes' first, in the order of the source.
    places : mapping of str to (str, int)
        File and line of the names that the classes with steps bind in their bodies.
    lost : frozenset of str
        Names of steps that are none by a mistake.
    errors : tuple of FlowError
        The mistakes found while reading.
    """

    name: str
    doc: str
    file: str
    line: int
    steps: Mapping[str, StepSource]
    places: Mapping[str, tuple[str, int]]
    lost: frozenset[str]
    errors: tuple[FlowError, ...]


def read_flow(cls: type) -> FlowSource:
    """Read the steps of a flow class, inherited ones included.

    Parameters
    ----------
    cls : type
        The class.

    Returns
    -------
    FlowSource
        What was found; mistakes are in it, none is raised.
    """
    return _FlowReader(cls).read()


@attrs.frozen(eq=False, repr=False)
class _File:
    """The functions and classes of one source file."""

    name: str
    functions: Mapping[tuple[int, str], Function]
    """By the line on which they begin, decorators included, and name: as code objects have them."""
    classes: Mapping[str, list[ast.ClassDef]]
    """By qualified name."""


@attrs.frozen(eq=False, repr=False)
class _Binding:
    """A statement of a class's body that binds a name."""

    line: int
    function: Function | None = None

    @property
    def is_step(self) -> bool:
        """Whether it is a function decorated by something called ``step``."""
        return self.function is not None and any(_last_name(d) == "step" for d in self.function.decorator_list)


@attrs.frozen(eq=False, repr=False)
class _Body:
    """A class's body in the source: its file and line, and what it binds."""

    file: str
    line: int
    bindings: Mapping[str, list[_Binding]]


@attrs.define(eq=False, repr=False)
class _FlowReader:
    """Reads one flow and collects its mistakes; each file is parsed once."""

    cls: type
    files: dict[str, _File | None] = attrs.field(factory=dict)
    lost: set[str] = attrs.field(factory=set)
    errors: list[FlowError] = attrs.field(factory=list)

    def read(self) -> FlowSource:
        """Read the flow."""
        bodies: dict[type, _Body | None] = {self.cls: self._body(self.cls)}
        steps: dict[str, StepSource] = {}
        places: dict[str, tuple[str, int]] = {}
        for name, owner in _owners(self.cls).items():
            raw = vars(owner)[name]
            is_step = _marker(raw) is not None
            if owner not in bodies and (is_step or isinstance(raw, Parameter)):
                bodies[owner] = self._body(owner)
            body = bodies.get(owner)
            if body is not None and name in body.bindings:
                places[name] = body.file, body.bindings[name][-1].line
            if is_step:
                steps[name] = self._step(name, raw, owner, body)
        for owner in reversed(self.cls.__mro__):
            body = bodies.get(owner)
            if body is not None:
                self._check_bindings(owner, body)
        self._check_overrides(places)
        body = bodies[self.cls]
        doc = vars(self.cls).get("__doc__")
        return FlowSource(
            name=self.cls.__name__,
            doc=inspect.cleandoc(doc) if isinstance(doc, str) else "",
            file=body.file if body else "",
            line=body.line if body else 0,
            steps=steps,
            places=places,
            lost=frozenset(self.lost),
            errors=tuple(self.errors),
        )

    def _step(self, name: str, raw: object, owner: type, body: _Body | None) -> StepSource:
        """Read one step."""
        marker = _marker(raw) or {}
        options = getattr(raw, OPTIONS_ATTRIBUTE, ())
        file, function = self._function(name, raw, owner, body)
        step = StepSource(
            name,
            file,
            0,
            starts=bool(marker.get("start")),
            ends=bool(marker.get("end")),
            is_gang=any(getattr(option, "name", None) == "parallel" for option in options),
        )
        if function is None:
            return attrs.evolve(step, next=NextCall("linear", (), 0, complete=False))
        self._check_function(name, raw, file, function)
        found = read_body(function, name, file)
        self.errors += found.errors
        return attrs.evolve(
            step,
            line=function.lineno,
            doc=ast.get_docstring(function) or "",
            is_join=len(function.args.posonlyargs) + len(function.args.args) > 1,
            next=found.next,
            assigned=found.assigned,
        )

    def _function(self, name: str, raw: object, owner: type, body: _Body | None) -> tuple[str, Function | None]:
        """Return a step's file and function; report where there is none to read."""
        outer = _function_of(raw)
        code = outer.__code__ if outer else None
        if body is not None and (code is None or code.co_qualname != f"{owner.__qualname__}.{name}"):
            # A decorator put a function of its own in place of the one written in the class.
            written = [binding.function for binding in body.bindings.get(name, []) if binding.function]
            if written:
                return body.file, written[-1]
        if outer is None or code is None:
            bindings = body.bindings.get(name) if body else None
            file, line = (body.file, bindings[-1].line) if body and bindings else ("", 0)
            self._report(f"step {name!r} is no function", file, line, "write it with def, below @step")
            return file, None
        source = self._file(outer)
        if source is None:
            self._report_unreadable(code.co_filename)
            return code.co_filename, None
        function = source.functions.get((code.co_firstlineno, code.co_name))
        if function is None:
            message = f"the source of step {name!r} is not where it was when it was loaded"
            hint = "the file has changed since: load it again; a step's function is written with def"
            self._report(message, code.co_filename, code.co_firstlineno, hint)
        return code.co_filename, function

    def _check_function(self, name: str, raw: object, file: str, function: Function) -> None:
        """Report a step that is not a plain function of self, or of self and inputs."""
        arguments = function.args
        count = len(arguments.posonlyargs) + len(arguments.args)
        rule = f"write def {name}(self), or def {name}(self, inputs) for a join"
        if isinstance(raw, (staticmethod, classmethod)):
            self._report(f"step {name!r} is a {type(raw).__name__}", file, function.lineno, rule)
        elif count == 0:
            self._report(f"step {name!r} takes no self", file, function.lineno, rule)
        elif count > 2 or arguments.vararg or arguments.kwonlyargs or arguments.kwarg:  # noqa: PLR2004 # self, inputs
            self._report(f"step {name!r} takes more than self and inputs", file, function.lineno, rule)
        if isinstance(function, ast.AsyncFunctionDef):
            hint = "write def instead of async def, and asyncio.run(...) inside"
            self._report(f"step {name!r} is an async function", file, function.lineno, hint)
        elif inspect.isgeneratorfunction(_function_of(raw)):
            hint = "collect the items in a list; yield turns the body into a generator that nobody runs"
            self._report(f"step {name!r} contains yield", file, function.lineno, hint)

    def _check_bindings(self, base: type, body: _Body) -> None:
        """Report steps that another statement of their class's body replaces, or a decorator has lost."""
        for name, bindings in body.bindings.items():
            step = next((binding for binding in bindings if binding.is_step), None)
            if step is None:
                continue
            is_lost = name in vars(base) and _marker(vars(base)[name]) is None
            if is_lost:
                self.lost.add(name)
            if len(bindings) > 1:
                lines = " and ".join(str(binding.line) for binding in bindings)
                message = f"step {name!r} is defined more than once in {base.__name__}, on lines {lines}"
                self._report(
                    message, body.file, bindings[-1].line, "the last definition replaces the others: rename one"
                )
            elif is_lost:
                message = f"step {name!r} is no longer a step after its decorators"
                hint = "put @step above the others, or let them use functools.wraps"
                self._report(message, body.file, step.line, hint)

    def _check_overrides(self, places: Mapping[str, tuple[str, int]]) -> None:
        """Report steps that replace a parameter of a base class, and what replaces a step without being one."""
        for name, owner in _owners(self.cls).items():
            raw = vars(owner)[name]
            bases = [base for base in self.cls.__mro__ if base is not owner and name in vars(base)]
            file, line = places.get(name, ("", 0))
            if _marker(raw) is not None:
                if any(isinstance(vars(base)[name], Parameter) for base in bases):
                    self._report(f"step {name!r} has the name of a parameter", file, line, "rename one of them")
                continue
            replaced = next((base for base in bases if _marker(vars(base)[name]) is not None), None)
            if replaced is None:
                continue
            if isinstance(raw, Parameter):
                self.lost.add(name)
                self._report(f"parameter {name!r} has the name of a step", file, line, "rename one of them")
            elif isinstance(raw, FunctionType):
                self.lost.add(name)
                message = f"{name!r} replaces a step of {replaced.__name__}, but is none"
                code = raw.__code__
                self._report(message, code.co_filename, code.co_firstlineno, "decorate it with @step, or rename it")

    def _body(self, cls: type) -> _Body | None:
        """Return a class's body, or None where its source can't be found."""
        prefix = f"{cls.__qualname__}."
        functions = [
            f for f in map(_function_of, vars(cls).values()) if f and f.__code__.co_qualname.startswith(prefix)
        ]
        module = sys.modules.get(cls.__module__)
        if functions:
            source = self._file(functions[0])
        else:
            name = getattr(module, "__file__", None)
            source = self._parsed(name, linecache.getlines(name, vars(module))) if isinstance(name, str) else None
        found = source.classes.get(cls.__qualname__) if source else None
        if source is None or found is None:
            return None
        # Of several classes of one name, the one that holds the methods.
        lines = {function.__code__.co_firstlineno for function in functions}
        node = next((n for n in found if any(n.lineno <= line <= (n.end_lineno or 0) for line in lines)), found[-1])
        return _Body(source.name, node.lineno, _bindings(node))

    def _file(self, function: FunctionType) -> _File | None:
        """Return the file, or the notebook's cell, that a function stands in; None where it can't be read."""
        name = function.__code__.co_filename
        if name in self.files:
            return self.files[name]
        linecache.checkcache(name)
        lines = linecache.getlines(name, function.__globals__)
        if not lines:
            try:
                lines, _ = inspect.findsource(function)  # knows what an interactive interpreter keeps
            except OSError:
                lines = []
        return self._parsed(name, lines)

    def _parsed(self, name: str, lines: list[str]) -> _File | None:
        """Parse a file once; None where it is empty or no Python."""
        if name not in self.files:
            self.files[name] = None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # whoever imported the file has had them
                try:
                    with _PARSING:
                        tree = ast.parse("".join(lines))
                except (SyntaxError, ValueError, RecursionError):
                    return None
            self.files[name] = _index(name, tree) if lines else None
        return self.files[name]

    def _report_unreadable(self, file: str) -> None:
        """Report once that a file can't be read."""
        message = f"the source of {self.cls.__name__} can't be read"
        if not any(error.file == file and error.message == message for error in self.errors):
            hint = "the graph is read from the source: define the flow in a file or in a notebook's cell"
            self._report(message, file, 0, hint)

    def _report(self, message: str, file: str, line: int, hint: str) -> None:
        """Add a mistake."""
        self.errors.append(FlowError(message, file=file, line=line, hint=hint))


def _index(name: str, tree: ast.Module) -> _File:
    """List the functions and classes of a file, those in functions and conditions included."""
    functions: dict[tuple[int, str], Function] = {}
    classes: dict[str, list[ast.ClassDef]] = {}
    stack: list[tuple[ast.AST, str]] = [(tree, "")]
    while stack:
        node, prefix = stack.pop()
        for child in _statements(node):
            if isinstance(child, Function):
                first = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
                functions[first, child.name] = child
                stack.append((child, f"{prefix}{child.name}.<locals>."))
            elif isinstance(child, ast.ClassDef):
                classes.setdefault(prefix + child.name, []).append(child)
                stack.append((child, f"{prefix}{child.name}."))
            elif not isinstance(child, ast.Expr):
                stack.append((child, prefix))
    return _File(name, functions, classes)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the statements, handlers and cases directly inside a statement."""
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        yield from getattr(node, field, ())


def _bindings(node: ast.ClassDef) -> dict[str, list[_Binding]]:
    """List the names that the statements directly in a class's body bind."""
    bindings: dict[str, list[_Binding]] = {}
    for statement in node.body:
        if isinstance(statement, Function):
            bindings.setdefault(statement.name, []).append(_Binding(statement.lineno, statement))
        elif isinstance(statement, ast.ClassDef):
            bindings.setdefault(statement.name, []).append(_Binding(statement.lineno))
        elif isinstance(statement, ast.Assign) or (isinstance(statement, ast.AnnAssign) and statement.value):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    bindings.setdefault(target.id, []).append(_Binding(statement.lineno))
    return bindings


def _last_name(decorator: ast.expr) -> str:
    """Return the last name of a decorator, called or not: ``step`` of ``@mlp_core.step(start=True)``."""
    target = decorator.func if isinstance(decorator, ast.Call) else decorator
    return target.attr if isinstance(target, ast.Attribute) else target.id if isinstance(target, ast.Name) else ""


def _owners(cls: type) -> dict[str, type]:
    """Return the class that each attribute comes from, base classes' attributes first, in the order of definition."""
    owners: dict[str, type] = {}
    for base in reversed(cls.__mro__[:-1]):
        owners.update(dict.fromkeys(vars(base), base))
    return owners


def _marker(raw: object) -> dict[str, Any] | None:
    """Return what ``@step`` left on a class's attribute; None where it is no step."""
    function = raw.__func__ if isinstance(raw, (staticmethod, classmethod)) else raw
    marker = getattr(function, STEP_ATTRIBUTE, None)
    return marker if isinstance(marker, dict) else None


def _function_of(raw: object) -> FunctionType | None:
    """Return the function that a class's attribute is, within its decorators; None where it is none."""
    if not callable(raw):
        return None
    inner = inspect.unwrap(raw)
    return inner if isinstance(inner, FunctionType) else None
