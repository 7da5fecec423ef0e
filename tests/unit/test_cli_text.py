"""What is printed is safe for a terminal and readable for people."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlp_core.cli.text import duration, place, safe_line, safe_log, safe_text, size, table, width

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@given(st.text(st.characters()))
def test_a_line_obeys_nothing(text: str) -> None:
    """Whatever the text, its line holds no control, no reordering and no end of line."""
    shown = safe_line(text)
    assert not CONTROLS.search(shown)
    assert "\n" not in shown
    assert "\t" not in shown


@given(st.text(st.characters()))
def test_a_text_keeps_its_lines_only(text: str) -> None:
    """A text of several lines keeps its ends of lines and tabs, and no other control."""
    shown = safe_text(text)
    assert not CONTROLS.search(shown)
    assert shown.count("\n") == text.count("\n")


@given(st.text(st.sampled_from("ab\x1b[]m;0123\r\n\x07\x9b\u202e")))
def test_a_log_keeps_colours_only(text: str) -> None:
    """Of a log's escape sequences nothing but colours comes through, and each line ends them."""
    shown = safe_log(text)
    assert not CONTROLS.search(COLOUR.sub("", shown))
    for line in shown.split("\n"):
        assert not COLOUR.search(line) or line.endswith("\x1b[0m")


def test_plain_text_stays_as_it_is() -> None:
    """Letters of any language are shown as they are."""
    for text in ("straße", "日本語", "naïve", "\N{GRINNING FACE}", "a\u0301"):
        assert safe_line(text) == safe_log(text) == text


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("\x9b31m", r"\x9b31m"),
        ("abc\u202etxt.exe", r"abc\u202etxt.exe"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\ud800", r"\ud800"),
    ],
)
def test_hostile_names_are_shown_escaped(hostile: str, shown: str) -> None:
    """Terminal commands in a name become visible text."""
    assert safe_line(hostile) == shown


def test_progress_bars_show_their_last_state() -> None:
    """A line that was overwritten shows what it said in the end."""
    assert safe_log("10%\r50%\r100%\r\ndone\n") == "100%\ndone\n"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-1, "0 ms"), (0.0121, "12 ms"), (1, "1.0 s"), (59.94, "59.9 s"), (60, "1 min 00 s"), (7260, "2 h 01 min")],
)
def test_durations(seconds: float, shown: str) -> None:
    """A duration has as many digits as people read."""
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 1024**4, "5.0 TiB")]
)
def test_sizes(count: int, shown: str) -> None:
    """A size is told in binary units."""
    assert size(count) == shown


def test_places_are_paths_or_urls() -> None:
    """A local store is told as a path; another's URL stays."""
    assert place("file:///data/store") == "/data/store"
    assert place("s3://bucket/prefix") == "s3://bucket/prefix"


@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), max_size=5))
def test_tables_are_aligned(rows: list[tuple[str, str]]) -> None:
    """The second column begins at one place in every line, however wide the letters are."""
    lines = table(("first", "second"), rows).split("\n")
    assert len(lines) == len(rows) + 1
    start = max(width(safe_line(row[0])) for row in [("first", ""), *rows]) + 2
    for line, row in zip(lines[1:], rows, strict=True):
        cell = safe_line(row[1]).rstrip()
        if cell:
            assert width(line) == start + width(cell)


def test_wide_letters_take_two_columns() -> None:
    """Letters that a terminal draws wide count twice, and marks above letters not at all."""
    assert width("日本") == 4
    assert width(unicodedata.normalize("NFD", "é")) == 1
