"""What a lock says: the interpreter's version, and each package's exact version with the hashes of its files.

The text is a requirements file, without the index that it was resolved against: any index that serves the same files
will do, and no other file passes. It is written one way, so that the same answer has the same digest.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable

_HEADER: Final = "# mlp-plugin-uv 1, python "
_REQUIREMENT: Final = re.compile(r"[a-z0-9][a-z0-9.-]*==[A-Za-z0-9.!+]+( ; [A-Za-z0-9_ .,'\"<>=!~()*+-]+)?")
_HASH: Final = re.compile(r"sha(256|384|512):[0-9a-f]+")


@attrs.frozen(order=True)
class Pin:
    """One exact package.

    Attributes
    ----------
    requirement : str
        Name and version, with a marker where the package is not for every platform.
    hashes : tuple of str
        The hashes of its files, any of which will do; sorted.
    """

    requirement: str
    hashes: tuple[str, ...]


def read_pins(text: str) -> tuple[Pin, ...]:
    """Read a requirements file with hashes, such as ``uv pip compile`` writes.

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
        Where a package has no exact version or no hash.
    """
    pins = []
    for line in text.replace("\\\n", " ").splitlines():
        words = line.split()
        if not words or words[0].startswith(("#", "-")):
            continue
        hashes = {word.removeprefix("--hash=") for word in words if word.startswith("--hash=")}
        requirement = " ".join(word for word in words if not word.startswith("--hash="))
        if not _REQUIREMENT.fullmatch(requirement) or " --" in requirement:
            raise ValueError(f"{requirement[:80]!r} is no exact version of a package in an index")
        if not hashes or not all(map(_HASH.fullmatch, hashes)):
            raise ValueError(f"{requirement[:80]!r} has no hashes")
        pins.append(Pin(requirement, tuple(sorted(hashes))))
    return tuple(sorted(pins))


def write_pins(pins: Iterable[Pin]) -> str:
    """Return packages as a requirements file."""
    return "".join(" \\\n    --hash=".join([pin.requirement, *pin.hashes]) + "\n" for pin in pins)


def write_lock(python: str, pins: Iterable[Pin]) -> str:
    """Return the text of a lock."""
    return f"{_HEADER}{python}\n{write_pins(pins)}"


def read_lock(content: str) -> tuple[str, tuple[Pin, ...]]:
    """Return the interpreter's version and the packages of a lock.

    Raises
    ------
    ValueError
        Where the text is no lock of this plugin, or of a version that this one does not know.
    """
    first, _, rest = content.partition("\n")
    match = re.fullmatch(re.escape(_HEADER) + r"(\d+\.\d+(?:\.\d+)?)", first)
    if match is None:
        raise ValueError(f"it begins with {first[:60]!r} instead of {_HEADER!r} and a version")
    return match[1], read_pins(rest)
