"""How a run's id gets into the file that is asked for it, and into no other."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from mlp_core import names
from mlp_core.errors import NameRefused, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MOST_BYTES = 200


def clear_run_id_file(path: Path) -> None:
    """Make an empty file, or empty one with the id of an earlier run, so that no id is there before there is a run.

    Raises
    ------
    UsageError
        Where the file holds something else, or cannot be written.
    """
    with _refusing(path):
        if path.is_file():
            with path.open("rb") as file:
                found = file.read(_MOST_BYTES).decode(errors="replace").strip()
            try:
                if found:
                    names.run_id(found)
            except NameRefused:
                raise UsageError(
                    f"the run's id is not written to {names.shown(str(path))}: the file holds something else",
                    hint="give --run-id-file the path of a new file, or of one with the id of an earlier run",
                ) from None
        _replace(path, "")


def write_run_id_file(path: Path, run_id: str) -> None:
    """Write a run's id to a file, at once: whoever reads it meanwhile finds nothing or all; raises as the other."""
    with _refusing(path):
        _replace(path, run_id)


def _replace(path: Path, content: str) -> None:
    """Write a file by putting another one in its place; a device or pipe is written to as it is."""
    target = path.resolve()
    if target.exists() and not target.is_file():
        with target.open("w", encoding="utf-8") as file:
            file.write(content)
        return
    staged = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with staged.open("x", encoding="utf-8") as file:
            file.write(content)
        staged.replace(target)
    except BaseException:
        with suppress(OSError):
            staged.unlink()
        raise


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn the system's errors into a refusal."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"the run's id cannot be written to {names.shown(str(path))}: {reason}",
            hint="give --run-id-file the path of a file in a folder that is there and can be written",
        ) from error
