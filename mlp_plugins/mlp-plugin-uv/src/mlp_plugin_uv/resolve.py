"""How a requirement becomes a lock: uv resolves it once, for every platform."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from mlp_hookspecs import EnvironmentLock
from mlp_hookspecs.requirements import PLATFORM, normal_name
from mlp_plugin_uv.locks import Lock, Pin, make_pin, read_lock, write_lock
from mlp_plugin_uv.own import Workshop, find_wheel
from mlp_plugin_uv.platforms import is_portable, this_platform
from mlp_plugin_uv.pylock import Entry, read_entries
from mlp_plugin_uv.requirement import Requirement
from mlp_plugin_uv.tool import NO_DOWNLOADS, UvError, index_arguments, run_uv_under

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mlp_hookspecs import EnvironmentSpec

_RENEW: Final = "uv lock --project {}"


def resolve(spec: EnvironmentSpec, platforms: Sequence[str]) -> EnvironmentLock:
    """Lock a requirement.

    Parameters
    ----------
    spec : EnvironmentSpec
        A `Requirement` as data, and what it is added to.
    platforms : sequence of str
        The platforms that the lock must hold for. It holds for any, unless a package of its own was compiled.

    Returns
    -------
    EnvironmentLock
        Exact versions with hashes; what the platform's worker needs is among them.

    Raises
    ------
    ValueError
        Where there is no such interpreter, or no answer.
    OSError
        Where something cannot be fetched.
    """
    wanted = Requirement.from_data(spec.requirement)
    base = _read_base(spec.base) if spec.base is not None else None
    resolver = _Resolver(wanted, _python(wanted, base), base)
    lock = resolver.answer()
    held = _platforms(lock, spec.base, base)
    others = sorted(set(platforms) - set(held)) if held else []
    if others:
        compiled = ", ".join(pin.wheel for pin in lock.own if not is_portable(pin.wheel))
        raise ValueError(
            f"{compiled} was compiled from a source for {', '.join(held)}, and is asked for {', '.join(others)}:"
            " publish wheels for the other platforms in an index"
        )
    return EnvironmentLock(
        spec.backend, write_lock(lock), lock.python, held, packages=lock.versions, has_own_packages=bool(lock.own)
    )


def _read_base(base: EnvironmentLock) -> Lock:
    """Return what the base says."""
    try:
        return read_lock(base.content)
    except ValueError as error:
        raise ValueError(f"the base's lock is damaged or of an unknown version: {error}") from error


def _platforms(lock: Lock, base: EnvironmentLock | None, base_lock: Lock | None) -> tuple[str, ...]:
    """Return the platforms that a lock holds for: this one, where a package of its own is compiled; empty for any."""
    held = base.platforms if base is not None else ()
    before = set(base_lock.own) if base_lock is not None else set()
    compiled = [pin.wheel for pin in lock.own if not is_portable(pin.wheel) and pin not in before]
    if not compiled:
        return held
    here = this_platform()
    if held and here not in held:
        raise ValueError(
            f"{', '.join(compiled)} was compiled for {here}, and the base environment is for {', '.join(held)} alone"
        )
    return (here,)


def _python(wanted: Requirement, base: Lock | None) -> str:
    """Return the version of the interpreter: the base's, where there is one."""
    if base is None:
        return wanted.python
    if not wanted.is_default and not f"{base.python}.".startswith(f"{wanted.python}."):
        raise ValueError(
            f"the base environment has Python {base.python}, and the addition asks for {wanted.python}: an addition"
            " keeps the base's Python; leave python= out, or resolve an environment of its own"
        )
    return base.python


