"""How values look to people: safe for a terminal, with readable durations, sizes, times and tables."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Control characters, and the ones that reorder or hide text: what a terminal would obey instead of showing.
_UNSAFE = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\ufff9-\ufffb"
    "\U000e0000-\U000e0fff"
)
_UNSAFE_IN_TEXT = re.compile(f"[{_UNSAFE}]")
_UNSAFE_IN_NAME = re.compile(f"[\t\n{_UNSAFE}]")
_COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_LONGEST = 10_000 * 365 * _DAY
_KIBI = 1024


def safe_line(text: str) -> str:
    r"""Return a text for one line: whatever a terminal would obey is escaped, ends of lines and tabs too.

    Parameters
    ----------
    text : str
        A name, message or value that somebody else wrote.

    Returns
    -------
    str
        What is safe to print.

    Examples
    --------
    >>> print(safe_line("a\x1b]0;title\x07b"))
    a\x1b]0;title\x07b
    """
    return _UNSAFE_IN_NAME.sub(_escape, text)


def safe_text(text: str) -> str:
    """Return a text of several lines, escaped as `safe_line` does, but with its ends of lines and tabs."""
    return _UNSAFE_IN_TEXT.sub(_escape, text)


def safe_log(text: str) -> str:
    r"""Return what a task printed, for a terminal: colours stay, and of a line that was overwritten the last state.

    Parameters
    ----------
    text : str
        Whole lines.

    Returns
    -------
    str
        What is safe to print.

    Examples
    --------
    >>> print(safe_log("10%\r100%\nnext"))
    100%
    next
    """
    if not _UNSAFE_IN_TEXT.search(text):
        return text
    lines = []
    for line in text.split("\n"):
        shown = line.rstrip("\r").rpartition("\r")[2]
        parts = _COLOUR.split(shown)
        escaped = "".join(part if index % 2 else safe_text(part) for index, part in enumerate(parts))
        # A colour that the task did not end would go on in our own lines.
        lines.append(escaped + "\x1b[0m" if len(parts) > 1 else escaped)
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Return a duration with as many digits as people read.

    Examples
    --------
    >>> [duration(s) for s in (0.004, 2.345, 61, 3725, 90000)]
    ['4 ms', '2.3 s', '1 min 01 s', '1 h 02 min', '1 d 1 h']
    """
    if not seconds < _LONGEST:  # so that it is told of what is no number, too
        return "unknown"
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < _MINUTE:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"


def size(count: float) -> str:
    """Return a number of bytes in binary units.

    Examples
    --------
    >>> [size(n) for n in (17, 2048, 3 * 1024**3)]
    ['17 B', '2.0 KiB', '3.0 GiB']
    """
    if count < _KIBI:
        return f"{int(count)} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= _KIBI
        if count < _KIBI:
            return f"{count:.1f} {unit}"
    return f"{count / _KIBI:.1f} TiB"


def place(url: str) -> str:
    """Return where something is, as people say it: a path for a local URL, relative where that is shorter."""
    import os

    path = url.removeprefix("file://")
    if "://" in path:
        return safe_line(url)
    return safe_line(min(path, os.path.relpath(path), key=len))


def moment(seconds: float) -> str:
    """Return a time in the user's time zone, to the second; what a store says may be none."""
    import time

    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "unknown"


def plural(count: int, word: str) -> str:
    """Return a number with its noun.

    Examples
    --------
    >>> plural(1, "task"), plural(3, "task")
    ('1 task', '3 tasks')
    """
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def first_line(text: str) -> str:
    """Return the first line of a docstring; empty where there is none."""
    return text.strip().partition("\n")[0].strip()


def width(text: str) -> int:
    """Return how many columns a text takes in a terminal."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table with aligned columns; cells are escaped.

    Parameters
    ----------
    header : sequence of str
        The columns' titles.
    rows : iterable of sequence of str
        A cell for each column.

    Returns
    -------
    str
        The lines, without a final end of line.

    Examples
    --------
    >>> print(table(("step", "tasks"), [("start", "1"), ("end", "1")]))
    step   tasks
    start  1
    end    1
    """
    lines = [tuple(header), *(tuple(safe_line(cell) for cell in row) for row in rows)]
    widths = [max(width(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell + " " * (widths[column] - width(cell)) for column, cell in enumerate(line)).rstrip()
        for line in lines
    )


def put(text: str, stream: TextIO | None = None) -> None:
    """Print a text, by default on standard output, without what a terminal obeys; OSError where that is full.

    Ends of lines pass: what is to stay on one line goes through `safe_line` before.
    """
    put_as_it_is(safe_text(text), stream)


def put_as_it_is(text: str, stream: TextIO | None = None) -> None:
    """Print what has been made safe in its own way, or is meant for a program; as `put`."""
    try:
        (sys.stdout if stream is None else stream).write(text + "\n")
    except OSError as error:
        error.filename = error.filename or "standard output"
        raise


def put_json(data: object) -> None:
    """Print data as JSON for programs: indented, one document."""
    import json

    put(json.dumps(data, indent=2, default=str))


def _escape(match: re.Match[str]) -> str:
    """Return the escape sequence of one character."""
    return match.group().encode("unicode_escape").decode()
