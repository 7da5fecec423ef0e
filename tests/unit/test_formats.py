"""How values become bytes and come back: the builtin formats, and the choice between them."""

from __future__ import annotations

import collections
import datetime as dt
import enum
import math
import pickle
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlp_core.artifacts import indexable, is_immutable, type_name
from mlp_core.builtin.pickle_format import ALIGNMENT, MAGIC
from mlp_core.errors import ArtifactError
from mlp_core.hooks import Hooks, build_hooks
from mlp_core.store import Store
from mlp_core.store.blobs import Blobs
from mlp_core.values import Values

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def hooks() -> Hooks:
    """The builtin plugins."""
    return build_hooks(flags={"plugins.safe": True}, environ={})[0]


@pytest.fixture(scope="module")
def values(hooks: Hooks, tmp_path_factory: pytest.TempPathFactory) -> Values:
    """A store for values, where everything of more than 64 bytes is a blob."""
    store = Store.open(hooks.open_store(str(tmp_path_factory.mktemp("store"))), create=True)
    return Values(hooks, store.blobs(inline_bytes=64))


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
FLAT = SCALARS | st.lists(SCALARS) | st.dictionaries(st.text(), SCALARS)
ANYTHING = st.recursive(
    SCALARS | st.binary() | st.complex_numbers() | st.dates() | st.fractions() | st.uuids(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.sets(st.integers() | st.text())
    ),
    max_leaves=20,
)


