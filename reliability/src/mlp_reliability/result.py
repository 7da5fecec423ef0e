"""What a row reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs


@attrs.frozen
class Result:
    """What a row found.

    Attributes
    ----------
    row : str
        The row.
    n : int
        How often it did harm.
    seed : int
        What all its choices were drawn from.
    violations : sequence of str
        Every broken promise, a line each, with what is needed to see it again.
    details : mapping of str to JSON
        Counts and measurements.
    command : str
        What repeats it.
    """

    row: str
    n: int
    seed: int
    violations: Sequence[str] = ()
    details: Mapping[str, Any] = attrs.field(factory=dict)
    command: str = attrs.field()

    @command.default
    def _default_command(self) -> str:
        """Return what repeats the row."""
        return f"python -m mlp_reliability {self.row} -n {self.n} --seed {self.seed}"

    def to_json(self) -> dict[str, Any]:
        """Return what `json.dumps` takes."""
        return attrs.asdict(attrs.evolve(self, violations=list(self.violations), details=dict(self.details)))
