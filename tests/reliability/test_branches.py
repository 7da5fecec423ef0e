"""The row ``branches``: what no test reaches is told, and of the code that decides nothing is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mlp_reliability import branches, run_row
from mlp_reliability.branches import violations_in

if TYPE_CHECKING:
    from pathlib import Path


def test_what_is_not_reached_is_told() -> None:
    """A line, a branch, the end of a function and a whole module; a branch from a line that is told itself is not."""
    report = {"a.py": {"missing_lines": [7], "missing_branches": [[3, 5], [4, -1], [7, 9]]}}
    assert list(violations_in(["a.py", "b.py"], report)) == [
        "a.py:7: no test reaches it",
        "a.py:3: no test goes from here to line 5",
        "a.py:4: no test goes from here to the end",
        "b.py: no test imports it",
    ]


def test_tests_that_do_not_reach_all_are_a_violation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row fails where the tests reach only a part of a module."""
    tests = ("tests/unit/test_store_layout.py",)
    monkeypatch.setattr(branches, "TESTS", dict.fromkeys(("mlp_core.store.records", "mlp_core.store.index"), tests))
    violations = run_row("branches", tmp_path).violations
    assert violations[-1] == "mlp_core/store/index.py: no test imports it"
    assert all(line.startswith("mlp_core/store/records.py:") for line in violations[:-1])
    assert len(violations) > 2


@pytest.mark.reliability
@pytest.mark.timeout(600)
def test_short_form(tmp_path: Path) -> None:
    """Every branch of store, scheduler and plugin loader is reached."""
    assert run_row("branches", tmp_path).violations == []
