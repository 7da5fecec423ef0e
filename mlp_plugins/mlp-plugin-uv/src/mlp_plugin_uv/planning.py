"""How a step's decorators become a requirement: files are read, and what a flow and a step ask for is united."""

from __future__ import annotations

import hashlib
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from mlp_hookspecs import EnvironmentSpec
from mlp_plugin_uv.files import indexes_of, merged, read_file
from mlp_plugin_uv.options import BACKEND, Pypi, PypiBase, Uv
from mlp_plugin_uv.requirement import Project, Requirement, Source
from mlp_plugin_uv.sources import boundary_of, digest_of, project_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlp_hookspecs import Option

_LOCK: Final = "uv.lock"


def plan(options: Sequence[Option], flow_file: str) -> EnvironmentSpec | None:
    """Return the environment that a step asks for.

    Parameters
    ----------
    options : sequence of Option
        All options of the step.
    flow_file : str
        The flow's file.

    Returns
    -------
    EnvironmentSpec or None
        The requirement; None where the step asks for none.

    Raises
    ------
    ValueError
        Where a file is not there or asks for something that is refused, or two decorators contradict each other.
    """
    step = next((option for option in options if type(option) is Pypi), None)
    base = next((option for option in options if isinstance(option, PypiBase)), None)
    project = next((option for option in options if isinstance(option, Uv)), None)
    if project is not None and project.disabled:
        project = None
    if step is not None and step.disabled:
        return None
    if base is not None and base.disabled:
        base = None
    wanted = [option for option in (step, base) if option is not None]
    if not wanted and project is None:
        return None
    if project is not None and any(option.file for option in wanted):
        raise ValueError("a step has either @uv or @pypi(file=...): both say what the whole environment is")
    return EnvironmentSpec(BACKEND, _requirement(_united(wanted), project, Path(flow_file)).to_data())


def _united(options: Sequence[Pypi]) -> Pypi:
    """Return what a step and its flow ask for; the step's comes first."""
    if not options:
        return Pypi()
    first, *others = options
    for other in others:
        # A name with extras stands for the same package.
        names = {name.partition("[")[0] for name in first.packages}
        left = {name: v for name, v in other.packages.items() if name.partition("[")[0] not in names}
        fields = {field.name: getattr(first, field.name) or getattr(other, field.name) for field in attrs.fields(Pypi)}
        if first.file:
            fields |= {"extras": first.extras, "groups": first.groups}
        first = Pypi(**{**fields, "packages": {**left, **first.packages}})
    return first


def _requirement(wanted: Pypi, uv: Uv | None, flow_file: Path) -> Requirement:
    """Return what the decorators ask for, with what their files say."""
    asked = wanted.python or (uv.python if uv is not None else None)
    python = asked or f"{sys.version_info.major}.{sys.version_info.minor}"
    own = Requirement(
        python,
        is_default=asked is None,
        packages=wanted.packages,
        index=wanted.index,
        extra_indexes=wanted.extra_indexes,
    )
    if uv is not None:
        read = _read_project(uv, flow_file)
    elif wanted.file is not None:
        place = _place(flow_file, f"file={wanted.file!r}")
        read = read_file(place.parent / wanted.file, boundary_of(place), wanted.extras, wanted.groups)
    elif wanted.extras or wanted.groups:
        raise ValueError("extras and groups are those of a pyproject.toml: give it as file='pyproject.toml'")
    else:
        return own
    _check_python(python, read.python, is_default=asked is None)
    return merged(own, read)


def _read_project(uv: Uv, flow_file: Path) -> Requirement:
    """Return what a whole project asks for."""
    place = _place(flow_file, "@uv")
    folder = (place.parent / uv.project).resolve() if uv.project is not None else project_of(place)
    if folder is None or not (folder / "pyproject.toml").is_file():
        where = f"in {str(folder)!r}" if folder is not None else f"in a folder above {str(place)!r}"
        raise ValueError(f"there is no pyproject.toml {where}: @uv needs a project")
    lock = next((above / _LOCK for above in (folder, *folder.parents) if (above / _LOCK).is_file()), None)
    if lock is None:
        return read_file(folder / "pyproject.toml", boundary_of(folder / "pyproject.toml"), uv.extras, uv.groups)
    project, table = _read_toml(folder / "pyproject.toml"), _read_toml(lock)
    digest = hashlib.sha256()
    for file in (folder / "pyproject.toml", lock.parent / "pyproject.toml", lock):
        digest.update(file.read_bytes() if file.is_file() else b"")
    index, extra_indexes = indexes_of(project.get("tool", {}).get("uv", {}), explicit=True)
    return Requirement(
        str(project.get("project", {}).get("requires-python", "")),
        sources=_local_sources(table, lock.parent, folder),
        index=index,
        extra_indexes=tuple(extra_indexes),
        project=Project(str(folder), f"sha256-{digest.hexdigest()}", uv.extras, uv.groups),
    )


def _local_sources(lock: dict[str, Any], root: Path, project: Path) -> dict[str, Source]:
    """Return the local sources in a ``uv.lock``, but for the project itself."""
    found = {}
    for package in lock.get("package", ()):
        source = package.get("source", {})
        kind = next((kind for kind in ("editable", "directory", "path") if kind in source), None)
        if kind is not None:
            path = (root / source[kind]).resolve()
            if path != project and path.exists():
                found[str(path)] = Source(digest_of(path))
    return dict(sorted(found.items()))


def _place(flow_file: Path, what: str) -> Path:
    """Return the flow's file, which must be one."""
    place = flow_file.absolute()
    if not flow_file.name or not place.is_file():
        raise ValueError(f"{what} is looked for beside the flow's file, and the flow has none: {str(flow_file)!r}")
    return place


def _read_toml(path: Path) -> dict[str, Any]:
    """Return a file's table."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}") from error


def _check_python(python: str, allowed: str, *, is_default: bool) -> None:
    """Refuse an interpreter that a file excludes."""
    if not allowed:
        return
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        specifiers = SpecifierSet(allowed)
    except InvalidSpecifier as error:
        raise ValueError(f"requires-python is {allowed!r}, which is no range of versions") from error
    releases = [python] if python.count(".") == 2 else [f"{python}.{micro}" for micro in range(100)]  # noqa: PLR2004 # major.minor.micro
    if not any(specifiers.contains(release, prereleases=True) for release in releases):
        whose = "that of the interpreter which starts the run" if is_default else "asked for"
        raise ValueError(f"the file requires Python {allowed}, and {python} is {whose}: give another as python='3.x'")
