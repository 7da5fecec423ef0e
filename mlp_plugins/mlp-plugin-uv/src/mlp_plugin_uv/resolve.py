"""How a requirement becomes a lock: uv resolves it once, for every platform."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlp_hookspecs import EnvironmentLock
from mlp_plugin_uv.locks import read_pins, write_lock
from mlp_plugin_uv.requirement import PLATFORM, normal_packages, normal_python
from mlp_plugin_uv.tool import NO_DOWNLOADS, UvError, find_python, missing_python, run_uv

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlp_hookspecs import EnvironmentSpec


def resolve(spec: EnvironmentSpec) -> EnvironmentLock:
    """Lock a requirement.

    Parameters
    ----------
    spec : EnvironmentSpec
        With ``packages``, a version specifier for each name, and ``python``.

    Returns
    -------
    EnvironmentLock
        Exact versions with hashes, for any platform; what the platform's worker needs is among them.

    Raises
    ------
    ValueError
        Where there is no such interpreter, or uv finds no answer.
    """
    wanted: dict[str, Any] = dict(spec.requirement)
    packages = normal_packages(wanted.pop("packages", {}))
    python = normal_python(wanted.pop("python", None))
    if wanted:
        raise ValueError(f"the requirement has {', '.join(sorted(wanted))}, which this version does not know")
    interpreter = find_python(python)
    if interpreter is None:
        raise ValueError(missing_python(python))
    lines = [name + version for source in (packages, PLATFORM) for name, version in source.items()]
    try:
        answer = _compile(lines, python, interpreter)
    except UvError as error:
        raise ValueError(f"{error}{_platform_hint(packages)}") from error
    return EnvironmentLock(spec.backend, write_lock(python, read_pins(answer)), python)


def _compile(lines: list[str], python: str, interpreter: str) -> str:
    """Return uv's answer; where it cannot reach an index, the one that follows from what it has in its cache."""
    arguments = ["pip", "compile", "-", "--universal", "--generate-hashes", "--no-header", "--no-annotate"]
    arguments += ["--python", interpreter, "--python-version", python, NO_DOWNLOADS]
    text = "\n".join(lines) + "\n"
    try:
        return run_uv(arguments, stdin=text)
    except UvError as error:
        if error.status == 1:
            raise
        try:
            return run_uv([*arguments, "--offline"], stdin=text)
        except UvError:
            raise error from None


def _platform_hint(packages: Mapping[str, str]) -> str:
    """Return a word on what the platform needs, where the user asks for a version of the same package."""
    own = [name + version for name, version in PLATFORM.items() if name in packages]
    return f" (every environment has {', '.join(own)}, which the platform itself needs)" if own else ""
