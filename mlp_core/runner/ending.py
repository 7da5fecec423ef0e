"""How a run ends, and which of its tasks failed."""

from __future__ import annotations

from typing import Literal

import attrs

from mlp_hookspecs import Failure, TaskKey


@attrs.frozen(eq=False, repr=False)
class TaskFailure:
    """A task that failed for good.

    Attributes
    ----------
    key : TaskKey
        The task.
    attempt : int
        Its last attempt.
    failure : Failure
        Why.
    log_tail : str
        The end of what it printed.
    """

    key: TaskKey
    attempt: int
    failure: Failure
    log_tail: str = ""


@attrs.frozen(eq=False, repr=False)
class Ending:
    """How a run ended.

    Attributes
    ----------
    status : {"succeeded", "failed", "cancelled"}
        How.
    message : str
        One line on the reason of a failure.
    failures : tuple of TaskFailure
        Every task that failed for good.
    """

    status: Literal["succeeded", "failed", "cancelled"]
    message: str = ""
    failures: tuple[TaskFailure, ...] = ()
