"""How names are compared: as PEP 503 normalises them."""

from __future__ import annotations

import re


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
