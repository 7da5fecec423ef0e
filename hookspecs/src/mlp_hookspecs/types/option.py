"""How a decorator is declared: options, the data that decorators record on steps and flows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Generic, Literal, TypeVar, overload

import attrs

_F = TypeVar("_F", bound=Callable[..., Any] | type)
_O = TypeVar("_O", bound="Option")

OPTIONS_ATTRIBUTE = "__mlp_options__"
"""The attribute of a step's function or a flow's class that holds its options, innermost decorator first."""


@attrs.frozen
class Option:
    """The base of all options. A subclass is a frozen attrs class; its fields are the decorator's arguments.

    An option is data: it does nothing by itself. A plugin turns it into behaviour in `mlp_plan_step` and
    `mlp_wrap_step`.

    Attributes
    ----------
    name : str
        Class attribute: the decorator's name, also in ``--with name:field=value``.
    levels : tuple of {"step", "flow"}
        Class attribute: what can be decorated. A flow's option of both levels holds for each of its steps that does
        not have the option itself.
    repeatable : bool
        Class attribute: whether one step may have it more than once.

    Examples
    --------
    >>> import attrs
    >>> from mlp_hookspecs import Option, decorator
    >>> @attrs.frozen
    ... class Spot(Option):
    ...     name = "spot"
    ...     price: float = 1.0
    >>> spot = decorator(Spot)
    >>> @spot(price=0.5)
    ... def step(): ...
    >>> step.__mlp_options__
    (Spot(price=0.5),)
    """

    name: ClassVar[str] = ""
    levels: ClassVar[tuple[Literal["step", "flow"], ...]] = ("step",)
    repeatable: ClassVar[bool] = False


class OptionDecorator(Generic[_O]):
    """What users write above a step: works bare (``@name``) and called (``@name(field=value)``).

    Attributes
    ----------
    option : type of Option
        What it records.
    """

    def __init__(self, option: type[_O]) -> None:
        """Make the decorator of an option class."""
        self.option = option

    @overload
    def __call__(self, target: _F, /) -> _F: ...

    @overload
    def __call__(self, /, *values: Any, **fields: Any) -> Callable[[_F], _F]: ...

    def __call__(self, /, *values: Any, **fields: Any) -> Any:
        """Record the option on a function or class, or return a decorator that does.

        Raises
        ------
        TypeError
            Where a field is unknown or its value is refused; the message names the decorator and its fields.
        """
        if len(values) == 1 and not fields and hasattr(values[0], "__dict__") and callable(values[0]):
            return record_option(values[0], self._make({}))
        option = self._make(self._named(values, fields))
        return lambda decorated: record_option(decorated, option)

    def _named(self, values: tuple[Any, ...], fields: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments by name; those without one are the option's first fields."""
        known = [field.alias for field in attrs.fields(self.option) if field.init]
        if len(values) > len(known):
            message = f"@{self.option.name} takes {len(known)} arguments at most, not {len(values)}"
            raise TypeError(message)
        named = dict(zip(known, values, strict=False))
        twice = sorted(named.keys() & fields.keys())
        if twice:
            message = f"@{self.option.name} has the argument {twice[0]!r} twice"
            raise TypeError(message)
        return {**named, **fields}

    def _make(self, fields: dict[str, Any]) -> _O:
        """Build the option, with a message that speaks of the decorator rather than of a constructor."""
        known = [field.alias for field in attrs.fields(self.option)]
        unknown = sorted(set(fields) - set(known))
        if unknown:
            message = f"@{self.option.name} has no argument {unknown[0]!r}; it takes {', '.join(known) or 'none'}"
            raise TypeError(message)
        try:
            return self.option(**fields)
        except (TypeError, ValueError) as error:
            message = f"@{self.option.name}: {error}"
            raise TypeError(message) from None

    def __repr__(self) -> str:
        """Show the decorator as it is written."""
        return f"@{self.option.name}"


def decorator(option: type[_O]) -> OptionDecorator[_O]:
    """Return the decorator that records an option.

    Parameters
    ----------
    option : type of Option
        A frozen attrs class on `Option`.

    Returns
    -------
    OptionDecorator
        Usable bare and called.
    """
    return OptionDecorator(option)


def record_option(target: _F, option: Option) -> _F:
    """Add an option to what a function or class has recorded, and return the target.

    A class gets a tuple of its own, so that a base class is not changed by what its children add.
    """
    recorded: tuple[Option, ...] = target.__dict__.get(OPTIONS_ATTRIBUTE, ())
    setattr(target, OPTIONS_ATTRIBUTE, (*recorded, option))
    return target
