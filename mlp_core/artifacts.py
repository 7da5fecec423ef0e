"""Which values can be passed on without being stored again: those that nothing can have changed."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from collections.abc import Sequence

# By name: importing what a flow may never use would cost every process.
_IMMUTABLE = frozenset(
    {
        "builtins.NoneType",
        "builtins.bool",
        "builtins.bytes",
        "builtins.complex",
        "builtins.ellipsis",
        "builtins.float",
        "builtins.int",
        "builtins.range",
        "builtins.str",
        "datetime.date",
        "datetime.datetime",
        "datetime.time",
        "datetime.timedelta",
        "datetime.timezone",
        "decimal.Decimal",
        "fractions.Fraction",
        "pathlib.PosixPath",
        "pathlib.PurePosixPath",
        "uuid.UUID",
    }
)


def is_immutable(value: object) -> bool:
    """Tell whether a value cannot have changed since it was loaded.

    Parameters
    ----------
    value : object
        Any value.

    Returns
    -------
    bool
        True for scalars and for tuples and frozen sets of them; False for all whose content might change.
    """
    kind = type(value)
    if kind is tuple or kind is frozenset:
        return all(is_immutable(item) for item in _items(value))
    return f"{kind.__module__}.{kind.__qualname__}" in _IMMUTABLE


def _items(value: object) -> Iterable[object]:
    """Return the items of a container."""
    return value if isinstance(value, Iterable) else ()


def type_name(value: object) -> str:
    """Return the dotted name of a value's type, without ``builtins``."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def indexable(value: object) -> TypeGuard[Sequence[Any]]:
    """Tell whether a foreach can fetch the items of a value by position, in any process alike.

    True for lists, tuples, ranges, text and arrays; False for sets, tables and series, whose order or labels say
    something else, and for iterators, which can be read only once.
    """
    if isinstance(value, list | tuple | range | str | bytes):
        return True
    # A pandas series has a shape as well, but its items have labels, and positions only by way of iloc.
    is_array = hasattr(value, "shape") and hasattr(value, "dtype") and not hasattr(value, "iloc")
    return isinstance(value, Sized) and is_array
