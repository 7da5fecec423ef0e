"""The environment backend keeps the promises of its kind."""

from __future__ import annotations

from typing import ClassVar

import pytest

from mlp_hookspecs import EnvironmentLock, EnvironmentSpec
from mlp_hookspecs.testing import EnvironmentContract


class TestPypi(EnvironmentContract):
    """A small requirement under the other Python."""

    plugin = "mlp_plugin_uv.plugin"
    name = "pypi"
    caches: ClassVar[tuple[str, ...]] = ("UV_CACHE_DIR", "XDG_CACHE_HOME")

    @pytest.fixture
    def spec(self, requirement: EnvironmentSpec) -> EnvironmentSpec:
        """A requirement that can be met."""
        return requirement

    @pytest.fixture
    def lock(self, lock: EnvironmentLock) -> EnvironmentLock:
        """The lock of the requirement."""
        return lock

    @pytest.fixture
    def impossible(self, other_python: str) -> EnvironmentSpec:
        """A version that there is none of."""
        return EnvironmentSpec("pypi", {"packages": {"six": "99"}, "python": other_python})

    @pytest.fixture
    def addition(self) -> EnvironmentSpec:
        """A requirement that can be added to the lock."""
        return EnvironmentSpec("pypi", {"packages": {"iniconfig": "2.0.0"}, "default_python": "3.11"})
