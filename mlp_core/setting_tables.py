"""Settings that are tables: how they are read, and which of their entries are secrets and go nowhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from mlp_hookspecs import frozen_map

_MASK: Final = "********"
_SECRET: Final = re.compile(
    r"(?:^|[^a-z0-9])(?:credentials?|key|pass|passphrase|passwd|password|sas|secrets?|(?:connection|conn)[^a-z0-9]?string|"
    r"tokens?)(?:$|[^a-z0-9])"
)
_PASSWORD: Final = re.compile("://[^/@]*:[^/@]*@")
"""A URL with a password."""

_CAPITAL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def is_secret_name(name: str) -> bool:
    """Tell whether the name of an entry says that its value is a secret.

    Examples
    --------
    >>> names = ("key", "aws_secret_access_key", "SessionToken", "keyword", "endpoint_url")
    >>> [name for name in names if is_secret_name(name)]
    ['key', 'aws_secret_access_key', 'SessionToken']
    """
    return _SECRET.search(_CAPITAL.sub("_", name).lower()) is not None


def read(value: object) -> Mapping[str, Any] | None:
    """Return a frozen mapping, from JSON or as it is; None where the value is none or has what JSON has not."""
    import json

    try:
        data = json.loads(value) if isinstance(value, str) else json.loads(json.dumps(value))
        json.dumps(data, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError):
        return None
    return frozen_map(data) if isinstance(data, dict) else None


def nested(entries: Mapping[str, object], name: str) -> dict[str, Any]:
    """Return the table of a name, from its entries by their dotted names.

    Examples
    --------
    >>> nested({"tape.drives": 2, "tape.robot.arm": "left"}, "tape")
    {'drives': 2, 'robot': {'arm': 'left'}}
    """
    table: dict[str, Any] = {}
    for dotted, value in entries.items():
        *folders, last = dotted.removeprefix(f"{name}.").split(".")
        inner = table
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[last] = value
    return table


def secrets(table: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the entries that are secrets, at any depth: texts whose names say so."""
    return tuple(name for name, value in _leaves(table) if _is_secret(name, value))


def secret_values(table: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the values of the entries that are secrets, at any depth."""
    return tuple(str(value) for name, value in _leaves(table) if _is_secret(name, value))


def portable(value: Any) -> Any:
    """Return a value as JSON data that may be recorded, a table without its secrets."""
    if isinstance(value, Mapping):
        return {key: portable(item) for key, item in value.items() if not _is_secret(key, item)}
    return [portable(item) for item in value] if isinstance(value, tuple | list) else value


def shown_entries(table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the entries of a table for people, by their dotted names, secrets masked."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", text) for inner, text in shown_entries(value))
        else:
            yield name, _MASK if _is_secret(name, value) else str(portable(value))


def with_secrets(table: Mapping[str, Any] | None, own: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return a table that came from elsewhere without its secrets, with those that are known here."""
    if table is None or own is None:
        return table
    found = dict(table)
    for name, value in own.items():
        if _is_secret(name, value):
            found[name] = value
        elif isinstance(value, Mapping):
            inner = with_secrets(table.get(name, {}), value)
            if inner:
                found[name] = inner
    return frozen_map(found)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, object]]:
    """Yield all values below a value that are no containers, with the names of the entries that they lie in."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, key)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _leaves(item, name)
    else:
        yield name, value


def _is_secret(name: str, value: object) -> bool:
    """Tell whether an entry is a secret."""
    return isinstance(value, str) and (is_secret_name(name) or _PASSWORD.search(value) is not None)
