"""How errors and warnings reach the user."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, NoReturn

import pytest

from mlp_core.cli.report import guarded, user_traceback
from mlp_core.errors import FlowError, MlpError, NotFound, RunCancelled, UsageError
from mlp_core.runner import FlowErrors
from mlp_hookspecs import PluginWarning

if TYPE_CHECKING:
    from collections.abc import Callable


def raising(error: BaseException) -> Callable[[], int]:
    """Return an action that raises."""

    def act() -> NoReturn:
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MlpError("wrong"), 1),
        (UsageError("wrong"), 2),
        (NotFound("wrong"), 2),
        (RunCancelled("wrong"), 130),
        (OSError(13, "wrong", "/some/file"), 1),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("wrong"), 1),
    ],
)
def test_every_error_becomes_a_message_and_a_status(
    error: BaseException, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Standard error has one message; there is never a traceback of ours."""
    assert guarded(raising(error)) == status
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "wrong" in shown.err or shown.err == "interrupted\n"
    assert "Traceback" not in shown.err


def test_a_message_has_its_hint_and_notes(capsys: pytest.CaptureFixture[str]) -> None:
    """Hint and notes stand on lines of their own; what a terminal would obey is escaped."""
    error = UsageError("bad \x1b[2J name", hint="choose another")
    error.add_note("from plugin x")
    guarded(raising(error))
    assert capsys.readouterr().err == "error: bad \\x1b[2J name\n  hint: choose another\n  note: from plugin x\n"


def test_all_mistakes_of_a_flow_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """Each mistake has its file and line, and the last line counts them."""
    mistakes = [FlowError("no step 'x'", file="f.py", line=3, hint="add it"), FlowError("no end", file="f.py", line=1)]
    assert guarded(raising(FlowErrors(mistakes))) == 2
    assert capsys.readouterr().err.splitlines() == [
        "f.py:3: no step 'x'",
        "  hint: add it",
        "f.py:1: no end",
        "error: the flow has 2 mistakes",
    ]


def test_a_fault_of_ours_says_where_and_how_to_report_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unforeseen exception names its place; MLP_DEBUG shows the traceback."""
    assert guarded(raising(ZeroDivisionError("wrong"))) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: internal error: ZeroDivisionError: wrong at ")
    assert "test_cli_report.py:" in shown
    monkeypatch.setenv("MLP_DEBUG", "1")
    guarded(raising(ZeroDivisionError("wrong")))
    assert "Traceback" in capsys.readouterr().err


def test_warnings_of_the_platform_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """A warning about a plugin has no line of source under it, and the rest is left to Python."""

    def act() -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning("plugin x failed", PluginWarning, "somewhere.py", 1)
        return 0

    assert guarded(act) == 0
    assert capsys.readouterr().err == "warning: plugin x failed\n"


def test_a_traceback_shows_the_users_lines_only() -> None:
    """Frames of the platform and of the import system are cut, also in causes."""

    def inner() -> None:
        raise KeyError("cause")

    def outer() -> None:
        try:
            guarded_call(inner)
        except KeyError as error:
            raise ValueError("effect") from error

    def guarded_call(function: Callable[[], None]) -> None:
        from mlp_core.client.base import found

        found(function)

    with pytest.raises(ValueError, match="effect") as caught:
        outer()
    shown = user_traceback(caught.value)
    assert "ValueError: effect" in shown
    assert "KeyError: 'cause'" in shown
    assert "in inner" in shown
    assert "client/base.py" not in shown
