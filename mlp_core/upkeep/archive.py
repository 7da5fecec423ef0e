"""How a run becomes one file, and how such a file, which anybody may have made, becomes a run again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from typing import IO, TYPE_CHECKING, Final, Self

import attrs

from mlp_core.errors import MlpError, NotFound, StoreDamaged, StoreFull, UsageError
from mlp_core.names import short_digest
from mlp_core.store import layout
from mlp_core.store.content import digest_text, sha256
from mlp_core.store.growing import GrowingReader
from mlp_core.store.references import digests_of
from mlp_core.upkeep import archive_format as form
from mlp_core.upkeep.archive_format import Manifest, Member, refused
from mlp_core.upkeep.arrival import Arrival, Copied, Relation
from mlp_core.upkeep.bundle_copies import bundle_key, bundle_name, bundles_of, checked_bundle, locks_of
from mlp_core.upkeep.transfer import PIECE, pieces_of, write_hashed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from mlp_core.store import Store
    from mlp_hookspecs.handles import ObjectStore

_ROOM: Final = 16 * 2**20
"""What is left free at least where contents are put that are not known to be intact yet."""


@attrs.frozen
class Exported:
    """What was packed.

    Attributes
    ----------
    run : str
        The run, ``Flow/20260131-094500-123456``.
    blobs : int
        How many blobs it needs.
    size : int
        How many bytes the archive has.
    """

    run: str
    blobs: int
    size: int


@attrs.frozen
class Imported:
    """What came of an archive.

    Attributes
    ----------
    run : str
        The run, ``Flow/20260131-094500-123456``.
    was : {"absent", "same", "behind", "ahead"}
        How the run that was there before, if any, stood to the one in the archive.
    blobs : int
        How many blobs were not there before.
    size : int
        How many bytes the archive has.
    """

    run: str
    was: Relation
    blobs: int
    size: int


def export_run(
    store: Store, flow: str, run_id: str, target: Path, told: Callable[[int], None] = lambda _: None
) -> Exported:
    """Pack a run with all that it needs into a new file; the same run gives the same bytes.

    Parameters
    ----------
    store : Store
        Where the run is.
    flow, run_id : str
        The run.
    target : pathlib.Path
        The file, which is there only once it is complete.
    told : callable
        Called with how many bytes were written, now and then.

    Returns
    -------
    Exported
        What was packed.

    Raises
    ------
    NotFound
        Where there is no such run.
    UsageError
        Where the run goes on, or the file is there already.
    StoreDamaged
        Where something of the run is missing or is not what was written.
    """
    if os.path.lexists(target):
        raise UsageError(f"{target} is there already", hint="choose another name, or remove it first")
    exporting = _Exporting(store.objects, flow, run_id)
    if not exporting.copied.has_ended and store.run(flow, run_id).status == "running":
        raise UsageError(f"{flow}/{run_id} is still running", hint="export it when it has ended")
    manifest = exporting.manifest()
    with _written(target) as file:
        form.write_manifest(file, manifest)
        for name, member in zip(manifest.member_names(), manifest.members, strict=True):
            file.write(form.member_header(name, member.size))
            exporting.write(file, member)
            file.write(bytes(form.padding(member.size)))
            told(file.tell())
        form.write_end(file)
    blobs = sum(member.kind == "blob" for member in manifest.members)
    return Exported(f"{flow}/{run_id}", blobs, manifest.archive_size())


class _Exporting:
    """The reading of a run that is to be packed."""

    def __init__(self, objects: ObjectStore, flow: str, run_id: str) -> None:
        """Read what the run says."""
        self._objects = objects
        self._flow = flow
        self._run_id = run_id
        try:
            self.copied, self._log_segments = Copied.read(objects, flow, run_id)
        except FileNotFoundError:
            raise NotFound(
                f"there is no run {flow}/{run_id} in {objects.url}", hint="list the runs with: mlp list"
            ) from None
        self._bundles = bundles_of(objects, self.copied.all_records)

    def manifest(self) -> Manifest:
        """Return what the archive will hold."""
        copied = self.copied
        _check_records([copied.journal, *copied.segments.values()])
        members = [Member("journal", sha256(copied.journal), len(copied.journal))]
        members += [Member("segment", sha256(each), len(each), name) for name, each in copied.segments.items()]
        members += [self._log_member("segment", name) for name in self._log_segments]
        members.append(self._log_member("logs", ""))
        bundles = self._bundles.items()
        for key, content in bundles:
            members.append(Member("bundle", sha256(content), len(content), bundle_name(key)))
        files = digests_of(checked_bundle(key, content, self._objects.url) for key, content in bundles)
        members += [Member("blob", digest, size) for digest, size in (copied.blobs | files).items()]
        return Manifest.of(self._flow, self._run_id, members)

    def _log_member(self, kind: form.Kind, name: str) -> Member:
        """Return the entry of a log."""
        hasher = hashlib.sha256()
        size = 0
        for piece in self._log(name):
            hasher.update(piece)
            size += len(piece)
        digest = digest_text(hasher)
        self.copied.check_log(name, digest, size, self._objects.url)
        return Member(kind, digest, size, name)

    def _log(self, name: str) -> Iterator[bytes]:
        """Iterate over the content of the driver's log, or of a segment that holds one."""
        key = layout.segment(self._flow, self._run_id, name) if name else layout.logs(self._flow, self._run_id)
        reader = GrowingReader(self._objects, key)
        size = reader.size()
        for start in range(0, size, PIECE):
            yield reader.read(start, min(size, start + PIECE))

    def write(self, file: IO[bytes], member: Member) -> None:
        """Write a content; StoreDamaged where it is not what the manifest says."""
        hasher = hashlib.sha256()
        size = 0
        try:
            for piece in self._content(member):
                hasher.update(piece)
                size += len(piece)
                if size > member.size:
                    break
                file.write(piece)
        except FileNotFoundError:
            size = -1
        if (digest_text(hasher), size) != (member.digest, member.size):
            what = layout.blob(member.digest) if member.kind == "blob" else f"the {member.kind} {member.name}".rstrip()
            raise StoreDamaged(
                f"{self._flow}/{self._run_id} is not exported: {what} in {self._objects.url} is missing or damaged",
                hint="see: mlp fsck",
            )

    def _content(self, member: Member) -> Iterable[bytes | memoryview]:
        """Return a content in pieces."""
        if member.kind == "journal":
            return (self.copied.journal,)
        if member.kind == "bundle":
            return (self._bundles[bundle_key(member.name)],)
        if member.kind == "blob":
            return pieces_of(self._objects, layout.blob(member.digest), member.size)
        return (self.copied.segments[member.name],) if member.holds_records else self._log(member.name)


