"""How values become artifacts and come back: formats on one side, blobs on the other."""

from __future__ import annotations

import hashlib
import io
import pickle
from typing import IO, TYPE_CHECKING, Any, Self

from mlp_core.artifacts import type_name
from mlp_core.errors import ArtifactError, MlpError
from mlp_core.names import shown
from mlp_hookspecs import ArtifactRef

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from mlp_core.hooks import Hooks
    from mlp_core.store import Store
    from mlp_core.store.blobs import Blobs
    from mlp_hookspecs.handles import ArtifactTarget, Buffer


class Values:
    """Encodes and decodes artifacts.

    Parameters
    ----------
    hooks : Hooks
        Where the formats are.
    blobs : Blobs
        Where the bytes are.
    """

    def __init__(self, hooks: Hooks, blobs: Blobs) -> None:
        """Make the pair."""
        self._hooks = hooks
        self._blobs = blobs

    @classmethod
    def of(cls, hooks: Hooks, store: Store, settings: Mapping[str, Any]) -> Self:
        """Return what encodes and decodes the artifacts of a store, as settings say."""
        blobs = store.blobs(
            inline_bytes=settings["run.inline_bytes"],
            paranoid=settings["storage.verify"] == "always",
            cache_bytes=settings["storage.cache_bytes"],
        )
        return cls(hooks, blobs)

    def put(
        self,
        name: str,
        value: object,
        *,
        format: str | None = None,  # noqa: A002 # the word that users write
        known: ArtifactRef | None = None,
    ) -> ArtifactRef:
        """Store a value.

        Parameters
        ----------
        name : str
            The artifact's name, for messages.
        value : object
            The value.
        format : str, optional
            The format that the user chose; otherwise the most specific one that can hold the value.
        known : ArtifactRef, optional
            What the value was loaded from: if its bytes are still the same, nothing is written.

        Returns
        -------
        ArtifactRef
            The reference; it equals `known` where the value did not change.

        Raises
        ------
        ArtifactError
            Where no format can hold the value; the message names the artifact, its type and the reason.
        """
        if known is not None and self._unchanged(value, known):
            return known
        candidates = (format,) if format else self._hooks.format_candidates(type(value))
        for candidate in candidates:
            target = self._blobs.target(candidate)
            try:
                written = self._hooks.persist_artifact(candidate, value, target)
            except Exception as error:
                target.discard()
                if isinstance(error, MlpError) and not isinstance(error, ArtifactError):
                    raise
                raise _cannot_store(name, value, error) from error
            if written:
                return target.finish(type_name(value), sync=False)
            target.discard()
        if format:
            raise ArtifactError(
                f"artifact {name!r} of type {type_name(value)} cannot be stored in the format {format!r}",
                hint=f"leave the format out, or choose one that holds {type_name(value)}",
            )
        raise ArtifactError(f"artifact {name!r}: no format can hold a value of type {type_name(value)}")

    def put_small(self, value: object, limit: int) -> ArtifactRef | None:
        """Return a reference that holds the value itself; None where that takes more than `limit` bytes."""
        for candidate in self._hooks.format_candidates(type(value)):
            target = _SmallTarget(candidate, limit)
            try:
                written = self._hooks.persist_artifact(candidate, value, target)
            except Exception:  # noqa: BLE001 # too large, or not to be stored at all: the sequence itself will tell
                return None
            if written:
                data = bytes(target.data)
                digest = f"sha256-{hashlib.sha256(data).hexdigest()}"
                return ArtifactRef(candidate, digest, len(data), type_name(value), data)
        return None

    def put_bytes(self, content: bytes) -> ArtifactRef:
        """Store bytes as they are, under the format name ``bytes``."""
        target = self._blobs.target("bytes")
        target.write([content])
        return target.finish("bytes", sync=False)

    def get(self, ref: ArtifactRef, name: str = "") -> Any:
        """Load a value.

        Parameters
        ----------
        ref : ArtifactRef
            The value.
        name : str
            The artifact's name, for messages.

        Raises
        ------
        StoreDamaged
            Where the bytes do not match their hash.
        ArtifactError
            Where the settings do not allow to load it.
        Exception
            Whatever its format raises where it cannot decode them.
        """
        source = self._blobs.source(ref)
        if ref.format == "bytes":
            return bytes(source.buffer())
        try:
            return self._hooks.load_artifact(ref, source)
        except (ArtifactError, pickle.UnpicklingError) as error:
            raise _cannot_load(ref, name, error) from error

    def runs_code(self, ref: ArtifactRef) -> bool:
        """Tell whether loading a value may run what its content names, as unpickling does."""
        return ref.format != "bytes" and self._hooks.runs_code(ref.format)

    def sync(self) -> None:
        """Return when all that was stored survives a power cut."""
        self._blobs.sync()

    def _unchanged(self, value: object, known: ArtifactRef) -> bool:
        """Tell whether a value encodes to the bytes that it was loaded from, without writing them."""
        if known.parts or known.metadata:
            return False
        found = self._digest(value, known.format)
        if found is None or found == known.digest:
            return found is not None
        # The order of a set, and which of equal texts are one object, survive no second encoding: what counts is
        # whether the value encodes as one does that is loaded now.
        return found == self._digest(self.get(known), known.format)

    def _digest(self, value: object, format_name: str) -> str | None:
        """Return the digest that a value would have; None where it cannot be stored as one stream."""
        target = _HashTarget(format_name)
        try:
            written = self._hooks.persist_artifact(format_name, value, target)
        except Exception:  # noqa: BLE001 # a value that cannot be compared is stored again, and fails there if it must
            return None
        return f"sha256-{target.hash.hexdigest()}" if written else None


