"""How the very files of a lock are put into a folder, so that its environment can be made with no network."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from mlp_plugin_uv.fetch import fetch
from mlp_plugin_uv.locks import Lock, Pin, read_lock, write_pins
from mlp_plugin_uv.own import Workshop, find_wheel, missing_wheels
from mlp_plugin_uv.platforms import best_wheel, check_platform, is_needed, is_portable, tags_of, this_platform
from mlp_plugin_uv.pylock import read_entries
from mlp_plugin_uv.sources import hash_of, sha256_of
from mlp_plugin_uv.tool import NO_DOWNLOADS, UvError, index_arguments, run_uv_under

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlp_hookspecs import EnvironmentLock
    from mlp_plugin_uv.pylock import Entry

LIST: Final = "bundle.json"
"""The file that says what else is in a whole bundle."""

_VERSION: Final = 1
_PARALLEL: Final = 8


def bundle(lock: EnvironmentLock, platform: str, folder: Path) -> tuple[str, ...]:
    """Put a lock's files into a folder.

    Parameters
    ----------
    lock : EnvironmentLock
        The lock.
    platform : str
        The platform to take them for; empty for the lock's own packages alone.
    folder : pathlib.Path
        An empty folder.

    Returns
    -------
    tuple of str
        The files' names. Beside the wheels there is a list of them, unless it is the own packages alone.

    Raises
    ------
    ValueError
        Where the lock does not hold for the platform, or a package is not published for it.
    OSError
        Where a file cannot be had, or is not the one that the lock names.
    """
    contents = read_lock(lock.content)
    names = _put_own(contents.own, folder)
    if not platform:
        return names
    check_platform(platform)
    if lock.platforms and platform not in lock.platforms:
        raise ValueError(f"the lock holds for {', '.join(lock.platforms)}, not for {platform}")
    pins = [p for p in contents.pins if not p.wheel and is_needed(p.marker, platform, contents.python)]
    wheels = _put_published(_Bundler(contents, platform, Path(folder)), pins)
    own = {pin.wheel: pin for pin in contents.own if is_needed(pin.marker, platform, contents.python)}
    listed = {name: f"{pin.name}=={pin.version}" for name, pin in (own | wheels).items()}
    built = {name: sha256_of(Path(folder) / name) for name, pin in wheels.items() if not _matches(folder, name, pin)}
    text = json.dumps({"version": _VERSION, "platform": platform, "wheels": listed, "built": built}, indent=1)
    (Path(folder) / LIST).write_text(text + "\n", encoding="utf-8")
    return (*sorted({*names, *wheels}), LIST)


def is_bundle(folder: Path) -> bool:
    """Tell whether a folder holds a whole bundle, rather than a lock's own packages alone."""
    return (folder / LIST).is_file()


def check_bundle(lock: Lock, folder: Path) -> tuple[Pin, ...]:
    """Hold a bundle's files against a lock.

    Parameters
    ----------
    lock : Lock
        The lock.
    folder : pathlib.Path
        The bundle.

    Returns
    -------
    tuple of Pin
        The packages to install, with the one hash that each one's wheel has.

    Raises
    ------
    OSError
        Where a file is missing, or is not the one that the lock names.
    """
    try:
        table = json.loads((folder / LIST).read_text(encoding="utf-8"))
        if table["version"] != _VERSION:
            raise OSError(f"the bundle's list is of version {table['version']!r}, and known is {_VERSION}")
        platform, wheels, built = str(table["platform"]), dict(table["wheels"]), dict(table["built"])
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(f"the bundle's list is damaged: {error}") from error
    if platform != this_platform():
        raise OSError(f"the bundle is for {platform}, and this host is {this_platform()}")
    by_package = {package: name for name, package in wheels.items()}
    checked = []
    for pin in lock.pins:
        if not is_needed(pin.marker, platform, lock.python):
            continue
        name = by_package.get(f"{pin.name}=={pin.version}", "")
        if not re.fullmatch(r"[A-Za-z0-9_.!+-]+\.whl", name) or not (folder / name).is_file():
            raise OSError(f"the bundle has no wheel of {pin.name}=={pin.version}, which its lock names")
        found = sha256_of(folder / name)
        if not _matches(folder, name, pin) and built.get(name) != found:
            raise OSError(f"{name} in the bundle is not the file that the lock names: its hash is sha256:{found}")
        checked.append(attrs.evolve(pin, hashes=(f"sha256:{found}",)))
    return tuple(checked)


def _matches(folder: Path, name: str, pin: Pin) -> bool:
    """Tell whether a file has one of a package's hashes."""
    kinds = {text.partition(":")[0] for text in pin.hashes}
    return any(f"{kind}:{hash_of(Path(folder) / name, kind)}" in pin.hashes for kind in kinds)


