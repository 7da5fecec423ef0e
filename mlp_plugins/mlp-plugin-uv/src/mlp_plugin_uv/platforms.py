"""Which packages and files of a lock are for which platform."""

from __future__ import annotations

import platform as host
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from packaging.tags import Tag

_MACHINES: Final = {
    "linux-64": ("linux", "x86_64"),
    "linux-aarch64": ("linux", "aarch64"),
    "osx-64": ("darwin", "x86_64"),
    "osx-arm64": ("darwin", "arm64"),
}
_GLIBC: Final = range(40, 4, -1)
"""The versions 2.x of glibc that wheels are built for, the newest first."""

_USUAL_GLIBC: Final = 28
"""A host is taken to have at least this one; a wheel for a newer one is only used where there is no other."""

_MACOS: Final = (15, 0)


def this_platform() -> str:
    """Return the platform that this process runs on, such as ``linux-64``."""
    found = (sys.platform, host.machine())
    return next((name for name, machine in _MACHINES.items() if machine == found), "-".join(found))


def check_platform(platform: str) -> None:
    """Raise ValueError where a platform is not known."""
    if platform not in _MACHINES:
        raise ValueError(f"platform {platform!r} is not known; known are {', '.join(_MACHINES)}")


def is_needed(marker: str, platform: str, python: str) -> bool:
    """Tell whether a package with a marker is needed on a platform, under any release of the lock's Python."""
    if not marker:
        return True
    from packaging.markers import Marker

    system, machine = _MACHINES[platform]
    parsed = Marker(marker)
    releases = [python] if python.count(".") == 2 else [f"{python}.0", f"{python}.99"]  # noqa: PLR2004 # major.minor.micro
    return any(
        parsed.evaluate(
            {
                "implementation_name": "cpython",
                "implementation_version": release,
                "os_name": "posix",
                "platform_machine": machine,
                "platform_python_implementation": "CPython",
                "platform_release": "",
                "platform_system": system.capitalize(),
                "platform_version": "",
                "python_full_version": release,
                "python_version": ".".join(release.split(".")[:2]),
                "sys_platform": system,
                "extra": "",
            }
        )
        for release in releases
    )


def tags_of(platform: str, python: str) -> tuple[Tag, ...]:
    """Return the tags of the wheels that can be used on a platform, the best first."""
    from packaging import tags

    system, machine = _MACHINES[platform]
    version = tuple(map(int, python.split(".")[:2]))
    if system == "darwin":
        platforms = list(tags.mac_platforms(_MACOS, machine))
    else:
        usual = [minor for minor in _GLIBC if minor <= _USUAL_GLIBC]
        newer = [minor for minor in reversed(_GLIBC) if minor > _USUAL_GLIBC]
        older = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
        platforms = [
            name
            for minor in [*usual, *newer]
            for name in (f"manylinux_2_{minor}_{machine}", *([f"{older[minor]}_{machine}"] if minor in older else ()))
        ]
        platforms.append(f"linux_{machine}")
    interpreter = "cp" + "".join(map(str, version))
    return (
        *tags.cpython_tags(version, platforms=platforms),
        *tags.compatible_tags(version, interpreter, platforms),
    )


def best_wheel(names: Iterable[str], tags: Sequence[Tag]) -> str | None:
    """Return the best of wheels by their names; None where none can be used."""
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    ranks = {tag: rank for rank, tag in reversed(list(enumerate(tags)))}
    best: tuple[int, str] | None = None
    for name in names:
        if not name.endswith(".whl"):
            continue
        try:
            found = min((ranks[tag] for tag in parse_wheel_filename(name)[3] if tag in ranks), default=None)
        except InvalidWheelFilename:
            continue
        if found is not None and (best is None or found < best[0]):
            best = (found, name)
    return best[1] if best else None


def is_portable(wheel: str) -> bool:
    """Tell whether a wheel, by its name, holds nothing compiled."""
    return wheel.endswith("-none-any.whl")
