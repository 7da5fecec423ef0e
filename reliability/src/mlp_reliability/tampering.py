"""How stored files are changed behind a store's back, by a bit, a cut, an exchange or a deletion, and put back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import attrs

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence
    from pathlib import Path

Way: TypeAlias = Literal["flip", "truncate", "swap", "delete"]

WAYS: Final[tuple[Way, ...]] = ("flip", "truncate", "swap", "delete")


@attrs.frozen
class Tampered:
    """What was done to a store.

    Attributes
    ----------
    way : {"flip", "truncate", "swap", "delete"}
        What.
    before : mapping of str to bytes
        The content that each changed file had, by its path in the folder.
    detail : str
        Where in the file.
    """

    way: Way
    before: dict[str, bytes]
    detail: str = ""

    @property
    def keys(self) -> list[str]:
        """The changed files."""
        return list(self.before)

    def undo(self, root: Path) -> None:
        """Put everything back as it was; the files are new ones, as far as anybody can tell."""
        for key, content in self.before.items():
            path = root / key
            path.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o600)


def tamper(root: Path, keys: Sequence[str], rng: random.Random, way: Way | None = None) -> Tampered:
    """Change one file of a folder, or exchange two; what has no content is left alone.

    Parameters
    ----------
    root : pathlib.Path
        The folder.
    keys : sequence of str
        The files that may be changed, by their paths in the folder.
    rng : random.Random
        Where all choices are drawn from.
    way : str or None
        What to do; None to draw that too.

    Returns
    -------
    Tampered
        What was done.
    """
    chosen = rng.choice(WAYS) if way is None else way
    while True:
        key = rng.choice(keys)
        path = root / key
        content = path.read_bytes()
        if not content:
            continue
        if chosen == "flip":
            place, bit = rng.randrange(len(content)), rng.randrange(8)
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            return Tampered(chosen, {key: content}, f"bit {bit} of byte {place} of {len(content)}")
        if chosen == "truncate":
            place = rng.randrange(len(content))
            path.write_bytes(content[:place])
            return Tampered(chosen, {key: content}, f"to {place} of {len(content)} bytes")
        if chosen == "delete":
            path.unlink()
            return Tampered(chosen, {key: content})
        other = rng.choice(keys)
        second = (root / other).read_bytes()
        if second != content:
            path.write_bytes(second)
            (root / other).write_bytes(content)
            return Tampered(chosen, {key: content, other: second})


def files_of(root: Path) -> list[str]:
    """Return the paths of all files below a folder, sorted, without unfinished ones."""
    found = (str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    return sorted(key for key in found if not key.startswith("tmp/"))
