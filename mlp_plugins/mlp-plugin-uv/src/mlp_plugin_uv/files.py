"""What a requirements file, ``pyproject.toml``, ``pylock.toml`` or a script's own block asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

import attrs

from mlp_hookspecs.requirements import normal_name
from mlp_plugin_uv.normal import normal_index
from mlp_plugin_uv.pylock import Entry, read_entries
from mlp_plugin_uv.requirement import Requirement, Source
from mlp_plugin_uv.sources import digest_of
from mlp_plugin_uv.urls import refuse_credentials

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_BLOCK: Final = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
"""A block of metadata in a script, as PEP 723 gives it."""

_OPTION: Final = re.compile(r"(?:(--[a-z-]+)(?:[=\s]\s*|$)|(-[a-z])\s*=?\s*)(.*)")
_LOCAL: Final = re.compile(r"(?P<path>[^\[;]+?)\s*(?:\[(?P<extras>[^\]]*)\])?\s*(?:;\s*(?P<marker>.+))?")
_REMOTE: Final = re.compile(r"(git\+)?[a-z]+://")
_UNKNOWN_SOURCE: Final = "its entry in tool.uv.sources is more than this decorator knows: use @uv"
_DEEPEST: Final = 10


def read_file(path: Path, boundary: Path, extras: Sequence[str] = (), groups: Sequence[str] = ()) -> Requirement:
    """Return what a file asks for.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    boundary : pathlib.Path
        The folder that it, and what it includes, must lie in.
    extras, groups : sequence of str
        Which extras and dependency groups of a ``pyproject.toml`` are wanted too.

    Returns
    -------
    Requirement
        Its ``python`` is the range of versions that the file allows; empty where it does not say.

    Raises
    ------
    ValueError
        Where the file is not there or cannot be read, or something in it is refused; the message names the line.
    """
    reader = _Reader(boundary.resolve())
    if path.suffix in (".txt", ".in"):
        _no_choice(path, extras, groups)
        reader.read_requirements(path)
    elif re.fullmatch(r"pylock(\.[^.]+)?\.toml", path.name):
        _no_choice(path, extras, groups)
        reader.read_pylock(path)
    elif path.name == "pyproject.toml":
        reader.read_project(path, extras, groups)
    elif path.suffix == ".py":
        _no_choice(path, extras, groups)
        reader.read_script(path)
    else:
        raise ValueError(
            f"file={str(path)!r} is refused: it must be a requirements file (.txt, .in), pyproject.toml,"
            " pylock.toml (or pylock.NAME.toml), or a script (.py) with a block of metadata"
        )
    return reader.answer()


def _no_choice(path: Path, extras: Sequence[str], groups: Sequence[str]) -> None:
    """Refuse extras and groups of a file that has none."""
    if extras or groups:
        raise ValueError(f"extras and groups are those of a pyproject.toml; {path.name} has none")


class _Reader:
    """Collects what files ask for.

    Parameters
    ----------
    boundary : pathlib.Path
        The folder that all of them must lie in.
    """

    def __init__(self, boundary: Path) -> None:
        """Begin with nothing."""
        self._boundary = boundary
        self._open: list[Path] = []
        self._requirements: list[str] = []
        self._constraints: list[str] = []
        self._hashes: dict[str, set[str]] = {}
        self._sources: dict[str, Source] = {}
        self._index: str | None = None
        self._extra_indexes: list[str] = []
        self._pylock: tuple[Entry, ...] = ()
        self._python = ""

    def answer(self) -> Requirement:
        """Return all of it, in one order."""
        return Requirement(
            self._python,
            requirements=tuple(sorted(set(self._requirements))),
            constraints=tuple(sorted(set(self._constraints))),
            hashes={name: tuple(sorted(hashes)) for name, hashes in sorted(self._hashes.items())},
            sources=dict(sorted(self._sources.items())),
            index=self._index,
            extra_indexes=tuple(dict.fromkeys(self._extra_indexes)),
            pylock=self._pylock,
        )

    # ------------------------------------------------------------------------------------ requirements files

    def read_requirements(self, path: Path, *, constrains: bool = False) -> None:
        """Read a requirements file, or one of constraints."""
        if path.resolve() in self._open:
            raise ValueError(f"{path.name} includes itself")
        text = self._text(path)
        self._open.append(path.resolve())
        if len(self._open) > _DEEPEST:
            raise ValueError(f"{path.name} is included more than {_DEEPEST} files deep")
        for number, line in _logical_lines(text):
            try:
                self._read_line(path, line, constrains=constrains)
            except ValueError as error:
                raise ValueError(f"{path.name}, line {number}: {error}") from error
        self._open.pop()

    def _read_line(self, path: Path, line: str, *, constrains: bool) -> None:
        """Read one requirement or option."""
        refuse_credentials("it", line)
        match = _OPTION.fullmatch(line)
        option, value = (match[1] or match[2], match[3]) if match else ("", "")
        if not option:
            self._add(line, path.parent, constrains=constrains)
        elif option in ("-r", "--requirement"):
            self.read_requirements(path.parent / value, constrains=constrains)
        elif option in ("-c", "--constraint"):
            self.read_requirements(path.parent / value, constrains=True)
        elif option in ("-e", "--editable") and not constrains:
            self._add(value, path.parent)
        elif option in ("-i", "--index-url"):
            self._index = normal_index(value)
        elif option == "--extra-index-url":
            self._extra_indexes.append(normal_index(value))
        else:
            raise ValueError(
                f"the option {option} is refused; allowed are -r, -c, -e, --index-url, --extra-index-url, and"
                " --hash after a requirement"
            )

    def _add(self, text: str, folder: Path, *, constrains: bool = False) -> None:
        """Add a requirement, a local source, or a constraint."""
        words = text.split()
        hashes = {word.removeprefix("--hash=") for word in words if word.startswith("--hash=")}
        text = " ".join(word for word in words if not word.startswith("--hash="))
        if text.startswith("--") or " --" in text or text == "-":
            raise ValueError(f"{text!r} is refused: it is neither a requirement nor an option that is known")
        remote = _REMOTE.match(text)
        if remote or not _is_local(text, folder):
            requirement = _requirement(_named(text) if remote else text)
            if requirement.url and urlsplit(requirement.url).scheme == "file":
                self._add_local(_path_of(requirement.url), requirement.extras, str(requirement.marker or ""), folder)
                return
            if constrains and (requirement.url or requirement.extras):
                raise ValueError(f"{text!r} is refused as a constraint: it must be a name and a version")
            _check_url(requirement)
            (self._constraints if constrains else self._requirements).append(_written(requirement))
            if hashes:
                self._hashes.setdefault(normal_name(requirement.name), set()).update(hashes)
            return
        if constrains:
            raise ValueError(f"{text!r} is refused as a constraint: it must be a name and a version")
        match = _LOCAL.fullmatch(text.removeprefix("file://"))
        if match is None:
            raise ValueError(f"{text!r} is no requirement")
        extras = [extra.strip() for extra in (match["extras"] or "").split(",") if extra.strip()]
        self._add_local(
            unquote(match["path"]) if "://" in text else match["path"], extras, match["marker"] or "", folder
        )

    def _add_local(self, path: str, extras: Iterable[str], marker: str, folder: Path) -> None:
        """Add a local source."""
        place = (folder / path).resolve()
        if not place.exists():
            raise ValueError(f"the local path {path!r} is not there: {place}")
        if place.is_file() and not place.name.endswith((".whl", ".tar.gz", ".zip")):
            raise ValueError(f"the local path {path!r} is neither a project's folder nor a wheel nor a .tar.gz or .zip")
        if place.is_dir() and not any((place / name).is_file() for name in ("pyproject.toml", "setup.py")):
            raise ValueError(f"the local path {path!r} is no project: it has neither pyproject.toml nor setup.py")
        known = self._sources.get(str(place))
        wanted = {normal_name(extra) for extra in extras} | set(known.extras if known else ())
        marker = _marker(marker)
        marker = "" if known is not None and known.marker != marker else marker
        self._sources[str(place)] = Source(digest_of(place), tuple(sorted(wanted)), marker)

    # ------------------------------------------------------------------------------------ TOML

    def read_project(self, path: Path, extras: Sequence[str], groups: Sequence[str]) -> None:
        """Read a project's dependencies."""
        table = self._toml(path.name, self._text(path))
        project = table.get("project", {})
        optional = {normal_name(name): entries for name, entries in project.get("optional-dependencies", {}).items()}
        known = {normal_name(name): entries for name, entries in table.get("dependency-groups", {}).items()}
        if "dependencies" in project.get("dynamic", ()):
            raise ValueError(
                f"{path.name} computes its dependencies when it is built: list them, or name the folder in"
                " a requirements file"
            )
        texts = list(project.get("dependencies", ()))
        texts += [text for extra in extras for text in _choice(path, "extra", extra, optional)]
        texts += [text for group in groups for text in _group(path, group, known, ())]
        own = normal_name(project.get("name", "-"))
        for text in _without_self(path, texts, own, optional):
            self._add_from_toml(path, text, table.get("tool", {}).get("uv", {}))
        self._finish_toml(path, project.get("requires-python", ""), table.get("tool", {}).get("uv", {}))

    def read_script(self, path: Path) -> None:
        """Read the block of metadata in a script."""
        blocks = [match for match in _BLOCK.finditer(self._text(path)) if match["type"] == "script"]
        if len(blocks) != 1:
            raise ValueError(
                f"{path.name} has {len(blocks) or 'no'} blocks that begin with '# /// script'; one is needed"
            )
        lines = [line.removeprefix("#").removeprefix(" ") for line in blocks[0]["content"].splitlines()]
        table = self._toml(path.name, "\n".join(lines))
        for text in table.get("dependencies", ()):
            self._add_from_toml(path, text, table.get("tool", {}).get("uv", {}))
        self._finish_toml(path, table.get("requires-python", ""), table.get("tool", {}).get("uv", {}))

    def read_pylock(self, path: Path) -> None:
        """Take a lock as it is."""
        text = self._text(path)
        refuse_credentials(path.name, text)
        try:
            entries = read_entries(text, path.parent)
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from error
        for entry in entries:
            if entry.path:
                self._add_local(entry.path, (), entry.marker, path.parent)
        self._pylock = entries
        self._python = str(self._toml(path.name, text).get("requires-python", ""))

    def _add_from_toml(self, path: Path, text: str, tool: Mapping[str, Any]) -> None:
        """Add a requirement of a TOML file, from where its sources say."""
        try:
            refuse_credentials("it", text)
            requirement = _requirement(text)
            sources = {normal_name(name): source for name, source in tool.get("sources", {}).items()}
            source = sources.get(normal_name(requirement.name))
            if source is None:
                self._add(text, path.parent)
            elif isinstance(source, dict) and not {"workspace", "marker", "extra", "group"} & source.keys():
                self._add_source(path, requirement, source, tool)
            else:
                raise ValueError(_UNKNOWN_SOURCE)  # noqa: TRY301 # located below like the others
        except ValueError as error:
            raise ValueError(f"{path.name}, {text!r}: {error}") from error

    def _add_source(self, path: Path, requirement: Any, source: Mapping[str, Any], tool: Mapping[str, Any]) -> None:
        """Add a requirement that comes from a repository, a path, a URL or an index of its own."""
        marker = f" ; {requirement.marker}" if requirement.marker else ""
        extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
        head = f"{requirement.name}{extras}"
        if "git" in source:
            ref = next((source[key] for key in ("rev", "tag", "branch") if key in source), "")
            part = f"#subdirectory={source['subdirectory']}" if "subdirectory" in source else ""
            url = f"git+{str(source['git']).removeprefix('git+')}" + (f"@{ref}" if ref else "") + part
            refuse_credentials("tool.uv.sources", url)
            self._add(f"{head} @ {url}{marker}", path.parent)
        elif "path" in source:
            self._add_local(source["path"], requirement.extras, str(requirement.marker or ""), path.parent)
        elif "url" in source:
            refuse_credentials("tool.uv.sources", source["url"])
            self._add(f"{head} @ {source['url']}{marker}", path.parent)
        else:
            urls = {entry.get("name"): entry.get("url") for entry in tool.get("index", ())}
            if urls.get(source.get("index")) is None:
                raise ValueError(f"its source {dict(source)!r} names no entry of tool.uv.index")
            self._extra_indexes.append(normal_index(f"{source['index']}={urls[source['index']]}"))
            self._requirements.append(_written(requirement))

    def _finish_toml(self, path: Path, python: str, tool: Mapping[str, Any]) -> None:
        """Add what a TOML file says beside its requirements."""
        if tool.get("override-dependencies"):
            raise ValueError(
                f"{path.name} has tool.uv.override-dependencies, which this decorator does not know: use @uv"
            )
        for text in tool.get("constraint-dependencies", ()):
            self._add(text, path.parent, constrains=True)
        default, others = indexes_of(tool)
        self._index = default or self._index
        self._extra_indexes += others
        self._python = python

    # ------------------------------------------------------------------------------------ files

    def _text(self, path: Path) -> str:
        """Return a file's text."""
        place = path.resolve()
        if not place.is_relative_to(self._boundary):
            raise ValueError(f"{str(path)!r} lies outside of the project {str(self._boundary)!r}")
        try:
            return place.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise ValueError(f"{str(path)!r} cannot be read: {reason}") from error

    @staticmethod
    def _toml(name: str, text: str) -> dict[str, Any]:
        """Return the table that a text holds."""
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{name} is no TOML: {error}") from error


