"""How values of the contract become bytes and come back: JSON, with the classes' own annotations as the schema.

The encoding is part of the contract: requests, outcomes and journal records are read by other versions and under other
interpreters. Fields that equal their default are left out; unknown fields are ignored when reading, so that a reader
of an older minor version understands a newer one. Bytes are base64 text.
"""

from __future__ import annotations

import binascii
import json
import sys
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union

import attrs

from mlp_hookspecs.types.base import FrozenDict

_T = TypeVar("_T")
_Codec = Callable[[Any], Any]


def encode(value: object) -> Any:  # JSON has no narrower type
    """Return a value of the contract as JSON data.

    Parameters
    ----------
    value : attrs instance
        An instance of a class of `mlp_hookspecs.types` or `mlp_hookspecs.events`.

    Returns
    -------
    dict
        Data that `json.dumps` takes.

    Examples
    --------
    >>> from mlp_hookspecs import Resources
    >>> encode(Resources(cpu=2))
    {'cpu': 2}
    """
    cls: Any = type(value)  # typed loosely, since mypy does not see that classes are hashable
    return _encoder(cls)(value)


def decode(cls: type[_T], data: object) -> _T:
    """Return the value that `encode` made data of.

    Parameters
    ----------
    cls : type
        The class that was encoded.
    data : dict
        The data.

    Returns
    -------
    instance of cls
        An equal value.

    Raises
    ------
    ValueError
        Where the data does not fit the class; the message names the class and the field.

    Examples
    --------
    >>> from mlp_hookspecs import Resources
    >>> decode(Resources, {"cpu": 2})
    Resources(cpu=2, memory_mb=0, gpu=0, disk_mb=0, custom={})
    """
    known: Any = cls  # as above
    result: _T = _decoder(known)(data)
    return result


def dumps(value: object) -> bytes:
    """Return a value of the contract as one line of JSON, without the line's end."""
    return json.dumps(encode(value), separators=(",", ":")).encode()


def loads(cls: type[_T], data: bytes | str) -> _T:
    """Return the value that `dumps` made bytes of; ValueError as `decode`."""
    try:
        return decode(cls, json.loads(data))
    except RecursionError:
        message = f"{cls.__name__}: the data is nested too deeply"
        raise ValueError(message) from None


def prepare(*classes: type[Any]) -> None:
    """Get ready to encode and decode classes and all that they hold, for processes that have the time for it now.

    Parameters
    ----------
    *classes : type
        Classes of the contract.
    """
    waiting: list[Any] = list(classes)
    seen = set(waiting)
    while waiting:
        cls = waiting.pop()
        _encoder(cls)
        _decoder(cls)
        found = [part for hint in _hints(cls).values() for part in _parts(hint) if part not in seen and attrs.has(part)]
        seen.update(found)
        waiting += found


def _parts(hint: Any) -> list[Any]:
    """Return the classes that an annotation names."""
    arguments = typing.get_args(hint)
    if arguments:
        return [part for argument in arguments for part in _parts(argument)]
    return [hint] if isinstance(hint, type) else []


def _same(value: object) -> object:
    """Return the value itself: the codec of all that JSON holds as it is."""
    return value


@cache
def _encoder(cls: type[Any]) -> _Codec:
    """Return the encoder of an attrs class."""
    hints = _hints(cls)
    fields = [(f.name, f.default, _codec(hints[f.name], encoding=True)) for f in attrs.fields(cls)]
    # A factory's default is empty, as are its equals.
    plain = [(n, d, c) for n, d, c in fields if not isinstance(d, attrs.Factory)]  # type: ignore[arg-type] # attrs types Factory as a function
    made = [(n, c) for n, d, c in fields if isinstance(d, attrs.Factory)]  # type: ignore[arg-type] # as above

    def run(value: object) -> dict[str, Any]:
        data = {}
        for name, default, codec in plain:
            item = getattr(value, name)
            if item is not default and item != default:
                data[name] = codec(item)
        for name, codec in made:
            item = getattr(value, name)
            if item:
                data[name] = codec(item)
        return data

    return run


@cache
def _decoder(cls: type[Any]) -> _Codec:
    """Return the decoder of an attrs class."""
    hints = _hints(cls)
    codecs = {f.name: _codec(hints[f.name], encoding=False) for f in attrs.fields(cls)}

    def run(data: object) -> object:
        if not isinstance(data, dict):
            message = f"{cls.__name__}: expected an object, got {type(data).__name__}"
            raise ValueError(message)  # noqa: TRY004 # bad data is bad whatever its type
        values = {}
        for name, item in data.items():
            codec = codecs.get(name)
            if codec is None:
                continue
            try:
                values[name] = codec(item)
            except (TypeError, ValueError, AttributeError, KeyError) as error:
                message = f"{cls.__name__}.{name}: {error}"
                raise ValueError(message) from error
        try:
            return cls(**values)
        except TypeError as error:
            message = f"{cls.__name__}: {error}"
            raise ValueError(message) from error

    return run


