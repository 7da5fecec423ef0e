"""The row ``bucket`` in its short form, and the faulty bucket itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mlp_hookspecs.testing import StoreContract
from mlp_reliability import run_row
from mlp_reliability.faulty import Faults

if TYPE_CHECKING:
    from pathlib import Path

    from mlp_hookspecs.handles import Settings
    from mlp_hookspecs.testing.driver import Driver


@pytest.mark.reliability
@pytest.mark.timeout(600)
def test_short_form(tmp_path: Path) -> None:
    """Nothing is wrong and nothing hangs at any rate of errors, and the errors did come."""
    result = run_row("bucket", tmp_path)
    assert result.violations == []
    for rate in ("1%", "10%", "30%"):
        assert result.details[rate]["failed"] > result.details[rate]["requests"] * float(rate[:-1]) / 200
        assert result.details[rate]["done but failed"] > 0


def test_faults_come_at_their_rate() -> None:
    """About the asked share of requests fails; about half of those that fail were carried out."""
    done = 0

    def request() -> None:
        nonlocal done
        done += 1

    faults = Faults(0.3, 1, 0.0)
    for _ in range(1000):
        try:
            faults.carry_out(request)
        except OSError:
            continue
    assert faults.requests == 1000
    assert 250 < faults.failed < 500
    assert done == 1000 - faults.failed + faults.done_but_failed
    assert 0.3 < faults.done_but_failed / faults.failed < 0.6


@pytest.mark.reliability
class TestFaultyBucket(StoreContract):
    """A store on a bucket of which every tenth request fails keeps the contract."""

    plugin = "mlp_core.builtin.fsspec_store"
    name = "fsspec"

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        """A bucket in a folder."""
        return f"faulty://{tmp_path}/store"

    @pytest.fixture
    def settings(self, driver: Driver) -> Settings:
        """Faults that are the same each time."""
        return {**driver.settings({}), "storage.options": {"rate": 0.1, "seed": 1}}
