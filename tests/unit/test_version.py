"""The core's version, which also a worker without the distribution's metadata knows."""

from __future__ import annotations

import tomllib
from pathlib import Path

from mlp_core.version import CORE_VERSION


def test_version_is_the_distributions() -> None:
    """The constant is the version in ``pyproject.toml``."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["version"] == CORE_VERSION
