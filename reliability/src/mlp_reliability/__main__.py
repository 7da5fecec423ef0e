"""The command ``python -m mlp_reliability``."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mlp_reliability.bugs import BUGS
from mlp_reliability.planting import find_planted
from mlp_reliability.rows import ROWS, SEED, run_row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlp_reliability.result import Result

_SHOWN = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Run rows; return 1 where a promise was broken, or a planted bug not found."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.bugs) - set(BUGS):
        parser.error(f"no bug is named {', '.join(sorted(unknown))}; there are {', '.join(BUGS)}")
    if arguments.row == "list":
        for name, row in ROWS.items():
            print(f"{name:14} {row.short:>9,} {row.long:>11,}  {row.about}")
        return 0
    if arguments.row == "planted":
        return _plant(arguments.bugs or list(BUGS))
    names = list(ROWS) if arguments.row == "all" else [arguments.row]
    results = [_run(name, arguments) for name in names]
    return 1 if any(result.violations for result in results) else 0


def _parser() -> argparse.ArgumentParser:
    """Return the command's grammar."""
    parser = argparse.ArgumentParser(prog="python -m mlp_reliability", description=__doc__)
    parser.add_argument("row", choices=[*ROWS, "all", "list", "planted"])
    parser.add_argument("bugs", nargs="*", help="with planted: these bugs only")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("-n", type=int, help="how often to do harm")
    size.add_argument("--long", action="store_true", help="the long form")
    parser.add_argument("--seed", type=_seed, default=SEED, help=f"a number, or random (default {SEED})")
    parser.add_argument("--out", type=Path, help="write the result to this JSON file; with all, to a folder")
    return parser


def _seed(text: str) -> int:
    """Return the seed that an argument means."""
    return random.SystemRandom().randrange(2**32) if text == "random" else int(text)


def _run(name: str, arguments: argparse.Namespace) -> Result:
    """Run one row, print what it found, and write it down where that is asked for."""
    row = ROWS[name]
    n = arguments.n or (row.long if arguments.long else row.short)
    print(f"{name}: n {n}, seed {arguments.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix=f"mlp-reliability-{name}-"))
    begun = time.monotonic()
    result = run_row(name, folder, n, arguments.seed)
    seconds = time.monotonic() - begun
    for violation in result.violations[:_SHOWN]:
        print(f"  VIOLATION {violation}")
    if result.violations:
        print(f"  {len(result.violations)} violations; what is left of them is in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"  {json.dumps(dict(result.details))}\n  {len(result.violations)} violations in {seconds:.1f} s", flush=True)
    if arguments.out is not None:
        is_folder = arguments.row == "all" or arguments.out.is_dir()
        _write(arguments.out / f"{name}.json" if is_folder else arguments.out, result, seconds)
    return result


def _write(path: Path, result: Result, seconds: float) -> None:
    """Write a result down."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**result.to_json(), "seconds": round(seconds, 1)}, indent=2) + "\n")


def _plant(names: Sequence[str]) -> int:
    """Run each planted bug against the row that must find it."""
    missed = 0
    for name in names:
        found = find_planted(name)
        missed += not found.caught
        print(f"{'caught' if found.caught else 'MISSED'}  {name} by {BUGS[name].row}: {found.evidence}", flush=True)
    print(f"{len(names) - missed} of {len(names)} planted bugs were caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
