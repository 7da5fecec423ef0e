"""Which plugins come with the core: the embedded defaults, loaded like any other and with no privilege."""

from __future__ import annotations

from typing import Final

BUILTINS: Final[tuple[tuple[str, str], ...]] = (
    ("file", "mlp_core.builtin.file_store"),
    ("fsspec", "mlp_core.builtin.fsspec_store"),
    ("local", "mlp_core.builtin.local"),
    ("current", "mlp_core.builtin.current"),
    ("json", "mlp_core.builtin.json_format"),
    ("pickle", "mlp_core.builtin.pickle_format"),
    ("options", "mlp_core.builtin.options"),
    ("local-target", "mlp_core.builtin.local_target"),
)
"""Name and module of each, in the order of loading."""
