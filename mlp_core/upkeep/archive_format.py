"""What an archive of a run is, byte for byte: a plain tar whose every byte but the contents follows from its manifest.

So a reader compares instead of interpreting: what a tar may say beside name and size (links, devices, owners, times,
sparse files, extended headers) it cannot say here.
"""

from __future__ import annotations

import itertools
import re
from typing import IO, TYPE_CHECKING, Final, Literal, TypeAlias

import attrs

from mlp_core import names
from mlp_core.errors import StoreDamaged, UsageError
from mlp_core.store import layout
from mlp_core.upkeep.bundle_copies import bundle_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Kind: TypeAlias = Literal["journal", "logs", "segment", "bundle", "blob"]

FORMAT: Final = 2
"""The newest; an archive says the oldest that knows all that it holds."""

MANIFEST: Final = "manifest"

MAX_MANIFEST: Final = 64 * 2**20
MAX_MEMBERS: Final = 500_000
MAX_JOURNAL: Final = 512 * 2**20
"""Of the journal, and of all segments that hold records together: they are read into memory."""
MAX_BUNDLE: Final = 64 * 2**20
"""Of the list of a bundle's files."""
MAX_LINE: Final = 16 * 2**20
"""Of one record."""

_BLOCK: Final = 512
_END: Final = bytes(2 * _BLOCK)
_OCTAL_LIMIT: Final = 8**11
_KINDS: Final[tuple[Kind, ...]] = ("journal", "logs", "segment", "bundle", "blob")
_LINE: Final = re.compile(
    rb"(journal|logs|segment|bundle|blob) (sha256-[0-9a-f]{64}) (0|[1-9][0-9]{0,15})(?: ([!-~]{1,200}))?"
)
_RUN: Final = re.compile(rb"run ([!-~]{1,200})/([!-~]{1,200})")
_FIRST: Final = re.compile(rb"mlp-run (\d{1,9})")


@attrs.frozen
class Member:
    """One content of an archive.

    Attributes
    ----------
    kind : {"journal", "logs", "segment", "bundle", "blob"}
        What it is.
    digest : str
        The hash of the content.
    size : int
        Bytes.
    name : str
        A segment's name; of a bundle, the lock's digest, a slash and the platform; empty for others.
    """

    kind: Kind
    digest: str
    size: int
    name: str = ""

    @property
    def holds_records(self) -> bool:
        """Whether it is read into memory."""
        return self.kind == "journal" or (self.kind == "segment" and not self.name.startswith(layout.LOG_SEGMENT))


@attrs.frozen
class Manifest:
    """What an archive holds; it stands first in it.

    Attributes
    ----------
    flow, run_id : str
        The run.
    members : tuple of Member
        The contents, in their order: the journal and the segments that hold records, which tell whether the rest is
        wanted; then the logs, the bundles and the blobs.
    """

    flow: str
    run_id: str
    members: tuple[Member, ...]

    @classmethod
    def of(cls, flow: str, run_id: str, members: Iterable[Member]) -> Manifest:
        """Return the manifest of some contents, which need not be in order.

        Raises
        ------
        UsageError
            Where the run is too large for an archive.
        """
        ordered = sorted(
            members, key=lambda each: (not each.holds_records, _KINDS.index(each.kind), each.name, each.digest)
        )
        manifest = cls(flow, run_id, tuple(ordered))
        manifest.check(len(manifest.encode()))
        return manifest

    @property
    def format(self) -> int:
        """The oldest format that knows all of the contents."""
        return FORMAT if any(each.kind == "bundle" for each in self.members) else 1

    def encode(self) -> bytes:
        """Return the manifest as text: a line for the format, one for the run, one a content."""
        lines = [f"mlp-run {self.format}", f"run {self.flow}/{self.run_id}"]
        lines += [" ".join(filter(None, (each.kind, each.digest, str(each.size), each.name))) for each in self.members]
        return "\n".join([*lines, ""]).encode()

    @classmethod
    def decode(cls, content: bytes) -> Manifest:
        """Return the manifest of which a text was made.

        Raises
        ------
        UsageError
            Where it is none.
        """
        first, _, rest = content.partition(b"\n")
        version = _FIRST.fullmatch(first)
        if version is not None and not 1 <= int(version[1]) <= FORMAT:
            raise UsageError(
                f"it has format {int(version[1])}, and this version of mlp-core knows format {FORMAT}",
                hint="upgrade mlp-core",
            )
        second, _, rest = rest.partition(b"\n")
        run = _RUN.fullmatch(second)
        if version is None or run is None:
            raise refused("its manifest does not begin as one does")
        members: list[Member] = []
        for line in rest.splitlines():
            found = _LINE.fullmatch(line)
            if found is None or len(members) >= MAX_MEMBERS:
                raise refused(f"line {len(members) + 3} of its manifest is none")
            kind, digest, size, name = found.groups(b"")
            members.append(Member(_kind(kind), digest.decode(), int(size), name.decode()))
        try:
            manifest = cls(names.identifier(run[1].decode(), "flow"), names.run_id(run[2].decode()), tuple(members))
            manifest.check(len(content))
        except UsageError as error:
            raise refused(error.message) from None
        # One archive has one manifest: nothing may be left out, said twice or said in another order.
        if content != Manifest.of(manifest.flow, manifest.run_id, members).encode():
            raise refused("its manifest is not in order")
        return manifest

    def check(self, length: int) -> None:
        """Raise UsageError where the contents are none that a run may have, or too large to be read back."""
        kinds = [each.kind for each in self.members]
        keys = {(each.kind, each.name or (each.kind == "blob" and each.digest)) for each in self.members}
        if kinds.count("journal") != 1 or kinds.count("logs") != 1 or len(keys) < len(self.members):
            raise UsageError("its manifest names a content twice, or no journal or log")
        for each in self.members:
            if each.kind == "segment":
                layout.segment(self.flow, self.run_id, each.name)
            elif each.kind == "bundle":
                _check_bundle(each)
            elif each.name:
                raise UsageError(f"its manifest gives {names.shown(each.name)} as the name of a {each.kind}")
        in_memory = sum(each.size for each in self.members if each.holds_records)
        if length > MAX_MANIFEST or len(kinds) > MAX_MEMBERS or in_memory > MAX_JOURNAL:
            raise UsageError(
                "the run is too large for an archive: "
                f"{len(kinds):,} contents, {in_memory:,} bytes of records, and a manifest of {length:,} bytes",
                hint="copy it to another store: mlp sync",
            )

    def member_names(self) -> Iterator[str]:
        """Iterate over the names that the contents have in the tar. Long names do not fit, so they have numbers."""
        numbers = {"segment": itertools.count(1), "bundle": itertools.count(1)}
        for each in self.members:
            if each.kind in numbers:
                yield f"{each.kind}s/{next(numbers[each.kind])}"
            else:
                yield f"blobs/{each.digest}" if each.kind == "blob" else each.kind

    def archive_size(self) -> int:
        """Return how many bytes the archive has."""
        contents = [len(self.encode()), *(each.size for each in self.members)]
        return sum(_BLOCK + size + padding(size) for size in contents) + len(_END)


