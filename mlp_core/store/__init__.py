"""The store: what runs leave behind, and how it is read, whatever was killed in between."""

from mlp_core.store.blobs import Blobs, BlobSource
from mlp_core.store.logs import LogChunk, LogReader, read_logs
from mlp_core.store.records import (
    AttemptFinished,
    AttemptStarted,
    EnvironmentLocked,
    Note,
    ObserverFailed,
    Record,
    RunBegan,
    RunEnded,
    TagsChanged,
    TaskReused,
)
from mlp_core.store.state import AttemptState, RunState, TaskState
from mlp_core.store.store import RunReader, RunWriter, Store
from mlp_core.store.target import BlobTarget

__all__ = [
    "AttemptFinished",
    "AttemptStarted",
    "AttemptState",
    "BlobSource",
    "BlobTarget",
    "Blobs",
    "EnvironmentLocked",
    "LogChunk",
    "LogReader",
    "Note",
    "ObserverFailed",
    "Record",
    "RunBegan",
    "RunEnded",
    "RunReader",
    "RunState",
    "RunWriter",
    "Store",
    "TagsChanged",
    "TaskReused",
    "TaskState",
    "read_logs",
]
