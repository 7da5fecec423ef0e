"""What can be asked for: names, versions and interpreters, each in one normal form, so that equals look equal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs

from mlp_hookspecs import PLATFORM_FLOORS, frozen_map
from mlp_plugin_uv.credentials import refuse_credentials, split_index
from mlp_plugin_uv.names import normal_name
from mlp_plugin_uv.pylock import Entry

OLDEST_PYTHON: Final = (3, 11)
"""The oldest interpreter that the platform's worker runs under."""

PLATFORM: Final[Mapping[str, str]] = frozen_map(
    {floor.partition(">=")[0]: f">={floor.partition('>=')[2]}" for floor in PLATFORM_FLOORS}
)
"""What the platform's worker, which travels to the environment as source, imports beside the standard library."""

_NAME: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_PACKAGE: Final = re.compile(rf"({_NAME})\s*(?:\[\s*({_NAME}(?:\s*,\s*{_NAME})*)\s*\])?")
_VERSION: Final = re.compile(r"\d[A-Za-z0-9.!+_*-]*")
_CLAUSE: Final = re.compile(rf"(===|==|~=|!=|<=|>=|<|>)\s*({_VERSION.pattern})")
_PYTHON: Final = re.compile(r"(\d+)\.(\d+)(?:\.\d+)?")


def normal_packages(packages: object) -> Mapping[str, str]:
    """Return packages with their specifiers, checked and in normal form.

    Parameters
    ----------
    packages : mapping of str to str
        A version or version specifier for each name.

    Returns
    -------
    mapping of str to str
        A specifier, or empty text, for each normal name; frozen.

    Raises
    ------
    TypeError
        Where something is not text.
    ValueError
        Where a name or version is refused; the message names it.

    Examples
    --------
    >>> normal_packages({"Pandas[Parquet, aws]": "<3, >=2.1", "six": "1.17.0", "attrs": ""})
    {'attrs': '', 'pandas[aws,parquet]': '<3,>=2.1', 'six': '==1.17.0'}
    """
    if not isinstance(packages, Mapping):
        raise TypeError(f"packages={packages!r} is refused: it must be a mapping of names to versions")
    normal: dict[str, str] = {}
    for name, version in packages.items():
        key = _normal_name(name)
        if key in normal:
            raise ValueError(f"packages names {key} more than once")
        normal[key] = _normal_specifier(name, version)
    return frozen_map(dict(sorted(normal.items())))


def normal_python(version: object) -> str:
    """Return the version of an interpreter, checked.

    Raises
    ------
    TypeError
        Where it is not text.
    ValueError
        Where it is no version, or one that the platform does not run under.
    """
    if not isinstance(version, str):
        raise TypeError(f"python={version!r} is refused: it must be text, such as python='3.12'")
    match = _PYTHON.fullmatch(version.strip())
    if match is None:
        raise ValueError(f"python={version!r} is refused: it must be a version such as '3.12' or '3.12.1'")
    if (int(match[1]), int(match[2])) < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        raise ValueError(f"python={version!r} is refused: a step's interpreter must be {oldest} or later")
    return match[0]


def normal_index(index: object) -> str:
    """Return an index, checked: a URL, or ``name=URL``.

    Raises
    ------
    TypeError
        Where it is not text.
    ValueError
        Where it is no URL, or has credentials.
    """
    if not isinstance(index, str):
        raise TypeError(f"index={index!r} is refused: it must be text, such as 'https://host/index'")
    text = index.strip()
    refuse_credentials("an index", text)
    scheme, _, rest = split_index(text).url.partition("://")
    if scheme not in ("https", "http", "file") or re.search(r"\s", rest):
        raise ValueError(f"index {text!r} is refused: it must be a URL that begins with https://, http:// or file://")
    return text


def normal_names(what: str, names: object) -> tuple[str, ...]:
    """Return names of extras or groups as PEP 503 normalises them, sorted.

    Raises
    ------
    TypeError
        Where it is no sequence of names.
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise TypeError(f"{what}={names!r} is refused: it must be a sequence of names")
    if not all(isinstance(name, str) and re.fullmatch(_NAME, name) for name in names):
        raise TypeError(f"{what}={names!r} is refused: a name has letters, digits, '.', '_' and '-'")
    return tuple(sorted({normal_name(name) for name in names}))


def _normal_name(name: object) -> str:
    """Return a package's name, and its extras, as the index knows them."""
    match = _PACKAGE.fullmatch(name.strip()) if isinstance(name, str) else None
    if match is None:
        raise ValueError(f"package name {name!r} is refused: letters, digits, '.', '_' and '-', and extras in brackets")
    extras = sorted({normal_name(extra.strip()) for extra in match[2].split(",")}) if match[2] else []
    return normal_name(match[1]) + (f"[{','.join(extras)}]" if extras else "")


def _normal_specifier(name: str, version: object) -> str:
    """Return a version specifier without blanks, its clauses sorted."""
    if not isinstance(version, str):
        raise TypeError(f"the version of {name} is {version!r}; it must be text, such as '1.2.0' or '>=1.2,<2'")
    text = version.strip()
    if not text:
        return ""
    if _VERSION.fullmatch(text):
        return f"=={text}"
    clauses = [_CLAUSE.fullmatch(clause.strip()) for clause in text.split(",")]
    matches = [clause for clause in clauses if clause is not None]
    if len(matches) != len(clauses):
        raise ValueError(f"the version of {name} is {version!r}; allowed are '1.2.0', '>=1.2,<2' and the like")
    return ",".join(sorted(clause[1] + clause[2] for clause in matches))