def indexes_of(tool: Mapping[str, Any], *, explicit: bool = False) -> tuple[str | None, list[str]]:
    """Return the indexes in a table ``tool.uv``: the default one, and the others.

    Parameters
    ----------
    tool : mapping
        The table.
    explicit : bool
        Whether those are wanted too that are only for packages which name them.

    Raises
    ------
    ValueError
        Where one is refused.
    """
    default, others = None, []
    for entry in tool.get("index", ()):
        url = normal_index(f"{entry['name']}={entry['url']}" if "name" in entry else entry["url"])
        if entry.get("default"):
            default = url
        elif explicit or not entry.get("explicit"):
            others.append(url)
    return default, others


def _logical_lines(text: str) -> Iterable[tuple[int, str]]:
    """Yield the lines of a requirements file, joined and without comments, and the number of each one's first line."""
    joined, first = "", 0
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        first = first if joined else number
        bare = re.sub(r"(^|\s)#.*$", "", line).rstrip()
        if bare.endswith("\\"):
            joined += bare[:-1] + " "
            continue
        whole = (joined + bare).strip()
        joined = ""
        if whole:
            yield first, whole


def _requirement(text: str) -> Any:
    """Return a requirement as PEP 508 reads it."""
    from packaging.requirements import InvalidRequirement
    from packaging.requirements import Requirement as Parsed

    try:
        return Parsed(text)
    except InvalidRequirement as error:
        raise ValueError(f"{text!r} is no requirement: {str(error).splitlines()[0]}") from error


