"""How small objects that may be replaced are told from damaged ones: they begin with a checksum of key and content.

Blobs are named by their hash, and journals have a checksum in each line. What is left is what says which version of a
deployment is active and what a deploy target remembers: ``9ae0daaf {...}`` and a newline, as a journal's line. The
checksum is the CRC-32 of the object's key, a zero byte and the content, so that one object does not pass for another.
In a store of format 1 they are JSON objects without a checksum; no change of one byte makes the one of the other.
"""

from __future__ import annotations

import json
import zlib
from typing import Final

from mlp_core.errors import StoreDamaged

CHECKSUM_BYTES: Final = 10
"""How much is added to the content: eight hex digits and a space before it, a newline after it."""


def with_checksum(key: str, data: bytes) -> bytes:
    """Return what is stored under a key for some content."""
    return b"%08x %s\n" % (_checksum(key, data), data)


def without_checksum(key: str, stored: bytes, url: str) -> bytes:
    """Return the content of what is stored under a key.

    Parameters
    ----------
    key : str
        The object.
    stored : bytes
        All of it.
    url : str
        The store, for the message.

    Raises
    ------
    StoreDamaged
        Where it is not what was written.
    """
    if stored.startswith(b"{") and _is_json(stored):
        return stored
    data = stored[CHECKSUM_BYTES - 1 : -1]
    if stored != with_checksum(key, data):
        raise StoreDamaged(
            f"{key} in {url} is damaged: it does not match its checksum", hint="to see what is wrong: mlp fsck"
        )
    return data


def _is_json(content: bytes) -> bool:
    """Tell whether some content is JSON."""
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


def _checksum(key: str, data: bytes) -> int:
    """Return the checksum of content under a key."""
    return zlib.crc32(data, zlib.crc32(key.encode(errors="surrogateescape") + b"\0"))
