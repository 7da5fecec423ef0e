"""What steps, tasks and artifacts were left behind, as objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from mlp_core.client.base import InRun, MissingKey, found, local_time
from mlp_core.client.contents import Artifacts, Metadata, TaskData, TaskException, log_lines, metadata_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from mlp_core.client.handle import RunHandle
    from mlp_core.client.reader import Client
    from mlp_core.client.runs import Run
    from mlp_core.store import AttemptState, TaskState
    from mlp_hookspecs import ArtifactRef, TaskKey


class Step(InRun["Task"]):
    """A step of a run, with its tasks."""

    _depth: ClassVar[int] = 3
    _shape: ClassVar[str] = "Flow/20260131-094500-123456/step"

    @property
    def _name(self) -> str:
        return str(self._place.step)

    def _check(self) -> None:
        self._run.require_step(self._name)

    @property
    def _keys(self) -> list[TaskKey]:
        """Its tasks, newest first."""
        return list(self._run.tasks(self._name).values())[::-1]

    @property
    def parent(self) -> Run:
        """Its run."""
        run: Run = self._client.Run(self._run.pathspec, _run=self._run, _known=True)
        return run

    @property
    def created_at(self) -> datetime | None:
        """When its first task began."""
        return min((task.created_at for task in self if task.created_at), default=None)

    @property
    def finished_at(self) -> datetime | None:
        """When its last task was finished; None while one is not."""
        times = [task.finished_at for task in self]
        return max((time for time in times if time), default=None) if all(times) else None

    @property
    def task(self) -> Task:
        """One of its tasks: the only one, or the newest."""
        return self._task(self._keys[0])

    @property
    def environment_info(self) -> dict[str, Any]:
        """The environment of its tasks."""
        return self.task.environment_info

    def parent_steps(self) -> Iterator[Step]:
        """Iterate over the steps before it that have begun."""
        begun = {key.step for key in self._state.tasks}
        yield from (self._step(name) for name in self._state.graph[self._name].parents if name in begun)

    def child_steps(self) -> Iterator[Step]:
        """Iterate over the steps after it that have begun."""
        begun = {key.step for key in self._state.tasks}
        yield from (self._step(name) for name in self._state.graph[self._name].next if name in begun)

    def tasks(self, *tags: str) -> Iterator[Task]:
        """Iterate over its tasks, newest first; tasks have their run's tags."""
        if self.tags.issuperset(tags):
            yield from map(self._task, self._keys)

    def __iter__(self) -> Iterator[Task]:
        return self.tasks()

    def __getitem__(self, id: str) -> Task:  # noqa: A002 # Metaflow's word
        """Return a task; KeyError where there is none."""
        return found(lambda: Task(f"{self.pathspec}/{id}", client=self._client, _run=self._run))


