"""What types a parameter may have, and how a value of each is read from text, checked, and written as text again."""

from __future__ import annotations

import json
import numbers
import os
import types
import typing
from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import date, datetime
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias, Union

import attrs

from mlp_core.names import closest
from mlp_core.names import shown as shown_text

_Convert: TypeAlias = Callable[[Any], Any]
_TRUE = ("true", "t", "yes", "y", "on", "1")
_FALSE = ("false", "f", "no", "n", "off", "0")
_SHOWN = 60  # characters of a refused value in a message


class JSONType:
    """The type of a parameter whose value is any JSON: ``Parameter("grid", type=JSONType, default='{"a": 1}')``."""


@attrs.frozen(eq=False, repr=False)
class ValueType:
    """How to read the values of one type.

    Attributes
    ----------
    name : str
        The type's readable name: ``list[int]``.
    form : str
        What a value looks like, for messages: ``a whole number``.
    parse : callable
        Takes text and returns a value; ValueError where the text is none.
    convert : callable
        Takes a Python value, or text as `parse`, and returns a value of the type; ValueError where it does not fit.
    choices : tuple of str
        The allowed values as text; empty where there are too many to list.
    """

    name: str
    form: str
    parse: Callable[[str], Any]
    convert: _Convert
    choices: tuple[str, ...] = ()


def value_type(hint: Any, separator: str = ",") -> ValueType:
    """Return how to read values of a type.

    Parameters
    ----------
    hint : type
        The type as users write it: a class, ``list[int]``, ``Literal["a", "b"]``, ``int | None``.
    separator : str
        What separates the items of a list that is not given as JSON.

    Returns
    -------
    ValueType
        How to read them.

    Raises
    ------
    TypeError
        Where a parameter cannot have that type.
    """
    if isinstance(hint, Hashable) and hint in _SIMPLE:
        return _SIMPLE[hint]
    found = _composed(hint, separator)
    if found is None and isinstance(hint, type) and typing.get_origin(hint) is None:
        if issubclass(hint, Enum):
            return _enum(hint)
        if hasattr(hint, "model_validate") or _fields(hint) is not None:
            return _structure(hint)
    if found is None:
        raise TypeError(f"a parameter can't be of type {_hint_name(hint)}")
    return found


def _composed(hint: Any, separator: str) -> ValueType | None:
    """Return how to read a type that is written with square brackets or ``|``; None for others."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return value_type(arguments[0], separator)
    if origin is Literal:
        return _literal(arguments)
    if origin in (Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        return _optional(value_type(inner[0], separator)) if len(inner) == 1 else None
    if origin is list or (origin is tuple and arguments[1:] == (...,)):
        return _sequence(origin, value_type(arguments[0], separator), separator)
    if origin is dict:
        return _mapping(value_type(arguments[0]), value_type(arguments[1]))
    return None


def inferred_type(default: object) -> Any:
    """Return the type that a default value stands for.

    Examples
    --------
    >>> inferred_type([1, 2])
    list[int]
    >>> inferred_type({"a": 1})
    <class 'dict'>
    """
    cls = type(default)
    if isinstance(default, Path):
        return Path
    if isinstance(default, (list, tuple)) and cls in (list, tuple):
        kinds = {type(item) for item in default}
        item = kinds.pop() if len(kinds) == 1 else None
        if item in (bool, int, float, str):
            return list[item] if cls is list else tuple[item, ...]  # type: ignore[valid-type] # a type made at run time
        return list if cls is list else tuple
    return cls


def to_text(value: object) -> str:
    """Return a value as the text that the command line would take for it.

    Examples
    --------
    >>> to_text([0.1, 0.2])
    '[0.1, 0.2]'
    >>> to_text(True)
    'true'
    """
    data = _plain(value)
    return data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, default=repr)


def shown(value: object) -> str:
    """Return a value for a message: as Python writes it, escaped and shortened."""
    if isinstance(value, str):
        return shown_text(value)
    try:
        text = ascii(value)
    except Exception as error:  # noqa: BLE001 # a foreign __repr__ may raise anything, and the message still has to appear
        text = f"<{type(value).__name__}, whose repr failed: {type(error).__name__}>"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 4]}... ({len(text)} characters)"


def _plain(value: object) -> Any:  # noqa: PLR0911 # one return a kind of value
    """Return a value as JSON data, as far as it can be."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {(str(_plain(key))): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    fields = _fields(type(value))
    if fields is not None:
        return {field.alias: _plain(getattr(value, field.name)) for field in fields}
    return value


# ------------------------------------------------------------------------------------------------ types without parts


def _refuse(value: object, form: str) -> NoReturn:
    """Raise ValueError for a value of another form."""
    raise ValueError(f"{shown(value)} is not {form}")


