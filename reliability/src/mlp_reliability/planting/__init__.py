"""How a bug is planted: in a process of its own, by a patch applied when the module that it breaks is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import attrs

from mlp_reliability.bugs import BUGS

VARIABLE: Final = "MLP_PLANTED"
"""The environment variable that names the planted bug."""

_SECONDS: Final = 600


@attrs.frozen
class Found:
    """What became of a planted bug.

    Attributes
    ----------
    caught : bool
        Whether its row found a violation.
    evidence : str
        The first violation, or what happened instead.
    """

    caught: bool
    evidence: str


def variables(name: str) -> dict[str, str]:
    """Return the environment of a process, and of all that it starts, in which a bug is planted."""
    path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, VARIABLE: name, "PYTHONPATH": os.pathsep.join(filter(None, path))}


def find_planted(name: str) -> Found:
    """Run the row that must find a bug, with the bug planted.

    Parameters
    ----------
    name : str
        The bug.

    Returns
    -------
    Found
        Whether it was found. A row that breaks down has found nothing.
    """
    bug = BUGS[name]
    with tempfile.TemporaryDirectory(prefix="mlp-planted-") as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, "-m", "mlp_reliability", bug.row, "--out", str(out)]
        if bug.n is not None:
            command += ["-n", str(bug.n)]
        environment = {**variables(name), "TMPDIR": folder}
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False, timeout=_SECONDS
            )
        except subprocess.TimeoutExpired:
            return Found(caught=False, evidence=f"the row did not end in {_SECONDS} s")
        if not out.exists():
            return Found(caught=False, evidence=f"the row broke down: {done.stderr.strip()[-300:]}")
        violations = json.loads(out.read_text())["violations"]
    return Found(bool(violations), violations[0] if violations else "no violation")
