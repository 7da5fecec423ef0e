"""Mistakes in a flow's source: each is found before anything runs, once, with its line and a hint."""

from __future__ import annotations

import linecache
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from mlp_core.graph import parse_flow

if TYPE_CHECKING:
    from pathlib import Path

    from mlp_core.errors import FlowError

PRELUDE = """
import functools
from enum import Enum
from types import SimpleNamespace
from mlp_core.parameters import Parameter
def step(function=None, *, start=False, end=False):
    if function is None:
        return lambda function: step(function, start=start, end=end)
    function.__mlp_step__ = {"start": start, "end": end}
    return function
def parallel(function):
    function.__mlp_options__ = (SimpleNamespace(name="parallel"),)
    return function
def rude(function):
    return lambda self: function(self)
"""
RESERVED = frozenset({"next", "input", "index", "merge_artifacts"})


def define(folder: Path, source: str) -> type:
    """Write a flow file, execute it as an import would, and return its flow."""
    file = folder / "flow.py"
    file.write_text(source)
    linecache.cache.pop(str(file), None)  # which would take a change within the clock's tick for none
    namespace: dict[str, Any] = {"__name__": "flow"}
    for text, name in ((PRELUDE, "<prelude>"), (source, str(file))):
        exec(compile(text, name, "exec"), namespace)  # noqa: S102 # the tests' own text
    return namespace.get("Flow") or namespace["Flöw"]


def check(folder: Path, source: str) -> list[FlowError]:
    """Return the mistakes of a flow file."""
    return list(parse_flow(define(folder, source), RESERVED).errors)


START_A = """
class Flow:
    @step
    def start(self): self.next(self.a)
"""
END = """
    @step
    def end(self): pass
"""
A_END = """
    @step
    def a(self): self.next(self.end)
"""


def first_step(*lines: str) -> str:
    """Return a flow whose first step has these lines, before the steps a, b, join and end."""
    body = "\n        ".join(lines)
    return f"""
class Flow:
    @step
    def start(self):
        {body}
    @step
    def a(self): self.next(self.join)
    @step
    def b(self): self.next(self.join)
    @step
    def join(self, inputs): self.next(self.end)
    @step
    def end(self): pass
"""


