"""How a lock becomes an interpreter: an environment in a folder named by the lock's digest, whole or not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mlp_hookspecs import ProvisionedEnvironment
from mlp_hookspecs.provisioning import make_once
from mlp_plugin_uv.locks import Pin, read_lock, write_pins
from mlp_plugin_uv.tool import NO_DOWNLOADS, UvError, find_python, missing_python, run_uv

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlp_hookspecs import EnvironmentLock


def provision(lock: EnvironmentLock, root: Path) -> ProvisionedEnvironment:
    """Make the environment of a lock, or find it made.

    Parameters
    ----------
    lock : EnvironmentLock
        The lock.
    root : pathlib.Path
        The folder for environments.

    Returns
    -------
    ProvisionedEnvironment
        The interpreter, without the platform's own packages.

    Raises
    ------
    OSError
        Where it cannot be made.
    """
    try:
        python, pins = read_lock(lock.content)
    except ValueError as error:
        raise OSError(f"the lock is damaged or of an unknown version: {error}") from error
    target = Path(root).absolute() / lock.digest
    make_once(target, lambda folder, descriptor: _build(folder, python, pins, descriptor), _is_whole)
    binaries = str(target / "bin")
    # Commands that the packages bring are found by the step's subprocesses, as in an activated environment.
    path = os.pathsep.join([binaries, os.environ.get("PATH", os.defpath)])
    variables = {"PATH": path, "VIRTUAL_ENV": str(target)}
    return ProvisionedEnvironment(str(target / "bin" / "python"), variables, has_platform=False)


def _is_whole(target: Path) -> bool:
    """Tell whether an environment is there, and the interpreter that it was made from still is."""
    return os.access(target / "bin" / "python", os.X_OK)


def _build(folder: Path, python: str, pins: Sequence[Pin], descriptor: int) -> None:
    """Make an environment."""
    interpreter = find_python(python)
    if interpreter is None:
        raise FileNotFoundError(missing_python(python))
    try:
        venv = ["venv", "--relocatable", "--no-project", NO_DOWNLOADS, "--python", interpreter, str(folder)]
        run_uv(venv, pass_fds=[descriptor])
        _install(folder, pins, descriptor)
    except UvError as error:
        raise OSError(f"uv cannot make the environment: {error}") from error


def _install(environment: Path, pins: Sequence[Pin], descriptor: int) -> None:
    """Link the packages into an environment: from uv's cache alone where it has them all, which saves every request."""
    arguments = ["pip", "install", "--no-deps", "--require-hashes", NO_DOWNLOADS]
    arguments += ["--python", str(environment / "bin" / "python"), "--requirements", "-"]
    text = write_pins(pins)
    # uv remembers an index's pages for a while: a lock may name a release that is newer than what it remembers.
    for further in (["--offline"], [], ["--refresh"]):
        try:
            run_uv([*arguments, *further], stdin=text, pass_fds=[descriptor])
        except UvError:
            if further == ["--refresh"]:
                raise
        else:
            return
