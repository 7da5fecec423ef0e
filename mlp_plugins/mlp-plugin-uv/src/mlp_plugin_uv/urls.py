"""How URLs of indexes are written, and that they hold no credentials.

Those are no part of a requirement: they come from where `mlp_plugin_uv.credentials` looks.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

HINT: Final = (
    "leave them out, and give them in a netrc file, in a keyring, or, for an index with a name such as"
    " 'acme=https://host/index', by the variables UV_INDEX_ACME_USERNAME and UV_INDEX_ACME_PASSWORD"
)
"""What to do with credentials that are in the wrong place."""

_IN_URL: Final = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_NAMED_URL: Final = re.compile(r"(?:([A-Za-z0-9][A-Za-z0-9_.-]*)=)?([a-z+]+://.*)", re.DOTALL)


class NamedIndex(NamedTuple):
    """An index and its name, which is empty where it has none."""

    name: str
    url: str


def without_credentials(text: str) -> str:
    """Return a text in which what stands before the host of a URL is masked."""
    return _IN_URL.sub("***", text)


def refuse_credentials(what: str, text: str) -> None:
    """Raise ValueError where a URL in a text holds credentials; the message does not show them.

    Parameters
    ----------
    what : str
        What the text is, for the message.
    text : str
        The text. The user of an SSH URL, such as ``git@``, is none.
    """
    for match in re.finditer(r"([a-z+]*)://([^/@\s]+)@", text):
        if ":" in match[2] or not match[1].endswith("ssh"):
            raise ValueError(f"{what} has credentials in the URL {without_credentials(match[0])}...: {HINT}")


def is_index(text: str) -> bool:
    """Tell whether a text is an index as `split_index` reads it."""
    return _NAMED_URL.fullmatch(text) is not None


def split_index(text: str) -> NamedIndex:
    """Return an index that is written as uv writes it: a URL, or ``name=URL``.

    Raises
    ------
    ValueError
        Where it is neither.
    """
    match = _NAMED_URL.fullmatch(text)
    if match is None:
        raise ValueError(f"index {without_credentials(text)!r} is refused: it must be a URL, or 'name=URL'")
    return NamedIndex(match[1] or "", match[2])