# A source, with "# !" on the lines of its mistakes, and the beginning of each message in the order of the lines.
CASES: dict[str, tuple[str, list[str]]] = {
    "unknown step": (
        START_A + "    @step\n    def a(self): self.next(self.edn)  # !\n" + END,
        ["step 'a' goes to 'edn', which is no step"],
    ),
    "undecorated step": (
        START_A.rstrip() + "  # !\n    def a(self): pass\n" + END,
        ["step 'start' goes to 'a', which is no step"],
    ),
    "no next": (
        START_A + "    @step\n    def a(self):  # !\n        self.x = 1\n" + END,
        ["step 'a' does not say what comes next"],
    ),
    "next not last": (
        first_step("self.next(self.a, self.b)  # !", "self.x = 1"),
        ["step 'start' calls self.next before its last statement, on line 6"],
    ),
    "two calls": (
        first_step("if self.x:", "    self.next(self.a)", "else:", "    self.next(self.b)  # !"),
        ["step 'start' calls self.next 2 times, on lines 6, 8"],
    ),
    "two calls in a row": (
        first_step("self.next(self.a)", "self.next(self.b)  # !"),
        ["step 'start' calls self.next 2 times, on lines 5, 6"],
    ),
    "conditional": (
        first_step("if self.x:", "    self.next(self.a, self.b)  # !"),
        ["step 'start' calls self.next under a condition"],
    ),
    "conditional expression": (
        first_step("self.x and self.next(self.a, self.b)  # !"),
        ["step 'start' calls self.next under a condition"],
    ),
    "in a match": (
        first_step("match self.x:", "    case 1: self.next(self.a, self.b)  # !"),
        ["step 'start' calls self.next under a condition"],
    ),
    "in try": (
        first_step("try:", "    self.next(self.a, self.b)  # !", "except ValueError: pass"),
        ["step 'start' calls self.next inside try"],
    ),
    "in with": (
        first_step("with self.x:", "    self.next(self.a, self.b)  # !"),
        ["step 'start' calls self.next inside with"],
    ),
    "in a loop": (
        first_step("for x in self.xs:", "    self.next(self.a, self.b)  # !"),
        ["step 'start' calls self.next in a loop"],
    ),
    "in a nested function": (
        first_step("def inner():", "    self.next(self.a, self.b)  # !", "inner()"),
        ["step 'start' calls self.next inside a nested function"],
    ),
    "returned": (
        first_step("return self.next(self.a, self.b)  # !"),
        ["step 'start' calls self.next in a return statement"],
    ),
    "assigned": (
        first_step("x = self.next(self.a, self.b)  # !"),
        ["step 'start' calls self.next inside another expression"],
    ),
    "not called": (
        first_step("go = self.next  # !", "go(self.a, self.b)"),
        ["step 'start' uses self.next without calling it"],
    ),
    "next without steps": (first_step("self.next()  # !"), ["step 'start' calls self.next without a step"]),
    "step as text": (first_step("self.next('a', self.b)  # !"), ["step 'start' gives self.next 'a', which is no step"]),
    "step as name": (first_step("self.next(a, self.b)  # !"), ["step 'start' gives self.next a, which is no step"]),
    "step called": (
        first_step("self.next(self.a(), self.b)  # !"),
        ["step 'start' gives self.next self.a(), which is no step"],
    ),
    "steps starred": (
        first_step("self.next(*self.steps)  # !"),
        ["step 'start' gives self.next *self.steps, which is no step"],
    ),
    "step computed": (
        first_step("self.next(getattr(self, self.name_of('a', 'much', 'longer', 'expression')), self.b)  # !"),
        ["step 'start' gives self.next getattr(self, self.name_of('a', 'much', 'longer', 'expres..., which is no step"],
    ),
    "step twice": (first_step("self.next(self.a, self.a)  # !"), ["step 'start' names the step 'a' twice"]),
    "misspelt argument": (
        first_step("self.next(self.a, forech='xs')  # !"),
        ["step 'start' gives self.next an unknown argument 'forech'"],
    ),
    "hidden arguments": (
        first_step("self.next(self.a, **{'foreach': 'xs'})  # !"),
        ["step 'start' hides arguments of self.next behind **"],
    ),
    "two arguments": (
        first_step("self.next(self.a, foreach='xs', num_parallel=2)  # !"),
        ["step 'start' gives self.next both foreach and num_parallel"],
    ),
    "foreach to several": (
        first_step("self.next(self.a, self.b, foreach='xs')  # !"),
        ["step 'start' gives foreach 2 steps, a, b"],
    ),
    "foreach to none": (first_step("self.next(foreach='xs')  # !"), ["step 'start' gives foreach no step"]),
    "foreach over a value": (
        first_step("self.next(self.b, foreach=self.xs)  # !").replace(
            "    @step\n    def a(self): self.next(self.join)\n", ""
        ),
        ["step 'start' gives foreach self.xs, which is no literal name"],
    ),
    "foreach over no name": (
        first_step("self.next(self.a, foreach='x y')  # !").replace(
            "    @step\n    def b(self): self.next(self.join)\n", ""
        ),
        ["step 'start' names no artifact in foreach: artifact 'x y' is refused"],
    ),
    "gang of none": (
        first_step("self.next(self.a, num_parallel=0)  # !")
        .replace("    @step\n    def b(self): self.next(self.join)\n", "")
        .replace("def a", "def a")
        .replace("    @step\n    def a", "    @step\n    @parallel\n    def a"),
        ["step 'start' gives num_parallel 0"],
    ),
    "gang without parallel": (
        first_step("self.next(self.a, num_parallel=2)  # !").replace(
            "    @step\n    def b(self): self.next(self.join)\n", ""
        ),
        ["step 'start' starts 'a' with num_parallel, but that has no @parallel"],
    ),
    "parallel without gang": (
        first_step("self.next(self.a, self.b)  # !").replace(
            "    @step\n    def a", "    @step\n    @parallel\n    def a"
        ),
        ["step 'start' goes to 'a', which is @parallel, without num_parallel"],
    ),
    "gang without join": (
        """
class Flow:
    @step
    def start(self): self.next(self.a, num_parallel=2)
    @step
    @parallel
    def a(self): self.next(self.b)  # !
    @step
    def b(self): self.next(self.join)
    @step
    def join(self, inputs): self.next(self.end)
    @step
    def end(self): pass
""",
        ["step 'a' is @parallel, but 'b' after it is no join"],
    ),
    "condition without cases": (
        first_step("self.next(self.a, self.b, condition='x')  # !"),
        ["step 'start' gives self.next a condition without cases"],
    ),
    "cases without condition": (
        first_step("self.next({1: self.a, 2: self.b})  # !"),
        ["step 'start' gives self.next cases without a condition"],
    ),
    "cases with foreach": (
        first_step("self.next({1: self.a, 2: self.b}, foreach='xs')  # !"),
        ["step 'start' gives a switch foreach"],
    ),
    "cases and steps": (
        first_step("self.next({1: self.a, 2: self.b}, self.b, condition='x')  # !"),
        ["step 'start' gives self.next cases and other steps"],
    ),
    "case that is no literal": (
        first_step("self.next({Kind.A: self.a, None: self.b}, condition='x')  # !  # !"),
        [
            "step 'start' has a case Kind.A, which is no literal",
            "step 'start' has a case None, which is no literal",
        ],
    ),
    "case twice": (
        first_step("self.next({1: self.a, '1': self.b}, condition='x')  # !"),
        ["step 'start' has two cases for '1'"],
    ),
    "cases hidden": (
        first_step("self.next({1: self.a, **self.more}, condition='x')  # !"),
        ["step 'start' hides cases of a switch behind **"],
    ),
    "one case": (
        first_step("self.next({1: self.end}, condition='x')  # !").split("    @step\n    def a")[0] + END,
        ["step 'start' gives a switch one case"],
    ),
    "no case": (first_step("self.next({}, condition='x')  # !"), ["step 'start' gives a switch no case"]),
    "condition as value": (
        first_step("self.next({1: self.end, 2: self.end}, condition=self.x)  # !").split("    @step\n    def a")[0]
        + END,
        ["step 'start' gives condition self.x, which is no literal name"],
    ),
    "unjoined split": (
        """
class Flow:
    @step
    def start(self): self.next(self.a, self.b)
    @step
    def a(self): self.next(self.end)  # !
    @step
    def b(self): self.next(self.end)
    @step
    def end(self): pass
""",
        ["the split of step 'start' is not joined before the end: 'a' goes to 'end'"],
    ),
    "unjoined foreach": (
        "class Flow:\n    @step\n    def start(self): self.next(self.a, foreach='xs')\n"
        "    @step\n    def a(self): self.next(self.end)  # !\n" + END,
        ["the foreach of step 'start' is not joined before the end: 'a' goes to 'end'"],
    ),
    "one branch escapes": (
        """
class Flow:
    @step
    def start(self): self.next(self.a, self.b)
    @step
    def a(self): self.next({1: self.a2, 2: self.end}, condition='x')  # !
    @step
    def a2(self): self.next(self.join)
    @step
    def b(self): self.next(self.join)
    @step
    def join(self, inputs): self.next(self.end)
    @step
    def end(self): pass
""",
        ["the split of step 'start' is not joined before the end: 'a' goes to 'end'"],
    ),
    "join without inputs": (
        """
class Flow:
    @step
    def start(self): self.next(self.a, self.b)
    @step
    def a(self): self.next(self.join)
    @step
    def b(self): self.next(self.join)  # !
    @step
    def join(self): self.next(self.end)
    @step
    def end(self): pass
""",
        ["step 'join' is reached from two branches of the split of step 'start', from 'a' and from 'b'"],
    ),
    "join without split": (
        START_A + "    @step\n    def a(self, inputs): self.next(self.end)  # !\n" + END,
        ["step 'a' takes inputs, but no split is open on the way from 'start'"],
    ),
    "join of different splits": (
        """
class Flow:
    @step
    def start(self): self.next(self.a, self.b)
    @step
    def a(self): self.next(self.a1, self.a2)
    @step
    def a1(self): self.next(self.join)
    @step
    def a2(self): self.next(self.join)
    @step
    def b(self): self.next(self.join)  # !
    @step
    def join(self, inputs): self.next(self.end)
    @step
    def end(self): pass
""",
        ["the join 'join' is reached from 'a1' in the split of step 'a', and from 'b' in the split of step 'start'"],
    ),
    "two joins": (
        """
class Flow:
    @step
    def start(self): self.next(self.a, self.b)
    @step
    def a(self): self.next(self.join_a)
    @step
    def b(self): self.next(self.join_b)
    @step
    def join_a(self, inputs): self.next(self.end)
    @step
    def join_b(self, inputs): self.next(self.end)  # !
    @step
    def end(self): pass
""",
        ["the split of step 'start' has two joins, 'join_"],
    ),
    "cases joined by different steps": (
        """
class Flow:
    @step
    def start(self): self.next(self.one, foreach="xs")
    @step
    def one(self): self.next({1: self.a, 2: self.b}, condition="c")
    @step
    def a(self): self.next(self.join_a)
    @step
    def b(self): self.next(self.join_b)
    @step
    def join_a(self, inputs): self.next(self.end)
    @step
    def join_b(self, inputs): self.next(self.end)  # !
    @step
    def end(self): pass
""",
        ["the foreach of step 'start' has two joins, 'join_"],
    ),
    "inside and outside of a split": (
        """
class Flow:
    @step
    def start(self): self.next({1: self.s, 2: self.x}, condition="c")
    @step
    def s(self): self.next(self.a, self.b)
    @step
    def a(self): self.next(self.x)  # !
    @step
    def b(self): self.next(self.join)
    @step
    def x(self): self.next(self.join)
    @step
    def join(self, inputs): self.next(self.end)
    @step
    def end(self): pass
""",
        ["step 'x' is reached from 'start', outside of any split, and from 'a', the split of step 's'"],
    ),
    "loop out of a split": (
        """
class Flow:
    @step
    def start(self): self.next(self.s)
    @step
    def s(self): self.next(self.a, self.b)
    @step
    def a(self): self.next({1: self.s, 2: self.c}, condition="c")  # !
    @step
    def c(self): self.next(self.join)
    @step
    def b(self): self.next(self.join)
    @step
    def join(self, inputs): self.next(self.end)
    @step
    def end(self): pass
""",
        ["step 's' is reached from 'start', outside of any split, and from 'a', the split of step 's'"],
    ),
    "split straight to join": (
        first_step("self.next(self.a, self.join)  # !").replace(
            "    @step\n    def b(self): self.next(self.join)\n", ""
        ),
        ["the split of step 'start' goes straight to the join 'join'"],
    ),
    "foreach straight to join": (
        first_step("self.next(self.join, foreach='xs')  # !").split("    @step\n    def a")[0]
        + "    @step\n    def join(self, inputs): self.next(self.end)\n"
        + END,
        ["the foreach of step 'start' goes straight to the join 'join'"],
    ),
    "switch straight to join": (
        first_step("self.next(self.a, self.b)").replace(
            "def a(self): self.next(self.join)", "def a(self): self.next({1: self.a, 2: self.join}, condition='x')  # !"
        ),
        ["the switch of step 'a' goes straight to the join 'join'"],
    ),
    "join that splits": (
        first_step("self.next(self.a, self.b)").replace(
            "def join(self, inputs): self.next(self.end)",
            "def join(self, inputs): self.next(self.c, foreach='xs')  # !\n"
            "    @step\n    def c(self): self.next(self.d)\n    @step\n    def d(self, inputs): self.next(self.end)",
        ),
        ["step 'join' joins and goes on with a foreach"],
    ),
    "end with next": (
        START_A + A_END + "    @step\n    def end(self): self.next(self.a)  # !\n",
        ["'end' is the end, but calls self.next"],
    ),
    "end with inputs": (
        first_step("self.next(self.a, self.b)")
        .replace("    @step\n    def join(self, inputs): self.next(self.end)\n", "")
        .replace("self.join", "self.end")
        .replace("def end(self)", "def end(self, inputs)  ")
        .replace("pass", "pass  # !"),
        ["'end' is the end, but takes inputs"],
    ),
    "start with inputs": (
        START_A.replace("(self)", "(self, inputs)").rstrip() + "  # !\n" + A_END + END,
        ["'start' is the start, but takes inputs"],
    ),
    "back to the start": (
        START_A + "    @step\n    def a(self): self.next({1: self.start, 2: self.end}, condition='x')  # !\n" + END,
        ["step 'a' goes back to the start, 'start'"],
    ),
    "unreachable": (
        START_A + A_END + "    @step\n    def lonely(self): self.next(self.end)  # !\n" + END,
        ["step 'lonely' is never reached"],
    ),
    "loop without switch": (
        START_A
        + "    @step\n    def a(self): self.next(self.b)\n    @step\n    def b(self): self.next(self.c)\n"
        + "    @step\n    def c(self): self.next(self.a)  # !\n"
        + END,
        ["the steps a -> b -> c -> a are a loop that no switch leaves"],
    ),
    "loop that never ends": (
        START_A
        + "    @step\n    def a(self): self.next({1: self.a, 2: self.b}, condition='x')  # !\n"
        + "    @step\n    def b(self): self.next({1: self.a, 2: self.b}, condition='x')\n"
        + END.replace("def end(self)", "def end(self) ").replace("pass", "pass  # !"),
        ["after step 'a' the flow can never end: none of its cases leads to 'end'", "step 'end' is never reached"],
    ),
    "no start": (
        "class Flow:  # !\n    @step\n    def begin(self): self.next(self.end)\n" + END,
        ["flow 'Flow' has no start step"],
    ),
    "no end": (
        "class Flow:  # !\n    @step\n    def start(self): self.next(self.last)\n    @step\n    def last(self): pass\n",
        ["flow 'Flow' has no end step"],
    ),
    "no step": ("class Flow:  # !\n    def start(self): pass\n", ["flow 'Flow' has no step"]),
    "several starts": (
        "class Flow:\n    @step(start=True)\n    def a(self): self.next(self.end)\n"
        "    @step(start=True)\n    def b(self): self.next(self.end)  # !\n" + END,
        ["the steps a, b are all marked as the start"],
    ),
    "start marked and named": (
        "class Flow:\n    @step(start=True)\n    def a(self): self.next(self.start)  # !\n"
        "    @step\n    def start(self): self.next(self.end)\n" + END,
        ["step 'a' is marked as the start, but a step is named 'start' too"],
    ),
    "too many arguments": (
        START_A + "    @step\n    def a(self, inputs, more): self.next(self.end)  # !\n" + END,
        ["step 'a' takes more than self and inputs", "step 'a' takes inputs, but no split is open"],
    ),
    "keyword arguments": (
        START_A + "    @step\n    def a(self, **more): self.next(self.end)  # !\n" + END,
        ["step 'a' takes more than self and inputs"],
    ),
    "no self": (
        START_A + "    @step\n    def a(): self.next(self.end)  # !\n" + END,
        ["step 'a' takes no self"],
    ),
    "static method": (
        START_A + "    @staticmethod\n    @step\n    def a(self): self.next(self.end)  # !\n" + END,
        ["step 'a' is a staticmethod"],
    ),
    "async": (
        START_A + "    @step\n    async def a(self): self.next(self.end)  # !\n" + END,
        ["step 'a' is an async function"],
    ),
    "generator": (
        START_A + "    @step\n    def a(self):  # !\n        yield 1\n        self.next(self.end)\n" + END,
        ["step 'a' contains yield"],
    ),
    "no function": (
        START_A + "    a = SimpleNamespace(__mlp_step__={})  # !\n" + END,
        ["step 'a' is no function"],
    ),
    "private name": (
        START_A.replace("self.a", "self._a") + "    @step\n    def _a(self): self.next(self.end)  # !\n" + END,
        ["step '_a' is refused"],
    ),
    "unicode name": (
        START_A.replace("self.a", "self.ä") + "    @step\n    def ä(self): self.next(self.end)  # !\n" + END,
        ["step '\\xe4' is refused"],
    ),
    "unicode flow": ("class Flöw:  # !\n    @step\n    def work(self): pass\n", ["flow 'Fl\\xf6w' is refused"]),
    "reserved name": (
        START_A.replace("self.a", "self.input") + "    @step\n    def input(self): self.next(self.end)  # !\n" + END,
        ["step 'input' has a name that every flow defines"],
    ),
    "defined twice": (
        START_A + A_END + "    @step\n    def a(self): self.next(self.end)  # !\n" + END,
        ["step 'a' is defined more than once in Flow, on lines 7 and 9"],
    ),
    "step and parameter": (
        START_A + "    a = Parameter('a')\n    @step\n    def a(self): self.next(self.end)  # !\n" + END,
        ["step 'a' is defined more than once in Flow, on lines 5 and 7"],
    ),
    "parameter in the base": (
        "class Base:\n    a = Parameter('a')\n"
        + START_A.replace("Flow", "Flow(Base)")
        + A_END.rstrip()
        + "  # !\n"
        + END,
        ["step 'a' has the name of a parameter"],
    ),
    "step in the base": (
        START_A.replace("Flow", "Base")
        + A_END
        + END
        + "class Flow(Base):\n    a: int = Parameter('a')  # !\n    def helper(self): pass\n",
        ["parameter 'a' has the name of a step"],
    ),
    "override without step": (
        START_A.replace("Flow", "Base") + A_END + END + "class Flow(Base):\n    def a(self): pass  # !\n",
        ["'a' replaces a step of Base, but is none"],
    ),
    "lost by a decorator": (
        START_A + "    @rude\n    @step\n    def a(self): self.next(self.end)  # !\n" + END,
        ["step 'a' is no longer a step after its decorators"],
    ),
    "assigns to a step": (
        START_A + "    @step\n    def a(self):\n        self.end = 1  # !\n        self.next(self.end)\n" + END,
        ["step 'a' assigns to self.end, which is a step"],
    ),
    "assigns to a parameter": (
        START_A + "    p = Parameter('p')\n    @step\n    def a(self):\n        for self.p in (): pass  # !\n"
        "        self.next(self.end)\n" + END,
        ["step 'a' assigns to self.p, which is a parameter"],
    ),
    "assigns to a constant": (
        START_A
        + "    size = 3\n    @step\n    def a(self):\n        self.size += 1  # !\n        self.next(self.end)\n"
        + END,
        ["step 'a' assigns to self.size, which is an attribute of the class"],
    ),
    "assigns to the platform": (
        START_A + "    @step\n    def a(self):\n        del self.input  # !\n        self.next(self.end)\n" + END,
        ["step 'a' assigns to self.input, which every flow defines"],
    ),
    "parameter's type": (
        "class Flow:\n    p = Parameter('p', type=object)  # !\n    @step\n    def work(self): pass\n",
        ["parameter 'p': a parameter can't be of type object"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_mistake(tmp_path: Path, case: str) -> None:
    """The mistake is reported once, on its line, with a hint."""
    source, messages = CASES[case]
    errors = check(tmp_path, source)
    for error, message in zip(errors, messages, strict=True):
        assert error.message.startswith(message)
        assert "\n" not in error.message
        assert error.hint
        assert error.file == str(tmp_path / "flow.py")
    marked = [number for number, line in enumerate(source.splitlines(), 1) for _ in range(line.count("# !"))]
    assert set(marked) == {error.line for error in errors}


def test_all_mistakes_are_listed(tmp_path: Path) -> None:
    """Independent mistakes come together, in the order of their lines, and print as a compiler's do."""
    source = """
class Flow:
    p = Parameter("with")
    @step
    def start(self): self.next(self.aa, foreach=xs)
    @step
    def a(self, one, two): self.next(self.join)
    @step
    def join(self, inputs):
        self.a = 1
        self.next(self.end, nope=1)
    @step
    def end(self): self.next()
"""
    errors = check(tmp_path, source)
    assert [error.line for error in errors] == [3, 5, 5, 7, 10, 11, 13, 13]
    assert str(errors[1]) == (
        f"{tmp_path / 'flow.py'}:5: step 'start' gives foreach xs, which is no literal name\n"
        '  hint: assign it to an artifact first: self.xs = xs, then foreach="xs"'
    )
    assert errors == sorted(errors, key=lambda error: error.line)


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("self.next(self.joni)", "did you mean 'join'?"),
        ("self.next(self.qqqq)", "the steps are start, a, b, join, end"),
        ("self.next('a', self.b)", "write self.a"),
        ("self.next(self.a(), self.b)", "write self.a, without parentheses"),
        ("self.next(self.a, num_paralel=2)", "did you mean 'num_parallel'?"),
        ("self.next({1: self.a}, condition='x')", "write self.next(self.a)"),
        ("if self.x: self.next(self.a)", "let a switch decide"),
        ("self.next(self.a, foreach=self.xs)", 'write foreach="xs"'),
        ("self.next(self.define)", "decorate define with @step"),
    ],
)
def test_hint(tmp_path: Path, line: str, hint: str) -> None:
    """The hint names what was most likely meant."""
    source = first_step(line).replace("    def end", "    def define(self): pass\n    @step\n    def end")
    source = source.replace("    @step\n    def define", "    def define")
    assert any(error.hint.startswith(hint) for error in check(tmp_path, source))


def test_consequences_are_left_out(tmp_path: Path) -> None:
    """A misspelt way makes a whole branch unreached and a join incomplete; only the spelling is reported."""
    source = first_step("self.next(self.a, self.bb)").replace("self.next(self.join)", "self.next(self.joi)", 1)
    assert [error.message for error in check(tmp_path, source)] == [
        "step 'start' goes to 'bb', which is no step",
        "step 'a' goes to 'joi', which is no step",
    ]


def test_source_that_is_not_there() -> None:
    """A class whose source nobody kept is one mistake, which says what is needed."""
    namespace: dict[str, Any] = {"__name__": "flow"}
    exec(PRELUDE + START_A + A_END + END, namespace)  # noqa: S102 # the tests' own text
    parsed = parse_flow(namespace["Flow"], RESERVED)
    assert [error.message for error in parsed.errors] == ["the source of Flow can't be read"]
    assert "notebook" in parsed.errors[0].hint
    assert [node.name for node in parsed.graph.steps] == ["start", "a", "end"]


@pytest.mark.parametrize(
    "text", ["", "class Flow:\n    @step\n    def start(self", "\0", "\n\n" + START_A + A_END + END]
)
def test_source_that_changed(tmp_path: Path, text: str) -> None:
    """A file that was emptied, broken or edited after it was loaded is told from the class that is in memory."""
    flow = define(tmp_path, START_A + A_END + END)
    (tmp_path / "flow.py").write_text(text)
    errors = parse_flow(flow, RESERVED).errors
    assert errors
    assert all("source of" in error.message for error in errors)


def test_function_from_elsewhere(tmp_path: Path) -> None:
    """A step's function may be written outside of the class, and a class may get it later."""
    source = "def work(self): self.next(self.end)\n" + START_A + "    a = step(work)\n" + END
    assert check(tmp_path, source) == []
    late = define(tmp_path, START_A + A_END + END + "@step\ndef b(self): self.next(self.end)\nFlow.b = b\n")
    assert [error.message for error in parse_flow(late, RESERVED).errors] == ["step 'b' is never reached"]


def test_removed_step(tmp_path: Path) -> None:
    """A class may remove a base class's step by any other value, but then nothing may go there."""
    base = START_A.replace("Flow", "Base") + A_END + END
    source = base + "class Flow(Base):\n    a = None\n"
    assert [error.message for error in check(tmp_path, source)] == ["step 'start' goes to 'a', which is no step"]
    source += "    @step\n    def start(self): self.next(self.end)\n"
    assert check(tmp_path, source) == []


def test_file_that_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class whose file is gone is told so, even where it has no function of its own to find the file by."""
    flow = define(tmp_path, START_A.replace("Flow", "Base") + A_END + END + "class Flow(Base): pass\n")
    module = SimpleNamespace(__file__=str(tmp_path / "flow.py"))
    monkeypatch.setitem(sys.modules, "flow", module)
    assert parse_flow(flow, RESERVED).errors == ()
    (tmp_path / "flow.py").unlink()
    linecache.clearcache()
    assert [error.message for error in parse_flow(flow, RESERVED).errors] == ["the source of Flow can't be read"]


def test_lambda(tmp_path: Path) -> None:
    """A lambda has no statement that could be self.next."""
    errors = check(tmp_path, START_A + "    a = step(lambda self: self.next(self.end))  # !\n" + END)
    assert [error.line for error in errors] == [5]
    assert "def" in errors[0].hint


def test_long_flow(tmp_path: Path) -> None:
    """A thousand steps in a row are within every limit of recursion."""
    steps = "".join(f"    @step\n    def s{i}(self): self.next(self.s{i + 1})\n" for i in range(1000))
    source = "class Flow:\n" + steps.replace("def s0(", "def start(").replace("self.s1000", "self.end") + END
    assert check(tmp_path, source) == []


EXPRESSIONS = st.recursive(
    st.sampled_from(
        ["self.a", "self.b", "self.end", "self", "a", "'a'", "1", "-1", "None", "...", "self.a.b", "b''", "xs"]
    ),
    lambda inner: st.one_of(
        st.builds("({})()".format, inner),
        st.builds("*{}".format, inner),
        st.builds("lambda self: {}".format, inner),
        st.builds("[{} for self in {}]".format, inner, inner),
        st.builds("{{{}: {}, **{}}}".format, inner, inner, inner),
        st.builds("{{{}: self.a, {}: self.b}}".format, inner, inner),
        st.builds("f'{{{}}}'".format, st.sampled_from(["self.a", "xs"])),
        st.builds("{} if {} else {}".format, inner, inner, inner),
        st.builds("(x := {})".format, inner),
        st.builds("self.next({})".format, inner),
    ),
    max_leaves=4,
)
KEYWORDS = st.tuples(st.sampled_from(["foreach", "num_parallel", "condition", "other"]), EXPRESSIONS).map("=".join)
CALLS = st.lists(EXPRESSIONS | KEYWORDS, max_size=3).map(", ".join).map("self.next({})".format)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(lines=st.lists(CALLS | EXPRESSIONS, min_size=1, max_size=3))
def test_any_call_is_understood_or_refused(tmp_path: Path, lines: list[str]) -> None:
    """Whatever stands in self.next, reading it raises nothing, and what is refused has a line and a hint."""
    source = first_step(*lines)
    try:
        compile(source, "flow.py", "exec")
    except SyntaxError:
        reject()
    for error in check(tmp_path, source):
        assert 0 < error.line <= source.count("\n")
        assert error.hint
