"""What a lock says: the interpreter's version, and each package's exact version with the hashes of its files.

The text is a requirements file, without the index that it was resolved against: any index that serves the same files
will do, and no other file passes. Only an index that the requirement itself names is named here too. A package that is
published nowhere, since it was built from a source, is marked as the lock's own. The text is written one way, so that
the same answer has the same digest.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable

_HEADER: Final = "# mlp-plugin-uv 1, python "
_INDEX: Final = "# index "
_EXTRA_INDEX: Final = "# extra index "
_OWN: Final = "# own "
_REQUIREMENT: Final = re.compile(r"[a-z0-9][a-z0-9.-]*==[A-Za-z0-9.!+]+( ; [A-Za-z0-9_ .,'\"<>=!~()*+-]+)?")
_HASH: Final = re.compile(r"sha(256|384|512):[0-9a-f]+")
_WHEEL: Final = re.compile(r"[A-Za-z0-9_.!+]+(-[A-Za-z0-9_.!+]+){4,5}\.whl")


@attrs.frozen(order=True)
class Pin:
    """One exact package.

    Attributes
    ----------
    requirement : str
        Name and version, with a marker where the package is not for every platform.
    hashes : tuple of str
        The hashes of its files, any of which will do; sorted.
    wheel : str
        For the lock's own package, the name of its one file; empty for a published one.
    origin : str
        For an own package, what it was built from, where that is somewhere that others can reach: the URL of a git
        repository with the commit.
    """

    requirement: str
    hashes: tuple[str, ...]
    wheel: str = ""
    origin: str = ""

    @property
    def name(self) -> str:
        """The package's normal name."""
        return self.requirement.partition("==")[0]

    @property
    def version(self) -> str:
        """Its version."""
        return self.requirement.partition(";")[0].partition("==")[2].strip()

    @property
    def marker(self) -> str:
        """Where it is needed; empty for everywhere."""
        return self.requirement.partition(" ; ")[2]


@attrs.frozen
class Lock:
    """What a lock's text says.

    Attributes
    ----------
    python : str
        The interpreter's version.
    pins : tuple of Pin
        The packages, sorted.
    index : str or None
        The index that takes the place of the default one, where the requirement names it.
    extra_indexes : tuple of str
        Those that are asked before it.
    """

    python: str
    pins: tuple[Pin, ...]
    index: str | None = None
    extra_indexes: tuple[str, ...] = ()

    @property
    def own(self) -> tuple[Pin, ...]:
        """The packages that are published nowhere."""
        return tuple(pin for pin in self.pins if pin.wheel)

    @property
    def versions(self) -> dict[str, str]:
        """Version by package; where platforms differ, all of them."""
        found: dict[str, list[str]] = {}
        for pin in self.pins:
            found.setdefault(pin.name, []).append(pin.version)
        return {name: ",".join(sorted(set(versions))) for name, versions in found.items()}


def make_pin(name: str, version: str, marker: str, hashes: Iterable[str]) -> Pin:
    """Return a package, checked.

    Raises
    ------
    ValueError
        Where it has no exact version or no hash.
    """
    requirement = f"{name}=={version}" + (f" ; {marker}" if marker else "")
    if not _REQUIREMENT.fullmatch(requirement) or " --" in requirement:
        raise ValueError(f"{requirement[:80]!r} is no exact version of a package in an index")
    found = tuple(sorted(set(hashes)))
    if not found or not all(map(_HASH.fullmatch, found)):
        raise ValueError(f"{requirement[:80]!r} has no hashes")
    return Pin(requirement, found)


def read_pins(text: str) -> tuple[Pin, ...]:
    """Read a requirements file with hashes.

    Parameters
    ----------
    text : str
        The file's content. Comments and options that stand alone, such as an index, are passed over.

    Returns
    -------
    tuple of Pin
        The packages, sorted.

    Raises
    ------
    ValueError
        Where a package has no exact version or no hash, or an own one not exactly one.
    """
    pins = []
    own = ""
    for line in text.replace("\\\n", " ").splitlines():
        words = line.split()
        if line.startswith(_OWN):
            own = line.removeprefix(_OWN)
        if not words or words[0].startswith(("#", "-")):
            continue
        hashes = [word.removeprefix("--hash=") for word in words if word.startswith("--hash=")]
        requirement = " ".join(word for word in words if not word.startswith("--hash="))
        exact, _, marker = requirement.partition(" ; ")
        name, _, version = exact.partition("==")
        pin = make_pin(name, version, marker, hashes)
        pins.append(own_pin(pin, *own.split(" ", 1)) if own else pin)
        own = ""
    return tuple(sorted(pins))


def own_pin(pin: Pin, wheel: str, origin: str = "") -> Pin:
    """Return a package as the lock's own.

    Raises
    ------
    ValueError
        Where its file is no wheel's, or has several hashes.
    """
    if not _WHEEL.fullmatch(wheel) or len(pin.hashes) != 1 or not pin.hashes[0].startswith("sha256:"):
        raise ValueError(f"{pin.requirement[:80]!r} is to be the lock's own, and has not one wheel with one hash")
    return attrs.evolve(pin, wheel=wheel, origin=origin)


def write_pins(pins: Iterable[Pin]) -> str:
    """Return packages as a requirements file."""
    return "".join(_write_pin(pin) for pin in pins)


def _write_pin(pin: Pin) -> str:
    """Return a package as lines of a requirements file."""
    own = f"{_OWN}{pin.wheel} {pin.origin}".rstrip() + "\n" if pin.wheel else ""
    return own + " \\\n    --hash=".join([pin.requirement, *pin.hashes]) + "\n"


def write_lock(lock: Lock) -> str:
    """Return the text of a lock."""
    index = f"{_INDEX}{lock.index}\n" if lock.index else ""
    extra = "".join(f"{_EXTRA_INDEX}{index}\n" for index in lock.extra_indexes)
    return f"{_HEADER}{lock.python}\n{index}{extra}{write_pins(lock.pins)}"


def read_lock(content: str) -> Lock:
    """Return what a lock's text says.

    Raises
    ------
    ValueError
        Where the text is no lock of this plugin, or of a version that this one does not know.
    """
    from mlp_plugin_uv.normal import normal_index

    first, _, rest = content.partition("\n")
    match = re.fullmatch(re.escape(_HEADER) + r"(\d+\.\d+(?:\.\d+)?)", first)
    if match is None:
        raise ValueError(f"it begins with {first[:60]!r} instead of {_HEADER!r} and a version")
    lines = rest.splitlines()
    index = [normal_index(line.removeprefix(_INDEX)) for line in lines if line.startswith(_INDEX)]
    extra = [normal_index(line.removeprefix(_EXTRA_INDEX)) for line in lines if line.startswith(_EXTRA_INDEX)]
    return Lock(match[1], read_pins(rest), index[0] if index else None, tuple(extra))
