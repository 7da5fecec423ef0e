"""The environment variables that change how the flow behaves."""

from __future__ import annotations

from typing import Final

PAUSE: Final = "MLP_RELIABILITY_PAUSE"
"""The seconds that a task of the middle takes."""

STUBBORN: Final = "MLP_RELIABILITY_STUBBORN"
"""Set where tasks of the middle ignore every signal that can be ignored."""
