"""What is harmed: programs that make a run in a store, and print what has been acknowledged."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs

from mlp_reliability.processes import CANARY

Said = list[list[str]]
"""What a program acknowledged: words such as ``finished <run id> <task>``."""

SECONDS: Final = 120
"""After so long a program counts as hanging."""

_HERE: Final = Path(__file__).parent


@attrs.frozen
class Place:
    """Where a program is run: a folder with a project, a cache and a store of its own.

    Attributes
    ----------
    base : pathlib.Path
        The folder.
    """

    base: Path

    @property
    def store(self) -> Path:
        """The store; its parent is made with it."""
        return self.base / "new" / "store"

    @property
    def project(self) -> Path:
        """The project that the flow belongs to."""
        return self.base / "project"

    @property
    def canary(self) -> str:
        """What marks every process that was started here."""
        return str(self.base)

    def prepare(self) -> Place:
        """Make the project, and return this place."""
        self.project.mkdir(parents=True, exist_ok=True)
        shutil.copy(_HERE / "flow.py", self.project)
        return self

    def environment(self, variables: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment of a program that runs here."""
        return {
            **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
            "XDG_CACHE_HOME": str(self.base / "cache"),
            "XDG_RUNTIME_DIR": str(self.base),
            "MLP_NO_PLUGINS": "1",
            CANARY: self.canary,
            **(variables or {}),
        }


@attrs.frozen
class Program:
    """What makes a run.

    Attributes
    ----------
    name : str
        Its name.
    flow : str
        The flow whose run it makes.
    printing : tuple of str
        The steps whose tasks print a line.
    command : callable
        Returns what starts it at a place.
    said : callable
        Returns what an output acknowledges.
    is_repeatable : bool
        Whether its calls come in the same order each time. Those of several processes do not, so that another call may
        be hit than the one that was chosen.
    """

    name: str
    flow: str
    printing: tuple[str, ...]
    command: Callable[[Place], list[str]]
    said: Callable[[str], Said]
    is_repeatable: bool

    def run(
        self, place: Place, *before: str, command: list[str] | None = None, variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end, or another command of its kind, behind a prefix such as a call of strace."""
        return subprocess.run(
            [*before, *(command or self.command(place))],
            cwd=place.project,
            env=place.environment(variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )


def resume(place: Place, *options: str) -> list[str]:
    """Return the command that resumes the flow's newest run."""
    return [sys.executable, str(place.project / "flow.py"), "resume", "--json", "--store", str(place.store), *options]


def with_workers_behind(place: Place, prefix: Sequence[str], worker: int) -> list[str]:
    """Return the command that runs the flow with every task in an interpreter of its own, and some behind a prefix.

    Parameters
    ----------
    place : Place
        Where.
    prefix : sequence of str
        What to put before the worker's command; ``@worker@`` in it becomes the worker's number.
    worker : int
        Which worker, counted from 1 in the order of their starts; 0 for each.
    """
    words = shlex.join(prefix).replace("@worker@", "$number")
    script = place.base / "interpreter"
    script.write_text(
        f"""#!/bin/sh
number=1
while ! mkdir {shlex.quote(str(place.base))}/worker-$number 2>/dev/null; do number=$((number + 1)); done
if [ {worker} = 0 ] || [ {worker} = $number ]; then exec {words} {sys.executable} "$@"; fi
exec {sys.executable} "$@"
"""
    )
    script.chmod(0o700)
    flow = [str(place.project / "flow.py"), "--json", "--isolation", "spawn", "--store", str(place.store)]
    return [sys.executable, str(_HERE / "behind.py"), str(script), "run", *flow]


def _run_flow(place: Place) -> list[str]:
    """Return the command that runs the flow."""
    return [sys.executable, str(place.project / "flow.py"), "run", "--json", "--store", str(place.store)]


def _write(place: Place) -> list[str]:
    """Return the command that starts the writer."""
    return [sys.executable, str(_HERE / "writer.py"), str(place.store)]


def _said_by_writer(output: str) -> Said:
    """Return the lines that the writer printed, as words."""
    return [line.split() for line in output.splitlines() if line]


def _said_by_flow(output: str) -> Said:
    """Return what events acknowledge: the run's beginning, tasks' ends, and the run's end."""
    said: Said = []
    run_id = ""
    for line in output.splitlines():
        try:
            event = json.loads(line)
        except ValueError:  # the driver was killed while it printed
            continue
        if event["event"] == "run_started":
            run_id = event["run_id"]
            said.append(["created", run_id])
        elif event["event"] == "task_finished" and event["status"] == "succeeded":
            said.append(["finished", run_id, event["task"]])
        elif event["event"] == "run_finished" and event["status"] == "succeeded":
            said.append(["ended", run_id])
    return said


WRITER: Final = Program("writer", "Written", ("start",), _write, _said_by_writer, is_repeatable=True)
"""One process that uses the store alone."""

FLOW: Final = Program("flow", "Harmed", ("work", "end"), _run_flow, _said_by_flow, is_repeatable=False)
"""A driver with its workers."""
