"""What the distributions import: only what they declare, and nothing heavy before it is needed."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tests.workspace.conftest import Distribution


def import_names(requirements: Iterable[str]) -> set[str]:
    """Return the import packages that the required distributions provide."""
    wanted = {re.split(r"[\s\[<>=!~;(]", requirement, maxsplit=1)[0].lower() for requirement in requirements}
    installed = importlib.metadata.packages_distributions()
    found = {package for package, names in installed.items() if wanted & {name.lower() for name in names}}
    # An editable installation, which our own have in development, does not list its packages.
    return found | {name.replace("-", "_") for name in wanted if name.startswith("mlp-")}


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Yield the top-level package of every absolute import, at whatever depth, that the program may execute."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]
        yield from imported_names(node)


@pytest.fixture(scope="module")
def heavy_packages(tool_settings: dict[str, Any]) -> set[str]:
    """The packages that ruff refuses at the top of a module."""
    return set(tool_settings["ruff"]["lint"]["flake8-tidy-imports"]["banned-module-level-imports"])


def test_imports_only_what_it_declares(distribution: Distribution) -> None:
    """A distribution imports the standard library and its own dependencies; an extra's only in the module so named."""
    extras = distribution.project.get("optional-dependencies", {})
    always = import_names(distribution.project["dependencies"]) | sys.stdlib_module_names | {distribution.package}
    undeclared = {}
    for file in distribution.source.rglob("*.py"):
        parts = file.relative_to(distribution.source).with_suffix("").parts
        declared = always.union(*(import_names(extras[part]) for part in parts if part in extras))
        if unknown := set(imported_names(ast.parse(file.read_text()))) - declared:
            undeclared["/".join(parts)] = unknown
    assert undeclared == {}


def test_loading_imports_nothing_heavy(distribution: Distribution, heavy_packages: set[str]) -> None:
    """Importing the package and its entry points loads neither a heavy library nor a plugin's own dependencies."""
    light = {"attr", "attrs", "pluggy", "mlp_core", "mlp_hookspecs"}
    own = import_names(distribution.project["dependencies"]) if distribution.entry_points else set()
    modules = [distribution.package, *(value.partition(":")[0] for value in distribution.entry_points.values())]
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert (heavy_packages | own - light) & set(loaded) == set()


def test_entry_points_belong_to_the_distribution(distribution: Distribution, root: Path) -> None:
    """A plugin announces modules of its own; the core and the contract announce none, the builtins need no entry."""
    modules = [value.partition(":")[0].partition(".")[0] for value in distribution.entry_points.values()]
    is_plugin = distribution.folder.parent == root / "mlp_plugins"
    assert set(modules) == ({distribution.package} if is_plugin else set())


def test_worker_needs_only_what_travels() -> None:
    """A worker starts with the standard library, attrs and pluggy, so that it runs in an environment of the user's."""
    code = "import sys; before = set(sys.modules); import mlp_core.worker; print(*set(sys.modules) - before)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    third_parties = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names
    assert third_parties <= {"attr", "attrs", "pluggy", "mlp_core", "mlp_hookspecs"}
