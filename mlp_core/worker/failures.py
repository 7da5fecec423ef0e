"""How a user's exception is told: their frames, without ours."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from mlp_core.artifacts import type_name
from mlp_core.errors import ArtifactError
from mlp_hookspecs import Failure

if TYPE_CHECKING:
    from types import TracebackType

    from mlp_core.values import Values

_PLATFORM = str(Path(__file__).parents[1]) + "/"


def user_traceback(error: BaseException) -> str:
    """Return an exception's traceback as text, without the platform's own frames at its beginning.

    Parameters
    ----------
    error : BaseException
        The exception.

    Returns
    -------
    str
        What Python would print, ending with a line's end.
    """
    return "".join(traceback.format_exception(type(error), error, _user_frames(error.__traceback__)))


def describe_exception(error: BaseException, text: str, values: Values) -> Failure:
    """Return the failure that a user's exception is, with the exception itself where it can be stored."""
    message = "".join(traceback.format_exception_only(type(error), error)).strip()
    try:
        stored = values.put("exception", error.with_traceback(None))
    except ArtifactError:
        stored = None
    return Failure("exception", message, type=type_name(error), traceback=text, exception=stored)


def _user_frames(trace: TracebackType | None) -> TracebackType | None:
    """Return the traceback from the first frame that is not the platform's; all of it where there is none."""
    position = trace
    while position is not None and position.tb_frame.f_code.co_filename.startswith(_PLATFORM):
        position = position.tb_next
    return position or trace