def same(left: Any, right: Any) -> bool:
    """Tell whether two values are equal, types included and NaN counted as itself."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return (math.isnan(left) and math.isnan(right)) or (left, math.copysign(1, left)) == (
            right,
            math.copysign(1, right),
        )
    if isinstance(left, complex):
        return same(left.real, right.real) and same(left.imag, right.imag)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return list(map(repr, left)) == list(map(repr, right)) and all(same(left[key], right[key]) for key in left)
    return bool(left == right)


@settings(max_examples=300, deadline=None)
@given(FLAT)
def test_plain_values_are_json(values: Values, value: Any) -> None:
    """Scalars, and flat lists and dicts of them, come back as they were; JSON holds them, but for lone surrogates."""
    ref = values.put("x", value)
    assert same(values.get(ref), value)
    has_surrogate = any("\ud800" <= letter <= "\udfff" for letter in str(value))
    assert ref.format == "json" or has_surrogate
    assert values.put("x", value, known=ref) == ref


@settings(max_examples=300, deadline=None)
@given(ANYTHING)
def test_any_value_comes_back(values: Values, value: Any) -> None:
    """Whatever is nested in whatever comes back equal and of the same types, and one that is loaded is unchanged."""
    ref = values.put("x", value)
    loaded = values.get(ref)
    assert same(loaded, value)
    assert values.put("x", loaded, known=ref) is ref


class Text(str):
    """A subclass of a builtin type."""

    __slots__ = ()


class Number(enum.IntEnum):
    """Numbers with names."""

    ONE = 1


class Items(list):  # type: ignore[type-arg]
    """A list with more."""

    def __init__(self, *items: object) -> None:
        super().__init__(items)
        self.extra = "extra"


@attrs.define
class Node:
    """A value that can point at itself."""

    name: str
    other: Node | None = None


@pytest.mark.parametrize(
    "value",
    [
        Text("text"),
        [Text("text")],
        {"a": Text("text")},
        Number.ONE,
        [Number.ONE],
        {Number.ONE: 1},
        {1: "a"},
        {None: 1},
        (1, 2),
        [(1, 2)],
        collections.OrderedDict(a=1),
        collections.Counter("aab"),
        collections.defaultdict(list, a=[1]),
        bytearray(b"x"),
        range(3),
        frozenset({1}),
        dt.datetime(2026, 1, 31, tzinfo=dt.UTC),
        np.float64(1.5),
        np.int64(3),
        [np.float64(1.5)],
        np.bool_(True),  # noqa: FBT003 # numpy's own
        10**5000,
        "\ud800",
        ...,
        NotImplemented,
        int,
        len,
    ],
    ids=lambda value: f"{type(value).__name__}",
)
def test_types_are_kept(values: Values, value: Any) -> None:
    """What JSON would turn into something else is pickled: subclasses, keys that are no text, tuples, odd text."""
    ref = values.put("x", value)
    assert ref.format == "pickle"
    loaded = values.get(ref)
    assert type(loaded) is type(value)
    assert loaded == value
    if isinstance(value, list | dict):
        assert [type(item) for item in loaded] == [type(item) for item in value]


def test_attributes_of_subclasses_are_kept(values: Values) -> None:
    """A list with attributes of its own keeps them."""
    loaded = values.get(values.put("x", Items(1, 2)))
    assert (loaded, loaded.extra, type(loaded)) == ([1, 2], "extra", Items)


def test_identity_inside_a_value(values: Values) -> None:
    """Two names for one object are one object after loading, and cycles stay closed."""
    inner = [1]
    loaded = values.get(values.put("x", {"a": inner, "b": inner}))
    assert loaded["a"] is loaded["b"]
    node = Node("a")
    node.other = Node("b", node)
    loaded = values.get(values.put("x", node))
    assert loaded.other.other is loaded
    ring: list[Any] = []
    ring.append(ring)
    again = values.get(values.put("x", ring))
    assert again[0] is again


def test_shared_buffers(values: Values) -> None:
    """Arrays that share memory stay separate or shared as pickle has it, and come back writable."""
    array = np.arange(1000.0)
    loaded = values.get(values.put("x", [array, array, array[:10]]))
    assert loaded[0] is loaded[1]
    assert np.array_equal(loaded[2], array[:10])
    loaded[0][0] = 7
    assert array[0] == 0


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(0),
        np.zeros((0, 3)),
        np.array(5),
        np.arange(10_000, dtype=">i4"),
        np.arange(10_000).reshape(100, 100).T,
        np.arange(10_000)[::3],
        np.arange(10_000)[::-1],
        np.zeros(100, dtype=[("a", "f8"), ("b", "S3")]),
        np.array(["a", "long text"]),
        np.array([1, None, "x"], dtype=object),
        np.array(["2026-01-31"], dtype="datetime64[D]"),
        np.ma.masked_array([1, 2], mask=[True, False]),
        np.broadcast_to(np.arange(1000.0), (10, 1000)),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_arrays(values: Values, array: Any) -> None:
    """Arrays of every shape, order and type come back, and are taken for unchanged until they change."""
    ref = values.put("x", array)
    loaded = values.get(ref)
    assert (loaded.dtype, loaded.shape) == (array.dtype, array.shape)
    assert repr(loaded) == repr(array)
    assert values.put("x", loaded, known=ref) is ref
    if loaded.size and loaded.flags.writeable and loaded.dtype.kind in "fi":
        loaded.reshape(-1)[0] += 1
        assert values.put("x", loaded.copy(), known=ref).digest != ref.digest or loaded.base is None


def test_buffers_are_aligned(values: Values) -> None:
    """Each large buffer lies on a boundary of 64 bytes, so that a mapped array is as fast as a fresh one."""
    ref = values.put("x", [b"odd", np.arange(1000.0), bytearray(7), np.ones(333, dtype="i1"), np.arange(50.0)])
    content = bytes(values._blobs.source(ref).buffer())
    assert content.startswith(MAGIC)
    loaded = values.get(ref)
    for array in (loaded[1], loaded[3], loaded[4]):
        assert array.__array_interface__["data"][0] % ALIGNMENT == 0


def test_changes_in_place_are_seen(values: Values) -> None:
    """A value that was changed since it was loaded gets another reference; one that was not keeps its own."""
    for value, change in [
        ([1, [2]], lambda v: v[1].append(3)),
        ({"a": {"b": 1}}, lambda v: v["a"].update(b=2)),
        (bytearray(b"x" * 1000), lambda v: v.__setitem__(3, 0)),
        (np.zeros(1000), lambda v: v.__setitem__(999, 1)),
        ({1, 2, 3}, lambda v: v.add(4)),
        (Node("a"), lambda v: setattr(v, "name", "b")),
    ]:
        ref = values.put("x", value)
        loaded = values.get(ref)
        assert values.put("x", loaded, known=ref) is ref
        change(loaded)
        changed = values.put("x", loaded, known=ref)
        assert changed.digest != ref.digest
        assert values.put("x", values.get(ref), known=ref) is ref


def test_sets_of_other_processes_are_unchanged(hooks: Hooks, tmp_path: Path) -> None:
    """A set of texts iterates in another order in each process, and is unchanged all the same when only read."""
    objects = hooks.open_store(str(tmp_path / "store"))
    values = Values(hooks, Store.open(objects, create=True).blobs(inline_bytes=10**6))
    code = """
    import pickle, sys
    sys.stdout.buffer.write(pickle.dumps({f"text {n}": {f"{n} {m}" for m in range(20)} for n in range(20)}))
    """
    seen = set()
    for seed in ("1", "2", "3"):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], env={"PYTHONHASHSEED": seed}, check=True, capture_output=True
        )
        value = pickle.loads(done.stdout)
        # As the other process would have stored it: its own order of iteration.
        target = values._blobs.target("pickle")
        header = f"[{len(done.stdout)}]\n".encode()
        target.write([MAGIC, header, done.stdout])
        ref = target.finish("dict", sync=False)
        seen.add(ref.digest)
        loaded = values.get(ref)
        assert loaded == value
        assert values.put("x", loaded, known=ref) is ref
        loaded["text 3"].add("more")
        assert values.put("x", loaded, known=ref).digest != ref.digest
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not of this format"),
        (b"mlp-pickle-2\n[1]\nx", "not of this format"),
        (b"[1, 2]", "not of this format"),
        (MAGIC + b"[1", "no end"),
    ],
)
def test_other_content_is_refused(values: Values, content: bytes, message: str) -> None:
    """Content that is not of the format is refused before anything is unpickled."""
    target = values._blobs.target("pickle")
    target.write([content])
    ref = target.finish("x", sync=False)
    with pytest.raises(ValueError, match=message):
        values.get(ref)


def test_large_header(values: Values) -> None:
    """A value of very many buffers has a long header, and comes back."""
    arrays = [np.full(3, n) for n in range(5000)]
    loaded = values.get(values.put("x", arrays))
    assert all(np.array_equal(left, right) for left, right in zip(loaded, arrays, strict=True))


class Refuses:
    """A value that cannot be stored."""

    def __reduce__(self) -> str:
        raise OSError("not today")


def test_refusals_name_the_artifact(values: Values) -> None:
    """What cannot be stored is named with its type and reason, also where the user chose the format."""
    with pytest.raises(ArtifactError, match=r"artifact 'x' of type .*\.Refuses cannot be stored: not today") as caught:
        values.put("x", Refuses())
    assert "from plugin pickle" in "".join(caught.value.__notes__)
    with pytest.raises(ArtifactError, match="artifact 'x' of type set cannot be stored in the format 'json'"):
        values.put("x", {1}, format="json")
    assert values.put("x", 5, format="pickle").format == "pickle"


def test_small_values(values: Values) -> None:
    """A small value travels in a reference of its own; a large one, or one that cannot be stored, does not."""
    ref = values.put_small([1, "a"], 100)
    assert ref is not None
    assert ref.data == b'[1,"a"]'
    assert values.get(ref) == [1, "a"]
    assert values.put_small("x" * 101, 100) is None
    assert values.put_small(Refuses(), 100) is None


def test_bytes_as_they_are(values: Values) -> None:
    """Reports and packages are stored as the bytes that they are."""
    for content in (b"", b"short", b"x" * 1000):
        assert values.get(values.put_bytes(content)) == content


def test_functions_of_main_travel_by_value(tmp_path: Path) -> None:
    """What a script defines has no home in another process, and is stored itself."""
    writer = f"""
    from mlp_core.hooks import build_hooks
    from mlp_core.store import Store
    from mlp_core.values import Values
    from mlp_hookspecs import wire
    import sys
    hooks = build_hooks(flags={{"plugins.safe": True}})[0]
    values = Values(hooks, Store.open(hooks.open_store({str(tmp_path)!r}), create=True).blobs(inline_bytes=10**6))
    class Thing:
        def answer(self):
            return 42
    def ask():
        return Thing().answer()
    sys.stdout.buffer.write(wire.dumps(values.put("x", [ask, Thing()])))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(writer)], check=True, capture_output=True)
    from mlp_hookspecs import ArtifactRef, wire

    hooks = build_hooks(flags={"plugins.safe": True}, environ={})[0]
    values = Values(hooks, Blobs(Store.open(hooks.open_store(str(tmp_path)), create=False).objects))
    ask, thing = values.get(wire.loads(ArtifactRef, done.stdout))
    assert (ask(), thing.answer()) == (42, 42)


