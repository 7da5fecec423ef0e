"""What a flow's parameters are: how a class declares them, and how a run's values are found, checked and shown."""

from __future__ import annotations

import builtins
import copy
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, overload

import attrs

from mlp_core.errors import NameRefused, ParameterError
from mlp_core.names import closest, identifier
from mlp_core.parameter_types import JSONType, ValueType, inferred_type, shown, to_text, value_type

if TYPE_CHECKING:
    from typing import Self

    from mlp_hookspecs import ParameterInfo

__all__ = [
    "RESERVED_NAMES",
    "JSONType",
    "Parameter",
    "ParameterContext",
    "Problem",
    "info",
    "parameters_of",
    "problems",
    "resolve",
    "to_text",
]

Logger: TypeAlias = Callable[[str], object]

RESERVED_NAMES = frozenset(
    {
        "config",
        "config_value",
        "decospecs",
        "help",
        "json",
        "launcher",
        "max_log_size",
        "max_num_splits",
        "max_workers",
        "namespace",
        "obj",
        "param",
        "params",
        "quiet",
        "run_id",
        "run_id_file",
        "runner_attribute_file",
        "store",
        "tag",
        "tags",
        "task_id",
        "user_namespace",
        "with",
    }
)
"""Names that options of the command line have; a parameter of that name could not be given."""


@attrs.frozen
class ParameterContext:
    """What a default that is a function is called with when the run is started or the flow deployed.

    Attributes
    ----------
    flow_name : str
        The flow's name.
    user_name : str
        Who starts the run.
    parameter_name : str
        The parameter's name.
    logger : callable
        Takes a line for the user.
    """

    flow_name: str
    user_name: str
    parameter_name: str
    logger: Logger


@attrs.frozen(eq=False)
class Parameter:
    """A value that a run is started with: a class attribute of a flow, read in its steps as ``self.<attribute>``.

    Parameters
    ----------
    name : str
        The name on the command line.
    default : object or callable, optional
        The value where none is given: of the parameter's type, or text as on the command line. A function is called
        with a `ParameterContext` when the run is started or the flow deployed. Without a default the value is None.
    type : type, optional
        ``str``, ``int``, ``float``, ``bool``, `JSONType`, ``date``, ``datetime``, ``Path``, ``list[int]``, ``dict``,
        an enumeration, a ``Literal``, an attrs, dataclass or pydantic class, or one of these ``| None``. Without it
        the type of the default; ``str`` where there is none.
    help : str, optional
        One line for people.
    required : bool, optional
        Whether a run must give a value; a parameter with a default is never required.
    show_default : bool, optional
        Whether the help shows the default; True where it is not given.
    separator : str, optional
        For text: the value is the list of its parts. For a list: what separates items, a comma where it is not given.

    Examples
    --------
    >>> class Train:
    ...     alpha = Parameter("alpha", default=0.1, help="learning rate")
    ...     sizes = Parameter("sizes", type=list[int], required=True)
    >>> resolve(Train, {"sizes": "1,2"}, from_text=True)
    {'alpha': 0.1, 'sizes': [1, 2]}
    """

    name: str = attrs.field(validator=attrs.validators.instance_of(str))
    default: Any = None
    type: Any = None
    help: str | None = None
    required: bool | None = None
    show_default: bool | None = None
    separator: str | None = None

    @overload
    def __get__(self, instance: None, owner: builtins.type) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: builtins.type) -> Any: ...

    def __get__(self, instance: object | None, owner: builtins.type) -> Any:
        """Return the parameter itself on the class; in a run the value comes from the flow's ``__getattr__``."""
        if instance is None:
            return self
        raise AttributeError(f"parameter {self.name!r} has a value only in a run")

    @property
    def is_deploy_time(self) -> bool:
        """Whether the default is a function to call when a run is started."""
        return callable(self.default) and not isinstance(self.default, builtins.type)

    def value_type(self) -> ValueType:
        """Return how to read its values; TypeError where a parameter can't have the type."""
        hint = self.type
        if hint is None:
            hint = str if self.default is None or self.is_deploy_time else inferred_type(self.default)
        if self.separator is None:
            return value_type(hint)
        return _split_text(self.separator) if hint is str else value_type(hint, self.separator)


@attrs.frozen
class Problem:
    """A mistake in a declaration.

    Attributes
    ----------
    attribute : str
        The class attribute.
    message : str
        What is wrong.
    hint : str
        How to mend it.
    """

    attribute: str
    message: str
    hint: str = ""


def parameters_of(cls: type) -> dict[str, Parameter]:
    """Return a flow's parameters by attribute, base classes' first, each in the order of declaration."""
    found: dict[str, object] = {}
    for base in reversed(cls.__mro__):
        found.update(vars(base))
    return {name: value for name, value in found.items() if isinstance(value, Parameter)}


