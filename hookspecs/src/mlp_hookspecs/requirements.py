"""How packages of a Python index and interpreters are asked for, in one normal form: for environment backends.

Equal requirements have to look equal, since their digest is the requirement's identity.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from mlp_hookspecs.types.base import frozen_map
from mlp_hookspecs.types.environment import PLATFORM_FLOORS

OLDEST_PYTHON: Final = (3, 11)
"""The oldest interpreter that the platform's worker runs under."""

PLATFORM: Final[Mapping[str, str]] = frozen_map(
    {floor.partition(">=")[0]: f">={floor.partition('>=')[2]}" for floor in PLATFORM_FLOORS}
)
"""What the platform's worker, which travels to the environment as source, imports beside the standard library."""

NAME: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
"""The pattern of a package's name, and of an extra's."""

_PACKAGE: Final = re.compile(rf"({NAME})\s*(?:\[\s*({NAME}(?:\s*,\s*{NAME})*)\s*\])?")
_VERSION: Final = re.compile(r"\d[A-Za-z0-9.!+_*-]*")
_CLAUSE: Final = re.compile(rf"(===|==|~=|!=|<=|>=|<|>)\s*({_VERSION.pattern})")
_PYTHON: Final = re.compile(r"(\d+)\.(\d+)(?:\.\d+)?")


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
        The name in small letters, its words divided by one dash each, as PEP 503 has it.

    Examples
    --------
    >>> normal_name("Typing_Extensions")
    'typing-extensions'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def normal_package(what: str, name: object) -> str:
    """Return a package's name, and its extras, as the index knows them.

    Parameters
    ----------
    what : str
        What the name is called in the message.
    name : object
        The name.

    Raises
    ------
    ValueError
        Where it is none.

    Examples
    --------
    >>> normal_package("package", "Pandas[Parquet, aws]")
    'pandas[aws,parquet]'
    """
    match = _PACKAGE.fullmatch(name.strip()) if isinstance(name, str) else None
    if match is None:
        raise ValueError(f"{what} name {name!r} is refused: letters, digits, '.', '_' and '-', and extras in brackets")
    extras = sorted({normal_name(extra.strip()) for extra in match[2].split(",")}) if match[2] else []
    return normal_name(match[1]) + (f"[{','.join(extras)}]" if extras else "")


def named_versions(field: str, value: object) -> Mapping[object, object]:
    """Return a mapping of names to versions as it is; TypeError where it is no mapping."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{field}={value!r} is refused: it must be a mapping of names to versions")
    return value


def version_text(name: str, version: object) -> str:
    """Return what is asked for of a package, without blanks around it; TypeError where it is not text."""
    if not isinstance(version, str):
        raise TypeError(f"the version of {name} is {version!r}; it must be text, such as '1.2.0' or '>=1.2,<2'")
    return version.strip()


def clauses(name: str, version: object) -> list[str]:
    """Return the clauses of a version specifier without blanks, as they stand; a version alone is exact.

    Raises
    ------
    TypeError
        Where it is not text.
    ValueError
        Where it is no version and no specifier; the message names the package.

    Examples
    --------
    >>> clauses("pandas", "<3, >=2.1"), clauses("six", "1.17.0"), clauses("attrs", "")
    (['<3', '>=2.1'], ['==1.17.0'], [])
    """
    text = version_text(name, version)
    if not text:
        return []
    if _VERSION.fullmatch(text):
        return [f"=={text}"]
    matches = [_CLAUSE.fullmatch(clause.strip()) for clause in text.split(",")]
    found = [match[1] + match[2] for match in matches if match is not None]
    if len(found) != len(matches):
        raise ValueError(f"the version of {name} is {version!r}; allowed are '1.2.0', '>=1.2,<2' and the like")
    return found
