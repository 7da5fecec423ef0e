"""The state machine: all that may happen to a store."""

from __future__ import annotations

from mlp_reliability.machine.reading import ReadingRules
from mlp_reliability.machine.writing import WritingRules


class StoreMachine(WritingRules, ReadingRules):
    """A history of writers, of readers, of who copies, and of what rots."""
