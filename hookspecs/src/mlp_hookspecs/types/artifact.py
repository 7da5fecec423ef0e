"""What a stored value is called: references to artifacts and to what is attached to a task."""

from collections.abc import Mapping

import attrs

from mlp_hookspecs.types.base import Value, frozen_map


@attrs.frozen(repr=False)
class ArtifactPart(Value):
    """One file of an artifact that a format wrote in several parts.

    Attributes
    ----------
    name : str
        The part's name within its artifact.
    digest : str
        Algorithm and hash of the uncompressed content, as ``sha256-<64 hex digits>``.
    size : int
        Bytes of uncompressed content.
    data : bytes or None
        The content itself when it is small enough to travel in the reference.
    """

    name: str
    digest: str
    size: int
    data: bytes | None = None


@attrs.frozen(repr=False)
class ArtifactRef(Value):
    """A stored value: everything that is needed to find, verify and decode it.

    Attributes
    ----------
    format : str
        Name of the format backend that encoded the value.
    digest : str
        Algorithm and hash of the content, as ``sha256-<64 hex digits>``; for a value in several parts the
        hash of the list of parts.
    size : int
        Bytes of uncompressed content, all parts together.
    type : str
        Dotted name of the value's type, for people; nothing is imported from it.
    data : bytes or None
        The content itself when it is small enough to sit in the journal.
    parts : tuple of ArtifactPart
        The parts, where the format wrote more than one.
    metadata : mapping of str to str
        What the format needs for decoding beside the content.
    """

    format: str
    digest: str
    size: int
    type: str
    data: bytes | None = None
    parts: tuple[ArtifactPart, ...] = ()
    metadata: Mapping[str, str] = attrs.field(factory=dict, converter=frozen_map)


@attrs.frozen(eq=False, repr=False)
class Attachment(Value):
    """A report that a plugin attached to an attempt: a card, a profile, a trace.

    Attributes
    ----------
    kind : str
        What it is, for example ``card``; readers select by it.
    name : str
        Its name within the attempt and kind.
    content : ArtifactRef
        Where the bytes are; its format is ``bytes``.
    """

    kind: str
    name: str
    content: ArtifactRef
