"""Which names are allowed: the one grammar that every name from outside passes before anything uses it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import attrs

from mlp_core.errors import NameRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_LENGTH = 128
"""Characters in a name: room to spare for people, and within every file system's limit."""

_SHORT_DIGEST = 19
_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_ARTIFACT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_RUN_ID = re.compile(r"\d{8}-\d{6}-\d{6}", re.ASCII)
_ENVIRONMENT = re.compile(r"[a-z0-9][a-z0-9_.\-]*(/[a-z0-9][a-z0-9_.\-]*)*")
_PLATFORM = re.compile(r"[a-z0-9]+-[a-z0-9_]+")
_TASK_ID = re.compile(r"\d+(-\d+)*(~\d+)?(@\d+)?", re.ASCII)


def identifier(text: str, what: str) -> str:
    """Check the name of a flow, step, artifact or parameter: a Python identifier in ASCII, not beginning with ``_``.

    Parameters
    ----------
    text : str
        The name.
    what : str
        What it names, for the message.

    Returns
    -------
    str
        The name.

    Raises
    ------
    NameRefused
        Where the name is refused.
    """
    return _check(text, what, _IDENTIFIER, "ASCII letters, digits and _, beginning with a letter")


def artifact(text: str) -> str:
    """Check the name that a step assigns to: as `identifier`, but it may begin with ``_``; raises NameRefused."""
    return _check(text, "artifact", _ARTIFACT, "ASCII letters, digits and _, not beginning with a digit")


def label(text: str, what: str) -> str:
    """Check a free name, such as a deployment's: letters, digits, ``_``, ``-`` and ``.``; raises NameRefused."""
    checked = _check(text, what, _LABEL, "ASCII letters, digits, _, - and ., beginning with a letter or digit")
    if ".." in checked:
        raise NameRefused(f"{what} {shown(text)} is refused: it contains '..'")
    return checked


def environment(text: str) -> str:
    """Check the name of an environment, such as ``fraud/scoring``: labels in lower case with ``/`` between them."""
    checked = _check(text, "environment", _ENVIRONMENT, "lower case letters, digits, _, - and ., in parts between /")
    if ".." in checked:
        raise NameRefused(f"environment {shown(text)} is refused: it contains '..'")
    return checked


def platform(text: str) -> str:
    """Check the name of a platform, such as ``linux-64``; raises NameRefused."""
    return _check(text, "platform", _PLATFORM, "a system and a machine: linux-64, linux-aarch64, osx-arm64")


def run_id(text: str) -> str:
    """Check a run id, such as ``20260131-094500-123456``; raises NameRefused."""
    return _check(text, "run id", _RUN_ID, "a date, a time and microseconds: 20260131-094500-123456")


def task_id(text: str) -> str:
    """Check a task id, such as ``2-1~3``; raises NameRefused."""
    return _check(text, "task id", _TASK_ID, "numbers as in 0, 2-1, 0~3 or 0@1")


def tag(text: str, what: str = "tag") -> str:
    """Check a tag, namespace or user name: any printable text that is not blank, up to the length limit.

    What cannot be seen is refused, since two tags that look alike would differ: control and format characters (also
    those that turn the text around or have no width), surrogates, spaces other than the plain one.

    Raises
    ------
    NameRefused
        Where it is refused.
    """
    _check_length(text, what)
    if not text.isprintable() or not text.strip():
        raise NameRefused(f"{what} {shown(text)} is refused", hint="allowed are printable characters, not only spaces")
    return text


def shown(text: str) -> str:
    """Return a refused text for a message: quoted, control characters escaped, shortened."""
    quoted = ascii(text)
    return quoted if len(quoted) <= 60 else f"{quoted[:56]}...' ({len(text)} characters)"  # noqa: PLR2004 # a line's worth


def short_digest(digest: str) -> str:
    """Return as much of a digest as people need to tell it from others."""
    return digest[:_SHORT_DIGEST]


def closest(name: str, known: Iterable[str]) -> str:
    """Return the known name that a misspelt one most likely means; empty where none is close."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, sorted(known), 1)), "")


def new_run_id(now: float) -> str:
    """Return the run id of a moment: ids sort by time.

    Parameters
    ----------
    now : float
        Seconds since the epoch.

    Returns
    -------
    str
        UTC date, time and microseconds.

    Examples
    --------
    >>> new_run_id(0.25)
    '19700101-000000-250000'
    """
    return datetime.fromtimestamp(now, UTC).strftime("%Y%m%d-%H%M%S-%f")


@attrs.frozen
class Pathspec:
    """A place in the tree of flows, runs, steps, tasks and artifacts; the parts below the named one are None.

    Attributes
    ----------
    flow, run_id, step, task_id, artifact : str or None
        The parts, each checked.
    """

    flow: str
    run_id: str | None = None
    step: str | None = None
    task_id: str | None = None
    artifact: str | None = None

    @classmethod
    def parse(cls, text: str) -> Pathspec:
        """Read ``Flow/run/step/task/artifact``, or the beginning of it.

        Raises
        ------
        NameRefused
            Where a part is refused or there are more than five.
        """
        parts = text.strip().strip("/").split("/")
        if len(parts) > 5:  # noqa: PLR2004 # flow, run, step, task, artifact
            raise NameRefused(f"pathspec {shown(text)} has more parts than Flow/run/step/task/artifact")
        checks: tuple[Callable[[str], str], ...] = (
            lambda part: identifier(part, "flow"),
            run_id,
            lambda part: identifier(part, "step"),
            task_id,
            lambda part: identifier(part, "artifact"),
        )
        return cls(*(check(part) for check, part in zip(checks, parts, strict=False)))

    def __str__(self) -> str:
        """Return the parts that are there, joined by slashes."""
        parts = (self.flow, self.run_id, self.step, self.task_id, self.artifact)
        return "/".join(part for part in parts if part is not None)


def _check(text: str, what: str, pattern: re.Pattern[str], allowed: str) -> str:
    """Return the text if it matches and is short enough; raise NameRefused otherwise."""
    _check_length(text, what)
    if not pattern.fullmatch(text):
        raise NameRefused(f"{what} {shown(text)} is refused", hint=f"allowed are {allowed}")
    return text


def _check_length(text: str, what: str) -> None:
    """Raise NameRefused for a text that is too long."""
    if len(text) > MAX_LENGTH:
        raise NameRefused(f"{what} {shown(text)} is refused: it is longer than {MAX_LENGTH} characters")
