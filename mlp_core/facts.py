"""What a step can ask about the task that it runs in: `current`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_KNOWN: Final = frozenset(
    {
        "attempt",
        "branch_name",
        "flow_name",
        "foreach_stack",
        "graph",
        "is_production",
        "namespace",
        "origin_run_id",
        "parallel",
        "pathspec",
        "project_flow_name",
        "project_name",
        "retry_count",
        "run_id",
        "step_name",
        "tags",
        "task_id",
        "tempdir",
        "trigger",
        "username",
    }
)


class Current:
    """Facts about the running task, the same in every thread of its process.

    Attributes
    ----------
    flow_name, run_id, step_name, task_id : str
        The task's place.
    pathspec : str
        All four, joined by slashes.
    retry_count, attempt : int
        The attempt, 0-based.
    origin_run_id : str or None
        The run that this one resumes.
    namespace, username : str
        In whose name it runs.
    tags : frozenset of str
        The run's tags.
    foreach_stack : list of (int, int, object)
        Index, count and item of each open foreach, outermost first.
    graph : FlowGraph
        The flow's graph.
    project_name, branch_name, project_flow_name : str or None
        The project, where the flow declares one.
    is_production : bool
        Whether the run belongs to the project's production branch.
    trigger : mapping or None
        The event that started the run.
    tempdir : str
        A folder that is removed with the task.
    parallel : object or None
        The gang, for its members.
    is_running_flow : bool
        Whether there is a task. Outside of one all the others are None.

    Plugins add further attributes; `get` reads one that may be missing.
    """

    def __init__(self) -> None:
        """Begin outside of any task."""
        self._facts: dict[str, Any] | None = None

    @property
    def is_running_flow(self) -> bool:
        """Whether a task is running in this process."""
        return self._facts is not None

    def __getattr__(self, name: str) -> Any:
        """Return a fact; AttributeError for one that neither the core nor a plugin provides."""
        facts = self.__dict__.get("_facts")
        if facts is not None and name in facts:
            value = facts[name]
            return value() if callable(value) and name in ("foreach_stack", "tempdir") else value
        if name in _KNOWN:
            return None
        raise AttributeError(f"current has no {name!r}; a plugin that provides it may be missing")

    def __contains__(self, name: str) -> bool:
        """Tell whether there is such a fact."""
        return self._facts is not None and name in self._facts

    def __reduce__(self) -> str:
        """Pickle as the one of the process that loads it, since a notebook's flow travels with all that it names."""
        return "current"

    def get(self, name: str, default: Any = None) -> Any:
        """Return a fact, or the default where there is none."""
        return getattr(self, name) if name in self else default

    @contextmanager
    def task(self, facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Provide facts for the time of a task; yields the mapping, to which plugins' facts can be added."""
        before = self._facts
        self._facts = dict(facts)
        try:
            yield self._facts
        finally:
            self._facts = before


current: Final = Current()
"""The facts of this process."""
