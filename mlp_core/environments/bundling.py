"""How the very files of an environment get into the store, and out of it onto a host without a network."""

from __future__ import annotations

import platform as host_platform
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from mlp_core.environments.catalog import Catalog
from mlp_core.errors import StoreDamaged
from mlp_core.names import shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlp_core.environments.host import HostEnvironments
    from mlp_core.environments.records import Bundle
    from mlp_core.hooks import Hooks
    from mlp_core.store import Store
    from mlp_hookspecs import ArtifactRef, EnvironmentLock, ProvisionedEnvironment

_MACHINES: Final = {"x86_64": "64", "amd64": "64", "aarch64": "aarch64", "arm64": "arm64"}
_PIECE: Final = 2**20
_LONGEST: Final = 255
_LONGEST_PATH: Final = 1024


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


def provide(
    host: HostEnvironments, hooks: Hooks, lock: EnvironmentLock, store: Callable[[], Store], *, outlives: bool = False
) -> ProvisionedEnvironment:
    """Return the interpreter of a lock on this host, made if it is not there: from its bundle where a store has one.

    Parameters
    ----------
    host : HostEnvironments
        What makes it, and holds it.
    hooks : Hooks
        Where the lock's backend is.
    lock : EnvironmentLock
        The lock.
    store : callable
        Opens the store, which is asked only where the environment is not there.
    outlives : bool
        Whether what this process becomes is to hold it too.

    Raises
    ------
    OSError
        Where it cannot be made.
    """
    return host.provide(hooks, lock, unpacker(store, lock, this_platform()), outlives=outlives)


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
        paths = {name: checked_path(name) for name in bundle.files}
        folders = {parent for path in paths.values() for parent in path.parents}
        if len(set(paths.values())) < len(paths) or not folders.isdisjoint(paths.values()):
            raise StoreDamaged(f"a bundle of {lock.digest} in {opened.url} names a file twice")
        blobs = opened.blobs()
        for name, ref in bundle.files.items():
            path = folder / paths[name]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(blobs.source(ref).buffer())  # verified against its hash
        return True

    return unpack


def checked_path(name: str) -> PurePosixPath:
    """Return the path of a file in a bundle; StoreDamaged where it is none, or leads out of the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts:
        raise StoreDamaged(f"a bundle names the file {shown(name)}, which lies outside of it")
    if not name.isprintable() or max(len(part.encode()) for part in path.parts) > _LONGEST or len(name) > _LONGEST_PATH:
        raise StoreDamaged(f"a bundle names the file {shown(name)}, which can be none")
    return path


def this_platform() -> str:
    """Return this host's platform as conda names it, such as ``linux-64``."""
    system = {"Linux": "linux", "Darwin": "osx"}.get(host_platform.system(), host_platform.system().lower())
    machine = host_platform.machine().lower()
    return f"{system}-{_MACHINES.get(machine, machine)}"