class Task(InRun["DataArtifact"]):
    """A task of a step: its artifacts, its logs, how it ended.

    Parameters
    ----------
    pathspec : str
        The place.
    attempt : int, optional
        Which attempt is looked at, 0-based; by default the last.
    client : Client, optional
        The client; by default that of the working folder.

    Raises
    ------
    NotFound
        Where there is no such task or attempt, or its run is not in the namespace in force.
    """

    _depth: ClassVar[int] = 4
    _shape: ClassVar[str] = "Flow/20260131-094500-123456/step/0"

    def __init__(
        self,
        pathspec: str,
        attempt: int | None = None,
        *,
        client: Client | None = None,
        _known: bool = False,
        _run: RunHandle | None = None,
    ) -> None:
        """Find the task."""
        self._number = attempt
        super().__init__(pathspec, client=client, _known=_known, _run=_run)

    def _check(self) -> None:
        self._run.require_task(str(self._place.step), self.id, self._number)

    @property
    def _now(self) -> TaskState:
        """The task as it stands."""
        return self._run.task(str(self._place.step), self.id)

    @property
    def _attempt(self) -> AttemptState:
        """The attempt that is looked at."""
        return self._run.attempt(self._now, self._number)

    @property
    def parent(self) -> Step:
        """Its step."""
        return self._step(str(self._place.step))

    @property
    def created_at(self) -> datetime | None:
        """When its first attempt was started."""
        first = self._now.attempts[0]
        begun = first.started_at or (first.outcome.started_at if first.outcome else None) or first.finished_at
        return local_time(begun) if begun else None

    @property
    def finished_at(self) -> datetime | None:
        """When the attempt ended; None while it runs."""
        at = self._attempt.finished_at
        return local_time(at) if at else None

    @property
    def finished(self) -> bool:
        """Whether it has ended for good."""
        return self._now.outcome is not None

    @property
    def successful(self) -> bool:
        """Whether the attempt succeeded, or its failure was caught."""
        outcome = self._attempt.outcome
        return outcome is not None and outcome.status != "failed"

    @property
    def exception(self) -> BaseException | None:
        """What the attempt failed with or what was caught; None where it did neither.

        The user's exception itself where it can be loaded here; otherwise a `TaskException` that tells about it.
        """
        outcome = self._attempt.outcome
        failure = outcome.failure if outcome is not None else None
        if failure is None:
            return None
        if failure.exception is not None:
            try:
                value = self._run.load(failure.exception, "exception")
            except Exception:  # noqa: BLE001 # whatever keeps it from being loaded, its text is there
                return TaskException(failure)
            if isinstance(value, BaseException):
                return value
        return TaskException(failure)

    @property
    def current_attempt(self) -> int:
        """The attempt that is looked at, 0-based."""
        return self._attempt.number

    @property
    def index(self) -> int | None:
        """The position in the innermost foreach; None outside of any."""
        frames = self._now.frames
        return frames[-1].index if frames else None

    @property
    def origin_pathspec(self) -> str | None:
        """The task of an earlier run that did the work, where this one only took it over."""
        return self._now.origin

    @property
    def parent_task_pathspecs(self) -> Iterator[str]:
        """The places of the tasks that it read from."""
        return (task.pathspec for task in self.parent_tasks)

    @property
    def parent_tasks(self) -> Iterator[Task]:
        """The tasks that it read from, in order."""
        return map(self._task, self._now.parents)

    @property
    def child_task_pathspecs(self) -> Iterator[str]:
        """The places of the tasks that read from it."""
        return (task.pathspec for task in self.child_tasks)

    @property
    def child_tasks(self) -> Iterator[Task]:
        """The tasks that read from it."""
        return map(self._task, self._run.children(self._now.key))

    @property
    def _refs(self) -> Mapping[str, ArtifactRef]:
        """What is visible in the attempt."""
        return self._run.artifacts(self._now, self._number)

    @property
    def data(self) -> TaskData:
        """The values of its artifacts, loaded when they are read: ``task.data.x``."""
        return TaskData(self._refs, self._run)

    @property
    def artifacts(self) -> Artifacts:
        """Its artifacts: ``task.artifacts.x.data``, and iteration over them all."""
        return Artifacts({name: self._artifact(name) for name in self._refs})

    @property
    def stdout(self) -> str:
        """What the attempt printed."""
        return self._text("stdout")

    @property
    def stderr(self) -> str:
        """What the attempt printed on standard error."""
        return self._text("stderr")

    def _text(self, stream: str) -> str:
        return "".join(f"{line}\n" for _, line in self.loglines(stream))  # type: ignore[str-bytes-safe] # text is asked for

    def loglines(self, stream: str, *, as_unicode: bool = True) -> Iterator[tuple[datetime, str | bytes]]:
        """Iterate over the lines that the attempt printed.

        Parameters
        ----------
        stream : {"stdout", "stderr"}
            Which of them.
        as_unicode : bool
            Whether lines are text rather than bytes.

        Yields
        ------
        tuple of datetime and str or bytes
            When a line arrived, in the local time zone, and the line without its end.
        """
        now = self._now
        if now.origin:
            # Of a task that was taken over, the earlier run has the log.
            origin = Task(now.origin, client=self._client, _known=True)
            yield from origin.loglines(stream, as_unicode=as_unicode)
            return
        chunks = self._run.log_chunks(f"{now.key.path}/{self._attempt.number}")
        for time, line in log_lines(chunks, stream):
            yield local_time(time), line.decode(errors="replace") if as_unicode else line

    @property
    def metadata(self) -> list[Metadata]:
        """What else is known of the attempt."""
        return metadata_of(self._state, self._now, self._attempt, self)

    @property
    def metadata_dict(self) -> dict[str, str]:
        """What else is known of the attempt, by name."""
        return {entry.name: entry.value for entry in self.metadata}

    @property
    def runtime_name(self) -> str:
        """The launcher that ran it; empty where an orchestrator did, or where it was taken over."""
        return self._attempt.launcher

    @property
    def environment_info(self) -> dict[str, Any]:
        """The environment it ran in: backend, Python version, digest and lock; without one the driver's interpreter."""
        locked = self._state.environment_of(self._now.key)
        if locked is not None:
            lock = locked.lock
            return {"backend": lock.backend, "python": lock.python, "digest": lock.digest, "lock": lock.content}
        return {"backend": "current", "python": self._state.began.metadata.get("python", "")}

    def __iter__(self) -> Iterator[DataArtifact]:
        return iter(self.artifacts)

    def __getitem__(self, id: str) -> DataArtifact:  # noqa: A002 # Metaflow's word
        """Return an artifact; KeyError where there is none."""
        found(lambda: self._run.require_artifact(self._now, id, self._number))
        return self._artifact(id)

    def _artifact(self, name: str) -> DataArtifact:
        place = f"{self.pathspec}/{name}"
        return DataArtifact(place, attempt=self._number, client=self._client, _run=self._run, _known=True)


