"""How events become lines of a file, each event once, whoever else writes to it and whenever a writer dies.

Nothing is remembered between two events: what is already written is read from the file's end, under a lock, so that
an event which is delivered again, to this process or the next, finds itself there.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import re
from typing import IO, TYPE_CHECKING, Final

from mlp_hookspecs import wire

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlp_hookspecs.events import Event

WITHOUT_RUN: Final = "deployments"
"""What ``{run_id}`` stands for in events that belong to no run."""


def event_path(template: str, event: Event) -> str:
    """Return the file that an event goes to.

    Parameters
    ----------
    template : str
        A path, in which ``{flow}`` and ``{run_id}`` may stand.
    event : Event
        The event.

    Returns
    -------
    str
        The path.

    Raises
    ------
    ValueError
        Where something else stands in braces.

    Examples
    --------
    >>> from mlp_hookspecs.events import RunStarted
    >>> event = RunStarted(sequence=0, flow="Train", run_id="20260131-094500-123456", time=0.0)
    >>> event_path("events/{flow}/{run_id}.jsonl", event)
    'events/Train/20260131-094500-123456.jsonl'
    """
    values = {"flow": event.flow, "run_id": event.run_id or WITHOUT_RUN}

    def fill(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise ValueError(f"jsonl.path has {match[0]}; only {{flow}} and {{run_id}} can stand in it")
        return values[match[1]]

    return re.sub(r"\{([^{}]*)\}", fill, template)


def append_event(path: Path, event: Event) -> bool:
    """Add an event's line to a file, unless the event is there.

    Parameters
    ----------
    path : pathlib.Path
        The file; made, with its folders, if absent.
    event : Event
        The event.

    Returns
    -------
    bool
        Whether the line was added.

    Raises
    ------
    OSError
        Where the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Only its owner can read a file that is made here: the values of parameters stand in it.
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _drop_torn_line(file)
        if _is_recorded(file, event):
            return False
        file.write(event_line(event))
    return True


def event_line(event: Event) -> bytes:
    """Return an event as a line: its class as ``event``, its identity as ``id``, then its fields.

    Fields that have their default value are left out; `mlp_hookspecs.wire.decode` fills them in.
    """
    line = {"event": type(event).__name__, "id": event.id, **wire.encode(event)}
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def _drop_torn_line(file: IO[bytes]) -> None:
    """Cut off what a writer that died, or a full disk, left of a line."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as content:
        end = content.rfind(b"\n") + 1
    if end < size:
        file.truncate(end)


def _is_recorded(file: IO[bytes], event: Event) -> bool:
    """Tell whether a file has an event's line.

    The events of a run come in the order of their sequence numbers, so its last lines are all that has to be read.
    Events without a run have no order that is promised; they are few.
    """
    run_id = json.dumps(event.run_id).encode()
    for text in _lines_from_end(file):
        if run_id not in text:
            continue
        line = json.loads(text)
        if (line["flow"], line["run_id"]) != (event.flow, event.run_id):
            continue
        if line["id"] == event.id:
            return True
        if event.run_id and line["sequence"] != event.sequence:
            return bool(line["sequence"] > event.sequence)
    return False


def _lines_from_end(file: IO[bytes]) -> Iterator[bytes]:
    """Yield a file's lines, the last one first."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as content:
        end = size - 1
        while end > 0:
            start = content.rfind(b"\n", 0, end) + 1
            yield content[start:end]
            end = start - 1