def problems(cls: type, reserved: frozenset[str] = frozenset()) -> tuple[Problem, ...]:
    """Return the mistakes in the declarations of a flow's parameters.

    Parameters
    ----------
    cls : type
        The flow class.
    reserved : frozenset of str
        Attributes that no parameter may have, because the platform defines them.

    Returns
    -------
    tuple of Problem
        All of them, in the order of declaration.
    """
    found: list[Problem] = []
    taken: dict[str, str] = {}
    for attribute, parameter in parameters_of(cls).items():
        checks = (_check_names, _check_type, _check_default)
        problem = next(filter(None, (check(attribute, parameter, reserved) for check in checks)), None)
        key = _key(parameter.name)
        if problem is None and key in taken:
            message = f"parameters {taken[key]!r} and {attribute!r} have one name, {parameter.name!r}"
            problem = Problem(
                attribute, message, "rename one; hyphens and underscores are the same on the command line"
            )
        taken.setdefault(key, attribute)
        if problem is not None:
            found.append(problem)
    return tuple(found)


def resolve(  # noqa: PLR0913 # options, all but two by keyword
    cls: type,
    given: Mapping[str, object],
    *,
    from_text: bool,
    user_name: str = "",
    logger: Logger | None = None,
    leave_required: bool = False,
) -> dict[str, Any]:
    """Return the values that a run starts with.

    Parameters
    ----------
    cls : type
        The flow class.
    given : mapping of str to object
        Values by the parameters' names; hyphens and underscores are the same.
    from_text : bool
        Whether the values are text from a command line, rather than Python values.
    user_name : str
        Who starts the run, for defaults that are functions.
    logger : callable or None
        Where such defaults log to; None for standard error.
    leave_required : bool
        Whether required parameters that are not given are left out rather than refused, as for a deployment whose
        runs will be given them.

    Returns
    -------
    dict
        A value for every parameter, by attribute; None where there is neither a value nor a default.

    Raises
    ------
    ParameterError
        Where values are missing, unknown or refused: all of them in one error.
    """
    parameters = parameters_of(cls)
    by_name = {_key(parameter.name): attribute for attribute, parameter in parameters.items()}
    errors: list[ParameterError] = []
    values: dict[str, object] = {}
    for name, value in given.items():
        attribute = by_name.get(_key(name), name)
        if attribute not in parameters:
            errors.append(_unknown(cls, name, [parameter.name for parameter in parameters.values()]))
        elif attribute in values:
            errors.append(ParameterError(f"parameter {parameters[attribute].name!r} is given twice"))
        else:
            values[attribute] = value
    context = ParameterContext(cls.__name__, user_name, "", logger or _to_standard_error)
    resolved: dict[str, Any] = {}
    for attribute, parameter in parameters.items():
        try:
            if attribute not in values and leave_required and parameter.required and parameter.default is None:
                continue
            if attribute in values:
                resolved[attribute] = _read(parameter, values[attribute], from_text=from_text)
            else:
                resolved[attribute] = _default(parameter, context)
        except ParameterError as error:
            errors.append(error)
    if errors:
        _raise(errors)
    return resolved


def info(parameter: Parameter) -> ParameterInfo:
    """Return a parameter as deploy targets and user interfaces see it; ParameterError where it is badly declared."""
    from mlp_hookspecs import ParameterInfo

    kind = _kind(parameter)
    has_default = parameter.default is not None
    default = None
    if has_default and not parameter.is_deploy_time:
        value = _read(parameter, parameter.default, from_text=False)
        is_split = parameter.separator is not None and kind.name == "str"
        default = parameter.separator.join(value) if is_split and parameter.separator else to_text(value)
    return ParameterInfo(
        name=parameter.name,
        type=kind.name,
        required=bool(parameter.required) and not has_default,
        default=default,
        help=" ".join((parameter.help or "").split()),
        choices=kind.choices,
    )


def _key(name: str) -> str:
    """Return what a name is compared by."""
    return name.replace("-", "_")


def _split_text(separator: str) -> ValueType:
    """Return the type of a text that is split into a list, as a separator without a list type asks for."""
    text = value_type(str)

    def parse(given: str) -> list[str]:
        whole: str = text.parse(given)
        return whole.split(separator)

    def convert(given: object) -> list[str]:
        if isinstance(given, (list, tuple)):
            return [text.convert(item) for item in given]
        return parse(text.convert(given))

    return ValueType("str", f"text with parts separated by {separator!r}", parse, convert)


