"""What an execution environment is: a requirement, its exact lock, and the interpreter made from the lock."""

import hashlib
import json
from collections.abc import Mapping
from typing import Final

import attrs

from mlp_hookspecs.types.base import Json, Value, frozen_map

PLATFORM_FLOORS: Final = ("attrs>=23.2", "cloudpickle>=3.0", "packaging>=23.0", "pluggy>=1.7")
"""What a worker imports beside the standard library and the platform's own packages, which are shipped with the code.

An environment backend adds these requirements to every environment that it resolves.
"""


@attrs.frozen(eq=False, repr=False)
class EnvironmentLock(Value):
    """The exact answer to a requirement.

    Attributes
    ----------
    backend : str
        The environment backend that made it and can provision it.
    content : str
        The lock in the backend's own format; its hash is the environment's identity.
    python : str
        The interpreter's version, as ``3.12`` or ``3.12.1``.
    platforms : tuple of str
        The platforms it holds for, such as ``linux-64``; empty where it holds for any.
    packages : mapping of str to str
        Exact version by package, for people and for comparing two locks; where platforms differ, the versions of all
        of them, with commas between. It is no part of the lock's identity.
    has_own_packages : bool
        Whether it has packages that can be had on the host that resolved it and nowhere else, such as one that was
        built from the project's source. They are stored with the lock.
    """

    backend: str
    content: str
    python: str
    platforms: tuple[str, ...] = ()
    packages: Mapping[str, str] = attrs.field(factory=dict, converter=frozen_map)
    has_own_packages: bool = False

    @property
    def digest(self) -> str:
        """Identity of the lock, as ``sha256-<64 hex digits>``."""
        text = json.dumps([self.backend, self.content])
        return "sha256-" + hashlib.sha256(text.encode()).hexdigest()


@attrs.frozen(eq=False, repr=False)
class EnvironmentSpec(Value):
    """What a step asks of its interpreter.

    Attributes
    ----------
    backend : str
        The environment backend that understands the requirement.
    requirement : mapping of str to JSON
        The requirement in the backend's own terms.
    base : EnvironmentLock or None
        The environment that the requirement is added to; every package in it keeps its exact version.
    """

    backend: str
    requirement: Mapping[str, Json] = attrs.field(factory=dict, converter=frozen_map)
    base: EnvironmentLock | None = None

    @property
    def digest(self) -> str:
        """Identity of the requirement, as ``sha256-<64 hex digits>``: equal requirements have equal digests."""
        parts: list[Json] = [self.backend, dict(self.requirement)]
        if self.base is not None:
            parts.append(self.base.digest)
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
        return "sha256-" + hashlib.sha256(text.encode()).hexdigest()


@attrs.frozen(eq=False, repr=False)
class ProvisionedEnvironment(Value):
    """An interpreter that is ready to run a step.

    Attributes
    ----------
    python : str
        Absolute path of the interpreter.
    variables : mapping of str to str
        Environment variables that it needs.
    has_platform : bool
        Whether it contains the platform's own packages; where it does not, the core ships them with the code.
    """

    python: str
    variables: Mapping[str, str] = attrs.field(factory=dict, converter=frozen_map)
    has_platform: bool = False
