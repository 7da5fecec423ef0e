"""Clearing and checking what a store keeps of environments: what anybody may need stays, and damage is named."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import attrs
import pytest

from mlp_core.builtin.file_store import FileStore
from mlp_core.environments.catalog import Catalog
from mlp_core.runner.blueprint import Blueprint, store_blueprint
from mlp_core.store import Store, layout
from mlp_core.store.checked import with_checksum
from mlp_core.store.records import EnvironmentLocked, RunBegan, RunEnded
from mlp_core.store.signing import Signer
from mlp_core.upkeep.environment_clearing import unneeded_environments
from mlp_core.upkeep.fsck import check_store
from mlp_core.upkeep.gc import Cleared, clear_store
from mlp_core.upkeep.repair import repair
from mlp_core.upkeep.retention import Retention
from mlp_hookspecs import CodeRef, EnvironmentLock, EnvironmentSpec, FlowGraph, RunContext, StepNode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlp_hookspecs import ArtifactRef

GRAPH = FlowGraph("Flow", "start", "end", (StepNode("start", "linear", ("end",)), StepNode("end", "end")))
LINUX = ("linux-64",)
DAY = 24 * 3600.0


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store in a folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    opened = Store.open(FileStore(tmp_path / "store"), create=True)
    yield opened
    opened.close()


def spec(name: str) -> EnvironmentSpec:
    """Return a requirement."""
    return EnvironmentSpec("toy", {"packages": name})


def lock(name: str) -> EnvironmentLock:
    """Return its lock."""
    return EnvironmentLock("toy", f"{name}==1", "3.12")


def blob(store: Store, text: str) -> ArtifactRef:
    """Store a blob."""
    target = store.blobs(inline_bytes=0).target("bytes")
    target.write([text.encode()])
    return target.finish("bytes", sync=True)


def keep(store: Store, name: str) -> str:
    """Keep an environment with a bundle, and return the digest of its lock."""
    catalog = Catalog(store)
    catalog.keep(spec(name), lock(name), LINUX)
    catalog.add_bundle(lock(name).digest, "linux-64", {f"{name}.whl": blob(store, f"the wheel of {name}")})
    return lock(name).digest


def run(store: Store, *names: str, ended: bool = True) -> str:
    """Make a run whose start ran in some environments, and return its id."""
    moment = time.time() - DAY

    def began(run_id: str) -> RunBegan:
        return RunBegan(RunContext("Flow", run_id), moment, "host", 1, GRAPH)

    writer = store.create_run(began, moment)
    writer.write([EnvironmentLocked(spec(name), lock(name), ("start",), moment) for name in names])
    if ended:
        writer.write([RunEnded("succeeded", "", moment, 1)])
    writer.close()
    return writer.began.run.run_id


def age(store: Store, seconds: float = 2 * DAY) -> None:
    """Make all of the environments and blobs old."""
    for prefix in (layout.ENVIRONMENTS, layout.BLOBS):
        for info in store.objects.list(prefix):
            path = store.objects.local_path(info.key)
            assert path is not None
            os.utime(path, (time.time() - seconds,) * 2)


def clear(store: Store, grace: float = 3600.0, policy: Retention | None = None, *, dry_run: bool = False) -> Cleared:
    """Clear a store."""
    return clear_store(store, policy or Retention(), now=time.time(), grace=grace, dry_run=dry_run)


def counts(cleared: Cleared) -> tuple[int, int, int, int]:
    """Return how many locks, answers, bundles and blobs went."""
    return cleared.locks, cleared.answers, cleared.bundles, cleared.blobs


def is_whole(store: Store, name: str) -> bool:
    """Tell whether an environment is there with its answer and all files of its bundle."""
    bundle = Catalog(store).bundle(lock(name).digest, "linux-64")
    if bundle is None or Catalog(store).answer(spec(name), LINUX) != lock(name):
        return False
    return all(bytes(store.blobs().source(ref).buffer()) for ref in bundle.files.values())


def test_what_anybody_needs_stays_and_all_else_goes(store: Store) -> None:
    """Environments that a name stands for, a run ran in or a deployment has stay; another goes with all it has."""
    for name in ("named", "ran", "deployed", "lonely"):
        keep(store, name)
    Catalog(store).name("fraud", lock("named").digest)
    run(store, "ran")
    store_blueprint(store, Blueprint(GRAPH, (), CodeRef("flow", "Flow"), locks={"start": lock("deployed")}))
    age(store)
    planned = clear(store, dry_run=True)
    assert all(is_whole(store, name) for name in ("named", "ran", "deployed", "lonely"))
    cleared = clear(store)
    assert counts(cleared) == (1, 1, 1, 1)
    assert planned == cleared
    assert all(is_whole(store, name) for name in ("named", "ran", "deployed"))
    assert clear(store) == Cleared()


def test_what_is_young_stays(store: Store) -> None:
    """A run may be about to use what was kept or looked up within the grace."""
    keep(store, "young")
    keep(store, "used")
    assert clear(store) == Cleared()
    age(store)
    key = layout.environment_answer(spec("used").digest, LINUX)
    store.objects.replace(key, store.objects.read(key), sync=False)
    assert counts(clear(store)) == (1, 1, 1, 1)
    assert is_whole(store, "used")


def test_nothing_goes_that_is_newer_than_a_run_that_goes_on(store: Store) -> None:
    """Whatever the grace, a run that began before an environment was kept may be about to use it."""
    keep(store, "new")
    age(store, DAY / 2)
    moment = time.time() - DAY
    writer = store.create_run(lambda run_id: RunBegan(RunContext("Flow", run_id), moment, "host", 1, GRAPH), moment)
    assert clear(store) == Cleared()
    writer.close()
    assert counts(clear(store)) == (1, 1, 1, 1)


def test_environments_go_with_the_runs_that_ran_in_them(store: Store) -> None:
    """What only removed runs had goes in the same clearing."""
    keep(store, "ran")
    run_id = run(store, "ran")
    age(store)
    cleared = clear(store, policy=Retention(keep=0))
    assert cleared.runs == [f"Flow/{run_id}"]
    assert counts(cleared) == (1, 1, 1, 1)


def test_an_answer_whose_lock_is_gone_goes(store: Store) -> None:
    """It is of no use to anybody."""
    digest = keep(store, "removed")
    run(store, "removed")
    store.objects.delete(layout.environment_lock(digest))
    age(store)
    assert counts(clear(store)) == (0, 1, 0, 0)


def test_a_bundle_of_a_run_stays_though_no_lock_is_kept(store: Store) -> None:
    """So it is where a run was copied to: its journal has the lock."""
    digest = keep(store, "copied")
    run(store, "copied")
    store.objects.delete(layout.environment_lock(digest))
    store.objects.delete(layout.environment_answer(spec("copied").digest, LINUX))
    age(store)
    assert clear(store) == Cleared()


@pytest.mark.parametrize("kind", ["names/fraud/latest", "bundles"])
def test_damage_that_may_hide_what_is_needed_keeps_everything(store: Store, kind: str) -> None:
    """Where a name or bundle cannot be read, no blob and no environment goes, and the object is named."""
    keep(store, "named")
    Catalog(store).name("fraud", lock("named").digest)
    (info,) = store.objects.list(f"{layout.ENVIRONMENTS}{kind.partition('/')[0]}/")
    store.objects.replace(info.key, b"x", sync=False)
    age(store)
    cleared = clear(store)
    assert info.key in cleared.kept
    assert attrs.evolve(cleared, kept="") == Cleared()


def test_a_run_that_begins_meanwhile_keeps_its_environment(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs, names and answers are looked at again right before anything goes."""
    for name in ("begun", "looked-up", "lonely"):
        keep(store, name)
    age(store)
    found = unneeded_environments
    calls: list[object] = []

    def late(*arguments: object) -> object:
        result = found(*arguments)  # type: ignore[arg-type] # handed on
        if not calls:
            run(store, "begun")
            key = layout.environment_answer(spec("looked-up").digest, LINUX)
            store.objects.replace(key, store.objects.read(key), sync=False)
        calls.append(result)
        return result

    monkeypatch.setattr("mlp_core.upkeep.gc.unneeded_environments", late)
    assert counts(clear(store)) == (1, 1, 1, 1)
    assert is_whole(store, "begun")
    assert is_whole(store, "looked-up")


