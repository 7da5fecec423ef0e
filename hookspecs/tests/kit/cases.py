"""The kit's tests of every toy, correct and broken; run by test_kit.py in a pytest of their own."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

from mlp_hookspecs import EnvironmentSpec
from mlp_hookspecs.testing import EnvironmentContract, FormatContract, LauncherContract, StoreContract

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TOY = os.environ["KIT_TOY"]


class Format(FormatContract):
    """Lists."""

    @pytest.fixture
    def values(self) -> Sequence[Any]:
        """Lists of different lengths."""
        return [[], [1, 2.5, "three"], list(range(1000))]


class Environment(EnvironmentContract):
    """The interpreter that runs the tests."""

    caches = ("TOY_CACHE",)

    @pytest.fixture(autouse=True)
    def cache(self, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
        """Keep packages in a folder of the test's own."""
        monkeypatch.setenv("TOY_CACHE", str(tmp_path_factory.mktemp("cache")))

    @pytest.fixture
    def spec(self) -> EnvironmentSpec:
        """Two packages."""
        return EnvironmentSpec("toy", {"packages": {"one": "1.0", "two": "2.0"}})

    @pytest.fixture
    def addition(self) -> EnvironmentSpec:
        """One more."""
        return EnvironmentSpec("toy", {"packages": {"three": "3.0"}})

    @pytest.fixture
    def impossible(self) -> EnvironmentSpec:
        """Too old."""
        return EnvironmentSpec("toy", {"python": "1.4"})


class Store(StoreContract):
    """A folder."""

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        """Give the folder."""
        return f"toy://{tmp_path}"


class Launcher(LauncherContract):
    """Processes."""


BASES = {"environment": Environment, "format": Format, "launcher": Launcher, "store": Store}

for name in ("good", *(kind.__name__ for kind in import_module(f"toy_{TOY}").BROKEN)):
    own = {"plugin": f"toy_{TOY}:{name}", "name": "toy", "__module__": __name__}
    if name != "good":
        own["patience"] = 3  # what a broken toy lets the kit wait for never happens
    globals()[f"Test_{name}"] = type(f"Test_{name}", (BASES[TOY],), own)
