"""Every example in a docstring works; the contract's are run by its own tests."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.workspace.conftest import Distribution


def test_examples_work(distribution: Distribution) -> None:
    """What the docstrings of a distribution's modules show is what happens."""
    package = importlib.import_module(distribution.package)
    found = pkgutil.walk_packages(package.__path__, f"{distribution.package}.")
    names = [module.name for module in found if not module.name.endswith("__main__") and ".testing" not in module.name]
    failed = {name: doctest.testmod(importlib.import_module(name)).failed for name in names}
    assert {name: count for name, count in failed.items() if count} == {}
