"""What can be asked for is checked where it is written, and equal requests look equal."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlp_hookspecs import Option, StepInfo, StepNode
from mlp_hookspecs.requirements import normal_python
from mlp_plugin_conda import Conda, CondaBase, conda, conda_base
from mlp_plugin_conda.plugin import mlp_plan_step
from mlp_plugin_conda.requirement import normal_channels, normal_packages, normal_pip

VERSIONS = st.from_regex(r"[0-9]{1,2}(\.[0-9]{1,2}){0,2}", fullmatch=True)
CLAUSES = st.builds("{}{}".format, st.sampled_from(["==", "!=", ">=", "<=", "<", ">", "~="]), VERSIONS)
SPECIFIERS = st.one_of(
    st.just(""),
    VERSIONS,
    st.builds("={}".format, VERSIONS),
    st.builds("{}.*".format, VERSIONS),
    st.builds("{}=py312*".format, VERSIONS),
    st.lists(CLAUSES, min_size=1, max_size=3).map(", ".join),
)


def plan(*options: Option) -> dict[str, Any] | None:
    """Return the requirement that a step with these options gets."""
    node = StepNode(name="start", kind="linear")
    planned = mlp_plan_step(StepInfo("Flow", node), options)
    return None if planned is None or planned.environment is None else dict(planned.environment.requirement)


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("", ""),
        ("*", ""),
        ("1.2", "==1.2"),
        ("==1.2", "==1.2"),
        ("=1.2", "1.2.*"),
        ("1.2.*", "1.2.*"),
        ("< 2, >=1", "<2,>=1"),
        (">=1,>=1", ">=1"),
        ("1.2=py312_0", "==1.2 py312_0"),
        ("1.2 py312_0", "==1.2 py312_0"),
        ("*=cuda*", "* cuda*"),
        ("~=1.2", "~=1.2"),
    ],
)
def test_versions_have_a_normal_form(given: str, normal: str) -> None:
    """A specifier is written one way, whichever way it was asked for."""
    assert normal_packages({"NumPy": given}) == {"numpy": normal}


@given(SPECIFIERS)
def test_normal_form_is_its_own_normal_form(specifier: str) -> None:
    """What is normal stays as it is, so that merged options mean what they said."""
    once = normal_packages({"x": specifier})
    assert normal_packages(once) == once


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("packages", {"numpy": 1}, "it must be text"),
        ("packages", {"numpy": "latest"}, "the version of numpy is 'latest'"),
        ("packages", {"numpy": "1; rm"}, "the version of numpy"),
        ("packages", {"num py": ""}, "package name 'num py' is refused"),
        ("packages", {"-x": ""}, "package name '-x' is refused"),
        ("packages", {"python": "3.12"}, "an argument of its own"),
        ("packages", {"x": "", "X": ""}, "more than once"),
        ("packages", {"x": "", "conda-forge::x": ""}, "more than once"),
        ("packages", "numpy", "must be a mapping"),
        ("libraries", {"numpy": "latest"}, "the version of numpy is 'latest'"),
        ("pip", {"six": "latest"}, "the version of six"),
        ("pip", {"a_b": "", "A-b[x]": ""}, "more than once"),
        ("pip", {"six @ http://x": ""}, "pip name"),
        ("python", 3.12, "it must be text"),
        ("python", "3.10", "must be 3.11 or later"),
        ("python", "three", "must be a version"),
        ("channels", 3, "it must be a sequence"),
        ("channels", ["--override"], "is refused"),
        ("channels", ["ftp://x/y"], "is refused"),
        ("disabled", "yes", "disabled"),
    ],
)
def test_strange_arguments_are_refused(field: str, value: object, message: str) -> None:
    """What cannot be meant is refused where the decorator stands, with the value that is wrong."""
    with pytest.raises(TypeError, match=message):
        conda(**{field: value})


@pytest.mark.parametrize("url", ["https://ada:secret@host/c", "https://ada@host/c", "https://host/t/secret/c"])
def test_credentials_in_channels_are_refused(url: str) -> None:
    """A URL with a password or token is refused without repeating it, with where to keep it instead."""
    with pytest.raises(TypeError, match=r"netrc") as caught:
        conda(channels=[url])
    assert "secret" not in str(caught.value)


def test_channels_keep_their_order() -> None:
    """Channels are preferred in their order; one that is named again says nothing new."""
    assert normal_channels("a") == ("a",)
    assert normal_channels(["b", "https://x/y/", "b", "https://x/y"]) == ("b", "https://x/y")


def test_equal_requests_have_equal_digests() -> None:
    """Spelling does not matter: the requirement, and so its digest, is the same."""
    one = Conda(packages={"NumPy": "2.1", "zlib": " >=1 , <2"}, python=" 3.12", pip={"Six": "1.17.0"})
    other = Conda(libraries={"zlib": "<2,>=1"}, packages={"numpy": "==2.1"}, python="3.12", pip={"six": "==1.17.0"})
    assert one.environment is not None
    assert other.environment is not None
    assert one.environment.digest == other.environment.digest
    assert one == other


def test_packages_win_over_libraries() -> None:
    """The older name of packages adds to them."""
    assert Conda(packages={"x": "1"}, libraries={"x": "2", "y": "3"}).packages == {"x": "==1", "y": "==3"}


def test_step_is_merged_over_the_base() -> None:
    """Packages are united, the step's version wins, and other fields are the step's where it has them."""
    base = CondaBase(packages={"numpy": "1", "c::zlib": "1"}, channels=["a"], python="3.12", pip={"six": "1", "b": ""})
    own = Conda(packages={"zlib": "2"}, pip={"six[x]": "2"})
    assert plan(own, base) == {
        "packages": {"numpy": "==1", "zlib": "==2"},
        "channels": ["a"],
        "pip": {"b": "", "six[x]": "==2"},
        "python": "3.12",
    }
    assert plan(Conda(channels=["b"], python="3.13"), base) == {
        "packages": {"c::zlib": "==1", "numpy": "==1"},
        "channels": ["b"],
        "pip": {"b": "", "six": "==1"},
        "python": "3.13",
    }


def test_base_holds_for_steps_without_one() -> None:
    """A flow's base is the environment of its other steps, and a disabled step has none."""
    base = CondaBase(packages={"numpy": "1"}, python="3.12")
    assert plan(base) == plan(Conda(packages={"numpy": "1"}, python="3.12"))
    assert plan(Conda(disabled=True), base) is None
    assert plan(CondaBase(disabled=True)) is None
    assert plan() is None


def test_decorators_record_options() -> None:
    """Both decorators work bare and called."""

    @conda_base(python="3.12")
    class Flow:
        @conda
        def step(self) -> None: ...

    assert Flow.__mlp_options__ == (CondaBase(python="3.12"),)  # type: ignore[attr-defined] # recorded
    assert Flow.step.__mlp_options__ == (Conda(),)  # type: ignore[attr-defined] # recorded


def test_pip_names_are_normalised() -> None:
    """Names of a Python index are written as it writes them."""
    assert normal_pip({"Foo_Bar[B, a]": "1"}) == {"foo-bar[a,b]": "==1"}
    assert normal_python(" 3.12.1 ") == "3.12.1"
