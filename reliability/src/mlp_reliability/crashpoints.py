"""Row: kill a process at each system call that touches the store."""

from __future__ import annotations

import shutil
from pathlib import Path
from subprocess import TimeoutExpired
from typing import TYPE_CHECKING, Final, TypeVar

import attrs

from mlp_reliability.processes import described, in_parallel, kill_marked, left_after
from mlp_reliability.programs import FLOW, WRITER, Place, Program, resume, with_workers_behind
from mlp_reliability.promises import Digests, broken, digests, own_environment, run_ids, unequal
from mlp_reliability.result import Result
from mlp_reliability.tracing import Point, points, read_calls, record, recording

if TYPE_CHECKING:
    from collections.abc import Sequence

_GONE_SECONDS: Final = 2.0

_Any = TypeVar("_Any")


@attrs.frozen
class _Case:
    """A program, a point of it, and what a run of it should come to; with a worker, the point is one of that worker."""

    program: Program
    point: Point
    fresh: Digests
    base: Path
    worker: int = 0

    def command(self, place: Place) -> list[str]:
        """Return the command that is killed at the point."""
        kill = self.point.kill()
        if self.worker:
            return with_workers_behind(place, kill, self.worker)
        return [*kill, *self.program.command(place)]

    def __str__(self) -> str:
        killed = f"worker {self.worker}" if self.worker else self.program.name
        return f"{killed} killed at {self.point.name} {self.point.number}"


def run(n: int, seed: int, folder: Path) -> Result:
    """Kill the writer at every point, and drivers and workers at as many points, evenly spread, as `n` leaves.

    Parameters
    ----------
    n : int
        At most so many points.
    seed : int
        Where the spread begins.
    folder : Path
        Where to write.

    Returns
    -------
    Result
        What was found; its `n` is the number of points.
    """
    with own_environment(folder):
        written, driven = (_cases(program, folder) for program in (WRITER, FLOW))
        worked = _worker_cases(driven[0].fresh, folder)
        chosen = [*written[:n], *spread([*driven, *worked], n - len(written), seed)]
        found = in_parallel(_harm, chosen)
    return Result(
        row="crashpoints",
        n=len(chosen),
        seed=seed,
        violations=[violation for violations, _ in found for violation in violations],
        details={
            "points": {"writer": len(written), "driver": len(driven), "workers": len(worked)},
            "taken": {
                "writer": min(n, len(written)),
                "driver": sum(case.program is FLOW and not case.worker for case in chosen),
                "workers": sum(case.worker > 0 for case in chosen),
            },
            "killed": sum(is_killed for _, is_killed in found),
        },
        command=f"python -m mlp_reliability crashpoints -n {n} --seed {seed}",
    )


def _cases(program: Program, folder: Path) -> list[_Case]:
    """Return every point of a program's first process."""
    warm = Place(folder / f"{program.name}-warm").prepare()
    program.run(warm)  # else compiled modules are written on the way
    place = Place(folder / f"{program.name}-recorded").prepare()
    calls, _ = record(program, place)
    (run_id,) = run_ids(program, place.store)
    fresh = digests(program, place.store, run_id)
    own = [call for call in calls if call.pid == calls[0].pid]
    found = enumerate(points(own, place.store))
    return [_Case(program, point, fresh, folder / f"{program.name}-{number}") for number, point in found]


def _worker_cases(fresh: Digests, folder: Path) -> list[_Case]:
    """Return every point of the flow's workers."""
    place = Place(folder / "workers-recorded").prepare()
    for _ in range(2):  # the first time, compiled modules are written on the way
        FLOW.run(place, command=with_workers_behind(place, recording(place.base / "log-@worker@"), 0))
    found: list[_Case] = []
    for worker in range(len(fresh) + 1, 2 * len(fresh) + 1):
        calls = list(read_calls(place.base / f"log-{worker}"))
        for point in points(calls, place.store):
            base = folder / f"worker-{len(found)}"
            found.append(_Case(FLOW, point, fresh, base, worker - len(fresh)))
    return found


def spread(cases: Sequence[_Any], count: int, seed: int) -> list[_Any]:
    """Return so many of the cases, evenly spread."""
    if count >= len(cases):
        return list(cases)
    if count <= 0:
        return []
    return [cases[(number * len(cases) // count + seed) % len(cases)] for number in range(count)]


def _harm(case: _Case) -> tuple[list[str], bool]:
    """Kill a program at a point and go on; return the broken promises, and whether the first process was killed."""
    place = Place(case.base).prepare()
    try:
        violations, is_killed = _kill_and_go_on(case, place)
    except TimeoutExpired as error:
        violations, is_killed = [f"{error.cmd[-4:]} hung: {described(place.canary)}"], False
        kill_marked(place.canary)
    if violations:
        return [f"{case}: {violation}" for violation in violations], is_killed
    shutil.rmtree(case.base)
    return [], is_killed


def _kill_and_go_on(case: _Case, place: Place) -> tuple[list[str], bool]:
    """Kill a program at a point, check, and let it run or resume."""
    program, root = case.program, place.store
    done = program.run(place, command=case.command(place))
    said = program.said(done.stdout)
    violations = [f"process {pid} is left" for pid in left_after(place.canary, _GONE_SECONDS)]
    kill_marked(place.canary)
    violations += broken(program, root, said)
    is_resumed = program is FLOW and bool(run_ids(program, root))
    again = program.run(place, command=resume(place) if is_resumed else None)
    if again.returncode:
        violations.append(f"the next {'resume' if is_resumed else 'run'} failed: {again.stderr[-400:]}")
    else:
        violations += broken(program, root, [*said, *program.said(again.stdout)])
        violations += unequal(program, root, run_ids(program, root)[0], case.fresh)
    return violations, done.returncode != 0
