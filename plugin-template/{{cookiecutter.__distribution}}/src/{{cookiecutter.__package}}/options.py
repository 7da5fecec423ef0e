"""What the plugin's decorator records on a step."""

from __future__ import annotations

from typing import ClassVar

import attrs
from mlp_hookspecs import Option, decorator


@attrs.frozen
class Timed(Option):
    """Tell how long a step took.

    Attributes
    ----------
    label : str
        What to call it; by default the step's name.
    """

    name: ClassVar[str] = "timed"
    label: str = ""


timed = decorator(Timed)
