"""Which version of the contract this is: a constant, since a worker may have the package without its metadata."""

from __future__ import annotations

from typing import Final

CONTRACT_VERSION: Final = "0.3.0"
"""The version of the distribution mlp-hookspecs."""
