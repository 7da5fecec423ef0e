"""How the parts are checked of which a run's journal and logs consist, on stores whose objects cannot grow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mlp_core.errors import StoreError
from mlp_core.store import layout
from mlp_core.store.growing import PACK
from mlp_core.upkeep.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlp_hookspecs.handles import ObjectInfo, ObjectStore

_FOREIGN: Final = "no part of a run has this name: it does not belong there"
_CHANGED: Final = "it is not what was written"


def check_parts(objects: ObjectStore, flow: str, run_id: str, infos: Sequence[ObjectInfo]) -> list[Finding]:
    """Check the parts of what a run on a bucket grows: against each other, and against the whole once there is one.

    Parameters
    ----------
    objects : ObjectStore
        The store.
    flow, run_id : str
        The run.
    infos : sequence of ObjectInfo
        Its parts.

    Returns
    -------
    list of Finding
        What was found.
    """
    findings: list[Finding] = []
    keys = {info.key for info in infos}
    for name in ("journal", "logs"):
        whole_key = layout.run(flow, run_id) + name
        own = {key for key in keys if key.startswith(layout.parts(whole_key))}
        keys -= own
        try:
            findings += _check_parts_of(objects, whole_key, own, f"{flow}/{run_id}")
        except FileNotFoundError:  # cleared since
            continue
        except StoreError as error:
            findings.append(Finding("damage", whole_key, f"its parts cannot be read: {error.message}"))
    return findings + [Finding("note", key, _FOREIGN) for key in keys]


def _check_parts_of(objects: ObjectStore, whole_key: str, keys: set[str], run: str) -> list[Finding]:
    """Check the parts of one growing object."""
    contents: dict[tuple[int, int], bytes] = {}
    findings = []
    for key in sorted(keys):
        level, _, number = key.removeprefix(layout.parts(whole_key)).partition("/")
        if level in ("0", "1") and number.isdecimal() and key == layout.part(whole_key, int(level), int(number)):
            contents[int(level), int(number)] = objects.read(key)
        else:
            findings.append(Finding("note", key, _FOREIGN, (run,)))
    try:
        whole = objects.read(whole_key) if contents else b""
    except FileNotFoundError:
        damaged, remedy = _unlike_packs(contents), "see what else is told of the run"
        if contents and _has_seal(objects, whole_key):
            findings.append(
                Finding("note", whole_key, "it is missing, but its parts are there: nothing is lost", (run,))
            )
    else:
        damaged, remedy = _unlike_whole(contents, whole), "nothing is lost: the whole is there"
    return findings + [
        Finding("damage", layout.part(whole_key, *part), _CHANGED, (run,), remedy) for part in sorted(damaged)
    ]


def _has_seal(objects: ObjectStore, key: str) -> bool:
    """Tell whether the run of a growing object has ended, so that it should be one object."""
    _, flow, run_id, _ = key.split("/")
    try:
        objects.info(layout.seal(flow, run_id))
    except FileNotFoundError:
        return False
    return True


def _unlike_packs(contents: dict[tuple[int, int], bytes]) -> set[tuple[int, int]]:
    """Return the packs that are not the parts that they were made of, as far as those are there."""
    found = set()
    for (level, number), content in contents.items():
        parts = [contents.get((0, each)) for each in range(number * PACK, (number + 1) * PACK)] if level else [content]
        if None not in parts and b"".join(part for part in parts if part is not None) != content:
            found.add((level, number))
    return found


def _unlike_whole(contents: dict[tuple[int, int], bytes], whole: bytes) -> set[tuple[int, int]]:
    """Return the parts and packs that are not where they should be in the whole, as far as that can be known."""
    found = _unlike_packs(contents) | {part for part, content in contents.items() if content not in whole}
    numbers: list[int] = []  # those at the end that follow each other: the others may have been cleared away
    for number in sorted((number for level, number in contents if level == 0), reverse=True):
        if numbers and number != numbers[0] - 1:
            break
        numbers.insert(0, number)
    pieces = [contents[0, number] for number in numbers]
    fitting = _fitting_at_end(pieces, whole)
    if fitting < len(pieces):
        found.add((0, numbers[-1 - fitting]))
        from_start = _fitting_at_start(pieces, whole)
        if numbers[0] == 0 and from_start < len(pieces) - fitting:
            found.add((0, numbers[from_start]))
    return found


def _fitting_at_start(pieces: Sequence[bytes], whole: bytes) -> int:
    """Return how many of the first pieces are, one after the other, the beginning of the whole."""
    place = 0
    for number, piece in enumerate(pieces):
        if not piece or not whole.startswith(piece, place):
            return number
        place += len(piece)
    return len(pieces)


def _fitting_at_end(pieces: Sequence[bytes], whole: bytes) -> int:
    """Return how many of the last pieces are, one after the other, the end of the whole."""
    end = len(whole)
    for number, piece in enumerate(reversed(pieces)):
        if not piece or not whole.endswith(piece, 0, end):
            return number
        end -= len(piece)
    return len(pieces)
