"""How a requirement becomes a lock: conda packages by conda-lock, then those of a Python index beside them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs

from mlp_hookspecs import EnvironmentLock
from mlp_hookspecs.requirements import PLATFORM, normal_name, normal_python
from mlp_plugin_conda.conda_lock import lock_conda
from mlp_plugin_conda.locks import Lock, Package, read_lock
from mlp_plugin_conda.requirement import normal_channels, normal_packages, normal_pip, pip_name
from mlp_plugin_conda.tools import ToolError, run_helper
from mlp_plugin_conda.wheels import lock_wheels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlp_hookspecs import EnvironmentSpec

DEFAULT_CHANNELS: Final = ("conda-forge",)
"""Where packages come from, unless the requirement says it."""

_COMPLETE_CHANNELS: Final = frozenset({"conda-forge", "defaults", "main"})
"""Channels, and mirrors of them, that are known to have what the platform's worker needs: nobody has to look."""


@attrs.frozen
class _Wanted:
    """A requirement's parts, in normal form."""

    packages: Mapping[str, str]
    pip: Mapping[str, str]
    channels: tuple[str, ...]
    python: str | None
    default_python: str | None


def resolve(spec: EnvironmentSpec, platforms: Sequence[str]) -> EnvironmentLock:
    """Lock a requirement.

    Parameters
    ----------
    spec : EnvironmentSpec
        With ``packages``, ``channels``, ``python``, ``default_python`` and ``pip``.
    platforms : sequence of str
        The platforms, as conda names them.

    Returns
    -------
    EnvironmentLock
        Every package's exact file, for each platform; what the platform's worker needs is among them.

    Raises
    ------
    ValueError
        Where there is no answer.
    OSError
        Where that cannot be found out.
    """
    wanted = _read(spec)
    platforms = sorted(set(platforms))
    lock = _resolve(wanted, platforms) if spec.base is None else _add(wanted, platforms, _base(spec.base, platforms))
    if not lock.python:
        raise ValueError(
            "the channels have no one version of Python for all platforms; ask for one: @conda(python=...)"
        )
    return EnvironmentLock(spec.backend, lock.text, lock.python, lock.platforms, lock.versions)


def _read(spec: EnvironmentSpec) -> _Wanted:
    """Return a requirement's parts."""
    given: dict[str, Any] = dict(spec.requirement)
    wanted = _Wanted(
        packages=normal_packages(given.pop("packages", {})),
        pip=normal_pip(given.pop("pip", {})),
        channels=normal_channels(tuple(given.pop("channels", ()))),
        python=None if given.get("python") is None else normal_python(given["python"]),
        default_python=None if given.get("default_python") is None else normal_python(given["default_python"]),
    )
    unknown = sorted(given.keys() - {"python", "default_python"})
    if unknown:
        raise ValueError(f"the requirement has {', '.join(unknown)}, which this version does not know")
    return wanted


def _resolve(wanted: _Wanted, platforms: Sequence[str]) -> Lock:
    """Lock a requirement that stands alone."""
    python = wanted.python or wanted.default_python
    if python is None:
        raise ValueError("the requirement names no version of Python: @conda(python=...)")
    channels = wanted.channels or DEFAULT_CHANNELS
    named = {pip_name(name) for name in wanted.pip} | {name.rpartition("::")[2] for name in wanted.packages}
    floors = conda_floors(channels, platforms, [name for name in PLATFORM if name not in named])
    packages = {name: _with_floor(name.rpartition("::")[2], version) for name, version in wanted.packages.items()}
    packages |= {name: PLATFORM[name] for name in floors}
    pip = {name: _with_floor(pip_name(name), version) for name, version in wanted.pip.items()}
    pip |= {name: version for name, version in PLATFORM.items() if name not in floors and name not in named}
    specs = [_python_spec(python), *(f"{name} {version}".strip() for name, version in packages.items())]
    try:
        lock = lock_conda(dict.fromkeys(platforms, specs), channels)
        return _with_wheels(lock, pip)
    except ValueError as error:
        raise ValueError(f"{error}{_floor_hint(named)}") from error


