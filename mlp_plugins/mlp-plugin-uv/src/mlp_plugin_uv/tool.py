"""How uv is run, what it says when it fails, and which interpreters it finds.

Where packages come from is uv's own business: its configuration files and environment variables are in force.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlp_plugin_uv.credentials import masked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NO_DOWNLOADS: Final = "--no-python-downloads"
"""Interpreters are the user's to install: none is fetched behind their back."""

_LONGEST_MESSAGE: Final = 1000
_DRAWINGS: Final = " \u2502\u2570\u251c\u2500\u25b6\u00d7"
"""Blanks, and the lines, arrows and crosses that some versions of uv draw an error with."""
_ERROR: Final = re.compile("error: |[ \u00d7]+\u00d7 ")


class UvError(Exception):
    """Uv has failed.

    Parameters
    ----------
    status : int
        Its exit status: 1 where it has an answer, and the answer is no; 2 where it could not tell.
    output : str
        What it printed on its standard error.
    """

    def __init__(self, status: int, output: str) -> None:
        """Make the error; its text is uv's own explanation, shortened."""
        super().__init__(explain(output) or f"uv ended with status {status}")
        self.status = status
        self.last_words = _last_words(output)
        """The last line that the build of a package printed, where that has failed."""


def run_uv(
    arguments: Sequence[str],
    *,
    stdin: str = "",
    pass_fds: Sequence[int] = (),
    variables: Mapping[str, str] | None = None,
    folder: str | None = None,
) -> str:
    """Run uv and return its standard output.

    Parameters
    ----------
    arguments : sequence of str
        Its arguments.
    stdin : str
        What it reads.
    pass_fds : sequence of int
        Descriptors that it keeps open until it ends.
    variables : mapping of str to str or None
        Further environment variables.
    folder : str or None
        The folder to run it in.

    Raises
    ------
    UvError
        Where it fails.
    OSError
        Where it cannot be started.
    """
    result = subprocess.run(
        [_binary(), *arguments, "--color", "never", "--no-progress"],
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env={**_environment(os.environ), **(variables or {})},
        pass_fds=pass_fds,
        cwd=folder,
        check=False,
    )
    if result.returncode:
        raise UvError(result.returncode, result.stderr)
    return result.stdout


def explain(output: str) -> str:
    """Return what uv printed as one line: without warnings before the error, drawings and credentials, and not long."""
    lines = [line.strip(_DRAWINGS) for line in output.splitlines()]
    starts = [number for number, line in enumerate(output.splitlines()) if _ERROR.match(line)]
    text = " ".join(line for line in lines[starts[0] if starts else 0 :] if line)
    text = re.sub(r" ?\b(cause|error): ", "; ", text).removeprefix("; ")
    text = masked(text)
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 4] + " ..."


def run_uv_under(python: str, arguments: Sequence[str], **options: Any) -> str:
    """Run uv with an interpreter, which it looks for itself: that saves a process.

    Parameters
    ----------
    python : str
        The interpreter's version.
    arguments : sequence of str
        The arguments, without the one that names it.
    **options : object
        As of `run_uv`.

    Returns
    -------
    str
        The standard output.

    Raises
    ------
    UvError
        Where it fails, or there is no such interpreter.
    """
    try:
        return run_uv([*arguments, "--python", f"cpython{python}"], **options)
    except UvError as error:
        if "interpreter" not in str(error).lower():
            raise
        interpreter = find_python(python)
        if interpreter is None:
            raise UvError(error.status, f"error: {missing_python(python)}") from error
    return run_uv([*arguments, "--python", interpreter], **options)


def index_arguments(index: str | None, extra_indexes: Sequence[str]) -> list[str]:
    """Return the arguments that name indexes."""
    default = ["--default-index", index] if index else []
    return default + [argument for url in extra_indexes for argument in ("--index", url)]


def find_python(version: str) -> str | None:
    """Return the absolute path of an interpreter.

    Parameters
    ----------
    version : str
        ``3.12`` or ``3.12.1``.

    Returns
    -------
    str or None
        The path; None where uv finds none of that version.
    """
    try:
        return run_uv(["python", "find", "--system", "--no-project", NO_DOWNLOADS, f"cpython{version}"]).strip()
    except UvError:
        # One interpreter that cannot be run ends that search; the list leaves it out.
        return next((path for found, path in installed_pythons() if f"{found}.".startswith(f"{version}.")), None)


def installed_pythons() -> list[tuple[str, str]]:
    """Return version and path of each CPython that uv finds, the newest first, one of each version."""
    listing = json.loads(run_uv(["python", "list", "--only-installed", NO_DOWNLOADS, "--output-format", "json"]))
    found: dict[str, str] = {}
    for entry in listing:
        if entry["implementation"] == "cpython" and entry.get("variant", "default") == "default":
            found.setdefault(entry["version"], entry["path"])
    return list(found.items())


def missing_python(version: str) -> str:
    """Return the message for an interpreter that is not there."""
    known = ", ".join(found for found, _ in installed_pythons()) or "none"
    return (
        f"Python {version} is not on this machine; uv finds {known}. Install it, for example by "
        f"`python -m uv python install {version}`, or ask for another one: @pypi(python=...)"
    )


def _last_words(output: str) -> str:
    """Return the last line before uv says that a build has failed; empty where it does not say that."""
    lines = output.splitlines()
    starts = [number for number, line in enumerate(lines) if _ERROR.match(line) and "Failed to build" in line]
    said = [line.strip() for line in lines[: starts[-1] if starts else 0] if line.strip()]
    return masked(said[-1])[:_LONGEST_MESSAGE] if said else ""


@functools.cache
def _binary() -> str:
    """Return the path of the uv that was installed with this plugin."""
    import uv

    return os.fsdecode(uv.find_uv_bin())


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for uv: its search also finds the running interpreter, and those that pyenv has installed.

    pyenv puts a stub for every version on the path, and all but the chosen one's only print an error. Hashes are
    verified whatever the variables say.
    """
    home = Path(environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    folders = [folder for folder in environ.get("PATH", os.defpath).split(os.pathsep) if folder != str(home / "shims")]
    pyenv = sorted(home.glob("versions/3.*/bin"), reverse=True)
    own = Path(sys.base_prefix, "bin")
    kept = {name: value for name, value in environ.items() if name != "UV_NO_VERIFY_HASHES"}
    return {**kept, "PATH": os.pathsep.join([*folders, str(own), *map(str, pyenv)])}
