"""The rows: which there are, how large they are, and how one is run."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mlp_reliability.result import Result

SEED: Final = 20260101
"""The seed unless another is given."""


@attrs.frozen
class Row:
    """One kind of harm.

    Attributes
    ----------
    module : str
        The module below this package whose ``run(n, seed, folder)`` does it.
    short, long : int
        How often the short form, which is a test, and the long form do it.
    about : str
        One line on it.
    """

    module: str
    short: int
    long: int
    about: str


ROWS: Final[Mapping[str, Row]] = {
    "simulation": Row(
        "simulation", 2_000, 100_000, "random flows in virtual time, with crashing, hanging and lying workers"
    ),
    "crashpoints": Row("crashpoints", 240, 10_000, "a process is killed at each system call that touches the store"),
    "kills": Row("kills", 60, 1_000, "the driver is killed at a random moment, alone or with its workers"),
    "damage": Row("damage", 500, 10_000, "a stored file is damaged, cut off, exchanged or removed"),
    "faults": Row("faults", 180, 10_000, "the disk fails at any call, is full, or writes less than it was given"),
    "many": Row("many", 3, 20, "fifty runs at once, and eight drivers that resume one run"),
    "stops": Row("stops", 8, 100, "a driver is stopped past its lease, and goes on when others have taken over"),
    "powercuts": Row("powercuts", 40, 1_000, "the disk loses what was not synced, on ext4 and on a model of a disk"),
    "bucket": Row("bucket", 1_000, 10_000, "operations and runs on a bucket at 1, 10 and 30 % errors"),
    "machine": Row("machine", 5_000, 1_000_000, "whatever may happen to a store, driven by hypothesis"),
    "hostile": Row(
        "hostile", 2_000, 10_000, "names, parameters, journals, pickles and archives that were made to do harm"
    ),
    "canaries": Row("canaries", 200, 1_000, "secrets that steps print, raise and hand on, and what is left of them"),
    "requests": Row("request_counts", 10_000, 10_000, "requests on a bucket for a large run and for lists, counted"),
    "branches": Row("branches", 1, 1, "every branch of the code that decides is reached by its unit tests"),
    "mutants": Row("mutants", 20, 10_000, "changed code, which the tests have to notice"),
}
"""The rows by name; their modules are imported when they are run."""


def run_row(name: str, folder: Path, n: int | None = None, seed: int = SEED) -> Result:
    """Run a row.

    Parameters
    ----------
    name : str
        The row.
    folder : pathlib.Path
        An empty folder, the only place where it writes.
    n : int or None
        How often to do harm; None for the short form.
    seed : int
        What all its choices are drawn from.

    Returns
    -------
    Result
        What it found.
    """
    row = ROWS[name]
    module = importlib.import_module(f"mlp_reliability.{row.module}")
    found: Result = module.run(row.short if n is None else n, seed, folder)
    return found
