"""Journals that no driver wrote: well-formed lines with changed content, and lines that are torn, doubled or mixed."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any, Final

from mlp_reliability.hostile.texts import chance, text, value

if TYPE_CHECKING:
    import random
    from pathlib import Path


def line_of(data: Any) -> bytes:
    """Return JSON data as a line of a journal, with the right checksum."""
    content = data if isinstance(data, bytes) else _dumped(data)
    return b"%08x %s\n" % (zlib.crc32(content), content)


def _dumped(data: Any) -> bytes:
    """Return data as JSON, however deep it is."""
    try:
        return json.dumps(data).encode()
    except RecursionError:
        return b"[" * 50_000 + b"]" * 50_000


def changed(journal: bytes, rng: random.Random, canary: Path) -> bytes:
    """Return a journal with one to three changes."""
    lines = journal.splitlines(keepends=True)
    for _ in range(rng.choice((1, 1, 2, 3))):
        way = rng.random()
        place = rng.randrange(len(lines)) if chance(rng, 0.6) else 0
        if way < 0.8:  # noqa: PLR2004 # most changes keep the form
            try:
                data = json.loads(lines[place][9:])
            except (ValueError, RecursionError):
                continue
            lines[place] = line_of(_with_change(data, rng, canary))
        elif way < 0.85:  # noqa: PLR2004 # as above
            lines.insert(place, lines[rng.randrange(len(lines))])
        elif way < 0.9 and len(lines) > 1:  # noqa: PLR2004 # as above
            del lines[place]
        elif way < 0.95:  # noqa: PLR2004 # as above
            lines[place] = line_of(rng.choice(_ODD))
        else:
            content = bytearray(b"".join(lines))
            for _ in range(rng.randrange(1, 9)):
                content[rng.randrange(len(content))] = rng.randrange(256)
            return bytes(content)
    return b"".join(lines)


_ODD = (
    *(
        b"",
        b"{}",
        b"[]",
        b"null",
        b"1",
        b'"x"',
        b'{"n":0}',
        b'{"n":0,"kind":"RunBegan"}',
        b'{"n":0,"kind":[],"data":{}}',
    ),
    *(
        b'{"n":"0","kind":"RunBegan","data":{}}',
        b'{"n":0,"kind":"RunBegan","data":[]}',
        b'{"n":1e999,"kind":"x","data":{}}',
    ),
    *(
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 100_000,
        b'"' + b"\\u0000" * 1000 + b'"',
        b"\xff\xfe",
        b"{" + b" " * 10**6,
    ),
)


_FREE: Final = frozenset(
    (
        *("username", "namespace", "tags", "host", "command", "metadata", "parameter_texts", "message", "traceback"),
        *("type", "launcher", "text", "name", "distribution", "version", "variable", "description", "doc", "origin"),
    )
)
"""Fields that may have any text."""


def with_texts(journal: bytes, rng: random.Random, canary: Path) -> bytes:
    """Return a journal in which most free texts are hostile ones, and nothing else is changed."""
    lines = []
    for line in journal.splitlines():
        data = json.loads(line[9:])
        _retell(data["data"], rng, canary, is_free=False)
        if data["kind"] == "AttemptFinished":
            failure = {"kind": "exception", "message": text(rng, canary), "traceback": text(rng, canary)}
            data["data"]["outcome"] |= {"status": "failed", "failure": failure, "host": text(rng, canary)}
        lines.append(line_of(data))
    return b"".join(lines)


def _retell(data: Any, rng: random.Random, canary: Path, *, is_free: bool) -> None:
    """Replace texts below data."""
    items = list(data.items()) if isinstance(data, dict) else list(enumerate(data))
    for key, item in items:
        free = is_free or (key in _FREE and key != "name")
        if isinstance(item, dict | list):
            _retell(item, rng, canary, is_free=free)
        elif isinstance(item, str) and free:
            data[key] = text(rng, canary)


def _with_change(data: Any, rng: random.Random, canary: Path) -> Any:
    """Return data with one value in it, at any depth, replaced, removed, added or renamed."""
    holder, key = _place(data, rng)
    if holder is None:
        return value(rng, canary)
    way = rng.random()
    current = holder[key]
    if way < 0.35 and isinstance(current, str):  # noqa: PLR2004 # texts are what is used most
        holder[key] = text(rng, canary) if chance(rng, 0.7) else current + text(rng, canary)
    elif way < 0.75:  # noqa: PLR2004 # as above
        holder[key] = value(rng, canary)
    elif way < 0.85:  # noqa: PLR2004 # as above
        del holder[key]
    elif isinstance(holder, dict):
        holder[text(rng, canary)] = holder.pop(key)
    else:
        holder.append(current)
    return data


def _place(data: Any, rng: random.Random) -> tuple[Any, Any]:
    """Return a container in data, and a key of it."""
    holder: Any = None
    key: Any = None
    current = data
    while isinstance(current, dict | list) and current:
        holder = current
        key = rng.choice(list(current)) if isinstance(current, dict) else rng.randrange(len(current))
        current = holder[key]
        if chance(rng, 0.1):
            break
    return holder, key
