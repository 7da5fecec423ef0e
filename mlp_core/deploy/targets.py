"""How a deploy target is opened and used: with objects of its own, and blamed for what it raises."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs

from mlp_core.settings import Settings
from mlp_core.store import layout
from mlp_core.store.checked import CHECKSUM_BYTES, with_checksum, without_checksum
from mlp_hookspecs.handles import ObjectStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from mlp_core.session import Session
    from mlp_core.store import Store
    from mlp_hookspecs.handles import AppendFile, DeployTarget, ObjectInfo


@contextmanager
def opened_target(session: Session, store: Store, name: str) -> Iterator[DeployTarget]:
    """Open a target for the time of a body; what the target raises there is blamed on its plugin.

    Parameters
    ----------
    session : Session
        The plugins.
    store : Store
        The store, in which the target has a part of its own.
    name : str
        The target.

    Raises
    ------
    UnknownBackend
        Where there is none of that name.
    """
    context = _Context(session.settings, PrefixedObjects(store.objects, layout.target(name)))
    target = session.hooks.open_target(name, context)
    with session.hooks.using("target", name, (OSError, ValueError)):
        yield target


@attrs.frozen
class _Context:
    """What a target may use: a `TargetContext`."""

    settings: Settings
    objects: ObjectStore


class PrefixedObjects:
    """The objects of a store below a prefix, as a store of their own: small ones, each with its checksum.

    An object has no file of its own here, and none grows.

    Parameters
    ----------
    inner : ObjectStore
        The store.
    prefix : str
        The prefix, ending with a slash.
    """

    def __init__(self, inner: ObjectStore, prefix: str) -> None:
        """Wrap a store."""
        self._inner = inner
        self._prefix = prefix

    @property
    def url(self) -> str:
        """The store's URL."""
        return self._inner.url

    @property
    def creates_once(self) -> bool:
        """Whether creates are exclusive."""
        return self._inner.creates_once

    def create(self, key: str, data: bytes, *, sync: bool) -> bool:
        """Write an object if absent."""
        full = self._prefix + key
        return self._inner.create(full, with_checksum(full, data), sync=sync)

    def replace(self, key: str, data: bytes, *, sync: bool) -> None:
        """Write an object."""
        full = self._prefix + key
        self._inner.replace(full, with_checksum(full, data), sync=sync)

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Read an object."""
        full = self._prefix + key
        return without_checksum(full, self._inner.read(full), self._inner.url)[start:end]

    def download(self, key: str, target: Path) -> None:
        """Write an object to a local file."""
        target.write_bytes(self.read(key))

    def info(self, key: str) -> ObjectInfo:
        """Return size and time of an object."""
        return self._own(self._inner.info(self._prefix + key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Iterate over objects."""
        for found in self._inner.list(self._prefix + prefix):
            yield self._own(found)

    def _own(self, found: ObjectInfo) -> ObjectInfo:
        """Return what is known of an object, as its owner sees it."""
        size = max(0, found.size - CHECKSUM_BYTES)
        return attrs.evolve(found, key=found.key.removeprefix(self._prefix), size=size)

    def children(self, prefix: str) -> Sequence[str]:
        """Return the names directly below a prefix."""
        return self._inner.children(self._prefix + prefix)

    def delete(self, key: str) -> None:
        """Remove an object."""
        self._inner.delete(self._prefix + key)

    def staging(self) -> Path:
        """Return a folder for files that are to be moved in."""
        return self._inner.staging()

    def adopt(self, source: Path, key: str, *, sync: bool) -> None:
        """Move a file in."""
        self.replace(key, source.read_bytes(), sync=sync)
        source.unlink()

    def sync(self, keys: Sequence[str]) -> None:
        """Make objects durable."""
        self._inner.sync([self._prefix + key for key in keys])

    def local_path(self, key: str) -> Path | None:
        """Return None."""

    def open_append(self, key: str) -> AppendFile | None:
        """Return None."""

    def lock(self, key: str) -> AbstractContextManager[bool] | None:
        """Return a lock."""
        return self._inner.lock(self._prefix + key)

    def is_locked(self, key: str) -> bool:
        """Tell whether somebody holds a lock."""
        return self._inner.is_locked(self._prefix + key)

    def close(self) -> None:
        """Leave the store open: it is not this view's."""