@attrs.frozen
class Source:
    """A folder or file on the resolving host that becomes a package.

    Attributes
    ----------
    digest : str
        Of its content, so that other content is another requirement.
    extras : tuple of str
        The extras that are wanted.
    marker : str
        Where it is wanted; empty for everywhere.
    """

    digest: str
    extras: tuple[str, ...] = ()
    marker: str = ""


@attrs.frozen
class Project:
    """A project with a ``uv.lock``.

    Attributes
    ----------
    path : str
        Its folder on the resolving host.
    digest : str
        Of the lock and of what it was made from.
    extras, groups : tuple of str
        What is wanted of it beside its dependencies.
    """

    path: str
    digest: str
    extras: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


@attrs.frozen
class Requirement:
    """What is asked for, in one normal form. It is written as JSON, where what is empty is left out.

    Attributes
    ----------
    python : str
        The interpreter's version.
    is_default : bool
        Whether that is only the version that starts the run: an environment that is added to keeps its own.
    packages : mapping of str to str
        A version specifier for each name.
    requirements : tuple of str
        Further ones, as in a requirements file: with markers, or at a URL.
    constraints : tuple of str
        What holds for packages that others bring.
    hashes : mapping of str to tuple of str
        The only files that will do, by package.
    sources : mapping of str to Source
        Local sources, by absolute path.
    index : str or None
        The index that takes the place of the default one.
    extra_indexes : tuple of str
        Those that are asked before it.
    pylock : tuple of Entry
        The packages of a lock by PEP 751, to which the rest is added; empty where there is none.
    project : Project or None
        A project whose lock is taken, to which the rest is added.
    """

    python: str
    is_default: bool = False
    packages: Mapping[str, str] = attrs.field(factory=dict, converter=normal_packages)
    requirements: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    hashes: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict, converter=frozen_map)
    sources: Mapping[str, Source] = attrs.field(factory=dict, converter=frozen_map)
    index: str | None = None
    extra_indexes: tuple[str, ...] = ()
    pylock: tuple[Entry, ...] = ()
    project: Project | None = None

    def to_data(self) -> dict[str, Any]:
        """Return it as JSON data."""
        data: dict[str, Any] = {"default_python" if self.is_default else "python": self.python}
        data["packages"] = dict(self.packages)
        plain = {"requirements": list(self.requirements), "constraints": list(self.constraints)}
        plain |= {"extra_indexes": list(self.extra_indexes)}
        data |= {name: value for name, value in plain.items() if value}
        if self.index:
            data["index"] = self.index
        if self.pylock:
            data["pylock"] = [_filled(entry) for entry in self.pylock]
        if self.hashes:
            data["hashes"] = {name: list(hashes) for name, hashes in self.hashes.items()}
        if self.sources:
            data["sources"] = {path: _filled(source) for path, source in self.sources.items()}
        if self.project is not None:
            data["project"] = _filled(self.project)
        return data

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Requirement:
        """Read what `to_data` has written, or somebody else in its place: it is checked again.

        Raises
        ------
        ValueError
            Where it has something that this version does not know or that is refused.
        """
        wanted = dict(data)
        known = [*attrs.fields_dict(cls), "default_python"]
        unknown = sorted(wanted.keys() - set(known) - {"is_default"})
        if unknown:
            raise ValueError(f"the requirement has {', '.join(unknown)}, which this version does not know")
        default = wanted.pop("default_python", None)
        python = normal_python(wanted.pop("python", default))
        try:
            return cls(
                python,
                is_default=default is not None,
                packages=wanted.get("packages", {}),
                requirements=tuple(map(_one_line, wanted.get("requirements", ()))),
                constraints=tuple(map(_one_line, wanted.get("constraints", ()))),
                hashes={name: tuple(map(_one_line, hashes)) for name, hashes in wanted.get("hashes", {}).items()},
                sources={_one_line(path): _read(Source, entry) for path, entry in wanted.get("sources", {}).items()},
                index=normal_index(wanted["index"]) if "index" in wanted else None,
                extra_indexes=tuple(map(normal_index, wanted.get("extra_indexes", ()))),
                pylock=tuple(_read(Entry, entry) for entry in wanted.get("pylock", ())),
                project=_read(Project, wanted["project"]) if "project" in wanted else None,
            )
        except (AttributeError, TypeError) as error:
            raise ValueError(f"the requirement is refused: {error}") from error


def _filled(value: Source | Project | Entry) -> dict[str, Any]:
    """Return the fields that are not empty, as JSON data."""
    pairs = [(field.name, getattr(value, field.name)) for field in attrs.fields(type(value)) if field.eq]
    return {name: list(field) if isinstance(field, tuple) else field for name, field in pairs if field}


def _read(kind: type[Any], data: Mapping[str, Any]) -> Any:
    """Return the value that `_filled` has written."""
    return kind(**{name: _one_line(f) if isinstance(f, str) else tuple(map(_one_line, f)) for name, f in data.items()})


def _one_line(text: object) -> str:
    """Return a text that can be a line of a requirements file, and is no option there."""
    if not isinstance(text, str) or text.startswith("-") or not text.isprintable():
        raise ValueError(f"the requirement has {text!r}, which is refused: it must be one line of text")
    refuse_credentials("the requirement", text)
    return text
