"""How errors and warnings reach the user: one message each, an exit status, and never a traceback of ours."""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import os
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import mlp_hookspecs
from mlp_core.cli.text import place, safe_text
from mlp_core.errors import FlowError, MlpError, UsageError
from mlp_hookspecs import MlpWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

INTERRUPTED = 130
BROKEN_PIPE = 141
_DEBUG = "MLP_DEBUG"
_OURS = (Path(__file__).parent.parent, Path(mlp_hookspecs.__file__).parent)
_LONG_WORD = re.compile(r"(\S{60})\S{180,}(\S{20})")


def guarded(action: Callable[[], int]) -> int:
    """Do something for a command, and turn whatever goes wrong into a message and an exit status.

    Parameters
    ----------
    action : callable
        Returns the exit status.

    Returns
    -------
    int
        The exit status.
    """
    # Nothing that is left when the process ends is worth a search for cycles, which takes longer than most commands.
    atexit.register(gc.freeze)
    _prepare_streams()
    try:
        os.getcwd()  # noqa: PTH109 # whether there is one
    except OSError:
        print_error("the working folder is no longer there\n  hint: change to one that is")
        return UsageError.exit_status
    try:
        with _plain_warnings():
            status = action()
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError as error:
        return output_failed(error)
    except MlpError as error:
        show_error(error)
        status = error.exit_status
    except Exception as error:  # noqa: BLE001 # whatever it is, the user gets a message and a status
        _show_unexpected(error)
        status = 1
    try:
        sys.stdout.flush()
    except OSError as error:
        failed = output_failed(error)
        return status or failed
    return status


def output_failed(error: OSError) -> int:
    """Return the exit status where standard output cannot be written any more; a reader that left needs no message."""
    forget_output()
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE
    print_error(f"{error.strerror}: standard output")
    return 1


def _prepare_streams() -> None:
    """Make the standard streams ones that can be written to, whatever the process was started with."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Else the next file that is opened, a journal for example, would be what is printed to.
            os.open(os.devnull, os.O_RDWR)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115 # for the process's life, by number
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def show_error(error: MlpError) -> None:
    """Print an error, and all that it consists of, on standard error."""
    parts: tuple[MlpError, ...] = getattr(error, "errors", ())
    if len(parts) == 1:
        print_error(_told(parts[0]))
    else:
        for part in parts:
            print_error(_told(part), label=False)
        print_error(_told(error) if not parts else _with_hint(error))
    for note in getattr(error, "__notes__", ()):
        print_error(f"  note: {note}", label=False)
    if os.environ.get(_DEBUG):
        _print_all(error)


def _told(error: MlpError) -> str:
    """Return an error with its place, as compilers tell it."""
    if isinstance(error, FlowError) and error.file:
        line = f":{error.line}" if error.line else ""
        return f"{_shortened(place(error.file))}{line}: {_with_hint(error)}"
    return _shortened(safe_text(str(error)))


def _with_hint(error: MlpError) -> str:
    """Return an error's message and, on a line of its own, its hint."""
    return _shortened(safe_text(f"{error.message}\n  hint: {error.hint}" if error.hint else error.message))


def _shortened(text: str) -> str:
    """Return a text without the middle of very long words: a message must not drown in the value that it is about."""
    return _LONG_WORD.sub(lambda word: f"{word[1]}...{word[2]} ({len(word[0])} characters)", text)


def print_error(message: str, *, label: bool = True) -> None:
    """Print a message on standard error, with the word that errors begin with or as a part of one."""
    _say(message, label=_label("error", 31) if label else "")


def warn(message: str) -> None:
    """Print a warning on standard error."""
    _say(message, label=_label("warning", 33))


def user_traceback(error: BaseException) -> str:
    """Return the traceback of an exception in the user's code, without the frames of the platform."""
    import traceback

    shown = traceback.TracebackException.from_exception(error)
    part: traceback.TracebackException | None = shown
    while part is not None:
        part.stack = traceback.StackSummary.from_list([frame for frame in part.stack if not _is_ours(frame.filename)])
        part = part.__cause__ or part.__context__
    return "".join(shown.format()).rstrip()


def _is_ours(filename: str) -> bool:
    """Tell whether a frame is the platform's or that of an import."""
    return filename.startswith("<frozen ") or any(Path(filename).is_relative_to(folder) for folder in _OURS)


def _show_unexpected(error: Exception) -> None:
    """Print an exception that nobody had foreseen: the system's as its message, others as a fault of ours."""
    if isinstance(error, OSError) and error.strerror:
        place = f": {error.filename}" if error.filename else ""
        print_error(_shortened(safe_text(f"{error.strerror}{place}")))
    else:
        from traceback import extract_tb

        frames = extract_tb(error.__traceback__)
        place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        message = f"{type(error).__name__}: {error}"
        print_error(f"internal error: {_shortened(safe_text(message))}{place}")
        if not os.environ.get(_DEBUG):
            _say(f"  hint: this is a fault of the platform; {_DEBUG}=1 shows its traceback for a report")
    for note in getattr(error, "__notes__", ()):
        _say(f"  note: {note}")
    if os.environ.get(_DEBUG):
        _print_all(error)


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show the platform's warnings as lines of ours for the time of a command."""
    with warnings.catch_warnings():
        default = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: object, **details: object) -> None:
            if issubclass(category, MlpWarning):
                warn(str(message))
            else:
                default(message, category, *place, **details)  # type: ignore[arg-type] # passed on as it came

        warnings.showwarning = show
        yield


def _label(word: str, colour: int) -> str:
    """Return the word that a message begins with, coloured for a terminal."""
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        return f"\x1b[1;{colour}m{word}:\x1b[0m"
    return f"{word}:"


def _say(text: str, *, label: str = "") -> None:
    """Print a text on standard error, with nothing in it that a terminal obeys, if that can still be written to."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{label} {safe_text(text)}\n" if label else f"{safe_text(text)}\n")
        sys.stderr.flush()


def forget_output() -> None:
    """Let the interpreter end quietly though nobody reads standard output any more."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_all(error: BaseException) -> None:
    """Print an exception with all frames."""
    import traceback

    traceback.print_exception(error)
