"""What happened in a run, told after the fact: frozen classes named in the past tense.

Every event is derived from a record that is committed to a run's journal. It is delivered at least once, in the
order of `sequence`; `id` tells a repeated delivery from a new event.
"""

from collections.abc import Mapping

import attrs

from mlp_hookspecs.types.artifact import ArtifactRef
from mlp_hookspecs.types.base import Json, frozen_map
from mlp_hookspecs.types.launch import Failure, TaskKey


@attrs.frozen(kw_only=True)
class Event:
    """The base of all events.

    Attributes
    ----------
    sequence : int
        Number within the run, rising; several events of one record share it.
    flow : str
        The flow's name.
    run_id : str
        The run.
    time : float
        Seconds since the epoch, by the driver's clock.
    """

    sequence: int
    flow: str
    run_id: str
    time: float

    @property
    def id(self) -> str:
        """Identity of the event: equal for repeated deliveries of one event, different for any two events."""
        return f"{self.flow}/{self.run_id}/{self.sequence}/{type(self).__name__}"


@attrs.frozen(kw_only=True)
class RunStarted(Event):
    """A run began.

    Attributes
    ----------
    username : str
        Who started it.
    tags : tuple of str
        Its tags.
    parameters : mapping of str to JSON
        The parameters as text.
    origin_run_id : str or None
        The run that it resumes.
    """

    username: str = ""
    tags: tuple[str, ...] = ()
    parameters: Mapping[str, Json] = attrs.field(factory=dict, converter=frozen_map)
    origin_run_id: str | None = None


@attrs.frozen(kw_only=True)
class EnvironmentResolved(Event):
    """A requirement became a lock.

    Attributes
    ----------
    backend : str
        The environment backend.
    requirement_digest : str
        Identity of the requirement.
    lock_digest : str
        Identity of the lock.
    """

    backend: str
    requirement_digest: str
    lock_digest: str


@attrs.frozen(kw_only=True)
class TaskEvent(Event):
    """The base of the events of one attempt.

    Attributes
    ----------
    key : TaskKey
        The task.
    attempt : int
        0-based.
    """

    key: TaskKey
    attempt: int

    @property
    def id(self) -> str:
        """Identity of the event."""
        return f"{self.flow}/{self.run_id}/{self.sequence}/{type(self).__name__}/{self.key.path}/{self.attempt}"


@attrs.frozen(kw_only=True)
class TaskStarted(TaskEvent):
    """An attempt was handed to a launcher.

    Attributes
    ----------
    launcher : str
        The launcher.
    """

    launcher: str


@attrs.frozen(kw_only=True)
class ArtifactPersisted(TaskEvent):
    """An artifact became durable and visible.

    Attributes
    ----------
    name : str
        The artifact's name.
    ref : ArtifactRef
        The reference, without inline content.
    """

    name: str
    ref: ArtifactRef

    @property
    def id(self) -> str:
        """Identity of the event."""
        return f"{self.flow}/{self.run_id}/{self.sequence}/ArtifactPersisted/{self.key.path}/{self.attempt}/{self.name}"


@attrs.frozen(kw_only=True)
class TaskFinished(TaskEvent):
    """An attempt ended.

    Attributes
    ----------
    status : str
        ``succeeded``, ``caught`` or ``failed``.
    failure : Failure or None
        Why it failed, or what was caught.
    will_retry : bool
        Whether another attempt follows.
    seconds : float
        How long the user's code ran.
    peak_memory_bytes : int
        The largest resident size; 0 where unknown.
    """

    status: str
    failure: Failure | None = None
    will_retry: bool = False
    seconds: float = 0
    peak_memory_bytes: int = 0


@attrs.frozen(kw_only=True)
class TaskReused(TaskEvent):
    """A task's result was taken from an earlier run.

    Attributes
    ----------
    origin : str
        Pathspec of the task that did the work.
    """

    origin: str


@attrs.frozen(kw_only=True)
class RunFinished(Event):
    """A run ended.

    Attributes
    ----------
    status : str
        ``succeeded``, ``failed`` or ``cancelled``.
    message : str
        One line on the reason of a failure.
    """

    status: str
    message: str = ""


@attrs.frozen(kw_only=True)
class Deployed(Event):
    """A version of a flow was accepted by a target; `run_id` is empty.

    Attributes
    ----------
    target : str
        The target.
    name : str
        The deployment's name.
    version : int
        The version.
    """

    target: str
    name: str
    version: int

    @property
    def id(self) -> str:
        """Identity of the event: a version may become the active one more than once."""
        return f"{self.flow}/{self.target}/{self.name}/{self.version}/{self.time}"
