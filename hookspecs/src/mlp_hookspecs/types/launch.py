"""What travels between the driver and a worker: the request for one attempt, and its outcome."""

import re
from collections.abc import Mapping
from typing import Literal

import attrs

from mlp_hookspecs.types.artifact import ArtifactRef, Attachment
from mlp_hookspecs.types.base import Json, Value, frozen_map
from mlp_hookspecs.types.environment import EnvironmentLock
from mlp_hookspecs.types.flow import StepNode
from mlp_hookspecs.types.plan import FailureKind, Resources
from mlp_hookspecs.types.plugin import PluginId

_TASK_ID = re.compile(r"(?P<index>\d+(?:-\d+)*)(?:~(?P<loop>\d+))?(?:@(?P<node>\d+))?")


@attrs.frozen(repr=False)
class TaskKey(Value):
    """The deterministic identity of a task within its run.

    Attributes
    ----------
    step : str
        The step's name.
    index : tuple of int
        The position in each open foreach, outermost first.
    loop : int
        How often the step had run before at this position, for steps in a loop.
    node : int or None
        The position in a gang.
    """

    step: str
    index: tuple[int, ...] = ()
    loop: int = 0
    node: int | None = None

    @property
    def task_id(self) -> str:
        """The key without the step: ``0``, ``2-1``, ``0~3`` (fourth time round), ``0@1`` (second of a gang)."""
        text = "-".join(map(str, self.index)) or "0"
        if self.loop:
            text += f"~{self.loop}"
        if self.node is not None:
            text += f"@{self.node}"
        return text

    @property
    def path(self) -> str:
        """Step and task id: ``train/2``."""
        return f"{self.step}/{self.task_id}"

    @classmethod
    def parse(cls, step: str, task_id: str, depth: int) -> "TaskKey":
        """Read a task id back.

        Parameters
        ----------
        step : str
            The step's name.
        task_id : str
            What `task_id` gave.
        depth : int
            How many foreach steps are open around the step.

        Returns
        -------
        TaskKey
            The key.

        Raises
        ------
        ValueError
            Where the text is no task id of that depth.

        Examples
        --------
        >>> TaskKey.parse("train", "2-1~3", 2)
        TaskKey(step='train', index=(2, 1), loop=3, node=None)
        """
        match = _TASK_ID.fullmatch(task_id)
        if match is None:
            message = f"{task_id!r} is no task id; one looks like 0, 2-1, 0~3 or 0@1"
            raise ValueError(message)
        index = tuple(int(part) for part in match["index"].split("-"))
        if depth == 0 and index == (0,):
            index = ()
        if len(index) != depth:
            message = f"task id {task_id!r} has {len(index)} positions, but step {step!r} lies inside {depth} foreach"
            raise ValueError(message)
        node = match["node"]
        return cls(step, index, int(match["loop"] or 0), None if node is None else int(node))


@attrs.frozen(eq=False, repr=False)
class CodeRef(Value):
    """Where the flow's code is.

    Attributes
    ----------
    module : str
        The name under which the flow's file is imported.
    qualname : str
        The flow class within it.
    file : str
        The flow's file relative to `root`; empty for a class that travels by value.
    root : str
        The project's folder on the driver's host.
    package : ArtifactRef or None
        The code package in the store, for hosts that do not have `root`.
    pickled : bytes or None
        The class itself, by cloudpickle, where it has no importable home (a notebook's cell, a function's body).
    """

    module: str
    qualname: str
    file: str = ""
    root: str = ""
    package: ArtifactRef | None = None
    pickled: bytes | None = None


@attrs.frozen(repr=False)
class ForeachFrame(Value):
    """One open foreach around a task.

    Attributes
    ----------
    step : str
        The step that opened it.
    variable : str
        The artifact iterated over.
    index : int
        This task's position, 0-based.
    count : int
        How many there are.
    item : ArtifactRef or None
        The item, where it is small enough to travel; otherwise it is read from `values`.
    values : ArtifactRef or None
        The sequence iterated over, or the chunk of it with this task's item.
    first : int
        The position of the first item of `values`.
    """

    step: str
    variable: str
    index: int
    count: int
    item: ArtifactRef | None = None
    values: ArtifactRef | None = None
    first: int = 0


@attrs.frozen(eq=False, repr=False)
class TaskInput(Value):
    """A finished task that a step reads from.

    Attributes
    ----------
    key : TaskKey
        Which task.
    artifacts : mapping of str to ArtifactRef
        All that is visible in it.
    frames : tuple of ForeachFrame
        The open foreach around it.
    """

    key: TaskKey
    artifacts: Mapping[str, ArtifactRef] = attrs.field(factory=dict, converter=frozen_map)
    frames: tuple[ForeachFrame, ...] = ()


