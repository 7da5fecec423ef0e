"""What may stand in the repository: nothing of the machine that it was written on, no folder without a word on it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

REGISTRY = re.compile(
    r"pypi\.(?:org|python)|files\.pythonhosted|registry\.npmjs|anaconda\.org|prefix\.dev|deb\.debian|https?://\S+/simple\b",
    re.IGNORECASE,
)
MACHINE_PATH = re.compile(r"(?<![\w.*}$-])/(?:root|work|home|Users|opt)/\w")


@pytest.mark.parametrize("pattern", [REGISTRY, MACHINE_PATH], ids=["registry", "machine path"])
def test_no_trace_of_a_machine(root: Path, tracked_files: list[Path], pattern: re.Pattern[str]) -> None:
    """No tracked file names a package registry's host or a path of one machine: both are its user's to choose."""
    found = {}
    for file in tracked_files:
        text = (root / file).read_text(errors="replace")
        if matches := sorted({match.group() for match in pattern.finditer(text)}):
            found[file.as_posix()] = matches
    assert found == {}


@pytest.mark.parametrize(
    ("pattern", "text", "is_found"),
    [
        (REGISTRY, "https://files." + "pythonhosted.org/packages", True),
        (REGISTRY, "--index-url http://mirror.example" + "/simple", True),
        (REGISTRY, "the decorator @pypi(packages=...)", False),
        (MACHINE_PATH, "open('/home" + "/ada/data.csv')", True),
        (MACHINE_PATH, "$work/venv, docs/home/index.md, https://example.com/home/", False),
    ],
)
def test_patterns_find_what_they_should(pattern: re.Pattern[str], text: str, is_found: bool) -> None:
    """The patterns of the test before tell a registry and a machine's path from their look-alikes."""
    assert bool(pattern.search(text)) is is_found


def test_every_top_level_folder_is_explained(root: Path, tracked_files: list[Path]) -> None:
    """A newcomer finds each folder of the root in the README, the architecture page or CONTRIBUTING."""
    pages = [root / "README.md", root / "CONTRIBUTING.md", root / "docs/architecture.md"]
    text = "\n".join(page.read_text() for page in pages)
    folders = {file.parts[0] for file in tracked_files if len(file.parts) > 1}
    assert sorted(folder for folder in folders if f"{folder}/" not in text) == []
