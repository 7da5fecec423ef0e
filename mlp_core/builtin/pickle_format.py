"""How any Python value is stored: pickle protocol 5, with large buffers beside the stream, so that loading copies none.

Content: the magic text ``mlp-pickle-1`` and a line's end; a line with a JSON list of the buffers' sizes and, first, the
stream's size; the stream; each buffer, aligned to 64 bytes from the beginning of the content, so that a mapped array
is as well aligned as a fresh one. Classes of the flow's own file are named by the module that imports it, whatever
name it runs under; what has no importable home travels by value, through cloudpickle.
"""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

from mlp_hookspecs import ArtifactRef, Backend, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlp_hookspecs.handles import ArtifactSource, ArtifactTarget, Buffer

MAGIC = b"mlp-pickle-1\n"
ALIGNMENT = 64
_PADDING = bytes(ALIGNMENT)


@hookimpl
def mlp_backends() -> Sequence[Backend]:
    """Declare the format."""
    return (Backend("format", "pickle", "Any Python value, by pickle protocol 5.", types=("builtins.object",)),)


@hookimpl
def mlp_persist_artifact(value: Any, target: ArtifactTarget) -> bool:
    """Write the value."""
    buffers: list[pickle.PickleBuffer] = []
    stream = _dump(value, buffers)
    target.write(_chunks(stream, [buffer.raw() for buffer in buffers]))
    return True


@hookimpl
def mlp_load_artifact(ref: ArtifactRef, source: ArtifactSource) -> Any:  # noqa: ARG001 # the hook's signature
    """Read the value; its buffers are views of the source."""
    content = source.buffer()
    if bytes(content[: len(MAGIC)]) != MAGIC:
        raise ValueError("the content is not of this format: it does not begin with mlp-pickle-1")
    # The header is one short line: no need to copy more than its beginning to find its end.
    start = len(MAGIC)
    width = 256
    while (end := bytes(content[start : start + width]).find(b"\n")) < 0:
        if start + width >= len(content):
            raise ValueError("the content is not of this format: its header has no end")
        width *= 16
    stream_size, *sizes = json.loads(bytes(content[start : start + end]))
    position = start + end + 1
    stream = content[position : position + stream_size]
    position += stream_size
    buffers = []
    for size in sizes:
        position += -position % ALIGNMENT
        buffers.append(content[position : position + size])
        position += size
    return pickle.loads(stream, buffers=buffers)  # noqa: S301 # the one place that unpickles; the bytes were verified


def _dump(value: Any, buffers: list[pickle.PickleBuffer]) -> bytes:
    """Return the pickle stream: by the standard library where it can, by cloudpickle where it must."""
    try:
        stream = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    except (pickle.PicklingError, AttributeError, TypeError):
        stream = b""
    # A class or function of __main__ pickles by a name that no other process has; cloudpickle sends it by value.
    if stream and b"__main__" not in stream:
        return stream
    import cloudpickle

    buffers.clear()
    result: bytes = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return result


def _chunks(stream: bytes, buffers: Sequence[memoryview]) -> Iterator[Buffer]:
    """Yield the content's pieces."""
    header = MAGIC + json.dumps([len(stream), *(buffer.nbytes for buffer in buffers)]).encode() + b"\n"
    yield header
    yield stream
    position = len(header) + len(stream)
    for buffer in buffers:
        padding = -position % ALIGNMENT
        if padding:
            yield _PADDING[:padding]
        yield buffer
        position += padding + buffer.nbytes