# ------------------------------------------------------------------------------------------------------------ checking


def found(store: Store, signer: Signer | None = None) -> dict[str, tuple[str, str]]:
    """Check a store, and return how bad and what is wrong by key; that no run has a seal is no matter here."""
    findings = check_store(store.objects, signer=signer).findings
    return {each.key: (each.severity, each.problem) for each in findings if not each.key.startswith(layout.FLOWS)}


def full(store: Store) -> None:
    """Put an object of each kind into a store, with a run that ran in the environment."""
    keep(store, "x")
    Catalog(store).name("fraud/scoring", lock("x").digest)
    run(store, "x")


def keys(store: Store) -> list[str]:
    """Return the keys of all environments' objects."""
    return [info.key for info in store.objects.list(layout.ENVIRONMENTS)]


def test_intact_environments_are_found_intact(store: Store) -> None:
    """Nothing is told of them, and their objects are no strangers in a store."""
    full(store)
    assert found(store) == {}


def test_every_changed_byte_is_named(store: Store) -> None:
    """Whichever object of environments has another byte, fewer or more: it is named, and what it concerns."""
    full(store)
    for key in keys(store):
        stored = store.objects.read(key)
        middle = len(stored) // 2
        flipped = stored[:middle] + bytes([stored[middle] ^ 1]) + stored[middle + 1 :]
        for content in (flipped, stored[:-1], stored[9:-1], stored + b"\n", b""):
            store.objects.replace(key, content, sync=False)
            assert found(store)[key][0] == "damage"
        store.objects.replace(key, stored, sync=False)
    assert found(store) == {}


