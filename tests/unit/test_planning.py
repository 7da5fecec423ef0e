"""What a flow will do before anything starts: options, their order and their refusals."""

from __future__ import annotations

import importlib.util
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from mlp_core import catch, environment, formats, limit, resources, retry, timeout
from mlp_core.errors import OptionError
from mlp_core.runner.planning import CheckedFlow, FlowErrors, check_flow, parse_option
from mlp_core.session import Session
from mlp_hookspecs import CatchPolicy, Resources, RetryPolicy
from mlp_hookspecs.types import OPTIONS_ATTRIBUTE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A project without plugins."""
    return Session.open(start=tmp_path_factory.mktemp("project"), flags={"plugins.safe": True})


FLOW = """
from mlp_core import *

FLOW
class Flow(FlowSpec):
    alpha = Parameter("alpha", default=1)

    START
    @step
    def start(self):
        self.xs = [1]
        self.next(self.fan)

    FAN
    @step
    def fan(self):
        self.next(self.work, foreach="xs")

    WORK
    @step
    def work(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    END
    @step
    def end(self):
        pass
"""


@pytest.fixture
def plan(tmp_path: Path, session: Session) -> Callable[..., CheckedFlow]:
    """A function that plans the flow with decorators in the places of its capital words."""
    count = iter(range(100))

    def make(*with_options: str, **decorators: str) -> CheckedFlow:
        code = FLOW
        for place in ("FLOW", "START", "FAN", "WORK", "END"):
            lines = textwrap.indent(decorators.get(place, ""), "" if place == "FLOW" else "    ")
            code = code.replace(f"    {place}\n" if place != "FLOW" else "FLOW\n", f"{lines}\n")
        path = tmp_path / f"planned_{next(count)}.py"
        path.write_text(code)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        try:
            spec.loader.exec_module(module)
            return check_flow(module.Flow, session, with_options)
        finally:
            del sys.modules[path.stem]

    return make


def test_every_option_becomes_its_part_of_the_plan(plan: Callable[..., CheckedFlow]) -> None:
    """What the decorators say is in the plan, and as data beside it."""
    checked = plan(
        WORK="""@retry(times=2, minutes_between_retries=0.5)
@catch(var="problem", print_exception=False)
@timeout(seconds=30, minutes=1, hours=1, grace=2)
@resources(cpu=1.5, memory=100, gpu=1, disk=5, shared_memory=7)
@environment(vars={"A": "1"})
@limit(3)
@formats(names={"x": "pickle"})"""
    )
    work = checked.step("work")
    assert work.plan.retry == RetryPolicy(2, 30)
    assert work.plan.catch == CatchPolicy("problem", print_exception=False)
    assert (work.plan.timeout_seconds, work.plan.grace_seconds) == (3690, 2)
    assert work.plan.resources == Resources(1.5, 100, 1, 5, {"shared_memory_mb": 7})
    assert (work.plan.variables, work.plan.concurrency, work.plan.formats) == ({"A": "1"}, 3, {"x": "pickle"})
    assert set(work.options) == {"retry", "catch", "timeout", "resources", "environment", "limit", "formats"}
    assert work.options["retry"] == {"times": 2, "minutes_between_retries": 0.5}
    assert checked.step("start").plan.retry is None
    with pytest.raises(KeyError):
        checked.step("nothing")


def test_the_step_wins_over_the_flow_and_the_command(plan: Callable[..., CheckedFlow]) -> None:
    """A step's own decorator holds; the flow's comes before that of ``--with``, which only fills gaps."""
    checked = plan(
        "retry:times=9", "timeout:seconds=5", FLOW="@retry(times=1)", WORK="@retry(times=0)", END="@timeout(hours=2)"
    )
    times = {step.node.name: step.plan.retry.times for step in checked.steps if step.plan.retry}
    assert times == {"start": 1, "fan": 1, "work": 0, "join": 1, "end": 1}
    limits = {step.node.name: step.plan.timeout_seconds for step in checked.steps}
    assert limits == {"start": 5, "fan": 5, "work": 5, "join": 5, "end": 7200}


@pytest.mark.parametrize(
    ("decorators", "message"),
    [
        ({"WORK": "@retry\n@retry(times=2)"}, "step 'work' has @retry more than once"),
        ({"FAN": "@catch"}, "step 'fan' has @catch, but where it goes depends on what it computes"),
        ({"WORK": '@catch(var="alpha")'}, "the artifact of @catch is 'alpha', which is something else in Flow"),
        ({"WORK": '@catch(var="work")'}, "the artifact of @catch is 'work', which is something else in Flow"),
        ({"WORK": '@catch(var="a b")'}, "the artifact of @catch 'a b' is refused"),
        ({"WORK": '@formats(names={"x": "parquet"})'}, "parquet"),
    ],
)
def test_refused_plans(plan: Callable[..., CheckedFlow], decorators: dict[str, str], message: str) -> None:
    """What a step cannot have is refused with the step's place."""
    with pytest.raises(FlowErrors) as caught:
        plan(**decorators)
    (error,) = caught.value.errors
    assert message in str(error)
    assert str(error).partition(":")[0].endswith(".py")


def test_all_mistakes_at_once(plan: Callable[..., CheckedFlow]) -> None:
    """Mistakes in several steps and on the command line are told together."""
    with pytest.raises(FlowErrors) as caught:
        plan("retri", "retry:tims=3", FAN="@catch", WORK="@retry\n@retry(times=2)")
    assert caught.value.message == "the flow has 4 mistakes"
    text = str(caught.value)
    for part in ("unknown decorator @retri", "no argument 'tims'", "step 'fan' has @catch", "@retry more than once"):
        assert part in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("retry", {"times": 3, "minutes_between_retries": 2.0}),
        ("retry:", {"times": 3}),
        ("retry:times=0", {"times": 0}),
        (" retry : times = 2 , minutes_between_retries = 0.5 ", {"times": 2, "minutes_between_retries": 0.5}),
        ("catch:var=problem,print_exception=false", {"var": "problem", "print_exception": False}),
        ("catch:print_exception=True", {"print_exception": True}),
        ("timeout:seconds=1e2", {"seconds": 100.0}),
        ("resources:cpu=0.5,memory=2000", {"cpu": 0.5, "memory": 2000}),
        ("environment:vars={'A': 'x,y', \"B\": '='}", {"vars": {"A": "x,y", "B": "="}}),
        ("limit:n=2", {"n": 2}),
        ("formats:names={'a': 'json'}", {"names": {"a": "json"}}),
    ],
)
def test_options_of_the_command_line(session: Session, text: str, expected: dict[str, Any]) -> None:
    """``--with`` takes a name, and arguments as Python literals or plain text; commas inside brackets part nothing."""
    option = parse_option(text, session.hooks)
    assert {name: getattr(option, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("retri", "unknown decorator @retri", "did you mean 'retry'?"),
        ("", "unknown decorator @;", ""),
        ("retry:tims=3", "--with 'retry:tims=3': retry has no argument 'tims'", "did you mean 'times'?"),
        ("retry:3", "retry has no argument '3'", "it takes times, minutes_between_retries"),
        ("retry:times", "retry has no argument 'times'", ""),
        ("retry:times=many", "times='many' is refused: it must be a whole number of at least 0", ""),
        ("retry:times=2.5", "times=2.5 is refused", ""),
        ("retry:times=-1", "times=-1 is refused", ""),
        ("retry:times=1,times=2", "retry has the argument 'times' twice", "keep one of them"),
        ("timeout", "a limit is needed: seconds, minutes or hours", ""),
        ("timeout:seconds=nan", "seconds=nan is refused", ""),
        ("timeout:seconds=inf", "seconds=inf is refused", ""),
        ("limit:n=0", "n=0 is refused", ""),
        ("environment:vars=5", "vars", ""),
        ("environment:vars={'A': 1}", "it must map text to text", ""),
        ("environment:vars={'A=B': 'x'}", "'A=B' is no name of an environment variable", ""),
        ("card", "card", "pip install mlp-plugin-cards"),
    ],
)
def test_refused_options_of_the_command_line(session: Session, text: str, message: str, hint: str) -> None:
    """What ``--with`` cannot mean is refused, naming the option, the argument, and what is near."""
    with pytest.raises(OptionError) as caught:
        parse_option(text, session.hooks)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: retry(tims=3), "@retry has no argument 'tims'; it takes times, minutes_between_retries"),
        (lambda: retry(-1), "@retry: times=-1 is refused"),
        (lambda: retry(1, 2, 3), "@retry takes 2 arguments at most, not 3"),
        (lambda: retry(1, times=2), "@retry has the argument 'times' twice"),
        (lambda: limit(0), "@limit: n=0 is refused"),
        (timeout, "@timeout: a limit is needed"),
        (lambda: environment(vars={"A": 1}), "@environment: "),
        (lambda: resources(cpu="many"), "@resources: cpu='many' is refused"),
        (lambda: formats(names=3), "@formats: "),
    ],
)
def test_refused_decorators(use: Callable[[], object], message: str) -> None:
    """A decorator's mistakes are told where it is written, in its own words."""
    with pytest.raises(TypeError) as caught:
        use()
    assert message in str(caught.value)


def test_ways_to_decorate() -> None:
    """A decorator works bare, called without arguments, by name and by position; each adds to those before."""

    @retry
    @timeout(seconds=3)
    @limit(2)
    @catch()
    def function() -> None:
        pass

    names = [option.name for option in getattr(function, OPTIONS_ATTRIBUTE)]
    assert names == ["catch", "limit", "timeout", "retry"]
    assert getattr(function, OPTIONS_ATTRIBUTE)[1].n == 2

    @retry(times=1)
    class Base:
        pass

    @limit(n=1)
    class Derived(Base):
        pass

    assert [option.name for option in vars(Base)[OPTIONS_ATTRIBUTE]] == ["retry"]
    assert [option.name for option in vars(Derived)[OPTIONS_ATTRIBUTE]] == ["limit"]
