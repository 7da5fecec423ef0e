"""What environments cost: a step in one beside a step without, and resolving and making one beside plain uv.

python benchmarks/environments.py
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from harness import MLP, Claim, Workspace, arguments, interleave, report

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGES: Final = ("numpy", "pandas", "scikit-learn")
STEP_SECONDS: Final = 0.06
"""So much later than without may a step in an environment start that is there already."""

FLOW: Final = """\
import time

from mlp_core import FlowSpec, step
from mlp_plugin_uv import pypi


class Flow(FlowSpec):
    @step
    def start(self):
        time.sleep({seconds})
        self.items = list(range({tasks}))
        self.next(self.work, foreach="items")

    {decorator}
    @step
    def work(self):
        self.x = self.input
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Flow()
"""

TIMED: Final = """\
import sys, tempfile, time
from pathlib import Path

from mlp_core.environments.bundling import this_platform
from mlp_core.session import Session
from mlp_hookspecs import EnvironmentSpec, wire, EnvironmentLock

hooks = Session.open().hooks
spec = EnvironmentSpec("pypi", {"packages": dict.fromkeys(sys.argv[3:], ""), "python": "%d.%d" % sys.version_info[:2]})
kept = Path(sys.argv[2])
if sys.argv[1] == "resolve":
    began = time.perf_counter()
    lock = hooks.resolve_environment(spec, (this_platform(),))
    took = time.perf_counter() - began
    kept.write_bytes(wire.dumps(lock))
