"""What must be in a store, as plain dictionaries; and the checks of what is there against it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from mlp_core.errors import MlpError
from mlp_core.store import RunWriter
from mlp_hookspecs import StepOutcome

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlp_core.store import RunState, Store

FLOW = "Machine"
"""The flow of all runs."""


class WrongError(Exception):
    """The store holds something else than it must."""


@attrs.define
class ModelRun:
    """A run, as far as it was acknowledged.

    Attributes
    ----------
    run_id : str
        Its id.
    writer : RunWriter or None
        Its driver, where that lives.
    tasks : dict of str to bytes
        The content of the artifact of each task that was acknowledged.
    maybe_tasks : dict of str to bytes
        That of tasks whose writer died before they were acknowledged.
    status : str or None
        How it ended, where that was acknowledged.
    maybe_statuses : set of str
        How it may have ended besides.
    tags : set of str
        Tags that were acknowledged.
    maybe_tags : set of str
        Those that were not.
    started : set of str
        Tasks of which an attempt was recorded as started.
    prepared : list of (bytes, StepOutcome)
        What was written, and not recorded yet: its content, and what the record is to tell.
    """

    run_id: str
    writer: RunWriter | None = None
    tasks: dict[str, bytes] = attrs.field(factory=dict)
    maybe_tasks: dict[str, bytes] = attrs.field(factory=dict)
    status: str | None = None
    maybe_statuses: set[str] = attrs.field(factory=set)
    tags: set[str] = attrs.field(factory=set)
    maybe_tags: set[str] = attrs.field(factory=set)
    started: set[str] = attrs.field(factory=set)
    prepared: list[tuple[bytes, StepOutcome]] = attrs.field(factory=list)

    @property
    def number(self) -> int:
        """The number of the next task."""
        return len(self.tasks) + len(self.maybe_tasks)

    def statuses(self) -> set[str]:
        """Return what it may read as."""
        if self.status is not None:
            return {self.status}
        return {"running" if self.writer is not None else "lost", *self.maybe_statuses}

    def check(self, store: Store, *, keeps: bool) -> None:
        """Compare the run in a store with this.

        Parameters
        ----------
        store : Store
            The store.
        keeps : bool
            Whether what was seen once stays: it does unless the power may be cut.
        """
        state = store.run(FLOW, self.run_id)
        if state.status not in self.statuses():
            raise WrongError(f"run {self.run_id} reads {state.status}, not {sorted(self.statuses())}")
        found = contents(store, state)
        self.check_tasks(found)
        tags = set(state.tags)
        if not self.tags <= tags <= self.tags | self.maybe_tags:
            raise WrongError(f"run {self.run_id} has the tags {sorted(tags)}, not {sorted(self.tags)}")
        if keeps:
            self._learn(state.status, found, tags)

    def check_tasks(self, found: Mapping[str, bytes]) -> None:
        """Compare the tasks of the run as they were read somewhere with those that it must have."""
        for path, content in self.tasks.items():
            if found.get(path) != content:
                raise WrongError(f"task {path} of run {self.run_id}, which was acknowledged, reads {found.get(path)!r}")
        for path, content in found.items():
            if content != self.tasks.get(path, self.maybe_tasks.get(path)):
                raise WrongError(f"task {path} of run {self.run_id} reads {content!r}, which nobody wrote")

    def _learn(self, status: str, found: Mapping[str, bytes], tags: set[str]) -> None:
        """Hold the store to what it has shown."""
        for path in list(self.maybe_tasks):
            if path in found:
                self.tasks[path] = self.maybe_tasks.pop(path)
        self.tags |= tags
        if status in ("succeeded", "failed", "cancelled") or (status == "lost" and "lost" in self.maybe_statuses):
            self.status = status if status != "lost" else self.status


def contents(store: Store, state: RunState) -> dict[str, bytes]:
    """Return the content of the artifact of each task that has ended, by the task's path."""
    blobs = store.blobs()
    found = {}
    for key, task in state.tasks.items():
        if task.outcome is not None:
            found[key.path] = bytes(blobs.source(task.outcome.assigned["x"]).buffer())
    return found


def contents_or_error(store: Store, run_id: str) -> dict[str, bytes] | MlpError:
    """Return what a run reads as, or the error that reading it ends with."""
    try:
        return contents(store, store.run(FLOW, run_id))
    except MlpError as error:
        return error
