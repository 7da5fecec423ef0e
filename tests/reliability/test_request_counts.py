"""The row ``requests``, whose short form is its long one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mlp_reliability import run_row

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.reliability
@pytest.mark.timeout(600)
def test_requests_are_bounded(tmp_path: Path) -> None:
    """A run takes at most about a request a group commit, and reading it tens of requests, not thousands."""
    result = run_row("requests", tmp_path)
    assert result.violations == []
    assert result.details["run"]["requests a task"] < 1
    assert result.details["run"]["reading it afterwards"]["all"] < 10
    assert result.details["list"]["again"]["all"] < 10
