"""Row: kill the driver at a random moment, alone or with its workers, also while it resumes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import statistics
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from mlp_reliability.processes import in_parallel, kill_marked, left_after
from mlp_reliability.programs import FLOW, SECONDS, Place, resume
from mlp_reliability.programs.names import PAUSE, STUBBORN
from mlp_reliability.promises import Digests, broken, digests, noted, own_environment, run_ids, states, unequal
from mlp_reliability.result import Result

if TYPE_CHECKING:
    from mlp_reliability.programs import Said

_GONE_SECONDS: Final = 2.0
_PAUSE: Final = "0.05"


@attrs.frozen
class _Round:
    """One round: its number, what a fresh run comes to and how long it takes."""

    number: int
    seed: int
    base: Path
    fresh: Digests
    seconds: float


@attrs.define
class _Found:
    """What one round found."""

    violations: list[str] = attrs.Factory(list)
    kills: int = 0
    alone: int = 0
    resumes_killed: int = 0
    acknowledged: int = 0
    slowest_end: float = 0.0


def run(n: int, seed: int, folder: Path) -> Result:
    """Kill a driver `n` times, in a run of its own each time; in every second round also as it resumes.

    Parameters
    ----------
    n : int
        How many rounds.
    seed : int
        What decides the moments, and who is killed.
    folder : Path
        Where to write.

    Returns
    -------
    Result
        What was found.
    """
    with own_environment(folder):
        fresh, seconds = _fresh(Place(folder / "fresh").prepare())
        rounds = [_Round(number, seed, folder / str(number), fresh, seconds) for number in range(n)]
        found = in_parallel(_round, rounds)
    return Result(
        row="kills",
        n=n,
        seed=seed,
        violations=[violation for each in found for violation in each.violations],
        details={
            "kills": sum(each.kills for each in found),
            "driver_alone": sum(each.alone for each in found),
            "resumes_killed": sum(each.resumes_killed for each in found),
            "tasks_acknowledged_before_a_kill": sum(each.acknowledged for each in found),
            "slowest_end_of_processes_seconds": round(max(each.slowest_end for each in found), 3),
        },
    )


def _fresh(place: Place) -> tuple[Digests, float]:
    """Return what a run comes to, and how long it takes."""
    took = []
    for _ in range(3):
        begun = time.monotonic()
        FLOW.run(place, variables={PAUSE: _PAUSE}).check_returncode()
        took.append(time.monotonic() - begun)
    return digests(FLOW, place.store, run_ids(FLOW, place.store)[0]), statistics.median(took)


def _round(job: _Round) -> _Found:
    """Run, kill, resume, maybe kill again, and resume to the end."""
    chance = random.Random(f"{job.seed} {job.number}")  # chance, not a secret
    place = Place(job.base).prepare()
    found = _Found()
    with noted(found.violations):
        said = _kill(job, place, FLOW.command(place), chance, found)
        for _ in range(chance.choice([0, 0, 1, 2])):
            if not run_ids(FLOW, place.store):
                break
            found.resumes_killed += 1
            said += _kill(job, place, resume(place), chance, found)
        _end(job, place, said, found)
    found.violations = [f"round {job.number}: {violation}" for violation in found.violations]
    if not found.violations:
        shutil.rmtree(job.base)
    return found


def _kill(job: _Round, place: Place, command: list[str], chance: random.Random, found: _Found) -> Said:
    """Start a driver and kill it after a random time; return what it had acknowledged."""
    is_alone = chance.choice([True, False])
    hangs = is_alone and chance.choice([True, False])
    variables = {PAUSE: "600" if hangs else _PAUSE, **({STUBBORN: "1"} if hangs else {})}
    output = place.base / f"output-{found.kills}"
    with output.open("wb") as file:
        driver = subprocess.Popen(
            command, cwd=place.project, env=place.environment(variables), stdin=subprocess.DEVNULL, stdout=file,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        driver.wait(job.seconds * chance.choice([chance.uniform(0, 0.4), *[chance.uniform(0.4, 1.1)] * 3]))
    except subprocess.TimeoutExpired:
        os.kill(driver.pid, signal.SIGKILL)
    if not is_alone:
        kill_marked(place.canary)
    driver.wait()
    found.kills += 1
    found.alone += is_alone
    killed = time.monotonic()
    found.violations += [f"process {pid} outlives its driver" for pid in left_after(place.canary, _GONE_SECONDS)]
    found.slowest_end = max(found.slowest_end, time.monotonic() - killed)
    kill_marked(place.canary)
    said = FLOW.said(output.read_text())
    found.acknowledged += sum(words[0] == "finished" for words in said)
    found.violations += broken(FLOW, place.store, said)
    ended = {words[1] for words in said if words[0] == "ended"}
    newest = {words[1] for words in said if words[0] == "created"}
    for run_id in newest - ended:
        status = states(FLOW, place.store)[run_id].status
        if status not in ("lost", "succeeded"):  # it may have ended without having been able to say so
            found.violations.append(f"run {run_id} of a killed driver is {status}")
    return said


def _end(job: _Round, place: Place, said: Said, found: _Found) -> None:
    """Let the run come to its end, and compare it with a fresh one."""
    before = states(FLOW, place.store)
    is_resumed = bool(before)
    try:
        again = FLOW.run(place, command=resume(place) if is_resumed else None, variables={PAUSE: _PAUSE})
    except subprocess.TimeoutExpired:
        found.violations.append(f"the last {'resume' if is_resumed else 'run'} did not end in {SECONDS} s")
        kill_marked(place.canary)
        return
    if again.returncode:
        found.violations.append(f"the last {'resume' if is_resumed else 'run'} failed: {again.stderr[-400:]}")
        return
    found.violations += broken(FLOW, place.store, [*said, *FLOW.said(again.stdout)])
    last = run_ids(FLOW, place.store)[0]
    found.violations += unequal(FLOW, place.store, last, job.fresh)
    found.violations += [f"process {pid} is left after the end" for pid in left_after(place.canary, _GONE_SECONDS)]
    if not is_resumed:
        return
    origin = max(before)
    tasks = {key.path: task for key, task in states(FLOW, place.store)[last].tasks.items()}
    for key, task in before[origin].tasks.items():
        if task.status == "succeeded" and not tasks[key.path].origin:
            found.violations.append(f"task {key.path} had succeeded in run {origin} and was made again")
