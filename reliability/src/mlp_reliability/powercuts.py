"""Row: cut the power of the disk that the store is on, on a real file system where there may be one, and on a model."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs

from mlp_reliability import loopdisk, tracing
from mlp_reliability.disk import Disk
from mlp_reliability.loopdisk import LoopDisk
from mlp_reliability.processes import in_parallel, kill_marked, stop_marked
from mlp_reliability.programs import FLOW, SECONDS, WRITER, Place, Program, resume
from mlp_reliability.promises import broken, own_environment, run_ids
from mlp_reliability.result import Result

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mlp_reliability.programs import Said
    from mlp_reliability.tracing import Call

_ON_SEVERAL: Final = 10
"""From so many cuts on, the power of a whole flow is cut too."""

_RUNS_AGAIN: Final = 20
"""In a model's cuts, every so manieth is followed by a run."""


def run(n: int, seed: int, folder: Path) -> Result:
    """Cut the power `n` times on ext4, where this machine lets us, and after every call on a model of a disk.

    Parameters
    ----------
    n : int
        How many cuts on ext4; the model's grow with it slowly: one pass over all calls, and one by chance for each 40.
    seed : int
        What decides the moments, and what survives that need not.
    folder : Path
        Where to write.

    Returns
    -------
    Result
        What was found; `details` tells what was used.
    """
    violations: list[str] = []
    details: dict[str, object] = {"ext4_in_a_loop_file": loopdisk.is_available(), "model": tracing.is_available()}
    with own_environment(folder):
        if details["ext4_in_a_loop_file"]:
            durations = _durations(folder, (WRITER, FLOW) if n >= _ON_SEVERAL else (WRITER,))
            found = in_parallel(partial(_round, folder, seed, durations), range(n))
            violations += [violation for each in found for violation in each.violations]
            details["ext4_cuts"] = len(found)
            details["ext4_acknowledged_before_a_cut"] = sum(each.acknowledged for each in found)
        if details["model"]:
            for program in (WRITER, FLOW) if n >= _ON_SEVERAL else (WRITER,):
                cuts = _model(program, folder, [None, *range(seed, seed + 1 + n // 40)], violations)
                details[f"model_cuts_of_{program.name}"] = cuts
    return Result(row="powercuts", n=n, seed=seed, violations=violations, details=details)


@attrs.define
class _Found:
    """What one cut found."""

    violations: list[str] = attrs.Factory(list)
    acknowledged: int = 0


def _durations(folder: Path, programs: Sequence[Program]) -> dict[Program, float]:
    """Return how long programs take."""
    found = {}
    for program in programs:
        place = Place(folder / f"{program.name}-warm").prepare()
        program.run(place).check_returncode()
        begun = time.monotonic()
        program.run(place).check_returncode()
        found[program] = time.monotonic() - begun
    return found


def _round(folder: Path, seed: int, durations: dict[Program, float], number: int) -> _Found:
    """Cut the power of a program on ext4 once, check what is left, and run again there."""
    chance = random.Random(f"{seed} {number}")
    program = chance.choice([*durations, *list(durations)[1:]])  # the flow twice as often
    place = Place(folder / f"cut-{number}").prepare()
    found = _Found()
    with LoopDisk(folder / f"image-{number}", place.store.parent) as disk:
        output = place.base / "output"
        with output.open("wb") as file:
            process = subprocess.Popen(
                program.command(place),
                cwd=place.project,
                env=place.environment(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.DEVNULL,
            )
        _wait(output, durations[program], chance)
        if not program.is_repeatable:
            # The file system's shutdown is no real power cut: of two processes that sync at that very moment, one may
            # be told that it succeeded. So nobody is in a call of the system then.
            stop_marked(place.canary)
        disk.cut()
        kill_marked(place.canary)
        process.wait()
        disk.power_on()
        said = program.said(output.read_text())
        found.acknowledged = len(said)
        found.violations += broken(program, place.store, said)
        found.violations += _run_again(program, place, said)
    found.violations = [f"ext4 cut {number} of the {program.name}: {each}" for each in found.violations]
    if not found.violations:
        shutil.rmtree(place.base)
    return found


def _wait(output: Path, seconds: float, chance: random.Random) -> None:
    """Wait for a random moment, or until some line was printed: right after an acknowledgement is the worst moment."""
    if chance.choice([True, False]):
        time.sleep(chance.uniform(0.2, 1.1) * seconds)
        return
    lines = chance.randint(1, 12)
    until = time.monotonic() + 4 * seconds
    while output.read_bytes().count(b"\n") < lines and time.monotonic() < until:
        time.sleep(0.0005)


def _run_again(program: Program, place: Place, said: Said) -> list[str]:
    """Run in the store that a cut has left, and resume what it has cut off; return the broken promises."""
    commands = [program.command(place)]
    if program is FLOW and run_ids(program, place.store):
        commands.insert(0, resume(place))
    for command in commands:
        try:
            again = program.run(place, command=command)
        except subprocess.TimeoutExpired:
            kill_marked(place.canary)
            return [f"the next run hung for {SECONDS} s: {command}"]
        if again.returncode:
            return [f"the next run failed: {again.stderr[-400:]}"]
        said = [*said, *program.said(again.stdout)]
    return broken(program, place.store, said)


def _model(program: Program, folder: Path, seeds: Sequence[int | None], violations: list[str]) -> int:
    """Cut the power of a model after every call of a recorded program; return how often."""
    warm = Place(folder / f"{program.name}-first").prepare()
    program.run(warm).check_returncode()  # else compiled modules are written on the way
    place = Place(folder / f"{program.name}-recorded").prepare()
    calls, _ = tracing.record(program, place)
    cuts = 0
    for chosen in seeds:
        cuts += _cut_everywhere(program, calls, place, chosen, violations)
    return cuts


def _cut_everywhere(
    program: Program, calls: Sequence[Call], place: Place, seed: int | None, violations: list[str]
) -> int:
    """Cut the power after each call that concerns the store; without a seed only what was synced is left."""
    disk = Disk(place.base)
    chance = None if seed is None else random.Random(seed)
    left = Place(place.base.parent / f"{program.name}-left")
    output = b""
    cuts = 0
    for call in calls:
        is_said = call.is_printed(calls)
        if is_said:
            output += call.data()
        disk.apply(call)
        if not is_said and not disk.is_touched_by(call):
            continue
        cuts += 1
        disk.cut(left.base, chance)
        left.prepare()
        said = program.said(output.decode())
        found = broken(program, left.store, said)
        if not found and cuts % _RUNS_AGAIN == 0:
            found = _run_again(program, left, said)
        kept = "what was synced" if seed is None else f"a choice by seed {seed}"
        where = f"model cut of the {program.name} after {call.name} number {cuts} with {kept} left"
        violations += [f"{where}: {each}" for each in found]
        shutil.rmtree(left.base)
    return cuts
