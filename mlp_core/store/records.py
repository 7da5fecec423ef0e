"""What a run's journal says: the kinds of records, and how one becomes a line and comes back.

A line is the CRC-32 of its JSON in eight hex digits, a space, the JSON, and a newline::

    9ae0daaf {"n":3,"kind":"AttemptStarted","data":{...}}

`n` counts the records of one journal from 0 without a gap. An unfinished line at the end was never acknowledged.
"""

import json
import zlib
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

import attrs

from mlp_hookspecs import wire
from mlp_hookspecs.types import (
    ArtifactRef,
    CodeRef,
    EnvironmentLock,
    EnvironmentSpec,
    FlowGraph,
    ForeachFrame,
    Json,
    PlannedStep,
    PluginId,
    RunContext,
    StepOutcome,
    TaskKey,
    frozen_map,
)
from mlp_hookspecs.types.base import Value

RunEnd: TypeAlias = Literal["succeeded", "failed", "cancelled", "lost"]


@attrs.frozen(eq=False, repr=False)
class RunBegan(Value):
    """A run was created; always the first record.

    Attributes
    ----------
    run : RunContext
        What all its tasks share.
    time : float
        Seconds since the epoch, by the driver's clock, as in every record.
    host : str
        The driver's host name.
    pid : int
        The driver's process id.
    graph : FlowGraph
        The flow's graph.
    parameters : mapping of str to ArtifactRef
        The values of parameters and class-level constants, by attribute name.
    parameter_texts : mapping of str to str
        The parameters as text, by parameter name.
    code : CodeRef or None
        Where the flow's code is.
    plugins : tuple of PluginId
        The plugins in force.
    settings : mapping of str to JSON
        The settings in force, secrets masked.
    steps : tuple of PlannedStep
        What was planned for each step.
    command : tuple of str
        The command line.
    metadata : mapping of str to str
        What else people may want to know: versions, the platform, the commit.
    has_driver : bool
        Whether one process owns the run and holds its lock. False where an orchestrator runs it step by step: its
        tasks and its end are segments.
    lease_seconds : float
        How long the driver counts as being there after it renewed its lease.
    """

    run: RunContext
    time: float
    host: str
    pid: int
    graph: FlowGraph
    parameters: Mapping[str, ArtifactRef] = attrs.field(factory=dict, converter=frozen_map)
    parameter_texts: Mapping[str, str] = attrs.field(factory=dict, converter=frozen_map)
    code: CodeRef | None = None
    plugins: tuple[PluginId, ...] = ()
    settings: Mapping[str, Json] = attrs.field(factory=dict, converter=frozen_map)
    steps: tuple[PlannedStep, ...] = ()
    command: tuple[str, ...] = ()
    metadata: Mapping[str, str] = attrs.field(factory=dict, converter=frozen_map)
    has_driver: bool = True
    lease_seconds: float = 60


@attrs.frozen(eq=False, repr=False)
class EnvironmentLocked(Value):
    """A requirement became a lock.

    Attributes
    ----------
    spec : EnvironmentSpec
        The requirement.
    lock : EnvironmentLock
        The lock.
    steps : tuple of str
        The steps that run in it.
    time : float
        When.
    task_ids : tuple of str
        The tasks of the step that it was looked up for, where that was done when they started; else empty, for all.
    """

    spec: EnvironmentSpec
    lock: EnvironmentLock
    steps: tuple[str, ...]
    time: float
    task_ids: tuple[str, ...] = ()


@attrs.frozen(eq=False, repr=False)
class AttemptStarted(Value):
    """An attempt was handed to a launcher.

    Attributes
    ----------
    key : TaskKey
        The task.
    attempt : int
        0-based.
    launcher : str
        The launcher.
    time : float
        When.
    """

    key: TaskKey
    attempt: int
    launcher: str
    time: float


@attrs.frozen(eq=False, repr=False)
class AttemptFinished(Value):
    """An attempt ended; whatever follows from it starts only after this record is durable.

    Attributes
    ----------
    key : TaskKey
        The task.
    attempt : int
        0-based.
    outcome : StepOutcome
        How it ended.
    will_retry : bool
        Whether another attempt follows.
    parents : tuple of TaskKey
        The tasks that it read from, in order: one usually, none for the start, all for a join.
    frames : tuple of ForeachFrame
        The open foreach around it, without inline items.
    time : float
        When.
    log_digest : str
        The hash of the segment with the attempt's log, where no driver of ours keeps it; empty where there is none.
    """

    key: TaskKey
    attempt: int
    outcome: StepOutcome
    will_retry: bool = False
    parents: tuple[TaskKey, ...] = ()
    frames: tuple[ForeachFrame, ...] = ()
    time: float = 0
    log_digest: str = ""


