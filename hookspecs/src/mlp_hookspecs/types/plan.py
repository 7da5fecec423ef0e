"""What options decide about a step before it starts: where, in what, with how much, and what follows a failure."""

from collections.abc import Mapping
from typing import Literal

import attrs

from mlp_hookspecs.types.base import Json, Value, frozen_map
from mlp_hookspecs.types.environment import EnvironmentSpec


@attrs.frozen(eq=False, repr=False)
class Resources(Value):
    """What an attempt asks for.

    Attributes
    ----------
    cpu : float
        Cores; may be a fraction.
    memory_mb : int
        Mebibytes of memory; 0 asks for nothing in particular.
    gpu : float
        Accelerators.
    disk_mb : int
        Mebibytes of scratch space; 0 asks for nothing in particular.
    custom : mapping of str to float
        Amounts of resources that only a launcher knows.
    """

    cpu: float = 1
    memory_mb: int = 0
    gpu: float = 0
    disk_mb: int = 0
    custom: Mapping[str, float] = attrs.field(factory=dict, converter=frozen_map)


@attrs.frozen(eq=False, repr=False)
class RetryPolicy(Value):
    """How often a failed attempt is made again.

    Attributes
    ----------
    times : int
        Attempts after the first; 0 makes none.
    delay_seconds : float
        The pause before each.
    """

    times: int
    delay_seconds: float = 0


@attrs.frozen(eq=False, repr=False)
class CatchPolicy(Value):
    """What a step that has failed for good leaves behind, where its failure does not fail the run.

    Attributes
    ----------
    variable : str or None
        The artifact that receives the failure; None on success.
    print_exception : bool
        Whether the traceback goes to the task's log.
    """

    variable: str | None = None
    print_exception: bool = True


@attrs.frozen(eq=False, repr=False)
class StepPlan(Value):
    """One plugin's opinion on a step, or the merged one. None and empty mean "no opinion".

    Attributes
    ----------
    launcher : str or None
        The launcher backend that runs the step.
    launcher_options : mapping of str to JSON
        What that launcher should know about this step.
    environment : EnvironmentSpec or None
        What the step's interpreter must contain.
    variables : mapping of str to str
        Environment variables, set before the process starts.
    resources : Resources or None
        What an attempt asks for; the largest of several opinions holds.
    timeout_seconds : float or None
        How long an attempt may take; the smallest of several opinions holds.
    grace_seconds : float or None
        How long a process has between the request to end and its killing.
    retry : RetryPolicy or None
        How often a failed attempt is made again.
    catch : CatchPolicy or None
        What a final failure leaves behind, where it does not fail the run.
    concurrency : int or None
        At most this many tasks of the step at once.
    formats : mapping of str to str
        The format by name for artifacts by name.
    secrets : tuple of str
        References of secrets to be fetched on the host where the step runs.
    environment_name : str or None
        An environment that is there already, by its name, a task's pathspec or its lock's digest: the step runs in it,
        or in what `environment` adds to it.
    environment_at_exec : bool or None
        Whether that name is looked up when a task starts rather than when the run does. Then ``{run_id}``,
        ``{flow_name}``, ``{step_name}``, ``{task_id}`` and the names of parameters in it are replaced by their values.
    """

    launcher: str | None = None
    launcher_options: Mapping[str, Json] = attrs.field(factory=dict, converter=frozen_map)
    environment: EnvironmentSpec | None = None
    variables: Mapping[str, str] = attrs.field(factory=dict, converter=frozen_map)
    resources: Resources | None = None
    timeout_seconds: float | None = None
    grace_seconds: float | None = None
    retry: RetryPolicy | None = None
    catch: CatchPolicy | None = None
    concurrency: int | None = None
    formats: Mapping[str, str] = attrs.field(factory=dict, converter=frozen_map)
    secrets: tuple[str, ...] = ()
    environment_name: str | None = None
    environment_at_exec: bool | None = None


FailureKind = Literal["exception", "timeout", "killed", "exit", "artifact", "plugin", "system", "cancelled"]
