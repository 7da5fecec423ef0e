"""How any Python value is stored: pickle protocol 5, with large buffers beside the stream, so that loading copies none.

Content: the magic text ``mlp-pickle-1`` and a line's end; a line with a JSON list of the buffers' sizes and, first, the
stream's size, before which stands a version of Python where the stream holds bytecode; the stream; each buffer, aligned
to 64 bytes from the beginning of the content, so that a mapped array is as well aligned as a fresh one. Classes of the
flow's own file are named by the module that imports it, whatever name it runs under; what has no importable home goes
by value, through cloudpickle: a function as bytecode, which another minor version of Python may crash of.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import sys
from typing import TYPE_CHECKING, Any, Final

from mlp_hookspecs import ArtifactRef, Backend, hookimpl

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from mlp_hookspecs.handles import ArtifactSource, ArtifactTarget, Buffer, Settings

MAGIC = b"mlp-pickle-1\n"
ALIGNMENT = 64
_PADDING = bytes(ALIGNMENT)

_VERSION: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
_MINOR: Final = re.compile(r"\d{1,2}\.\d{1,3}")
_CLOUDPICKLE: Final = b"cloudpickle"
_BYTECODE: Final = b"CodeType"
"""What cloudpickle names where it stores code; data that has both texts is bound to a version without need."""

_PLAIN: Final = frozenset(
    (
        *("builtins.complex", "builtins.range", "builtins.slice", "collections.OrderedDict", "decimal.Decimal"),
        *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
        *("numpy.dtype", "numpy.ndarray", "numpy._core.multiarray._reconstruct", "numpy._core.multiarray.scalar"),
        *("numpy._core.numeric._frombuffer", "numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar"),
        *("numpy.core.numeric._frombuffer", "uuid.UUID"),
    )
)
"""What a stream may always name: what makes data of data, and no more of it than the stream has."""

_EXACT_ONLY: Final = frozenset((*sys.stdlib_module_names, "cloudpickle", "dill", "joblib", "pluggy", "mlp_core"))
"""Packages that are never listed as a whole: something in them runs what it is given."""


@hookimpl
def mlp_backends() -> Sequence[Backend]:
    """Declare the format."""
    summary = "Any Python value, by pickle protocol 5."
    return (Backend("format", "pickle", summary, types=("builtins.object",), runs_code=True),)


@hookimpl
def mlp_persist_artifact(value: Any, target: ArtifactTarget) -> bool:
    """Write the value."""
    buffers: list[pickle.PickleBuffer] = []
    stream = _dump(value, buffers)
    python = _VERSION if _BYTECODE in stream and _CLOUDPICKLE in stream else ""
    target.write(_chunks(stream, [buffer.raw() for buffer in buffers], python))
    return True


@hookimpl
def mlp_load_artifact(ref: ArtifactRef, source: ArtifactSource, settings: Settings) -> Any:  # noqa: ARG001 # the hook's signature
    """Read the value; its buffers are views of the source."""
    content = source.buffer()
    if bytes(content[: len(MAGIC)]) != MAGIC:
        raise ValueError("the content is not of this format: it does not begin with mlp-pickle-1")
    python, stream, buffers = _split(content)
    if python not in ("", _VERSION):
        raise pickle.UnpicklingError(
            f"it holds a function by value, as bytecode of Python {python}, which Python {_VERSION} cannot run: define"
            " the function in a module, or load it under the version that stored it"
        )
    if settings["storage.pickle"] == "allow":
        return pickle.loads(stream, buffers=buffers)  # noqa: S301 # the one place that unpickles; the bytes were verified
    return ListedUnpickler(stream, buffers, settings["storage.pickle_allowed"]).load()


def _split(content: memoryview) -> tuple[str, memoryview, list[memoryview]]:
    """Return the version that the stream is bound to, the stream, the buffers; ValueError for what is none of ours."""
    # The header is one short line: no need to copy more than its beginning to find its end.
    start = len(MAGIC)
    width = 256
    while (end := bytes(content[start : start + width]).find(b"\n")) < 0:
        if start + width >= len(content):
            raise ValueError("the content is not of this format: its header has no end")
        width *= 16
    sizes = json.loads(bytes(content[start : start + end]))
    python = ""
    if isinstance(sizes, list) and sizes and isinstance(sizes[0], str) and _MINOR.fullmatch(sizes[0]):
        python, *sizes = sizes
    if not isinstance(sizes, list) or not sizes or not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError("the content is not of this format: its header is no list of sizes")
    position = start + end + 1
    parts = []
    for number, size in enumerate(sizes):
        if number:
            position += -position % ALIGNMENT
        parts.append(content[position : position + size])
        position += size
    if position > len(content):
        raise ValueError("the content is not of this format: it ends too early")
    return python, parts[0], parts[1:]


class ListedUnpickler(pickle.Unpickler):
    """Unpickles what names nothing but plain data and listed classes and functions.

    Parameters
    ----------
    stream : bytes-like
        The stream.
    buffers : iterable of bytes-like
        Its buffers.
    allowed : collection of str
        Dotted names: of a class or function, or of a package or module for all classes that it defines itself.
        Packages of the standard library, and those that exist to run code, are not allowed as a whole.
    """

    def __init__(self, stream: Buffer, buffers: Iterable[Buffer], allowed: Collection[str]) -> None:
        """Prepare."""
        super().__init__(io.BytesIO(stream), buffers=buffers)
        self._allowed = frozenset(allowed)

    def find_class(self, module: str, name: str, /) -> Any:
        """Return what a stream names; UnpicklingError where that is not allowed."""
        dotted = f"{module}.{name}"
        if dotted in _PLAIN or dotted in self._allowed:
            return super().find_class(module, name)
        if not self._has_listed_parent(dotted, module):
            raise _refused(dotted)
        found = super().find_class(module, name)
        # A module also has the names that it imported, and an attribute of an attribute may lead anywhere.
        home = getattr(found, "__module__", None)
        if not isinstance(found, type) or found.__qualname__ != name or not isinstance(home, str):
            raise _refused(dotted)
        if not self._has_listed_parent(f"{home}.{name}", home):
            raise _refused(f"{home}.{name}, by the name {dotted}")
        return found

    def _has_listed_parent(self, dotted: str, module: str) -> bool:
        """Tell whether a package, module or class around a name is listed."""
        if module.partition(".")[0] in _EXACT_ONLY:
            return False
        parts = dotted.split(".")
        return any(".".join(parts[:length]) in self._allowed for length in range(1, len(parts)))


def _refused(dotted: str) -> pickle.UnpicklingError:
    """Return the error of a name that is not allowed."""
    return pickle.UnpicklingError(
        f"it names {dotted[:200]!a}, and the setting storage.pickle_allowed does not list that"
    )


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


def _chunks(stream: bytes, buffers: Sequence[memoryview], python: str) -> Iterator[Buffer]:
    """Yield the content's pieces."""
    sizes = [len(stream), *(buffer.nbytes for buffer in buffers)]
    header = MAGIC + json.dumps([python, *sizes] if python else sizes).encode() + b"\n"
    yield header
    yield stream
    position = len(header) + len(stream)
    for buffer in buffers:
        padding = -position % ALIGNMENT
        if padding:
            yield _PADDING[:padding]
        yield buffer
        position += padding + buffer.nbytes
