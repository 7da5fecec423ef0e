"""How a file is fetched from where an index says it is, and held against its hashes."""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from base64 import b64encode
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit, urlunsplit

from mlp_plugin_uv.credentials import find_login, masked

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_CHUNK: Final = 1 << 20
_TIMES: Final = 3
_PAUSE_SECONDS: Final = 0.2
_TIMEOUT_SECONDS: Final = 60.0
_TEMPORARY: Final = frozenset({408, 429, 500, 502, 503, 504})


def fetch(url: str, target: Path, hashes: Sequence[str], indexes: Sequence[str]) -> None:
    """Fetch a file.

    Parameters
    ----------
    url : str
        Where it is: https, http or file. Proxies and certificates are those of the usual environment variables.
    target : pathlib.Path
        Where to put it. It is there only if it is whole and what it should be.
    hashes : sequence of str
        Of which it must have one, such as ``sha256:...``.
    indexes : sequence of str
        Indexes that the lock names, for credentials.

    Raises
    ------
    OSError
        Where it cannot be had, or is another file.
    """
    name = urlsplit(url).path.rpartition("/")[2]
    building = target.with_name(f".{target.name}.part")
    try:
        found = _download_again(url, building, {text.partition(":")[0] for text in hashes}, indexes)
        if not found & set(hashes):
            raise OSError(
                f"{name} from {_host(url)} is not the file that the lock names: it has {min(found)} instead of"
                f" {' or '.join(hashes)}"
            )
        building.rename(target)
    finally:
        building.unlink(missing_ok=True)


def _download_again(url: str, target: Path, algorithms: set[str], indexes: Sequence[str]) -> set[str]:
    """Download, several times where the reason for a failure may pass."""
    for again in range(_TIMES - 1, -1, -1):
        try:
            return _download(url, target, algorithms, indexes)
        except (OSError, http.client.HTTPException) as error:
            if not again or not _is_temporary(error):
                name = urlsplit(url).path.rpartition("/")[2]
                raise OSError(f"{name} cannot be fetched from {_host(url)}: {_explain(error)}") from None
            time.sleep(_PAUSE_SECONDS * (_TIMES - again))
    raise AssertionError("the last attempt returns or raises")


def _download(url: str, target: Path, algorithms: set[str], indexes: Sequence[str]) -> set[str]:
    """Write what a URL serves into a file and return its hashes."""
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http", "file"):
        raise OSError(f"URLs with {parts.scheme}:// are not fetched")
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))
    request = urllib.request.Request(bare)  # noqa: S310 # its scheme was checked
    login = find_login(url, indexes) if parts.scheme != "file" else None
    if login is not None:
        basic = b64encode(f"{login.user}:{login.password}".encode()).decode()
        # One that is not redirected: where the index sends us to is none of theirs to know the password.
        request.add_unredirected_header("Authorization", f"Basic {basic}")
    digests = {algorithm: hashlib.new(algorithm) for algorithm in algorithms}
    opened = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)  # noqa: S310 # its scheme was checked
    with opened as answer, target.open("wb") as file:
        expected = answer.headers.get("Content-Length")
        size = 0
        while chunk := answer.read(_CHUNK):
            size += len(chunk)
            file.write(chunk)
            for digest in digests.values():
                digest.update(chunk)
    if expected is not None and size != int(expected):
        raise http.client.IncompleteRead(b"", int(expected) - size)
    return {f"{algorithm}:{digest.hexdigest()}" for algorithm, digest in digests.items()}


def _is_temporary(error: Exception) -> bool:
    """Tell whether another attempt may help."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in _TEMPORARY
    return isinstance(error, http.client.HTTPException | TimeoutError | ConnectionError) or (
        isinstance(error, urllib.error.URLError) and isinstance(error.reason, TimeoutError | ConnectionError)
    )


def _explain(error: Exception) -> str:
    """Return an error as a word for the user."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        hint = " (no credentials, or wrong ones)" if error.code in (401, 403) else ""
        return f"the server answers {error.code}{hint}"
    return masked(str(getattr(error, "reason", "") or error))


def _host(url: str) -> str:
    """Return the part of a URL that a message may show."""
    parts = urlsplit(url)
    return parts.hostname or parts.path
