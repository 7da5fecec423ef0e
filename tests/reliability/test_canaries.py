"""The row ``canaries`` in its short form, and that its search would find what it looks for."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from mlp_reliability import run_row
from mlp_reliability.canaries import _canary, _Place, forms

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.reliability
@pytest.mark.timeout(600)
def test_short_form(tmp_path: Path) -> None:
    """No canary is found anywhere, and masks are where they were printed."""
    result = run_row("canaries", tmp_path)
    assert result.violations == []
    assert result.details["masked"] > 20 * result.n
    assert result.details["command_lines"] > 20


def test_a_leak_is_found(tmp_path: Path) -> None:
    """Each form of each canary is found in a file, in what was printed, and on a command line."""
    canary = _canary(random.Random(5))  # noqa: S311 # a test's choice
    for number, form in enumerate(forms(canary)):
        place = _Place(tmp_path / str(number), [canary])
        assert place.search("", [], printed=True) == []
        (place.folder / "inside/project/.env").touch()
        (place.folder / "inside/cache").write_bytes(b"before" + form + b"after")
        said = (b"before" + form).decode(errors="surrogateescape")
        found = place.search(said, [said], printed=True)
        assert [text.partition(" ")[2].split()[0] for text in found] == ["the", "what", "a"], form
