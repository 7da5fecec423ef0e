"""mlp-plugin-jsonl: an observer that writes a run's events as JSON lines."""

from __future__ import annotations

__all__: list[str] = []