def _simple(name: str, form: str, parse: Callable[[str], Any], accept: _Convert) -> ValueType:
    """Return a type that is read by a function of text and one of values; both raise ValueError for what is none."""

    def read(text: str) -> Any:
        try:
            return parse(text)
        except (ValueError, RecursionError):
            _refuse(text, form)

    def convert(value: object) -> Any:
        if isinstance(value, str):
            return read(value)
        try:
            return accept(value)
        except (TypeError, ValueError, RecursionError):
            _refuse(value, form)

    return ValueType(name, form, read, convert)


def _instance_of(kind: type | tuple[type, ...], build: _Convert) -> _Convert:
    """Return a function that converts instances of a class, and refuses others; a bool is no number."""

    def accept(value: object) -> Any:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError
        return build(value)

    return accept


def _parse_bool(text: str) -> bool:
    """Read true or false."""
    word = text.strip().lower()
    if word not in _TRUE + _FALSE:
        raise ValueError
    return word in _TRUE


def _accept_bool(value: object) -> bool:
    """Let a bool pass."""
    if not isinstance(value, bool):
        raise TypeError
    return value


def _parse_text(text: str) -> str:
    """Let text pass that can be stored: a command line may hold bytes that are none."""
    text.encode()
    return text


def _parse_path(text: str) -> Path:
    """Read a path."""
    if "\0" in text:
        raise ValueError
    return Path(_parse_text(text))


def _accept_date(value: object) -> date:
    """Let a date pass; a datetime would lose its time."""
    if not isinstance(value, date) or isinstance(value, datetime):
        raise TypeError
    return value


def _accept_json(value: object) -> object:
    """Let a value pass that JSON can hold."""
    json.dumps(value)
    return value


_JSON = _simple("JSON", "JSON", json.loads, _accept_json)
_SIMPLE: dict[Any, ValueType] = {
    str: _simple("str", "text", _parse_text, _instance_of((), str)),
    int: _simple("int", "a whole number", int, _instance_of(numbers.Integral, int)),
    float: _simple("float", "a number", float, _instance_of(numbers.Real, float)),
    bool: _simple("bool", "true or false", _parse_bool, _accept_bool),
    date: _simple("date", "a date such as 2026-01-31", date.fromisoformat, _accept_date),
    datetime: _simple(
        "datetime",
        "a time such as 2026-01-31T09:45:00",
        datetime.fromisoformat,
        _instance_of(datetime, lambda value: value),
    ),
    Path: _simple("Path", "a path", _parse_path, _instance_of(os.PathLike, Path)),
    JSONType: _JSON,
    Any: _JSON,
}


def _literal(options: tuple[Any, ...]) -> ValueType:
    """Return the type of a few values."""
    by_text = {to_text(option): option for option in options}
    form = f"one of {', '.join(by_text)}"

    def parse(text: str) -> Any:
        if text not in by_text:
            _refuse(text, form)
        return by_text[text]

    def convert(value: object) -> Any:
        for option in options:
            if type(option) is type(value) and option == value:
                return option
        if isinstance(value, str):
            return parse(value)
        return _refuse(value, form)

    return ValueType(" | ".join(map(repr, options)), form, parse, convert, tuple(by_text))


def _enum(cls: type[Enum]) -> ValueType:
    """Return the type of an enumeration: its members by name, or by value where no name fits."""
    names = tuple(member.name for member in cls)
    form = f"one of {', '.join(names)}"

    def parse(text: str) -> Enum:
        if text in cls.__members__:
            return cls.__members__[text]
        of_value = [member for member in cls if str(member.value) == text]
        return of_value[0] if len(of_value) == 1 else _refuse(text, form)

    def convert(value: object) -> Enum:
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return parse(value)
        try:
            return cls(value)
        except (TypeError, ValueError):
            _refuse(value, form)

    return ValueType(cls.__name__, form, parse, convert, names)


# --------------------------------------------------------------------------------------------------- types with parts


def _optional(inner: ValueType) -> ValueType:
    """Return the type that also allows None, written ``null`` where that is not a text like any other."""

    def parse(text: str) -> Any:
        return None if text == "null" and inner.name != "str" else inner.parse(text)

    def convert(value: object) -> Any:
        if isinstance(value, str):
            return parse(value)
        return None if value is None else inner.convert(value)

    return ValueType(f"{inner.name} | None", inner.form, parse, convert, inner.choices)


def _sequence(cls: type, item: ValueType | None, separator: str) -> ValueType:
    """Return the type of a list or tuple; without a type of its items they are any JSON."""
    parts = cls.__name__ if item is None else f"{cls.__name__}[{item.name}{', ...' if cls is tuple else ''}]"
    form = "a JSON list" if item is None else f"a JSON list, or items separated by {separator!r}"

    def parse(text: str) -> Any:
        stripped = text.strip()
        if item is None or stripped.startswith("["):
            return convert(_load(text, list, form))
        words = [word.strip() for word in text.split(separator)] if stripped else []
        return cls(_each(item.parse, enumerate(words), "item"))

    def convert(value: object) -> Any:
        if isinstance(value, str):
            return parse(value)
        if not isinstance(value, Sequence) or isinstance(value, (bytes, bytearray, memoryview)):
            _refuse(value, form)
        return cls(value if item is None else _each(item.convert, enumerate(value), "item"))

    return ValueType(parts, form, parse, convert)


