"""What a run's code package holds: the project's source files, as one deterministic archive."""

from __future__ import annotations

import io
import os
import re
import stat
import tarfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mlp_core.errors import SettingError, UsageError
from mlp_core.names import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pathspec import GitIgnoreSpec

_SOURCE = ".cfg .conf .css .html .ini .ipynb .j2 .jinja .js .json .md .py .pyi .r .rst .sh .sql .toml .txt .yaml .yml"
_TRASH = "__pycache__ venv env node_modules"

SUFFIXES: Final = frozenset(_SOURCE.split())
"""The endings of files that count as source; data is read from where it lies."""

NEVER: Final = frozenset(_TRASH.split())
"""Folders that are never taken, as are hidden ones, virtual environments and the store."""

MAX_FILES: Final = 20_000


def build_package(root: Path, settings: Mapping[str, object], *, store: str = "") -> bytes:
    """Return the archive of a project's source.

    Files are taken by their ending unless ``.gitignore`` or the setting ``package.exclude`` names them; patterns of
    ``package.include`` take further files. The same files give the same bytes.

    Parameters
    ----------
    root : pathlib.Path
        The project's folder.
    settings : mapping of str to object
        The settings in force.
    store : str
        The store's place, which is left out.

    Returns
    -------
    bytes
        An uncompressed tar archive with paths relative to the root.

    Raises
    ------
    UsageError
        Where it would be larger than ``package.max_mb``; the message names the largest files.
    SettingError
        Where a pattern is none.
    """
    limit = _whole(settings["package.max_mb"]) << 20
    sizes = dict(_files(root, _patterns(settings, "package.include"), _patterns(settings, "package.exclude"), store))
    if sum(sizes.values()) > limit:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        listed = ", ".join(f"{name} ({sizes[name] >> 20} MiB)" for name in largest)
        raise UsageError(
            f"the code package of {root} would be larger than {limit >> 20} MiB; the largest files are {listed}",
            hint="leave files out by .gitignore or the setting package.exclude, or raise package.max_mb",
        )
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(sizes):
            content = _read(root / name)
            if content is None:
                continue
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.mode = 0o644
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _read(path: Path) -> bytes | None:
    """Return a file's content; None where it has gone since it was listed."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(
            f"{path} cannot be put into the code package: {error.strerror}",
            hint="leave it out by .gitignore or the setting package.exclude",
        ) from error


def _files(root: Path, include: Sequence[str], exclude: Sequence[str], store: str) -> Iterator[tuple[str, int]]:
    """Yield the names of the files to take, relative to the root, and their sizes."""
    ignored = _spec([*filter(_is_pattern, _gitignore(root)), *exclude])
    wanted = _spec(include)
    count = 0
    for folder, folders, names in os.walk(root):
        base = Path(folder)
        relative = "" if base == root else base.relative_to(root).as_posix() + "/"
        folders[:] = sorted(
            name
            for name in folders
            if not _is_never(base / name, store) and not (ignored and ignored.match_file(f"{relative}{name}/"))
        )
        for name in sorted(names):
            path = relative + name
            count += 1
            if count > MAX_FILES:
                raise UsageError(
                    f"the project {root} has more than {MAX_FILES} files",
                    hint="put an mlp.toml into the folder that is the project, or exclude folders by .gitignore",
                )
            try:
                found = (base / name).lstat()
            except OSError:  # it has gone since
                continue
            if name.startswith(".env") or not stat.S_ISREG(found.st_mode):
                continue
            if (wanted is not None and wanted.match_file(path)) or (
                Path(name).suffix.lower() in SUFFIXES and not (ignored and ignored.match_file(path))
            ):
                yield path, found.st_size


def _is_never(folder: Path, store: str) -> bool:
    """Tell whether a folder is left out whatever the patterns say."""
    return (
        folder.name in NEVER
        or folder.name.startswith(".")
        or folder.name.endswith(".egg-info")
        or str(folder) == store
        or (folder / "pyvenv.cfg").is_file()
        or "*" in _gitignore(folder)
        or folder.is_symlink()
    )


def _gitignore(root: Path) -> list[str]:
    """Return the patterns of a folder's ignore file."""
    try:
        return (root / ".gitignore").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _spec(patterns: Sequence[str]) -> GitIgnoreSpec | None:
    """Return a matcher of patterns in the language of .gitignore; None where there are none."""
    if not any(pattern.strip() for pattern in patterns):
        return None
    from pathspec import GitIgnoreSpec

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the regular expressions that patterns become
        return GitIgnoreSpec.from_lines(patterns)


def _is_pattern(text: str) -> bool:
    """Tell whether a text is a pattern in the language of .gitignore; git passes over what is none."""
    try:
        _spec([text])
    except (ValueError, re.error):
        return False
    return True


def _patterns(settings: Mapping[str, object], name: str) -> list[str]:
    """Return the patterns of a list setting."""
    value = settings[name]
    patterns = [str(item) for item in value] if isinstance(value, tuple | list) else []
    for pattern in patterns:
        if not _is_pattern(pattern):
            hint = "write patterns as in .gitignore: data/, *.log"
            raise SettingError(f"setting {name} contains {shown(pattern)}, which is no pattern", hint=hint)
    return patterns


def _whole(value: object) -> int:
    """Return the number of a whole-number setting."""
    return value if isinstance(value, int) else 0
