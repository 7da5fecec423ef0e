"""How what is stored of deployments is checked: frozen flows, versions, which is active, what targets remember."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, TypeAlias

from mlp_core.deploy.records import Active, Version
from mlp_core.deploy.versions import read_stored, version_name
from mlp_core.errors import StoreDamaged, StoreError
from mlp_core.store import layout
from mlp_core.store.checked import without_checksum
from mlp_core.store.references import blobs_of, references
from mlp_core.upkeep.findings import Finding
from mlp_core.upkeep.references import blueprint_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from mlp_hookspecs.handles import ObjectStore

Checked: TypeAlias = tuple[list[Finding], list[tuple[str, str]]]
"""What was found, and which blobs are needed by whom."""

_VERSION: Final = re.compile(r"v(\d{6,9})\.json")
_ACTIVE: Final = "active.json"
_FOREIGN: Final = "it does not belong there"


def check_blueprint(objects: ObjectStore, digest: str, odd: Collection[str]) -> Checked:
    """Check a frozen flow."""
    try:
        key = layout.blueprint(digest)
    except StoreDamaged:
        key = layout.found(layout.BLUEPRINTS, digest).rstrip("/")
        return [Finding("note", key, f"no blueprint has this name: {_FOREIGN}")], []
    name = f"blueprint {digest[7:19]}"
    if key in odd:
        return [], []
    try:
        return [], _needed(blueprint_of(objects, digest), name)
    except FileNotFoundError:  # removed since
        return [], []
    except (StoreError, RecursionError) as error:
        remedy = "mlp fsck --repair moves it away; then deploy the flow again"
        return [Finding("damage", key, _told(error), (name,), remedy)], []


def check_deployments(objects: ObjectStore, odd: Collection[str]) -> Checked:
    """Check all versions of all deployments, and which of them are active."""
    findings: list[Finding] = []
    blobs: list[tuple[str, str]] = []
    for target in objects.children(layout.DEPLOYMENTS):
        prefix = layout.found(layout.DEPLOYMENTS, target)
        for name in objects.children(prefix):
            found, needed = _check_deployment(objects, layout.found(prefix, name), odd)
            findings += found
            blobs += needed
    return findings, blobs


def check_targets(objects: ObjectStore, prefix: str, odd: Collection[str]) -> list[Finding]:
    """Check what deploy targets remember."""
    findings = []
    for info in objects.list(prefix):
        if info.key in odd:
            continue
        try:
            content = objects.read(info.key)
            if without_checksum(info.key, content, objects.url) == content:
                findings.append(_unchecked(info.key))
        except FileNotFoundError:
            continue
        except StoreError as error:
            affects = (f"target {info.key.removeprefix(prefix).partition('/')[0]}",)
            remedy = "deploy again, or go back to the version: mlp deployments rollback NAME --version N"
            findings.append(Finding("damage", info.key, _told(error), affects, remedy))
    return findings


def _check_deployment(objects: ObjectStore, prefix: str, odd: Collection[str]) -> Checked:
    """Check the versions of one name."""
    findings: list[Finding] = []
    blobs: list[tuple[str, str]] = []
    place = f"deployment {prefix.removeprefix(layout.DEPLOYMENTS).rstrip('/')}"
    known = objects.children(prefix)
    numbers = [int(match[1]) for name in known if (match := _VERSION.fullmatch(name))]
    absent = [version_name(number) for number in set(range(1, max(numbers, default=0))).difference(numbers)]
    findings += [Finding("damage", prefix + each, "it is missing", (f"{place} {each}",)) for each in absent]
    if numbers and _ACTIVE not in known:
        problem = "there is none: the deployment was taken out of service, never came into it, or this was deleted"
        findings.append(Finding("note", prefix + _ACTIVE, problem, (place,)))
    for name in known:
        key = prefix + name
        if key in odd:
            continue
        if not _VERSION.fullmatch(name) and name != _ACTIVE:
            findings.append(Finding("note", key, f"nothing of a deployment has this name: {_FOREIGN}"))
            continue
        try:
            if objects.read(key).startswith(b"{"):
                findings.append(_unchecked(key))
            if name == _ACTIVE:
                findings += _check_active(objects, key, known, place)
            else:
                found, needed = _check_version(objects, key, f"{place} {name}")
                findings += found
                blobs += needed
        except FileNotFoundError:  # removed since
            continue
        except (StoreError, RecursionError) as error:
            remedy = "mlp fsck --repair moves it away; then deploy the flow again, or roll it back"
            findings.append(Finding("damage", key, _told(error), (f"{place} {name}",), remedy))
    return findings, blobs


def _check_active(objects: ObjectStore, key: str, known: Collection[str], place: str) -> list[Finding]:
    """Check that the active version is there."""
    active = read_stored(Active, objects, key)
    name = version_name(active.deployment.version)
    if name in known:
        return []
    missing = key.removesuffix(_ACTIVE) + name
    return [Finding("damage", missing, "the active version is missing", (place,), "deploy the flow again")]


def _check_version(objects: ObjectStore, key: str, place: str) -> Checked:
    """Check a version, and that its frozen flow is there."""
    version = read_stored(Version, objects, key)
    blobs = _needed(version, place)
    try:
        objects.info(layout.blueprint(version.blueprint))
    except FileNotFoundError:
        missing = layout.blueprint(version.blueprint)
        return [Finding("damage", missing, "it is missing", (place,), "deploy the flow again")], blobs
    return [], blobs


def _unchecked(key: str) -> Finding:
    """Return what is said of an object as the first version wrote it."""
    return Finding("note", key, "it has no checksum, as the first version wrote it: a change of it may go unnoticed")


def _needed(value: object, name: str) -> list[tuple[str, str]]:
    """Return the blobs that something needs."""
    return [(digest, f"{name} ({'.'.join(place)})") for place, ref in references(value) for digest, _ in blobs_of(ref)]


def _told(error: Exception) -> str:
    """Return what is wrong, without the place, which is told apart."""
    if isinstance(error, StoreDamaged):
        return "it is not what was written"
    return f"cannot be read: {error.message if isinstance(error, StoreError) else error}"
