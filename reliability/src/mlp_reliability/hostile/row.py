"""How the row tries many cases: in forked processes, a batch each, so that one that hangs or dies is only one."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from mlp_reliability.hostile.cases import KINDS, Case
from mlp_reliability.hostile.ground import Ground
from mlp_reliability.hostile.watch import Watch
from mlp_reliability.result import Result

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_BATCH: Final = 100
_CASE_SECONDS: Final = 20
_BATCH_SECONDS: Final = 600
_MEMORY: Final = 4 * 2**30


class _TooSlow(BaseException):
    """A case took too long."""


def run(n: int, seed: int, folder: Path) -> Result:
    """Try hostile input.

    Parameters
    ----------
    n : int
        How many cases.
    seed : int
        What all choices are drawn from.
    folder : pathlib.Path
        Where everything happens.

    Returns
    -------
    Result
        What was found.
    """
    ground = Ground(folder / "ground")
    ground.make()
    violations: list[str] = []
    counts: Counter[str] = Counter()
    slowest = 0.0
    for start in range(0, n, _BATCH):
        answers = folder / "answers"
        answers.unlink(missing_ok=True)
        numbers = range(start, min(n, start + _BATCH))
        ended = _in_fork(lambda numbers=numbers, path=answers: _try(ground, seed, numbers, path))
        told = [json.loads(line) for line in answers.read_text().splitlines()] if answers.exists() else []
        for answer in told:
            counts[answer["kind"]] += 1
            slowest = max(slowest, answer["seconds"])
            violations += [f"case {answer['number']} ({answer['kind']}): {text}" for text in answer["violations"]]
        if ended or len(told) < len(numbers):
            violations.append(f"case {start + len(told)}: the process {ended or 'ended early'}")
    outside = [str(path) for path in folder.rglob("*") if _is_escaped(path, ground)]
    violations += [f"{path} was made outside of the only folder that may be written to" for path in sorted(outside)]
    return Result("hostile", n, seed, violations, {**counts, "slowest_seconds": round(slowest, 2)})


def _is_escaped(path: Path, ground: Ground) -> bool:
    """Tell whether a path should not be there."""
    allowed = (ground.play, ground.root / "base")
    expected = (*allowed, ground.root, ground.canary, ground.canary / "secret", ground.root.parent / "answers")
    return path not in expected and not any(path.is_relative_to(folder) for folder in allowed)


def _try(ground: Ground, seed: int, numbers: range, answers: Path) -> None:
    """Try a batch; in a process of its own."""
    os.environ.clear()
    os.environ.update(ground.variables())
    os.chdir(ground.project)
    ground.reset()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    watch = Watch(ground.play, ground.root)
    with answers.open("w") as file:
        for number in numbers:
            rng = random.Random(f"{seed}/{number}")  # reproducible on purpose
            kind = rng.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]
            begun = time.monotonic()
            case = Case(ground, watch, rng)
            try:
                with _limited():
                    KINDS[kind][1](case)
            except _TooSlow:
                case.violations.append(f"it took longer than {_CASE_SECONDS} s: {case.what}")
            except Exception as error:  # noqa: BLE001 # what the product lets through is what is looked for
                case.violations.append(f"{case.what} raised {type(error).__name__}: {error}"[:500])
            seconds = time.monotonic() - begun
            line = {"number": number, "kind": kind, "seconds": seconds, "violations": case.violations}
            file.write(json.dumps(line) + "\n")
            file.flush()


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Raise _TooSlow in what takes too long."""

    def give_up(_number: int, _frame: object) -> None:
        raise _TooSlow

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(_CASE_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def _in_fork(action: object) -> str:
    """Do something in a fork of this process; return how it ended otherwise than well, empty where it did not."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            action()  # type: ignore[operator] # a function
            status = 0
        except BaseException:  # noqa: BLE001 # nothing may leave this function
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    deadline = time.monotonic() + _BATCH_SECONDS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return f"ended with status {code}" if code else ""
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return f"took longer than {_BATCH_SECONDS} s"
