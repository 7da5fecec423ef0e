"""How packages of a Python index are locked and installed beside conda's: both by uv.

conda-lock's own resolver is not used for them: it wants conda's package pip in every environment, and knows nothing of
uv's configuration, in which the user's indexes and credentials are. What conda provides is kept: a package that is
there already is neither installed again nor taken in another version.
"""

from __future__ import annotations

import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlp_hookspecs.requirements import normal_name
from mlp_plugin_conda.locks import Package
from mlp_plugin_conda.requirement import pip_name
from mlp_plugin_conda.tools import ToolError, find_uv, run_uv

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

TARGETS: Final = {
    "linux-64": "x86_64-manylinux_2_28",
    "linux-aarch64": "aarch64-manylinux_2_28",
    "osx-64": "x86_64-apple-darwin",
    "osx-arm64": "aarch64-apple-darwin",
}
"""uv's names of the platforms; the version of glibc is the one that conda-lock takes for granted too."""

_ABSENT: Final = "python_version < '3'"
"""A marker that holds nowhere."""


def lock_wheels(wanted: Mapping[str, str], conda: Sequence[Package], platforms: Sequence[str]) -> tuple[Package, ...]:
    """Lock packages of a Python index for environments that have conda packages already.

    Parameters
    ----------
    wanted : mapping of str to str
        A specifier for each name.
    conda : sequence of Package
        The conda packages of all platforms, Python among them.
    platforms : sequence of str
        The platforms.

    Returns
    -------
    tuple of Package
        One wheel for each package and platform.

    Raises
    ------
    ValueError
        Where there is no answer.
    OSError
        Where the index cannot be reached.
    """
    if not wanted:
        return ()
    unknown = [platform for platform in platforms if platform not in TARGETS]
    if unknown:
        names = ", ".join(map(pip_name, wanted))
        raise ValueError(
            f"{names} cannot be taken from a Python index for {', '.join(unknown)}, only as conda packages"
        )

    def one(platform: str) -> list[Package]:
        return _lock_for(wanted, [package for package in conda if package.platform == platform], platform)

    # Once, here: sysconfig, which is asked for the place, is not ready for threads that ask for the first time.
    find_uv()
    with ThreadPoolExecutor(max_workers=len(platforms)) as pool:
        return tuple(package for packages in pool.map(one, platforms) for package in packages)


def _lock_for(wanted: Mapping[str, str], conda: Sequence[Package], platform: str) -> list[Package]:
    """Lock for one platform."""
    python = next(package.version for package in conda if package.name == "python")
    # Only what depends on Python can be a Python package; libraries have names of their own.
    provided = {normal_name(package.name): package.version for package in conda if "python" in package.dependencies}
    constraints = [f"{name}=={version}" for name, version in provided.items()]
    found = _compile(wanted, python, platform, constraints=constraints)
    again = sorted(provided.keys() & {normal_name(entry["name"]) for entry in found})
    if again:
        # Conda's packages meet the requirements; now without them, and without what only they need.
        pins = [f"{entry['name']}=={entry['version']}" for entry in found]
        rest = {name: version for name, version in wanted.items() if pip_name(name) not in again}
        overrides = [f"{name} ; {_ABSENT}" for name in again]
        found = _compile(rest, python, platform, constraints=pins, overrides=overrides) if rest else []
    return [_package(entry, platform, python) for entry in found]


