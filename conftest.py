"""What holds for every test of the repository: plugins that fail, fail the test; no setting leaks in from outside."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import hypothesis
import pytest

# A loaded machine is no failure: what takes too long is stopped by the time limit of the whole test.
hypothesis.settings.register_profile("mlp", deadline=None)
hypothesis.settings.load_profile("mlp")

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True, scope="session")
def mlp_variables() -> Iterator[None]:
    """Replace the developer's ``MLP_*`` variables by strict plugins, for the tests and the processes they start."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("MLP_")]:
            patch.delenv(name)
        patch.setenv("MLP_STRICT_PLUGINS", "1")
        # Set on some machines; it makes every process that a test starts compile its imports again.
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield
