"""The values of the contract: identities, immutability, and the decorators that record options."""

from __future__ import annotations

import copy
import pickle
from typing import Any, ClassVar

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlp_hookspecs import (
    OPTIONS_ATTRIBUTE,
    EnvironmentLock,
    EnvironmentSpec,
    FlowGraph,
    Option,
    StepNode,
    StepRequest,
    TaskKey,
    decorator,
    frozen_map,
)
from mlp_hookspecs.events import ArtifactPersisted, Event, TaskFinished, TaskStarted
from mlp_hookspecs.types import ArtifactRef, CodeRef, RunContext

KEYS = st.builds(
    TaskKey,
    step=st.sampled_from(["start", "train"]),
    index=st.lists(st.integers(0, 10**6), max_size=3).map(tuple),
    loop=st.integers(0, 10**6),
    node=st.none() | st.integers(0, 10**6),
)


@given(KEYS)
def test_task_ids_are_read_back(key: TaskKey) -> None:
    """The text of a key, with the number of open foreach, is the key."""
    assert TaskKey.parse(key.step, key.task_id, len(key.index)) == key
    assert key.path == f"{key.step}/{key.task_id}"


@given(st.lists(KEYS, unique=True, max_size=6))
def test_task_ids_tell_tasks_apart(keys: list[TaskKey]) -> None:
    """Keys of one step and depth have different texts where they are different."""
    same_depth = [key for key in keys if len(key.index) == 2]
    assert len({key.path for key in same_depth}) == len(same_depth)


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1~", "1@", "1~2~3", "1@2@3", "1 ", "1\n", "0x1", "1@2~3", "²"])
def test_malformed_task_ids_are_refused(text: str) -> None:
    """What is no task id is a ValueError that shows one."""
    with pytest.raises(ValueError, match="is no task id; one looks like 0, 2-1, 0~3 or 0@1"):
        TaskKey.parse("train", text, 1)


def test_task_id_of_another_depth_is_refused() -> None:
    """The number of positions is the number of open foreach."""
    with pytest.raises(ValueError, match="task id '1-2' has 2 positions, but step 'train' lies inside 1 foreach"):
        TaskKey.parse("train", "1-2", 1)
    assert TaskKey.parse("start", "0", 0) == TaskKey("start")


def test_equal_requirements_have_equal_digests() -> None:
    """The digest depends on content, not on the order in which it was written."""
    one = EnvironmentSpec("pypi", {"python": "3.12", "packages": ["a", "b"]})
    other = EnvironmentSpec("pypi", {"packages": ["a", "b"], "python": "3.12"})
    assert one.digest == other.digest
    different = [
        EnvironmentSpec("pypi", {"packages": ["b", "a"], "python": "3.12"}),
        EnvironmentSpec("conda", dict(one.requirement)),
        EnvironmentSpec("pypi"),
    ]
    assert len({one.digest, *(spec.digest for spec in different)}) == 4
    assert one.digest.startswith("sha256-")
    assert EnvironmentLock("a", "x", "3.12").digest != EnvironmentLock("b", "x", "3.12").digest
    assert EnvironmentLock("a", "x", "3.12").digest == EnvironmentLock("a", "x", "3.11").digest


@pytest.mark.parametrize(
    "change",
    [
        lambda mapping: mapping.update(a=2),
        lambda mapping: mapping.__setitem__("a", 2),
        lambda mapping: mapping.__delitem__("a"),
        lambda mapping: mapping.clear(),
        lambda mapping: mapping.pop("a"),
        lambda mapping: mapping.popitem(),
        lambda mapping: mapping.setdefault("b", 1),
        lambda mapping: mapping.__ior__({"b": 1}),
    ],
)
def test_frozen_mappings_cannot_be_changed(change: Any) -> None:
    """Every way of changing a mapping is refused, with what to do instead."""
    mapping = frozen_map({"a": 1})
    with pytest.raises(TypeError, match="make a changed copy"):
        change(mapping)
    assert mapping == {"a": 1}


