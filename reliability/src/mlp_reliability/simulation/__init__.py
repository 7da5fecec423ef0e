"""The row ``simulation``: thousands of runs of random flows, in virtual time, by the real driver and scheduler.

Workers crash, hang, answer late, twice or in a strange order; drivers are interrupted, die at any operation of the
store, or lose its power; and every run is resumed from whatever is left of it. A run follows from its seed alone.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Final

from mlp_reliability.processes import in_processes
from mlp_reliability.result import Result
from mlp_reliability.simulation.history import History

if TYPE_CHECKING:
    from pathlib import Path

_PART: Final = 250
"""How many runs a process makes at a time."""

_COMPARED: Final = 50
"""How many runs are made again, in this process and in another, to compare their logs."""


def run(n: int, seed: int, folder: Path) -> Result:
    """Simulate `n` runs."""
    del folder  # everything is in memory
    violations: list[str] = []
    counts: Counter[str] = Counter()
    parts = [(seed, range(start, min(start + _PART, n))) for start in range(0, n, _PART)]
    for told, counted in in_processes(_play, parts):
        violations += told
        counts.update(counted)
    compared = min(n, _COMPARED)
    here = trace(seed, compared)
    if trace(seed, compared) != here:
        violations.append(f"the first {compared} runs have another log when they are made again in the same process")
    if _trace_elsewhere(seed, compared) != here:
        violations.append(f"the first {compared} runs have another log in a process with another hash seed")
    return Result("simulation", n, seed, violations, {**counts, "logs compared": compared})


def _play(part: tuple[int, range]) -> tuple[list[str], dict[str, int]]:
    """Simulate some of the runs of a seed; return what broke, and what happened how often."""
    seed, numbers = part
    violations: list[str] = []
    counts: Counter[str] = Counter()
    for number in numbers:
        history = History(run_seed(seed, number))
        history.play()
        violations += [f"run {number}: {violation}" for violation in history.violations]
        counts.update(history.counts)
    return violations, counts


def run_seed(seed: int, number: int) -> int:
    """Return the seed of one of the runs."""
    return random.Random(f"{seed} {number}").randrange(2**48)


def trace(seed: int, n: int) -> str:
    """Return a hash of the logs and journals of the first `n` runs."""
    digest = hashlib.sha256()
    for number in range(n):
        history = History(run_seed(seed, number))
        history.play()
        digest.update("\n".join(history.log).encode())
    return digest.hexdigest()


def _trace_elsewhere(seed: int, n: int) -> str:
    """Return `trace` as another process sees it."""
    code = f"from mlp_reliability.simulation import trace; print(trace({seed}, {n}))"
    environment = {**os.environ, "PYTHONHASHSEED": str(seed % 1000 + 1)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    return done.stdout.strip() or done.stderr
