"""How an artifact's bytes get in and out: hashed while they are written, verified before they are read.

Small content travels in the reference; the rest is a blob, named by the hash of its content and never changed.
"""

from __future__ import annotations

import functools
import io
import mmap
import os
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from mlp_core.errors import ArtifactError, StoreDamaged, StoreError
from mlp_core.store import layout
from mlp_core.store.cache import DEFAULT_CACHE_BYTES, BlobCache, damaged
from mlp_core.store.content import hash_file, sha256
from mlp_core.store.faults import translated
from mlp_core.store.target import BlobTarget, check_part, manifest_digest
from mlp_core.store.verified import VerifiedFiles
from mlp_hookspecs.types import ArtifactPart

if TYPE_CHECKING:
    from mlp_hookspecs.handles import ObjectStore
    from mlp_hookspecs.types import ArtifactRef

DEFAULT_INLINE_BYTES: Final = 8192
"""Up to how many bytes content travels in the reference unless a setting says otherwise."""

_NEW_SECONDS: Final = 3600
"""For how long nobody removes a blob that no run refers to yet."""

_DOUBTFUL: Final = 2**31 - 2
"""The time of a file that may not be durable, though it looks as if it were: late, so that it is not cleared away."""


class Blobs:
    """The artifacts' bytes of one store, as one process reads and writes them.

    Parameters
    ----------
    objects : ObjectStore
        The store.
    inline_bytes : int
        Up to how many bytes content travels in the reference.
    paranoid : bool
        Whether every read verifies, even of a file that was verified before.
    verified : VerifiedFiles or None
        What is known to be intact on this host; by default the user's cache.
    cache_bytes : int
        How many bytes of blobs from elsewhere the user's cache on this host may hold; 0 for none.
    """

    def __init__(
        self,
        objects: ObjectStore,
        *,
        inline_bytes: int = DEFAULT_INLINE_BYTES,
        paranoid: bool = False,
        verified: VerifiedFiles | None = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        """Make the access; nothing is touched."""
        self.objects = objects
        self.inline_bytes = inline_bytes
        self._paranoid = paranoid
        self._verified = verified or VerifiedFiles.for_store(objects.url)
        self._cache_bytes = cache_bytes
        self._unsynced: set[str] = set()
        self._adopted: set[str] = set()

    @functools.cached_property
    def _cache(self) -> BlobCache | None:
        """The user's cache on this host, which stores with local files do without."""
        return BlobCache.for_user(self._cache_bytes, paranoid=self._paranoid) if self._cache_bytes else None

    def target(self, format_name: str) -> BlobTarget:
        """Return the target for one value."""
        return BlobTarget(self, format_name)

    def source(self, ref: ArtifactRef) -> BlobSource:
        """Return the source of one value; nothing is read yet."""
        return BlobSource(self, ref)

    def sync(self) -> None:
        """Make durable what was finished without sync. References are to be given out only after this returns.

        Raises
        ------
        StoreError
            Where that failed. What this process had added is marked as doubtful: the system may report a failure only
            once, so that another attempt has to write it anew rather than sync it again. It is not removed, for
            another process may have found it, made it durable and named it meanwhile.
        """
        keys = sorted(self._unsynced)
        if not keys:
            return
        try:
            self.objects.sync(keys)
        except StoreError:
            for doubtful in filter(None, map(self.objects.local_path, self._adopted)):
                with suppress(OSError):
                    os.utime(doubtful, (_DOUBTFUL, _DOUBTFUL))
            raise
        finally:
            self._unsynced.clear()
            self._adopted.clear()
        for key in keys:
            path = self.objects.local_path(key)
            if path is not None:
                self._verified.add(path)

    def add(self, staged: Path, digest: str, size: int) -> None:
        """Take a hashed file in under its digest, or drop it where an intact one is there; durable after `sync`."""
        key = layout.blob(digest)
        if self._has(key, digest, size) and self._is_kept(key):
            with translated(str(staged)):
                staged.unlink()
        else:
            self.objects.adopt(staged, key, sync=False)
            self._adopted.add(key)
        # Also one that was there: whoever wrote it may not have synced it yet.
        self._unsynced.add(key)

    def holds(self, digest: str, size: int) -> bool:
        """Tell whether an intact blob is there, for a new record to refer to; an old one is made new where it can be.

        Where there are no local files that it is there, and of its size, is all that is looked at.
        """
        key = layout.blob(digest)
        if not self._has(key, digest, size):
            return False
        self._is_kept(key)
        return True

    def _has(self, key: str, digest: str, size: int) -> bool:
        """Tell whether an intact blob is there."""
        try:
            if self.objects.info(key).size != size:
                return False
            path = self.objects.local_path(key)
            if path is None:
                return True
            self._verify(path, digest, size)
        except (FileNotFoundError, StoreDamaged):
            return False
        return True

    def _is_kept(self, key: str) -> bool:
        """Tell whether an intact blob will be there when the record that names it is: not removed as unused meanwhile.

        One that is new is kept, so an old one is made new.
        """
        path = self.objects.local_path(key)
        try:
            modified_at = self.objects.info(key).modified_at
            if modified_at == _DOUBTFUL:
                return False
            if modified_at > time.time() - _NEW_SECONDS:
                return True
            if path is None:
                return False
            os.utime(path)
            self._verified.add(path)
        except OSError:  # somebody else's, or removed in this very moment
            return False
        return True

    def verified_path(self, digest: str, size: int) -> Path | None:
        """Return a local file of a blob once it is verified: the blob's own, or a copy in the host's cache.

        None where there is neither.

        Raises
        ------
        StoreDamaged
            Where the blob is absent or is not what was written.
        """
        key = layout.blob(digest)
        path = self.objects.local_path(key)
        try:
            if path is None:
                return None if self._cache is None else self._cache.path(self.objects, key, digest, size)
            self._verify(path, digest, size)
        except FileNotFoundError as error:
            raise _absent(key, self.objects.url) from error
        return path

    def _verify(self, path: Path, digest: str, size: int) -> None:
        """Hash a file unless this host has done so before."""
        if not self._paranoid and self._verified.has(path):
            return
        with translated(str(path)):
            found, length = hash_file(path)
        if (found, length) != (digest, size):
            raise damaged(str(path), digest, found)
        self._verified.add(path)

    def read(self, digest: str, size: int) -> bytearray:
        """Return a verified copy of a blob, for stores without local files; StoreDamaged as `verified_path`."""
        key = layout.blob(digest)
        try:
            content = bytearray(self.objects.read(key))
        except FileNotFoundError as error:
            raise _absent(key, self.objects.url) from error
        found = sha256(content)
        if found != digest or len(content) != size:
            raise damaged(f"{key} in {self.objects.url}", digest, found)
        return content


class BlobSource:
    """Where a format reads one value from.

    Parameters
    ----------
    blobs : Blobs
        Where it is.
    ref : ArtifactRef
        The value.
    prefix : str
        The part of it that this is.
    """

    def __init__(self, blobs: Blobs, ref: ArtifactRef, prefix: str = "") -> None:
        """Make the source."""
        self._blobs = blobs
        self._ref = ref
        self._prefix = prefix

    def buffer(self) -> memoryview:
        """Return the content; writes to it stay in this process."""
        part = self._own()
        if part.data is not None:
            return memoryview(bytearray(_checked(part)))
        path = self._blobs.verified_path(part.digest, part.size)
        if path is None:
            return memoryview(self._blobs.read(part.digest, part.size))
        if part.size == 0:
            return memoryview(bytearray())
        with translated(str(path)), path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), part.size, access=mmap.ACCESS_COPY))

    def open(self) -> IO[bytes]:
        """Return a readable file with the content."""
        part = self._own()
        if part.data is not None:
            return io.BytesIO(_checked(part))
        path = self._blobs.verified_path(part.digest, part.size)
        if path is None:
            return io.BytesIO(self._blobs.read(part.digest, part.size))
        with translated(str(path)):
            return path.open("rb")

    def local_path(self) -> Path:
        """Return a local file or folder with the content."""
        inside = self._prefix + "/" if self._prefix else ""
        parts = [part for part in self._ref.parts if part.name and part.name.startswith(inside)]
        if not parts:
            own = self._own()
            path = None if own.data is not None else self._blobs.verified_path(own.digest, own.size)
            return path or self._made(own, self._folder() / "content")
        self._check_manifest()
        root = self._folder()
        for part in parts:
            name = part.name.removeprefix(inside)
            check_part(name)
            self._made(part, root / name)
        return root

    def part(self, name: str) -> BlobSource:
        """Return the source of a named part; KeyError if there is none."""
        full = f"{self._prefix}/{name}" if self._prefix else name
        if not any(part.name == full or part.name.startswith(full + "/") for part in self._ref.parts):
            raise KeyError(name)
        return BlobSource(self._blobs, self._ref, full)

    def _own(self) -> ArtifactPart:
        """Return the content of this very source."""
        ref = self._ref
        if not ref.parts:
            return ArtifactPart("", ref.digest, ref.size, ref.data)
        self._check_manifest()
        for part in ref.parts:
            if part.name == self._prefix:
                return part
        raise ArtifactError(
            f"the value has no content of its own, only the parts {', '.join(p.name for p in ref.parts)}"
        )

    def _check_manifest(self) -> None:
        """Check that the parts are those that the value's digest stands for."""
        found = manifest_digest(self._ref.parts)
        if found != self._ref.digest:
            raise damaged("a reference's list of parts", self._ref.digest, found)

    def _folder(self) -> Path:
        """Return a new temporary folder that goes when this process's access to the store does."""
        import shutil
        import tempfile

        folder = tempfile.mkdtemp(prefix="mlp-")
        weakref.finalize(self._blobs, shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)

    def _made(self, part: ArtifactPart, path: Path) -> Path:
        """Make a local file with a part's content: a link to the blob where it is a local file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        blob = None if part.data is not None else self._blobs.verified_path(part.digest, part.size)
        if blob is not None:
            path.symlink_to(blob)
        else:
            path.write_bytes(_checked(part) if part.data is not None else self._blobs.read(part.digest, part.size))
        return path


def _checked(part: ArtifactPart) -> bytes:
    """Return the inline content of a part, verified."""
    data = part.data or b""
    found = sha256(data)
    if found != part.digest or len(data) != part.size:
        raise damaged(f"the inline content of {part.name or 'an artifact'}", part.digest, found)
    return data


def _absent(key: str, url: str) -> StoreDamaged:
    """Return the error of a blob that a record names and that is not there."""
    return StoreDamaged(f"{key} is missing from {url}", hint="the step that made it writes it anew when it runs again")
