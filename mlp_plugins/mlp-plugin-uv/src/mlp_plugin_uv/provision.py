"""How a lock becomes an interpreter: an environment in a folder named by the lock's digest, whole or not there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mlp_hookspecs import ProvisionedEnvironment
from mlp_hookspecs.provisioning import has_python, make_once
from mlp_plugin_uv.locks import Lock, Pin, read_lock, write_pins
from mlp_plugin_uv.tool import NO_DOWNLOADS, UvError, index_arguments, run_uv, run_uv_under

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        A folder with a bundle, or with the lock's own packages.

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
        contents = read_lock(lock.content)
    except ValueError as error:
        raise OSError(f"the lock is damaged or of an unknown version: {error}") from error
    target = Path(root).absolute() / lock.digest
    folder = None if packages is None else Path(packages).absolute()
    make_once(target, lambda staging, descriptor: _build(staging, contents, folder, descriptor), has_python)
    binaries = str(target / "bin")
    # Commands that the packages bring are found by the step's subprocesses, as in an activated environment.
    path = os.pathsep.join([binaries, os.environ.get("PATH", os.defpath)])
    variables = {"PATH": path, "VIRTUAL_ENV": str(target)}
    return ProvisionedEnvironment(str(target / "bin" / "python"), variables, has_platform=False)


def _build(folder: Path, lock: Lock, packages: Path | None, descriptor: int) -> None:
    """Make an environment."""
    try:
        _make_venv(folder, lock.python, descriptor)
        _install(folder, lock, packages, descriptor)
    except UvError as error:
        raise OSError(f"uv cannot make the environment{_reason(error)}: {error}") from error


def _reason(error: UvError) -> str:
    """Return a word on why an environment cannot be made, where uv's own explanation speaks of something else."""
    text = str(error)
    if "Hash mismatch" in text:
        return ", since a file on the index is not the one that the lock names"
    if "unsatisfiable" in text and "network was disabled" not in text:
        return ", since the index no longer has what the lock names"
    return ""


def _make_venv(folder: Path, python: str, descriptor: int) -> None:
    """Make an environment without packages."""
    run_uv_under(python, ["venv", "--relocatable", "--no-project", NO_DOWNLOADS, str(folder)], pass_fds=[descriptor])


def _install(environment: Path, lock: Lock, packages: Path | None, descriptor: int) -> None:
    """Link the packages into an environment."""
    from mlp_plugin_uv.bundle import check_bundle, is_bundle

    arguments = ["pip", "install", "--no-deps", "--require-hashes", NO_DOWNLOADS]
    arguments += ["--python", str(environment / "bin" / "python"), "--requirements", "-"]
    if packages is not None and is_bundle(packages):
        pins = check_bundle(lock, packages)
        _install_from(arguments, pins, packages, descriptor)
        _keep([packages / pin.wheel for pin in pins if pin.wheel])
        return
    if lock.own:
        _install_own(arguments, lock.own, packages, descriptor)
    published = [pin for pin in lock.pins if not pin.wheel]
    arguments += index_arguments(lock.index, lock.extra_indexes)
    # From uv's cache alone where it has them all, which saves every request. What it remembers of an index may be
    # older than the lock.
    for further in (["--offline"], [], ["--refresh"]):
        try:
            run_uv([*arguments, *further], stdin=write_pins(published), pass_fds=[descriptor])
        except UvError:
            if further == ["--refresh"]:
                raise
        else:
            return


def _install_own(arguments: Sequence[str], pins: Sequence[Pin], packages: Path | None, descriptor: int) -> None:
    """Install packages that no index has: from a folder, or as they were kept on this host."""
    from mlp_plugin_uv.own import find_wheel, missing_wheels
    from mlp_plugin_uv.sources import sha256_of

    found: list[Path] = []
    missing: list[Pin] = []
    for pin in pins:
        given = None if packages is None else packages / pin.wheel
        if given is not None and given.is_file():
            if f"sha256:{sha256_of(given)}" not in pin.hashes:
                raise OSError(f"{pin.wheel} is not the file that the lock names: its hash is {sha256_of(given)}")
            found.append(given)
        elif (kept := find_wheel(pin)) is not None:
            found.append(kept)
        else:
            missing.append(pin)
    if missing:
        raise OSError(f"the lock has packages of its own that are not here: {missing_wheels(missing)}")
    with tempfile.TemporaryDirectory(prefix="mlp-own-") as folder:
        for wheel in found:
            (Path(folder) / wheel.name).symlink_to(wheel)
        _install_from(arguments, pins, Path(folder), descriptor)
    _keep(found)


def _keep(wheels: Sequence[Path]) -> None:
    """Keep own packages, so that more can be added to the environment on this host too, if it has room for them."""
    from mlp_plugin_uv.own import keep_wheel

    with contextlib.suppress(OSError):
        for wheel in wheels:
            keep_wheel(wheel)


def _install_from(arguments: Sequence[str], pins: Sequence[Pin], folder: Path, descriptor: int) -> None:
    """Install packages from files in a folder, with no network."""
    # As a URL: in a path uv takes a comma for the end of it.
    offline = ["--offline", "--no-index", "--find-links", folder.as_uri()]
    run_uv([*arguments, *offline], stdin=write_pins(pins), pass_fds=[descriptor])
