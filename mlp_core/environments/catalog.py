"""The environments of a store: every lock that was resolved, what names stand for, and the files of bundles.

All of it lies under ``environments/``: ``locks/<digest>`` and ``bundles/<digest>/<platform>``, which do not change;
``answers/<requirement's digest>/<platforms>``, which says which lock a requirement was answered with; and
``names/<name>/<tag>``. The tags ``latest``, ``candidate`` and ``stable`` move; any other stands for one lock for good.
"""

from __future__ import annotations

import contextlib
import re
import time
from typing import TYPE_CHECKING, Final, TypeVar

import attrs

from mlp_core import names
from mlp_core.environments.records import Answer, Bundle, KeptLock, NamedLock
from mlp_core.errors import NameRefused, NotFound, StoreDamaged, StoreError, StoreUntrusted, UsageError
from mlp_core.store import layout
from mlp_core.store.checked import with_checksum, without_checksum
from mlp_hookspecs import wire

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mlp_core.store import Store
    from mlp_core.store.records import EnvironmentLocked
    from mlp_hookspecs import ArtifactRef, EnvironmentLock, EnvironmentSpec

MOVABLE_TAGS: Final = ("latest", "candidate", "stable")
"""The tags that may stand for another lock tomorrow."""

_MAX_BYTES: Final = 64 * 2**20
_NEW_SECONDS: Final = 3600
_DIGEST: Final = re.compile(r"(sha256-)?[0-9a-f]{8,64}")

_Record = TypeVar("_Record", KeptLock, Answer, NamedLock, Bundle)


