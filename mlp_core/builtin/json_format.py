"""How plain values are stored: as JSON, which every language reads and nothing executes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mlp_hookspecs import ArtifactRef, Backend, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlp_hookspecs.handles import ArtifactSource, ArtifactTarget

_SCALARS = (bool, int, float, str, type(None))
_TYPES = ("builtins.NoneType", "builtins.bool", "builtins.dict", "builtins.float", "builtins.int", "builtins.list")


@hookimpl
def mlp_backends() -> Sequence[Backend]:
    """Declare the format."""
    summary = "None, bool, int, float, str, and flat lists and dicts of these, as JSON."
    return (Backend("format", "json", summary, types=(*_TYPES, "builtins.str")),)


@hookimpl
def mlp_persist_artifact(value: Any, target: ArtifactTarget) -> bool | None:
    """Write the value if JSON gives back exactly what it was; otherwise leave it to another format.

    Nested containers are left alone: two names for one inner list would come back as two lists. So are subclasses, and
    integers beyond what Python converts to text.
    """
    if not _is_plain(value):
        return None
    try:
        data = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    except ValueError:  # an integer too long for text, or a lone surrogate
        return None
    target.write([data])
    return True


@hookimpl
def mlp_load_artifact(ref: ArtifactRef, source: ArtifactSource) -> Any:  # noqa: ARG001 # the hook's signature
    """Read the value."""
    return json.loads(bytes(source.buffer()))


def _is_plain(value: Any) -> bool:
    """Tell whether JSON gives back exactly this value."""
    kind = type(value)
    if kind is list:
        return all(type(item) in _SCALARS for item in value)
    if kind is dict:
        return all(type(name) is str and type(item) in _SCALARS for name, item in value.items())
    return kind in _SCALARS
