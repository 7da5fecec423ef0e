"""Which of a store's environments nobody needs: locks that no name stands for and no run or deployment has, and more.

What a requirement was answered with goes with its lock, and so do the lock's bundles. Whoever is about to use an answer
that is old makes it new first, so that what is young stays with the lock that it names.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import attrs

from mlp_core.environments.records import Answer
from mlp_core.errors import StoreDamaged
from mlp_core.store import layout
from mlp_core.store.checked import without_checksum
from mlp_core.upkeep.references import hashes_in
from mlp_hookspecs import wire
from mlp_hookspecs.handles import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Container
    from collections.abc import Set as AbstractSet

    from mlp_hookspecs.handles import ObjectStore


@attrs.frozen
class UnneededEnvironments:
    """What of a store's environments can go.

    Attributes
    ----------
    answers, locks, bundles : tuple of ObjectInfo
        What requirements were answered with, locks, and the lists of their files.
    needed : frozenset of bytes
        The hashes of the blobs that bundles need which stay.
    """

    answers: tuple[ObjectInfo, ...]
    locks: tuple[ObjectInfo, ...]
    bundles: tuple[ObjectInfo, ...]
    needed: frozenset[bytes]


def unneeded_environments(objects: ObjectStore, mentioned: AbstractSet[bytes], before: float) -> UnneededEnvironments:
    """Find out which of a store's environments can go.

    Parameters
    ----------
    objects : ObjectStore
        The store.
    mentioned : set of bytes
        The hashes of the locks that runs and deployments have; it may hold others.
    before : float
        What is not older stays; seconds since the epoch.

    Returns
    -------
    UnneededEnvironments
        What can go, and which blobs are needed by what stays.

    Raises
    ------
    StoreDamaged
        Where a damaged object may speak of something that is needed.
    """
    staying = set(mentioned)
    for info in objects.list(layout.ENVIRONMENT_NAMES):
        staying |= _told(objects, info)
    locks = {digest: info for info in objects.list(layout.ENVIRONMENT_LOCKS) if (digest := _hash(info.key)) is not None}
    staying |= {digest for digest, info in locks.items() if info.modified_at >= before}
    answers = [(info, _answered(objects, info)) for info in objects.list(layout.ENVIRONMENT_ANSWERS)]
    staying |= {lock for info, lock in answers if lock is not None and info.modified_at >= before}
    bundles, needed = [], set[bytes]()
    for info in objects.list(layout.ENVIRONMENT_BUNDLES):
        lock = _hash(info.key.rpartition("/")[0])
        if lock is None or lock in staying or info.modified_at >= before:
            needed |= _told(objects, info)
        else:
            bundles.append(info)
    return UnneededEnvironments(
        tuple(info for info, lock in answers if info.modified_at < before and _is_void(lock, locks, staying)),
        tuple(info for digest, info in locks.items() if digest not in staying),
        tuple(bundles),
        frozenset(needed),
    )


def _is_void(lock: bytes | None, locks: Container[bytes], staying: Container[bytes]) -> bool:
    """Tell whether an answer is of no use: its lock is not there, or goes; one that cannot be read is left to fsck."""
    return lock is not None and (lock not in staying or lock not in locks)


def _answered(objects: ObjectStore, info: ObjectInfo) -> bytes | None:
    """Return the hash of the lock that an answer names; None where that cannot be read: it is not used then either."""
    with suppress(FileNotFoundError, StoreDamaged, ValueError):
        content = without_checksum(info.key, objects.read(info.key), objects.url)
        return bytes.fromhex(wire.loads(Answer, content).lock_digest[7:])
    return None


def _told(objects: ObjectStore, info: ObjectInfo) -> set[bytes]:
    """Return the hashes that a name or bundle mentions; StoreDamaged where it is not what was written."""
    with suppress(FileNotFoundError):
        return hashes_in(without_checksum(info.key, objects.read(info.key), objects.url))
    return set()


def _hash(key: str) -> bytes | None:
    """Return the hash that a key ends in; None where it ends in no digest."""
    digest = key.rpartition("/")[2]
    with suppress(StoreDamaged):
        layout.blob(digest)
        return bytes.fromhex(digest[7:])
    return None
