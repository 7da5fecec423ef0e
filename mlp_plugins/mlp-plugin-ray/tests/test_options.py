"""What the decorator accepts, what it plans, and how that is said to Ray."""

from __future__ import annotations

from typing import Any

import pytest

from mlp_hookspecs import OPTIONS_ATTRIBUTE, Resources, StepInfo, StepNode, StepPlan
from mlp_plugin_ray import Ray, ray
from mlp_plugin_ray.cluster import check_address, missing_resources
from mlp_plugin_ray.options import task_options
from mlp_plugin_ray.plugin import mlp_plan_step

STEP = StepInfo("Flow", StepNode("train", "linear"))


def test_decorator_records_what_is_given() -> None:
    """The decorator works bare and called, on steps and on flows."""

    @ray
    def bare() -> None: ...

    @ray(num_cpus=2, resources={"disk": 1})
    class Flow: ...

    assert getattr(bare, OPTIONS_ATTRIBUTE) == (Ray(),)
    assert getattr(Flow, OPTIONS_ATTRIBUTE) == (Ray(num_cpus=2, resources={"disk": 1}),)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_cpus": -1}, r"@ray: num_cpus=-1 is refused: it must be a number of at least 0"),
        ({"num_cpus": "many"}, r"num_cpus='many' is refused"),
        ({"num_cpus": True}, r"num_cpus=True is refused"),
        ({"num_cpus": float("nan")}, r"num_cpus=nan is refused"),
        ({"num_gpus": 1.5}, r"num_gpus=1.5 is refused: Ray divides one accelerator"),
        ({"memory": -5}, r"memory=-5 is refused"),
        ({"resources": {"CPU": 1}}, r"resources: 'CPU' is given as num_cpus=..."),
        ({"resources": {"disk": -1}}, r"resources=-1 is refused"),
        ({"resources": {"": 1}}, r"resources: a resource needs a name"),
        ({"cpus": 1}, r"@ray has no argument 'cpus'; it takes num_cpus, num_gpus, memory, resources"),
    ],
)
def test_decorator_refuses_what_ray_would(fields: dict[str, Any], message: str) -> None:
    """A bad amount is refused where it is written, with the argument, the value and what is allowed."""
    with pytest.raises(TypeError, match=message):
        ray(**fields)


def test_option_plans_the_launcher() -> None:
    """A step with the option runs on Ray, with what the option gives; the core sizes thread pools by the same."""
    plan = mlp_plan_step(STEP, [Ray(num_cpus=4, memory=3 << 20, resources={"disk": 1})])
    assert plan == StepPlan(
        launcher="ray",
        launcher_options={"num_cpus": 4, "memory": 3 << 20, "resources": {"disk": 1}},
        resources=Resources(cpu=4, memory_mb=3),
    )
    assert mlp_plan_step(STEP, [Ray()]) == StepPlan(launcher="ray")
    assert mlp_plan_step(STEP, []) is None


def test_option_decides_over_resources() -> None:
    """What the option leaves out comes from the plan's resources, and custom resources add up."""
    resources = Resources(cpu=2, memory_mb=10, gpu=1, custom={"tpu": 1, "shared_memory_mb": 64})
    assert task_options(resources, {}) == {"num_cpus": 2, "num_gpus": 1, "memory": 10 << 20, "resources": {"tpu": 1}}
    assert task_options(resources, Ray(num_cpus=0.5, memory=7, resources={"disk": 2}).launcher_options) == {
        "num_cpus": 0.5,
        "num_gpus": 1,
        "memory": 7,
        "resources": {"tpu": 1, "disk": 2},
    }


def test_missing_resources() -> None:
    """A request is missing where no single node could ever meet it."""
    nodes = [{"CPU": 4.0, "memory": 1e9}, {"CPU": 2.0, "GPU": 1.0, "disk": 2.0}]
    assert missing_resources(task_options(Resources(cpu=4), {}), nodes) == ""
    assert missing_resources(task_options(Resources(cpu=2, gpu=1, custom={"disk": 2}), {}), nodes) == ""
    assert missing_resources(task_options(Resources(cpu=4, gpu=1), {}), nodes) == "CPU: 4, GPU: 1"
    assert missing_resources(task_options(Resources(cpu=0), {}), nodes) == ""
    assert missing_resources(task_options(Resources(cpu=0.5), {}), []) == "CPU: 0.5"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://head:10001", "'ray://head:10001' is refused: steps are launched from a host of the cluster"),
        ("http://head:8265", "is refused"),
        ("head", "'head' is refused: it must be host:port or auto"),
        ("head:", "is refused"),
        (":6379", "is refused"),
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1"),
        ("127.0.0.1:99999", "no Ray cluster answers at 127.0.0.1:99999"),
    ],
)
def test_bad_address(address: str, message: str) -> None:
    """An address at which no cluster can be is refused, by name, before Ray is asked."""
    with pytest.raises(OSError, match=message):
        check_address(address)