def _hints(cls: type[Any]) -> dict[str, Any]:
    """Return the annotations of a class's fields; those that are text are resolved in the module that declared them."""
    hints = {field.name: field.type for field in attrs.fields(cls)}
    if any(isinstance(hint, str) for hint in hints.values()):
        for base in reversed(cls.__mro__):
            if attrs.has(base):
                hints.update(typing.get_type_hints(base, vars(sys.modules[base.__module__])))
    return hints


def _codec(hint: Any, *, encoding: bool) -> _Codec:  # noqa: PLR0911 # a type hint has no type of its own; one return a kind of hint
    """Return the codec of one annotation."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is bytes:
        return _encode_bytes if encoding else _decode_bytes
    if hint is Any or origin is Literal:
        # Not which of a literal's choices: a newer version may have more.
        return _same if encoding or hint is Any else _choice(frozenset(type(argument) for argument in arguments))
    if isinstance(hint, type) and origin is None:
        if attrs.has(hint):
            return encode if encoding else _late_decoder(hint)
        return _same if encoding else _checked(hint)
    if origin in (Union, types.UnionType):
        inner = [a for a in arguments if a is not type(None)]
        if len(inner) > 1:  # a choice of scalars, as for a setting's default, or of lists of them
            return _same if encoding else _simple
        return _optional(_codec(inner[0], encoding=encoding))
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:  # noqa: PLR2004 # tuple[item, ...]
        return _sequence(_codec(arguments[0], encoding=encoding), list if encoding else tuple)
    if origin is tuple:
        return _fixed([_codec(a, encoding=encoding) for a in arguments], list if encoding else tuple)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(_codec(arguments[1], encoding=encoding), dict if encoding else FrozenDict)
    message = f"no wire form for {hint!r}"
    raise TypeError(message)


def _late_decoder(cls: type) -> _Codec:
    """Return a decoder that is looked up when used, since classes may nest themselves."""
    return lambda data: _decoder(cls)(data)  # noqa: PLW0108 # the look-up is what must wait


def _checked(cls: type) -> _Codec:
    """Return a decoder that lets only a scalar of the right type pass."""
    allowed = (int, float) if cls is float else (cls,)

    def run(value: object) -> object:
        if not isinstance(value, allowed) or (isinstance(value, bool) and cls is not bool):
            message = f"expected {cls.__name__}, got {value!r:.80}"
            raise ValueError(message)
        return value

    return run


def _choice(allowed: frozenset[type]) -> _Codec:
    """Return a decoder that lets only values of some types pass."""

    def run(value: object) -> object:
        if type(value) not in allowed:
            message = f"expected {' or '.join(sorted(kind.__name__ for kind in allowed))}, got {value!r:.80}"
            raise ValueError(message)
        return value

    return run


def _simple(value: object) -> object:
    """Return a scalar or a flat list of scalars; ValueError for anything else."""
    for item in value if isinstance(value, list | tuple) else (value,):
        if not isinstance(item, str | int | float | None):
            message = f"expected a scalar or a list of scalars, got {value!r:.80}"
            raise ValueError(message)  # noqa: TRY004 # bad data is bad whatever its type
    return value


def _optional(codec: _Codec) -> _Codec:
    """Return the codec that lets None pass."""
    return lambda value: None if value is None else codec(value)


def _sequence(codec: _Codec, build: Callable[[Any], Any]) -> _Codec:
    """Return the codec of a tuple of any length."""
    if codec is _same:
        return build
    return lambda value: build([codec(item) for item in value])


def _fixed(codecs: list[_Codec], build: Callable[[Any], Any]) -> _Codec:
    """Return the codec of a tuple of fixed length."""
    return lambda value: build([codec(item) for codec, item in zip(codecs, value, strict=True)])


def _mapping(codec: _Codec, build: Callable[[Any], Any]) -> _Codec:
    """Return the codec of a mapping with text keys."""
    if codec is _same:
        return build
    return lambda value: build({name: codec(item) for name, item in value.items()})


def _encode_bytes(value: bytes) -> str:
    """Return bytes as base64 text."""
    return binascii.b2a_base64(value, newline=False).decode()


def _decode_bytes(value: str) -> bytes:
    """Return the bytes of base64 text; ValueError where it is none."""
    return binascii.a2b_base64(value, strict_mode=True)