@attrs.frozen(eq=False, repr=False)
class Failure(Value):
    """Why an attempt failed.

    Attributes
    ----------
    kind : {"exception", "timeout", "killed", "exit", "artifact", "plugin", "system", "cancelled"}
        The user's exception; a time limit; a signal; an exit without an outcome; a value that cannot be stored;
        a plugin's fault; the launcher's or host's fault; the end of the run.
    message : str
        One line for people.
    type : str
        Dotted name of the exception's type; empty where there was none.
    traceback : str
        The user's frames as text; empty where there was no exception.
    exception : ArtifactRef or None
        The exception itself, where it could be stored.
    """

    kind: FailureKind
    message: str
    type: str = ""
    traceback: str = ""
    exception: ArtifactRef | None = None


@attrs.frozen(eq=False, repr=False)
class Transition(Value):
    """Where a finished task goes.

    Attributes
    ----------
    steps : tuple of str
        The steps that follow; for a switch the one that was chosen.
    count : int or None
        For a foreach the number of items, for a gang its size; None otherwise.
    values : ArtifactRef or None
        For a foreach the sequence iterated over.
    items : tuple of ArtifactRef
        For a foreach the items themselves, where each is small enough to travel.
    chunks : tuple of ArtifactRef
        For a foreach over a large sequence, the same in chunks, so that no task loads more of it than it needs. Of n
        chunks each has ``count / n`` items, rounded up, but for the last, which has the rest.
    """

    steps: tuple[str, ...] = ()
    count: int | None = None
    values: ArtifactRef | None = None
    items: tuple[ArtifactRef, ...] = ()
    chunks: tuple[ArtifactRef, ...] = ()


@attrs.frozen(eq=False, repr=False)
class RunContext(Value):
    """What all tasks of a run share: the content of `current` that does not depend on the task.

    Attributes
    ----------
    flow : str
        The flow's name.
    run_id : str
        The run's id.
    username : str
        Who started it.
    namespace : str
        The namespace in force.
    tags : tuple of str
        The run's tags at its start.
    origin_run_id : str or None
        The run that this one resumes.
    project : mapping of str to str
        ``name``, ``branch`` and ``production`` where the flow declares a project.
    trigger : mapping of str to JSON
        The event that started the run, where one did.
    """

    flow: str
    run_id: str
    username: str = ""
    namespace: str = ""
    tags: tuple[str, ...] = ()
    origin_run_id: str | None = None
    project: Mapping[str, str] = attrs.field(factory=dict, converter=frozen_map)
    trigger: Mapping[str, Json] = attrs.field(factory=dict, converter=frozen_map)


@attrs.frozen(eq=False, repr=False)
class StepRequest(Value):
    """One attempt at one task: all that a worker needs, whatever its host or interpreter.

    Attributes
    ----------
    run : RunContext
        The run.
    key : TaskKey
        The task.
    attempt : int
        0-based.
    node : StepNode
        The step's place in the graph.
    code : CodeRef
        Where the flow's code is.
    store : str
        URL of the store that artifacts go to.
    inputs : tuple of TaskInput
        The finished tasks that it reads from: none for the start, one usually, all for a join.
    split : TaskInput or None
        For the join of an empty foreach, the task that opened it.
    parameters : mapping of str to ArtifactRef
        The run's parameters, by attribute name.
    frames : tuple of ForeachFrame
        The open foreach around it, outermost first.
    max_retries : int
        How many attempts may follow the first.
    catch_variable : str or None
        The artifact that receives a final failure.
    catches : bool
        Whether a failure of this attempt, being final, is caught.
    print_exception : bool
        Whether a caught failure is printed.
    caught : Failure or None
        The failure of the earlier attempt, where this attempt only stands in for one that was killed: the user's
        code is then not run.
    formats : mapping of str to str
        The format by name for artifacts by name.
    plugins : tuple of PluginId
        The plugins that the worker must have, exactly.
    settings : mapping of str to JSON
        Settings that the worker's plugins read; no secrets.
    lock : EnvironmentLock or None
        The environment; None for the current interpreter.
    variables : mapping of str to str
        Environment variables that the step asked for.
    secrets : tuple of str
        References of secrets to be fetched on the host.
    gang_size : int or None
        For a gang's member, how many there are.
    contents : mapping of str to bytes
        Content that several references of `inputs` have in common, by its hash: it is left out of them, so that a
        join of many branches repeats nothing. The worker puts it back.
    """

    run: RunContext
    key: TaskKey
    attempt: int
    node: StepNode
    code: CodeRef
    store: str
    inputs: tuple[TaskInput, ...] = ()
    split: TaskInput | None = None
    parameters: Mapping[str, ArtifactRef] = attrs.field(factory=dict, converter=frozen_map)
    frames: tuple[ForeachFrame, ...] = ()
    max_retries: int = 0
    catch_variable: str | None = None
    catches: bool = False
    print_exception: bool = True
    caught: Failure | None = None
    formats: Mapping[str, str] = attrs.field(factory=dict, converter=frozen_map)
    plugins: tuple[PluginId, ...] = ()
    settings: Mapping[str, Json] = attrs.field(factory=dict, converter=frozen_map)
    lock: EnvironmentLock | None = None
    variables: Mapping[str, str] = attrs.field(factory=dict, converter=frozen_map)
    secrets: tuple[str, ...] = ()
    gang_size: int | None = None
    contents: Mapping[str, bytes] = attrs.field(factory=dict, converter=frozen_map)

    @property
    def id(self) -> str:
        """Identity of the attempt within the run: ``train/2/0``."""
        return f"{self.key.path}/{self.attempt}"


