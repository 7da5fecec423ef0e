"""What a planted bug is."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import attrs


@attrs.frozen
class Planted:
    """A bug that the harness must find.

    Attributes
    ----------
    name : str
        Its name.
    row : str
        The row that must find it.
    breaks : str
        One line on what it breaks.
    module : str
        The module of the product that it is planted in.
    plant : callable
        Patches the module, which has just been imported. What it needs beside it, it imports when it is called.
    n : int or None
        How often the row has to do harm to find it; None for its short form.
    """

    name: str
    row: str
    breaks: str
    module: str
    plant: Callable[[ModuleType], None]
    n: int | None = None
