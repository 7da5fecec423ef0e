"""The row ``branches``: every statement and every branch of the code that decides is reached by its unit tests.

Nothing is left out but what only a type checker sees: no comment excludes a line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlp_reliability.mutants import TESTS
from mlp_reliability.result import Result

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_ROOT: Final = Path(__file__).parents[3]
_COUNTED: Final = ("num_statements", "num_branches", "missing_lines", "missing_branches")

_SETTINGS: Final = """
[run]
branch = true
include = {include}
[report]
exclude_lines = if TYPE_CHECKING:
"""


def run(n: int, seed: int, folder: Path) -> Result:
    """Run the tests, all of them once, whatever `n` is, and look at what they reach."""
    files = sorted({file for tests in TESTS.values() for file in tests})
    modules = [f"{module.replace('.', '/')}.py" for module in TESTS]
    settings = folder / "coverage.ini"
    settings.write_text(_SETTINGS.format(include=",".join(str(_ROOT / module) for module in modules)))
    options = ["-q", "-p", "no:cacheprovider", "--hypothesis-seed", str(seed), "--basetemp", str(folder / "tests")]
    coverage, told = [sys.executable, "-m", "coverage"], f"--rcfile={settings}"
    environment = {**os.environ, "COVERAGE_FILE": str(folder / "reached")}
    command = [*coverage, "run", told, "-m", "pytest", *options, *files]
    tests = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=False)
    if tests.returncode:
        return Result("branches", n, seed, [f"the tests fail: {line}" for line in tests.stdout.splitlines()[-5:]])
    report = folder / "reached.json"
    command = [*coverage, "json", told, "-o", str(report)]
    subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, check=True)
    found = json.loads(report.read_text())
    violations = list(violations_in(modules, found["files"]))
    details = {name: found["totals"][name] for name in _COUNTED}
    return Result("branches", n, seed, violations, {"modules": len(modules), **details})


def violations_in(modules: Iterable[str], files: Mapping[str, Any]) -> Iterable[str]:
    """Iterate over what of some modules no test reaches, by what coverage.py reports of files."""
    for module in modules:
        if module not in files:
            yield f"{module}: no test imports it"
            continue
        missing = files[module]["missing_lines"]
        yield from (f"{module}:{line}: no test reaches it" for line in missing)
        for start, end in files[module]["missing_branches"]:
            if start not in missing:
                yield f"{module}:{start}: no test goes from here to {f'line {end}' if end > 0 else 'the end'}"
