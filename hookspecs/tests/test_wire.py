"""The wire form: values come back equal, newer ones are understood, and what does not fit is named."""

from __future__ import annotations

import json
import types as builtin_types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlp_hookspecs import (
    ArtifactRef,
    Failure,
    Resources,
    Setting,
    StepOutcome,
    StepPlan,
    TaskKey,
    events,
    types,
    wire,
)
from mlp_hookspecs.wire import _hints

TEXT = st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=3,
)
SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT,
    int: st.integers(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
    bytes: st.binary(max_size=8),
    Any: JSON,
}


def values_of(hint: Any) -> st.SearchStrategy[Any]:  # noqa: PLR0911 # one return a kind of annotation
    """Return a strategy for the values of an annotation."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in SCALARS:
        return SCALARS[hint]
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, builtin_types.UnionType):
        inner = [a for a in arguments if a is not type(None) and get_origin(a) is not tuple]
        return st.none() | st.one_of(*map(values_of, inner))
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(st.deferred(lambda: values_of(arguments[0])), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values_of, arguments))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return st.dictionaries(TEXT, values_of(arguments[1]), max_size=2)
    return instances(hint)


def instances(cls: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for the instances of an attrs class."""
    hints = _hints(cls)
    required = {f.alias: values_of(hints[f.name]) for f in attrs.fields(cls) if f.default is attrs.NOTHING}
    optional = {f.alias: values_of(hints[f.name]) for f in attrs.fields(cls) if f.default is not attrs.NOTHING}
    return st.fixed_dictionaries(required, optional=optional).map(lambda fields: cls(**fields))


# Options have no wire form of their own; a wrap holds a living thing.
CLASSES = [
    value for name in types.__all__ if name not in ("Option", "Wrap") and attrs.has(value := getattr(types, name))
]
CLASSES += [value for value in vars(events).values() if isinstance(value, type) and attrs.has(value)]


@pytest.mark.parametrize("cls", CLASSES)
@settings(max_examples=25, deadline=None)  # some are made of all the others: drawing one takes long
@given(data=st.data())
def test_values_come_back_equal(cls: type, data: st.DataObject) -> None:
    """Every value of the contract survives its wire form, and has the same one again."""
    value = data.draw(instances(cls))
    line = wire.dumps(value)
    assert b"\n" not in line
    again = wire.loads(cls, line)
    assert again == value
    assert wire.dumps(again) == line


def test_defaults_are_left_out() -> None:
    """What has its default takes no room; what equals an empty one neither."""
    assert wire.encode(StepPlan(variables={}, secrets=())) == {}
    assert wire.encode(Resources(cpu=2, custom={"tpu": 1})) == {"cpu": 2, "custom": {"tpu": 1}}


def test_newer_fields_are_ignored() -> None:
    """A reader of an older minor version understands what a newer one wrote."""
    assert wire.decode(TaskKey, {"step": "train", "index": [1], "colour": "blue"}) == TaskKey("train", (1,))
    outcome = wire.loads(StepOutcome, b'{"status": "failed", "failure": {"kind": "exit", "message": "m", "x": [1]}}')
    assert outcome == StepOutcome("failed", failure=Failure("exit", "m"))


@pytest.mark.parametrize(
    ("cls", "data", "message"),
    [
        (TaskKey, [], "TaskKey: expected an object, got list"),
        (TaskKey, {}, r"TaskKey: .*missing 1 required positional argument: 'step'"),
        (TaskKey, {"step": 5}, "TaskKey.step: expected str, got 5"),
        (TaskKey, {"step": None}, "TaskKey.step: expected str, got None"),
        (TaskKey, {"step": "a", "loop": True}, "TaskKey.loop: expected int, got True"),
        (TaskKey, {"step": "a", "loop": "1"}, "TaskKey.loop: expected int, got '1'"),
        (TaskKey, {"step": "a", "index": 5}, "TaskKey.index: "),
        (Resources, {"cpu": "2"}, "Resources.cpu: expected float, got '2'"),
        (Resources, {"custom": []}, "Resources.custom: "),
        (ArtifactRef, {"format": "f", "digest": "d", "size": 1, "type": "t", "data": "*"}, "ArtifactRef.data: "),
        (StepOutcome, {"status": "failed", "failure": {"kind": "exit"}}, "StepOutcome.failure: Failure: .*message"),
        (
            StepOutcome,
            {"status": "failed", "assigned": {"x": {"format": 1}}},
            "StepOutcome.assigned: ArtifactRef.format",
        ),
    ],
)
def test_what_does_not_fit_is_named(cls: type, data: object, message: str) -> None:
    """Data of another shape raises ValueError, which names the class and the field, at any depth."""
    with pytest.raises(ValueError, match=message):
        wire.decode(cls, data)


@pytest.mark.parametrize("data", [b"", b"{", b"null", b"5", b'"x"', b"\xff"])
def test_what_is_no_object_is_refused(data: bytes) -> None:
    """Anything but one JSON object raises ValueError."""
    with pytest.raises(ValueError, match=r"\w"):
        wire.loads(TaskKey, data)


@given(JSON)
def test_any_json_is_decoded_or_refused(data: Any) -> None:
    """Whatever JSON comes in, decoding gives a value or a ValueError, never anything else."""
    for cls in CLASSES:
        try:
            value = wire.decode(cls, data)
        except ValueError:
            continue
        assert isinstance(value, cls)


def test_bytes_are_text() -> None:
    """Bytes travel as base64."""
    ref = ArtifactRef("f", "d", 2, "t", data=b"\0\xff")
    assert json.loads(wire.dumps(ref))["data"] == "AP8="


def test_setting_default_of_any_scalar() -> None:
    """A choice of scalars travels as it is."""
    for default in ("x", 1, 1.5, True, None):
        assert wire.loads(Setting, wire.dumps(Setting("a.b", default=default))).default == default


def test_prepared_codecs_reach_all_that_a_class_holds() -> None:
    """After getting ready for requests and outcomes, no class that they hold needs anything made for it."""
    wire.prepare(types.StepRequest, StepOutcome)
    for cls in (TaskKey, ArtifactRef, types.ForeachFrame, Failure, types.EnvironmentLock, types.PluginId):
        before = wire._decoder.cache_info().misses
        wire._decoder(cls)
        assert wire._decoder.cache_info().misses == before
