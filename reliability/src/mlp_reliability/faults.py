"""Row: let the disk fail: every call that touches the store with every error, full disks, and writes that are short."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import attrs

from mlp_reliability.crashpoints import spread
from mlp_reliability.processes import described, in_parallel, kill_marked
from mlp_reliability.programs import FLOW, SECONDS, WRITER, Place, Program, resume, with_workers_behind
from mlp_reliability.promises import Digests, broken, digests, own_environment, run_ids, unequal
from mlp_reliability.result import Result
from mlp_reliability.tracing import Call, Point, points, read_calls, record, recording

_ERRORS: Final = ("ENOSPC", "EIO", "EDQUOT")
_ONLY_FAILING: Final = ("EIO",)
"""What may happen to a call that needs no room."""

_ROOMS: Final = tuple(range(20, 240, 20))
"""Sizes of full disks in KiB: a run of the flow needs some 200."""

_ROOM_ENOUGH: Final = 16 * 2**20


@attrs.frozen
class _Case:
    """One way for the disk to fail.

    Attributes
    ----------
    name : str
        What fails, for the report.
    program : Program
        What is run.
    base : pathlib.Path
        Where.
    fresh : dict
        What a run comes to that nothing disturbs.
    command : callable
        Returns the command, whose disk fails, for a place.
    reasons : tuple of str
        Of the system's words for what happened, those that may be shown; none where nothing may be noticed.
    must_fail : bool
        Whether success would be a lie.
    variables : tuple of (str, str)
        Environment variables of the command.
    room : int
        Bytes of the disk; 0 for the common one.
    """

    name: str
    program: Program
    base: Path
    fresh: Digests
    command: Callable[[Place], list[str]]
    reasons: tuple[str, ...]
    must_fail: bool = False
    variables: tuple[tuple[str, str], ...] = ()
    room: int = 0


def run(n: int, seed: int, folder: Path) -> Result:
    """Let the disk fail in `n` ways: those with short writes and full disks first, then every call, each with an error.

    Parameters
    ----------
    n : int
        At most so many ways; evenly spread where there are more.
    seed : int
        Where the spread begins.
    folder : Path
        Where to write.

    Returns
    -------
    Result
        What was found; its `n` is the number of ways.
    """
    with own_environment(folder):
        recorded = [_Recorded.make(WRITER, folder), _Recorded.make(FLOW, folder)]
        workers = _record_workers(folder)
        first = [*_short_writes(recorded, folder), *_limits(recorded, folder), *_full_disks(recorded[1], folder)]
        calls = [case for each in recorded for case in _failing_calls(each, folder)]
        calls += _failing_workers(workers, recorded[1].fresh, folder)
        chosen = [*first[:n], *spread(calls, n - len(first), seed)]
        found = in_parallel(_harm, chosen)
    return Result(
        row="faults",
        n=len(chosen),
        seed=seed,
        violations=[violation for violations, _ in found for violation in violations],
        details={
            "short_writes_and_full_disks": len(first),
            "failing_calls": len(calls),
            "failing_calls_taken": max(0, len(chosen) - len(first)),
            "errors_reported": sum(is_reported for _, is_reported in found),
            "small_disks": _can_mount(),
        },
        command=f"python -m mlp_reliability faults -n {n} --seed {seed}",
    )


@attrs.frozen
class _Recorded:
    """A program, its calls when nothing disturbs it, where that was, and what it comes to."""

    program: Program
    calls: Sequence[Call]
    place: Place
    fresh: Digests

    @classmethod
    def make(cls, program: Program, folder: Path) -> _Recorded:
        """Record a program."""
        program.run(Place(folder / f"{program.name}-warm").prepare())  # else compiled modules are written on the way
        place = Place(folder / f"{program.name}-recorded").prepare()
        calls, _ = record(program, place)
        (run_id,) = run_ids(program, place.store)
        return cls(program, calls, place, digests(program, place.store, run_id))


# ------------------------------------------------------------------------------------------------------ ways to fail


def _short_writes(recorded: Sequence[_Recorded], folder: Path) -> list[_Case]:
    """Return the case of each program in which every write is short, which nobody may notice."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent / "shortening"), os.environ.get("PYTHONPATH")]))
    return [
        _Case(
            f"{each.program.name} with short writes",
            each.program,
            folder / f"short-{each.program.name}",
            each.fresh,
            each.program.command,
            reasons=(),
            variables=(("PYTHONPATH", path),),
        )
        for each in recorded
    ]


