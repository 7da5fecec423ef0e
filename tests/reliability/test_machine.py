"""The row ``machine`` in its short form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mlp_reliability import run_row

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.reliability
@pytest.mark.timeout(600)
def test_short_form(tmp_path: Path) -> None:
    """A store that is crashed, damaged, cleared, copied and read in any order holds what was acknowledged."""
    result = run_row("machine", tmp_path)
    assert result.violations == []
    for what in (
        "a process dies",
        "a copying process dies",
        "clear",
        "commit what was prepared",
        "damage",
        "take over",
    ):
        assert result.details[what] > 0, what
