"""A plugin of pytest: hypothesis tells a failure at once, and does not look for a shorter one."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import Phase


@pytest.hookimpl(tryfirst=True)
def pytest_collection() -> None:
    """Have the tests that are imported from now on stop at their first failure."""
    phases = [Phase.explicit, Phase.generate]
    hypothesis.settings.register_profile("quick failures", phases=phases, database=None, deadline=None)
    hypothesis.settings.load_profile("quick failures")