def _limits(recorded: Sequence[_Recorded], folder: Path) -> list[_Case]:
    """Return a case for each write: files may not grow beyond its middle, so that it is short, and the next fails."""
    if shutil.which("prlimit") is None:
        return []
    cases = []
    for each in recorded:
        sizes: dict[str, int] = {}
        limits: dict[int, None] = {}
        for call in each.calls:
            if call.name == "write" and any(Path(path).is_relative_to(each.place.store) for path in call.paths()):
                size = sizes.get(call.paths()[0], 0)
                sizes[call.paths()[0]] = size + call.result
                limits[size + call.result // 2] = None
        for limit in limits:
            name = f"{each.program.name} with files of at most {limit} bytes"
            base = folder / f"limit-{each.program.name}-{limit}"
            command = _behind(each.program, ["prlimit", f"--fsize={limit}"])
            cases.append(_Case(name, each.program, base, each.fresh, command, (os.strerror(errno.EFBIG),)))
    return cases


def _full_disks(recorded: _Recorded, folder: Path) -> list[_Case]:
    """Return a case for each size of a disk that is too small."""
    if not _can_mount():
        return []
    return [
        _Case(
            f"flow on a disk of {room} KiB",
            recorded.program,
            folder / f"room-{room}",
            recorded.fresh,
            recorded.program.command,
            (os.strerror(errno.ENOSPC),),
            room=room * 1024,
        )
        for room in _ROOMS
    ]


def _failing_calls(recorded: _Recorded, folder: Path) -> list[_Case]:
    """Return a case for each call of a program's first process and each error."""
    own = [call for call in recorded.calls if call.pid == recorded.calls[0].pid]
    # What follows the last record makes reading cheaper, and may be left out.
    last = max(
        number for number, call in enumerate(own) if call.name == "fdatasync" and call.paths()[0].endswith("/journal")
    )
    needed = {id(call) for call in own[: last + 1] if call.name in ("fsync", "fdatasync")}
    return [
        _Case(
            f"{recorded.program.name} with {error} at {point.name} {point.number}",
            recorded.program,
            folder / f"{recorded.program.name}-{point.name}-{point.number}-{error}",
            recorded.fresh,
            _behind(recorded.program, point.fail(error)),
            (os.strerror(getattr(errno, error)),),
            must_fail=recorded.program.is_repeatable and id(call) in needed,
        )
        for point, call in points(own, recorded.place.store).items()
        for error in _errors(call)
    ]


def _record_workers(folder: Path) -> list[dict[Point, Call]]:
    """Return the points of each of the flow's workers."""
    place = Place(folder / "workers-recorded").prepare()
    FLOW.run(place, command=with_workers_behind(place, recording(place.base / "log-@worker@"), 0))
    logs = sorted(place.base.glob("log-*"), key=lambda path: int(path.name.removeprefix("log-")))
    return [points(list(read_calls(log)), place.store) for log in logs]


def _failing_workers(workers: Sequence[dict[Point, Call]], fresh: Digests, folder: Path) -> list[_Case]:
    """Return a case for each call of each worker and each error."""

    def command(point: Point, error: str, worker: int) -> Callable[[Place], list[str]]:
        return lambda place: with_workers_behind(place, point.fail(error), worker)

    return [
        _Case(
            f"worker {worker} with {error} at {point.name} {point.number}",
            FLOW,
            folder / f"worker-{worker}-{point.name}-{point.number}-{error}",
            fresh,
            command(point, error, worker),
            (os.strerror(getattr(errno, error)),),
        )
        for worker, found in enumerate(workers, 1)
        for point, call in found.items()
        for error in _errors(call)
    ]


def _errors(call: Call) -> tuple[str, ...]:
    """Return with which errors a call may fail."""
    if call.name in ("unlink", "unlinkat", "rmdir") or (call.name == "openat" and "O_CREAT" not in call.text):
        return _ONLY_FAILING
    return _ERRORS


def _behind(program: Program, prefix: list[str]) -> Callable[[Place], list[str]]:
    """Return what makes a program's command, behind a prefix."""
    return lambda place: [*prefix, *program.command(place)]


# ------------------------------------------------------------------------------------------------------ what follows


def _harm(case: _Case) -> tuple[list[str], bool]:
    """Let a program's disk fail, and go on; return the broken promises, and whether an error was reported."""
    place = Place(case.base).prepare()
    if case.room:
        place.store.parent.mkdir()
        _mount(place.store.parent, case.room)
    try:
        violations, is_reported = _fail_and_go_on(case, place)
    except subprocess.TimeoutExpired as error:
        hanging = f"it did not end in {SECONDS} s: {error.cmd[-4:]}, {described(place.canary)}"
        violations, is_reported = [hanging], False
    finally:
        kill_marked(place.canary)
        if case.room:
            subprocess.run(["umount", "--lazy", str(place.store.parent)], check=True)  # noqa: S607 # where PATH has it
    if not violations:
        shutil.rmtree(case.base)
    return [f"{case.name}: {violation}" for violation in violations], is_reported


def _fail_and_go_on(case: _Case, place: Place) -> tuple[list[str], bool]:
    """Let a program's disk fail, look at what it says, and let it run or resume."""
    program, root = case.program, place.store
    done = program.run(place, command=case.command(place), variables=dict(case.variables))
    said = program.said(done.stdout)
    violations = _misreported(case, done)
    if done.returncode == 0:  # then it must have, even where it was a print that failed
        said.append(["ended", run_ids(program, root)[0]])
    violations += broken(program, root, said)
    if case.room:
        _mount(root.parent, _ROOM_ENOUGH, "remount,")
    is_resumed = program is FLOW and bool(run_ids(program, root))
    again = program.run(place, command=resume(place) if is_resumed else None)
    if again.returncode:
        return [*violations, f"the next {'resume' if is_resumed else 'run'} failed: {again.stderr[-400:]}"], True
    violations += broken(program, root, [*said, *program.said(again.stdout)])
    violations += unequal(program, root, run_ids(program, root)[0], case.fresh)
    return violations, done.returncode != 0


def _misreported(case: _Case, done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return what is wrong with how a program reported that its disk failed."""
    text = done.stdout + done.stderr
    found = []
    # What a step could not read is told by the line of the step that asked for it.
    if "Traceback" in done.stderr or "/mlp_core/" in text:
        found.append(f"a traceback was shown: {text[-400:]}")
    if done.returncode == 0:
        return [*found, "it succeeded without what it needs for that"] if case.must_fail else found
    if done.returncode not in (1, 2):
        found.append(f"the exit status is {done.returncode}: {text[-400:]}")
    if not any(reason in text for reason in case.reasons):
        found.append(f"the report does not say {' or '.join(case.reasons) or 'that nothing happened'}: {text[-400:]}")
    if done.stderr.count("error:") > 1:
        found.append(f"more than one error was reported: {done.stderr[-400:]}")
    return found


def _mount(folder: Path, size: int, how: str = "") -> None:
    """Mount a disk in memory of a size, or change its size."""
    command = ["mount", "-t", "tmpfs", "-o", f"{how}size={size}", "tmpfs", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


def _can_mount() -> bool:
    """Tell whether this user may mount disks."""
    return os.geteuid() == 0 and shutil.which("mount") is not None
