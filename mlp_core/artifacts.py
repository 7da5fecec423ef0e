"""Which values can be passed on without being stored again: those that nothing can have changed."""

from __future__ import annotations

import datetime as dt
import decimal
import fractions
import pathlib
import types
import uuid
from collections.abc import Iterable, Sized
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from collections.abc import Sequence

_IMMUTABLE: frozenset[type] = frozenset(
    {
        bool,
        bytes,
        complex,
        dt.date,
        dt.datetime,
        dt.time,
        dt.timedelta,
        dt.timezone,
        decimal.Decimal,
        float,
        fractions.Fraction,
        int,
        type(None),
        pathlib.PosixPath,
        pathlib.PurePosixPath,
        range,
        str,
        uuid.UUID,
        types.EllipsisType,
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
    return kind in _IMMUTABLE


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
