"""Which decorators the core brings for a step's failures, limits and needs, and what each of them plans."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import attrs

from mlp_hookspecs import (
    CatchPolicy,
    Option,
    Resources,
    RetryPolicy,
    StepInfo,
    StepPlan,
    decorator,
    frozen_map,
    hookimpl,
)

GRACE_SECONDS = 5.0
"""How long a process has between the request to end and its killing, unless an option says otherwise."""

_BOTH: tuple[Literal["step", "flow"], ...] = ("step", "flow")


def _whole(value: Any) -> Any:
    """Return the whole number that a value or text stands for; anything else as it is, for the validator to refuse."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return value
    return number if isinstance(value, str) or number == value else value


def _number(value: Any) -> Any:
    """Return the number that a value or text stands for; anything else as `_whole`."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return value


def _at_least(minimum: float) -> Any:
    """Return a validator for numbers that were converted."""

    def check(_option: object, attribute: attrs.Attribute[Any], value: object) -> None:
        kind, what = (int, "whole number") if attribute.type in (int, "int") else (int | float, "number")
        if isinstance(value, bool) or not isinstance(value, kind) or not minimum <= value < math.inf:
            raise ValueError(f"{attribute.alias}={value!r:.60} is refused: it must be a {what} of at least {minimum:g}")

    return check


def _mapping(value: Any) -> Any:
    """Return a mapping that cannot be changed; anything else as it is, for the validator to refuse."""
    return frozen_map(value) if isinstance(value, Mapping) else value


def _texts(_option: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Refuse what is no mapping of texts to texts."""
    is_map = isinstance(value, Mapping) and all(isinstance(text, str) for pair in value.items() for text in pair)
    if not is_map:
        example = f"{attribute.alias}={{'NAME': 'text'}}"
        raise ValueError(f"{attribute.alias}={value!r:.60} is refused: it must map text to text, as {example} does")


@attrs.frozen
class Retry(Option):
    """Make a failed attempt again.

    Attributes
    ----------
    times : int
        Attempts after the first; 0 pins a step against ``--with retry``.
    minutes_between_retries : float
        The pause before each.
    """

    name: ClassVar[str] = "retry"
    levels: ClassVar[tuple[Literal["step", "flow"], ...]] = _BOTH
    times: int = attrs.field(default=3, converter=_whole, validator=_at_least(0))
    minutes_between_retries: float = attrs.field(default=2, converter=_number, validator=_at_least(0))


@attrs.frozen
class Catch(Option):
    """Let the run go on after a step that has failed for good.

    Attributes
    ----------
    var : str or None
        The artifact that receives the failure; None on success.
    print_exception : bool
        Whether the traceback goes to the task's log.
    """

    name: ClassVar[str] = "catch"
    levels: ClassVar[tuple[Literal["step", "flow"], ...]] = _BOTH
    var: str | None = None
    print_exception: bool = True


@attrs.frozen
class Timeout(Option):
    """Limit how long an attempt may take; seconds, minutes and hours are added up.

    Attributes
    ----------
    seconds, minutes, hours : float
        The limit's parts.
    grace : float
        Seconds between the request to end and the killing of the process tree.
    """

    name: ClassVar[str] = "timeout"
    levels: ClassVar[tuple[Literal["step", "flow"], ...]] = _BOTH
    seconds: float = attrs.field(default=0, converter=_number, validator=_at_least(0))
    minutes: float = attrs.field(default=0, converter=_number, validator=_at_least(0))
    hours: float = attrs.field(default=0, converter=_number, validator=_at_least(0))
    grace: float = attrs.field(default=GRACE_SECONDS, converter=_number, validator=_at_least(0))

    def __attrs_post_init__(self) -> None:
        """Refuse a limit of nothing."""
        if self.total_seconds <= 0:
            raise ValueError("a limit is needed: seconds, minutes or hours")

    @property
    def total_seconds(self) -> float:
        """The limit in seconds."""
        return self.seconds + 60 * self.minutes + 3600 * self.hours


@attrs.frozen
class ResourcesOption(Option):
    """Ask for resources.

    Attributes
    ----------
    cpu : float
        Cores.
    memory : int
        Mebibytes of memory.
    gpu : float
        Accelerators.
    disk : int
        Mebibytes of scratch space.
    shared_memory : int
        Mebibytes of shared memory; for launchers that start containers.
    """

    name: ClassVar[str] = "resources"
    levels: ClassVar[tuple[Literal["step", "flow"], ...]] = _BOTH
    cpu: float = attrs.field(default=1, converter=_number, validator=_at_least(0))
    memory: int = attrs.field(default=0, converter=_whole, validator=_at_least(0))
    gpu: float = attrs.field(default=0, converter=_number, validator=_at_least(0))
    disk: int = attrs.field(default=0, converter=_whole, validator=_at_least(0))
    shared_memory: int = attrs.field(default=0, converter=_whole, validator=_at_least(0))


