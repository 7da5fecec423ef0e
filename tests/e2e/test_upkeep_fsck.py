"""Checking a store: every change of every stored byte is named, with whom it concerns, and nothing else is."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from mlp_core.builtin.file_store import FileStore
from mlp_core.deploy import Deployments, Order
from mlp_core.loading import load_flow
from mlp_core.store import Store
from mlp_core.store.faults import GuardedObjects
from mlp_core.store.records import AttemptFinished, RunBegan, RunEnded
from mlp_core.upkeep.fsck import check_store
from mlp_core.upkeep.repair import repair
from mlp_hookspecs import Attachment, FlowGraph, RunContext, StepNode, StepOutcome, TaskKey
from mlp_reliability.tampering import WAYS, files_of, tamper

if TYPE_CHECKING:
    from conftest import Project
    from mlp_core.upkeep.findings import Finding
    from mlp_reliability.tampering import Tampered

GOLDEN = Path(__file__).parent.parent / "golden/format-1/store"

FLOW = """
class Flow(FlowSpec):
    fails = Parameter("fails", default=False)
    table = bytes(20_000)

    @step
    def start(self):
        print("some output")
        self.big = b"b" * 50_000
        self.items = ["a" * 9_000, "c" * 9_000, "d"]
        self.next(self.work, foreach="items")

    @step
    def work(self):
        self.made = self.input * 2
        print("made", len(self.made), file=sys.stderr)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.lengths = [len(each.made) for each in inputs]
        if self.fails:
            raise ValueError("e" * 10_000)
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@attrs.frozen
class Filled:
    """A store with something of every kind."""

    root: Path
    store: Store
    run_ids: dict[str, str]

    def check(self, **options: Any) -> tuple[Finding, ...]:
        """Return what a check of it finds."""
        return check_store(self.store.objects, **options).findings


@pytest.fixture(scope="module")
def filled(project: Project) -> Filled:
    """A store with runs that succeeded, failed and were resumed, segments, attachments, deployments and blueprints."""
    good = project.run(FLOW)
    failed = project.run(FLOW, parameters={"fails": True})
    resumed = project.run(FLOW, origin=failed.state)
    session = project.session()
    store = session.open_store(create=False)
    flow = load_flow(project.write(FLOW), "Flow")
    deployments = Deployments(session)
    deployments.deploy(flow, Order(tags=("one",)))
    deployments.deploy(flow, Order(tags=("two",)))
    deployments.deploy(flow, Order(name="other"))
    from mlp_core.client import client_for

    client = client_for(session)
    client.namespace = None
    client.Run(f"Flow/{good.run_id}").add_tags(["first"])
    client.Run(f"Flow/{failed.run_id}").add_tags(["second"])
    attached = _attached(store)
    blueprint = deployments.find("Flow", "local").blueprint
    orchestrated_id = _orchestrated(store, blueprint)
    ids = {
        "good": good.run_id,
        "failed": failed.run_id,
        "resumed": resumed.run_id,
        "attached": attached,
        "orchestrated": orchestrated_id,
    }
    root = store.objects.local_path("format.json").parent
    return Filled(root, store, ids)


def _attached(store: Store) -> str:
    """Make a run whose task has a report attached."""
    graph = FlowGraph("Flow", "start", "end", (StepNode("start", "linear", ("end",)), StepNode("end", "end")))
    writer = store.create_run(lambda run_id: RunBegan(RunContext("Flow", run_id), 1.0, "h", 1, graph), 1e9)
    blobs = store.blobs()
    target = blobs.target("bytes")
    target.write([b"report" * 4000])
    ref = target.finish("bytes", sync=True)
    outcome = StepOutcome("succeeded", attachments=(Attachment("card", "c", ref),))
    writer.log("start/0/0", "stdout", b"line\n", 2.0)
    writer.write([AttemptFinished(TaskKey("start"), 0, outcome)])
    writer.write([RunEnded("succeeded", "", 2.0, 1)])
    writer.close()
    return writer.began.run.run_id


def _orchestrated(store: Store, blueprint: str) -> str:
    """Run the first task of a flow as an orchestrator does, and end the run."""
    import json
    import subprocess
    import sys

    def command(*words: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "mlp_core.orchestrated", words[0], "--store", store.url, *words[1:]],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    run_id = command("begin", "--blueprint", blueprint, "--parameters", "{}")["run_id"]
    place = ("--flow", "Flow", "--run-id", run_id)
    command("step", *place, "--step", "start", "--task-id", "0", "--attempt", "0")
    command("finish", *place, "--status", "cancelled")
    return run_id