def _check_records(contents: Iterable[bytes]) -> None:
    """Raise UsageError where a record is too large to be read back from an archive."""
    for content in contents:
        start = 0
        while start < len(content):
            end = content.find(b"\n", start) + 1 or len(content)
            if end - start > form.MAX_LINE:
                raise UsageError(f"a record of the run is too large for an archive: it has {end - start:,} bytes")
            start = end


@contextlib.contextmanager
def _written(target: Path) -> Iterator[IO[bytes]]:
    """Let a file be written that takes its name only when it is complete and durable."""
    import tempfile

    try:
        fd, unfinished = tempfile.mkstemp(prefix=".mlp-", dir=target.parent)
        try:
            with open(fd, "wb") as file:  # noqa: PTH123 # an open file has no path
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.rename(unfinished, target)  # noqa: PTH104 # of a name, as it was given
        except BaseException:
            os.unlink(unfinished)  # noqa: PTH108 # as above
            raise
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise MlpError(
            f"{target} cannot be written: {error.strerror or error}", hint="choose a place with room that is writable"
        ) from error


class Archive:
    """An archive that is open for reading, and of which what can be checked without a store has been checked.

    Parameters
    ----------
    path : pathlib.Path
        The file.

    Attributes
    ----------
    manifest : Manifest
        What it holds.
    copied : Copied
        What its run says.

    Raises
    ------
    UsageError
        Where it is no intact archive of a run.
    """

    def __init__(self, path: Path) -> None:
        """Open it."""
        self._path = path
        with contextlib.ExitStack() as stack, self._named():
            # A pipe would let this wait for ever.
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                os.close(fd)
                raise refused("it is no file")
            self._file = stack.enter_context(open(fd, "rb"))  # noqa: PTH123 # an open file has no path
            self.manifest = form.read_manifest(self._file, status.st_size)
            self._rest = iter(zip(self.manifest.member_names(), self.manifest.members, strict=True))
            self.copied = self._read_records()
            self._resources = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Let errors about the archive name the file."""
        try:
            yield
        except UsageError as error:
            raise UsageError(f"{self._path} is refused: {error.message}", hint=error.hint) from None
        except (OSError, ValueError) as error:  # a path that can be none
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"{self._path} cannot be read: {reason}") from error

    def _read_records(self) -> Copied:
        """Read what stands first: the journal, and the segments that hold records."""
        found: dict[str, bytes] = {}
        for member in [each for each in self.manifest.members if each.holds_records]:
            name, _ = next(self._rest)
            content = b"".join(form.read_member(self._file, name, member.size, PIECE))
            if sha256(content) != member.digest:
                raise refused(f"{name} is not what was packed")
            found[member.name] = content
        journal = found.pop("")
        flow, run_id = self.manifest.flow, self.manifest.run_id
        _check_records([journal, *found.values()])
        try:
            copied = Copied.check(flow, run_id, journal, found, "the archive")
            blobs = copied.blobs
        except StoreDamaged as error:
            raise refused(error.message) from error
        packed = {member.digest: member.size for member in self.manifest.members if member.kind == "blob"}
        missing = [digest for digest, size in blobs.items() if packed.get(digest) != size]
        if missing:
            raise refused(f"its run needs {missing[0]}, which is not in it")
        try:
            members = [each for each in self.manifest.members if not each.holds_records]
            logs = {each.name: each for each in members if each.kind in ("logs", "segment")}
            copied.check_logs(logs, "the archive")
            for name, member in logs.items():
                copied.check_log(name, member.digest, member.size, "the archive")
        except StoreDamaged as error:
            raise refused(error.message) from error
        return copied

    def import_into(self, store: Store, told: Callable[[int], None] = lambda _: None) -> Imported:
        """Put the run into a store: once all of the archive was found to be intact, and whole or not at all.

        Parameters
        ----------
        store : Store
            The store.
        told : callable
            Called with how many bytes were read, now and then.

        Returns
        -------
        Imported
            What came of it.

        Raises
        ------
        UsageError
            Where the archive is not intact, or another run of that name is there.
        StoreError
            Where the store failed, or has not enough room.
        """
        manifest, copied = self.manifest, self.copied
        arrival = Arrival(store.objects, manifest.flow, manifest.run_id, str(self._path))
        arrival.relation(copied.journal)  # before much is written for nothing
        staged: dict[Member, Path] = {}
        try:
            self._stage(store.objects, arrival, staged, told)
            with arrival.held():
                relation = arrival.relation(copied.journal)
                blobs = self._put_in(store.objects, arrival, staged)
                arrival.finish(copied, relation)
        finally:
            for file in staged.values():
                file.unlink(missing_ok=True)
        return Imported(f"{manifest.flow}/{manifest.run_id}", relation, blobs, manifest.archive_size())

    def _stage(
        self, objects: ObjectStore, arrival: Arrival, staged: dict[Member, Path], told: Callable[[int], None]
    ) -> None:
        """Unpack all contents that are no records into unfinished files, to the archive's end."""
        import shutil

        needed = sum(member.size for member in self.manifest.members if not member.holds_records)
        free = shutil.disk_usage(objects.staging()).free
        if needed + _ROOM > free:
            raise StoreFull(
                f"no room left to unpack {self._path}: it needs {needed:,} bytes, and {free:,} are free",
                hint=f"make room where {objects.staging().parent} is",
            )
        with self._named():
            for name, member in self._rest:
                staged[member] = arrival.new_file()
                pieces = form.read_member(self._file, name, member.size, PIECE)
                digest, _ = write_hashed(pieces, staged[member])
                if digest != member.digest:
                    raise refused(f"{name} is not what was packed")
                told(self._file.tell())
            form.read_end(self._file)

    def _put_in(self, objects: ObjectStore, arrival: Arrival, staged: dict[Member, Path]) -> int:
        """Put in all that is not there but the journal, and return how many blobs that were."""
        blobs = 0
        bundles = self._staged_bundles(staged)
        for member in self.manifest.members:
            if member.kind == "blob" and arrival.needs_blob(member.digest, member.size):
                arrival.add_blob(staged.pop(member), member.digest, member.size)
                blobs += 1
        arrival.sync_blobs()
        for key, content in bundles.items():
            arrival.add_bundle(key, content)
        there = arrival.segment_names()
        for name in set(self.copied.segments) - there:
            arrival.add_segment(name, self.copied.segments[name])
        self._add_logs(objects, arrival, staged, there)
        return blobs

    def _staged_bundles(self, staged: Mapping[Member, Path]) -> dict[str, bytes]:
        """Return the bundles that were unpacked, by key, each found to be one that the run can need."""
        packed = {member.digest: member.size for member in self.manifest.members if member.kind == "blob"}
        locks = locks_of(self.copied.all_records)
        found = {}
        for member, file in staged.items():
            if member.kind == "bundle":
                key, content = bundle_key(member.name), file.read_bytes()
                try:
                    bundle = checked_bundle(key, content, "the archive")
                except StoreDamaged as error:
                    raise self._refused(error.message) from error
                missing = [digest for digest, size in digests_of([bundle]).items() if packed.get(digest) != size]
                if missing:
                    raise self._refused(f"a bundle needs {missing[0]}, which is not in it")
                if bundle.lock_digest not in locks:
                    raise self._refused(f"its run has no environment {short_digest(bundle.lock_digest)}")
                found[key] = content
        return found

    def _refused(self, why: str) -> UsageError:
        """Return the error of this archive."""
        error = refused(why)
        return UsageError(f"{self._path} is refused: {error.message}", hint=error.hint)

    def _add_logs(self, objects: ObjectStore, arrival: Arrival, staged: Mapping[Member, Path], there: set[str]) -> None:
        """Add the logs that are not there, or are longer than what is there."""
        flow, run_id = self.manifest.flow, self.manifest.run_id
        for member, file in staged.items():
            if member.kind == "segment" and member.name not in there:
                arrival.add_log(layout.segment(flow, run_id, member.name), file)
            elif member.kind == "logs":
                key = layout.logs(flow, run_id)
                if member.size > GrowingReader(objects, key).size():
                    arrival.add_log(key, file)
