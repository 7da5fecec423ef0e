"""How other programs are run, uv and our own helper among them, and what is told of it when they fail."""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

NO_DOWNLOADS: Final = "--no-python-downloads"
"""Interpreters are conda packages here, and uv fetches none."""

_LONGEST_MESSAGE: Final = 1000
_CREDENTIALS: Final = re.compile(r"(?<=://)[^/@\s]+(?=@)|(?<=/t/)[^/\s]+(?=/)")
_DRAWINGS: Final = " \u2502\u2570\u251c\u2500\u25b6\u00d7\u2514"
"""Blanks, and the lines, arrows and crosses that errors are drawn with."""
_ERROR: Final = re.compile("error: |[ \u00d7]+\u00d7 ")
_MISMATCH: Final = re.compile(r"hash mismatch when extracting (\S+) to .*?: expected (\w+), got (\w+)")
_PLATFORMS: Final = {
    ("Linux", "x86_64"): "linux-64",
    ("Linux", "aarch64"): "linux-aarch64",
    ("Linux", "ppc64le"): "linux-ppc64le",
    ("Darwin", "x86_64"): "osx-64",
    ("Darwin", "arm64"): "osx-arm64",
}


class ToolError(Exception):
    """A program has failed.

    Parameters
    ----------
    status : int
        Its exit status.
    explanation : str
        Its own explanation; it is shortened, and credentials are taken out.
    """

    def __init__(self, status: int, explanation: str) -> None:
        """Make the error."""
        super().__init__(one_line(explanation))
        self.status = status


def run_helper(task: str, *, pass_fds: Sequence[int] = (), **arguments: object) -> Any:
    """Have a task done in the helper process.

    Parameters
    ----------
    task : str
        Its name in `mlp_plugin_conda.helper.TASKS`.
    pass_fds : sequence of int
        Descriptors that the process keeps open until it ends.
    **arguments : object
        The task's arguments, as JSON can hold them.

    Raises
    ------
    ToolError
        Where it fails.
    """
    result = subprocess.run(
        [sys.executable, "-P", "-m", "mlp_plugin_conda.helper"],
        input=json.dumps({"task": task, **arguments}),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        pass_fds=pass_fds,
        check=False,
    )
    try:
        answer = json.loads(result.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        reason = result.stderr.strip().splitlines()[-1:] or ["it says nothing"]
        raise ToolError(
            result.returncode, f"the helper process ended with status {result.returncode}: {reason[0]}"
        ) from None
    if "error" in answer:
        raise ToolError(1, _MISMATCH.sub(_mismatch, answer["error"]))
    return answer["answer"]


def run_uv(arguments: Sequence[str], *, stdin: str = "", pass_fds: Sequence[int] = ()) -> str:
    """Run uv and return its standard output.

    Parameters
    ----------
    arguments : sequence of str
        Its arguments.
    stdin : str
        What it reads.
    pass_fds : sequence of int
        Descriptors that it keeps open until it ends.

    Raises
    ------
    ToolError
        Where it fails.
    """
    # Hashes are verified whatever the variables say.
    environ = {name: value for name, value in os.environ.items() if name != "UV_NO_VERIFY_HASHES"}
    result = subprocess.run(
        [find_uv(), *arguments, NO_DOWNLOADS, "--color", "never", "--no-progress"],
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=environ,
        pass_fds=pass_fds,
        check=False,
    )
    if result.returncode:
        lines = result.stderr.splitlines()
        starts = [number for number, line in enumerate(lines) if _ERROR.match(line)]
        text = "\n".join(lines[starts[0] if starts else 0 :])
        raise ToolError(result.returncode, text or f"uv ended with status {result.returncode}")
    return result.stdout


def one_line(text: str) -> str:
    """Return an explanation as one line: without drawings and credentials, and not long."""
    text = " ".join(line for line in (line.strip(_DRAWINGS) for line in text.splitlines()) if line)
    text = re.sub(r" ?\b([Cc]aused by|cause|error): ", "; ", text).removeprefix("; ")
    text = _CREDENTIALS.sub("***", text)
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 4] + " ..."


def this_platform() -> str:
    """Return this host's platform as conda names it; empty where conda has no name for it."""
    return _PLATFORMS.get((platform.system(), platform.machine()), "")


def cache_folder() -> Path:
    """Return the folder of extracted packages, which environments are linked from.

    It is not the one that py-rattler shares with other programs: those may have put packages there from ``file://``
    channels without verifying them, and this one's files are read-only.
    """
    given = os.environ.get("RATTLER_CACHE_DIR")
    if given:
        return Path(given, "mlp-conda")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "mlp", "conda")


@functools.cache
def find_uv() -> str:
    """Return the path of the uv that was installed with this plugin."""
    import uv

    return os.fsdecode(uv.find_uv_bin())


def _mismatch(match: re.Match[str]) -> str:
    """Return py-rattler's words on a wrong hash in ours."""
    file = match[1].rpartition("/")[2]
    return f"{file} is not the file that was locked: its sha256 is {match[3]}, not {match[2]}"