else:
    lock = wire.loads(EnvironmentLock, kept.read_bytes())
    with tempfile.TemporaryDirectory(dir=kept.parent) as root:
        began = time.perf_counter()
        made = hooks.provision_environment(lock, Path(root))
        took = time.perf_counter() - began
        for path in (Path(root), *Path(root).rglob("*")):  # it is read-only
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
print(took)
"""
"""Prints how long the plugin takes to resolve or make an environment, in a process that runs already as a run does."""


def main() -> int:
    """Measure, and report."""
    args = arguments("Environments, beside plain uv.", rounds=11, needs_metaflow=False).parse_args()
    rounds = 2 if args.quick else args.rounds
    # On the file system of uv's cache: files are linked from there, by us and by the peer.
    cache = Path(uv_output("cache", "dir"))
    with Workspace.make(cache.parent) as space:
        space.environment.update({"UV_CACHE_DIR": str(cache), "MLP_NO_PLUGINS": "0", "MLP_PLUGINS_ALLOW": "uv"})
        steps = measure_steps(space, rounds)
        uv = measure_uv(space, rounds)
        calls = count_second_run(space)
    allowed = [STEP_SECONDS]
    status = report(
        "environments",
        args,
        [
            Claim(
                "a step in an environment that is there, after one that worked for a second: later by",
                extra(steps, "later"),
                allowed,
                1,
                peer_name="allowed",
            ),
            Claim(
                "the same after a step that does nothing: later by",
                extra(steps, "at once"),
                allowed,
                1,
                peer_name="allowed",
            ),
            Claim(
                "20 tasks in it, after one that worked for a second: later by",
                extra(steps, "many"),
                allowed,
                1,
                peer_name="allowed",
            ),
            Claim("make numpy, pandas, scikit-learn again, offline", uv["make"], uv["uv make"], 1.5, peer_name="uv"),
            Claim("resolve the three", uv["resolve"], uv["uv resolve"], 1.3, peer_name="uv"),
        ],
        peers={"uv": version("uv")},
        calls_of_uv_in_a_second_run=calls,
        seconds_of_runs={name: [round(value, 4) for value in rounds] for name, rounds in steps.items()},
    )
    return 1 if calls else status


def measure_steps(space: Workspace, rounds: int) -> dict[str, list[float]]:
    """Return how long runs take whose step has an environment, and such whose step has none, for some flows."""
    flows = {"later": (1, 1.0), "at once": (1, 0.0), "many": (20, 1.0)}
    decorators = {"with": '@pypi(packages={"six": "1.17.0"})', "without": ""}
    cases = {}
    for name, (tasks, seconds) in flows.items():
        for way, decorator in decorators.items():
            text = FLOW.format(tasks=tasks, seconds=seconds, decorator=decorator)
            path = space.write(f"{name} {way}/flow.py".replace(" ", "-"), text)
            cases[f"{name} {way}"] = lambda path=path: space.seconds(MLP, "run", path, cwd=path.parent)
    return interleave(cases, rounds)


def extra(steps: dict[str, list[float]], name: str) -> list[float]:
    """Return by how much the best run with an environment took longer than the best without.

    A run's own time varies by more than what is allowed here; what disturbs it only makes it longer.
    """
    return [max(min(steps[f"{name} with"]) - min(steps[f"{name} without"]), 0.0)]


def measure_uv(space: Workspace, rounds: int) -> dict[str, list[float]]:
    """Return how long the plugin and uv take to resolve and to make the environment."""
    script = space.write("timed.py", TIMED)
    lock = space.folder / "lock.json"
    asked = space.write("requirements.in", "\n".join((*PACKAGES, "attrs", "cloudpickle", "packaging", "pluggy")) + "\n")
    locked = space.folder / "requirements.txt"
    made = space.folder / "plain"

    def ours(what: str) -> float:
        return float(space.output(sys.executable, script, what, lock, *PACKAGES))

    def resolve() -> float:
        locked.unlink(missing_ok=True)
        words = ("--universal", "--generate-hashes", "--python-version", "{}.{}".format(*sys.version_info[:2]))
        return space.seconds(uv_program(), "pip", "compile", "--quiet", *words, asked, "--output-file", locked)

    def make() -> float:
        # As the plugin, at a place where there was nothing: uv remembers the interpreters of places that it knows.
        with tempfile.TemporaryDirectory(dir=space.folder) as folder:
            fresh = Path(folder) / "plain"
            began = time.perf_counter()
            space.output(uv_program(), "venv", "--offline", "--python", sys.executable, fresh)
            space.output(uv_program(), "pip", "install", "--offline", "--python", fresh, "--requirement", locked)
            return time.perf_counter() - began

    resolve()
    # Both have their wheels in uv's cache, where a wheel lies by where it was fetched from.
    space.output(uv_program(), "venv", "--python", sys.executable, made)
    space.output(uv_program(), "pip", "install", "--python", made, "--requirement", locked)
    resolved = interleave({"resolve": lambda: ours("resolve"), "uv resolve": resolve}, rounds)
    again = interleave({"make": lambda: ours("make"), "uv make": make}, rounds)
    return {**resolved, **again}


def count_second_run(space: Workspace) -> int:
    """Return how often uv is called in a flow's second run."""
    calls = space.folder / "calls"
    wrapper = space.write("uv", f'#!/bin/sh\necho "$*" >> {calls}\nexec {uv_program()} "$@"\n')
    wrapper.chmod(0o700)
    space.write("counting/uv.py", f"def find_uv_bin():\n    return {str(wrapper)!r}\n")
    flow = space.write(
        "counted/flow.py", FLOW.format(tasks=1, seconds=0, decorator='@pypi(packages={"six": "1.16.0"})')
    )
    with using(space, PYTHONPATH=str(space.folder / "counting")):
        space.output(MLP, "run", flow, cwd=flow.parent)
        if not calls.read_text().count("compile"):
            raise RuntimeError(f"the first run has not resolved: {json.dumps(calls.read_text())}")
        calls.write_text("")
        space.output(MLP, "run", flow, cwd=flow.parent)
    return len(calls.read_text().splitlines())


@contextlib.contextmanager
def using(space: Workspace, **variables: str) -> Iterator[None]:
    """Give the processes of a workspace further variables for a time."""
    before = dict(space.environment)
    space.environment.update(variables)
    try:
        yield
    finally:
        space.environment.clear()
        space.environment.update(before)


def uv_program() -> str:
    """Return the path of the uv that the plugin uses, too."""
    import uv

    return str(uv.find_uv_bin())


def uv_output(*words: str) -> str:
    """Return what uv prints."""
    return subprocess.run([uv_program(), *words], check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