# ------------------------------------------------------------------------------------------------- artifacts.py


@pytest.mark.parametrize(
    "value", [1, None, "a", (1, ("a", None)), frozenset({1, (2,)}), b"", 1.5, range(3), dt.UTC, ...]
)
def test_immutable(value: object) -> None:
    """Scalars, and tuples and frozen sets of them, cannot have changed."""
    assert is_immutable(value)


@pytest.mark.parametrize(
    "value", [[], {}, ([],), (1, (2, [3])), bytearray(), Text("a"), Number.ONE, object(), np.float64(1)]
)
def test_not_immutable(value: object) -> None:
    """Containers, and instances of classes that somebody may have extended, might have."""
    assert not is_immutable(value)


def test_type_names() -> None:
    """A type is told by its dotted name, builtin ones by theirs alone."""
    assert type_name([]) == "list"
    assert type_name(np.zeros(1)) == "numpy.ndarray"
    assert type_name(Node("a")).endswith("test_formats.Node")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1], True),
        ((1,), True),
        ("a", True),
        (b"a", True),
        (range(3), True),
        (np.zeros(3), True),
        ({1}, False),
        ({"a": 1}, False),
        (iter([1]), False),
        (collections.deque([1]), False),
        (5, False),
    ],
)
def test_indexable(value: object, expected: bool) -> None:
    """Lists, tuples, text, ranges and arrays have items by position; sets, mappings and iterators have not."""
    assert indexable(value) is expected


def test_pandas_is_not_indexable() -> None:
    """The items of a series have labels, those of a table are its columns."""
    pandas = pytest.importorskip("pandas")
    assert not indexable(pandas.Series([1, 2]))
    assert not indexable(pandas.DataFrame({"a": [1]}))