def _mapping(key: ValueType | None, item: ValueType | None) -> ValueType:
    """Return the type of a dictionary; without types of its parts it is any JSON object."""
    form = "a JSON object"

    def parse(text: str) -> Any:
        return convert(_load(text, dict, form))

    def convert(value: object) -> Any:
        if isinstance(value, str):
            return parse(value)
        if not isinstance(value, Mapping):
            _refuse(value, form)
        if key is None or item is None:
            return dict(value)
        items = _each(item.convert, value.items(), "item")
        return dict(zip(_each(key.convert, enumerate(value), "key"), items, strict=True))

    name = "dict" if key is None or item is None else f"dict[{key.name}, {item.name}]"
    return ValueType(name, form, parse, convert)


_SIMPLE |= {list: _sequence(list, None, ","), tuple: _sequence(tuple, None, ","), dict: _mapping(None, None)}


@attrs.frozen(eq=False, repr=False)
class _Field:
    """A field of an attrs class or dataclass."""

    name: str
    alias: str
    hint: Any
    required: bool


def _fields(cls: type) -> list[_Field] | None:
    """Return the fields that a class's constructor takes; None for other classes."""
    if attrs.has(cls):
        hints = _hints(cls)
        return [
            _Field(f.name, f.alias or f.name, hints.get(f.name, Any), f.default is attrs.NOTHING)
            for f in attrs.fields(cls)
            if f.init
        ]
    import dataclasses

    if dataclasses.is_dataclass(cls):
        hints = _hints(cls)
        missing = dataclasses.MISSING
        return [
            _Field(f.name, f.name, hints.get(f.name, Any), f.default is missing and f.default_factory is missing)
            for f in dataclasses.fields(cls)
            if f.init
        ]
    return None


def _hints(cls: type) -> dict[str, Any]:
    """Return a class's annotations; none where one of them names what can't be found."""
    try:
        return typing.get_type_hints(cls)
    except (NameError, TypeError):
        return {}


def _structure(cls: type) -> ValueType:
    """Return the type of an attrs, dataclass or pydantic class, given as a JSON object or a mapping of its fields."""
    validate: _Convert = getattr(cls, "model_validate", None) or (lambda value: _build(cls, value))
    names = getattr(cls, "model_fields", None) or [field.alias for field in _fields(cls) or ()]
    form = f"a JSON object with {', '.join(names)}"

    def parse(text: str) -> Any:
        return convert(_load(text, dict, form))

    def convert(value: object) -> Any:
        if isinstance(value, str):
            return parse(value)
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            _refuse(value, form)
        try:
            return validate(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{cls.__name__}: {_reason(error)}") from error

    return ValueType(cls.__name__, form, parse, convert)


def _build(cls: type, given: Mapping[str, object]) -> object:
    """Make an instance of an attrs class or dataclass; its own checks run in its constructor."""
    fields = {field.alias: field for field in _fields(cls) or ()}
    unknown = next((name for name in given if name not in fields), None)
    if unknown is not None:
        close = closest(str(unknown), fields)
        raise ValueError(f"there is no field {shown(unknown)}{f', did you mean {close!r}?' if close else ''}")
    missing = [alias for alias, field in fields.items() if field.required and alias not in given]
    if missing:
        raise ValueError(f"the field {missing[0]!r} is missing")
    values = {}
    for alias, value in given.items():
        try:
            field_type = value_type(fields[alias].hint)
        except TypeError:
            values[alias] = value  # the constructor decides about a type that is none of a parameter's
            continue
        values.update(zip([alias], _each(field_type.convert, [(alias, value)], "field"), strict=True))
    return cls(**values)


def _reason(error: Exception) -> str:
    """Return what a class said about its fields, on one line."""
    if hasattr(error, "errors"):  # pydantic's own message has a line and a web address for each
        return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
    return str(error.args[0]) if error.args else type(error).__name__  # attrs adds the attribute and the value as more


def _each(convert: _Convert, items: Any, what: str) -> list[Any]:
    """Convert named items; the message of one that is refused says which."""
    converted = []
    for name, item in items:
        try:
            converted.append(convert(item))
        except ValueError as error:
            raise ValueError(f"{what} {name}: {error}") from error
    return converted


def _load(text: str, cls: type, form: str) -> Any:
    """Return the list or object that a text holds as JSON."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        _refuse(text, form)
    return data if isinstance(data, cls) else _refuse(text, form)


def _hint_name(hint: Any) -> str:
    """Return a type as it is written."""
    return hint.__name__ if isinstance(hint, type) and typing.get_origin(hint) is None else str(hint)
