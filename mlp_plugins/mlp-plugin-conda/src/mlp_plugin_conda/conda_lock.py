"""How conda packages are locked: conda-lock asks a solver once a platform and writes one file for all of them.

The solver is the user's conda, mamba or micromamba where there is one, and otherwise ours.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlp_plugin_conda.locks import Lock, lock_of
from mlp_plugin_conda.tools import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SOLVER_VARIABLE: Final = "CONDA_EXE"
"""The variable that names the solver: conda's own for its executable."""

OWN_SOLVER: Final = "mlp-conda-solver"
"""The command of our own solver."""

_KNOWN_SOLVERS: Final = ("conda", "mamba", "micromamba")
_SELECTORS: Final = {
    "linux-64": "linux64",
    "linux-aarch64": "aarch64",
    "linux-ppc64le": "ppc64le",
    "osx-64": "osx64",
    "osx-arm64": "arm64",
    "win-64": "win64",
}
"""What conda-lock takes in a comment for "on this platform alone"."""
_NO_ANSWER: Final = re.compile(r"(?i)solver|unsatisfiable|notfound|resolve")
_FAILED: Final = "Could not lock the environment for platform "


def lock_conda(specs: Mapping[str, Sequence[str]], channels: Sequence[str]) -> Lock:
    """Lock conda packages.

    Parameters
    ----------
    specs : mapping of str to sequence of str
        What is asked for on each platform, in conda's terms: ``numpy >=2``.
    channels : sequence of str
        Where packages come from, the preferred first.

    Returns
    -------
    Lock
        The packages of all platforms.

    Raises
    ------
    ValueError
        Where there is no answer; the message is the solver's own explanation.
    OSError
        Where that cannot be found out.
    """
    with tempfile.TemporaryDirectory(prefix="mlp-conda-") as folder:
        source, target, names = (Path(folder, name) for name in ("environment.yml", "conda-lock.yml", "names.json"))
        source.write_text(_environment(specs, channels))
        # What packages are called in a Python index; conda-lock would fetch it from the net, and no pip part needs it.
        names.write_text("{}")
        command = [sys.executable, "-P", "-m", "conda_lock", "lock", "--conda", find_solver(Path(folder))]
        command += ["--no-mamba", "--no-micromamba", "--file", str(source), "--lockfile", str(target)]
        command += ["--pypi_to_conda_lookup_file", names.as_uri()]
        command += [argument for platform in specs for argument in ("--platform", platform)]
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", check=False
        )
        if result.returncode:
            raise explain(result.stderr + result.stdout)
        return lock_of(_load(target))


def find_solver(folder: Path) -> str:
    """Return the path of the solver.

    Parameters
    ----------
    folder : pathlib.Path
        Where to put a script that starts ours, if that is the one.

    Raises
    ------
    ValueError
        Where the one that is asked for is not there.
    """
    asked = os.environ.get(SOLVER_VARIABLE, "")
    if asked and asked != OWN_SOLVER:
        found = shutil.which(asked)
        if found is None:
            raise ValueError(
                f"{SOLVER_VARIABLE}={asked!r} is no program that can be found: it is conda's, mamba's or micromamba's "
                f"name or path, or {OWN_SOLVER} for the solver that comes with the plugin"
            )
        return found
    for name in _KNOWN_SOLVERS if not asked else ():
        found = shutil.which(name)
        if found is not None:
            return found
    script = folder / OWN_SOLVER
    script.write_text(f"#!/bin/sh\nexec '{sys.executable}' -P -m mlp_plugin_conda.solver \"$@\"\n")
    script.chmod(0o700)
    return str(script)


def explain(output: str) -> ValueError | OSError:
    """Return what conda-lock printed when it failed as an error: ValueError where the solver's answer was no.

    Parameters
    ----------
    output : str
        All that it printed, the solver's JSON among it.
    """
    _, failed, rest = output.partition(_FAILED)
    if not failed:
        lines = [line for line in output.splitlines() if line.strip()]
        return OSError(f"conda-lock has failed: {one_line(lines[-1] if lines else 'it says nothing')}")
    platform, _, rest = rest.partition("\n")
    answer = _answer(rest)
    message = answer.get("message") or "\n".join(map(str, answer.get("solver_problems", ()))) or answer.get("error")
    text = one_line(str(message or rest.partition("    Command:")[0]))
    kind = str(answer.get("exception_name") or answer.get("error") or "")
    if answer.get("solver_problems") or _NO_ANSWER.search(kind):
        return ValueError(f"there is no answer for {platform}: {text}")
    return OSError(f"the solver has failed for {platform}: {text}")


def _answer(output: str) -> dict[str, Any]:
    """Return the JSON that a solver printed on its standard output; empty where there is none."""
    start = output.find("{", output.find("    STDOUT:\n"))
    try:
        answer, _ = json.JSONDecoder().raw_decode(output, start)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _environment(specs: Mapping[str, Sequence[str]], channels: Sequence[str]) -> str:
    """Return a conda environment file; what is not asked for everywhere has the platform in a comment."""
    platforms = list(specs)
    lines = [f"channels: {json.dumps(list(channels))}", f"platforms: {json.dumps(platforms)}", "dependencies:"]
    everywhere = [spec for spec in specs[platforms[0]] if all(spec in specs[platform] for platform in platforms)]
    lines += [f"  - {json.dumps(spec)}" for spec in everywhere]
    for platform in platforms:
        own = [spec for spec in specs[platform] if spec not in everywhere]
        lines += [f"  - {json.dumps(spec)}  # [{_SELECTORS[platform]}]" for spec in own]
    return "\n".join(lines) + "\n"


def _load(path: Path) -> Any:
    """Return the content of a YAML file, by the library in C where it is there: lock files are long."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with path.open("rb") as file:
        return loader(file).get_single_data()
