"""Which files of a local source count: a change to one of them is another requirement, and another package."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK: Final = 1 << 20
_MADE: Final = frozenset({"__pycache__", "build", "dist", "node_modules"})
"""Folders of what was made from the source."""


def digest_of(path: Path) -> str:
    """Return the digest of a file, or of a folder's files with their names.

    Parameters
    ----------
    path : pathlib.Path
        The file or folder. Of a folder, what is hidden or was made from the rest (bytecode, builds, virtual
        environments) does not count.

    Returns
    -------
    str
        As ``sha256-<64 hex digits>``.

    Raises
    ------
    OSError
        Where something cannot be read.
    """
    if not path.is_dir():
        return "sha256-" + sha256_of(path)
    whole = hashlib.sha256()
    for name in sorted(_files(path)):
        whole.update(f"{name}\0{sha256_of(path / name)}\n".encode("utf-8", "surrogateescape"))
    return "sha256-" + whole.hexdigest()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    return hash_of(path, "sha256")


def hash_of(path: Path, algorithm: str) -> str:
    """Return a hash of a file's content, in hexadecimal."""
    digest = hashlib.new(algorithm)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def boundary_of(file: Path) -> Path:
    """Return the folder that a flow's files are looked for in: of its repository, else its project, else its own."""
    folders = file.resolve().parents
    for mark in (".git", "pyproject.toml"):
        found = next((folder for folder in folders if (folder / mark).exists()), None)
        if found is not None:
            return found
    return folders[0]


def project_of(file: Path) -> Path | None:
    """Return the nearest folder above a file that has a ``pyproject.toml``; None where there is none."""
    return next((folder for folder in file.resolve().parents if (folder / "pyproject.toml").is_file()), None)


def _files(root: Path) -> Iterator[str]:
    """Yield the names of the files that count, relative to the folder."""
    for base, folders, names in os.walk(root):
        folders[:] = [folder for folder in folders if _counts(Path(base, folder))]
        for name in names:
            if not name.startswith(".") and not name.endswith(".pyc") and Path(base, name).is_file():
                yield os.path.relpath(Path(base, name), root)


def _counts(folder: Path) -> bool:
    """Tell whether a folder's content counts."""
    name = folder.name
    if name.startswith(".") or name in _MADE or name.endswith(".egg-info"):
        return False
    return not (folder / "pyvenv.cfg").exists()
