"""Where a format writes one value: content, a local file or folder, or several named parts."""

from __future__ import annotations

import json
import os
import pickle
from typing import IO, TYPE_CHECKING, Protocol, cast

from mlp_core import names
from mlp_core.errors import ArtifactError
from mlp_core.store.content import Content, ContentFile, hash_file, sha256
from mlp_core.store.faults import translated
from mlp_hookspecs.types import ArtifactPart, ArtifactRef

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from mlp_hookspecs.handles import Buffer, ObjectStore


class BlobSink(Protocol):
    """Where a target's files go."""

    @property
    def objects(self) -> ObjectStore:
        """The store."""

    @property
    def inline_bytes(self) -> int:
        """Up to how many bytes content travels in the reference."""

    def add(self, staged: Path, digest: str, size: int) -> None:
        """Take a hashed file in under its digest; durable after `sync`."""

    def sync(self) -> None:
        """Make durable what was added."""


class BlobTarget:
    """Where a format writes one value.

    Parameters
    ----------
    blobs : BlobSink
        Where it goes.
    format_name : str
        The format that was chosen.
    part_of : BlobTarget or None
        The value that this is a part of.
    name : str
        The part's name.
    """

    def __init__(self, blobs: BlobSink, format_name: str, part_of: BlobTarget | None = None, name: str = "") -> None:
        """Make the target."""
        self._blobs = blobs
        self._format = format_name
        self._whole = part_of or self
        self._name = name
        self._content: Content | None = None
        self._path: Path | None = None
        self._open_files: list[ContentFile] = []
        # The whole's own:
        self._parts: dict[str, BlobTarget] = {}
        self._metadata: dict[str, str] = {}

    @property
    def format(self) -> str:
        """Name of the format that was chosen."""
        return self._format

    def write(self, chunks: Iterable[Buffer]) -> None:
        """Append buffers to the content."""
        content = self._appended()
        for chunk in chunks:
            content.write(pickle.PickleBuffer(chunk).raw())

    def open(self) -> IO[bytes]:
        """Return a writable file that appends to the content."""
        file = ContentFile(self._appended())
        self._open_files.append(file)
        return cast("IO[bytes]", file)

    def local_path(self) -> Path:
        """Return the path of an absent file or folder for the encoder to make."""
        if self._content is not None:
            raise ArtifactError("an encoder either writes or makes a local file, not both")
        if self._path is None:
            folder = self._blobs.objects.staging() / os.urandom(8).hex()
            with translated(str(folder)):
                folder.mkdir(mode=0o700)
            self._path = folder / "content"
        return self._path

    def part(self, name: str) -> BlobTarget:
        """Return the target of a named part; asked for again, the same."""
        full = f"{self._name}/{name}" if self._name else name
        check_part(full)
        parts = self._whole._parts  # noqa: SLF001 # the whole's, of the same class
        if full not in parts:
            parts[full] = BlobTarget(self._blobs, self._format, self._whole, full)
        return parts[full]

    def describe(self, name: str, text: str) -> None:
        """Record metadata."""
        self._whole._metadata[name] = text  # noqa: SLF001 # as above

    def finish(self, type_name: str, *, sync: bool = True) -> ArtifactRef:
        """Complete the value.

        Parameters
        ----------
        type_name : str
            Dotted name of the value's type.
        sync : bool
            Whether it is durable when this returns; otherwise after `Blobs.sync`.

        Returns
        -------
        ArtifactRef
            The reference.
        """
        room = self._blobs.inline_bytes
        parts: list[ArtifactPart] = []
        for target in (self, *self._parts.values()):
            for part in target._finished(room):  # noqa: SLF001 # of the same class
                parts.append(part)
                room -= len(part.data or b"")
        only = parts[0] if len(parts) == 1 and not parts[0].name else None
        if len({part.name for part in parts}) < len(parts):
            raise ArtifactError(f"the format {self._format} gave one name to two parts")
        if sync:
            self._blobs.sync()
        if only is not None:
            return ArtifactRef(self._format, only.digest, only.size, type_name, only.data, (), self._metadata)
        digest = manifest_digest(parts)
        size = sum(part.size for part in parts)
        return ArtifactRef(self._format, digest, size, type_name, None, tuple(parts), self._metadata)

    def discard(self) -> None:
        """Drop what was written, where the value turned out not to be storable; harmless at any time."""
        for target in (self, *self._parts.values()):
            target._drop()  # noqa: SLF001 # of the same class

    def _drop(self) -> None:
        """Drop what was written to this target alone."""
        if self._content is not None:
            self._content.discard()
        if self._path is not None:
            import shutil

            shutil.rmtree(self._path.parent, ignore_errors=True)

    def _appended(self) -> Content:
        """Return the content to append to."""
        if self._path is not None:
            raise ArtifactError("an encoder either writes or makes a local file, not both")
        if self._content is None:
            self._content = Content(self._blobs.objects.staging)
        return self._content

    def _finished(self, room: int) -> list[ArtifactPart]:
        """Complete this target alone, and return its files: one, several for a folder, none for a whole of parts."""
        for file in self._open_files:
            if not file.closed:
                raise ArtifactError(f"the format {self._format} did not close the file it wrote to")
        if self._path is not None:
            return self._finished_path(self._path, room)
        if self._content is None:
            if self._has_parts():
                return []
            self._content = Content(self._blobs.objects.staging)
        size = self._content.size
        digest, held = self._content.finish(room)
        if isinstance(held, bytes):
            return [ArtifactPart(self._name, digest, size, held)]
        self._blobs.add(held, digest, size)
        return [ArtifactPart(self._name, digest, size)]

    def _has_parts(self) -> bool:
        """Tell whether there are parts below this target."""
        inside = self._name + "/" if self._name else ""
        return any(name.startswith(inside) for name in self._whole._parts)  # noqa: SLF001 # of the same class

    def _finished_path(self, path: Path, room: int) -> list[ArtifactPart]:
        """Take in the file or folder that the encoder made."""
        import shutil

        if path.is_file():
            files = [(self._name, path)]
        elif path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.is_symlink() or not file.is_dir())
            files = [("/".join(filter(None, (self._name, *file.relative_to(path).parts))), file) for file in found]
        else:
            files = []
        if not files:
            raise ArtifactError(f"the format {self._format} made no file at the path it asked for")
        parts = []
        for name, file in files:
            if name:
                check_part(name)
            parts.append(self._taken_in(name, file, room))
            room -= len(parts[-1].data or b"")
        shutil.rmtree(path.parent, ignore_errors=True)
        return parts

    def _taken_in(self, name: str, file: Path, room: int) -> ArtifactPart:
        """Take in one local file."""
        with translated(str(file)):
            status = file.lstat()
            if not file.is_file():
                raise ArtifactError(f"{name or file.name} is no regular file, so it can't be stored")
            if file.is_symlink() or status.st_nlink > 1:
                # Somebody else's file: what is stored must not change when they write to theirs.
                import shutil

                copied = file.with_name(file.name + os.urandom(4).hex())
                shutil.copyfile(file, copied)
                file = copied
            digest, size = hash_file(file)
            data = file.read_bytes() if size <= room else None
        if data is None:
            self._blobs.add(file, digest, size)
        return ArtifactPart(name, digest, size, data)


def manifest_digest(parts: Sequence[ArtifactPart]) -> str:
    """Return the digest of a value in several parts: that of the JSON list of their names, digests and sizes."""
    text = json.dumps([[part.name, part.digest, part.size] for part in parts], separators=(",", ":"))
    return sha256(text.encode())


def check_part(name: str) -> None:
    """Refuse a part's name that is no relative path without tricks: it becomes a file's name when it is read."""
    pieces = name.split("/")
    if any(piece in ("", ".", "..") or "\0" in piece or "\\" in piece for piece in pieces) or len(name) > 1024:  # noqa: PLR2004 # within every system's limit of a path
        raise ArtifactError(f"{names.shown(name)} is refused as a part's name: it has to be a plain relative path")