def conda_floors(channels: Sequence[str], platforms: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return what of the worker's needs the channels have; the rest is taken from the Python index."""
    if not names or any(channel.rpartition("/")[2] in _COMPLETE_CHANNELS for channel in channels):
        return list(names)
    specs = {f"{name} {PLATFORM[name]}": name for name in names}
    try:
        found = run_helper("available", channels=list(channels), platforms=list(platforms), specs=list(specs))
    except ToolError as error:
        raise OSError(f"the channels cannot be read: {error}") from error
    return [specs[spec] for spec in found]


def _with_floor(name: str, version: str) -> str:
    """Return a specifier that also holds what the worker needs of a package."""
    if name not in PLATFORM:
        return version
    number, _, build = version.partition(" ")
    return f"{number},{PLATFORM[name]}".removeprefix(",") + (f" {build}" if build else "")


def _floor_hint(named: set[str]) -> str:
    """Return a word on what the worker needs, where the user asks for a version of the same package."""
    own = [name + version for name, version in PLATFORM.items() if name in named]
    return f" (every environment has {', '.join(own)}, which the platform itself needs)" if own else ""


def _python_spec(python: str) -> str:
    """Return conda's specifier of an interpreter."""
    return f"python {python}.*" if python.count(".") == 1 else f"python =={python}"


def _with_wheels(lock: Lock, pip: Mapping[str, str]) -> Lock:
    """Return a lock of conda packages with the wheels that are wanted beside them."""
    for platform in lock.platforms:
        if not any(package.name == "python" for package in lock.on(platform)):
            raise ValueError(f"there is no Python in the answer for {platform}")
    wheels = lock_wheels(pip, lock.packages, lock.platforms)
    return attrs.evolve(lock, packages=(*lock.packages, *wheels))


# -------------------------------------------------------------------------------------------------- additions


def _base(base: EnvironmentLock, platforms: Sequence[str]) -> Lock:
    """Return what is added to, which has to hold for the platforms."""
    lock = read_lock(base.content)
    missing = sorted(set(platforms) - set(lock.platforms))
    if missing:
        raise ValueError(f"the environment that is added to holds for {', '.join(lock.platforms)}, not {missing[0]}")
    return lock


def _add(wanted: _Wanted, platforms: Sequence[str], base: Lock) -> Lock:
    """Lock a requirement that is added to an environment; every package in that keeps its exact file."""
    held = [package for package in base.packages if package.platform in platforms]
    _check_python(wanted.python, held)
    channels = tuple(dict.fromkeys((*base.channels, *wanted.channels)))
    asked = {name.rpartition("::")[2]: f"{name} {version}".strip() for name, version in wanted.packages.items()}
    specs = {platform: list(asked.values()) for platform in platforms}
    for package in held:
        if package.manager == "conda":
            listed = specs[package.platform]
            # conda-lock knows one specifier for each name.
            if package.name in asked:
                listed.remove(asked[package.name])
            listed.append(_pin(package, asked.get(package.name, "")))
    pip = {package.name: f"=={package.version}" for package in held if package.manager == "pip"}
    for name, version in wanted.pip.items():
        pin_of = pip.pop(pip_name(name), "")
        pip[name] = ",".join(part for part in (version, pin_of) if part)
    try:
        lock = _with_wheels(lock_conda(specs, channels), pip)
    except ValueError as error:
        raise ValueError(f"{error} ({_pins_named(held, wanted, str(error))})") from error
    return attrs.evolve(lock, packages=_kept(lock.packages, held))


def _check_python(asked: str | None, held: Sequence[Package]) -> None:
    """Refuse another interpreter than the one that is there."""
    for package in held:
        if package.name == "python" and asked is not None and not f"{package.version}.".startswith(f"{asked}."):
            raise ValueError(
                f"Python {asked} is asked for, but the environment that is added to pins python {package.version}"
            )


def _pin(package: Package, asked: str) -> str:
    """Return conda's specifier of one exact package, which also has to meet what is asked for."""
    _, _, rest = asked.partition(" ")
    version, _, build = rest.partition(" ")
    if build and not fnmatch.fnmatchcase(package.build, build):
        raise ValueError(
            f"{asked} is asked for, but the environment that is added to pins {package.name} {package.version} "
            f"{package.build}"
        )
    return f"{package.name} {version and version + ','}=={package.version} {package.build}"


def _pins_named(held: Sequence[Package], wanted: _Wanted, error: str) -> str:
    """Return a word on the pins that an error is about."""
    asked = {name.rpartition("::")[2] for name in wanted.packages} | {pip_name(name) for name in wanted.pip}
    words = set(re.findall(r"[A-Za-z0-9_.-]+", error))
    pins = sorted({f"{p.name} {p.version}" for p in held if normal_name(p.name) in {*asked, *words}})
    return f"the environment that is added to pins {', '.join(pins) or f'{len(held)} packages'}"


def _kept(packages: Sequence[Package], held: Sequence[Package]) -> tuple[Package, ...]:
    """Return packages with those that were there before exactly as they were."""
    found = {(package.platform, package.name): package for package in packages}
    for package in held:
        now = found.get((package.platform, package.name))
        if now is None or now.version != package.version:
            raise ValueError(
                f"the environment that is added to pins {package.name} {package.version}, and with the additions it "
                f"would be {'gone' if now is None else now.version} on {package.platform}"
            )
        if now.manager == package.manager:
            found[package.platform, package.name] = package
    return tuple(found.values())
