"""Row: stop a driver for longer than its lease, let another one take its run over, and let it go on."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs

from mlp_reliability.processes import in_parallel, kill_marked, left_after
from mlp_reliability.programs import FLOW, SECONDS, Place, resume
from mlp_reliability.programs.names import PAUSE
from mlp_reliability.promises import Digests, broken, digests, noted, own_environment, run_ids, states, unequal
from mlp_reliability.result import Result

if TYPE_CHECKING:
    from pathlib import Path

_LEASE: Final = 1.0
_VARIABLES: Final = {"MLP_RUN_LEASE_SECONDS": str(_LEASE)}
_TASK: Final = "0.4"
"""Seconds that a task of the middle takes."""

_GONE_SECONDS: Final = 2.0
_EVENTS: Final = 9


@attrs.define
class _Found:
    """What one round found."""

    violations: list[str] = attrs.Factory(list)
    is_long: bool = False
    is_taken_over: bool = False


def run(n: int, seed: int, folder: Path) -> Result:
    """Stop a driver `n` times; three times of four for longer than its lease, and half of those are taken over.

    Parameters
    ----------
    n : int
        How many rounds.
    seed : int
        What decides the moments and the kinds.
    folder : Path
        Where to write.

    Returns
    -------
    Result
        What was found.
    """
    with own_environment(folder):
        place = Place(folder / "fresh").prepare()
        FLOW.run(place).check_returncode()
        fresh = digests(FLOW, place.store, run_ids(FLOW, place.store)[0])
        found = in_parallel(partial(_round, folder, seed, fresh), range(n))
    return Result(
        row="stops",
        n=n,
        seed=seed,
        violations=[violation for each in found for violation in each.violations],
        details={
            "stopped_longer_than_the_lease": sum(each.is_long for each in found),
            "taken_over": sum(each.is_taken_over for each in found),
            "lease_seconds": _LEASE,
        },
    )


def _round(folder: Path, seed: int, fresh: Digests, number: int) -> _Found:
    """Stop a driver once; a round's number decides its kind, so that each occurs."""
    chance = random.Random(f"{seed} {number}")
    place = Place(folder / str(number)).prepare()
    found = _Found(is_long=number % 4 != 3, is_taken_over=number % 4 in (0, 1))  # noqa: PLR2004 # a quarter of them
    output, error = place.base / "output", place.base / "error"
    with output.open("wb") as out, error.open("wb") as err:
        environment = place.environment({PAUSE: _TASK, **_VARIABLES})
        driver = subprocess.Popen(FLOW.command(place), cwd=place.project, env=environment, stdout=out, stderr=err)
    try:
        with noted(found.violations):
            _stop_and_go_on(driver, place, chance, fresh, found)
        if not found.is_long and not found.violations:
            found.violations += unequal(FLOW, place.store, run_ids(FLOW, place.store)[0], fresh)
        said = FLOW.said(output.read_text())
        found.violations += broken(FLOW, place.store, said)
        if found.is_long and error.read_text().count("error:") != 1:
            found.violations.append(f"it ended without one error: {error.read_text()[-300:]!r}")
    except subprocess.TimeoutExpired as expired:
        found.violations.append(f"{expired.cmd[-3:]} did not end")
    finally:
        kill_marked(place.canary)
        driver.wait()
    how = f"stopped {'longer' if found.is_long else 'shorter'} than the lease"
    taken = " and taken over" if found.is_taken_over else ""
    found.violations = [f"round {number}, {how}{taken}: {each}" for each in found.violations]
    if not found.violations:
        shutil.rmtree(place.base)
    return found


def _stop_and_go_on(
    driver: subprocess.Popen[bytes], place: Place, chance: random.Random, fresh: Digests, found: _Found
) -> None:
    """Stop a driver, do what others do meanwhile, let it go on, and look at what it does."""
    lines = chance.randint(1, _EVENTS)
    until = time.monotonic() + SECONDS
    while (place.base / "output").read_bytes().count(b"\n") < lines and time.monotonic() < until:
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.2))
    os.kill(driver.pid, signal.SIGSTOP)
    if driver.poll() is not None:  # it had ended before
        found.is_long = found.is_taken_over = False
        return
    time.sleep(_LEASE * (chance.uniform(1.4, 2.0) if found.is_long else chance.uniform(0.1, 0.5)))
    (run_id,) = run_ids(FLOW, place.store)
    before = states(FLOW, place.store)[run_id]
    if before.ended is not None:  # it was stopped after its end
        found.is_long = found.is_taken_over = False
    if found.is_long and before.status != "lost":
        found.violations.append(f"its run is {before.status}")
    if found.is_taken_over:
        _take_over(place, fresh, found)
    journal = place.store / f"flows/{FLOW.flow}/{run_id}/journal"
    content = journal.read_bytes()
    os.kill(driver.pid, signal.SIGCONT)
    status = driver.wait(SECONDS)
    if status != (1 if found.is_long else 0):
        found.violations.append(f"it ended with status {status}")
    if found.is_long and journal.read_bytes() != content:
        added = journal.read_bytes()[len(content) :]
        found.violations.append(f"it wrote into its journal: {added[-300:]!r}")
    found.violations += [f"process {pid} outlives it" for pid in left_after(place.canary, _GONE_SECONDS)]
    if found.is_long and not found.is_taken_over:
        _take_over(place, fresh, found)


def _take_over(place: Place, fresh: Digests, found: _Found) -> None:
    """Resume the run, and compare what it comes to with a fresh one."""
    again = FLOW.run(place, command=resume(place))
    if again.returncode:
        found.violations.append(f"the resume failed: {again.stderr[-400:]}")
        return
    found.violations += broken(FLOW, place.store, FLOW.said(again.stdout))
    found.violations += unequal(FLOW, place.store, run_ids(FLOW, place.store)[0], fresh)
