"""The environment backend keeps the promises of its kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mlp_hookspecs.testing import EnvironmentContract
from mlp_plugin_conda.tools import this_platform

if TYPE_CHECKING:
    from conftest import Channel  # a fixture's class
    from mlp_hookspecs import EnvironmentLock, EnvironmentSpec


@pytest.mark.usefixtures("shared_cache")
class TestConda(EnvironmentContract):
    """Python and two packages of a few bytes."""

    plugin = "mlp_plugin_conda.plugin"
    name = "conda"
    platforms = (this_platform(),)
    caches = ("RATTLER_CACHE_DIR", "UV_CACHE_DIR")

    @pytest.fixture
    def spec(self, requirement: EnvironmentSpec) -> EnvironmentSpec:
        """A requirement that can be met."""
        return requirement

    @pytest.fixture
    def lock(self, lock: EnvironmentLock) -> EnvironmentLock:
        """The lock of the requirement."""
        return lock

    @pytest.fixture
    def addition(self, channel: Channel) -> EnvironmentSpec:
        """A requirement that can be added to the other."""
        return channel.spec(pip={"six": "1.17.0"})

    @pytest.fixture
    def impossible(self, channel: Channel) -> EnvironmentSpec:
        """A version that there is none of."""
        return channel.spec(packages={"tiny": "99"})
