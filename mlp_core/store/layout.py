"""Where everything is: every key of the store is made by a function here, from names that pass the grammar."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from mlp_core import names
from mlp_core.errors import NameRefused, StoreDamaged

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlp_hookspecs.types import TaskKey

FORMAT: Final = "format.json"
"""The store's format and version; what has it is a store."""

GITIGNORE: Final = ".gitignore"
"""Keeps a store that lies in a project out of its repository."""

BLOBS: Final = "blobs/"
FLOWS: Final = "flows/"
PARTS: Final = "parts/"
DEPLOYMENTS: Final = "deployments/"
BLUEPRINTS: Final = "blueprints/"
ENVIRONMENTS: Final = "environments/"
ENVIRONMENT_LOCKS: Final = f"{ENVIRONMENTS}locks/"
ENVIRONMENT_ANSWERS: Final = f"{ENVIRONMENTS}answers/"
ENVIRONMENT_NAMES: Final = f"{ENVIRONMENTS}names/"
ENVIRONMENT_BUNDLES: Final = f"{ENVIRONMENTS}bundles/"

TARGETS: Final = "targets/"
"""What deploy targets keep in the store, each below its name."""

REMOVED: Final = "removed"
"""In a run's folder, what says that the run is being deleted."""

LOG_SEGMENT: Final = "log."
"""What the names of segments begin with that hold log frames; all others hold records."""

_DIGEST = re.compile(r"sha256-[0-9a-f]{64}")
_SEGMENT = re.compile(r"[A-Za-z][A-Za-z0-9_.\-~@]{0,199}")


def blob(digest: str) -> str:
    """Return the key of a blob.

    Raises
    ------
    StoreDamaged
        Where the digest is none: it comes from stored content, which is not trusted.
    """
    return f"{BLOBS}{_digest(digest)[7:9]}/{digest}"


def blueprint(digest: str) -> str:
    """Return the key of a frozen flow; StoreDamaged where the digest is none."""
    return f"{BLUEPRINTS}{_digest(digest)}"


def environment_lock(digest: str) -> str:
    """Return the key of a kept lock; StoreDamaged where the digest is none."""
    return f"{ENVIRONMENT_LOCKS}{_digest(digest)}"


def environment_answers(spec_digest: str) -> str:
    """Return the prefix of what a requirement was answered with, by platforms."""
    return f"{ENVIRONMENT_ANSWERS}{_digest(spec_digest)}/"


def environment_answer(spec_digest: str, platforms: Iterable[str]) -> str:
    """Return the key of the lock that a requirement was answered with for some platforms."""
    joined = "+".join(sorted(names.platform(platform) for platform in platforms))
    return environment_answers(spec_digest) + (joined or "any")


def environment_name(name: str, tag: str) -> str:
    """Return the key of the lock that a name and tag stand for; parts of the name are folders, the tag comes last."""
    return f"{environment_tags(name)}{names.label(tag, 'tag')}"


def environment_tags(name: str) -> str:
    """Return the prefix of a name's tags; the name is one part, so that no name lies inside of another."""
    return f"{ENVIRONMENT_NAMES}{names.environment(name).replace('/', '~')}/"


def environment_bundles(digest: str) -> str:
    """Return the prefix of a lock's bundles."""
    return f"{ENVIRONMENT_BUNDLES}{_digest(digest)}/"


def environment_bundle(digest: str, platform: str) -> str:
    """Return the key of a lock's files for a platform; an empty one for its own packages alone."""
    return environment_bundles(digest) + (names.platform(platform) if platform else "own")


def _digest(digest: str) -> str:
    """Check a digest that comes from stored content, which is not trusted."""
    if not _DIGEST.fullmatch(digest):
        raise StoreDamaged(f"{names.shown(digest)} is no digest; one looks like sha256-<64 hex digits>")
    return digest


def flow(name: str) -> str:
    """Return the prefix of a flow's runs."""
    return f"{FLOWS}{names.identifier(name, 'flow')}/"


def run(flow_name: str, run_id: str) -> str:
    """Return the prefix of a run's objects."""
    return f"{flow(flow_name)}{names.run_id(run_id)}/"