def test_frozen_mappings_travel() -> None:
    """A frozen mapping copies and pickles as one, and does not follow the mapping that it was made of."""
    source = {"a": [1]}
    mapping = frozen_map(source)
    source["b"] = [2]
    assert mapping == {"a": [1]}
    assert frozen_map(mapping) is mapping
    for again in (copy.copy(mapping), copy.deepcopy(mapping), pickle.loads(pickle.dumps(mapping))):
        assert (type(again), again) == (type(mapping), mapping)


def test_graph_is_looked_up_by_name() -> None:
    """Steps are found by name."""
    graph = FlowGraph("F", "start", "end", (StepNode("start", "linear"), StepNode("end", "end")))
    assert graph["end"].kind == "end"
    assert ("start" in graph, "middle" in graph) == (True, False)
    with pytest.raises(KeyError, match="middle"):
        graph["middle"]


def test_attempts_have_identities() -> None:
    """An attempt's id is its task's path and its number; events of different kinds and artifacts have different ids."""
    key = TaskKey("train", (2,))
    request = StepRequest(RunContext("F", "r"), key, 1, StepNode("train", "linear"), CodeRef("m", "F"), "store")
    assert request.id == "train/2/1"
    common: dict[str, Any] = {"sequence": 7, "flow": "F", "run_id": "r", "time": 0.0, "key": key, "attempt": 1}
    ref = ArtifactRef("json", "sha256-0", 0, "builtins.int")
    events = [
        TaskStarted(**common, launcher="local"),
        TaskFinished(**common, status="succeeded"),
        ArtifactPersisted(**common, name="a", ref=ref),
        ArtifactPersisted(**common, name="b", ref=ref),
        Event(sequence=7, flow="F", run_id="r", time=0.0),
    ]
    assert len({event.id for event in events}) == len(events)
    assert events[0].id == attrs.evolve(events[0], time=9.0).id


# ------------------------------------------------------------------------------------------------- options


@attrs.frozen
class Spot(Option):
    """A decorator for these tests."""

    name: ClassVar[str] = "spot"
    price: float = attrs.field(default=1.0, converter=float)
    zone: str = "a"

    @price.validator
    def _check(self, _attribute: object, value: float) -> None:
        if value < 0:
            raise ValueError(f"price={value} is refused: it must not be negative")


spot = decorator(Spot)


def test_decorator_works_bare_and_called() -> None:
    """A decorator records its option with defaults or with arguments, and returns what it decorates."""

    def step() -> str:
        return "ran"

    assert spot(step) is step
    assert spot(price=2)(step) is step
    assert spot()(step) is step
    assert getattr(step, OPTIONS_ATTRIBUTE) == (Spot(), Spot(price=2), Spot())
    assert step() == "ran"
    assert repr(spot) == "@spot"


def test_unknown_argument_is_named() -> None:
    """The message speaks of the decorator and lists its arguments."""
    with pytest.raises(TypeError, match=r"@spot has no argument 'prize'; it takes price, zone"):
        spot(prize=1)


@pytest.mark.parametrize(
    ("value", "message"), [("many", "@spot: could not convert"), (-1, "@spot: price=-1.0 is refused")]
)
def test_refused_argument_is_named(value: Any, message: str) -> None:
    """What an option's own checks refuse is shown as the decorator's."""
    with pytest.raises(TypeError, match=message):
        spot(price=value)


def test_child_class_does_not_change_its_base() -> None:
    """Options that a class adds are its own; its base keeps what it had."""

    @spot(zone="base")
    class Base:
        """A flow."""

    @spot(zone="child")
    class Child(Base):
        """A flow on top."""

    assert vars(Base)[OPTIONS_ATTRIBUTE] == (Spot(zone="base"),)
    assert vars(Child)[OPTIONS_ATTRIBUTE] == (Spot(zone="child"),)
