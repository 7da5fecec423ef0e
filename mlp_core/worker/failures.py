"""How a user's exception is told: their frames, without ours."""

from __future__ import annotations

import itertools
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import mlp_hookspecs
from mlp_core.artifacts import type_name
from mlp_core.errors import MlpError, StoreError
from mlp_core.worker.state import TransitionError
from mlp_hookspecs import Failure

if TYPE_CHECKING:
    from mlp_core.values import Values

_OURS = (
    str(Path(__file__).parents[1]) + "/",
    str(Path(mlp_hookspecs.__file__).parent) + "/",
    "<frozen importlib.",
)


def user_traceback(error: BaseException) -> str:
    """Return an exception's traceback as text, without the platform's own frames.

    Parameters
    ----------
    error : BaseException
        The exception.

    Returns
    -------
    str
        What Python would print, ending with a line's end.
    """
    shown = traceback.TracebackException.from_exception(error)
    if isinstance(error, StoreError):
        _cut_to_callers(shown)
    _cut(shown, is_ours=isinstance(error, MlpError | TransitionError))
    return "".join(shown.format())


def describe_exception(error: BaseException, text: str, values: Values | None) -> Failure:
    """Return the failure that a user's exception is, with the exception itself where it can be and is to be stored."""
    try:
        stored = values.put("exception", error) if values is not None else None
    except MlpError:
        stored = None
    return Failure("exception", one_line(error), type=type_name(error), traceback=text, exception=stored)


def one_line(error: BaseException) -> str:
    """Return an exception's type and the first line of its message; for the platform's own the message and hint."""
    if isinstance(error, MlpError):
        return f"{error.message}; {error.hint}" if error.hint else error.message
    try:
        text = str(error).strip()
    except Exception:  # noqa: BLE001 # a user's exception can do anything when it is shown
        text = "its message cannot be shown"
    first = text.partition("\n")[0]
    if isinstance(error, TransitionError):
        return first
    return f"{type_name(error)}: {first}" if first else type_name(error)


def _cut_to_callers(shown: traceback.TracebackException) -> None:
    """Leave of a traceback what led into the platform: the error's message tells what happened there."""
    shown.__cause__ = shown.__context__ = None
    callers = itertools.dropwhile(_is_ours, shown.stack)
    shown.stack[:] = itertools.takewhile(lambda frame: not _is_ours(frame), callers)


def _is_ours(frame: traceback.FrameSummary) -> bool:
    """Tell whether a frame is the platform's, or the import system's."""
    return frame.filename.startswith(_OURS)


def _cut(shown: traceback.TracebackException, *, is_ours: bool) -> None:
    """Take the platform's frames, and those of the import system, out of a traceback and all that led to it."""
    waiting, seen = [shown], set()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        kept = [frame for frame in part.stack if not _is_ours(frame)]
        # Where nothing is left it is our own mistake, and whoever mends it needs the frames.
        if kept or is_ours:
            part.stack[:] = kept
        waiting += [other for other in (part.__cause__, part.__context__, *(part.exceptions or ())) if other]
