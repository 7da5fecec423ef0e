"""What can be asked for is checked where it is written, and equal requests look equal."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Any

import pluggy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlp_hookspecs import EnvironmentSpec, Option, StepInfo, StepNode, specs
from mlp_hookspecs.requirements import OLDEST_PYTHON, PLATFORM
from mlp_plugin_uv import Pypi, PypiBase, Uv, plugin, pypi, pypi_base
from mlp_plugin_uv.normal import normal_packages

STEP = StepInfo("Train", StepNode("start", "linear"))


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ({"six": "1.17.0"}, {"six": "==1.17.0"}),
        ({"Scikit_Learn": ">= 1.4, <2"}, {"scikit-learn": "<2,>=1.4"}),
        ({"pandas[Parquet, aws]": "~=2.1"}, {"pandas[aws,parquet]": "~=2.1"}),
        ({"b": "", "a": " "}, {"a": "", "b": ""}),
        ({"torch": "2.4.0+cpu"}, {"torch": "==2.4.0+cpu"}),
        ({"six": "1.*"}, {"six": "==1.*"}),
    ],
)
def test_packages_have_one_form(given: dict[str, str], normal: dict[str, str]) -> None:
    """Names, extras, versions and specifiers are written one way, in one order."""
    assert dict(normal_packages(given)) == normal
    assert list(normal_packages(given)) == sorted(normal)


@given(
    st.dictionaries(st.from_regex(r"[a-z]{1,4}(\[[a-z]{1,3}\])?", fullmatch=True), st.sampled_from(["", "1", ">=1,<2"]))
)
def test_normal_form_is_stable(packages: dict[str, str]) -> None:
    """The normal form of a normal form is itself, so that a requirement can be read back."""
    assert normal_packages(normal_packages(packages)) == normal_packages(packages)


@pytest.mark.parametrize(
    ("fields", "culprit"),
    [
        ({"packages": {"six": "1.0\n--index-url=x"}}, "the version of six"),
        ({"packages": {"six": "@ git+ssh://host/six"}}, "the version of six"),
        ({"packages": {"six": 1.0}}, "must be text, such as"),
        ({"packages": {"six": ">=1,"}}, "the version of six"),
        ({"packages": {"-r six": "1"}}, "package name '-r six'"),
        ({"packages": {"six ; os_name": "1"}}, "package name"),
        ({"packages": {7: "1"}}, "package name 7"),
        ({"packages": {"Six": "1", "six": "1"}}, "six more than once"),
        ({"packages": ["six"]}, "a mapping of names to versions"),
        ({"python": 3.12}, "python='3.12'"),
        ({"python": "3"}, "a version such as '3.12'"),
        ({"python": "3.10"}, "3.11 or later"),
        ({"disabled": "yes"}, "disabled"),
        ({"package": {"six": "1"}}, "no argument 'package'; it takes packages, python, file"),
    ],
)
def test_mistakes_are_refused_where_they_are_written(fields: dict[str, Any], culprit: str) -> None:
    """A bad argument is refused when the flow is imported, with a message that names the decorator and the culprit."""
    with pytest.raises(TypeError, match="@pypi") as caught:
        pypi(**fields)
    assert culprit in str(caught.value)


def plan(*options: Option) -> EnvironmentSpec | None:
    """Return the environment that the plugin plans for a step with some options."""
    answer = plugin.mlp_plan_step(STEP, options)
    return None if answer is None else answer.environment


def test_plan_names_the_environment() -> None:
    """The option becomes a requirement that equals that of an option which means the same."""
    spec = plan(Pypi(packages={"six": "1.17.0", "Attrs": ""}, python="3.12"))
    assert spec == EnvironmentSpec("pypi", {"packages": {"attrs": "", "six": "==1.17.0"}, "python": "3.12"})
    assert (
        spec.digest == EnvironmentSpec("pypi", {"python": "3.12", "packages": {"six": "==1.17.0", "attrs": ""}}).digest
    )


def test_python_defaults_to_the_running_one() -> None:
    """Without a version, the step runs under the minor version that starts the run, which is told from a wish."""
    spec = plan(Pypi(packages={"six": ""}))
    assert spec is not None
    assert "python" not in spec.requirement
    assert spec.requirement["default_python"] == f"{sys.version_info.major}.{sys.version_info.minor}"


def test_step_can_opt_out() -> None:
    """A disabled option, and other plugins' options, plan nothing."""
    assert plan(Pypi(packages={"six": ""}, disabled=True)) is None
    assert plan(Option()) is None


def test_decorator_records_on_steps_and_flows() -> None:
    """``@pypi(...)`` and ``@pypi`` record the option on what they decorate, and return it."""

    @pypi
    class Flow:
        @pypi(packages={"six": "1.17.0"})
        def start(self) -> None:
            """Do nothing."""

    assert Flow.__dict__["__mlp_options__"] == (Pypi(),)
    assert Flow.start.__dict__["__mlp_options__"] == (Pypi(packages={"six": "1.17.0"}),)
    assert Pypi.levels == ("step", "flow")


def test_base_is_of_a_flow() -> None:
    """``@pypi_base(...)`` and ``@pypi_base`` record their option on a flow, and refuse a step."""

    @pypi_base(packages={"six": "1.17.0"})
    class Flow:
        def start(self) -> None:
            """Do nothing."""

    assert Flow.__dict__["__mlp_options__"] == (PypiBase(packages={"six": "1.17.0"}),)
    assert pypi_base(type("Bare", (), {})).__mlp_options__ == (PypiBase(),)
    with pytest.raises(TypeError, match=r"@pypi_base decorates a flow; a step takes @pypi"):
        pypi_base(packages={})(Flow.start)
    with pytest.raises(TypeError, match="@pypi_base decorates a flow"):
        pypi_base(Flow.start)


def test_hooks_fit_the_contract() -> None:
    """Every hook of the plugin is one of the contract's, with its arguments."""
    manager = pluggy.PluginManager("mlp")
    manager.add_hookspecs(specs)
    manager.register(plugin)
    manager.check_pending()
    assert manager.hook.mlp_options() == [(Pypi, PypiBase, Uv)]
    assert [(b.kind, b.name) for b in manager.hook.mlp_backends()[0]] == [("environment", "pypi")]


def test_platform_is_what_the_core_ships_without() -> None:
    """Every environment gets what the core's worker imports and does not bring along, under a Python that it knows."""
    from mlp_hookspecs import PLATFORM_FLOORS

    assert tuple(name + bound for name, bound in PLATFORM.items()) == PLATFORM_FLOORS
    oldest = ".".join(map(str, OLDEST_PYTHON))
    assert importlib.metadata.metadata("mlp-hookspecs")["Requires-Python"] == f">={oldest}"