def journal(flow_name: str, run_id: str) -> str:
    """Return the key of a run's journal; the run exists once it does."""
    return run(flow_name, run_id) + "journal"


def lock(flow_name: str, run_id: str) -> str:
    """Return the key of the lock that a run's driver holds."""
    return run(flow_name, run_id) + "lock"


def logs(flow_name: str, run_id: str) -> str:
    """Return the key of a run's logs."""
    return run(flow_name, run_id) + "logs"


def lease(flow_name: str, run_id: str) -> str:
    """Return the key of the object by whose age a run's driver is known to be there."""
    return run(flow_name, run_id) + "lease"


def seal(flow_name: str, run_id: str) -> str:
    """Return the key of the summary that is written once a run has ended."""
    return run(flow_name, run_id) + "seal"


def parts(key: str) -> str:
    """Return the prefix of the parts of a growing object, on stores whose objects cannot grow.

    It lies outside of the run's own, so that listing runs does not list parts.
    """
    return f"{PARTS}{key.removeprefix(FLOWS)}/"


def part(key: str, level: int, number: int) -> str:
    """Return the key of a part of a growing object (level 0), or of a pack of parts (level 1)."""
    return f"{parts(key)}{level:d}/{number:08d}"


def parts_of_flow(flow_name: str) -> str:
    """Return the prefix of all parts of a flow's runs."""
    return parts(flow(flow_name).rstrip("/"))


def parts_of_run(flow_name: str, run_id: str) -> str:
    """Return the prefix of all parts of a run."""
    return parts(run(flow_name, run_id).rstrip("/"))


def deployments(target_name: str) -> str:
    """Return the prefix of what is deployed on a target."""
    return f"{DEPLOYMENTS}{names.label(target_name, 'target')}/"


def deployment(target_name: str, name: str) -> str:
    """Return the prefix of the versions of one name."""
    return f"{deployments(target_name)}{names.label(name, 'deployment')}/"


def target(name: str) -> str:
    """Return the prefix of a deploy target's own objects."""
    return f"{TARGETS}{names.label(name, 'target')}/"


def found(prefix: str, name: str) -> str:
    """Return the prefix of what a listing has shown below a prefix, for who looks after names that are not ours too.

    Raises
    ------
    NameRefused
        Where the name would lead elsewhere.
    """
    if name in ("", ".", "..") or "/" in name:
        raise NameRefused(f"{names.shown(name)} is refused below {prefix}: it leads elsewhere")
    return f"{prefix}{name}/"


def segments(flow_name: str, run_id: str) -> str:
    """Return the prefix of what writers other than the driver have to say about a run."""
    return run(flow_name, run_id) + "segments/"


def segment(flow_name: str, run_id: str, name: str) -> str:
    """Return the key of a segment."""
    return segments(flow_name, run_id) + _segment_name(name)


def task_segment(key: TaskKey, attempt: int | None = None) -> str:
    """Return the name of the segment with a task's final outcome, or with that of an attempt that is made again.

    A task's commit is made by whoever creates the first; the record in it names the attempt.
    """
    suffix = "" if attempt is None else f".{attempt}"
    return f"task.{names.identifier(key.step, 'step')}.{names.task_id(key.task_id)}{suffix}"


def log_segment(key: TaskKey, attempt: int) -> str:
    """Return the name of the segment with the log of an attempt that no driver of ours started."""
    return f"{LOG_SEGMENT}{names.identifier(key.step, 'step')}.{names.task_id(key.task_id)}.{attempt}"


def environment_segment(key: TaskKey, attempt: int) -> str:
    """Return the name of the segment with the environment that such an attempt looked up."""
    return f"environment.{names.identifier(key.step, 'step')}.{names.task_id(key.task_id)}.{attempt}"


def _segment_name(name: str) -> str:
    """Check a segment's name."""
    if not _SEGMENT.fullmatch(name) or ".." in name:
        raise NameRefused(
            f"segment {names.shown(name)} is refused", hint="allowed are ASCII letters, digits and _ . - ~ @"
        )
    return name
