"""How values of the contract stay immutable: frozen mappings, and the JSON values that may cross the border."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, TypeAlias, TypeVar

_V = TypeVar("_V")

Json: TypeAlias = Any
"""A value that JSON can hold: None, bool, int, float, str, and lists, tuples and str-keyed mappings of these."""


class FrozenDict(dict[str, _V]):
    """A mapping that cannot be changed. It is a dict, so that it pickles, copies and encodes as one."""

    __slots__ = ()

    def _refuse(self, *_args: object, **_kwargs: object) -> NoReturn:
        """Refuse a change."""
        message = "this mapping is frozen; make a changed copy with {**mapping, name: value}"
        raise TypeError(message)

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[FrozenDict[_V]], tuple[dict[str, _V]]]:
        """Pickle through the constructor, since items can't be set afterwards."""
        return FrozenDict, (dict(self),)


def frozen_map(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a read-only copy of a mapping.

    Parameters
    ----------
    value : mapping
        The mapping to freeze; one made by this function is returned as it is.

    Returns
    -------
    mapping
        A frozen copy.

    Examples
    --------
    >>> frozen_map({"alpha": 1})["alpha"]
    1
    """
    return value if isinstance(value, FrozenDict) else FrozenDict(value)