@attrs.frozen
class _Resolver:
    """Answers one requirement.

    Attributes
    ----------
    wanted : Requirement
        The requirement.
    python : str
        The interpreter's version.
    base : Lock or None
        What the requirement is added to.
    """

    wanted: Requirement
    python: str
    base: Lock | None

    def answer(self) -> Lock:
        """Return the lock."""
        taken = self._taken()
        fixed = self.base.pins if self.base is not None else taken
        if self.base is not None and taken:
            raise ValueError("a whole lock (pylock.toml, uv.lock) cannot be added to another environment")
        lines = self._lines(fixed)
        pins = fixed if not lines and fixed else self._compile(fixed, lines)
        index, extra = self._indexes()
        return Lock(self.python, tuple(sorted(self._restricted(pins))), index, extra)

    def _indexes(self) -> tuple[str | None, tuple[str, ...]]:
        """Return the indexes that the requirement and the base name."""
        if self.base is None:
            return self.wanted.index, self.wanted.extra_indexes
        extra = dict.fromkeys((*self.wanted.extra_indexes, *self.base.extra_indexes))
        return self.wanted.index or self.base.index, tuple(extra)

    # ------------------------------------------------------------------------------------ whole locks

    def _taken(self) -> tuple[Pin, ...]:
        """Return the packages of the lock that is to be taken as it is; nothing where there is none."""
        if self.wanted.project is not None:
            return self._pins(self._exported())
        return self._pins(self.wanted.pylock)

    def _exported(self) -> tuple[Entry, ...]:
        """Return the packages in the ``uv.lock`` of a project, which is not written."""
        project = self.wanted.project
        assert project is not None, "asked for by the caller"  # noqa: S101 # tells the type checker
        arguments = ["export", "--locked", "--format", "pylock.toml", "--no-emit-project", "--no-default-groups"]
        arguments += ["--no-header", NO_DOWNLOADS, "--project", project.path]
        arguments += [argument for extra in project.extras for argument in ("--extra", extra)]
        arguments += [argument for group in project.groups for argument in ("--group", group)]
        try:
            # Paths in the answer are relative to the working folder, or, by older versions of uv, to the project.
            return read_entries(run_uv_under(self.python, arguments, folder=project.path), Path(project.path))
        except UvError as error:
            if "needs to be updated" in str(error):
                raise ValueError(
                    f"uv.lock of {project.path} does not fit its pyproject.toml: renew it by"
                    f" `{_RENEW.format(project.path)}`"
                ) from error
            raise ValueError(f"uv.lock of {project.path} cannot be used: {error}") from error

    # ------------------------------------------------------------------------------------ resolving

    def _lines(self, fixed: Sequence[Pin]) -> list[str]:
        """Return what is to be resolved, as lines of a requirements file, without what the fixed packages meet."""
        from packaging.requirements import Requirement as Parsed

        asked = [name + version for name, version in self.wanted.packages.items()]
        lines = [*asked, *self.wanted.requirements, *(_source_line(p, s) for p, s in self._new_sources(fixed).items())]
        lines += [name + version for name, version in PLATFORM.items()]
        everywhere = {pin.name: pin for pin in fixed if not pin.marker}
        left = []
        for line in lines:
            parsed = Parsed(line) if not line.startswith("file:") else None
            pin = everywhere.get(normal_name(parsed.name)) if parsed is not None else None
            if pin is None or parsed is None or parsed.url or parsed.marker:
                left.append(line)
            elif not parsed.specifier.contains(pin.version, prereleases=True):
                raise ValueError(_conflict([pin], f"{line} is asked for", is_base=self.base is not None))
            elif parsed.extras:
                left.append(line)
        return left

    def _new_sources(self, fixed: Sequence[Pin]) -> Mapping[str, Any]:
        """Return the local sources that a lock which is taken does not hold already."""
        held = bool(fixed) and self.base is None
        return {} if held else self.wanted.sources

    def _compile(self, fixed: Sequence[Pin], lines: Sequence[str]) -> tuple[Pin, ...]:
        """Return fixed packages, unchanged, and what uv finds for the rest."""
        wheels = {pin: find_wheel(pin) for pin in fixed if pin.wheel}
        lines = [*(pin.requirement for pin in fixed if not pin.wheel), *lines]
        lines += [f"{pin.name} @ {wheel.as_uri()}" for pin, wheel in wheels.items() if wheel is not None]
        try:
            entries = self._ask(lines)
        except UvError as error:
            named = [pin for pin in fixed if re.search(rf"\b{re.escape(pin.name)}==", str(error))]
            if named:
                raise ValueError(_conflict(named, str(error), is_base=self.base is not None)) from error
            raise ValueError(f"{error}{_platform_hint(self.wanted.packages)}") from error
        own = {pin.name for pin in wheels}
        known = {pin.requirement for pin in fixed}
        everywhere = {f"{pin.name}=={pin.version}" for pin in fixed if not pin.marker}
        new = self._pins([entry for entry in entries if entry.name not in own])
        return (
            *fixed,
            *(p for p in new if p.requirement not in known and f"{p.name}=={p.version}" not in everywhere),
        )

    def _ask(self, lines: Sequence[str]) -> tuple[Entry, ...]:
        """Return uv's answer; where it cannot reach an index, the one that follows from what it has in its cache."""
        arguments = ["pip", "compile", "-", "--universal", "--generate-hashes", "--no-header"]
        arguments += ["--format", "pylock.toml"]
        arguments += ["--python-version", self.python, NO_DOWNLOADS, *index_arguments(*self._indexes())]
        text = "".join(f"{line}\n" for line in lines)
        if not self.wanted.constraints:
            return read_entries(self._run(arguments, text), Path.cwd())
        with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in self.wanted.constraints))
            file.flush()
            return read_entries(self._run([*arguments, "--constraints", file.name], text), Path.cwd())

    def _run(self, arguments: Sequence[str], text: str) -> str:
        """Run uv; where it cannot reach an index, it is to answer from its cache."""
        try:
            return run_uv_under(self.python, arguments, stdin=text)
        except UvError as error:
            if error.status == 1:
                raise
            try:
                return run_uv_under(self.python, [*arguments, "--offline"], stdin=text)
            except UvError:
                raise error from None

    def _pins(self, entries: Iterable[Entry]) -> tuple[Pin, ...]:
        """Return packages as a lock names them; what no index publishes is built."""
        index, extra = self._indexes()
        workshop = Workshop(self.python, index, extra)
        return tuple(
            workshop.build(self._as_given(entry), self.wanted.sources)
            if entry.is_built
            else make_pin(entry.name, entry.version, entry.marker, entry.hashes)
            for entry in entries
        )

    def _as_given(self, entry: Entry) -> Entry:
        """Return an entry with the hash that its URL was given with: not every uv says, or holds, that one."""
        head = re.compile(rf"{re.escape(entry.name)}(\[[^\]]*\])? @ ")
        lines = [line for line in self.wanted.requirements if entry.url and head.match(line)]
        given = {f"sha256:{match[1]}" for line in lines for match in re.finditer(r"[#&]sha256=([0-9a-f]{64})", line)}
        return attrs.evolve(entry, hashes=tuple(sorted(given))) if given else entry

    def _restricted(self, pins: Iterable[Pin]) -> list[Pin]:
        """Return packages with no other files than those that the requirement allows."""
        kept = []
        base = set(self.base.pins) if self.base is not None else set()
        for pin in pins:
            allowed = self.wanted.hashes.get(pin.name) if pin not in base else None
            if allowed is not None and not set(allowed) & set(pin.hashes):
                raise ValueError(
                    f"no file of {pin.name}=={pin.version} has a hash that the requirements file allows for it"
                )
            hashes = pin.hashes if allowed is None else tuple(sorted(set(allowed) & set(pin.hashes)))
            kept.append(attrs.evolve(pin, hashes=hashes))
        return kept


