"""Pickles that leave a trace where they are loaded, and how one gets into a run."""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
from typing import TYPE_CHECKING, Any, Final

from mlp_reliability.hostile.records import line_of
from mlp_reliability.hostile.texts import chance

if TYPE_CHECKING:
    import random
    from pathlib import Path

_MAGIC: Final = b"mlp-pickle-1\n"
_CALLS: Final = (
    ("os", "mkdir"),
    ("posix", "mkdir"),
    ("os", "path.os.mkdir"),
    ("pathlib", "Path.mkdir"),
    ("mlp_core.cli.text", "sys.modules"),
    ("datetime", "sys.modules"),
    ("builtins", "open"),
    ("builtins", "eval"),
    ("subprocess", "check_call"),
    ("cloudpickle.cloudpickle", "subimport"),
    ("numpy", "memmap"),
    ("collections", "_sys.exit"),
)


def stream(rng: random.Random, canary: Path) -> bytes:
    """Return a stream that makes something in the canary's folder when it is loaded, if it gets that far."""
    module, name = rng.choice(_CALLS)
    target = str(canary / "executed")
    argument = f"__import__('os').mkdir({target!r})" if name == "eval" else target
    arguments: tuple[Any, ...] = (["mkdir", target],) if name == "check_call" else (argument,)
    if name == "open":
        arguments = (target, "w")
    texts = b"".join(pickle.SHORT_BINUNICODE + bytes([len(text)]) + text.encode() for text in (module, name))
    made = pickle.dumps(arguments, protocol=2)[2:-1]
    return pickle.PROTO + b"\x05" + texts + pickle.STACK_GLOBAL + made + pickle.REDUCE + pickle.STOP


def content(code: bytes) -> bytes:
    """Return what the format pickle stores for a stream."""
    return _MAGIC + json.dumps([len(code)]).encode() + b"\n" + code


def reference(code: bytes) -> dict[str, Any]:
    """Return a reference with a stream in it, as a journal has it."""
    data = content(code)
    digest = f"sha256-{hashlib.sha256(data).hexdigest()}"
    encoded = base64.b64encode(data).decode()
    return {"format": "pickle", "digest": digest, "size": len(data), "type": "builtins.dict", "data": encoded}


def plant(journal: Path, code: bytes, rng: random.Random) -> str:
    """Put a stream wherever a journal has a reference, under a known name too; return the path of one of them."""
    lines = []
    for line in journal.read_bytes().splitlines():
        data = json.loads(line[9:])
        _replace(data, reference(code), rng)
        if data["kind"] == "RunBegan":
            data["data"]["code"]["pickled"] = base64.b64encode(code).decode()
        if data["kind"] == "AttemptFinished":
            data["data"]["outcome"].setdefault("assigned", {})["planted"] = reference(code)
        lines.append(line_of(data))
    journal.write_bytes(b"".join(lines))
    return "start/0/planted"


def _replace(data: Any, planted: dict[str, Any], rng: random.Random) -> None:
    """Replace most references in data."""
    for key, value in list(data.items()) if isinstance(data, dict) else list(enumerate(data)):
        if isinstance(value, dict) and "digest" in value and "format" in value and value["format"] != "bytes":
            if chance(rng, 0.8):
                data[key] = planted
        elif isinstance(value, dict | list):
            _replace(value, planted, rng)