class DataArtifact(InRun[Any]):
    """An artifact of a task.

    Parameters
    ----------
    pathspec : str
        The place.
    attempt : int, optional
        Which attempt is looked at, 0-based; by default the last.
    client : Client, optional
        The client; by default that of the working folder.

    Raises
    ------
    NotFound
        Where there is no such artifact, or its run is not in the namespace in force.
    """

    _depth: ClassVar[int] = 5
    _shape: ClassVar[str] = "Flow/20260131-094500-123456/step/0/name"

    def __init__(
        self,
        pathspec: str,
        attempt: int | None = None,
        *,
        client: Client | None = None,
        _known: bool = False,
        _run: RunHandle | None = None,
    ) -> None:
        """Find the artifact."""
        self._number = attempt
        super().__init__(pathspec, client=client, _known=_known, _run=_run)

    def _check(self) -> None:
        step, task = str(self._place.step), str(self._place.task_id)
        self._run.require_task(step, task, self._number)
        self._run.require_artifact(self._run.task(step, task), self.id, self._number)

    @property
    def parent(self) -> Task:
        """Its task."""
        place = "/".join(self.path_components[:4])
        return Task(place, self._number, client=self._client, _run=self._run, _known=True)

    @property
    def ref(self) -> ArtifactRef:
        """The stored value: format, digest, size."""
        now = self._run.task(str(self._place.step), str(self._place.task_id))
        return self._run.artifacts(now, self._number)[self.id]

    @property
    def data(self) -> Any:
        """The value."""
        return self._run.load(self.ref, self.id)

    @property
    def size(self) -> int:
        """Bytes of the stored value."""
        return self.ref.size

    @property
    def sha(self) -> str:
        """Hash of the stored value, in hexadecimal digits."""
        return self.ref.digest.partition("-")[2]

    @property
    def format(self) -> str:
        """The format that it is stored in."""
        return self.ref.format

    @property
    def type(self) -> str:
        """Dotted name of the value's type."""
        return self.ref.type

    @property
    def created_at(self) -> datetime | None:
        """When its task began."""
        return self.parent.created_at

    @property
    def finished_at(self) -> datetime | None:
        """When its task was finished."""
        return self.parent.finished_at

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __getitem__(self, id: str) -> Any:  # noqa: A002 # Metaflow's word
        """Refuse: an artifact has no parts."""
        raise MissingKey(f"{self.pathspec} is an artifact and has no parts", hint="its value is .data")
