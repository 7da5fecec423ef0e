"""What all values of the contract share: how they look and compare, frozen mappings, and what JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeAlias, TypeVar

_V = TypeVar("_V")

Json: TypeAlias = Any
"""A value that JSON can hold: None, bool, int, float, str, and lists, tuples and str-keyed mappings of these."""


class Value:
    """The base of a value: it looks like the call that makes it, and equals what has its class and its fields.

    attrs can write these methods for each class, which takes a third of a millisecond a class in every process.
    """

    __slots__ = ()
    if TYPE_CHECKING:
        __attrs_attrs__: ClassVar[tuple[Any, ...]]

    def __repr__(self) -> str:
        """Show the fields."""
        fields = ", ".join(f"{each.name}={getattr(self, each.name)!r}" for each in self.__attrs_attrs__ if each.repr)
        return f"{type(self).__qualname__}({fields})"

    def __eq__(self, other: object) -> bool:
        """Compare the fields."""
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, each.name) == getattr(other, each.name) for each in self.__attrs_attrs__)

    def __hash__(self) -> int:
        """Return a number that equal values share; TypeError where a field has none."""
        return hash((type(self), *(getattr(self, each.name) for each in self.__attrs_attrs__)))


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
