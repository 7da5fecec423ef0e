"""What a task costs beside the user's code: a chain of steps and a wide foreach, beside Metaflow; files and memory.

::

    python benchmarks/overhead.py

Tasks do nothing, so what a run takes is overhead. A task's cost is what one more task adds: the time of a long run
less that of a short one, by the difference in tasks; what a run costs once is measured by ``startup.py``. Metaflow's
foreach is smaller than ours, which would take it minutes; its cost a task does not depend on the width.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from harness import METAFLOW, MLP, Claim, Workspace, arguments, interleave, metaflow_python, report

FOREACH: Final = """\
from {package} import FlowSpec, Parameter, step


class Wide(FlowSpec):
    n = Parameter("n", default=2)

    @step
    def start(self):
        self.items = list(range(self.n))
        self.next(self.work, foreach="items")

    @step
    def work(self):
        self.square = self.input**2
        self.next(self.join)

    @step
    def join(self, inputs):
        self.squares = [branch.square for branch in inputs]
        self.next(self.end)

    @step
    def end(self):
        assert self.squares == [i**2 for i in range(self.n)], "the results are not in the order of the items"


if __name__ == "__main__":
    Wide()
"""

READ_SQUARES: Final = "from mlp_core.client import Flow; print(Flow('Wide').latest_run.data.squares)"

SHORT: Final = 2
"""Tasks in the short chain and in the narrow foreach."""


def main() -> int:
    """Measure, and report."""
    args = arguments("The overhead of a task, beside Metaflow.", rounds=3).parse_args()
    chain, wide, peer_wide, widest = (20, 100, 10, 1000) if args.quick else (50, 1000, 60, 10_000)
    rounds = 1 if args.quick else args.rounds
    peer = metaflow_python(args.metaflow_python)
    with Workspace.make() as space:
        for folder, package in (("ours", "mlp_core"), ("peer", "metaflow")):
            for steps in (SHORT, chain):
                space.write(f"{folder}/chain{steps}.py", chain_source(package, steps))
            space.write(f"{folder}/wide.py", FOREACH.format(package=package))

        def ours(flow: str, *options: object) -> float:
            return space.seconds(MLP, "run", flow, *options, cwd=space.folder / "ours")

        def theirs(flow: str, *options: object) -> float:
            return space.seconds(peer, flow, "run", "--max-num-splits", 10_000, *options, cwd=space.folder / "peer")

        measured = interleave(
            {
                "chain": lambda: (ours(f"chain{chain}.py") - ours(f"chain{SHORT}.py")) / (chain - SHORT),
                "metaflow chain": lambda: (theirs(f"chain{chain}.py") - theirs(f"chain{SHORT}.py")) / (chain - SHORT),
                "foreach": lambda: (ours("wide.py", "--n", wide) - ours("wide.py", "--n", SHORT)) / (wide - SHORT),
                "metaflow foreach": lambda: (
                    (theirs("wide.py", "--n", peer_wide) - theirs("wide.py", "--n", SHORT)) / (peer_wide - SHORT)
                ),
            },
            rounds,
            warm_up=False,
        )
        files = files_left(space, peer)
        memory = [driver_memory(space, n) for n in (100, widest)]
    claims = [
        Claim(f"a task of a {chain}-step chain", measured["chain"], measured["metaflow chain"], 1 / 40),
        Claim(f"a task of a {wide}-way foreach", measured["foreach"], measured["metaflow foreach"], 1 / 40),
        Claim("files of a 50-way foreach", [files[0]], [60], 1, unit="files", peer_name="limit"),
        Claim(
            f"driver's memory, {widest}-way foreach, results in order",
            [memory[1]],
            [400],
            1,
            unit="MB",
            peer_name="limit",
        ),
    ]
    return report(
        "overhead",
        args,
        claims,
        peers={"metaflow": METAFLOW},
        notes={
            "tasks of metaflow's foreach": peer_wide,
            "files of metaflow's 50-way foreach": files[1],
            "driver's memory of a 100-way foreach, MB": round(memory[0], 1),
        },
    )


def chain_source(package: str, steps: int) -> str:
    """Return a flow of so many steps, each adding to a counter."""
    names = ["start", *(f"step{number}" for number in range(1, steps - 1)), "end"]
    lines = [f"from {package} import FlowSpec, step", "", "", "class Chain(FlowSpec):"]
    for name, following in zip(names, [*names[1:], None], strict=True):
        count = "self.count = 1" if name == "start" else "self.count += 1"
        lines += ["    @step", f"    def {name}(self):", f"        {count}"]
        lines += [f"        self.next(self.{following})"] if following else [f"        assert self.count == {steps}"]
    return "\n".join([*lines, "", 'if __name__ == "__main__":', "    Chain()", ""])


def files_left(space: Workspace, peer: str) -> tuple[int, int]:
    """Return how many files a 50-way foreach leaves in a store of its own, ours and Metaflow's."""
    for folder, package in (("ours-files", "mlp_core"), ("peer-files", "metaflow")):
        space.write(f"{folder}/wide.py", FOREACH.format(package=package))
    ours, theirs = space.folder / "ours-files", space.folder / "peer-files"
    space.output(MLP, "run", "wide.py", "--n", 50, cwd=ours)
    space.output(peer, "wide.py", "run", "--n", 50, cwd=theirs)
    return count_files(ours / ".mlp"), count_files(theirs / ".metaflow")


def count_files(folder: Path) -> int:
    """Return how many files are below a folder."""
    return sum(file.is_file() for file in folder.rglob("*"))


def driver_memory(space: Workspace, n: int) -> float:
    """Return the largest resident size of the driver of an n-way foreach in MB; the last step checks the order."""
    command = [MLP, "run", "wide.py", "--n", str(n), "--quiet"]
    process = subprocess.Popen(command, cwd=space.folder / "ours", env=space.environment)
    largest = 0
    while process.poll() is None:
        largest = max(largest, resident_bytes(process.pid))
        time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"the {n}-way foreach ended with {process.returncode}")
    squares = space.output(sys.executable, "-c", READ_SQUARES, cwd=space.folder / "ours")
    assert json.loads(squares) == [i**2 for i in range(n)]
    return largest / 1e6


def resident_bytes(pid: int) -> int:
    """Return the largest resident size that a process has had; 0 where it has ended."""
    if sys.platform == "linux":
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return 0
        return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], check=False, capture_output=True, text=True).stdout
    return int(shown or 0) * 1024


if __name__ == "__main__":
    sys.exit(main())
