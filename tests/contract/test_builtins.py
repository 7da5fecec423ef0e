"""The core's own backends pass the conformance kit that plugins' backends pass."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any

import pytest

from mlp_hookspecs import EnvironmentSpec
from mlp_hookspecs.testing import EnvironmentContract, FormatContract, LauncherContract, StoreContract

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class TestPickle(FormatContract):
    """The format for any value."""

    plugin = "mlp_core.builtin.pickle_format"
    name = "pickle"
    holds_everything = True
    heavy = ("cloudpickle", "numpy")

    @pytest.fixture
    def values(self) -> Sequence[Any]:
        """Ordinary values, nested ones, and large buffers."""
        nested: list[Any] = [1]
        nested.append({"again": nested[:1], "set": frozenset({1, 2}), "when": date(2026, 1, 31)})
        return [None, "", "text", b"\0" * 100_000, nested, bytearray(b"x" * 3), 10**400, range(3)]


class TestJson(FormatContract):
    """The format for plain values."""

    plugin = "mlp_core.builtin.json_format"
    name = "json"

    @pytest.fixture
    def values(self) -> Sequence[Any]:
        """Every type that it holds, with extremes."""
        return [None, True, 0, -(10**30), 1.5, 1e308, -0.0, "", "ünï\u2028", [], [1, "a", None], {}, {"b": 1, "a": 2.5}]

    def is_equal(self, one: Any, other: Any) -> bool:
        """Compare by what is written, which tells -0.0 from 0.0 and 1 from True, at any depth."""
        return repr(one) == repr(other)


class TestFileStore(StoreContract):
    """The store in a local folder."""

    plugin = "mlp_core.builtin.file_store"
    name = "file"

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        """A folder with characters that URLs escape."""
        return str(tmp_path / "a store, 100%")


class TestCurrent(EnvironmentContract):
    """The interpreter that runs the driver."""

    plugin = "mlp_core.builtin.current"
    name = "current"

    @pytest.fixture
    def spec(self) -> EnvironmentSpec:
        """Nothing in particular."""
        return EnvironmentSpec("current")


class TestLocalSpawn(LauncherContract):
    """A fresh process for each task."""

    plugin = "mlp_core.builtin.local"
    name = "local"
    settings = {"local.isolation": "spawn"}  # noqa: RUF012 # the kit declares the type


class TestLocalFork(LauncherContract):
    """A fork of a warm process for each task."""

    plugin = "mlp_core.builtin.local"
    name = "local"
    settings = {"local.isolation": "fork"}  # noqa: RUF012 # as above


class TestLocalInline(LauncherContract):
    """The driver's own process, one task after the other."""

    plugin = "mlp_core.builtin.local"
    name = "local"
    settings = {"local.isolation": "inline"}  # noqa: RUF012 # as above
    separate = False
    gangs = False
