"""What can be asked for: packages, indexes and names, each in one normal form, so that equals look equal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mlp_hookspecs import frozen_map
from mlp_hookspecs.requirements import NAME, clauses, named_versions, normal_name, normal_package
from mlp_plugin_uv.urls import refuse_credentials, split_index


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
    normal: dict[str, str] = {}
    for name, version in named_versions("packages", packages).items():
        key = normal_package("package", name)
        if key in normal:
            raise ValueError(f"packages names {key} more than once")
        normal[key] = ",".join(sorted(clauses(str(name), version)))
    return frozen_map(dict(sorted(normal.items())))


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
    if not all(isinstance(name, str) and re.fullmatch(NAME, name) for name in names):
        raise TypeError(f"{what}={names!r} is refused: a name has letters, digits, '.', '_' and '-'")
    return tuple(sorted({normal_name(name) for name in names}))
