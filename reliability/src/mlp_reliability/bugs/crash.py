"""Bugs for the rows that kill processes, cut power and damage files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mlp_reliability.bugs.planted import Planted

BUGS: Final[tuple[Planted, ...]] = ()
