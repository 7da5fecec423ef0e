"""What the benchmarks share: peers in environments of their own, interleaved measuring, and the report."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

METAFLOW: Final = "2.19.39"
RESULTS: Final = Path(__file__).parent / "results"
MLP: Final = str(Path(sys.executable).with_name("mlp"))
"""The command of the environment that runs the benchmark."""


@attrs.frozen
class Claim:
    """One measured claim.

    Attributes
    ----------
    text : str
        What is claimed of the ratio.
    ours, peer : tuple of float
        A measurement a round; the peer's is of the same round.
    limit : float
        What the ratio of ours to the peer's has to keep to.
    unit : str
        The unit of the measurements.
    peer_name : str
        What stands beside ours.
    at_least : bool
        Whether more is better, and the limit is the least ratio allowed.
    best : bool
        Whether the best rounds are compared, rather than the median of the rounds' ratios taken: for what is disturbed
        rarely, but then by more than the difference.
    """

    text: str
    ours: tuple[float, ...] = attrs.field(converter=tuple)
    peer: tuple[float, ...] = attrs.field(converter=tuple)
    limit: float
    unit: str = "s"
    peer_name: str = "metaflow"
    at_least: bool = False
    best: bool = False

    def typical(self, rounds: Sequence[float]) -> float:
        """Return the measurement that stands for all rounds."""
        if not self.best:
            return statistics.median(rounds)
        return max(rounds) if self.at_least else min(rounds)

    @property
    def ratio(self) -> float:
        """Ours by the peer's: by default the median of the rounds' ratios, which a changing load disturbs least."""
        if self.best:
            return self.typical(self.ours) / self.typical(self.peer)
        return statistics.median(own / other for own, other in zip(self.ours, self.peer, strict=True))

    @property
    def is_met(self) -> bool:
        """Whether the ratio keeps to the limit."""
        return self.ratio >= self.limit if self.at_least else self.ratio <= self.limit

    def as_json(self) -> dict[str, Any]:
        """Return the claim for the result file."""
        ours, peer = self.typical(self.ours), self.typical(self.peer)
        return {
            "claim": self.text,
            "met": self.is_met,
            "ratio": _rounded(self.ratio),
            "limit": f"{'>=' if self.at_least else '<='} {self.limit:.4g}",
            "unit": self.unit,
            "by": "best round" if self.best else "median of rounds",
            "ours": _rounded(ours),
            self.peer_name: _rounded(peer),
            "rounds": {"ours": [_rounded(x) for x in self.ours], self.peer_name: [_rounded(x) for x in self.peer]},
        }


def arguments(description: str, *, rounds: int, needs_metaflow: bool = True) -> argparse.ArgumentParser:
    """Return the parser of a benchmark's command line.

    Parameters
    ----------
    description : str
        What it measures.
    rounds : int
        How often by default.
    needs_metaflow : bool
        Whether Metaflow stands beside us.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"how often to measure; by default {rounds}")
    parser.add_argument("--quick", action="store_true", help="small sizes and two rounds: shows that it works")
    parser.add_argument(
        "--output", type=Path, help="the JSON file; by default in benchmarks/results, none with --quick"
    )
    if needs_metaflow:
        parser.add_argument("--metaflow-python", type=Path, help="the Python of an environment that has Metaflow")
    return parser


def metaflow_python(given: Path | None) -> str:
    """Return a Python that has Metaflow, from an environment that is made where none is given.

    Parameters
    ----------
    given : pathlib.Path, optional
        The Python to use.
    """
    if given is not None:
        return str(given.absolute())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    version = ".".join(platform.python_version_tuple()[:2])
    folder = cache / "mlp-benchmarks" / f"metaflow-{METAFLOW}-python-{version}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"installing metaflow {METAFLOW} into an environment of its own", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"metaflow=={METAFLOW}"], check=True)
        (folder / "complete").touch()
    return str(python)


