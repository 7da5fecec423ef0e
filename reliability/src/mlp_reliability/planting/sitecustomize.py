"""Python imports this when it starts, where the harness put its folder on the path: it plants one bug."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from mlp_reliability.bugs.planted import Planted


class _Planter(importlib.abc.MetaPathFinder):
    """Finds one module as it would be found without, and patches it once it has been executed."""

    def __init__(self, bug: Planted) -> None:
        """Wait for the bug's module."""
        self._bug = bug

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's own specification, with a loader that patches."""
        del path, target
        if fullname != self._bug.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            raise ImportError(f"the bug is planted in {fullname}, which is not there")
        bug, execute = self._bug, spec.loader.exec_module

        def execute_and_plant(module: ModuleType) -> None:
            execute(module)
            bug.plant(module)

        spec.loader.exec_module = execute_and_plant  # type: ignore[method-assign]
        return spec


class _MutantFinder(importlib.abc.MetaPathFinder):
    """Finds one module in another file."""

    def __init__(self, module: str, file: str) -> None:
        """Wait for the module."""
        self._module = module
        self._file = file

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the specification of the other file."""
        del path, target
        return importlib.util.spec_from_file_location(fullname, self._file) if fullname == self._module else None


def _plant(name: str) -> None:
    """Plant a bug now, or when its module is imported."""
    bug = importlib.import_module("mlp_reliability.bugs").BUGS[name]
    if bug.module in sys.modules:
        bug.plant(sys.modules[bug.module])
    else:
        sys.meta_path.insert(0, _Planter(bug))


if os.environ.get("RELIABILITY_MUTANT"):
    sys.meta_path.insert(0, _MutantFinder(*os.environ["RELIABILITY_MUTANT"].split("=", 1)))
if os.environ.get("MLP_PLANTED"):
    _plant(os.environ["MLP_PLANTED"])