def _put_own(pins: Sequence[Pin], folder: Path) -> tuple[str, ...]:
    """Put own packages into a folder, and return their names."""
    found = {pin: find_wheel(pin) for pin in pins}
    missing = [pin for pin, wheel in found.items() if wheel is None]
    if missing:
        raise OSError(f"the lock has packages of its own that are not here: {missing_wheels(missing)}")
    for pin, wheel in found.items():
        if wheel is not None:
            shutil.copyfile(wheel, Path(folder) / pin.wheel)
    return tuple(sorted(pin.wheel for pin in found))


@attrs.frozen
class _Bundler:
    """Fetches the files of published packages.

    Attributes
    ----------
    lock : Lock
        The lock.
    platform : str
        The platform that they are for.
    folder : pathlib.Path
        Where to put them.
    """

    lock: Lock
    platform: str
    folder: Path

    def find(self, pins: Sequence[Pin]) -> dict[str, Entry]:
        """Return what the index says about packages now."""
        arguments = ["pip", "compile", "-", "--universal", "--no-deps", "--format", "pylock.toml", "--no-header"]
        arguments += ["--python-version", self.lock.python, NO_DOWNLOADS]
        arguments += ["--generate-hashes", *index_arguments(self.lock.index, self.lock.extra_indexes)]
        text = "".join(f"{pin.name}=={pin.version}\n" for pin in pins)
        try:
            entries = read_entries(run_uv_under(self.lock.python, arguments, stdin=text), Path.cwd())
        except UvError as error:
            what = "no longer has" if error.status == 1 else "cannot be asked for"
            raise OSError(f"the index {what} what the lock names: {error}") from error
        return {f"{entry.name}=={entry.version}": entry for entry in entries}

    def put(self, pin: Pin, entry: Entry) -> str:
        """Put one package's wheel into the folder, and return its name."""
        files = {name: (url, text) for name, url, text in entry.files if name and url}
        locked = {name: url for name, (url, text) in files.items() if text in pin.hashes}
        wheel = best_wheel(locked, tags_of(self.platform, self.lock.python))
        if wheel is not None:
            fetch(locked[wheel], self.folder / wheel, pin.hashes, self._indexes)
            return wheel
        archive = next((name for name in locked if not name.endswith(".whl")), None)
        if archive is not None:
            return self._build(pin, archive, locked[archive])
        other = best_wheel(files, tags_of(self.platform, self.lock.python))
        if other is not None:
            raise OSError(f"{other} on the index is not the file that the lock names: it has {files[other][1]}")
        raise ValueError(
            f"{pin.name}=={pin.version} is not published for {self.platform} with Python {self.lock.python}:"
            f" the lock's files of it are {', '.join(sorted(locked)) or 'no longer there'}"
        )

    def _build(self, pin: Pin, archive: str, url: str) -> str:
        """Put a wheel into the folder that is built from an archive of sources."""
        workshop = Workshop(self.lock.python, self.lock.index, self.lock.extra_indexes)
        with tempfile.TemporaryDirectory(prefix="mlp-build-") as folder:
            fetch(url, Path(folder) / archive, pin.hashes, self._indexes)
            wheel = workshop.build_sdist(Path(folder) / archive, Path(folder) / "built")
            if self.platform != this_platform() and not is_portable(wheel.name):
                raise ValueError(
                    f"{pin.name}=={pin.version} is only published as source for {self.platform}, and cannot be"
                    f" compiled for it on {this_platform()}: bundle it on a host of that platform"
                )
            shutil.copyfile(wheel, self.folder / wheel.name)
        return wheel.name

    @property
    def _indexes(self) -> tuple[str, ...]:
        """All indexes that the lock names."""
        return (*([self.lock.index] if self.lock.index else ()), *self.lock.extra_indexes)


def _put_published(bundler: _Bundler, pins: Sequence[Pin]) -> dict[str, Pin]:
    """Put packages into the folder, several at once, and return them by the name of each one's wheel."""
    from concurrent.futures import ThreadPoolExecutor

    if not pins:
        return {}
    entries = bundler.find(pins)
    missing = [pin for pin in pins if f"{pin.name}=={pin.version}" not in entries]
    if missing:
        raise OSError(f"the index no longer has {write_pins(missing[:1]).split()[0]}")
    with ThreadPoolExecutor(_PARALLEL) as pool:
        names = pool.map(lambda pin: bundler.put(pin, entries[f"{pin.name}=={pin.version}"]), pins)
        return dict(zip(names, pins, strict=True))
