"""What a resumed run takes over from the run that it resumes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from mlp_core.store import layout
from mlp_core.store.blobs import Blobs
from mlp_core.store.references import blobs_of, references
from mlp_core.store.state import RunState
from mlp_hookspecs import TaskKey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlp_core.scheduler import ReadyTask
    from mlp_hookspecs import StepOutcome

_AT_ONCE: Final = 16


@attrs.define(eq=False, repr=False)
class Reuse:
    """Decides for each ready task whether its result is there already.

    Attributes
    ----------
    origin : RunState or None
        The run that is resumed; None reuses nothing.
    from_step : str or None
        A step that is to run again, with all that follows from it.
    blobs : Blobs or None
        Where results lie; None to take them for granted.
    """

    origin: RunState | None = None
    from_step: str | None = None
    blobs: Blobs | None = None
    _reused: set[TaskKey] = attrs.field(factory=set)
    _present: dict[str, bool] = attrs.field(factory=dict)

    def find(self, task: ReadyTask) -> tuple[str, StepOutcome] | None:
        """Return where a task's result comes from and what it is; None where the task must run.

        A result is taken over if the task succeeded, all that it has left is still there as it was written, and all
        that it read from was taken over too.
        """
        if self.origin is None or task.key.step == self.from_step:
            return None
        parents = (*task.parents, *((task.split,) if task.split else ()))
        if not all(parent in self._reused for parent in parents):
            return None
        known = self.origin.tasks.get(task.key)
        outcome = known.outcome if known is not None else None
        if known is None or outcome is None or outcome.status == "failed" or not self._is_intact(outcome):
            return None
        self._reused.add(task.key)
        run = self.origin.context
        return known.origin or f"{run.flow}/{run.run_id}/{task.key.path}", outcome

    def _is_intact(self, outcome: StepOutcome) -> bool:
        """Tell whether all that a task has left is there as it was written."""
        blobs = self.blobs
        if blobs is None:
            return True
        if not self._present and blobs.objects.local_path(layout.FORMAT) is None:
            self._ask_for_all(blobs)
        for digest, size in _needed(outcome):
            if digest not in self._present:
                self._present[digest] = blobs.holds(digest, size)
        return all(self._present[digest] for digest, _ in _needed(outcome))

    def _ask_for_all(self, blobs: Blobs) -> None:
        """Ask for all results at once, where each answer takes its time."""
        from concurrent.futures import ThreadPoolExecutor

        outcomes = [task.outcome for task in self.origin.tasks.values()] if self.origin is not None else []
        needed = dict(each for outcome in outcomes if outcome is not None for each in _needed(outcome))
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="mlp-reuse") as pool:
            self._present = dict(zip(needed, pool.map(blobs.holds, needed, needed.values()), strict=True))


def _needed(outcome: StepOutcome) -> Iterator[tuple[str, int]]:
    """Iterate over digest and size of the blobs that an outcome refers to."""
    for _, ref in references(outcome):
        yield from blobs_of(ref)
