"""Which blobs are needed: every one that the records of runs, frozen flows or deployments refer to."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from mlp_core.errors import StoreDamaged
from mlp_core.runner.blueprint import Blueprint
from mlp_core.store import layout
from mlp_core.store.content import sha256
from mlp_core.store.journal import read_journal
from mlp_core.store.records import EnvironmentLocked, decode_line
from mlp_core.store.segments import read_segments
from mlp_hookspecs import wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlp_core.store.records import Record
    from mlp_hookspecs.handles import ObjectStore

_DIGEST: Final = re.compile(rb"sha256-([0-9a-f]{64})")
_LOCKED: Final = b'"kind":"EnvironmentLocked"'


def hashes_in(content: bytes) -> set[bytes]:
    """Return the hash of every digest that stored bytes mention, whatever they are.

    For who must rather keep too much: it sees what a newer version wrote and this one cannot read, and what is left of
    a damaged journal.

    Parameters
    ----------
    content : bytes
        A journal, a segment, a blueprint, a version.

    Returns
    -------
    set of bytes
        The hashes, 32 bytes each.
    """
    return {bytes.fromhex(found.decode()) for found in _DIGEST.findall(content)}


def locks_in(content: bytes) -> set[bytes]:
    """Return the hash of the digest of every environment's lock that a journal or segment holds.

    A record holds the lock itself, so that its digest stands nowhere in the bytes.

    Parameters
    ----------
    content : bytes
        A journal or segment, whose lines were found to be what was written.

    Returns
    -------
    set of bytes
        The hashes, 32 bytes each.

    Raises
    ------
    ValueError
        Where a record that tells of a lock cannot be read.
    """
    found = set()
    for line in content.split(b"\n")[:-1] if _LOCKED in content else ():
        if _LOCKED in line and not line.endswith(b" ~ unfinished"):
            read = decode_line(line)
            if read is None or not isinstance(read[1], EnvironmentLocked):
                raise ValueError("the record of an environment's lock cannot be read")
            found.add(bytes.fromhex(read[1].lock.digest[7:]))
    return found


def run_records(objects: ObjectStore, flow: str, run_id: str) -> Iterator[Record]:
    """Iterate over all records of a run: those of its driver, then those of its segments.

    Raises
    ------
    FileNotFoundError
        Where there is no such run.
    StoreDamaged
        Where they are not what was written.
    """
    for _, record in read_journal(objects, layout.journal(flow, run_id)).records:
        yield record
    yield from read_segments(objects, flow, run_id)


def blueprint_of(objects: ObjectStore, digest: str) -> Blueprint:
    """Return a frozen flow.

    Raises
    ------
    FileNotFoundError
        Where there is none.
    StoreDamaged
        Where it is not what was written.
    """
    key = layout.blueprint(digest)
    content = objects.read(key)
    if sha256(content) != digest:
        raise StoreDamaged(f"{key} in {objects.url} is damaged: its content has another digest")
    try:
        return wire.loads(Blueprint, content)
    except ValueError as error:
        raise StoreDamaged(f"{key} in {objects.url} cannot be read: {error}") from error
