"""The row ``mutants``: how modules are changed, and that a test that notices nothing is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mlp_reliability import mutants, run_row
from mlp_reliability.mutants import mutants_of

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = '''
"""A module."""
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import os

def least(a: int | None, b: int = 0) -> bool:
    """Tell something."""
    if a and not b:
        return a < b
    raise ValueError("text" + str(b))
'''


def test_every_kind_of_change_is_made_once() -> None:
    """Conditions, comparisons, numbers, answers and statements change; texts, annotations and docstrings do not."""
    made = list(mutants_of("module", SOURCE))
    assert {mutant.change for mutant in made} == {
        "1 instead in `0`",
        "the condition turned round in `if a and (not b):`",
        "and, or exchanged in `a and (not b)`",
        "not left out in `not b`",
        "None returned in `return a < b`",
        "another comparison, LtE in `a < b`",
        "`raise ValueError('text' + str(b))` left out in `def least(a: int | None, b: int=0) -> bool:`",
    }
    assert len({mutant.source for mutant in made}) == len(made)


def test_a_mutant_is_named_whatever_stands_before_it() -> None:
    """Module, scope and change name each one; the same change at two places of a scope is numbered."""
    source = "LIMIT: int = 5\n\nclass A:\n    def least(self, a, b):\n        return a < b or a < b\n"
    names = [mutant.code for mutant in mutants_of("module", source)]
    assert names == [mutant.code for mutant in mutants_of("module", f"import os\n\n\n{source}")]
    assert names == [
        "module.LIMIT: 6 instead in `5`",
        "module.A.least: None returned in `return a < b or a < b`",
        "module.A.least: and, or exchanged in `a < b or a < b`",
        "module.A.least: another comparison, LtE in `a < b`",
        "module.A.least: another comparison, LtE in `a < b` (2)",
    ]


def test_a_change_that_no_test_notices_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With tests that never fail every mutant lives on, and each is a violation, and their number is one."""
    monkeypatch.setattr(mutants, "TESTS", {"mlp_core.scheduler": ("tests/unit/test_version.py",)})
    result = run_row("mutants", tmp_path, 2)
    assert len(result.violations) == 3
    assert "no test notices" in result.violations[0]
    assert "2 of 2 mutants live on" in result.violations[2]


def test_mutants_are_tried_in_place_and_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a small module all changes are tried, by tests that go through them, and those of classes' fields too."""
    monkeypatch.setattr(mutants, "TESTS", {"mlp_core.store.checked": ("tests/unit/test_store_checked.py",)})
    result = run_row("mutants", tmp_path, 100)
    assert result.violations == []
    told = result.details["mlp_core.store.checked"]
    assert told["mutants"] > 10
    assert told["killed"] == told["mutants"] - len(result.details["survivors"])


def test_tests_that_fail_without_a_change_show_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the tests of a module fail by themselves, none of its mutants counts, and the others are tried."""
    failing = tmp_path / "test_failing.py"
    failing.write_text("def test_fails():\n    assert False\n")
    tests = {"mlp_core.scheduler": (str(failing),), "mlp_core.store.checked": ("tests/unit/test_store_checked.py",)}
    monkeypatch.setattr(mutants, "TESTS", tests)
    result = run_row("mutants", tmp_path / "row", 100)
    assert result.violations == ["the tests of mlp_core.scheduler fail without a change"]
    assert result.details["mlp_core.scheduler"] == {"mutants": 0, "killed": 0}
    assert result.details["mlp_core.store.checked"]["killed"] > 10


@pytest.mark.reliability
@pytest.mark.timeout(600)
def test_short_form(tmp_path: Path) -> None:
    """Of a few of all changes each is noticed, or known to change nothing; the row itself takes more of them."""
    assert run_row("mutants", tmp_path, 3).violations == []
