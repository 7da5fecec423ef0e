"""The grammar of names: what it allows, what it refuses, and how what was refused is shown."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlp_core import names
from mlp_core.errors import NameRefused

if TYPE_CHECKING:
    from collections.abc import Callable

CHECKS: dict[str, Callable[[str], str]] = {
    "identifier": lambda text: names.identifier(text, "flow"),
    "artifact": names.artifact,
    "label": lambda text: names.label(text, "deployment"),
    "run_id": names.run_id,
    "task_id": names.task_id,
}


@pytest.mark.parametrize(
    ("check", "text"),
    [
        ("identifier", "Flow_2"),
        ("artifact", "_x"),
        ("label", "a.b-c_1"),
        ("run_id", "20260131-094500-123456"),
        ("task_id", "2-1~3@0"),
        ("identifier", "a" * 128),
    ],
)
def test_proper_names_pass_as_they_are(check: str, text: str) -> None:
    """A name that is allowed comes back unchanged."""
    assert CHECKS[check](text) == text


@pytest.mark.parametrize(
    ("check", "text"),
    [
        ("identifier", "_x"),
        ("identifier", "2x"),
        ("identifier", "\u00e9"),
        ("identifier", "a\n"),
        ("identifier", "a" * 129),
        ("artifact", "a-b"),
        ("artifact", "2x"),
        ("label", "a..b"),
        ("label", "-a"),
        ("run_id", "\uff12\uff10\uff12\uff160131-094500-123456"),
        ("task_id", "\u0661"),
    ],
)
def test_others_are_refused(check: str, text: str) -> None:
    """What the grammar does not allow is refused, whatever other scripts or libraries call a letter or digit."""
    with pytest.raises(NameRefused, match="is refused"):
        CHECKS[check](text)


@given(st.text(max_size=200))
def test_a_name_that_passes_is_one_plain_path_segment(text: str) -> None:
    """Whatever passes a check that paths are made from stays inside the folder that it is put into."""
    for check in CHECKS.values():
        try:
            name = check(text)
        except NameRefused:
            continue
        assert (PurePosixPath("/store") / name).parts == ("/", "store", name)
        assert ".." not in name
        assert name.isascii()


@given(st.text(max_size=200))
def test_a_tag_can_be_seen(text: str) -> None:
    """A tag is printable, short and not blank; all such texts are tags."""
    proper = text.isprintable() and bool(text.strip()) and len(text) <= names.MAX_LENGTH
    if proper:
        assert names.tag(text) == text
    else:
        with pytest.raises(NameRefused):
            names.tag(text)


@given(st.text())
def test_what_is_shown_is_short_and_safe(text: str) -> None:
    """A refused text is told in a few dozen ASCII characters of one line."""
    shown = names.shown(text)
    assert shown.isascii()
    assert shown.isprintable()
    assert len(shown) < 90


@pytest.mark.parametrize("depth", range(1, 6))
def test_a_pathspec_is_read_as_it_is_written(depth: int) -> None:
    """Each beginning of a path is a path, and comes back as it was."""
    text = "/".join(["Flow", "20260131-094500-123456", "start", "0-1", "model"][:depth])
    assert str(names.Pathspec.parse(text)) == text


@pytest.mark.parametrize("text", ["Flow//start", "Flow/20260131-094500-123456/start/0/x/y", "", "../Flow"])
def test_no_pathspec(text: str) -> None:
    """A path with an empty part, too many parts or a part that is no name is refused."""
    with pytest.raises(NameRefused):
        names.Pathspec.parse(text)
