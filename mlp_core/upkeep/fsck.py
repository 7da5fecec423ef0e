"""How a store is checked: every byte of it is read and held against its hash, checksum or number.

Nothing is trusted, neither what was verified before nor that names are what they should be, and nothing is changed. A
store can be checked while runs go on in it.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeAlias

from mlp_core import names
from mlp_core.errors import MlpError, NameRefused, NotFound, StoreDamaged, StoreError
from mlp_core.store import layout
from mlp_core.store.content import digest_text, hash_file
from mlp_core.store.faults import translated
from mlp_core.store.journal import read_journal
from mlp_core.store.segments import read_segments
from mlp_core.store.signing import Signatures
from mlp_core.store.store import FORMAT_VERSION
from mlp_core.upkeep.deployment_check import check_blueprint, check_deployments, check_targets
from mlp_core.upkeep.environment_check import PLACE, check_environments
from mlp_core.upkeep.findings import Finding, Report, Tally
from mlp_core.upkeep.folder import DAMAGED, FOLDERS, TARGETS, check_folder, store_folder, unfinished
from mlp_core.upkeep.parts_check import check_parts
from mlp_core.upkeep.run_check import REMOVED, RunCheck
from mlp_core.upkeep.transfer import in_parallel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from mlp_core.store.signing import Signer
    from mlp_hookspecs.handles import ObjectInfo, ObjectStore

FORMAT_CONTENTS: Final = tuple(b'{"format": %d}\n' % version for version in range(1, FORMAT_VERSION + 1))
"""What a store says of itself, oldest first."""

IGNORE_CONTENT: Final = b"*\n"

_AT_ONCE_LOCAL: Final = 4
_AT_ONCE: Final = 16
_RANGE: Final = 8 * 2**20
_Looked: TypeAlias = tuple[list[Finding], list[tuple[str, str]], int, int]
"""Of a run: what was found, which blobs are needed by whom, how many objects were read, and bytes."""

_MISSING: Final = "it is missing"
_NAMED: Final = 50
"""How many of those who need one damaged blob are named."""


def check_store(
    objects: ObjectStore,
    runs: Sequence[tuple[str, str]] = (),
    *,
    shared: bool = False,
    signer: Signer | None = None,
    told: Callable[[Tally], None] = lambda _: None,
) -> Report:
    """Check a store, or some runs of it with all that they need.

    Parameters
    ----------
    objects : ObjectStore
        The store's objects; it may be too damaged to be opened as a store.
    runs : sequence of (str, str)
        Flows and ids; none for everything.
    shared : bool
        Whether the setting ``storage.shared`` lets the folder's group read and write.
    signer : Signer or None
        Who knows what is signed, where the setting ``storage.signing_key`` asks for that.
    told : callable
        Called now and then with how far the check has come.

    Returns
    -------
    Report
        What was found.

    Raises
    ------
    NotFound
        Where there is no such run, or no store at all.
    StoreError
        Where the store cannot be read at all.
    """
    at_once = _AT_ONCE if store_folder(objects) is None else _AT_ONCE_LOCAL
    with ThreadPoolExecutor(at_once, thread_name_prefix="mlp-fsck") as pool:
        check = _Check(objects, pool, at_once, told, signer)
        if runs:
            check.some(runs)
        else:
            check.everything(shared=shared)
    findings = sorted(check.findings, key=lambda finding: (finding.key, finding.problem))
    return Report(tuple(findings), check.tally.objects, check.tally.size, check.tally.runs)


class _Check:
    """One check of a store."""

    def __init__(
        self,
        objects: ObjectStore,
        pool: ThreadPoolExecutor,
        at_once: int,
        told: Callable[[Tally], None],
        signer: Signer | None,
    ) -> None:
        """Begin; nothing is read yet."""
        self.findings: list[Finding] = []
        self.tally = Tally()
        self._objects = objects
        self._pool = pool
        self._at_once = at_once
        self._told = told
        self._signer = signer
        self._odd: set[str] = set()
        self._intact: set[bytes] = set()
        self._bad: dict[str, str] = {}
        self._needed_by: dict[str, dict[str, None]] = {}

    def everything(self, *, shared: bool) -> None:
        """Check all that there is."""
        self._check_root(shared=shared)
        if any(finding.key == layout.FORMAT and finding.remedy.startswith("upgrade") for finding in self.findings):
            return
        self._check_blobs()
        self._check_runs(self._runs())
        for digest in self._objects.children(layout.BLUEPRINTS):
            self._take(check_blueprint(self._objects, digest, self._odd))
        self._take(check_deployments(self._objects, self._odd))
        self._take((check_targets(self._objects, TARGETS, self._odd), []))
        self._take(check_environments(self._objects, self._odd, self._signer))
        self._tell_blobs()
        quarantined = sum(1 for _ in self._objects.list(DAMAGED))
        if quarantined:
            problem = f"{quarantined} objects that earlier repairs have moved away"
            self._add("note", DAMAGED, problem, "mlp gc removes them once nobody needs them")

    def some(self, runs: Sequence[tuple[str, str]]) -> None:
        """Check some runs and what they need."""
        found = []
        for flow, run_id in runs:
            prefix = layout.run(flow, run_id)
            infos = {info.key.removeprefix(prefix): info for info in self._objects.list(prefix)}
            if not infos and not self._parts(flow, run_id):
                raise NotFound(f"there is no run {flow}/{run_id} in {self._objects.url}", hint="mlp list lists them")
            found.append((flow, run_id, infos))
        self._check_runs(found)
        self._tell_blobs()

    def _add(self, severity: str, key: str, problem: str, remedy: str = "", affects: tuple[str, ...] = ()) -> None:
        """Note something."""
        self.findings.append(Finding(severity, key, problem, affects, remedy))  # type: ignore[arg-type] # one of its words

    def _count(self, size: int, objects: int = 1) -> None:
        """Count what was read."""
        self.tally.objects += objects
        self.tally.size += size
        self._told(self.tally)

    def _check_root(self, *, shared: bool) -> None:
        """Check what lies beside the objects that runs and deployments make."""
        folder = store_folder(self._objects)
        if folder is not None:
            if not folder.is_dir():
                raise NotFound(f"there is no store at {self._objects.url}", hint="a run makes one")
            found, self._odd = check_folder(folder, shared=shared)
            self.findings += found
            for each in unfinished(folder, _now()):
                problem = f"{each.files} unfinished files ({each.size} bytes) of a process that has ended"
                self._add("leftover", f"{each.path.parent.name}/{each.path.name}", problem, "mlp gc removes them")
        for name in self._objects.children(""):
            if f"{name}/" not in FOLDERS and name not in (layout.FORMAT, layout.GITIGNORE):
                self._add("note", name, "nothing in a store has this name: it does not belong there")
        self._check_format()
        if self._read(layout.GITIGNORE) not in (IGNORE_CONTENT, None) or (
            folder is not None and self._read(layout.GITIGNORE) is None
        ):
            self._add("note", layout.GITIGNORE, "it is not as it was made, so that git may take the store for its own")

    def _check_format(self) -> None:
        """Check what says which version of the platform made the store."""
        content = self._read(layout.FORMAT)
        if content in FORMAT_CONTENTS:
            return
        if content is None:
            if not any(self._objects.children(folder) for folder in FOLDERS):
                raise NotFound(f"there is no store at {self._objects.url}", hint="a run makes one")
            self._add("damage", layout.FORMAT, "it is missing", "mlp fsck --repair writes it anew", ("everything",))
            return
        try:
            version = json.loads(content)["format"]
        except (ValueError, KeyError, TypeError, RecursionError):
            version = None
        if type(version) is int and version > FORMAT_VERSION:
            problem = f"it says format {version}, and this version of mlp-core knows format {FORMAT_VERSION}"
            remedy = "upgrade mlp-core, where a newer one made the store; else restore the file: nothing else was read"
            self._add("damage", layout.FORMAT, problem, remedy, ("everything",))
        else:
            remedy = "mlp fsck --repair writes it anew"
            self._add("damage", layout.FORMAT, "it is not what was written", remedy, ("everything",))

    def _read(self, key: str) -> bytes | None:
        """Return an object's bytes; None where there is none or it cannot be read, which is noted."""
        if key in self._odd:
            return b""
        try:
            content = self._objects.read(key)
        except FileNotFoundError:
            return None
        except StoreError as error:
            self._add("damage", key, f"cannot be read: {error.message}")
            return b""
        self._count(len(content))
        return content

    def _check_blobs(self) -> None:
        """Hash all blobs."""
        for digest, problem, size in in_parallel(self._pool, self._hashed, self._blob_digests(), self._at_once):
            self._took(digest, problem, size)

    def _blob_digests(self) -> Iterator[str]:
        """Iterate over the digests that blobs have for names."""
        for info in self._objects.list(layout.BLOBS):
            digest = info.key.rpartition("/")[2]
            try:
                is_blob = layout.blob(digest) == info.key
            except StoreDamaged:
                is_blob = False
            if not is_blob:
                self._add("note", info.key, "no blob has this name: it does not belong there")
            elif info.key not in self._odd:
                yield digest

    def _hashed(self, digest: str) -> tuple[str, str, int]:
        """Return a digest, what is wrong with its blob, and how much was read; called in other threads."""
        key = layout.blob(digest)
        try:
            found, size = self._digest(key)
        except FileNotFoundError:
            return digest, _MISSING, 0
        except StoreError as error:
            return digest, f"cannot be read: {error.message}", 0
        return digest, "" if found == digest else f"its {size} bytes do not match its hash", size

    def _digest(self, key: str) -> tuple[str, int]:
        """Hash an object, a piece at a time."""
        path = self._objects.local_path(key)
        if path is not None:
            with translated(str(path)):
                return hash_file(path)
        hasher, size = hashlib.sha256(), 0
        while True:
            piece = self._objects.read(key, size, size + _RANGE)
            hasher.update(piece)
            size += len(piece)
            if len(piece) < _RANGE:
                return digest_text(hasher), size

    def _took(self, digest: str, problem: str, size: int) -> None:
        """Remember how a blob was found."""
        if problem:
            self._bad[digest] = problem
        else:
            self._intact.add(bytes.fromhex(digest[7:]))
        self._count(size)

    def _runs(self) -> Iterator[tuple[str, str, dict[str, ObjectInfo]]]:
        """Iterate over all runs, with their objects by the rest of their keys."""
        seen = self._objects.children(layout.FLOWS)
        for flow in sorted({*seen, *self._objects.children(layout.PARTS)}):
            if not _passes(lambda name: names.identifier(name, "flow"), flow):
                key = f"{layout.FLOWS if flow in seen else layout.PARTS}{flow}"
                self._add("note", key, "no flow has this name: it does not belong there")
                continue
            prefix = layout.flow(flow)
            runs: dict[str, dict[str, ObjectInfo]] = {}
            parted = self._objects.children(layout.parts_of_flow(flow))
            for run_id in {*self._objects.children(prefix), *parted}:
                if _passes(names.run_id, run_id):
                    runs[run_id] = {}
                else:
                    self._add("note", prefix + run_id, "no run has this name: it does not belong there")
            for info in self._objects.list(prefix):
                run_id, _, rest = info.key.removeprefix(prefix).partition("/")
                if run_id in runs and rest:
                    runs[run_id][rest] = info
                elif run_id in runs:
                    self._add("note", info.key, "a run is a folder: it does not belong there")
            for run_id, infos in sorted(runs.items()):
                yield flow, run_id, infos

    def _parts(self, flow: str, run_id: str) -> list[ObjectInfo]:
        """Return the parts of what a run on a bucket grows."""
        return list(self._objects.list(layout.parts_of_run(flow, run_id)))

    def _check_runs(self, runs: Iterable[tuple[str, str, dict[str, ObjectInfo]]]) -> None:
        """Check runs, several at once where each answer takes its time, and look for what they need."""
        at_once = 1 if store_folder(self._objects) is not None else self._at_once
        looked = map(self._look_at, runs) if at_once == 1 else in_parallel(self._pool, self._look_at, runs, at_once)
        for findings, blobs, objects, size in looked:
            self.findings += findings
            self._need(blobs)
            self.tally.runs += 1
            self._count(size, objects)

    def _look_at(self, run: tuple[str, str, dict[str, ObjectInfo]]) -> _Looked:
        """Check a run; called in other threads."""
        flow, run_id, infos = run
        prefix = layout.run(flow, run_id)
        odd = {key.removeprefix(prefix) for key in self._odd if key.startswith(prefix)}
        check = RunCheck(self._objects, flow, run_id, {name: info for name, info in infos.items() if name not in odd})
        if "journal" not in odd:
            try:
                check.check()
            except (MlpError, ValueError, TypeError, KeyError, RecursionError) as error:
                problem = f"its records are nothing that a writer makes: {error}"
                check.findings.append(Finding("damage", layout.journal(flow, run_id), problem, (f"{flow}/{run_id}",)))
        parts = self._parts(flow, run_id) if store_folder(self._objects) is None else []
        findings = [*check.findings, *check_parts(self._objects, flow, run_id, parts)]
        read = [*infos.values(), *parts]
        size = sum(info.size for info in read)
        if self._is_going(flow, run_id, infos):
            return [], [], len(read), size
        if self._signer is not None and not any(finding.severity == "damage" for finding in findings):
            findings += self._unsigned(self._signer, flow, run_id)
        return findings, check.blobs, len(read), size

    def _unsigned(self, signer: Signer, flow: str, run_id: str) -> Iterator[Finding]:
        """Note where not all records of an intact run are signed that have to be."""
        signatures = Signatures(signer)
        key = layout.journal(flow, run_id)
        with suppress(FileNotFoundError, StoreError):  # gone since, or told already
            read_journal(self._objects, key, check=signatures.watch(key))
            read_segments(self._objects, flow, run_id, signatures=signatures)
        if not signatures.are_good:
            problem = "not all of its records are signed with the key of storage.signing_key: it is not trusted"
            yield Finding("note", key, problem, (f"{flow}/{run_id}",))

    def _is_going(self, flow: str, run_id: str, infos: dict[str, ObjectInfo]) -> bool:
        """Tell whether somebody has begun to delete a run since its objects were listed."""
        if REMOVED in infos:
            return False
        now = self._objects.children(layout.run(flow, run_id))
        return REMOVED in now or (bool(infos) and not now)

    def _take(self, checked: tuple[list[Finding], list[tuple[str, str]]]) -> None:
        """Take up what was found, and what is needed."""
        self.findings += checked[0]
        self._need(checked[1])

    def _need(self, blobs: Iterable[tuple[str, str]]) -> None:
        """Note who needs which blobs, and look at those that were not there before."""
        needed = [each for each in blobs if self._is_digest(*each)]
        unknown = [each for each in dict.fromkeys(digest for digest, _ in needed) if not self._is_known(each)]
        for digest, problem, size in in_parallel(self._pool, self._hashed, unknown, self._at_once):
            self._took(digest, problem, size)
        for digest, name in needed:
            if digest in self._bad:
                self._needed_by.setdefault(digest, {})[name] = None

    def _is_digest(self, digest: str, name: str) -> bool:
        """Tell whether what somebody needs can be there; note where it cannot."""
        try:
            layout.blob(digest)
        except StoreDamaged as error:
            self._add("damage", _key_of(name), error.message, affects=(name,))
            return False
        return True

    def _is_known(self, digest: str) -> bool:
        """Tell whether a blob was looked at."""
        return digest in self._bad or bytes.fromhex(digest[7:]) in self._intact

    def _is_gone(self, place: str) -> bool:
        """Tell whether the run that a place lies in was deleted since it was checked."""
        run = _run_of(place)
        if run is None:
            return False
        left = self._objects.children(layout.run(*run))
        return REMOVED in left or not (left or self._parts(*run))

    def _tell_blobs(self) -> None:
        """Note the damaged and missing blobs with those who need them."""
        for digest, problem in self._bad.items():
            key = layout.blob(digest)
            again, size = ("", 0) if key in self._odd else self._hashed(digest)[1:]
            if not again and key not in self._odd:  # made anew in the meantime
                self._count(size)
                continue
            who = tuple(name for name in self._needed_by.get(digest, ()) if not self._is_gone(name))
            if not who and again == _MISSING:  # it went with the runs that needed it
                continue
            more = (f"and {len(who) - _NAMED} more",) if len(who) > _NAMED else ()
            remedy = _remedy(who[0]) if who else "nobody needs it; mlp fsck --repair moves it away"
            self._add("damage", key, problem, remedy, (*who[:_NAMED], *more))


def _run_of(place: str) -> tuple[str, str] | None:
    """Return the run that a place lies in; None where it is a deployment's, a blueprint's or an environment's."""
    if place.startswith(("blueprint ", "deployment ", PLACE)):
        return None
    flow, run_id, *_ = place.partition(" ")[0].split("/")
    return flow, run_id


def _key_of(place: str) -> str:
    """Return the key of what speaks of a place."""
    run = _run_of(place)
    return layout.journal(*run) if run is not None else place.partition(" (")[0]


def _remedy(place: str) -> str:
    """Return how what a place needs is made anew."""
    run = _run_of(place)
    if run is None:
        return "bundle it again: mlp env bundle ENVIRONMENT" if place.startswith(PLACE) else "deploy the flow again"
    return f"run again what made it: mlp resume FLOW.py --origin-run-id {run[1]}"


def _passes(check: Callable[[str], str], name: str) -> bool:
    """Tell whether a name passes the grammar."""
    try:
        check(name)
    except NameRefused:
        return False
    return True


def _now() -> float:
    """Return the time, in seconds since the epoch."""
    import time

    return time.time()
