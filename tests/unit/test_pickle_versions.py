"""Pickles that hold bytecode: bound to the minor version of Python that wrote them, and refused by another."""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mlp_core.builtin.pickle_format import MAGIC
from mlp_core.errors import ArtifactError
from mlp_core.hooks import build_hooks
from mlp_core.store import Store
from mlp_core.values import Values

if TYPE_CHECKING:
    from pathlib import Path

    from mlp_hookspecs import ArtifactRef

OWN = f"{sys.version_info.major}.{sys.version_info.minor}"
OTHER = f"{sys.version_info.major}.{sys.version_info.minor + 1}"


@pytest.fixture
def values(tmp_path: Path) -> Values:
    """A store for values, each of which is a blob."""
    hooks = build_hooks(flags={"plugins.safe": True}, environ={})[0]
    store = Store.open(hooks.open_store(str(tmp_path / "store")), create=True)
    return Values(hooks, store.blobs(inline_bytes=0))


def content(values: Values, ref: ArtifactRef) -> bytes:
    """Return what is stored of a value."""
    return bytes(values._blobs.source(ref).buffer())


def header(stored: bytes) -> list[Any]:
    """Return the list at the beginning of what is stored."""
    found: list[Any] = json.loads(stored[len(MAGIC) :].split(b"\n", 1)[0])
    return found


def local_class() -> type:
    """Return a class that no module has."""

    class Local:
        def double(self, x: int) -> int:
            return 2 * x

    return Local


@pytest.mark.parametrize(
    "value",
    [lambda x: x + 1, [lambda x: x + 1], local_class(), local_class()()],
    ids=["lambda", "in", "class", "object"],
)
def test_bytecode_tells_its_version(values: Values, value: Any) -> None:
    """Whatever holds a function by value says which Python it is for, and loads under that one."""
    ref = values.put("x", value)
    assert header(content(values, ref))[0] == OWN
    assert not ref.metadata
    loaded = values.get(ref, "x")
    if callable(loaded) and not isinstance(loaded, type):
        assert loaded(1) == 2


@pytest.mark.parametrize("value", [OrderedDict(a=1), np.arange(3.0), len, "CodeType of cloudpickle", np.mean], ids=repr)
def test_data_is_bound_to_no_version(values: Values, value: Any) -> None:
    """Data, and what a module has, are read by any version."""
    ref = values.put("x", value)
    if ref.format == "pickle":
        assert all(isinstance(size, int) for size in header(content(values, ref)))


def test_another_version_is_refused(values: Values) -> None:
    """What another minor version has written is not unpickled; the message has both versions, and what to do."""
    ref = values.put("model", lambda x: x + 1)
    stored = content(values, ref).replace(f'["{OWN}"'.encode(), f'["{OTHER}"'.encode(), 1)
    target = values._blobs.target("pickle")
    target.write([stored])
    foreign = target.finish("builtins.function", sync=False)
    with pytest.raises(ArtifactError) as caught:
        values.get(foreign, "model")
    assert f"bytecode of Python {OTHER}, which Python {OWN} cannot run" in str(caught.value)
    assert "define the function in a module" in str(caught.value)
    assert "pickle_allowed" not in str(caught.value)


def test_a_function_that_did_not_change_is_not_stored_again(values: Values) -> None:
    """A step that loads a function and leaves it as it is hands on the reference."""
    ref = values.put("x", lambda x: x + 1)
    assert values._unchanged(values.get(ref, "x"), ref)


@pytest.mark.parametrize("first", ['"3.11"', '"x", 1', '["3.11"], 1', '"3.11", "3.11", 1', '"' + 99 * "3" + '.1", 1'])
def test_hostile_headers(values: Values, first: str) -> None:
    """A header that is no version and sizes is no content of this format."""
    target = values._blobs.target("pickle")
    target.write([MAGIC, f"[{first}]\nN.".encode()])
    with pytest.raises(ValueError, match="its header is no list of sizes"):
        values.get(target.finish("builtins.object", sync=False), "x")