def _written(requirement: Any) -> str:
    """Return a requirement in one form, whatever library has read it."""
    extras = f"[{','.join(sorted(map(normal_name, requirement.extras)))}]" if requirement.extras else ""
    which = f" @ {requirement.url}" if requirement.url else ",".join(sorted(map(str, requirement.specifier)))
    marker = f" ; {requirement.marker}" if requirement.marker else ""
    return f"{normal_name(requirement.name)}{extras}{which}{marker}"


def _marker(text: str) -> str:
    """Return a marker in one form."""
    from packaging.markers import InvalidMarker, Marker

    try:
        return str(Marker(text)) if text else ""
    except InvalidMarker as error:
        raise ValueError(f"{text!r} is no marker: {str(error).splitlines()[0]}") from error


def _is_local(text: str, folder: Path) -> bool:
    """Tell whether a requirement is a path."""
    path = text.partition(";")[0].partition("[")[0].strip()
    if text.startswith(("./", "../", "/", "file://")) or path in (".", ".."):
        return True
    return (
        " @ " not in text and ("/" in path or path.endswith((".whl", ".tar.gz", ".zip"))) and (folder / path).exists()
    )


def _named(text: str) -> str:
    """Return a bare URL as a requirement with a name, which it must hold itself."""
    url, _, marker = text.partition(" ; ")
    egg = re.search(r"[#&]egg=([A-Za-z0-9._-]+(?:\[[^\]]*\])?)", url)
    name = egg[1] if egg else Path(urlsplit(url).path).name.partition("-")[0] if ".whl" in url else ""
    if not name:
        raise ValueError(f"{text!r} does not say which package it is: write it as 'name @ {url}'")
    bare = re.sub(r"([#&])egg=[^&]*&?", r"\1", url).rstrip("#&")
    return f"{name} @ {bare}" + (f" ; {marker}" if marker else "")


