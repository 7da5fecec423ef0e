"""What a lock says: for each platform, every package's exact file by URL and sha256, as conda-lock writes it.

The text is a unified conda-lock file of version 1 (``conda-lock.yml``), written as JSON, which is YAML too: tools that
read such files read it. It is written one way, a package a line, so that the same answer has the same digest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal
from urllib.parse import unquote, urlsplit

import attrs

WHEELS: Final = "wheels"
"""The folder of a bundle that wheels lie in."""

_VERSION: Final = 1
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_FILE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+!-]*(\.conda|\.tar\.bz2|\.whl)")
_SUBDIR: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)?")
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@attrs.frozen(order=True)
class Package:
    """One package on one platform.

    Attributes
    ----------
    name, version : str
        What it is.
    manager : {"conda", "pip"}
        Whether it is a conda package or a wheel.
    platform : str
        The platform that it is locked for.
    url : str
        Where its file is.
    sha256 : str
        The file's hash.
    dependencies : mapping of str to str
        What a conda package depends on, by name.
    md5 : str
        Another hash of a conda package, without which conda-lock does not read a lock; it proves nothing.
    """

    name: str
    version: str
    manager: Literal["conda", "pip"]
    platform: str
    url: str
    sha256: str
    dependencies: Mapping[str, str] = attrs.field(factory=dict, order=False, hash=False)
    md5: str = ""

    @property
    def file(self) -> str:
        """The file's name."""
        return unquote(urlsplit(self.url).path.rpartition("/")[2])

    @property
    def place(self) -> str:
        """Where its file lies in a bundle: in a channel's folder for its subdir, or among the wheels."""
        if self.manager == "pip":
            return f"{WHEELS}/{self.file}"
        subdir = urlsplit(self.url).path.rpartition("/")[0].rpartition("/")[2]
        return f"{subdir}/{self.file}"

    @property
    def build(self) -> str:
        """The build of a conda package, which its file's name ends with."""
        return re.sub(r"\.(conda|tar\.bz2)$", "", self.file).rpartition("-")[2]

    @property
    def entry(self) -> dict[str, Any]:
        """The package as conda-lock writes it."""
        return {
            "name": self.name,
            "version": self.version,
            "manager": self.manager,
            "platform": self.platform,
            "dependencies": dict(sorted(self.dependencies.items())),
            "url": self.url,
            "hash": {"md5": self.md5, "sha256": self.sha256} if self.md5 else {"sha256": self.sha256},
            "category": "main",
            "optional": False,
        }


@attrs.frozen
class Lock:
    """What a lock's text says.

    Attributes
    ----------
    channels, platforms : tuple of str
        Where conda packages come from, the preferred first; what it holds for.
    packages : tuple of Package
        All packages of all platforms.
    hashes : mapping of str to str
        Conda-lock's hash of what was asked for, by platform.
    """

    channels: tuple[str, ...]
    platforms: tuple[str, ...]
    packages: tuple[Package, ...]
    hashes: Mapping[str, str]

    def on(self, platform: str) -> tuple[Package, ...]:
        """Return the packages for one platform."""
        return tuple(package for package in self.packages if package.platform == platform)

    @property
    def versions(self) -> dict[str, str]:
        """Version by name; with commas between where platforms differ."""
        found: dict[str, set[str]] = {}
        for package in self.packages:
            found.setdefault(package.name, set()).add(package.version)
        return {name: ", ".join(sorted(versions)) for name, versions in sorted(found.items())}

    @property
    def python(self) -> str:
        """The interpreter's version, as exact as it holds for every platform; empty where there is none."""
        versions = {package.version for package in self.packages if package.name == "python"}
        if len(versions) == 1:
            return versions.pop()
        minors = {".".join(version.split(".")[:2]) for version in versions}
        return minors.pop() if len(minors) == 1 else ""

    @property
    def text(self) -> str:
        """The lock's text."""
        channels = [{"url": channel, "used_env_vars": []} for channel in self.channels]
        metadata = {
            "content_hash": dict(sorted(self.hashes.items())),
            "channels": channels,
            "platforms": list(self.platforms),
            "sources": ["environment.yml"],
        }
        lines = ",\n".join(json.dumps(package.entry) for package in sorted(self.packages))
        return f'{{"version": {_VERSION}, "metadata": {json.dumps(metadata)}, "package": [\n{lines}\n]}}\n'


def read_lock(text: str) -> Lock:
    """Return what a lock says.

    Raises
    ------
    ValueError
        Where the text is no lock of this plugin, or of a version that this one does not know.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error}") from error
    if not isinstance(data, dict) or data.get("version") != _VERSION:
        raise ValueError(f"it is no conda-lock file of version {_VERSION}")
    return lock_of(data)


def lock_of(data: Mapping[str, Any]) -> Lock:
    """Return what a conda-lock file says, checked.

    Parameters
    ----------
    data : mapping
        The file's content.

    Raises
    ------
    ValueError
        Where something of it is missing or strange.
    """
    try:
        metadata = data["metadata"]
        return Lock(
            channels=_texts(channel["url"] for channel in metadata["channels"]),
            platforms=_texts(metadata["platforms"]),
            packages=tuple(sorted(_package(entry) for entry in data["package"])),
            hashes=dict(metadata["content_hash"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"something is missing in it: {error!r}") from error


def _package(entry: Mapping[str, Any]) -> Package:
    """Return one package of a lock; what is written into commands and paths is checked."""
    name, version, url = entry["name"], str(entry["version"]), entry["url"]
    sha256 = entry["hash"].get("sha256")
    md5 = str(entry["hash"].get("md5") or "")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name[:80]!r} is no name of a package")
    if not isinstance(sha256, str) or not _HASH.fullmatch(sha256) or not re.fullmatch(r"([0-9a-f]{32})?", md5):
        raise ValueError(f"{name} {version[:80]} has no sha256")
    if entry["manager"] not in {"conda", "pip"} or not _SUBDIR.fullmatch(entry["platform"]):
        raise ValueError(f"{name} {version[:80]} is for an unknown manager or platform")
    dependencies = {str(key): str(value) for key, value in (entry.get("dependencies") or {}).items()}
    package = Package(name, version, entry["manager"], entry["platform"], url, sha256, dependencies, md5)
    subdir, _, file = package.place.rpartition("/")
    is_wheel = file.endswith(".whl")
    if not _FILE.fullmatch(file) or is_wheel != (package.manager == "pip") or not _SUBDIR.fullmatch(subdir):
        raise ValueError(f"{name} {version[:80]} has no package's file at its end: {url[-80:]!r}")
    if "@" in urlsplit(url).netloc:
        raise ValueError(f"the URL of {name} {version[:80]} holds credentials")
    return package


def _texts(values: Iterable[object]) -> tuple[str, ...]:
    """Return texts; TypeError where one is none."""
    texts: Sequence[object] = tuple(values)
    if not all(isinstance(value, str) for value in texts):
        raise TypeError(f"{texts!r} are not texts")
    return tuple(map(str, texts))
