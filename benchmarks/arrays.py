"""A large array as an artifact, beside numpy's own file: speed of storing and of loading, and memory meanwhile.

::

    python benchmarks/arrays.py

Storing is what a step's end takes: the time from the step's last statement to the task's end, in which the array is
encoded, hashed, written and synced, and the outcome committed. Beside it stands ``numpy.save`` with a sync of the file
and its folder, in a process of its own too. Loading is lazy and verified, in a process and with a cache that know
nothing of the file; beside it stands ``numpy.load(mmap_mode="c")`` with one pass of SHA-256. Both read what the system
has cached.

The best round of each side counts: what disturbs only ever adds. A virtual machine, for one, gives free memory back to
its host, and whoever first needs it again waits for up to three seconds a gibibyte.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness import MLP, Claim, Workspace, arguments, interleave, report

if TYPE_CHECKING:
    from collections.abc import Callable

SEED: Final = 20260131

STORE_OURS: Final = """\
import time

import numpy as np

from mlp_core import FlowSpec, Parameter, step


class Array(FlowSpec):
    n = Parameter("n", default=1)
    seed = Parameter("seed", default=0)

    @step(start=True, end=True)
    def only(self):
        self.array = np.random.default_rng(self.seed).random(self.n)
        self.done = time.time()
"""

READ_OUTCOME: Final = """\
import json

from mlp_core.client import Flow

task = Flow("Array").latest_run["only"].task
peak = task.metadata_dict["peak_memory_bytes"]
print(json.dumps({"seconds": task.finished_at.timestamp() - task.data.done, "peak": int(peak)}))
"""

STORE_NUMPY: Final = """\
import json, os, sys, time

import numpy as np

array = np.random.default_rng(int(sys.argv[2])).random(int(sys.argv[1]))
began = time.time()
with open("array.npy", "wb") as file:
    np.save(file, array)
    file.flush()
    os.fsync(file.fileno())
folder = os.open(".", os.O_RDONLY)
os.fsync(folder)
print(json.dumps({"seconds": time.time() - began}))
"""

LOAD_OURS: Final = """\
import json, time

import numpy as np

from mlp_core.client import Flow

artifact = Flow("Array").latest_run["only"].task["array"]
began = time.perf_counter()
array = artifact.data
first = float(array[0])
print(json.dumps({"seconds": time.perf_counter() - began, "first": first, "shape": array.shape}))
"""

LOAD_NUMPY: Final = """\
import hashlib, json, time

import numpy as np

began = time.perf_counter()
array = np.load("array.npy", mmap_mode="c")
with open("array.npy", "rb") as file:
    hashlib.file_digest(file, "sha256")
first = float(array[0])
print(json.dumps({"seconds": time.perf_counter() - began, "first": first, "shape": array.shape}))
"""


def main() -> int:
    """Measure, and report."""
    parser = arguments("A large array, beside numpy.", rounds=9, needs_metaflow=False)
    parser.add_argument("--folder", type=Path, help="where to write; by default the system's temporary folder")
    args = parser.parse_args()
    mebibytes, rounds = (64, 2) if args.quick else (1024, args.rounds)
    with Workspace.make(args.folder) as space:
        benchmark = Arrays(space, mebibytes * 2**20 // 8)
        measured = interleave(
            {
                "numpy.save": benchmark.timed(benchmark.store_numpy),
                "persist": benchmark.timed(benchmark.store_ours),
                "numpy.load": benchmark.timed(benchmark.load_numpy),
                "load": benchmark.timed(benchmark.load_ours),
            },
            rounds,
        )
        peaks = benchmark.peaks[-rounds:]
    size = f"{mebibytes} MiB of float64"
    ours, peer = ([mebibytes / seconds for seconds in measured[name]] for name in ("persist", "numpy.save"))
    claims = [
        Claim(
            f"persist {size}, durable and hashed",
            ours,
            peer,
            0.6,
            "MiB/s",
            "numpy.save+fsync",
            at_least=True,
            best=True,
        ),
        Claim(
            f"load {size} lazily, verified",
            measured["load"],
            measured["numpy.load"],
            1.2,
            "s",
            "numpy.load+sha256",
            best=True,
        ),
    ]
    if not args.quick:  # beside a small array, what the interpreter and numpy take is no small part
        claims.append(Claim("peak memory of the task", peaks, [mebibytes] * rounds, 1.2, "MiB", "the array itself"))
    libraries = {"numpy": importlib.metadata.version("numpy")}
    return report("arrays", args, claims, seed=SEED, libraries=libraries)


class Arrays:
    """Stores and loads one array over and over, each time in a fresh process and into an absent file.

    Parameters
    ----------
    space : Workspace
        Where to.
    n : int
        Its length.
    """

    def __init__(self, space: Workspace, n: int) -> None:
        """Prepare."""
        self.peaks: list[float] = []
        self._space = space
        self._n = n
        self._flow = space.write("array_flow.py", STORE_OURS)

    def timed(self, action: Callable[[], dict[str, Any]]) -> Callable[[], float]:
        """Return what carries out an action after all earlier writes have reached the disk, and tells its seconds."""

        def measure() -> float:
            os.sync()
            return float(action()["seconds"])

        return measure

    def store_numpy(self) -> dict[str, Any]:
        """Store by numpy."""
        (self._space.folder / "array.npy").unlink(missing_ok=True)
        return self._python(STORE_NUMPY, self._n, SEED)

    def store_ours(self) -> dict[str, Any]:
        """Store by a run of a flow, into a fresh store."""
        self._remove(".mlp")
        self._remove(".cache")
        self._space.output(MLP, "run", self._flow, "--n", self._n, "--seed", SEED)
        outcome = self._python(READ_OUTCOME)
        self.peaks.append(outcome["peak"] / 2**20)
        return outcome

    def load_numpy(self) -> dict[str, Any]:
        """Load by numpy."""
        return self._checked(self._python(LOAD_NUMPY))

    def load_ours(self) -> dict[str, Any]:
        """Load by the client, on a host that has not verified the file before."""
        self._remove(".cache")
        return self._checked(self._python(LOAD_OURS))

    def _checked(self, loaded: dict[str, Any]) -> dict[str, Any]:
        """Return what was loaded once it is the array that was stored."""
        import numpy as np

        assert loaded["shape"] == [self._n]
        assert loaded["first"] == np.random.default_rng(SEED).random()
        return loaded

    def _python(self, code: str, *words: object) -> dict[str, Any]:
        """Return what a fresh process prints."""
        found: dict[str, Any] = json.loads(self._space.output(sys.executable, "-c", code, *words))
        return found

    def _remove(self, name: str) -> None:
        """Remove a folder of the workspace."""
        shutil.rmtree(self._space.folder / name, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