class _MemoryTarget:
    """A target that takes one stream of bytes and nothing else: no files, parts or metadata."""

    def __init__(self, format: str) -> None:  # noqa: A002 # the contract's word
        self.format = format

    def write(self, chunks: Iterable[Buffer]) -> None:
        """Take the chunks."""
        raise io.UnsupportedOperation(chunks)

    def open(self) -> IO[bytes]:
        """Return a file that hands over what was written when it is closed."""
        return _MemoryFile(self)

    def local_path(self) -> Path:
        """Refuse."""
        raise io.UnsupportedOperation

    def part(self, name: str) -> ArtifactTarget:
        """Refuse."""
        raise io.UnsupportedOperation(name)

    def describe(self, name: str, text: str) -> None:
        """Refuse."""
        raise io.UnsupportedOperation(name, text)


class _HashTarget(_MemoryTarget):
    """A target that keeps nothing but the hash."""

    def __init__(self, format: str) -> None:  # noqa: A002 # the contract's word
        super().__init__(format)
        self.hash = hashlib.sha256()

    def write(self, chunks: Iterable[Buffer]) -> None:
        """Hash the chunks."""
        for chunk in chunks:
            self.hash.update(chunk)


class _SmallTarget(_MemoryTarget):
    """A target that keeps the content, up to a limit."""

    def __init__(self, format: str, limit: int) -> None:  # noqa: A002 # the contract's word
        super().__init__(format)
        self.data = bytearray()
        self._limit = limit

    def write(self, chunks: Iterable[Buffer]) -> None:
        """Keep the chunks; OverflowError beyond the limit."""
        for chunk in chunks:
            if len(self.data) + memoryview(chunk).nbytes > self._limit:
                raise OverflowError(self._limit)
            self.data += memoryview(chunk).cast("B")


class _MemoryFile(io.BytesIO):
    """A file that hands its content to a target when closed."""

    def __init__(self, target: _MemoryTarget) -> None:
        super().__init__()
        self._target = target

    def close(self) -> None:
        """Hand over the content."""
        if not self.closed:
            self._target.write([self.getvalue()])
        super().close()


def _cannot_load(ref: ArtifactRef, name: str, error: Exception) -> ArtifactError:
    """Return the error for a value that is not loaded."""
    what = f"artifact {shown(name)}" if name else "a value"
    message = error.message if isinstance(error, ArtifactError) else str(error)
    hint = error.hint if isinstance(error, ArtifactError) else ""
    text = f"{what} of type {shown(ref.type)}, stored as {shown(ref.format)}, is not loaded: {message}"
    if not hint and "storage.pickle_allowed" in message:
        hint = "where you trust it, add that name to storage.pickle_allowed"
    return ArtifactError(text, hint=hint)


def _cannot_store(name: str, value: object, error: Exception) -> ArtifactError:
    """Return the error for a value that its format refused."""
    kind = type_name(value)
    hint = "keep it out of self, or store something that can be written: a path, a configuration, the data itself"
    reason = error.message if isinstance(error, ArtifactError) else error
    hint = (error.hint if isinstance(error, ArtifactError) else "") or hint
    failure = ArtifactError(f"artifact {name!r} of type {kind} cannot be stored: {reason}", hint=hint)
    for note in getattr(error, "__notes__", ()):
        failure.add_note(note)
    return failure
