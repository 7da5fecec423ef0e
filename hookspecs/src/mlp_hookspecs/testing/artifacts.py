"""Where the kit's formats write to and read from: artifacts as plain files in a folder."""

from __future__ import annotations

import io
import json
import mmap
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mlp_hookspecs.handles import Buffer

_CONTENT: Final = "content"
_PARTS: Final = "parts"
_METADATA: Final = "metadata.json"


class MemoryTarget:
    """An `ArtifactTarget` that keeps one value in a folder.

    Parameters
    ----------
    folder : pathlib.Path
        An empty or absent folder.
    format : str
        The format's name.
    metadata : mapping of str to str, optional
        What was described before.

    Attributes
    ----------
    metadata : dict of str to str
        What the format described.
    """

    def __init__(self, folder: Path, format: str, metadata: Mapping[str, str] | None = None) -> None:  # noqa: A002 # the contract's word
        """Make the target."""
        self.format = format
        self.metadata = dict(metadata or {})
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._asked_for_path = False

    def write(self, chunks: Iterable[Buffer]) -> None:
        """Append the chunks."""
        with self.open() as file:
            for chunk in chunks:
                file.write(memoryview(chunk).cast("B") if not isinstance(chunk, bytes) else chunk)

    def open(self) -> IO[bytes]:
        """Return a file that appends."""
        assert not self._asked_for_path, "a format either writes or asks for a local path"
        return (self._folder / _CONTENT).open("ab")

    def local_path(self) -> Path:
        """Return a path where nothing is yet."""
        path = self._folder / _CONTENT
        assert not path.exists(), "a format either writes or asks for a local path"
        self._asked_for_path = True
        return path

    def part(self, name: str) -> MemoryTarget:
        """Return the target of a part."""
        assert name, "a part needs a name"
        assert "/" not in name, f"the name of a part, {name!r}, must not contain a slash"
        part = MemoryTarget(self._folder / _PARTS / name, self.format)
        part.metadata = self.metadata
        return part

    def describe(self, name: str, text: str) -> None:
        """Record metadata."""
        assert isinstance(name, str), "the name of a piece of metadata is text"
        assert isinstance(text, str), f"the metadata {name!r} must be text, not {type(text).__name__}"
        self.metadata[name] = text
        (self._folder / _METADATA).write_text(json.dumps(self.metadata))

    def content(self) -> dict[str, bytes]:
        """Return all that was written, by relative path, and the metadata."""
        found = {
            str(path.relative_to(self._folder)): path.read_bytes()
            for path in sorted(self._folder.rglob("*"))
            if path.is_file() and path.name != _METADATA
        }
        found[_METADATA] = json.dumps(self.metadata, sort_keys=True).encode()
        return found


class MemorySource:
    """An `ArtifactSource` that reads what a `MemoryTarget` kept.

    Parameters
    ----------
    folder : pathlib.Path
        The target's folder.
    """

    def __init__(self, folder: Path) -> None:
        """Make the source."""
        self._folder = folder

    def buffer(self) -> memoryview:
        """Return the content, mapped copy-on-write."""
        path = self._folder / _CONTENT
        if not path.exists() or not path.stat().st_size:
            return memoryview(bytearray())
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))

    def open(self) -> IO[bytes]:
        """Return a readable file."""
        path = self._folder / _CONTENT
        return path.open("rb") if path.exists() else io.BytesIO()

    def local_path(self) -> Path:
        """Return the file or folder."""
        return self._folder / _CONTENT

    def part(self, name: str) -> MemorySource:
        """Return the source of a part."""
        folder = self._folder / _PARTS / name
        if not folder.is_dir():
            raise KeyError(name)
        return MemorySource(folder)

    def metadata(self) -> Mapping[str, str]:
        """Return what the format described."""
        path = self._folder / _METADATA
        found: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        return found