def _check_names(attribute: str, parameter: Parameter, reserved: frozenset[str]) -> Problem | None:
    """Check the attribute and the name."""
    try:
        identifier(attribute, "parameter")
        identifier(_key(parameter.name), "parameter")
    except NameRefused as refused:
        hint = f"{refused.hint}; hyphens too in the name" if refused.hint else "shorten it"
        return Problem(attribute, refused.message, hint)
    if attribute in reserved:
        return Problem(attribute, f"parameter {attribute!r} has a name that every flow defines", "rename the attribute")
    if _key(parameter.name) in RESERVED_NAMES:
        message = f"parameter {attribute!r} has the name {parameter.name!r}, which is an option of the command line"
        return Problem(attribute, message, f'give it another: {attribute} = Parameter("{parameter.name}_value", ...)')
    return None


def _check_type(attribute: str, parameter: Parameter, _reserved: frozenset[str]) -> Problem | None:
    """Check that values of the type can be read."""
    try:
        kind = parameter.value_type()
    except TypeError as error:
        hint = "allowed are str, int, float, bool, JSONType, date, datetime, Path, list[...], dict, Enum, Literal and"
        return Problem(attribute, f"parameter {attribute!r}: {error}", f"{hint} attrs, dataclass or pydantic classes")
    if parameter.separator == "":
        return Problem(attribute, f"parameter {attribute!r} has an empty separator", "give it a character")
    if parameter.separator is not None and kind.name != "str" and not kind.name.startswith(("list", "tuple")):
        message = f"parameter {attribute!r} is of type {kind.name} and has a separator"
        return Problem(attribute, message, "a separator is for text and for lists: drop it")
    return None


def _check_default(attribute: str, parameter: Parameter, _reserved: frozenset[str]) -> Problem | None:
    """Check that the default is a value of the type; functions are called only when a run starts."""
    if parameter.default is None or parameter.is_deploy_time:
        return None
    try:
        _read(parameter, parameter.default, from_text=False)
    except ParameterError as error:
        return Problem(attribute, f"the default of {error.message}", error.hint)
    return None


def _kind(parameter: Parameter) -> ValueType:
    """Return how to read a parameter's values; ParameterError where its type is none that it may have."""
    try:
        return parameter.value_type()
    except TypeError as error:
        raise ParameterError(f"parameter {parameter.name!r}: {error}") from error


def _read(parameter: Parameter, value: object, *, from_text: bool) -> Any:
    """Return a given value as one of the parameter's type; ParameterError where it is none."""
    kind = _kind(parameter)
    if from_text and not isinstance(value, str):
        raise ParameterError(f"parameter {parameter.name!r}: {shown(value)} is no text")
    try:
        return kind.convert(value)
    except ValueError as error:
        close = closest(value, kind.choices) if isinstance(value, str) else ""
        hint = f"did you mean {close!r}?" if close else f"the type is {kind.name}"
        raise ParameterError(f"parameter {parameter.name!r}: {error}", hint=hint) from error


def _default(parameter: Parameter, context: ParameterContext) -> Any:
    """Return the value of a parameter that was not given."""
    default = parameter.default
    if default is None:
        if parameter.required:
            name = parameter.name
            hint = f"give it: --{name} VALUE, or {_key(name)}=... in Python"
            raise ParameterError(f"parameter {name!r} is required", hint=hint)
        return None
    if parameter.is_deploy_time:
        context = attrs.evolve(context, parameter_name=parameter.name)
        try:
            default = default(context)
        except Exception as error:
            message = f"parameter {parameter.name!r}: its default raised {type(error).__name__}: {error}"
            raise ParameterError(message) from error
        if default is None:
            return None
    # A copy, since a flow's runs in one process must not share a list.
    return copy.deepcopy(_read(parameter, default, from_text=False))


def _unknown(cls: type, name: str, known: list[str]) -> ParameterError:
    """Return the error for a name that no parameter has."""
    close = closest(name, known)
    hint = f"did you mean {close!r}?" if close else f"known are {', '.join(known)}" if known else "it has none"
    return ParameterError(f"{cls.__name__} has no parameter {shown(name)}", hint=hint)


def _raise(errors: list[ParameterError]) -> NoReturn:
    """Raise the error, or one that lists them all."""
    if len(errors) == 1:
        raise errors[0]
    lines = "".join(f"\n  {error.message}{f' ({error.hint})' if error.hint else ''}" for error in errors)
    raise ParameterError(f"{len(errors)} parameters are refused:{lines}") from errors[0]


def _to_standard_error(line: str) -> None:
    """Print a line for the user."""
    print(line, file=sys.stderr)  # noqa: T201 # what a default logs is for whoever started the run