def _source_line(path: str, source: Any) -> str:
    """Return a local source as a line of a requirements file."""
    url = Path(path).as_uri()
    marker = f" ; {source.marker}" if source.marker else ""
    if not source.extras:
        return f"{url}{marker}"
    return f"{_name_of(Path(path))}[{','.join(source.extras)}] @ {url}{marker}"


def _name_of(path: Path) -> str:
    """Return the name of a local source."""
    import tomllib

    if path.suffix == ".whl":
        return path.name.partition("-")[0]
    try:
        return str(tomllib.loads((path / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"])
    except (OSError, KeyError, ValueError):
        raise ValueError(
            f"extras are asked of {str(path)!r}, which does not say its name: write it as 'name[extra] @ file://...'"
        ) from None


def _conflict(pins: Sequence[Pin], reason: str, *, is_base: bool) -> str:
    """Return the message for packages that would have to change."""
    names = ", ".join(f"{pin.name}=={pin.version}" for pin in pins)
    what = "the environment that is added to" if is_base else "the lock that is taken"
    return f"{what} has {names}, which must stay as it is: {reason}"


def _platform_hint(packages: Mapping[str, str]) -> str:
    """Return a word on what the platform needs, where the user asks for a version of the same package."""
    own = [name + version for name, version in PLATFORM.items() if name in packages]
    return f" (every environment has {', '.join(own)}, which the platform itself needs)" if own else ""
