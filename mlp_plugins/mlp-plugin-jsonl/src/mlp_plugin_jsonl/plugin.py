"""Which hooks the plugin implements: one setting, and the observer that it is for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mlp_hookspecs import Setting, hookimpl
from mlp_plugin_jsonl.lines import append_event, event_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlp_hookspecs.events import Event
    from mlp_hookspecs.handles import Settings


@hookimpl
def mlp_settings() -> Sequence[Setting]:
    """Declare where the lines go."""
    text = "File for the events; {flow} and {run_id} stand for the run's."
    return (Setting("jsonl.path", "path", ".mlp/events/{flow}/{run_id}.jsonl", text),)


@hookimpl
def mlp_event(event: Event, settings: Settings) -> None:
    """Write the event."""
    append_event(Path(event_path(settings["jsonl.path"], event)), event)
