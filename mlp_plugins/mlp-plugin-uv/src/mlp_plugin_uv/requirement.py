"""What an environment must have: the requirement as the planning hook writes it and the resolving one reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from mlp_hookspecs import frozen_map
from mlp_hookspecs.requirements import normal_python
from mlp_plugin_uv.normal import normal_index, normal_packages
from mlp_plugin_uv.pylock import Entry
from mlp_plugin_uv.urls import refuse_credentials


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
