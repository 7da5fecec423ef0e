"""How a run's records are signed, so that a reader who has the key need not trust all who can write to the store.

A signed line ends in ``"mac":"<64 hex digits>"``, the HMAC-SHA256 of the key, over the place of the line and all its
other bytes::

    9ae0daaf {"n":3,"kind":"AttemptFinished","data":{...},"mac":"5f0c..."}

The place is the key of the journal or segment, and the line has its own number, so that a line that was copied to
another run, or to another place in the same one, is not accepted there. What a record refers to is signed with it,
since a reference has the hash of the content. Whoever knows the key can sign: it is a secret, and only its place is a
setting.
"""

from __future__ import annotations

import os
import stat
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mlp_core.errors import SettingError
from mlp_core.store.records import ObserverFailed, TagsChanged

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlp_core.store.journal import LineCheck
    from mlp_core.store.records import Record

SHORTEST_KEY: Final = 16
"""Bytes that a key must have at least."""

_CONTEXT: Final = b"mlp-record-1\0"
_BEFORE: Final = b',"mac":"'
_AFTER: Final = b'"}'
_DIGITS: Final = 64
_SIZE: Final = len(_BEFORE) + _DIGITS + len(_AFTER)
_CHECKSUM: Final = 9


class Signer:
    """Signs lines and tells whether they are signed.

    Parameters
    ----------
    key : bytes
        The key.
    """

    def __init__(self, key: bytes) -> None:
        """Take over the key."""
        self._key = key

    def __repr__(self) -> str:
        """Show nothing of the key."""
        return "<Signer>"

    def sign(self, line: bytes, place: str) -> bytes:
        """Return a line signed.

        Parameters
        ----------
        line : bytes
            The line as `encode_line` gives it, with its newline.
        place : str
            The key of the object that it is written to.
        """
        signed = self.sign_text(line[_CHECKSUM:-1], place)
        return b"%08x %s\n" % (zlib.crc32(signed), signed)

    def sign_text(self, text: bytes, place: str) -> bytes:
        """Return a JSON object with one more member: its signature for a place."""
        return b"".join((text[:-1], _BEFORE, self._digest(text, place), _AFTER))

    def accepts(self, line: bytes, place: str) -> bool:
        """Tell whether a line, without its newline, was signed for a place by somebody who has the key."""
        return self.accepts_text(line[_CHECKSUM:], place)

    def accepts_text(self, text: bytes, place: str) -> bool:
        """Tell whether a JSON object was signed for a place by somebody who has the key."""
        import hmac

        return hmac.compare_digest(text[-_SIZE:], _BEFORE + self._digest(text[:-_SIZE] + b"}", place) + _AFTER)

    def _digest(self, text: bytes, place: str) -> bytes:
        """Return the signature of a JSON object as hex digits."""
        import hmac

        # A place is made of names that the grammar lets pass, so that the zero byte ends it.
        return hmac.digest(self._key, _CONTEXT + place.encode() + b"\0" + text, "sha256").hex().encode()


class Signatures:
    """Watches whether all that is read of a run was signed.

    Parameters
    ----------
    signer : Signer or None
        Who knows; None to let everything pass.

    Attributes
    ----------
    are_good : bool
        Whether all was signed that must be.
    """

    def __init__(self, signer: Signer | None) -> None:
        """Begin before anything is read."""
        self.are_good = True
        self._signer = signer

    def watch(self, place: str) -> LineCheck | None:
        """Return what is to be called for each line of an object; None where nothing is."""
        signer = self._signer
        if signer is None:
            return None

        def look(line: bytes, record: Record | None) -> None:
            if must_be_signed(record) and not signer.accepts(line, place):
                self.are_good = False

        return look


def must_be_signed(record: Record | None) -> bool:
    """Tell whether a record needs a signature to be trusted: not where it can lead to no content and no code."""
    return not isinstance(record, TagsChanged | ObserverFailed)


def signer_for(reference: str | None, environ: Mapping[str, str] | None = None) -> Signer | None:
    """Return what signs with the key of a reference; None where there is no reference.

    Parameters
    ----------
    reference : str or None
        ``env:NAME`` of a variable, or ``file:PATH``: the setting ``storage.signing_key``.
    environ : mapping of str to str, optional
        Environment variables; by default the process's own.

    Raises
    ------
    SettingError
        Where there is no such key, it is too short, or others may read its file.
    """
    if not reference:
        return None
    kind, _, place = reference.partition(":")
    if kind == "env" and place:
        key = (os.environ if environ is None else environ).get(place, "").strip().encode()
        if not key:
            raise _refused(f"the variable {place} that it names is not set")
    elif kind == "file" and place:
        key = _read(Path(place).expanduser())
    else:
        # What is neither may be the key itself, and is not shown.
        raise _refused("it is neither env:NAME nor file:PATH")
    if len(key) < SHORTEST_KEY:
        raise _refused(f"the key at {reference} has fewer than {SHORTEST_KEY} bytes")
    return Signer(key)


def _read(path: Path) -> bytes:
    """Return the key in a file."""
    try:
        mode = path.stat().st_mode
        key = path.read_bytes().strip()
    except OSError as error:
        raise _refused(f"{path} cannot be read: {error.strerror or error}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise _refused(f"others may use the file {path}", hint=f"chmod 600 {path}")
    return key


def _refused(reason: str, hint: str = "") -> SettingError:
    """Return the error of a reference that leads to no key."""
    made = 'python -c "import secrets; print(secrets.token_hex(32))"'
    return SettingError(
        f"the setting storage.signing_key is refused: {reason}",
        hint=hint or f"give env:NAME or file:PATH of a key that only those have who may write runs; {made} makes one",
    )
