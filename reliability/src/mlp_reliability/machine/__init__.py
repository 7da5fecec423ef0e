"""The row ``machine``: hypothesis drives a store through whatever may happen to it, and compares it with dictionaries.

Runs begin, commit, print, are tagged, taken over and ended by processes that die between two operations of the store;
objects are damaged; runs are copied, packed and unpacked; the index is thrown away. The store lies in a folder, on a
bucket in memory, or on a model of a disk that can lose its power.
"""

from __future__ import annotations

import os
import random
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis.reporting import with_reporter
from hypothesis.stateful import run_state_machine_as_test

from mlp_reliability.machine.history import Counts
from mlp_reliability.machine.rules import StoreMachine
from mlp_reliability.processes import in_processes
from mlp_reliability.promises import own_environment
from mlp_reliability.result import Result

if TYPE_CHECKING:
    from pathlib import Path

SHRINK: Final = "MLP_RELIABILITY_SHRINK"
"""The environment variable with which hypothesis takes its time to make a failing history short."""

_EXAMPLES: Final = 20
_STEPS: Final = 50


def run(n: int, seed: int, folder: Path) -> Result:
    """Take `n` steps, in batches of which each may find one violation."""
    violations: list[str] = []
    counts = Counts()
    with own_environment(folder):
        batches = ((random.Random(f"{seed} {batch}").randrange(2**32), folder / f"{batch}") for batch in count())
        for told, counted in in_processes(_run_batch, batches):
            violations += told
            counts.join(counted)
            if counts.steps >= n:
                break
    details = {"steps": counts.steps, "examples": counts.examples, **dict(sorted(counts.rules.items()))}
    return Result("machine", n, seed, violations, details)


def _run_batch(batch: tuple[int, Path]) -> tuple[list[str], Counts]:
    """Run some examples; return the violation that they found, if any, with the steps that lead to it, and counts."""
    seed, folder = batch
    counts = Counts()

    class Machine(StoreMachine):
        """A machine of this batch."""

        def __init__(self) -> None:
            super().__init__(folder, counts)

    settings = hypothesis.settings(
        max_examples=_EXAMPLES,
        stateful_step_count=_STEPS,
        database=None,
        deadline=None,
        phases=[Phase.generate, *([Phase.shrink] if os.environ.get(SHRINK) else [])],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    factory: Any = hypothesis.seed(seed)(Machine)
    try:
        with with_reporter(lambda _: None):
            run_state_machine_as_test(factory, settings=settings)
    except Exception as error:  # noqa: BLE001 # whatever a rule raises is what was found
        # The shortest history that hypothesis found; or, of something that does not happen each time, the only one.
        shortest = min(counts.failures, key=len, default=f"{type(error).__name__}: {error}")
        return [f"batch seed {seed}: {shortest}"], counts
    return [], counts
