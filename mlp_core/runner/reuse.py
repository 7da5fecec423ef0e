"""What a resumed run takes over from the run that it resumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from mlp_core.store.state import RunState
from mlp_hookspecs import TaskKey

if TYPE_CHECKING:
    from mlp_core.scheduler import ReadyTask
    from mlp_hookspecs import StepOutcome


@attrs.define(eq=False, repr=False)
class Reuse:
    """Decides for each ready task whether its result is there already.

    Attributes
    ----------
    origin : RunState or None
        The run that is resumed; None reuses nothing.
    from_step : str or None
        A step that is to run again, with all that follows from it.
    """

    origin: RunState | None = None
    from_step: str | None = None
    _reused: set[TaskKey] = attrs.field(factory=set)

    def find(self, task: ReadyTask) -> tuple[str, StepOutcome] | None:
        """Return where a task's result comes from and what it is; None where the task must run.

        A result is taken over if the task succeeded and all that it read from was taken over too.
        """
        if self.origin is None or task.key.step == self.from_step:
            return None
        parents = (*task.parents, *((task.split,) if task.split else ()))
        if not all(parent in self._reused for parent in parents):
            return None
        known = self.origin.tasks.get(task.key)
        outcome = known.outcome if known is not None else None
        if known is None or outcome is None or outcome.status == "failed":
            return None
        self._reused.add(task.key)
        run = self.origin.context
        return known.origin or f"{run.flow}/{run.run_id}/{task.key.path}", outcome