class Catalog:
    """The environments of a store.

    Parameters
    ----------
    store : Store
        The store.
    username : str
        Who keeps and names what is kept and named here.
    """

    def __init__(self, store: Store, username: str = "") -> None:
        """Make the view; nothing is read yet."""
        self._store = store
        self._username = username

    # --------------------------------------------------------------------------------------------- locks

    def keep(self, spec: EnvironmentSpec, lock: EnvironmentLock, platforms: Iterable[str]) -> None:
        """Keep a lock durably, as the answer to a requirement for some platforms."""
        self.adopt(kept_lock(spec, lock, time.time(), self._username))
        answer = Answer(spec.digest, lock.digest, time.time())
        self._replace(layout.environment_answer(spec.digest, platforms), answer)

    def adopt(self, kept: KeptLock) -> None:
        """Keep a lock durably, unless it is kept already."""
        key = layout.environment_lock(kept.lock.digest)
        if not self._create(key, kept):
            try:
                self._kept(kept.lock.digest)
            except StoreError:  # what is damaged, or not signed, is written anew
                self._replace(key, kept)

    def answer(self, spec: EnvironmentSpec, platforms: Iterable[str], *, renew: bool = False) -> EnvironmentLock | None:
        """Return the lock that a requirement was answered with for some platforms; None where there is none intact.

        Who is going to use it makes an old answer new, so that nobody removes the lock as unused before the run that
        has it says so.
        """
        key = layout.environment_answer(spec.digest, platforms)
        try:
            answer = self._read(Answer, key)
            if answer.spec_digest != spec.digest:
                return None
            if renew and abs(time.time() - answer.time) > _NEW_SECONDS:
                with contextlib.suppress(StoreError):  # a store that is only read
                    self._replace(key, attrs.evolve(answer, time=time.time()))
            return self._kept(answer.lock_digest).lock
        except (FileNotFoundError, StoreUntrusted, StoreDamaged):
            return None

    def kept(self, digest: str) -> KeptLock:
        """Return a lock with what it was resolved from; NotFound where it is not kept here."""
        try:
            return self._kept(digest)
        except FileNotFoundError:
            raise NotFound(f"there is no environment {digest} in {self._store.url}", hint="mlp env list") from None

    def locks(self) -> list[KeptLock]:
        """Return all locks, the newest first."""
        found = []
        for digest in self._children(layout.ENVIRONMENT_LOCKS):
            with contextlib.suppress(FileNotFoundError):  # removed since
                found.append(self._kept(digest))
        return sorted(found, key=lambda kept: -kept.time)

    def remove(self, digest: str) -> None:
        """Forget a lock with its bundles; UsageError where a name stands for it."""
        names_of = [str(named) for named in self.named() if named.lock_digest == digest]
        if names_of:
            raise UsageError(
                f"environment {names.short_digest(digest)} is {', '.join(names_of)}", hint="remove the names first"
            )
        for platform in self._children(layout.environment_bundles(digest)):
            self._store.objects.delete(layout.environment_bundles(digest) + platform)
        self._store.objects.delete(layout.environment_lock(digest))

    # --------------------------------------------------------------------------------------------- names

    def name(self, name: str, digest: str) -> NamedLock:
        """Let a name stand for a lock.

        Parameters
        ----------
        name : str
            ``name`` or ``name:tag``; without a tag it is ``latest``.
        digest : str
            The lock, which is kept here.

        Returns
        -------
        NamedLock
            What was written, or was there already.

        Raises
        ------
        UsageError
            Where the name is refused, or its tag does not move and stands for another lock.
        """
        base, tag = split_name(name)
        named = NamedLock(base, tag, digest, time.time(), self._username)
        key = layout.environment_name(base, tag)
        if tag in MOVABLE_TAGS:
            self._replace(key, named)
            return named
        if self._create(key, named):
            return named
        before = self._read(NamedLock, key)
        if before.lock_digest != digest:
            raise UsageError(
                f"environment {named} is {names.short_digest(before.lock_digest)} already, and its tag does not move",
                hint=f"take another tag, or one of those that move: {', '.join(MOVABLE_TAGS)}",
            )
        return before

    def unname(self, name: str) -> NamedLock:
        """Let a name stand for nothing any more; NotFound where it does not."""
        named = self._named(*split_name(name))
        self._store.objects.delete(layout.environment_name(named.name, named.tag))
        return named

    def named(self) -> list[NamedLock]:
        """Return what all names stand for, by name and tag."""
        found = []
        for part in self._children(layout.ENVIRONMENT_NAMES):
            base = part.replace("~", "/")
            try:
                tags = self._children(layout.environment_tags(base))
            except NameRefused:  # not ours
                continue
            for tag in tags:
                with contextlib.suppress(NotFound):  # removed since
                    found.append(self._named(base, tag))
        return found

    def find(self, text: str) -> EnvironmentLock:
        """Return the lock that somebody means; parameters and errors as `look_up`."""
        return self.look_up(text).lock

    def look_up(self, text: str) -> KeptLock:
        """Return the lock that somebody means, with what it was resolved from; one that only a run has is not kept.

        Parameters
        ----------
        text : str
            A name with or without a tag, a lock's digest or at least the first eight digits of it, or the pathspec of
            a run, step or task.

        Raises
        ------
        NotFound
            Where there is none.
        UsageError
            Where several are meant, or the text is refused.
        StoreUntrusted
            Where records are to be signed, and those that tell of it are not.
        """
        if is_digest(text):
            return self._by_digest(text.removeprefix("sha256-"))
        if is_pathspec(text):
            return self._by_pathspec(names.Pathspec.parse(text))
        try:
            return self.kept(self._named(*split_name(text)).lock_digest)
        except NotFound:
            # A flow may be called in lower case, too.
            with contextlib.suppress(NotFound):
                if _has_run_id(text):
                    return self._by_pathspec(names.Pathspec.parse(text))
            raise

    def pathspec(self, text: str) -> names.Pathspec | None:
        """Return the place of a run, step or task that a text means here; None where it is a name or digest."""
        if not _has_run_id(text):
            return None
        if not is_pathspec(text):
            with contextlib.suppress(NotFound):
                self._named(*split_name(text))
                return None
        return names.Pathspec.parse(text)

    def _by_digest(self, digits: str) -> KeptLock:
        """Return the lock whose digest begins like this."""
        found = [each for each in self._children(layout.ENVIRONMENT_LOCKS) if each[7:].startswith(digits)]
        if not found:
            raise NotFound(f"there is no environment {digits} in {self._store.url}", hint="mlp env list")
        if len(found) > 1:
            raise UsageError(f"{len(found)} environments begin with {digits}", hint="give more digits")
        return self._kept(found[0])

    def _by_pathspec(self, pathspec: names.Pathspec) -> KeptLock:
        """Return the lock that a task, the tasks of a step, or all steps of a run had."""
        state = self._store.run(pathspec.flow, str(pathspec.run_id))
        self._store.require_signed(state)
        step, task_id = pathspec.step, pathspec.task_id
        if step is not None and step not in state.began.graph:
            raise NotFound(
                f"{pathspec.flow} has no step {names.shown(step)}",
                hint=f"its steps are {', '.join(node.name for node in state.began.graph.steps)}",
            )
        found: dict[str, EnvironmentLocked] = {}
        for key in state.tasks:
            if step in (None, key.step) and task_id in (None, key.task_id):
                record = state.environment_of(key)
                if record is not None:
                    found[record.lock.digest] = record
        if not found:
            raise NotFound(
                f"{pathspec} had no environment of its own: it ran in the interpreter that started the run",
                hint="give a step that has one: mlp env show FLOW/RUN",
            )
        if len(found) > 1:
            raise UsageError(
                f"{pathspec} had {len(found)} environments: {', '.join(map(names.short_digest, found))}",
                hint="name a step, or a task",
            )
        record = next(iter(found.values()))
        try:
            return self._kept(record.lock.digest)
        except (FileNotFoundError, StoreError):  # such as in a store that the run was copied to
            return kept_lock(record.spec, record.lock, record.time, state.context.username)

    # --------------------------------------------------------------------------------------------- bundles

    def add_bundle(self, digest: str, platform: str, files: Mapping[str, ArtifactRef]) -> Bundle:
        """Say which files a lock needs on a platform; they are stored and durable already."""
        bundle = Bundle(digest, platform, dict(files), time.time())
        self._replace(layout.environment_bundle(digest, platform), bundle)
        return bundle

    def bundle(self, digest: str, platform: str) -> Bundle | None:
        """Return the files of a lock for a platform; None where there are none.

        Raises
        ------
        StoreDamaged
            Where they are another lock's.
        """
        key = layout.environment_bundle(digest, platform)
        try:
            bundle = self._read(Bundle, key)
        except FileNotFoundError:
            return None
        if (bundle.lock_digest, bundle.platform) != (digest, platform):
            raise StoreDamaged(f"{key} in {self._store.url} is another environment's")
        return bundle

    def bundles(self, digest: str) -> list[Bundle]:
        """Return all bundles of a lock."""
        platforms = ["" if each == "own" else each for each in self._children(layout.environment_bundles(digest))]
        return [found for platform in platforms if (found := self.bundle(digest, platform)) is not None]

    # --------------------------------------------------------------------------------------------- objects

    def _kept(self, digest: str) -> KeptLock:
        """Return a kept lock; FileNotFoundError where there is none."""
        key = layout.environment_lock(digest)
        kept = self._read(KeptLock, key)
        if kept.lock.digest != digest:
            raise StoreDamaged(f"{key} in {self._store.url} is another environment's", hint="mlp fsck")
        return kept

    def _named(self, name: str, tag: str) -> NamedLock:
        """Return what a name stands for."""
        try:
            return self._read(NamedLock, layout.environment_name(name, tag))
        except FileNotFoundError:
            raise self._unknown(name, tag) from None

    def _unknown(self, name: str, tag: str) -> NotFound:
        """Return the error of a name that stands for nothing."""
        tags = self._children(layout.environment_tags(name))
        if tags:
            hint = f"its tags are {', '.join(tags)}"
        else:
            known = sorted({part.replace("~", "/") for part in self._children(layout.ENVIRONMENT_NAMES)})
            close = names.closest(name, known)
            hint = f"did you mean {close}?" if close else "name one: mlp env alias PATHSPEC NAME[:TAG]"
        return NotFound(f"there is no environment {name}:{tag} in {self._store.url}", hint=hint)

    def _children(self, prefix: str) -> Sequence[str]:
        """Return the names below a prefix, sorted."""
        return sorted(self._store.objects.children(prefix))

    def _create(self, key: str, record: _Record) -> bool:
        """Write a record durably unless there is one; tell whether it was written."""
        return self._store.objects.create(key, self._encoded(key, record), sync=True)

    def _replace(self, key: str, record: _Record) -> None:
        """Write a record durably, in place of what is there."""
        self._store.objects.replace(key, self._encoded(key, record), sync=True)

    def _encoded(self, key: str, record: _Record) -> bytes:
        """Return what is stored of a record, signed where records are."""
        content = wire.dumps(record)
        if self._store.signer is not None:
            content = self._store.signer.sign_text(content, key)
        return with_checksum(key, content)

    def _read(self, kind: type[_Record], key: str) -> _Record:
        """Return a record.

        Raises
        ------
        FileNotFoundError
            Where there is none.
        StoreDamaged
            Where it is not what was written.
        StoreUntrusted
            Where it is to be signed and is not.
        """
        return read_record(kind, key, self._store)


