"""Bugs for the rows about hostile input and secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mlp_reliability.bugs.planted import Planted

BUGS: Final[tuple[Planted, ...]] = ()