def test_a_store_that_nobody_touched_is_clean(filled: Filled) -> None:
    """A store with runs of every kind has no damage, no leftovers, and nothing to be told."""
    assert filled.check() == ()


def is_missed(tampered: Tampered, key: str) -> bool:
    """Tell whether nothing can tell that a file is missing: who reads the store takes it for one never written."""
    is_alone = "/segments/tags." in key or key.startswith("targets/")
    return tampered.way == "delete" and is_alone


def test_every_change_is_named(filled: Filled) -> None:
    """Of 500 flips, cuts, exchanges and deletions of stored files each is told with the key of every file changed."""
    rng = random.Random(20260101)  # noqa: S311 # the same every time
    keys = files_of(filled.root)
    missed = []
    seen: Counter[tuple[str, str]] = Counter()
    count = 0
    while count < 500:
        tampered = tamper(filled.root, keys, rng)
        named = {finding.key for finding in filled.check()}
        folders = tuple(key for key in named if key.endswith("/"))
        unnamed = [key for key in tampered.keys if key not in named and not key.startswith(folders)]
        tampered.undo(filled.root)
        if any(is_missed(tampered, key) for key in tampered.keys):
            continue
        count += 1
        seen[tampered.way, tampered.keys[0].partition("/")[0]] += 1
        if unnamed:
            missed.append((tampered.way, unnamed, tampered.detail))
    assert not missed, "\n".join(map(str, missed))
    areas = {"format.json", "blobs", "blueprints", "deployments", "flows", "targets"}
    assert {area for _, area in seen} >= areas
    assert {way for way, _ in seen} == set(WAYS)
    assert filled.check() == ()


def test_damage_is_told_with_those_it_concerns(filled: Filled) -> None:
    """A blob that is damaged or missing is told with every artifact, task, run and deployment that needs it."""
    run = f"Flow/{filled.run_ids['good']}"
    state = filled.store.run("Flow", filled.run_ids["good"])
    start = next(task for key, task in state.tasks.items() if key.step == "start")
    ref = start.outcome.assigned["big"]
    path = filled.root / "blobs" / ref.digest[7:9] / ref.digest
    content = path.read_bytes()
    for damaged in (content[:-1], None):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
            path.chmod(0o600)
        (finding,) = filled.check()
        assert finding.severity == "damage"
        assert f"{run}/start/0/big" in finding.affects
        assert f"Flow/{filled.run_ids['failed']}/start/0/big" in finding.affects
        assert "mlp resume" in finding.remedy
        (alone,) = filled.check(runs=[("Flow", filled.run_ids["failed"])])
        assert set(alone.affects) == {f"Flow/{filled.run_ids['failed']}/start/0/big"}
        assert filled.check(runs=[("Flow", filled.run_ids["attached"])]) == ()
        path.touch()
        path.write_bytes(content)
        path.chmod(0o600)
    package = state.began.code.package
    tampered = filled.root / "blobs" / package.digest[7:9] / package.digest
    content = tampered.read_bytes()
    tampered.write_bytes(content[1:])
    (finding,) = filled.check()
    assert f"{run} (code.package)" in finding.affects
    assert any(name.startswith("deployment local/Flow v000001") for name in finding.affects)
    assert any(name.startswith("blueprint ") for name in finding.affects)
    tampered.write_bytes(content)


def test_what_does_not_belong_there_is_told_and_stays(filled: Filled) -> None:
    """Files, links, pipes and folders that nobody of us made are named; nothing is opened that may never return."""
    run = f"flows/Flow/{filled.run_ids['good']}"
    names = ["x", "blobs/zz", "blobs/aa/sha256-00", f"{run}/other", "flows/1/x", f"{run}/segments/..x", "blueprints/b"]
    for name in names:
        path = filled.root / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.write_text("{}")
        path.chmod(0o600)
    link, pipe = filled.root / "flows/link", filled.root / "blobs/pipe"
    link.symlink_to("/nowhere")
    os.mkfifo(pipe, 0o600)
    all_found = filled.check()
    found = {finding.key: finding.severity for finding in all_found}
    for name in names:
        key = "flows/1" if name.startswith("flows/1") else name
        assert found[key] == "note", name
        assert (filled.root / name).exists()
    assert {"flows/link", "blobs/pipe"} <= {finding.key for finding in all_found if finding.severity == "damage"}
    repair(filled.store.objects, check_store(filled.store.objects))
    assert all((filled.root / name).exists() for name in names)
    for name in names:
        (filled.root / name).unlink()
    shutil.rmtree(filled.root / "flows/1")
    (filled.root / "blobs/aa").rmdir()
    link.unlink()
    pipe.unlink()
    assert filled.check() == ()


