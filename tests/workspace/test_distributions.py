"""Each distribution is whole: documented, typed, versioned, and known to the tools."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.workspace.conftest import Distribution


def test_has_readme_changelog_and_types(distribution: Distribution) -> None:
    """A distribution explains itself, is typed, and keeps a changelog of its own if it is published."""
    assert (distribution.folder / "README.md").read_text().startswith("# ")
    assert (distribution.source / "py.typed").exists()
    if distribution.is_published:
        assert (distribution.folder / "CHANGELOG.md").read_text().startswith(f"# Changelog of {distribution.name}\n")


def test_installed_version_is_the_declared_one(distribution: Distribution) -> None:
    """The metadata of the installation, which is what the program reads, tells the version in ``pyproject.toml``."""
    assert importlib.metadata.version(distribution.name) == distribution.project["version"]


def test_development_installation_has_every_distribution(root: Path, distributions: list[Distribution]) -> None:
    """``requirements/dev.txt`` installs each distribution editable, and nothing else."""
    lines = (root / "requirements/dev.txt").read_text().splitlines()
    installed = {line.removeprefix("-e ").partition("[")[0] for line in lines if line and not line.startswith("#")}
    folders = {distribution.folder.relative_to(root).as_posix() for distribution in distributions}
    assert installed == {"." if folder == "." else f"./{folder}" for folder in folders}


def test_import_contracts_cover_every_distribution(
    distributions: list[Distribution], tool_settings: dict[str, Any]
) -> None:
    """No plugin escapes import-linter: each is in the graph, and in the contracts about plugins."""
    packages = {distribution.package for distribution in distributions}
    plugins = packages - {"mlp_core", "mlp_hookspecs", "mlp_reliability"}
    contracts = {contract["id"]: contract for contract in tool_settings["importlinter"]["contracts"]}
    assert set(tool_settings["importlinter"]["root_packages"]) == packages
    assert set(contracts["contract-is-independent"]["forbidden_modules"]) == packages - {"mlp_hookspecs"}
    assert set(contracts["plugins-use-public-names"]["source_modules"]) == plugins
    assert set(contracts["plugins-are-independent"]["modules"]) == plugins
    assert set(contracts["harness-is-a-leaf"]["source_modules"]) == packages - {"mlp_reliability"}


def test_changelog_fragments_are_rendered(distribution: Distribution) -> None:
    """Every fragment in ``changelog.d`` has a name that towncrier takes, so that none is left out of a release."""
    if not distribution.is_published:
        pytest.skip("it is never released")
    settings = tomllib.loads((distribution.folder / "pyproject.toml").read_text())["tool"]["towncrier"]
    kinds = {kind["directory"] for kind in settings["type"]}
    fragments = sorted((distribution.folder / settings["directory"]).iterdir())
    assert [file.name for file in fragments if file.suffix != ".md" or file.suffixes[-2][1:] not in kinds] == []
    command = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "1", "--dir", distribution.folder]
    rendered = subprocess.run(command, check=True, capture_output=True, text=True, cwd=distribution.folder).stdout
    assert [file.name for file in fragments if file.read_text().split()[0] not in rendered] == []
