"""Which blobs something refers to, wherever in it the reference stands.

Nothing here names a field. What a class may hold is read from its annotations, so that a field that is added to a
record or to the contract is followed without a change here.
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, Final, TypeAlias

import attrs

from mlp_hookspecs.types import ArtifactPart, ArtifactRef

Place: TypeAlias = tuple[str, ...]
"""Where a reference stands: the fields, names and positions that lead to it."""

_CONTENT: Final = (ArtifactRef, ArtifactPart)


def references(value: object) -> Iterator[tuple[Place, ArtifactRef]]:
    """Iterate over all references that a value holds, at any depth.

    Parameters
    ----------
    value : attrs instance, mapping, tuple or list
        A record, a frozen flow, a deployment's version, or several of them.

    Yields
    ------
    tuple of Place and ArtifactRef
        Where the reference stands in the value, and the reference; those that hold their content themselves, too.
    """
    if isinstance(value, ArtifactRef):
        yield (), value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _below(str(name), item)
    elif isinstance(value, tuple | list):
        for position, item in enumerate(value):
            yield from _below(str(position), item)
    elif attrs.has(type(value)):
        kind: Any = type(value)  # typed loosely, since mypy does not see that classes are hashable
        for name in _fields(kind):
            item = getattr(value, name)
            if item is not None:
                yield from _below(name, item)


def blobs_of(ref: ArtifactRef) -> Iterator[tuple[str, int]]:
    """Iterate over digest and size of the blobs that one reference needs; none where it holds its content itself."""
    for part in ref.parts or (ref,):
        if part.data is None:
            yield part.digest, part.size


def digests_of(records: Iterable[object]) -> dict[str, int]:
    """Return the blobs that records, frozen flows and deployments refer to.

    Parameters
    ----------
    records : iterable of attrs instances
        Records of a run, blueprints, versions of deployments: anything whose annotations name what it holds.

    Returns
    -------
    dict of str to int
        Size by digest.
    """
    return {digest: size for record in records for _, ref in references(record) for digest, size in blobs_of(ref)}


def _below(name: str, item: object) -> Iterator[tuple[Place, ArtifactRef]]:
    """Iterate over the references of an item, with its name before each place."""
    for place, ref in references(item):
        yield (name, *place), ref


@cache
def _fields(kind: type[Any]) -> tuple[str, ...]:
    """Return the fields of a class that may hold a reference."""
    return tuple(name for name, hint in _hints(kind).items() if _may_hold(hint, ()))


def _may_hold(hint: Any, around: tuple[Any, ...]) -> bool:
    """Tell whether what an annotation allows can hold a reference; `around` are the classes that it stands in."""
    arguments = typing.get_args(hint)
    if arguments:
        return any(_may_hold(argument, around) for argument in arguments)
    if hint in _CONTENT:
        return True
    if not isinstance(hint, type) or not attrs.has(hint) or hint in around:
        return False
    return any(_may_hold(each, (*around, hint)) for each in _hints(hint).values())


def _hints(kind: type[Any]) -> dict[str, Any]:
    """Return the annotations of a class's fields, as classes."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if attrs.has(base):
            found.update(typing.get_type_hints(base, vars(sys.modules[base.__module__])))
    return {field.name: found[field.name] for field in attrs.fields(kind)}
