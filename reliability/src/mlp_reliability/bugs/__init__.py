"""The planted bugs: small patches that break the product on purpose. Importing this imports nothing of the product."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mlp_reliability.bugs import crash, hostile, model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlp_reliability.bugs.planted import Planted

BUGS: Final[Mapping[str, Planted]] = {bug.name: bug for bug in (*model.BUGS, *crash.BUGS, *hostile.BUGS)}
"""The planted bugs by name."""