def _path_of(url: str) -> str:
    """Return the path of a file's URL."""
    return unquote(urlsplit(url).path)


def _check_url(requirement: Any) -> None:
    """Refuse a URL whose content may change."""
    if requirement.url is None or requirement.url.startswith("git+"):
        return
    if requirement.url.startswith(("hg+", "svn+", "bzr+")):
        raise ValueError(f"{requirement.name}: repositories other than git's are not supported: {requirement.url}")
    if not re.search(r"[#&]sha256=[0-9a-f]{64}\b", requirement.url):
        raise ValueError(
            f"{requirement.name}: what the URL {requirement.url} serves may change: add its hash, as '#sha256=...'"
        )


def _choice(path: Path, kind: str, name: str, known: Mapping[str, Any]) -> list[Any]:
    """Return an extra's or a group's entries."""
    if name not in known:
        raise ValueError(f"{path.name} has no {kind} {name!r}; it has {', '.join(sorted(known)) or 'none'}")
    return list(known[name])


def _group(path: Path, name: str, known: Mapping[str, Any], around: tuple[str, ...]) -> list[str]:
    """Return the requirements of a dependency group, and of those that it includes."""
    if name in around:
        raise ValueError(f"{path.name}: the dependency group {name!r} includes itself")
    texts: list[str] = []
    for entry in _choice(path, "dependency group", name, known):
        if isinstance(entry, str):
            texts.append(entry)
        elif isinstance(entry, dict) and entry.keys() == {"include-group"}:
            texts += _group(path, normal_name(str(entry["include-group"])), known, (*around, name))
        else:
            raise ValueError(f"{path.name}: the dependency group {name!r} has {entry!r}, which is no requirement")
    return texts


def _without_self(path: Path, texts: Sequence[str], own: str, optional: Mapping[str, Any]) -> list[str]:
    """Return requirements with those on the project itself (its extras) replaced by what they stand for."""
    found: list[str] = []
    seen: set[str] = set()
    waiting = list(texts)
    while waiting:
        text = waiting.pop(0)
        requirement = _requirement(text)
        if normal_name(requirement.name) != own:
            found.append(text)
            continue
        for extra in sorted(set(map(normal_name, requirement.extras)) - seen):
            seen.add(extra)
            waiting += _choice(path, "extra", extra, optional)
    return found


def merged(one: Requirement, other: Requirement) -> Requirement:
    """Return two requirements as one; where both say something that can only be said once, the first holds."""
    return attrs.evolve(
        one,
        requirements=(*one.requirements, *other.requirements),
        constraints=(*one.constraints, *other.constraints),
        hashes={**other.hashes, **one.hashes},
        sources={**other.sources, **one.sources},
        index=one.index or other.index,
        extra_indexes=tuple(dict.fromkeys((*one.extra_indexes, *other.extra_indexes))),
        pylock=one.pylock or other.pylock,
        project=one.project or other.project,
    )
