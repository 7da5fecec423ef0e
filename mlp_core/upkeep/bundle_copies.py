"""Which files of environments travel with a run: the bundles of the locks that it has, as far as there are any.

A run's journal holds the locks themselves. With a bundle its environments are made without a network, so that a run
that was copied can be made again where it went.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from mlp_core.environments.bundling import checked_path
from mlp_core.environments.catalog import parsed_record
from mlp_core.environments.records import Bundle
from mlp_core.errors import NameRefused, StoreDamaged
from mlp_core.names import shown
from mlp_core.store import layout
from mlp_core.store.records import EnvironmentLocked

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlp_core.store.records import Record
    from mlp_hookspecs.handles import ObjectStore


def locks_of(records: Iterable[Record]) -> set[str]:
    """Return the digests of the locks that a run has."""
    return {record.lock.digest for record in records if isinstance(record, EnvironmentLocked)}


def bundles_of(objects: ObjectStore, records: Iterable[Record]) -> dict[str, bytes]:
    """Return what is stored of the bundles of a run's locks, by key; StoreDamaged where one is not what was written."""
    found = {}
    for digest in sorted(locks_of(records)):
        for name in sorted(objects.children(layout.environment_bundles(digest))):
            with suppress(FileNotFoundError, NameRefused):  # removed since; not ours
                key = bundle_key(f"{digest}/{name}")
                content = objects.read(key)
                checked_bundle(key, content, objects.url)
                found[key] = content
    return found


def bundle_key(name: str) -> str:
    """Return the key of a bundle that is given as ``<digest>/<platform>``, the latter ``own`` for own packages alone.

    Raises
    ------
    StoreDamaged, NameRefused
        Where none has such a name.
    """
    digest, _, platform = name.partition("/")
    key = layout.environment_bundle(digest, "" if platform == "own" else platform)
    if bundle_name(key) != name:
        raise StoreDamaged(f"{shown(name)} is no bundle; one looks like sha256-<64 hex digits>/linux-64")
    return key


def bundle_name(key: str) -> str:
    """Return what `bundle_key` makes a key of."""
    return "/".join(key.split("/")[-2:])


def checked_bundle(key: str, content: bytes, place: str) -> Bundle:
    """Return the bundle that is stored under a key; StoreDamaged where it is another's, or leads out of its folder."""
    _, bundle = parsed_record(Bundle, key, content, place)
    try:
        is_at_its_place = layout.environment_bundle(bundle.lock_digest, bundle.platform) == key
    except (NameRefused, StoreDamaged):
        is_at_its_place = False
    if not is_at_its_place:
        raise StoreDamaged(f"{key} in {place} is another environment's")
    for name in bundle.files:
        checked_path(name)
    return bundle