@attrs.frozen(eq=False, repr=False)
class TaskReused(Value):
    """A task's result was taken from an earlier run.

    Attributes
    ----------
    key : TaskKey
        The task.
    origin : str
        Pathspec of the task that did the work.
    outcome : StepOutcome
        What it left.
    parents, frames
        As in `AttemptFinished`.
    time : float
        When.
    """

    key: TaskKey
    origin: str
    outcome: StepOutcome
    parents: tuple[TaskKey, ...] = ()
    frames: tuple[ForeachFrame, ...] = ()
    time: float = 0


@attrs.frozen(eq=False, repr=False)
class TagsChanged(Value):
    """Somebody edited the run's tags; always in a segment.

    Attributes
    ----------
    added, removed : tuple of str
        The tags.
    username : str
        Who.
    time : float
        When.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    username: str
    time: float


@attrs.frozen(eq=False, repr=False)
class ObserverFailed(Value):
    """An observer raised when it was told of an event.

    Attributes
    ----------
    plugin : PluginId
        Whose.
    event : str
        The event's identity.
    message : str
        One line on what went wrong.
    time : float
        When.
    """

    plugin: PluginId
    event: str
    message: str
    time: float


@attrs.frozen(eq=False, repr=False)
class Note(Value):
    """A remark for people: a warning of the driver, a decision it took.

    Attributes
    ----------
    kind : str
        What it is about; readers select by it.
    text : str
        The remark.
    time : float
        When.
    """

    kind: str
    text: str
    time: float


@attrs.frozen(eq=False, repr=False)
class RunEnded(Value):
    """The run ended; always the last record.

    Attributes
    ----------
    status : {"succeeded", "failed", "cancelled", "lost"}
        How; ``lost`` where another process took the run over after its driver had gone.
    message : str
        One line on the reason of a failure.
    time : float
        When.
    tasks : int
        How many tasks have a final outcome.
    """

    status: RunEnd
    message: str = ""
    time: float = 0
    tasks: int = 0


@attrs.frozen(eq=False, repr=False)
class RunSealed(Value):
    """What a run that has ended amounts to; in an object of its own, never in the journal.

    It saves a reader of many runs from reading each journal, and shows that nothing is missing at the journal's end.

    Attributes
    ----------
    run : RunContext
        The run.
    began_at : float
        Seconds since the epoch when it began.
    ended : RunEnded
        How it ended.
    has_driver : bool
        As in `RunBegan`.
    size : int
        The journal's length in bytes.
    digest : str
        The hash of the journal.
    logs_size : int
        How many bytes the driver's log had.
    logs_digest : str
        The hash of those; empty where it was not taken.
    """

    run: RunContext
    began_at: float
    ended: RunEnded
    has_driver: bool
    size: int
    digest: str
    logs_size: int = 0
    logs_digest: str = ""

    @property
    def time(self) -> float:
        """When the run ended."""
        return self.ended.time


Record: TypeAlias = (
    RunBegan
    | EnvironmentLocked
    | AttemptStarted
    | AttemptFinished
    | TaskReused
    | TagsChanged
    | ObserverFailed
    | Note
    | RunEnded
    | RunSealed
)

KINDS: Final[Mapping[str, type[Record]]] = {
    kind.__name__: kind
    for kind in (
        RunBegan,
        EnvironmentLocked,
        AttemptStarted,
        AttemptFinished,
        TaskReused,
        TagsChanged,
        ObserverFailed,
        Note,
        RunEnded,
        RunSealed,
    )
}
"""The kinds of records by name."""


def encode_line(record: Record, number: int, place: str = "") -> bytes:
    """Return a record as a line of a journal, with its newline.

    Parameters
    ----------
    record : Record
        The record.
    number : int
        Its number.
    place : str
        The key of the object that holds this record alone, so that it does not pass for another such object.
    """
    at = b'"at":%s,' % json.dumps(place).encode() if place else b""
    text = b'{"n":%d,%s"kind":"%s","data":%s}' % (number, at, type(record).__name__.encode(), wire.dumps(record))
    return b"%08x %s\n" % (zlib.crc32(text), text)


def is_at(line: bytes, place: str) -> bool:
    """Tell whether a line may stand in the object of a key: it says so, or does not say where it stands."""
    says = b'{"n":0,"at":'
    return not line.startswith(says, 9) or line.startswith(says + json.dumps(place).encode() + b",", 9)


def decode_line(line: bytes) -> tuple[int, Record | None] | None:
    """Return number and record of a line without its newline.

    Parameters
    ----------
    line : bytes
        The line.

    Returns
    -------
    tuple of int and record, or None
        None where the line is not what was written. The record is None where its kind is a newer version's.
    """
    text = line[9:]
    if line[:9] != b"%08x " % zlib.crc32(text):
        return None
    try:
        data: dict[str, Any] = json.loads(text)
        number, kind = data["n"], KINDS.get(data["kind"])
        if type(number) is not int:
            return None
        return number, None if kind is None else wire.decode(kind, data["data"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
