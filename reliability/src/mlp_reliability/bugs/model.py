"""Bugs for the rows that simulate and fault the store in one process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mlp_reliability.bugs.planted import Planted

BUGS: Final[tuple[Planted, ...]] = ()