def _compile(
    wanted: Mapping[str, str],
    python: str,
    platform: str,
    *,
    constraints: Iterable[str],
    overrides: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Return the packages of uv's answer; where it cannot reach an index, of the one that follows from its cache."""
    with tempfile.TemporaryDirectory(prefix="mlp-conda-") as folder:
        files = {"--constraints": constraints, "--overrides": overrides}
        arguments = ["pip", "compile", "-", "--format", "pylock.toml", "--no-header", "--only-binary", ":all:"]
        arguments += ["--python-version", python, "--python-platform", TARGETS[platform]]
        arguments += ["--python", sys.executable]
        for option, lines in files.items():
            path = Path(folder, option.strip("-"))
            path.write_text("".join(f"{line}\n" for line in lines))
            arguments += [option, str(path)]
        text = "".join(f"{name}{version}\n" for name, version in wanted.items())
        try:
            answer = run_uv(arguments, stdin=text)
        except ToolError as error:
            if error.status == 1:
                raise ValueError(f"the Python packages for {platform} cannot be met: {error}") from error
            try:
                answer = run_uv([*arguments, "--offline"], stdin=text)
            except ToolError:
                raise OSError(f"the Python packages for {platform} cannot be looked up: {error}") from error
    packages: list[dict[str, Any]] = tomllib.loads(answer).get("packages", [])
    return packages


def _package(entry: Mapping[str, Any], platform: str, python: str) -> Package:
    """Return uv's entry of a package with the best of its wheels."""
    from packaging.utils import parse_wheel_filename

    ranks = {tag: rank for rank, tag in enumerate(_tags(platform, python))}
    best: tuple[int, str, str] | None = None
    for wheel in entry.get("wheels", ()):
        url = wheel.get("url", "")
        name = wheel.get("name") or url.rpartition("/")[2].replace("%2B", "+")
        fits = [ranks[tag] for tag in parse_wheel_filename(name)[3] if tag in ranks]
        if fits and "sha256" in wheel["hashes"] and url:
            candidate = (min(fits), url, wheel["hashes"]["sha256"])
            best = min(best, candidate) if best is not None else candidate
    if best is None:
        raise ValueError(f"{entry['name']} {entry['version']} has no wheel with a sha256 for {platform}")
    return Package(normal_name(entry["name"]), str(entry["version"]), "pip", platform, best[1], best[2])


def _tags(platform: str, python: str) -> Iterable[Any]:
    """Yield the tags of wheels that a platform takes, the best first."""
    from packaging.tags import compatible_tags, cpython_tags, mac_platforms

    version = [int(part) for part in python.split(".")[:2]]
    arch = TARGETS[platform].partition("-")[0]
    if platform.startswith("linux"):
        manylinux = [f"manylinux_2_{minor}_{arch}" for minor in range(28, 4, -1)]
        legacy = {17: "2014", 12: "2010", 5: "1"}
        names = [*manylinux, *(f"manylinux{name}_{arch}" for name in legacy.values()), f"linux_{arch}"]
    else:
        names = list(mac_platforms((13, 0), "arm64" if arch == "aarch64" else arch))
    yield from cpython_tags(version, platforms=names)
    yield from compatible_tags(version, f"cp{version[0]}{version[1]}", names)


def install_wheels(python: Path, packages: Sequence[Package], folder: Path | None, descriptor: int) -> None:
    """Install wheels into an environment: from uv's cache alone where it has them all.

    Parameters
    ----------
    python : pathlib.Path
        The environment's interpreter.
    packages : sequence of Package
        The wheels.
    folder : pathlib.Path or None
        Where their files lie; None fetches those that uv does not have.
    descriptor : int
        A descriptor that uv keeps open until it ends.

    Raises
    ------
    OSError
        Where it fails, above all because a file does not have its hash.
    """
    if not packages:
        return
    arguments = ["pip", "install", "--no-deps", "--require-hashes", "--break-system-packages"]
    arguments += ["--only-binary", ":all:", "--python", str(python), "--requirements", "-"]
    if folder is not None:
        lines = [f"{package.name}=={package.version} --hash=sha256:{package.sha256}" for package in packages]
        # As a URL: in a path uv takes a comma for the end of it.
        attempts = [["--no-index", "--find-links", folder.absolute().as_uri(), "--offline"]]
    else:
        lines = [f"{package.name} @ {package.url} --hash=sha256:{package.sha256}" for package in packages]
        attempts = [["--offline"], []]
    text = "".join(f"{line}\n" for line in lines)
    for number, further in enumerate(attempts, start=1):
        try:
            run_uv([*arguments, *further], stdin=text, pass_fds=[descriptor])
        except ToolError as error:
            if number == len(attempts):
                raise OSError(f"the Python packages cannot be installed: {error}") from error
        else:
            return
