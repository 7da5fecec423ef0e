"""Where credentials for indexes come from, and how they are kept out of what is shown.

They are uv's: in the URLs of its variables and configuration files, in ``UV_INDEX_<NAME>_USERNAME`` and
``UV_INDEX_<NAME>_PASSWORD`` for an index with a name, in a netrc file, or in a keyring. They are no part of a
requirement.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote, urlsplit

from mlp_plugin_uv.urls import NamedIndex, is_index, split_index, without_credentials

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_SECRET_VARIABLE: Final = re.compile(r"UV_(.*_)?(PASSWORD|TOKEN)")
_URL_VARIABLES: Final = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS")


class Login(NamedTuple):
    """Who a server is told that we are."""

    user: str
    password: str


def masked(text: str) -> str:
    """Return a text without credentials: neither those in its URLs nor those that the variables hold."""
    from mlp_hookspecs.masking import Masker

    return without_credentials(Masker(_secrets(os.environ)).text(text))


def find_login(url: str, indexes: Iterable[str]) -> Login | None:
    """Return the credentials for a URL.

    Parameters
    ----------
    url : str
        What is to be fetched.
    indexes : iterable of str
        Indexes as a lock names them; those of uv's variables and configuration files are known.

    Returns
    -------
    Login or None
        Those in the URL itself, else of an index on the same server, else of the netrc file or the keyring; None where
        there are none.
    """
    own = _login_of(url)
    if own is not None:
        return own
    candidates = [*map(split_index, indexes), *_indexes_of_variables(os.environ), *_indexes_of_files(os.environ)]
    for index in candidates:
        if _server(index.url) == _server(url):
            login = _login_of_variables(index.name, os.environ) or _login_of(index.url)
            if login is not None:
                return login
    return _login_of_netrc(url, os.environ) or _login_of_keyring(url, os.environ)


def _server(url: str) -> tuple[str, str, int | None]:
    """Return what credentials hold for: scheme, host and port."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port


def _login_of(url: str) -> Login | None:
    """Return the credentials in a URL."""
    parts = urlsplit(url)
    return Login(unquote(parts.username or ""), unquote(parts.password or "")) if "@" in parts.netloc else None


def _login_of_variables(name: str, environ: Mapping[str, str]) -> Login | None:
    """Return the credentials that uv's variables have for the index with a name."""
    key = re.sub(r"[^A-Z0-9]", "_", name.upper())
    user, password = (environ.get(f"UV_INDEX_{key}_{part}", "") for part in ("USERNAME", "PASSWORD"))
    return Login(user, password) if name and (user or password) else None


def _login_of_netrc(url: str, environ: Mapping[str, str]) -> Login | None:
    """Return the credentials that the netrc file has for a host."""
    import netrc

    try:
        entry = netrc.netrc(environ.get("NETRC")).authenticators(urlsplit(url).hostname or "")
    except (FileNotFoundError, RuntimeError):
        return None
    except netrc.NetrcParseError as error:
        raise OSError(f"the netrc file cannot be read: line {error.lineno} is wrong") from None
    return Login(entry[0], entry[2] or "") if entry else None


def _login_of_keyring(url: str, environ: Mapping[str, str]) -> Login | None:
    """Return the credentials that the command ``keyring`` has, where uv may ask it too."""
    if environ.get("UV_KEYRING_PROVIDER") != "subprocess":
        return None
    import json
    import subprocess

    command = ["keyring", "get", url, "--mode", "creds", "--output", "json"]
    try:
        found = subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL).stdout
        answer = json.loads(found)
        return Login(answer["username"] or "", answer["password"] or "")
    except (OSError, subprocess.CalledProcessError, ValueError, KeyError):
        return None  # as uv does: the server then says that it wants some


def _indexes_of_variables(environ: Mapping[str, str]) -> Iterator[NamedIndex]:
    """Yield the indexes in uv's variables."""
    for variable in _URL_VARIABLES:
        for text in re.split(r"[\s,]+", environ.get(variable, "")):
            if is_index(text):
                yield split_index(text)


def _indexes_of_files(environ: Mapping[str, str]) -> Iterator[NamedIndex]:
    """Yield the indexes in uv's configuration files: the one named, else the project's, the user's and the system's."""
    import tomllib
    from pathlib import Path

    given = environ.get("UV_CONFIG_FILE")
    user = Path(environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()) / "uv/uv.toml"
    above = [folder / name for folder in (Path.cwd(), *Path.cwd().parents) for name in ("uv.toml", "pyproject.toml")]
    for file in [Path(given)] if given else [*above, user, Path("/etc/uv/uv.toml")]:
        try:
            table = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # one that is damaged is uv's to complain about
        table = table.get("tool", {}).get("uv", {}) if file.name == "pyproject.toml" else table
        for entry in table.get("index", ()):
            yield NamedIndex(str(entry.get("name", "")), str(entry.get("url", "")))


def _secrets(environ: Mapping[str, str]) -> set[str]:
    """Return the credentials that the variables hold."""
    secrets = {value for name, value in environ.items() if _SECRET_VARIABLE.fullmatch(name) and value}
    for index in _indexes_of_variables(environ):
        login = _login_of(index.url)
        if login is not None:
            secrets |= {login.password or login.user, urlsplit(index.url).password or ""} - {""}
    return secrets
