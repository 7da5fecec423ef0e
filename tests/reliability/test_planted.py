"""The harness has teeth: each planted bug is found by the row that must find it."""

from __future__ import annotations

import pytest

from mlp_reliability.bugs import BUGS
from mlp_reliability.planting import find_planted


@pytest.mark.reliability
@pytest.mark.timeout(660)
@pytest.mark.parametrize("name", BUGS)
def test_planted_bug_is_caught(name: str) -> None:
    """A row reports a violation where a bug is planted; without it the same row reports none."""
    found = find_planted(name)
    assert found.caught, found.evidence
