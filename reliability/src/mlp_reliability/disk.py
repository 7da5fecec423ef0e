"""A model of a disk: what a power cut leaves of recorded system calls, as strictly as POSIX allows.

Content is safe once its file is synced, and a name once its folder is. Of all else any part may be there or not.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    import random

    from mlp_reliability.tracing import Call


class Disk:
    """What is on the disk now, and what of it is safe.

    Parameters
    ----------
    base : pathlib.Path
        A folder that is safe and empty; what is made in its folder ``new`` is on the disk.
    """

    def __init__(self, base: Path) -> None:
        """Make the disk."""
        self.base = base
        self._root = _Folder()

    def apply(self, call: Call) -> None:
        """Carry out a call, where it succeeded and concerns this disk."""
        if call.result < 0 or not self.is_touched_by(call):
            return
        path = call.paths()[-1]
        if call.name in ("fsync", "fdatasync"):
            self._node(path).sync()
            return
        if call.name == "openat" and "O_CREAT" not in call.text:
            return
        self._change(call, path)

    def _change(self, call: Call, path: str) -> None:
        """Change what is there now."""
        folder, name = self._parent(path)
        match call.name:
            case "openat":
                folder.now.setdefault(name, _File())
            case "mkdir" | "mkdirat":
                folder.now[name] = _Folder()
            case "write" | "pwrite64":
                file = folder.now[name]
                if not isinstance(file, _File):
                    raise TypeError(f"{path} is a folder")
                file.now += call.data()  # every file of a store is written from its beginning to its end
            case "rename" | "renameat" | "renameat2" | "link" | "linkat":
                source, old = self._parent(call.paths()[0])
                folder.now[name] = source.now[old]
                if call.name.startswith("rename"):
                    del source.now[old]
            case "unlink" | "unlinkat" | "rmdir":
                del folder.now[name]
            case _:
                raise NotImplementedError(call.name)

    def is_touched_by(self, call: Call) -> bool:
        """Tell whether a call concerns this disk: the folder itself, or what is made in it."""
        return any(path == str(self.base) or Path(path).is_relative_to(self.base / "new") for path in call.paths())

    def cut(self, target: Path, chance: random.Random | None) -> None:
        """Write into a new folder what is left: only what is safe, or by chance more."""
        _write(self._root, target, chance)

    def _node(self, path: str) -> _File | _Folder:
        """Return what is at a path."""
        node: _File | _Folder = self._root
        for name in Path(path).relative_to(self.base).parts:
            if not isinstance(node, _Folder):
                raise NotADirectoryError(path)
            node = node.now[name]
        return node

    def _parent(self, path: str) -> tuple[_Folder, str]:
        """Return the folder that a path is in, and its name there."""
        folder = self._node(str(Path(path).parent))
        if not isinstance(folder, _Folder):
            raise NotADirectoryError(path)
        return folder, Path(path).name


@attrs.define(eq=False)
class _File:
    """A file: its content now, and what of it is safe."""

    now: bytes = b""
    safe: bytes = b""

    def sync(self) -> None:
        """Make the content safe."""
        self.safe = self.now

    def left(self, chance: random.Random | None) -> bytes:
        """Return what a power cut leaves: the safe part, and of the rest some, with zeros behind it."""
        if chance is None:
            return self.safe
        rest = self.now[len(self.safe) :]
        kept = chance.choice([0, len(rest), chance.randint(0, len(rest))])
        return self.safe + rest[:kept] + bytes(chance.choice([0, len(rest) - kept]))


@attrs.define(eq=False)
class _Folder:
    """A folder: its names now, and which of them are safe."""

    now: dict[str, _File | _Folder] = attrs.Factory(dict)
    safe: dict[str, _File | _Folder] = attrs.Factory(dict)

    def sync(self) -> None:
        """Make the names safe."""
        self.safe = self.now.copy()


def _write(folder: _Folder, target: Path, chance: random.Random | None) -> None:
    """Write a folder as it is left."""
    target.mkdir(parents=True)
    for name in {**folder.safe, **folder.now}:
        left = folder.safe.get(name)
        if chance is not None:
            left = chance.choice([left, folder.now.get(name)])
        if isinstance(left, _Folder):
            _write(left, target / name, chance)
        elif left is not None:
            (target / name).write_bytes(left.left(chance))