@attrs.frozen
class Workspace:
    """A temporary home, with no settings of the user's, for the processes that are measured.

    Attributes
    ----------
    folder : pathlib.Path
        The folder.
    environment : dict of str to str
        The variables of the processes.
    """

    folder: Path
    environment: dict[str, str]

    @classmethod
    @contextlib.contextmanager
    def make(cls, parent: Path | None = None) -> Iterator[Workspace]:
        """Make one that is removed in the end; below a parent, by default the system's temporary folder."""
        with tempfile.TemporaryDirectory(prefix="mlp-benchmark-", dir=parent) as name:
            # Without .pyc files every process would compile its imports, ours and the peer's.
            dropped = ("MLP_", "METAFLOW_", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH")
            environment = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
            environment |= {"HOME": name, "XDG_CACHE_HOME": f"{name}/.cache", "USERNAME": "benchmark"}
            # Measured is the core, not what else happens to be installed beside it.
            environment["MLP_NO_PLUGINS"] = "1"
            yield cls(Path(name), environment)

    def write(self, name: str, text: str) -> Path:
        """Write a file, and return its path."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def output(self, *command: object, cwd: Path | None = None) -> str:
        """Return what a command prints; RuntimeError with its errors where it fails."""
        words = [str(word) for word in command]
        done = subprocess.run(
            words, check=False, cwd=cwd or self.folder, env=self.environment, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{shlex.join(words)} ended with {done.returncode}:\n{done.stderr[-4000:]}")
        return done.stdout

    def seconds(self, *command: object, cwd: Path | None = None) -> float:
        """Return how long a command takes, from its start to its end."""
        began = time.perf_counter()
        self.output(*command, cwd=cwd)
        return time.perf_counter() - began


def interleave(
    cases: Mapping[str, Callable[[], float]], rounds: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Measure cases in turn, round by round, so that a load on the machine meets them all.

    Parameters
    ----------
    cases : mapping of str to callable
        Each returns its measurement.
    rounds : int
        How often; every other round goes backwards.
    warm_up : bool
        Whether a first round is thrown away.

    Returns
    -------
    dict of str to list of float
        The measurements.
    """
    measured: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(-warm_up, rounds):
        for name in reversed(cases) if number > 0 and number % 2 else cases:
            value = cases[name]()
            if number >= 0:
                measured[name].append(value)
                print(f"  round {number + 1}/{rounds}  {name}: {value:.4g}", file=sys.stderr)
    return measured


def report(name: str, args: argparse.Namespace, claims: Sequence[Claim], **more: Any) -> int:
    """Print the claims as a table, write them as JSON, and return how the benchmark ends: 1 where one is not met.

    Parameters
    ----------
    name : str
        The benchmark's name.
    args : argparse.Namespace
        Its command line.
    claims : sequence of Claim
        What was measured.
    **more
        What else is worth keeping.
    """
    result = {
        "benchmark": name,
        "command": f"python benchmarks/{name}.py" + "".join(f" {word}" for word in _words(args)),
        "machine": machine(),
        "versions": {"mlp-core": importlib.metadata.version("mlp-core"), "python": platform.python_version()},
        **more,
        "claims": [claim.as_json() for claim in claims],
    }
    print(table(claims))
    output = args.output or (None if args.quick else RESULTS / f"{name}.json")
    if output is not None:
        output.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if all(claim.is_met for claim in claims) else 1


def table(claims: Sequence[Claim]) -> str:
    """Return the claims for people."""
    rows = [("claim", "ours", "peer", "ratio", "limit", "")]
    for claim in claims:
        ours, peer = claim.typical(claim.ours), claim.typical(claim.peer)
        limit = f"{'>=' if claim.at_least else '<='} {claim.limit:.4g}"
        verdict = "met" if claim.is_met else "MISSED"
        peer_text = f"{peer:.4g} {claim.unit} ({claim.peer_name})"
        rows.append((claim.text, f"{ours:.4g} {claim.unit}", peer_text, f"{claim.ratio:.4g}", limit, verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def machine() -> dict[str, Any]:
    """Return what the figures depend on, without a name or a path of the machine."""
    found: dict[str, Any] = {"system": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count()}
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        found["processor"] = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    found["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    found["load"] = round(os.getloadavg()[0], 1)
    return found


def _words(args: argparse.Namespace) -> Iterator[str]:
    """Yield the command line without paths."""
    for name, value in vars(args).items():
        if isinstance(value, bool):
            if value:
                yield f"--{name}"
        elif value is not None and not isinstance(value, Path):
            yield f"--{name} {value}"


def _rounded(value: float) -> float:
    """Return four significant digits."""
    return float(f"{value:.4g}")
