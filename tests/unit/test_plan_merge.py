"""Merging of plans: what unites, what contradicts, and that the order of plugins does not matter."""

from __future__ import annotations

import itertools
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlp_core.errors import OptionError
from mlp_core.plan_merge import Opinion, merge_plans
from mlp_hookspecs import CatchPolicy, EnvironmentSpec, PluginId, Resources, RetryPolicy, StepPlan

ONE, TWO = PluginId("one", "mlp-plugin-one", "1.0"), PluginId("two", "mlp-plugin-two", "2.0")

DIFFERENT: dict[str, tuple[Any, Any]] = {
    "launcher": ("ray", "local"),
    "environment": (EnvironmentSpec("pypi", {"python": "3.11"}), EnvironmentSpec("pypi", {"python": "3.12"})),
    "environment_name": ("fraud/scoring", "fraud/scoring:stable"),
    "environment_at_exec": (True, False),
    "grace_seconds": (1.0, 2.0),
    "retry": (RetryPolicy(1), RetryPolicy(2)),
    "catch": (CatchPolicy("a"), CatchPolicy("b")),
    "concurrency": (1, 2),
    "launcher_options": ({"x": 1}, {"x": 2}),
    "variables": ({"X": "1"}, {"X": "2"}),
    "formats": ({"table": "parquet"}, {"table": "npz"}),
}


def merged(*plans: StepPlan) -> StepPlan:
    """Merge plans of as many plugins."""
    return merge_plans("train", [Opinion(PluginId(f"p{n}", "d", "1"), plan) for n, plan in enumerate(plans)])


def test_every_field_has_a_rule() -> None:
    """A field that is added to the plan needs a rule for merging it."""
    united = {"resources", "timeout_seconds", "secrets"}
    assert {field.name for field in attrs.fields(StepPlan)} == set(DIFFERENT) | united


def test_no_opinions() -> None:
    """Nobody's opinion is no opinion."""
    assert merged() == merged(StepPlan(), StepPlan()) == StepPlan()


@pytest.mark.parametrize("field", DIFFERENT)
def test_one_opinion_holds(field: str) -> None:
    """What one plugin sets and the others leave open is in the plan; so is what two set alike."""
    plan = StepPlan(**{field: DIFFERENT[field][0]})
    assert merged(StepPlan(), plan, StepPlan()) == merged(plan, plan) == plan


@pytest.mark.parametrize("field", DIFFERENT)
def test_contradiction_names_both(field: str) -> None:
    """Two different values are an error that names step, field, both plugins and both values."""
    one, two = DIFFERENT[field]
    with pytest.raises(OptionError) as caught:
        merge_plans("train", [Opinion(ONE, StepPlan(**{field: one})), Opinion(TWO, StepPlan(**{field: two}))])
    message = caught.value.message
    assert message.startswith(f"step train: one (mlp-plugin-one 1.0) sets {field.replace('_', ' ')}")
    assert ", and two (mlp-plugin-two 2.0) to " in message
    assert "train" in caught.value.hint


def test_first_of_three_is_named() -> None:
    """The plugin that is named first is the one that said so, not one that agreed or had no opinion."""
    plans = [StepPlan(), StepPlan(launcher="a"), StepPlan(launcher="a"), StepPlan(launcher="b")]
    with pytest.raises(OptionError, match=r"p1 .* sets launcher to 'a', and p3 .* to 'b'"):
        merged(*plans)


def test_mappings_and_secrets_unite() -> None:
    """Different keys do not contradict each other; a secret that two ask for is fetched once."""
    plan = merged(
        StepPlan(variables={"A": "1"}, launcher_options={"x": 1}, secrets=("v://a", "v://b")),
        StepPlan(variables={"B": "2"}, formats={"t": "npz"}, secrets=("v://b", "v://c")),
    )
    assert dict(plan.variables) == {"A": "1", "B": "2"}
    assert (dict(plan.launcher_options), dict(plan.formats)) == ({"x": 1}, {"t": "npz"})
    assert plan.secrets == ("v://a", "v://b", "v://c")


def test_resources_are_the_largest_and_limits_the_smallest() -> None:
    """Each amount is the largest that anybody asks for; the time limit is the shortest that anybody sets."""
    plan = merged(
        StepPlan(resources=Resources(cpu=4, memory_mb=100, custom={"tpu": 1}), timeout_seconds=60),
        StepPlan(resources=Resources(cpu=2, gpu=1, disk_mb=5, custom={"tpu": 2, "npu": 3}), timeout_seconds=30),
    )
    assert plan.resources == Resources(cpu=4, memory_mb=100, gpu=1, disk_mb=5, custom={"tpu": 2, "npu": 3})
    assert plan.timeout_seconds == 30


AMOUNTS = st.builds(
    Resources,
    cpu=st.floats(0, 64),
    memory_mb=st.integers(0, 10_000),
    gpu=st.floats(0, 8),
    custom=st.dictionaries(st.sampled_from("ab"), st.floats(0, 9)),
)
PLANS = st.builds(
    StepPlan,
    resources=st.none() | AMOUNTS,
    timeout_seconds=st.none() | st.floats(1, 100),
    variables=st.dictionaries(st.sampled_from("AB"), st.sampled_from("12"), max_size=1),
    launcher=st.sampled_from([None, "local", "ray"]),
)


@given(st.lists(PLANS, max_size=4))
def test_order_does_not_matter(plans: list[StepPlan]) -> None:
    """Whichever plugin is asked first, the plan, or the refusal, is the same."""

    def outcome(order: tuple[StepPlan, ...]) -> StepPlan | None:
        try:
            return merged(*order)
        except OptionError:
            return None

    outcomes = [outcome(order) for order in itertools.permutations(plans)]
    assert all(one == outcomes[0] for one in outcomes)
