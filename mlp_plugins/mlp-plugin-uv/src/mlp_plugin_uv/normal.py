"""What can be asked for: names, versions and interpreters, each in one normal form, so that equals look equal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from mlp_hookspecs import PLATFORM_FLOORS, frozen_map
from mlp_plugin_uv.urls import refuse_credentials, split_index

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


def normal_name(name: str) -> str:
    """Return a name in its normal form.

    Parameters
    ----------
    name : str
        The name of a package, an extra or a group.

    Returns
    -------
    str
        The name in small letters, its words divided by one dash each.

    Examples
    --------
    >>> normal_name("Typing_Extensions")
    'typing-extensions'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


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
