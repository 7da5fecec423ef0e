"""Row: many runs of one flow at once in one store, and many drivers that resume one run at once."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

import attrs

from mlp_core.store import AttemptFinished, RunEnded, TaskReused
from mlp_core.store.journal import parse_journal
from mlp_reliability.processes import kill_marked, left_after
from mlp_reliability.programs import FLOW, SECONDS, Place, resume
from mlp_reliability.programs.names import PAUSE
from mlp_reliability.promises import Digests, broken, digests, noted, own_environment, run_ids, states, unequal
from mlp_reliability.result import Result

if TYPE_CHECKING:
    from pathlib import Path

    from mlp_reliability.programs import Said

RUNS: Final = 50
RESUMES: Final = 8
_GONE_SECONDS: Final = 2.0


@attrs.define
class _Found:
    """What the rounds found."""

    violations: list[str] = attrs.Factory(list)
    runs: int = 0
    resumes: int = 0
    reused: int = 0


def run(n: int, seed: int, folder: Path) -> Result:
    """Start 50 runs at once, and 8 drivers that resume a run whose driver was killed, `n` times over.

    Parameters
    ----------
    n : int
        How many rounds.
    seed : int
        Not used: the order in which processes come is the system's.
    folder : Path
        Where to write.

    Returns
    -------
    Result
        What was found.
    """
    found = _Found()
    with own_environment(folder):
        place = Place(folder / "fresh").prepare()
        FLOW.run(place).check_returncode()
        fresh = digests(FLOW, place.store, run_ids(FLOW, place.store)[0])
        for number in range(n):
            place = Place(folder / str(number)).prepare()
            before = len(found.violations)
            with noted(found.violations):
                _run_many(place, fresh, found)
                _resume_many(place, fresh, found)
            found.violations[before:] = [f"round {number}: {each}" for each in found.violations[before:]]
            if len(found.violations) == before:
                shutil.rmtree(place.base)
    return Result(
        row="many",
        n=n,
        seed=seed,
        violations=found.violations,
        details={
            "runs": found.runs,
            "resumes": found.resumes,
            "tasks_reused": found.reused,
        },
    )


def _run_many(place: Place, fresh: Digests, found: _Found) -> None:
    """Start many runs at once, in a store that they have to make."""
    said = _all(place, [FLOW.command(place)] * RUNS, found)
    ended = {words[1] for words in said if words[0] == "ended"}
    if len(ended) != RUNS:
        found.violations.append(f"{len(ended)} of {RUNS} runs said that they ended")
    found.runs += len(ended)
    found.violations += broken(FLOW, place.store, said)
    for run_id in ended:
        found.violations += unequal(FLOW, place.store, run_id, fresh)
    _check_commits(place, found)


def _resume_many(place: Place, fresh: Digests, found: _Found) -> None:
    """Kill a run in its middle, and start many drivers that resume it."""
    output = place.base / "output"
    with output.open("wb") as file:
        environment = place.environment({PAUSE: "0.3"})
        driver = subprocess.Popen(FLOW.command(place), cwd=place.project, env=environment, stdout=file)
    until = time.monotonic() + SECONDS
    while b'"task_finished"' not in output.read_bytes() and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.1)
    driver.kill()
    driver.wait()
    left_after(place.canary, _GONE_SECONDS)
    before = FLOW.said(output.read_text())
    origin = max(words[1] for words in before)
    said = _all(place, [resume(place, "--origin-run-id", origin)] * RESUMES, found)
    ended = {words[1] for words in said if words[0] == "ended"}
    if len(ended) != RESUMES:
        found.violations.append(f"{len(ended)} of {RESUMES} resumes said that they ended")
    found.resumes += len(ended)
    found.violations += broken(FLOW, place.store, [*before, *said])
    for run_id in ended:
        found.violations += unequal(FLOW, place.store, run_id, fresh)
    _check_commits(place, found)
    known = states(FLOW, place.store)
    found.reused += sum(bool(task.origin) for run_id in ended for task in known[run_id].tasks.values())
    ending = known[origin].ended
    if ending is None or ending.status != "lost":
        found.violations.append(f"run {origin}, which was taken over, is {known[origin].status}")


def _all(place: Place, commands: list[list[str]], found: _Found) -> Said:
    """Start commands at once and wait for all; return what they said."""
    outputs = [(place.base / f"output-{number}", place.base / f"error-{number}") for number in range(len(commands))]
    processes = []
    for command, (output, error) in zip(commands, outputs, strict=True):
        with output.open("wb") as out, error.open("wb") as err:
            processes.append(
                subprocess.Popen(command, cwd=place.project, env=place.environment(), stdout=out, stderr=err)
            )
    until = time.monotonic() + SECONDS
    try:
        for process in processes:
            process.wait(max(0.1, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        found.violations.append(f"some of {len(commands)} drivers did not end in {SECONDS} s")
        kill_marked(place.canary)
    found.violations += [f"process {pid} is left" for pid in left_after(place.canary, _GONE_SECONDS)]
    kill_marked(place.canary)
    said: Said = []
    for process, (output, error) in zip(processes, outputs, strict=True):
        process.wait()
        said += FLOW.said(output.read_text())
        if process.returncode or error.read_bytes():
            found.violations.append(f"a driver ended with {process.returncode}: {error.read_text()[-400:]}")
    return said


def _check_commits(place: Place, found: _Found) -> None:
    """Check that no journal has two results of a task, or two ends."""
    for run_id in run_ids(FLOW, place.store):
        key = f"flows/{FLOW.flow}/{run_id}/journal"
        records = [record for _, record in parse_journal((place.store / key).read_bytes(), key).records]
        results = [record for record in records if isinstance(record, AttemptFinished | TaskReused)]
        final = Counter(each.key for each in results if isinstance(each, TaskReused) or not each.will_retry)
        found.violations += [
            f"run {run_id} has {count} results of task {task.path}" for task, count in final.items() if count > 1
        ]
        ends = [record for record in records if isinstance(record, RunEnded)]
        if len(ends) > 1:
            found.violations.append(f"run {run_id} has {len(ends)} ends")
