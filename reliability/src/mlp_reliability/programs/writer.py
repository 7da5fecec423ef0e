"""Make a run in a store with nothing but the store's own classes, and say what has been acknowledged.

``python writer.py STORE``: one process, whose system calls come in the same order each time.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from mlp_core.builtin.file_store import FileStore
from mlp_core.errors import StoreError
from mlp_core.store import AttemptFinished, AttemptStarted, RunBegan, RunEnded, Store, TagsChanged
from mlp_hookspecs.types import FlowGraph, RunContext, StepNode, StepOutcome, TaskKey

FLOW = "Written"
TASKS = 3
POINTED = (10, 11)
"""How often the run's id stands in an object that is replaced."""


def content(number: int) -> bytes:
    """Return what is stored under a number."""
    return bytes(range(number, 250)) * 100


def _say(*words: str) -> None:
    """Acknowledge something, by one system call."""
    os.write(1, " ".join(words).encode() + b"\n")


def write(root: Path) -> None:
    """Make the run."""
    store = Store.open(FileStore(root), create=True)
    graph = FlowGraph(FLOW, "start", "start", (StepNode("start", "end"),))
    writer = store.create_run(lambda run_id: RunBegan(RunContext(FLOW, run_id), 1.0, "host", 1, graph), time.time())
    run_id = writer.began.run.run_id
    _say("created", run_id)
    blobs = store.blobs(inline_bytes=100)
    for number in range(TASKS):
        key = TaskKey("start", (number,))
        writer.write([AttemptStarted(key, 0, "local", 1.0)], sync=False)
        target = blobs.target("bytes")
        target.write([content(number)])
        target.part("small").write([b"small"])
        shared = blobs.target("bytes")
        shared.write([content(9)])
        refs = {"own": target.finish("bytes", sync=False), "shared": shared.finish("bytes", sync=False)}
        blobs.sync()
        writer.log(f"start/{number}/0", "stdout", b"printed", float(number))
        writer.write([AttemptFinished(key, 0, StepOutcome("succeeded", refs), time=2.0)])
        _say("finished", run_id, key.path)
    if store.add_segment(FLOW, run_id, "tags-1", TagsChanged(("tag",), (), "me", 3.0)):
        _say("tagged", run_id)
    for times in POINTED:
        store.objects.replace("pointer", run_id.encode() * times, sync=True)
        _say("pointed", run_id)
    writer.write([RunEnded("succeeded", "", 9.0, TASKS)])
    writer.close()
    _say("ended", run_id)
    store.close()


if __name__ == "__main__":
    try:
        write(Path(sys.argv[1]))
    except StoreError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)
