"""What checking a store finds: what is wrong with which object, whom it concerns, and what can be done."""

from __future__ import annotations

from typing import Literal, TypeAlias

import attrs

Severity: TypeAlias = Literal["damage", "exposure", "leftover", "note"]
"""``damage`` is what is not as it was written, ``exposure`` what is open to more people than it should be, ``leftover``
what nobody needs, ``note`` what is worth knowing and may be as it should."""


@attrs.frozen
class Finding:
    """One thing that was found.

    Attributes
    ----------
    severity : {"damage", "exposure", "leftover", "note"}
        How bad it is.
    key : str
        The object.
    problem : str
        What is wrong, in one line.
    affects : tuple of str
        Runs, tasks and artifacts that are concerned, as pathspecs; deployments and blueprints by name.
    remedy : str
        What the user can do; empty where there is nothing to do.
    repaired : str
        What was done about it; empty where nothing was.
    is_healed : bool
        Whether nothing is left to be done.
    """

    severity: Severity
    key: str
    problem: str
    affects: tuple[str, ...] = ()
    remedy: str = ""
    repaired: str = ""
    is_healed: bool = False


@attrs.define
class Tally:
    """How far a check has come; read by whoever shows it.

    Attributes
    ----------
    objects : int
        Objects read.
    size : int
        Bytes read.
    runs : int
        Runs checked.
    """

    objects: int = 0
    size: int = 0
    runs: int = 0


@attrs.frozen
class Report:
    """What a check found.

    Attributes
    ----------
    findings : tuple of Finding
        In the order of their keys.
    objects, size, runs : int
        How many objects, bytes and runs were checked.
    """

    findings: tuple[Finding, ...]
    objects: int
    size: int
    runs: int

    @property
    def is_clean(self) -> bool:
        """Whether nothing is damaged or exposed that was not mended."""
        return all(finding.severity not in ("damage", "exposure") or finding.is_healed for finding in self.findings)
