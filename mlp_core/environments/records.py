"""What the store says of environments: locks, what a requirement was answered with, names, and the files of bundles."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from mlp_hookspecs import ArtifactRef, EnvironmentLock, EnvironmentSpec, frozen_map


@attrs.frozen
class KeptLock:
    """A lock, and the requirement that it was the first answer to.

    Attributes
    ----------
    spec : EnvironmentSpec
        The requirement; its base is told by its digest alone.
    base : str
        Digest of the lock that the requirement was added to; empty where there is none.
    lock : EnvironmentLock
        The lock.
    time : float
        When it was resolved, in seconds since the epoch.
    username : str
        For whom.
    """

    spec: EnvironmentSpec
    base: str
    lock: EnvironmentLock
    time: float
    username: str


@attrs.frozen
class Answer:
    """Which lock a requirement was answered with.

    Attributes
    ----------
    spec_digest : str
        The requirement's identity.
    lock_digest : str
        The lock's identity.
    time : float
        When, in seconds since the epoch.
    """

    spec_digest: str
    lock_digest: str
    time: float


@attrs.frozen
class NamedLock:
    """What a name stands for.

    Attributes
    ----------
    name, tag : str
        The name, as in ``name:tag``.
    lock_digest : str
        The lock's identity.
    time : float
        Since when, in seconds since the epoch.
    username : str
        Who said so.
    """

    name: str
    tag: str
    lock_digest: str
    time: float
    username: str

    def __str__(self) -> str:
        """Return the name as it is written."""
        return f"{self.name}:{self.tag}"


@attrs.frozen
class Bundle:
    """The files from which an environment is made without a network.

    Attributes
    ----------
    lock_digest : str
        The lock.
    platform : str
        The platform that they are for; empty where they are the lock's own packages alone.
    files : mapping of str to ArtifactRef
        The files, by their path in the folder that a backend gets.
    time : float
        When it was made, in seconds since the epoch.
    """

    lock_digest: str
    platform: str
    files: Mapping[str, ArtifactRef] = attrs.field(converter=frozen_map)
    time: float = 0.0

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(ref.size for ref in self.files.values())