@attrs.frozen(eq=False, repr=False)
class StepOutcome(Value):
    """How an attempt ended.

    Attributes
    ----------
    status : {"succeeded", "caught", "failed"}
        ``caught`` is a failure that the step's catch policy turned into a result.
    assigned : mapping of str to ArtifactRef
        What the task stored; all else that is visible in it is its parent's.
    removed : tuple of str
        What it deleted.
    transition : Transition
        Where it goes.
    failure : Failure or None
        Why it failed or what was caught.
    reads : tuple of str
        What the user's code read, sorted, also where the attempt failed: artifacts and parameters by name, ``input``
        for an item of a foreach, ``inputs.NAME`` for what a join read or merged from its branches, and each with a
        hyphen before it, as ``-NAME``, where it asked for an artifact that was not there.
    attachments : tuple of Attachment
        What plugins attached.
    started_at, finished_at : float
        Seconds since the epoch, by the worker's clock.
    peak_memory_bytes : int
        The largest resident size; 0 where the system cannot tell.
    cpu_seconds : float
        User and system time.
    host : str
        The worker's host name.
    pid : int
        The worker's process id.
    """

    status: Literal["succeeded", "caught", "failed"]
    assigned: Mapping[str, ArtifactRef] = attrs.field(factory=dict, converter=frozen_map)
    removed: tuple[str, ...] = ()
    transition: Transition = attrs.field(factory=Transition)
    failure: Failure | None = None
    reads: tuple[str, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    started_at: float = 0
    finished_at: float = 0
    peak_memory_bytes: int = 0
    cpu_seconds: float = 0
    host: str = ""
    pid: int = 0


@attrs.frozen(eq=False, repr=False)
class WorkerCommand(Value):
    """How to start a worker for a request.

    A launcher that starts a process runs `argv` and speaks the worker protocol with it (`mlp_hookspecs.process` does
    so). A launcher that keeps warm processes imports `entry` in them instead.

    Attributes
    ----------
    argv : tuple of str
        The command; on the driver's own host an interpreter with the step's environment, elsewhere the agent, which
        provisions the environment first.
    variables : mapping of str to str
        Environment variables to set on top of the host's.
    unset : tuple of str
        Environment variables to remove.
    cwd : str or None
        The working folder, where the host has it.
    entry : str
        ``module:attribute`` of a callable for processes that are kept warm or forked: it takes a `StepRequest`, loads
        all that such requests need, and returns a callable that takes a request and returns its `StepOutcome`. One
        such callable serves any number of requests of one run, step environment and set of variables. It may have a
        method ``rehearse``, which takes a request and makes later ones cheaper: worth calling where many will follow.
    """

    argv: tuple[str, ...]
    variables: Mapping[str, str] = attrs.field(factory=dict, converter=frozen_map)
    unset: tuple[str, ...] = ()
    cwd: str | None = None
    entry: str = ""


@attrs.frozen(eq=False, repr=False)
class LaunchRequest(Value):
    """One attempt to be started.

    Attributes
    ----------
    id : str
        Identity of the attempt within the run, in every message about it.
    step : StepRequest
        What the worker is to do.
    command : WorkerCommand
        How to start the worker.
    resources : Resources
        What it asks for.
    options : mapping of str to JSON
        What the step's options say to this launcher.
    gang : str or None
        Requests with one gang name start together or not at all.
    """

    id: str
    step: StepRequest
    command: WorkerCommand
    resources: Resources = attrs.field(factory=Resources)
    options: Mapping[str, Json] = attrs.field(factory=dict, converter=frozen_map)
    gang: str | None = None
