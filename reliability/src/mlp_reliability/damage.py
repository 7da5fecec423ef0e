"""Row: damage a stored file, and see what reads it, whether a check names it, and whether a run mends it."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs

from mlp_core.builtin.file_store import FileStore
from mlp_core.errors import MlpError
from mlp_core.upkeep.fsck import check_store
from mlp_reliability.processes import in_parallel, kill_marked
from mlp_reliability.programs import FLOW, SECONDS, Place
from mlp_reliability.programs.names import PAUSE
from mlp_reliability.promises import Digests, digests, own_environment, run_ids, states, unequal
from mlp_reliability.reading import Readings, read_everything, wrong
from mlp_reliability.result import Result

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_RERUNS: Final = 5
"""Every so manieth round, the flow is run again on the damaged store."""

_NO_CONTENT: Final = ("lock", ".gitignore")
"""Names of files in which nothing is stored."""


@attrs.frozen
class _Intact:
    """A store to damage copies of.

    Attributes
    ----------
    place : Place
        Where it is.
    files : dict of str to list of str
        Its files by kind.
    runs : list of (str, str)
        The runs in it.
    lost : str
        The id of the one whose driver died.
    readings : mapping
        What is read from it.
    fresh : dict
        What a fresh run comes to.
    noted : set of (str, str)
        What a check says of it as it is: files and problems.
    """

    place: Place
    files: dict[str, list[str]]
    runs: list[tuple[str, str]]
    lost: str
    readings: Readings
    fresh: Digests
    noted: set[tuple[str, str]]


@attrs.define
class _Found:
    """What one round found."""

    how: str
    kind: str
    violations: list[str] = attrs.Factory(list)
    is_named: bool = False
    is_beyond_knowing: bool = False
    is_rerun: bool = False


def run(n: int, seed: int, folder: Path) -> Result:
    """Damage a file of a store `n` times, in a copy of its own each time.

    Parameters
    ----------
    n : int
        How many rounds.
    seed : int
        What decides which file is damaged, and how.
    folder : Path
        Where to write.

    Returns
    -------
    Result
        What was found.
    """
    with own_environment(folder):
        intact = _make_intact(Place(folder / "intact").prepare())
        found = in_parallel(partial(_round, intact, folder, seed), range(n))
    return Result(
        row="damage",
        n=n,
        seed=seed,
        violations=[violation for each in found for violation in each.violations],
        details={
            "damage": dict(Counter(each.how for each in found)),
            "files": dict(Counter(each.kind for each in found)),
            "named_by_fsck": sum(each.is_named for each in found),
            "beyond_knowing": sum(each.is_beyond_knowing for each in found),
            "reruns": sum(each.is_rerun for each in found),
        },
    )


def _make_intact(place: Place) -> _Intact:
    """Make a store with two runs, one of them tagged, one whose driver died, and a deployment."""
    for _ in range(2):
        FLOW.run(place).check_returncode()
    newest = run_ids(FLOW, place.store)[0]
    for command in (["tag", "add", f"{FLOW.flow}/{newest}", "kept"], ["deploy", str(place.project / "flow.py")]):
        FLOW.run(
            place, command=[sys.executable, "-m", "mlp_core.cli", *command], variables={"MLP_STORE": str(place.store)}
        ).check_returncode()
    _leave_lost_run(place)
    known = states(FLOW, place.store)
    lost = max(known)
    runs = [(FLOW.flow, run_id) for run_id in known]
    files: dict[str, list[str]] = {}
    for path in sorted(place.store.rglob("*")):
        key = str(path.relative_to(place.store))
        if path.is_file() and path.name not in _NO_CONTENT and not key.startswith("tmp/"):
            files.setdefault(_kind(key), []).append(key)
    store = FileStore(place.store)
    noted = {(finding.key, finding.problem) for finding in check_store(store).findings}
    store.close()
    readings = read_everything(place, runs)
    return _Intact(place, files, runs, lost, readings, digests(FLOW, place.store, newest), noted)


def _leave_lost_run(place: Place) -> None:
    """Kill a run in its middle."""
    output = place.base / "output"
    with output.open("wb") as file:
        driver = subprocess.Popen(
            FLOW.command(place), cwd=place.project, env=place.environment({PAUSE: "600"}), stdout=file
        )
    until = time.monotonic() + SECONDS
    while output.read_bytes().count(b'"task_log"') < 1 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(1.2)  # by then the driver has written out what was printed
    kill_marked(place.canary)
    driver.wait()


def _kind(key: str) -> str:
    """Return what kind of file a key is."""
    first, *rest = key.split("/")
    return f"{first}/{'segment' if 'segments' in rest else rest[-1]}" if first == "flows" else first


def _round(intact: _Intact, folder: Path, seed: int, number: int) -> _Found:
    """Damage one file, read everything, check the store, and maybe run again."""
    chance = random.Random(f"{seed} {number}")
    place = Place(folder / f"damaged-{number}").prepare()
    shutil.copytree(intact.place.store.parent, place.store.parent)
    kind = chance.choice(sorted(intact.files))
    key = chance.choice(intact.files[kind])
    how = chance.choice(sorted(_HARMS))
    keys = _HARMS[how](chance, place.store, key, intact)
    found = _Found(how, kind)
    try:
        violations = _in_one(_read_damaged(intact, place, keys, how))
        violations += _check_damaged(intact, place, keys, found)
        if number % _RERUNS == 0:
            found.is_rerun = True
            violations += _rerun(intact, place, keys)
    except Exception as error:  # noqa: BLE001 # whatever else is raised would be a traceback for a user
        violations = [f"{type(error).__name__}: {error}"]
    found.violations = [f"round {number}, {how} of {key}: {violation}" for violation in violations]
    if not found.violations:
        shutil.rmtree(place.base, ignore_errors=True)  # what ends just now may remove something itself
    return found


def _read_damaged(intact: _Intact, place: Place, keys: list[str], how: str) -> dict[str, str]:
    """Read everything; return what is wrong and not told, of what can be known."""
    now = read_everything(place, intact.runs)
    found = wrong(intact.readings, now)
    key = keys[0]
    if how == "deletion" and ("/segments/" in key or key.endswith("/active.json")):
        return {}  # nobody counts what others add to a run; and what was taken out of service has no active version
    if f"/{intact.lost}/" in key and how in ("deletion", "truncation"):
        # Of a run that was cut off, nobody can know how far its files had come.
        return {path: said for path, said in found.items() if intact.lost not in path}
    if any(key.endswith(f"/{intact.lost}/logs") for key in keys):
        # Nor whether the last thing in its log was written to its end.
        return {path: said for path, said in found.items() if not _is_cut_off(intact.readings[path], now.get(path))}
    return found


def _is_cut_off(value: object, seen: object) -> bool:
    """Tell whether a text lacks its end, or all of it."""
    return isinstance(value, str) and isinstance(seen, str) and value.startswith(seen)


def _in_one(differing: dict[str, str]) -> list[str]:
    """Return one violation for all that is read wrong in a round."""
    more = f", and {len(differing) - 1} more" if len(differing) > 1 else ""
    return [said + more for said in differing.values()][:1]


def _check_damaged(intact: _Intact, place: Place, keys: list[str], found: _Found) -> list[str]:
    """Let the store be checked; return which damaged files it does not name, of those that can be known."""
    store = FileStore(place.store)
    try:
        report = check_store(store)
    except MlpError as error:
        named = str(error)
    else:
        # Where something is absent, empty or without a checksum, that may be as it should, and is worth a note.
        told = [each for each in report.findings if each.severity in ("damage", "note")]
        named = "\n".join(f"{each.key} {each.problem}" for each in told if (each.key, each.problem) not in intact.noted)
    finally:
        store.close()
    if "format.json" in keys and "format.json" in named:
        keys = ["format.json"]  # the rest is looked at once this is mended
    keys = [key for key in keys if _can_be_known(intact, found.how, key)]
    missing = [key for key in keys if key not in named]
    found.is_named = bool(keys) and not missing
    found.is_beyond_knowing = not keys
    return [f"fsck does not name {key}" for key in missing]


def _can_be_known(intact: _Intact, how: str, key: str) -> bool:
    """Tell whether anybody can know that a file is not as it was left.

    A run has any number of segments, a driver that is killed at its very end leaves no seal, a deploy target keeps what
    it likes, and how far a run had come that was cut off is told by nothing but its own files.
    """
    if how == "deletion" and ("/segments/" in key or key.startswith("targets/")):
        return False
    if f"/{intact.lost}/" in key:
        return how == "flip" or (how == "swap" and not key.endswith("/logs"))
    return True


def _rerun(intact: _Intact, place: Place, keys: list[str]) -> list[str]:
    """Run the flow on the damaged store; return what is wrong afterwards."""
    done = FLOW.run(place)
    if "format.json" in keys and done.returncode and "Traceback" not in done.stderr:
        shutil.copy(intact.place.store / "format.json", place.store)  # as the message says: from a backup
        done = FLOW.run(place)
    if done.returncode:
        return [f"the next run failed: {done.stderr[-400:]}"]
    found = unequal(FLOW, place.store, run_ids(FLOW, place.store)[0], intact.fresh)
    if all(key.startswith("blobs/") for key in keys):
        found += _in_one(wrong(intact.readings, read_everything(place, intact.runs)))
    return found


# ------------------------------------------------------------------------------------------------------ harms


def _flip(chance: random.Random, store: Path, key: str, intact: _Intact) -> list[str]:
    """Flip a bit, or several."""
    del intact
    content = bytearray((store / key).read_bytes())
    for _ in range(chance.choice([1, 1, 1, 8])):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    (store / key).write_bytes(content)
    return [key]


def _truncate(chance: random.Random, store: Path, key: str, intact: _Intact) -> list[str]:
    """Cut off the end: at any byte, or at the end of a line."""
    del intact
    content = (store / key).read_bytes()
    ends = [number + 1 for number, byte in enumerate(content[:-1]) if byte == 10]  # noqa: PLR2004 # a newline
    size = chance.choice([0, len(content) - 1, chance.randrange(len(content)), chance.choice(ends or [0])])
    (store / key).write_bytes(content[:size])
    return [key]


def _swap(chance: random.Random, store: Path, key: str, intact: _Intact) -> list[str]:
    """Let a file and another change places, most often with one of its kind."""
    content = (store / key).read_bytes()
    same = [other for other in intact.files[_kind(key)] if (store / other).read_bytes() != content]
    every = [other for kind in intact.files.values() for other in kind if (store / other).read_bytes() != content]
    other = chance.choice(same if same and chance.random() < 0.7 else every)  # noqa: PLR2004 # most often
    (store / key).write_bytes((store / other).read_bytes())
    (store / other).write_bytes(content)
    return [key, other]


def _delete(chance: random.Random, store: Path, key: str, intact: _Intact) -> list[str]:
    """Remove a file."""
    del chance, intact
    (store / key).unlink()
    return [key]


_HARMS: Final[dict[str, Callable[[random.Random, Path, str, _Intact], list[str]]]] = {
    "flip": _flip,
    "truncation": _truncate,
    "swap": _swap,
    "deletion": _delete,
}
