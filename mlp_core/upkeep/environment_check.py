"""How what a store keeps of environments is checked: locks, what requirements were answered with, names, bundles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mlp_core.environments.catalog import kept_lock, parsed_record
from mlp_core.environments.records import Answer, Bundle, KeptLock, NamedLock
from mlp_core.errors import NameRefused, StoreDamaged, StoreError
from mlp_core.names import short_digest
from mlp_core.store import layout
from mlp_core.store.checked import with_checksum
from mlp_core.store.records import EnvironmentLocked
from mlp_core.store.references import blobs_of
from mlp_core.upkeep.bundle_copies import bundle_key
from mlp_core.upkeep.findings import Finding
from mlp_core.upkeep.references import run_records
from mlp_hookspecs import wire

if TYPE_CHECKING:
    from collections.abc import Collection

    from mlp_core.store.signing import Signer
    from mlp_core.upkeep.deployment_check import Checked
    from mlp_hookspecs.handles import ObjectStore

PLACE: Final = "environment "
"""What the name of a place begins with that is an environment's."""

_KINDS: Final = {"locks": KeptLock, "answers": Answer, "names": NamedLock, "bundles": Bundle}
_FOREIGN: Final = "nothing of an environment has this name: it does not belong there"
_REMEDIES: Final = {
    "locks": "mlp fsck --repair restores it from a run that has it, or moves it away; then: mlp env resolve FLOW.py",
    "answers": "mlp fsck --repair moves it away; the requirement is resolved again then",
    "names": "mlp fsck --repair moves it away; then name it again: mlp env alias PATHSPEC NAME[:TAG]",
    "bundles": "mlp fsck --repair moves it away; then bundle it again: mlp env bundle ENVIRONMENT",
}


def check_environments(objects: ObjectStore, odd: Collection[str], signer: Signer | None) -> Checked:
    """Check every object of the environments, and return which blobs their bundles need.

    Parameters
    ----------
    objects : ObjectStore
        The store's objects.
    odd : collection of str
        Keys of what is no ordinary file, and was told already.
    signer : Signer or None
        Who knows what is signed; None where nothing needs to be.
    """
    check = _EnvironmentCheck(objects, signer)
    for info in objects.list(layout.ENVIRONMENTS):
        if info.key not in odd:
            check.look_at(info.key)
    check.look_for_locks()
    return check.findings, check.blobs


def restore_lock(objects: ObjectStore, key: str) -> bool:
    """Write a lock anew that is damaged or missing, from a run that ran in it; tell whether there is such a run."""
    digest = key.rpartition("/")[2]
    for flow in objects.children(layout.FLOWS):
        for run_id in objects.children(layout.found(layout.FLOWS, flow)):
            try:
                records = list(run_records(objects, flow, run_id))
            except (FileNotFoundError, StoreError, NameRefused):  # not the run to ask
                continue
            for record in records:
                if isinstance(record, EnvironmentLocked) and record.lock.digest == digest:
                    content = wire.dumps(kept_lock(record.spec, record.lock, record.time, ""))
                    objects.replace(key, with_checksum(key, content), sync=True)
                    return True
    return False


class _EnvironmentCheck:
    """One check of all environments."""

    def __init__(self, objects: ObjectStore, signer: Signer | None) -> None:
        """Begin; nothing is read yet."""
        self.findings: list[Finding] = []
        self.blobs: list[tuple[str, str]] = []
        self._objects = objects
        self._signer = signer
        self._locks: set[str] = set()
        self._answers: dict[str, str] = {}
        self._names: dict[str, list[str]] = {}

    def look_at(self, key: str) -> None:
        """Check an object."""
        kind = key.split("/")[1]
        place = _place_of(key)
        if place is None:
            self.findings.append(Finding("note", key, _FOREIGN))
            return
        if kind == "locks":
            self._locks.add(key)  # one that is damaged is told once
        try:
            problem = self._problem(kind, key, place)
        except FileNotFoundError:  # removed since
            self._locks.discard(key)
            return
        except StoreDamaged:
            problem = "it is not what was written"
        except StoreError as error:
            problem = f"cannot be read: {error.message}"
        if problem:
            self.findings.append(Finding("damage", key, problem, (place,), _REMEDIES[kind]))

    def _problem(self, kind: str, key: str, place: str) -> str:
        """Return what is wrong with an object that can be read; empty where nothing is."""
        content, record = parsed_record(_KINDS[kind], key, self._objects.read(key), self._objects.url)
        if _key_of(record, key) != key:
            return "it speaks of something else than its name says"
        if self._signer is not None and not self._signer.accepts_text(content, key):
            problem = "it is not signed with the key of storage.signing_key, and not used"
            self.findings.append(
                Finding("note", key, problem, (place,), "resolve, name or bundle it again with the key")
            )
        if isinstance(record, Answer):
            self._answers[key] = layout.environment_lock(record.lock_digest)
        elif isinstance(record, NamedLock):
            self._names.setdefault(layout.environment_lock(record.lock_digest), []).append(place)
        elif isinstance(record, Bundle):
            needed = ((digest, name) for name, ref in record.files.items() for digest, _ in blobs_of(ref))
            self.blobs += [(digest, f"{place} ({name})") for digest, name in needed]
        return ""

    def look_for_locks(self) -> None:
        """Note the locks that names and answers lead to, and that are not there."""
        for key, names in self._names.items():
            if key not in self._locks:
                remedy = "mlp fsck --repair restores it from a run that has it; else name another one"
                self.findings.append(Finding("damage", key, "it is missing", tuple(names), remedy))
        for key, lock in self._answers.items():
            if lock not in self._locks:
                problem = f"its lock {short_digest(lock.rpartition('/')[2])} is not there"
                self.findings.append(Finding("leftover", key, problem, (), "mlp gc removes it"))


def _place_of(key: str) -> str | None:
    """Return how an object of environments is called for people; None where none has such a key."""
    try:
        match key.split("/")[1:]:
            case ["locks", digest] if layout.environment_lock(digest) == key:
                return f"{PLACE}{digest[7:19]}"
            case ["answers", spec, platforms] if layout.environment_answers(spec) + platforms == key:
                return f"{PLACE}answer to {spec[7:19]} for {platforms}"
            case ["names", name, tag] if layout.environment_name(name.replace("~", "/"), tag) == key:
                return f"{PLACE}{name.replace('~', '/')}:{tag}"
            case ["bundles", digest, platform] if bundle_key(f"{digest}/{platform}") == key:
                return f"{PLACE}{digest[7:19]} bundle {platform}"
    except (NameRefused, StoreDamaged):
        pass
    return None


def _key_of(record: KeptLock | Answer | NamedLock | Bundle, key: str) -> str:
    """Return the key that a record belongs under, as far as it tells that."""
    try:
        match record:
            case KeptLock():
                return layout.environment_lock(record.lock.digest)
            case Answer():
                layout.environment_lock(record.lock_digest)
                return layout.environment_answers(record.spec_digest) + key.rpartition("/")[2]
            case NamedLock():
                layout.environment_lock(record.lock_digest)
                return layout.environment_name(record.name, record.tag)
            case Bundle():
                return layout.environment_bundle(record.lock_digest, record.platform)
    except (NameRefused, StoreDamaged):
        return ""