def read_record(kind: type[_Record], key: str, store: Store) -> _Record:
    """Return a record of a store's environments; errors as `Catalog` raises them, FileNotFoundError for none."""
    stored = store.objects.read(key, 0, _MAX_BYTES + 1)
    if len(stored) > _MAX_BYTES:
        raise StoreDamaged(f"{key} in {store.url} has more than {_MAX_BYTES:,} bytes")
    content, record = parsed_record(kind, key, stored, store.url)
    if store.signer is not None and not store.signer.accepts_text(content, key):
        raise StoreUntrusted(
            f"{key} in {store.url} is not signed with the key of storage.signing_key, so its packages are not used",
            hint="resolve the environment again with the key: mlp env resolve --upgrade FLOW.py",
        )
    return record


def parsed_record(kind: type[_Record], key: str, stored: bytes, url: str) -> tuple[bytes, _Record]:
    """Return the content of what is stored under a key, and the record in it; StoreDamaged where it is damaged."""
    if stored.startswith(b"{"):  # only what a store of the first format has is without a checksum
        raise StoreDamaged(f"{key} in {url} is damaged: it has no checksum", hint="to see what is wrong: mlp fsck")
    content = without_checksum(key, stored, url)
    try:
        return content, wire.loads(kind, content)
    except ValueError as error:
        raise StoreDamaged(f"{key} in {url} cannot be read: {error}") from error


