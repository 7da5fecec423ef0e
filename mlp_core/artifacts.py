"""Which values can be passed on without being stored again: those that nothing can have changed."""

from __future__ import annotations

import datetime as dt
import decimal
import fractions
import pathlib
import types
import uuid
from collections.abc import Iterable, Sized

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


def indexable(value: object) -> bool:
    """Tell whether a foreach can fetch the items of a value by position, in any process alike.

    True for lists, tuples, ranges, text and one-dimensional things that look like arrays; False for sets and
    mappings, whose order or keys say something else, and for iterators, which can be read only once.
    """
    if isinstance(value, list | tuple | range | str | bytes):
        return True
    # An array has a shape; a table has columns, and iterating it gives their names.
    return isinstance(value, Sized) and hasattr(value, "shape") and hasattr(value, "dtype")