def test_a_swapped_object_is_named(store: Store) -> None:
    """What belongs under another key is told, though its checksum is right."""
    full(store)
    keep(store, "y")
    pairs = {
        layout.environment_lock(lock("x").digest): layout.environment_lock(lock("y").digest),
        layout.environment_answer(spec("x").digest, LINUX): layout.environment_answer(spec("y").digest, LINUX),
        layout.environment_bundle(lock("x").digest, "linux-64"): layout.environment_bundle(
            lock("y").digest, "linux-64"
        ),
        layout.environment_name("fraud/scoring", "latest"): layout.environment_name("other", "latest"),
    }
    for source, target in pairs.items():
        content = with_checksum(target, store.objects.read(source)[9:-1])
        before = store.objects.read(target) if target in keys(store) else None
        store.objects.replace(target, content, sync=False)
        assert found(store)[target] == ("damage", "it speaks of something else than its name says")
        if before is None:
            store.objects.delete(target)
        else:
            store.objects.replace(target, before, sync=False)


def test_what_leads_to_nothing_is_named(store: Store) -> None:
    """A name whose lock is missing is damaged; an answer without its lock is a leftover; foreign names are noted."""
    full(store)
    key = layout.environment_lock(lock("x").digest)
    store.objects.delete(key)
    foreign = f"{layout.ENVIRONMENTS}locks/notes.txt"
    store.objects.replace(foreign, b"", sync=False)
    told = found(store)
    assert told[key] == ("damage", "it is missing")
    assert told[layout.environment_answer(spec("x").digest, LINUX)][0] == "leftover"
    assert told[foreign][0] == "note"


def test_a_damaged_file_of_a_bundle_is_named_with_the_bundle(store: Store) -> None:
    """The blob is damaged or missing, and the environment is what it concerns."""
    full(store)
    (info,) = store.objects.list(layout.BLOBS)
    store.objects.replace(info.key, b"x", sync=False)
    damaged = [each for each in check_store(store.objects).findings if each.key == info.key]
    store.objects.delete(info.key)
    missing = [each for each in check_store(store.objects).findings if each.key == info.key]
    assert [each.problem for each in missing] == ["it is missing"]
    for finding in (*damaged, *missing):
        assert "x.whl" in finding.affects[0]
        assert "mlp env bundle" in finding.remedy
    assert len(damaged) == 1


@pytest.mark.parametrize("is_there", [True, False])
def test_a_repair_restores_a_lock_from_a_run(store: Store, is_there: bool) -> None:
    """Whether it is damaged or missing: the run's journal has it, and all is as it was."""
    full(store)
    key = layout.environment_lock(lock("x").digest)
    if is_there:
        store.objects.replace(key, b"x", sync=False)
    else:
        store.objects.delete(key)
    assert repair(store.objects, check_store(store.objects)).is_clean
    assert set(found(store)) <= {"damaged/"}
    assert Catalog(store).find("fraud/scoring") == lock("x")
    assert Catalog(store).kept(lock("x").digest).spec == spec("x")


def test_a_repair_moves_away_what_can_be_made_anew(store: Store) -> None:
    """Damaged answers, bundles and locks that no run has are in nobody's way afterwards."""
    keep(store, "x")
    moved = keys(store)
    for key in moved:
        store.objects.replace(key, b"x", sync=False)
    repair(store.objects, check_store(store.objects))
    assert keys(store) == []
    assert len(list(store.objects.list("damaged/"))) == len(moved)
    keep(store, "x")
    assert set(found(store)) == {"damaged/"}


def test_what_is_not_signed_is_noted_where_records_are(store: Store) -> None:
    """With the key, unsigned environments and runs are told; signed ones, and a reader without it, are not."""
    full(store)
    key = Signer(b"k" * 32)
    told = check_store(store.objects, signer=key).findings
    noted = {each.key for each in told if "signed" in each.problem}
    (journal,) = (info.key for info in store.objects.list(layout.FLOWS) if info.key.endswith("journal"))
    assert noted == {*keys(store), journal}
    assert check_store(store.objects, signer=key).is_clean
    signing = Store.open(store.objects, create=False, signer=key)
    for each in (*keys(store), *(info.key for info in store.objects.list(layout.FLOWS))):
        store.objects.delete(each)
    full(signing)
    assert not [each for each in check_store(store.objects, signer=key).findings if "signed" in each.problem]