def _check_bundle(member: Member) -> None:
    """Raise UsageError where a bundle has a name that none can have, or is too large to be read back."""
    try:
        bundle_key(member.name)
    except StoreDamaged as error:
        raise UsageError(error.message) from error
    if member.size > MAX_BUNDLE:
        raise UsageError(f"the list of a bundle's files has {member.size:,} bytes, and may have {MAX_BUNDLE:,}")


def _kind(text: bytes) -> Kind:
    """Return the kind of a member that a line names."""
    return next(kind for kind in _KINDS if kind.encode() == text)


def refused(why: str) -> UsageError:
    """Return the error of an archive that is not what `mlp export` makes."""
    return UsageError(f"it is no intact archive of a run: {why}", hint="get the archive anew; nothing was changed")


def member_header(name: str, size: int) -> bytes:
    """Return the block that stands before a content: that of a plain file which tells nothing but name and size."""
    octal = b"%011o\0" % size if size < _OCTAL_LIMIT else b"\x80" + size.to_bytes(11, "big")
    fields = (
        name.encode().ljust(100, b"\0"),
        b"0000600\0" + b"0000000\0" * 2,  # mode, owner, group
        octal,
        b"%011o\0" % 0,  # when it was changed
        b" " * 8,  # the checksum, as which it counts itself
        b"0",  # a plain file
        bytes(100),  # what it would be a link to
        b"ustar\00000",
        bytes(32 * 2 + 8 * 2 + 155 + 12),
    )
    header = b"".join(fields)
    return header.replace(b" " * 8, b"%06o\0 " % sum(header), 1)


def padding(size: int) -> int:
    """Return how many zeros follow a content."""
    return -size % _BLOCK


def write_manifest(file: IO[bytes], manifest: Manifest) -> None:
    """Begin an archive: what vouches for the manifest vouches for all of it."""
    content = manifest.encode()
    file.write(member_header(MANIFEST, len(content)) + content + bytes(padding(len(content))))


def write_end(file: IO[bytes]) -> None:
    """End an archive."""
    file.write(_END)


def read_manifest(file: IO[bytes], size: int) -> Manifest:
    """Return the manifest of an archive, from its beginning; what follows is checked against it.

    Parameters
    ----------
    file : readable file
        The archive, at its beginning.
    size : int
        How many bytes it has.

    Raises
    ------
    UsageError
        Where it is none, or is shorter or longer than the manifest says.
    """
    header = file.read(_BLOCK)
    try:
        length = int(header[124:135], 8)
    except ValueError:
        raise refused("it does not begin as one does") from None
    if not 0 <= length <= MAX_MANIFEST or header != member_header(MANIFEST, length):
        raise refused("it does not begin as one does")
    content = file.read(length)
    if len(content) < length or file.read(padding(length)) != bytes(padding(length)):
        raise refused("it ends within its manifest")
    manifest = Manifest.decode(content)
    expected = manifest.archive_size()
    if size != expected:
        raise refused(f"it has {size:,} bytes, and should have {expected:,}")
    return manifest


def read_member(file: IO[bytes], name: str, size: int, piece: int) -> Iterator[bytes]:
    """Iterate over the content of the next member, in pieces.

    Raises
    ------
    UsageError
        Where the next member is another one, or the archive ends.
    """
    if file.read(_BLOCK) != member_header(name, size):
        raise refused(f"where {name} should be something else is")
    left = size
    while left:
        content = file.read(min(piece, left))
        if not content:
            raise refused(f"it ends within {name}")
        left -= len(content)
        yield content
    if file.read(padding(size)) != bytes(padding(size)):
        raise refused(f"something follows {name}")


def read_end(file: IO[bytes]) -> None:
    """Check that an archive ends here; raises as `read_member`."""
    if file.read(len(_END) + 1) != _END:
        raise refused("something follows its end")
