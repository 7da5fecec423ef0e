"""What a lock by PEP 751 names: uv's answers, and the ``pylock.toml`` that a user brings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from mlp_hookspecs.requirements import normal_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_VERSION: Final = "1."


@attrs.frozen
class Entry:
    """One package of a lock.

    Attributes
    ----------
    name : str
        Its normal name.
    version : str
        Its version; empty for a folder's, which has none until it is built.
    marker : str
        Where it is needed; empty for everywhere.
    hashes : tuple of str
        The hashes of its files, as ``sha256:...``; sorted.
    git, commit : str
        The repository's URL, and the commit; empty for what is not built from one.
    subdirectory : str
        Where in the repository or archive the project lies.
    path : str
        The absolute path of the folder or file; empty for what is none.
    url : str
        The URL of the one file, where it is no index's.
    files : tuple of (str, str, str)
        Name, URL and hash of each file that an index serves, wheels first. It is no part of what is written.
    """

    name: str
    version: str = ""
    marker: str = ""
    hashes: tuple[str, ...] = ()
    git: str = ""
    commit: str = ""
    subdirectory: str = ""
    path: str = ""
    url: str = ""
    files: tuple[tuple[str, str, str], ...] = attrs.field(default=(), eq=False, repr=False)

    @property
    def is_built(self) -> bool:
        """Whether the package is published by no index."""
        return bool(self.git or self.path or self.url)


def read_entries(text: str, folder: Path) -> tuple[Entry, ...]:
    """Read a lock.

    Parameters
    ----------
    text : str
        The file's content.
    folder : pathlib.Path
        Where it lies: paths in it are relative to that.

    Returns
    -------
    tuple of Entry
        Its packages, in its order.

    Raises
    ------
    ValueError
        Where it is no such lock, or of a version that is not known.
    """
    import tomllib

    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"it is no TOML: {error}") from error
    if not str(table.get("lock-version", "")).startswith(_VERSION):
        raise ValueError(f"its lock-version is {table.get('lock-version')!r}; known is {_VERSION}0")
    if table.get("extras") or table.get("dependency-groups"):
        raise ValueError("it leaves a choice of extras or groups: export one for those that the step needs")
    try:
        return tuple(_read_entry(package, folder) for package in table.get("packages", ()))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"it is no valid lock: {type(error).__name__}: {error}") from error


def _read_entry(package: Mapping[str, Any], folder: Path) -> Entry:
    """Read one package."""
    name = normal_name(package["name"])
    entry = Entry(name, package.get("version", ""), package.get("marker", ""))
    if "vcs" in package:
        vcs = package["vcs"]
        if vcs["type"] != "git":
            raise ValueError(f"{name} comes from a repository of {vcs['type']}; only git's are supported")
        url = str((folder / vcs["path"]).resolve()) if "path" in vcs else vcs["url"]
        return attrs.evolve(entry, git=url, commit=vcs["commit-id"], subdirectory=vcs.get("subdirectory", ""))
    if "directory" in package:
        directory = package["directory"]
        path = (folder / directory["path"] / directory.get("subdirectory", "")).resolve()
        return attrs.evolve(entry, path=str(path))
    if "archive" in package:
        archive = package["archive"]
        hashes = _hashes(archive)
        part = archive.get("subdirectory", "")
        if "path" in archive:
            path = str((folder / archive["path"]).resolve())
            return attrs.evolve(entry, hashes=hashes, subdirectory=part, path=path)
        return attrs.evolve(entry, hashes=hashes, subdirectory=part, url=archive["url"])
    published = [*package.get("wheels", ()), *([package["sdist"]] if "sdist" in package else ())]
    hashes = tuple(sorted({text for file in published for text in _hashes(file)}))
    files = tuple((_file_name(file), _place(file, folder), (*_hashes(file), "")[0]) for file in published)
    return attrs.evolve(entry, hashes=hashes, files=files)


def _hashes(file: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a file's hashes of the strongest kind there is."""
    hashes = file.get("hashes", {})
    kind = next((kind for kind in ("sha256", "sha512", "sha384") if kind in hashes), None)
    return (f"{kind}:{hashes[kind]}",) if kind else ()


def _place(file: Mapping[str, Any], folder: Path) -> str:
    """Return a file's URL."""
    return (folder / file["path"]).resolve().as_uri() if "path" in file else str(file.get("url", ""))


def _file_name(file: Mapping[str, Any]) -> str:
    """Return a file's name."""
    from urllib.parse import unquote, urlsplit

    return str(file.get("name") or unquote(urlsplit(file.get("url") or file.get("path") or "").path).rpartition("/")[2])
