"""What can be asked for: packages and channels, each in one normal form, so that equals look equal."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from mlp_hookspecs import frozen_map
from mlp_hookspecs.requirements import clauses, named_versions, normal_package, version_text

if TYPE_CHECKING:
    from collections.abc import Mapping

_CONDA_NAME: Final = re.compile(r"(?:([A-Za-z0-9][A-Za-z0-9_./-]*)::)?([A-Za-z0-9_][A-Za-z0-9_.-]*)")
_CONDA_VERSION: Final = r"\d[A-Za-z0-9.!+_]*"
_CONDA_BUILD: Final = r"[A-Za-z0-9_.*+]+"
_CONDA_EXACT: Final = re.compile(rf"(={{0,2}})\s*({_CONDA_VERSION}|\*)(\.\*)?(?:\s*[= ]\s*({_CONDA_BUILD}))?")
_CONDA_CLAUSE: Final = re.compile(rf"(==|~=|!=|<=|>=|<|>)\s*({_CONDA_VERSION}(?:\.\*)?)")
_CHANNEL_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_.-]+)*")
_CHANNEL_URL: Final = re.compile(r"(?:https?|file|s3|gcs|oci)://[A-Za-z0-9_.:/%~+\[\]-]*")


def normal_packages(packages: object) -> Mapping[str, str]:
    """Return conda packages with their version specifiers, checked and in normal form.

    Parameters
    ----------
    packages : mapping of str to str
        A version or version specifier, in conda's own terms, for each name.

    Returns
    -------
    mapping of str to str
        A specifier, or empty text, for each name; frozen.

    Raises
    ------
    TypeError
        Where something is not text.
    ValueError
        Where a name or version is refused; the message names it.

    Examples
    --------
    >>> normal_packages({"NumPy": "<3, >=2.1", "conda-forge::zlib": "=1.3", "pytorch": "2.1.0=cuda12*", "attrs": ""})
    {'attrs': '', 'conda-forge::zlib': '1.3.*', 'numpy': '<3,>=2.1', 'pytorch': '==2.1.0 cuda12*'}
    """
    normal: dict[str, str] = {}
    for name, version in named_versions("packages", packages).items():
        match = _CONDA_NAME.fullmatch(name.strip()) if isinstance(name, str) else None
        if match is None:
            raise ValueError(
                f"package name {name!r} is refused: letters, digits, '.', '_' and '-', maybe after channel::"
            )
        package = match[2].lower()
        if package == "python":
            raise ValueError("packages names python; its version is an argument of its own, such as python='3.12'")
        if any(key.rpartition("::")[2] == package for key in normal):
            raise ValueError(f"packages names {package} more than once")
        key = f"{match[1]}::{package}" if match[1] else package
        normal[key] = _conda_version(package, version)
    return frozen_map(dict(sorted(normal.items())))


def normal_pip(packages: object) -> Mapping[str, str]:
    """Return packages of a Python index with their specifiers, checked and in normal form.

    Raises
    ------
    TypeError
        Where something is not text.
    ValueError
        Where a name or version is refused; the message names it.

    Examples
    --------
    >>> normal_pip({"Pandas[Parquet, aws]": "<3, >=2.1", "six": "1.17.0"})
    {'pandas[aws,parquet]': '<3,>=2.1', 'six': '==1.17.0'}
    """
    normal: dict[str, str] = {}
    for name, version in named_versions("pip", packages).items():
        key = normal_package("pip", name)
        if any(pip_name(known) == pip_name(key) for known in normal):
            raise ValueError(f"pip names {pip_name(key)} more than once")
        normal[key] = ",".join(sorted(set(clauses(key, version))))
    return frozen_map(dict(sorted(normal.items())))


def normal_channels(channels: object) -> tuple[str, ...]:
    """Return channels in their order, checked: the first that has a package is the one that it comes from.

    Raises
    ------
    TypeError
        Where they are no sequence of text.
    ValueError
        Where one is no name or URL of a channel, or holds a password or token.

    Examples
    --------
    >>> normal_channels(["conda-forge", "https://conda.example.org/team/"])
    ('conda-forge', 'https://conda.example.org/team')
    """
    given = [channels] if isinstance(channels, str) else channels
    if not isinstance(given, (list, tuple)) or not all(isinstance(channel, str) for channel in given):
        raise TypeError(f"channels={channels!r} is refused: it must be a sequence of names or URLs")
    normal = []
    for text in given:
        channel = text.strip().rstrip("/")
        _, scheme, rest = channel.partition("://")
        if scheme and ("@" in rest.partition("/")[0] or re.search(r"(^|/)t/[^/]+/", rest)):
            raise ValueError(
                "a channel with a password or token in its URL is refused; keep it in ~/.netrc, or where "
                "the solver keeps its own (`conda token`, `pixi auth login`, RATTLER_AUTH_FILE)"
            )
        if not (_CHANNEL_URL if scheme else _CHANNEL_NAME).fullmatch(channel):
            raise ValueError(f"channel {text[:100]!r} is refused: a name such as 'conda-forge', or a URL")
        if channel not in normal:
            normal.append(channel)
    return tuple(normal)


def pip_name(requirement: str) -> str:
    """Return the name of a package of a Python index, without its extras."""
    return requirement.partition("[")[0]


def _conda_version(name: str, version: object) -> str:
    """Return conda's version specifier without blanks, its clauses sorted; one version alone is exact."""
    text = version_text(name, version)
    if not text:
        return ""
    exact = _CONDA_EXACT.fullmatch(text)
    if exact is not None:
        number = exact[2]
        if number != "*":
            number = f"{number}.*" if exact[3] or exact[1] == "=" else f"=={number}"
        return f"{number} {exact[4]}" if exact[4] else number.removeprefix("*")
    clauses = [_CONDA_CLAUSE.fullmatch(clause.strip()) for clause in text.split(",")]
    matches = [clause for clause in clauses if clause is not None]
    if len(matches) != len(clauses):
        raise ValueError(
            f"the version of {name} is {version!r}; allowed are '1.2.0', '1.2.*', '>=1.2,<2', '1.2.0=build' and such"
        )
    return ",".join(sorted({clause[1] + clause[2] for clause in matches}))
