"""The short forms of the rows that harm processes, disks and files."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from mlp_reliability import ROWS, run_row

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


@pytest.mark.reliability
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["crashpoints", "damage", "faults", "kills", "many", "powercuts", "stops"])
def test_nothing_is_broken(tmp_path: Path, name: str) -> None:
    """The row finds no broken promise, and did harm as often as it should."""
    result = run_row(name, tmp_path)
    assert list(result.violations) == []
    assert result.n == ROWS[name].short


@pytest.mark.parametrize(("name", "n"), [("powercuts", 1), ("kills", 2)])
def test_the_worst_moments_lose_nothing(tmp_path: Path, name: str, n: int) -> None:
    """A power cut after each system call of a writer, and a driver that is killed, lose nothing acknowledged."""
    assert list(run_row(name, tmp_path, n).violations) == []
