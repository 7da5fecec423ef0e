"""Checking, mending and clearing a store whose objects cannot grow: runs in parts, their whole, no local files."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import attrs
import pytest

from mlp_core.runner.reuse import Reuse
from mlp_core.scheduler import Scheduler
from mlp_core.session import Session
from mlp_core.store import Store, layout
from mlp_core.store.growing import PACK
from mlp_core.store.records import AttemptFinished, Note, RunBegan, RunEnded
from mlp_core.upkeep.fsck import check_store
from mlp_core.upkeep.gc import clear_store
from mlp_core.upkeep.removal import remove_run
from mlp_core.upkeep.repair import repair
from mlp_core.upkeep.retention import Retention
from mlp_hookspecs import ArtifactRef, FlowGraph, RunContext, StepNode, StepOutcome, TaskKey, Transition

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlp_core.store import RunWriter

GRAPH = FlowGraph(
    "Flow", "start", "end", (StepNode("start", "linear", ("end",)), StepNode("end", "end", parents=("start",)))
)
DAY = 86400.0


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store in memory, which is a bucket to all who use it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "mlp.toml").touch()
    flags = {"store": f"memory://{tmp_path}", "plugins.safe": True}
    opened = Session.open(start=tmp_path, flags=flags).open_store(create=True)
    yield opened
    for info in list(opened.objects.list("flows/")) + list(opened.objects.list("parts/")):
        opened.objects.delete(info.key)
    opened.close()


def put(store: Store, text: str) -> ArtifactRef:
    """Store a blob."""
    target = store.blobs(inline_bytes=0).target("bytes")
    target.write([text.encode() * 100])
    return target.finish("bytes", sync=True)


def begun(store: Store, age: float, lease: float = 60, **assigned: ArtifactRef) -> RunWriter:
    """Make a run whose first task is done."""
    moment = time.time() - age
    began = RunBegan(RunContext("Flow", ""), moment, "h", 1, GRAPH, lease_seconds=lease)
    writer = store.create_run(lambda run_id: attrs.evolve(began, run=RunContext("Flow", run_id)), moment)
    writer.log("start/0/0", "stdout", b"some output\n", 1.0)
    outcome = StepOutcome("succeeded", assigned, transition=Transition(("end",)))
    writer.write([AttemptFinished(TaskKey("start"), 0, outcome)])
    return writer


def ended(store: Store, age: float, notes: int = 0, **assigned: ArtifactRef) -> str:
    """Make a run that has ended, and return its id."""
    writer = begun(store, age, **assigned)
    for number in range(notes):
        writer.write([Note("n", str(number), 1.0)])
    writer.write([RunEnded("succeeded", "", time.time() - age, 1)])
    writer.close()
    return writer.began.run.run_id


def test_every_change_of_an_object_is_named(store: Store) -> None:
    """Whatever object is changed, cut or exchanged for another, and whatever is deleted that is needed, is named."""
    ended(store, 2 * DAY, PACK, x=put(store, "x"))
    ended(store, DAY, x=put(store, "y"))
    lost = begun(store, 3 * DAY, lease=0.05)
    lost.write([Note("n", "t", 1.0)])
    lost.close()
    time.sleep(0.1)
    before = check_store(store.objects).findings
    assert {finding.severity for finding in before} == {"note"}
    objects = store.objects
    keys = [info.key for top in ("blobs/", "flows/", "parts/") for info in objects.list(top) if info.size]
    assert layout.part(layout.journal("Flow", store.run_ids("Flow")[1]), 1, 0) in keys
    rng = random.Random(20260101)  # noqa: S311 # the same every time
    unnamed = []
    for number in range(150):
        key, way = rng.choice(keys), rng.choice(["flip", "cut", "swap", "delete"])
        content = objects.read(key)
        if way == "flip":
            place = rng.randrange(len(content))
            changed = content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]
            objects.replace(key, changed, sync=True)
        elif way == "cut":
            objects.replace(key, content[: rng.randrange(len(content))], sync=True)
        elif way == "swap":
            objects.replace(key, objects.read(rng.choice([other for other in keys if other != key])), sync=True)
        elif key.startswith("parts/"):
            continue  # what is one object needs no parts, and what was never written was never acknowledged
        else:
            objects.delete(key)
        found = {finding.key for finding in check_store(objects).findings if finding not in before}
        if objects.read(key) != content if way != "delete" else True:
            whole = key.removeprefix("parts/").rsplit("/", 2)[0]
            unnamed += [(number, way, key)] if not found & {key, f"flows/{whole}"} else []
        objects.replace(key, content, sync=True)
    assert unnamed == [], "\n".join(map(str, unnamed))


def test_a_damaged_blob_is_moved_away_and_its_task_runs_again(store: Store) -> None:
    """A repair leaves nothing under the blob's name, and a resumed run does not take over what relied on it."""
    good, bad = put(store, "good"), put(store, "bad")
    run_id = ended(store, DAY, good=good, bad=bad)
    first = Scheduler(GRAPH).begin()
    state = store.run("Flow", run_id)
    assert Reuse(state, None, store.blobs()).find(first) is not None
    store.objects.replace(layout.blob(bad.digest), b"changed", sync=True)
    (finding,) = check_store(store.objects).findings
    assert finding.affects == (f"Flow/{run_id}/start/0/bad",)
    report = repair(store.objects, check_store(store.objects))
    assert not report.is_clean
    moved = [info.key for info in store.objects.list("damaged/")]
    assert [store.objects.read(key) for key in moved] == [b"changed"]
    assert Reuse(state, None, store.blobs()).find(first) is None
    put(store, "bad")
    assert check_store(store.objects).is_clean
    assert Reuse(state, None, store.blobs()).find(first) is not None


def test_what_nobody_needs_goes(store: Store) -> None:
    """Runs that are not kept go with their parts and what only they need; parts of what is one object go too."""
    shared, own = put(store, "shared"), put(store, "own")
    ended(store, 9 * DAY, PACK, shared=shared, own=own)
    kept = ended(store, DAY, shared=shared)
    later = time.time() + 3 * DAY
    planned = clear_store(store, Retention(keep=1), now=later, dry_run=True)
    cleared = clear_store(store, Retention(keep=1), now=later)
    assert attrs.evolve(planned, parts=0, size=0) == attrs.evolve(cleared, parts=0, size=0)
    assert (len(cleared.runs), cleared.blobs, cleared.kept) == (1, 1, "")
    assert list(store.run_ids("Flow")) == [kept]
    assert [info.key[-64:] for info in store.objects.list("blobs/")] == [shared.digest[7:]]
    parts = [info.key for info in store.objects.list("parts/")]
    assert {key.split("/")[2] for key in parts} == {kept}
    assert len([key for key in parts if "/journal/" in key]) == 1
    assert check_store(store.objects).findings == ()
    remove_run(store, "Flow", kept)
    assert list(store.objects.list("flows/")) == list(store.objects.list("parts/")) == []
