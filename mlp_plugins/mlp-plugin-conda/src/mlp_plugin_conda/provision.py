"""How a lock becomes an interpreter: a conda prefix in a folder named by the lock's digest, whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from mlp_hookspecs import ProvisionedEnvironment
from mlp_hookspecs.provisioning import has_python, make_once
from mlp_plugin_conda.locks import WHEELS, Lock, read_lock
from mlp_plugin_conda.tools import ToolError, cache_folder, run_helper, this_platform
from mlp_plugin_conda.wheels import install_wheels

if TYPE_CHECKING:
    from mlp_hookspecs import EnvironmentLock


def provision(lock: EnvironmentLock, root: Path, packages: Path | None) -> ProvisionedEnvironment:
    """Make the environment of a lock, or find it made.

    Parameters
    ----------
    lock : EnvironmentLock
        The lock.
    root : pathlib.Path
        The folder for environments.
    packages : pathlib.Path or None
        A folder with the packages' files; None fetches what is not in the cache.

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
        content = read_lock(lock.content)
    except ValueError as error:
        raise OSError(f"the lock is damaged or of an unknown version: {error}") from error
    platform = this_platform()
    if platform not in content.platforms:
        raise OSError(f"the lock holds for {', '.join(content.platforms)}, and this host is {platform or 'unknown'}")
    target = Path(root).absolute() / lock.digest
    here = attrs.evolve(content, packages=content.on(platform))
    make_once(target, lambda staging, descriptor: _build(here, staging, target, packages, descriptor), has_python)
    return ProvisionedEnvironment(str(target / "bin" / "python"), _variables(target), has_platform=False)


def _variables(target: Path) -> dict[str, str]:
    """Return what activating the environment sets: commands are found, and what its packages declare is in force."""
    variables: dict[str, str] = {}
    for file in sorted((target / "etc" / "conda" / "env_vars.d").glob("*.json")):
        declared = json.loads(file.read_text())
        variables |= {name: text for name, text in declared.items() if isinstance(text, str)}
    path = os.pathsep.join([str(target / "bin"), os.environ.get("PATH", os.defpath)])
    return {**variables, "PATH": path, "CONDA_PREFIX": str(target)}


def _build(lock: Lock, staging: Path, target: Path, packages: Path | None, descriptor: int) -> None:
    """Make an environment for use at another path, which is written into its files."""
    conda = tuple(package for package in lock.packages if package.manager == "conda")
    wheels = tuple(package for package in lock.packages if package.manager == "pip")
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    try:
        run_helper(
            "install",
            lock=attrs.evolve(lock, packages=conda).text,
            platform=conda[0].platform,
            folders={
                "staging": str(staging),
                "prefix": str(target),
                "cache": str(cache),
                "bundle": str(Path(packages).absolute()) if packages is not None else None,
            },
            pass_fds=[descriptor],
        )
    except ToolError as error:
        raise OSError(f"the conda packages cannot be installed: {error}") from error
    install_wheels(staging / "bin" / "python", wheels, packages / WHEELS if packages is not None else None, descriptor)
    if wheels:
        _move_scripts(staging, target)


def _move_scripts(staging: Path, target: Path) -> None:
    """Let the commands that wheels brought name the interpreter where it will be: uv writes where it is."""
    for script in (staging / "bin").iterdir():
        if script.is_symlink() or not script.is_file():
            continue
        with script.open("rb") as file:
            head = file.read(2)
            text = head + file.read() if head == b"#!" else b""
        if str(staging).encode() in text:
            mode = script.stat().st_mode
            script.unlink()
            script.write_bytes(text.replace(str(staging).encode(), str(target).encode()))
            script.chmod(mode)
