"""What it costs to move a run: ``mlp sync``, ``export`` and ``import`` beside the system's own tools.

::

    python benchmarks/moving.py

The run has 1 GiB of random bytes in eight artifacts. What stands beside it does the same work: the copy is made by
``cp -r`` or ``tar``, hashed by ``sha256sum``, and made durable by ``sync -f``.
"""

from __future__ import annotations

import itertools
import shutil
import sys
from typing import TYPE_CHECKING

from harness import MLP, Claim, Workspace, arguments, interleave, report

if TYPE_CHECKING:
    from pathlib import Path

ARTIFACTS = 8

FLOW = """\
import os

from mlp_core import FlowSpec, step


class Large(FlowSpec):
    @step
    def start(self):
        for number in range({artifacts}):
            setattr(self, f"x{{number}}", os.urandom({size}))
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def main() -> int:
    """Measure, and report."""
    args = arguments("The cost of moving a run.", rounds=7, needs_metaflow=False).parse_args()
    rounds = 2 if args.quick else args.rounds
    size = 2**20 if args.quick else 2**30 // ARTIFACTS
    with Workspace.make() as space:
        space.output(MLP, "run", space.write("large.py", FLOW.format(artifacts=ARTIFACTS, size=size)))
        numbers = itertools.count()

        def timed(command: str) -> float:
            """Return how long a command of a shell takes; what it makes is named by $to, and removed again."""
            target = space.folder / f"made{next(numbers)}"
            try:
                return space.seconds("bash", "-ec", f"to={target}; {command}")
            finally:
                _remove(target)

        hashed = 'find "$to" -type f -print0 | xargs -0 sha256sum > /dev/null; sync -f "$to"'
        cases = {
            "sync": f'{MLP} sync .mlp "$to"',
            "cp": f'cp -r .mlp "$to"; {hashed}',
            "export": f'{MLP} export Large "$to"',
            "tar c": f'tar cf "$to" .mlp; {hashed}',
            "import": f'{MLP} import run.mlprun --store "$to"',
            "tar x": f'mkdir "$to"; tar xf run.mlprun -C "$to"; {hashed}',
        }
        space.output(MLP, "export", "Large", "run.mlprun")
        measured = interleave({name: lambda command=command: timed(command) for name, command in cases.items()}, rounds)
    claims = [
        Claim(
            f"a run of {ARTIFACTS * size:,} bytes {text}",
            measured[own],
            measured[peer],
            limit=100 if args.quick else 1.25,
            peer_name=f"{peer} and sha256sum",
        )
        for text, own, peer in (
            ("copied to another store", "sync", "cp"),
            ("packed into a file", "export", "tar c"),
            ("unpacked from a file", "import", "tar x"),
        )
    ]
    return report("moving", args, claims)


def _remove(target: Path) -> None:
    """Remove what a command has made."""
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