def kept_lock(spec: EnvironmentSpec, lock: EnvironmentLock, moment: float, username: str) -> KeptLock:
    """Return a lock as it is kept: its base is told by its digest."""
    base = spec.base.digest if spec.base is not None else ""
    return KeptLock(attrs.evolve(spec, base=None), base, lock, moment, username)


def split_name(text: str) -> tuple[str, str]:
    """Return name and tag of ``name[:tag]``, checked; NameRefused where either is refused."""
    name, colon, tag = text.partition(":")
    if is_pathspec(name):
        raise NameRefused(f"environment {names.shown(name)} is refused: it looks like a run's pathspec")
    if is_digest(name):
        raise NameRefused(f"environment {names.shown(name)} is refused: it looks like a digest")
    return names.environment(name), names.label(tag, "tag") if colon else "latest"


def is_digest(text: str) -> bool:
    """Tell whether a text is a lock's digest or the beginning of one, rather than a name."""
    return _DIGEST.fullmatch(text) is not None


def is_pathspec(text: str) -> bool:
    """Tell whether a text is a pathspec of a run or of something in one, rather than a name.

    Names are in lower case, and may have a run's id in them: ``explainer/20260131-094500-123456``.
    """
    if not _has_run_id(text):
        return False
    try:
        names.environment(text.partition(":")[0])
    except NameRefused:
        return True
    return False


def _has_run_id(text: str) -> bool:
    """Tell whether the second part of a text is a run's id."""
    parts = text.split("/")
    if len(parts) == 1:
        return False
    try:
        names.run_id(parts[1])
    except NameRefused:
        return False
    return True
