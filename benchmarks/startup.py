"""How long a command takes to start, beside Metaflow: the import, the help, and a whole process of three steps.

python benchmarks/startup.py
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from harness import METAFLOW, MLP, Claim, Workspace, arguments, interleave, metaflow_python, report

if TYPE_CHECKING:
    from collections.abc import Callable

HELLO: Final = """\
from {package} import FlowSpec, step


class Hello(FlowSpec):
    @step
    def start(self):
        self.name = "world"
        self.next(self.greet)

    @step
    def greet(self):
        self.greeting = f"hello {{self.name}}"
        self.next(self.end)

    @step
    def end(self):
        print(self.greeting)


if __name__ == "__main__":
    Hello()
"""

TIMED: Final = "import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"


def main() -> int:
    """Measure, and report."""
    args = arguments("Starting, beside Metaflow.", rounds=9).parse_args()
    rounds = 2 if args.quick else args.rounds
    peer = metaflow_python(args.metaflow_python)
    with Workspace.make() as space:
        ours_flow = space.write("ours/hello.py", HELLO.format(package="mlp_core"))
        peer_flow = space.write("peer/hello.py", HELLO.format(package="metaflow"))

        def imported(python: str, statement: str) -> Callable[[], float]:
            return lambda: float(space.output(python, "-c", TIMED.format(statement=statement)))

        def process(*command: object) -> Callable[[], float]:
            return lambda: space.seconds(*command, cwd=space.folder / ("peer" if command[0] == peer else "ours"))

        measured = interleave(
            {
                "import mlp_core": imported(sys.executable, "import mlp_core"),
                "from mlp_core import FlowSpec, step": imported(sys.executable, "from mlp_core import FlowSpec, step"),
                "import metaflow": imported(peer, "import metaflow"),
                "mlp --help": process(MLP, "--help"),
                "metaflow flow.py --help": process(peer, peer_flow, "--help"),
                "mlp run": process(MLP, "run", ours_flow),
                "metaflow run": process(peer, peer_flow, "run"),
            },
            rounds,
        )
    return report(
        "startup",
        args,
        [
            Claim("import mlp_core", measured["import mlp_core"], measured["import metaflow"], 1 / 3),
            Claim(
                "from mlp_core import FlowSpec, step",
                measured["from mlp_core import FlowSpec, step"],
                measured["import metaflow"],
                1 / 3,
            ),
            Claim("mlp --help", measured["mlp --help"], measured["metaflow flow.py --help"], 1 / 2),
            Claim("three steps, whole process", measured["mlp run"], measured["metaflow run"], 1 / 5),
        ],
        peers={"metaflow": METAFLOW},
    )


if __name__ == "__main__":
    sys.exit(main())
