"""Records that have right checksums and make no sense: checking and clearing tell of them, and go on."""

from __future__ import annotations

import json
import random
import time
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from mlp_core.builtin.file_store import FileStore
from mlp_core.errors import MlpError
from mlp_core.store import Store, layout
from mlp_core.store.records import AttemptFinished, AttemptStarted, RunBegan, RunEnded, TaskReused
from mlp_core.upkeep.fsck import check_store
from mlp_core.upkeep.gc import clear_store
from mlp_core.upkeep.repair import repair
from mlp_core.upkeep.retention import Retention
from mlp_hookspecs import ArtifactPart, ArtifactRef, FlowGraph, RunContext, StepNode, StepOutcome, TaskKey, Transition

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GRAPH = FlowGraph(
    "Flow", "start", "end", (StepNode("start", "linear", ("end",)), StepNode("end", "end", parents=("start",)))
)
ODD: list[Any] = [
    None,
    True,
    -1,
    10**30,
    1e308,
    "",
    "x",
    "../../x",
    "\x00",
    "\ud800",
    "sha256-",
    "a" * 300,
    [],
    {},
    [[]],
]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store with a run that has a record of most kinds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    opened = Store.open(FileStore(tmp_path / "store"), create=True)
    digest = "sha256-" + "0" * 64
    ref = ArtifactRef("bytes", digest, 3, "bytes", parts=(ArtifactPart("a", digest, 3),))
    origin = "20260101-000000-000000"
    writer = opened.create_run(
        lambda run_id: RunBegan(RunContext("Flow", run_id, origin_run_id=origin), 1.0, "h", 1, GRAPH, {"p": ref}), 1e9
    )
    outcome = StepOutcome("succeeded", {"x": ref}, transition=Transition(("end",), 1, ref, (ref,)))
    writer.write(
        [
            AttemptStarted(TaskKey("start"), 0, "local", 1.0),
            AttemptFinished(TaskKey("start"), 0, outcome, log_digest=digest),
            TaskReused(TaskKey("end"), f"Flow/{origin}/end/0", outcome, (TaskKey("start"),)),
        ]
    )
    opened.add_segment("Flow", writer.began.run.run_id, "task.end.0", AttemptFinished(TaskKey("end"), 1, outcome))
    writer.write([RunEnded("succeeded", "", 2.0, 1)])
    writer.close()
    yield opened
    opened.close()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Iterate over the places of all values in some JSON."""
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


def changed(line: bytes, rng: random.Random) -> bytes:
    """Return a line in which one value is another, with its checksum."""
    data = json.loads(line[9:])
    path = rng.choice([path for path in places(data) if path and path != ("n",)])
    holder = data
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = rng.choice(ODD)
    text = json.dumps(data).encode()
    return b"%08x %s" % (zlib.crc32(text), text)


def test_nonsense_is_told_and_stops_nothing(store: Store) -> None:
    """No record with a right checksum, however odd, ends a check, a repair or a clearing without a message."""
    (run_id,) = store.run_ids("Flow")
    rng = random.Random(20260101)  # noqa: S311 # the same every time
    keys = [layout.journal("Flow", run_id), layout.segment("Flow", run_id, "task.end.0"), layout.seal("Flow", run_id)]
    for _ in range(200):
        key = rng.choice(keys)
        content = store.objects.read(key)
        lines = content.split(b"\n")
        number = rng.randrange(len(lines) - 1)
        lines[number] = changed(lines[number], rng)
        store.objects.replace(key, b"\n".join(lines), sync=False)
        report = check_store(store.objects)
        repair(store.objects, report)
        try:
            clear_store(store, Retention(keep=0), now=time.time(), dry_run=True)
        except MlpError as error:
            assert str(error)  # noqa: PT017 # a message is all that is allowed
        store.objects.replace(key, content, sync=False)
        if store.objects.read(keys[2]) == b"":
            pytest.fail("a repair has emptied the summary")
