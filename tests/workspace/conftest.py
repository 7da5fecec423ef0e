"""The distributions of this repository, for the tests that the repository makes of itself."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path
from typing import Any

import attrs
import pytest

ROOT = Path(__file__).parents[2]


@attrs.frozen
class Distribution:
    """A folder with a ``pyproject.toml``, built and versioned on its own."""

    folder: Path
    project: dict[str, Any]

    @property
    def name(self) -> str:
        """The name under which it is installed."""
        return self.project["name"]

    @property
    def package(self) -> str:
        """The name of its import package."""
        return self.name.replace("-", "_")

    @property
    def source(self) -> Path:
        """The folder of its import package."""
        flat = self.folder / self.package
        return flat if flat.exists() else self.folder / "src" / self.package

    @property
    def is_published(self) -> bool:
        """Whether there are releases of it."""
        return "Private :: Do Not Upload" not in self.project["classifiers"]

    @property
    def entry_points(self) -> dict[str, str]:
        """What it announces to the core: a module for each plugin name."""
        return self.project.get("entry-points", {}).get("mlp", {})


def find_distributions() -> list[Distribution]:
    """Read every ``pyproject.toml`` of the workspace; the core's comes first."""
    files = [
        ROOT / "pyproject.toml",
        ROOT / "hookspecs/pyproject.toml",
        *sorted(ROOT.glob("mlp_plugins/*/pyproject.toml")),
        ROOT / "reliability/pyproject.toml",
    ]
    return [Distribution(file.parent, tomllib.loads(file.read_text())["project"]) for file in files]


@pytest.fixture(params=find_distributions(), ids=lambda distribution: distribution.name)
def distribution(request: pytest.FixtureRequest) -> Distribution:
    """Each distribution in turn."""
    return request.param


@pytest.fixture(scope="session")
def distributions() -> list[Distribution]:
    """All distributions."""
    return find_distributions()


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def tool_settings() -> dict[str, Any]:
    """The ``[tool]`` table of the root's ``pyproject.toml``."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]


@pytest.fixture(scope="session")
def tracked_files() -> list[Path]:
    """Every file that git tracks and that is there, relative to the root."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [Path(name) for name in listed.split("\0") if name and (ROOT / name).is_file()]