@attrs.frozen
class Environment(Option):
    """Set environment variables before the step's process starts.

    Attributes
    ----------
    vars : mapping of str to str
        The variables.
    """

    name: ClassVar[str] = "environment"
    levels: ClassVar[tuple[Literal["step", "flow"], ...]] = _BOTH
    vars: Mapping[str, str] = attrs.field(factory=dict, converter=_mapping, validator=_texts)

    @vars.validator  # noqa: A003 # Metaflow calls them vars
    def _check(self, _attribute: attrs.Attribute[Any], value: Mapping[str, str]) -> None:
        for name, text in value.items():
            if not name or "=" in name or not _is_plain(name):
                raise ValueError(f"vars: {name!r:.60} is no name of an environment variable")
            if not _is_plain(text):
                raise ValueError(f"vars: the value of {name} must be text without NUL, not {text!r:.60}")


def _has_fields(text: str) -> bool:
    """Tell whether something is to be put into a name."""
    return "{" in text or "}" in text


@attrs.frozen
class NamedEnv(Option):
    """Run a step in an environment that is there already, or in what the step's other decorators add to it.

    Attributes
    ----------
    env_name : str
        Which one (in the decorator ``name=``): a name as ``mlp env alias`` gives it, such as ``fraud/scoring:stable``,
        the pathspec of a past run, step or task, or a lock's digest.
    fetch_at_exec : bool
        Whether it is looked up when a task starts rather than when the run does. The name may then have ``{run_id}``,
        ``{flow_name}``, ``{step_name}``, ``{task_id}`` and names of parameters in braces.
    """

    name: ClassVar[str] = "named_env"
    levels: ClassVar[tuple[Literal["step", "flow"], ...]] = _BOTH
    env_name: str = attrs.field(alias="name", validator=attrs.validators.instance_of(str))
    fetch_at_exec: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))

    def __attrs_post_init__(self) -> None:
        """Refuse a name that cannot be looked up before a task starts."""
        if not self.env_name.strip():
            raise ValueError("name='' is refused: name an environment, such as 'fraud/scoring:stable'")
        if _has_fields(self.env_name) and not self.fetch_at_exec:
            raise ValueError(f"name={self.env_name!r:.80} has braces, which needs fetch_at_exec=True")


@attrs.frozen
class Limit(Option):
    """Let at most so many tasks of the step run at once.

    Attributes
    ----------
    n : int
        How many.
    """

    name: ClassVar[str] = "limit"
    n: int = attrs.field(default=1, converter=_whole, validator=_at_least(1))


@attrs.frozen
class Formats(Option):
    """Choose by name in which format artifacts are stored.

    Attributes
    ----------
    names : mapping of str to str
        The format for each artifact: ``@formats(names={"table": "parquet"})``.
    """

    name: ClassVar[str] = "formats"
    levels: ClassVar[tuple[Literal["step", "flow"], ...]] = _BOTH
    names: Mapping[str, str] = attrs.field(factory=dict, converter=_mapping, validator=_texts)


def _is_plain(text: str) -> bool:
    """Tell whether a process can be given a text: no NUL, and no surrogates."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


retry = decorator(Retry)
catch = decorator(Catch)
timeout = decorator(Timeout)
resources = decorator(ResourcesOption)
environment = decorator(Environment)
named_env = decorator(NamedEnv)
limit = decorator(Limit)
formats = decorator(Formats)


@hookimpl
def mlp_options() -> Sequence[type[Option]]:
    """Declare them."""
    return (Retry, Catch, Timeout, ResourcesOption, Environment, NamedEnv, Limit, Formats)


@hookimpl
def mlp_plan_step(step: StepInfo, options: Sequence[Option]) -> StepPlan | None:  # noqa: ARG001 # the hook's signature
    """Turn each into its field of the plan."""
    plan = StepPlan()
    for option in options:
        plan = attrs.evolve(plan, **_fields(option))
    return None if plan == StepPlan() else plan


def _fields(option: Option) -> dict[str, Any]:  # noqa: PLR0911 # one return an option
    """Return the fields of the plan that an option sets."""
    match option:
        case Retry():
            return {"retry": RetryPolicy(option.times, 60 * option.minutes_between_retries)}
        case Catch():
            return {"catch": CatchPolicy(option.var, option.print_exception)}
        case Timeout():
            return {"timeout_seconds": option.total_seconds, "grace_seconds": option.grace}
        case ResourcesOption():
            custom = {"shared_memory_mb": float(option.shared_memory)} if option.shared_memory else {}
            return {"resources": Resources(option.cpu, option.memory, option.gpu, option.disk, custom)}
        case Environment():
            return {"variables": option.vars}
        case NamedEnv():
            return {"environment_name": option.env_name, "environment_at_exec": option.fetch_at_exec}
        case Limit():
            return {"concurrency": option.n}
        case Formats():
            return {"formats": option.names}
        case _:
            return {}
