"""How the very files of an environment get into the store, and out of it onto a host without a network."""

from __future__ import annotations

import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from mlp_core.environments.catalog import Catalog
from mlp_core.errors import StoreDamaged
from mlp_core.names import shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlp_core.environments.records import Bundle
    from mlp_core.hooks import Hooks
    from mlp_core.store import Store
    from mlp_hookspecs import ArtifactRef, EnvironmentLock

_PIECE = 2**20


def store_bundle(store: Store, hooks: Hooks, lock: EnvironmentLock, platform: str) -> Bundle:
    """Put the files of a lock into the store; those that are there already are not stored twice.

    Parameters
    ----------
    store : Store
        The store.
    hooks : Hooks
        Where the lock's backend is.
    lock : EnvironmentLock
        The lock.
    platform : str
        For which platform; empty for the lock's own packages alone.

    Raises
    ------
    ValueError, OSError
        As the backend raises them.
    """
    with tempfile.TemporaryDirectory(prefix="mlp-bundle-") as place:
        folder = Path(place)
        files = hooks.bundle_environment(lock, platform, folder)
        blobs = store.blobs()
        stored: dict[str, ArtifactRef] = {}
        for name in files:
            target = blobs.target("bytes")
            with (folder / checked_path(name)).open("rb") as file:
                target.write(iter(lambda: file.read(_PIECE), b""))  # used up in this round
            stored[name] = target.finish("bytes", sync=False)
        blobs.sync()
    return Catalog(store).add_bundle(lock.digest, platform, stored)


def unpacker(store: Callable[[], Store], lock: EnvironmentLock, platform: str) -> Callable[[Path], bool]:
    """Return what puts a lock's files for a platform into a folder, and tells whether the store has any.

    Parameters
    ----------
    store : callable
        Opens the store, which is asked only when the files are.
    lock : EnvironmentLock
        The lock.
    platform : str
        The platform of this host.
    """

    def unpack(folder: Path) -> bool:
        opened = store()
        catalog = Catalog(opened)
        bundle = catalog.bundle(lock.digest, platform)
        if bundle is None and lock.has_own_packages:
            bundle = catalog.bundle(lock.digest, "")
        if bundle is None:
            return False
        blobs = opened.blobs()
        for name, ref in bundle.files.items():
            path = folder / checked_path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(blobs.source(ref).buffer())  # verified against its hash
        return True

    return unpack


def checked_path(name: str) -> PurePosixPath:
    """Return the path of a file in a bundle; StoreDamaged where it leads out of the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\0" in name:
        raise StoreDamaged(f"a bundle names the file {shown(name)}, which lies outside of it")
    return path