def test_what_is_open_to_others_is_told_and_closed(filled: Filled) -> None:
    """Permissions wider than the setting are named and taken away; a shared store is open to its group."""
    blob = next(filled.root.glob("blobs/*/*"))
    for path, mode in ((blob, 0o640), (filled.root / "flows", 0o770), (filled.root / "format.json", 0o604)):
        path.chmod(mode)
    found = {finding.key for finding in filled.check() if finding.severity == "exposure"}
    assert found == {str(blob.relative_to(filled.root)), "flows", "format.json"}
    assert {f.key for f in filled.check(shared=True)} == {"format.json"}
    assert not check_store(filled.store.objects).is_clean
    assert repair(filled.store.objects, check_store(filled.store.objects)).is_clean
    assert filled.check() == ()
    assert blob.stat().st_mode & 0o777 == 0o600


def test_what_says_what_the_store_is_can_be_written_anew(filled: Filled) -> None:
    """A damaged or missing format is mended; one of a version that nobody knows here is left alone."""
    path = filled.root / "format.json"
    content = path.read_bytes()
    for damaged in (b"", b"{", None):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
            path.chmod(0o600)
        assert repair(filled.store.objects, check_store(filled.store.objects)).is_clean
        assert path.read_bytes() == content
    path.write_bytes(b'{"format": 9}\n')
    report = repair(filled.store.objects, check_store(filled.store.objects))
    assert [finding.key for finding in report.findings] == ["format.json"]
    assert not report.is_clean
    assert path.read_bytes() == b'{"format": 9}\n'
    path.write_bytes(content)


def test_seals_and_locks_are_mended(filled: Filled) -> None:
    """A run's summary is written anew from its journal, and what must be empty is emptied."""
    run = filled.root / "flows/Flow" / filled.run_ids["good"]
    before = (run / "seal").read_bytes()
    for torn in (b"", before[:-5], before[:-5] + bytes(5)):  # a power cut leaves such, since nothing waits for it
        (run / "seal").write_bytes(torn)
        assert [finding.severity for finding in filled.check()] == ["note"]
    (run / "seal").write_bytes(before[:-5] + before[-5:].swapcase().replace(b"}", b"]"))
    (run / "lock").write_bytes(b"x")
    assert {finding.severity for finding in filled.check()} == {"damage"}
    assert repair(filled.store.objects, check_store(filled.store.objects)).is_clean
    assert filled.check() == ()
    assert (run / "seal").read_bytes() == before


def test_an_unfinished_line_is_fine_and_can_be_marked(filled: Filled) -> None:
    """A run whose driver died in a write is no damage; a repair marks the line, and cuts nothing off."""
    graph = FlowGraph("Flow", "start", "end", (StepNode("start", "linear", ("end",)), StepNode("end", "end")))
    writer = filled.store.create_run(lambda run_id: RunBegan(RunContext("Flow", run_id), 1.0, "h", 1, graph), 2e9)
    writer.write([AttemptFinished(TaskKey("start"), 0, StepOutcome("succeeded"))])
    run_id = writer.began.run.run_id
    writer.close()
    path = filled.root / "flows/Flow" / run_id / "journal"
    whole = path.read_bytes()
    path.write_bytes(whole + b'123 {"n":2')
    (finding,) = filled.check()
    assert (finding.severity, finding.key) == ("note", f"flows/Flow/{run_id}/journal")
    assert "mlp resume" in finding.remedy
    repair(filled.store.objects, check_store(filled.store.objects))
    assert path.read_bytes() == whole + b'123 {"n":2 ~ unfinished\n'
    assert filled.check() == (finding,)
    assert filled.store.run("Flow", run_id).status == "lost"
    shutil.rmtree(path.parent)


def test_a_store_of_the_first_format_is_intact(tmp_path: Path) -> None:
    """What the first version has left is no damage; runs that have ended can get their summaries."""
    root = tmp_path / "store"
    shutil.copytree(GOLDEN, root)
    for path in (root, *root.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    objects = GuardedObjects(FileStore(root))
    report = check_store(objects)
    assert {finding.severity for finding in report.findings} == {"note"}
    assert report.runs > 3
    sealed = [finding for finding in repair(objects, report).findings if finding.repaired]
    assert len(sealed) == 3
    assert all(finding.key.endswith("/seal") for finding in sealed)
    after = check_store(objects).findings
    assert len(after) == len(report.findings) - 3
    assert {finding.severity for finding in after} == {"note"}
