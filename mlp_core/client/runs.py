"""Which flows and runs there are, as objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from mlp_core.client.base import ClientObject, InRun, found, local_time
from mlp_core.client.reader import Client, default_client
from mlp_core.client.tasks import Step
from mlp_core.errors import NotFound
from mlp_core.names import Pathspec, identifier
from mlp_core.store.index import RunQuery
from mlp_hookspecs import TaskKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime

    from mlp_core.client.contents import TaskData
    from mlp_core.client.tasks import Task
    from mlp_core.store.state import RunStatus


class Metaflow:
    """All flows of the store that have runs in the namespace in force.

    Parameters
    ----------
    client : Client, optional
        The client; by default that of the working folder.
    """

    def __init__(self, *, client: Client | None = None) -> None:
        """Make the object."""
        self._client = client or default_client()

    @property
    def flows(self) -> list[Flow]:
        """The flows, by name."""
        return list(self)

    def __iter__(self) -> Iterator[Flow]:
        for name in self._client.store.flows():
            if next(self._client.runs(name), None) is not None:
                yield Flow(name, client=self._client)

    def __getitem__(self, id: str) -> Flow:  # noqa: A002 # Metaflow's word
        """Return a flow; KeyError where it has no runs in the namespace."""
        return found(lambda: Flow(id, client=self._client))

    def __contains__(self, id: object) -> bool:  # noqa: A002 # as above
        """Tell whether a flow has runs in the namespace."""
        return any(flow.id == id for flow in self)

    def __repr__(self) -> str:
        """Show it as the call that makes it."""
        return "Metaflow()"


class Flow(ClientObject["Run"]):
    """A flow with its runs in the namespace in force.

    Parameters
    ----------
    pathspec : str
        The flow's name.
    client : Client, optional
        The client; by default that of the working folder.

    Raises
    ------
    NotFound
        Where it has no runs in the namespace.
    """

    def __init__(self, pathspec: str, *, client: Client | None = None) -> None:
        """Find the flow."""
        self._client = client or default_client()
        self._place = Pathspec(identifier(pathspec, "flow"))
        if self.latest_run is None:
            raise self._absent()

    @property
    def parent(self) -> None:
        """Nothing contains a flow."""
        return

    @property
    def created_at(self) -> datetime | None:
        """When its first run began."""
        ids = self._client.store.run_ids(self.id)
        return Run(f"{self.id}/{ids[-1]}", client=self._client, _known=True).created_at if ids else None

    @property
    def finished_at(self) -> datetime | None:
        """When its newest run ended."""
        newest = self.latest_run
        return newest.finished_at if newest is not None else None

    @property
    def user_tags(self) -> frozenset[str]:
        """A flow has no tags of its own."""
        return frozenset()

    @property
    def system_tags(self) -> frozenset[str]:
        """A flow has no tags of its own."""
        return frozenset()

    def is_in_namespace(self) -> bool:
        """Tell whether it has a run in the namespace in force."""
        return self.latest_run is not None

    @property
    def latest_run(self) -> Run | None:
        """The newest run in the namespace; None where there is none."""
        return next(self._select(RunQuery(limit=1)), None)

    @property
    def latest_successful_run(self) -> Run | None:
        """The newest run in the namespace that succeeded; None where there is none."""
        return next(self._select(RunQuery(status=("succeeded",), limit=1)), None)

    def runs(
        self,
        *tags: str,
        status: RunStatus | Iterable[RunStatus] = (),
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = None,
    ) -> Iterator[Run]:
        """Iterate over the runs in the namespace that are asked for, newest first; the others are not read.

        Parameters
        ----------
        *tags : str
            With all of these tags.
        status : str or iterable of str
            With one of these: ``running``, ``succeeded``, ``failed``, ``cancelled``, ``lost``.
        since, until : datetime, optional
            Started at or after, and before.
        limit : int, optional
            At most so many.
        """
        statuses = (status,) if isinstance(status, str) else tuple(status)
        # A datetime has whole microseconds, and a run's own may have been rounded up to them.
        begin, end = (moment.timestamp() - 5e-7 if moment is not None else None for moment in (since, until))
        return self._select(RunQuery(status=statuses, since=begin, until=end, limit=limit), tags)

    def __iter__(self) -> Iterator[Run]:
        return self.runs()

    def __getitem__(self, id: str) -> Run:  # noqa: A002 # Metaflow's word
        """Return a run; KeyError where there is none."""
        return found(lambda: Run(f"{self.id}/{id}", client=self._client))

    def _absent(self) -> NotFound:
        """Return the error of a flow without runs in the namespace."""
        if not self._client.store.run_ids(self.id):
            return self._client.no_flow(self.id)
        if self._client.namespace is None:
            return NotFound(
                f"flow {self.id} has no run that can be read", hint=f"mlp list {self.id} shows which are there"
            )
        return NotFound(
            f"flow {self.id} has no run in the namespace {self._client.namespace!r}",
            hint="namespace(None) lets all runs be seen",
        )

    def _select(self, query: RunQuery, tags: Iterable[str] = ()) -> Iterator[Run]:
        """Iterate over runs."""
        for summary in self._client.runs(self.id, tags, query=query):
            if summary.status != "damaged":
                yield Run(f"{self.id}/{summary.run_id}", client=self._client, _known=True)


class Run(InRun[Step]):
    """A run."""

    _depth: ClassVar[int] = 2
    _shape: ClassVar[str] = "Flow/20260131-094500-123456"

    def _check(self) -> None:
        self._run.refresh()

    @property
    def parent(self) -> Flow:
        """Its flow."""
        return Flow(self._place.flow, client=self._client)

    @property
    def status(self) -> str:
        """``running``, ``succeeded``, ``failed``, ``cancelled``, or ``lost`` where its driver died."""
        return self._state.status

    @property
    def finished(self) -> bool:
        """Whether nothing of it goes on any more."""
        return self.status != "running"

    @property
    def successful(self) -> bool:
        """Whether it succeeded."""
        return self.status == "succeeded"

    @property
    def created_at(self) -> datetime:
        """When it began, in the local time zone."""
        return local_time(self._state.began.time)

    @property
    def finished_at(self) -> datetime | None:
        """When it ended, in the local time zone; None while it goes on, and for one whose driver died."""
        ended = self._state.ended
        return local_time(ended.time) if ended is not None else None

    @property
    def end_task(self) -> Task | None:
        """The task of the last step; None where the run did not get that far."""
        state = self._state
        task = state.tasks.get(TaskKey(state.graph.end))
        return self._task(task.key) if task is not None and task.outcome is not None else None

    @property
    def data(self) -> TaskData | None:
        """What the last step left: ``run.data.x``; None where the run did not get that far."""
        end = self.end_task
        return end.data if end is not None else None

    @property
    def origin_pathspec(self) -> str | None:
        """The run that this one resumes."""
        origin = self._state.context.origin_run_id
        return f"{self._place.flow}/{origin}" if origin else None

    @property
    def trigger(self) -> Mapping[str, Any] | None:
        """The event that started it, where one did."""
        return self._state.context.trigger or None

    def steps(self, *tags: str) -> Iterator[Step]:
        """Iterate over the steps that have begun, newest first; a run's steps have the run's tags."""
        if self.tags.issuperset(tags):
            begun = dict.fromkeys(key.step for key in self._state.tasks)
            yield from (self._step(name) for name in reversed(begun))

    def __iter__(self) -> Iterator[Step]:
        return self.steps()

    def __getitem__(self, id: str) -> Step:  # noqa: A002 # Metaflow's word
        """Return a step; KeyError where there is none that has begun."""
        return found(lambda: Step(f"{self.pathspec}/{id}", client=self._client, _run=self._run))

    def add_tag(self, tag: str | Iterable[str]) -> None:
        """Add a tag or several; raises ValueError for one of the system's."""
        self._run.change_tags(added=_several(tag))

    def add_tags(self, tags: Iterable[str]) -> None:
        """Add tags."""
        self._run.change_tags(added=_several(tags))

    def remove_tag(self, tag: str | Iterable[str]) -> None:
        """Remove a tag or several; one that it does not have is no error."""
        self._run.change_tags(removed=_several(tag))

    def remove_tags(self, tags: Iterable[str]) -> None:
        """Remove tags."""
        self._run.change_tags(removed=_several(tags))

    def replace_tag(self, tag_to_remove: str | Iterable[str], tag_to_add: str | Iterable[str]) -> None:
        """Remove a tag or several and add others, at once."""
        self._run.change_tags(removed=_several(tag_to_remove), added=_several(tag_to_add))

    def replace_tags(self, tags_to_remove: Iterable[str], tags_to_add: Iterable[str]) -> None:
        """Remove tags and add others, at once."""
        self.replace_tag(tags_to_remove, tags_to_add)


def _several(tags: str | Iterable[str]) -> tuple[str, ...]:
    """Return tags, of which one may stand alone."""
    return (tags,) if isinstance(tags, str) else tuple(tags)
