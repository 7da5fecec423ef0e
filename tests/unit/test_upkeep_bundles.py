"""The bundles of a run's environments travel with it: copied and packed, checked on the way, hostile ones refused."""

from __future__ import annotations

import os
import time
import uuid
from typing import TYPE_CHECKING

import attrs
import pytest

from mlp_core.builtin.file_store import FileStore
from mlp_core.builtin.fsspec_store.store import FsspecStore
from mlp_core.environments.bundling import unpacker
from mlp_core.environments.catalog import Catalog
from mlp_core.environments.records import Bundle
from mlp_core.errors import NotFound, StoreDamaged, UsageError
from mlp_core.store import Store, layout
from mlp_core.store.checked import with_checksum
from mlp_core.store.content import sha256
from mlp_core.store.records import AttemptStarted, EnvironmentLocked, RunBegan, RunEnded
from mlp_core.upkeep import archive_format as form
from mlp_core.upkeep.archive import Archive, export_run
from mlp_core.upkeep.arrival import has_object
from mlp_core.upkeep.fsck import check_store
from mlp_core.upkeep.gc import clear_store
from mlp_core.upkeep.retention import Retention
from mlp_core.upkeep.sync import RunSynced, SyncOptions, chosen_runs, sync_runs
from mlp_hookspecs import EnvironmentLock, EnvironmentSpec, FlowGraph, RunContext, StepNode, TaskKey, wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlp_hookspecs import ArtifactRef

GRAPH = FlowGraph("Flow", "start", "start", (StepNode("start", "end"),))
LOCK = EnvironmentLock("toy", "numpy==2.0", "3.12", has_own_packages=True)
SPEC = EnvironmentSpec("toy", {"packages": "numpy"})
WHEEL = b"the wheel" * 1000


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Store]]:
    """A function that opens a new store of some kind."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    opened: list[Store] = []

    def open_new(kind: str) -> Store:
        name = uuid.uuid4().hex
        is_file = kind == "file"
        objects = FileStore(tmp_path / name) if is_file else FsspecStore(f"memory://{name}", {}, retry_seconds=0)
        opened.append(Store.open(objects, create=True))
        return opened[-1]

    yield open_new
    for store in opened:
        store.close()


@pytest.fixture(params=["file-file", "file-memory", "memory-file"])
def pair(request: pytest.FixtureRequest, make: Callable[[str], Store]) -> tuple[Store, Store]:
    """A store with a run in a bundled environment, and an empty one."""
    source, target = map(make, request.param.split("-"))
    fill(source)
    return source, target


def blob(store: Store, content: bytes) -> ArtifactRef:
    """Store a blob."""
    target = store.blobs(inline_bytes=0).target("bytes")
    target.write([content])
    return target.finish("bytes", sync=True)


def fill(store: Store) -> str:
    """Make a run that ran in an environment with two bundles and a name, and return its id."""
    catalog = Catalog(store)
    catalog.keep(SPEC, LOCK, ["linux-64"])
    catalog.name("fraud", LOCK.digest)
    catalog.add_bundle(LOCK.digest, "linux-64", {"a.whl": blob(store, WHEEL)})
    catalog.add_bundle(LOCK.digest, "", {"own.whl": blob(store, b"own")})
    other = EnvironmentLock("toy", "other", "3.12")
    catalog.add_bundle(other.digest, "linux-64", {"other.whl": blob(store, b"other")})

    def began(run_id: str) -> RunBegan:
        return RunBegan(RunContext("Flow", run_id), time.time(), "host", 1, GRAPH)

    writer = store.create_run(began, time.time())
    writer.write([EnvironmentLocked(SPEC, LOCK, ("start",), time.time())])
    writer.write([AttemptStarted(TaskKey("start"), 0, "local", time.time())])
    writer.write([RunEnded("succeeded", "", time.time(), 1)])
    writer.close()
    return writer.began.run.run_id


def sync(source: Store, target: Store, *, dry_run: bool = False, verify: bool = False) -> RunSynced:
    """Copy the run."""
    (synced,) = sync_runs(source, target.objects, chosen_runs(source), SyncOptions(dry_run=dry_run, verify=verify))
    return synced


def unpacked(store: Store, folder: Path, platform: str = "linux-64") -> dict[str, bytes]:
    """Return the files that an environment would be made of."""
    folder.mkdir()
    unpacker(lambda: store, LOCK, platform)(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def damaged(store: Store) -> list[str]:
    """Return what a check finds damaged."""
    return [finding.key for finding in check_store(store.objects).findings if finding.severity == "damage"]


def test_bundles_travel_with_the_run_that_needs_them(pair: tuple[Store, Store], tmp_path: Path) -> None:
    """All bundles of its locks with their files go; names, answers and other environments stay where they are."""
    source, target = pair
    planned = sync(source, target, dry_run=True)
    synced = sync(source, target)
    assert (planned.blobs, planned.size) == (synced.blobs, synced.size)
    assert synced.blobs == 2
    assert unpacked(target, tmp_path / "whole") == {"a.whl": WHEEL}
    assert unpacked(target, tmp_path / "own", "osx-arm64") == {"own.whl": b"own"}
    assert len(list(target.objects.list(layout.ENVIRONMENTS))) == 2
    assert damaged(target) == []
    with pytest.raises(NotFound):
        Catalog(target).find("fraud")
    (run,) = chosen_runs(target)
    assert Catalog(target).find("/".join(run)) == LOCK
    clear_store(target, Retention(), now=time.time() + 10 * 86400, grace=3600)
    assert unpacked(target, tmp_path / "kept") == {"a.whl": WHEEL}


def test_what_was_bundled_later_follows_where_it_is_asked_for(pair: tuple[Store, Store], tmp_path: Path) -> None:
    """A complete run is not looked into, unless everything is to be verified; then damage is mended, too."""
    source, target = pair
    sync(source, target)
    key = layout.environment_bundle(LOCK.digest, "linux-64")
    for content in (None, b"x"):
        target.objects.delete(key)
        if content is not None:
            target.objects.replace(key, content, sync=False)
        assert sync(source, target).outcome == "unchanged"
        assert sync(source, target, verify=True).outcome == "updated"
    assert unpacked(target, tmp_path / "out") == {"a.whl": WHEEL}
    assert sync(source, target, verify=True).outcome == "unchanged"


def test_a_damaged_bundle_keeps_its_run_from_being_copied(pair: tuple[Store, Store]) -> None:
    """Whether its list or its file is damaged: the run is not there then, and the error says why."""
    source, target = pair
    bundle = layout.environment_bundle(LOCK.digest, "linux-64")
    (file,) = (info.key for info in source.objects.list(layout.BLOBS) if info.size == len(WHEEL))
    for key in (bundle, file):
        before = source.objects.read(key)
        source.objects.replace(key, b"x" * len(before), sync=False)
        synced = sync(source, target)
        assert isinstance(synced.error, StoreDamaged)
        assert key in synced.error.message
        (run,) = chosen_runs(source)
        assert not has_object(target.objects, layout.journal(*run))
        source.objects.replace(key, before, sync=False)
    assert sync(source, target).outcome == "copied"


def test_an_old_bundle_that_is_there_is_made_new(make: Callable[[str], Store]) -> None:
    """So that nobody clears it away before the run is there that relies on it."""
    source, target = make("file"), make("file")
    fill(source)
    fill(target)
    (run,) = chosen_runs(target)
    path = target.objects.local_path(layout.environment_bundle(LOCK.digest, "linux-64"))
    assert path is not None
    content = path.read_bytes()
    os.utime(path, (1, 1))
    assert sync(source, target).outcome == "copied"
    assert path.stat().st_mtime > time.time() - 60
    assert path.read_bytes() == content
    assert run in chosen_runs(target)


def exported(store: Store, path: Path) -> Path:
    """Pack the run."""
    (run,) = chosen_runs(store)
    export_run(store, *run, path)
    return path


def imported(store: Store, path: Path) -> None:
    """Unpack a run."""
    with Archive(path) as archive:
        archive.import_into(store)


def test_bundles_are_packed_with_the_run_that_needs_them(pair: tuple[Store, Store], tmp_path: Path) -> None:
    """The same run gives the same bytes wherever it is; an archive without bundles is as it ever was."""
    source, target = pair
    path = exported(source, tmp_path / "run.mlprun")
    assert b"mlp-run 2\n" in path.read_bytes()[:1024]
    imported(target, path)
    imported(target, path)
    assert unpacked(target, tmp_path / "whole") == {"a.whl": WHEEL}
    assert unpacked(target, tmp_path / "own", "osx-arm64") == {"own.whl": b"own"}
    assert damaged(target) == []
    assert exported(target, tmp_path / "again.mlprun").read_bytes() == path.read_bytes()
    for info in source.objects.list(layout.environment_bundles(LOCK.digest)):
        source.objects.delete(info.key)
    assert b"mlp-run 1\n" in exported(source, tmp_path / "bare.mlprun").read_bytes()[:1024]


def repacked(path: Path, key: str, content: bytes, *, without: str = "") -> Path:
    """Return an archive whose first bundle is another one, with right hashes everywhere, and a blob less."""
    with path.open("rb") as file:
        manifest = form.read_manifest(file, path.stat().st_size)
        contents = {
            member: b"".join(form.read_member(file, name, member.size, 2**20))
            for name, member in zip(manifest.member_names(), manifest.members, strict=True)
        }
    first = next(member for member in contents if member.kind == "bundle")
    del contents[first]
    contents = {member: data for member, data in contents.items() if member.digest != without}
    contents[form.Member("bundle", sha256(content), len(content), "/".join(key.split("/")[-2:]))] = content
    made = form.Manifest.of(manifest.flow, manifest.run_id, contents)
    target = path.with_name("hostile.mlprun")
    with target.open("wb") as file:
        form.write_manifest(file, made)
        for name, member in zip(made.member_names(), made.members, strict=True):
            file.write(form.member_header(name, member.size) + contents[member] + bytes(form.padding(member.size)))
        form.write_end(file)
    return target


HOSTILE = ["up", "absolute", "other lock", "other place", "no checksum", "garbage", "no file"]


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_bundle_is_refused_before_anything_is_put_in(
    make: Callable[[str], Store], tmp_path: Path, what: str
) -> None:
    """Whatever a bundle in an archive says that is not what one of the run's environments needs."""
    source, target = make("file"), make("file")
    fill(source)
    path = exported(source, tmp_path / "run.mlprun")
    bundle = Catalog(source).bundle(LOCK.digest, "linux-64")
    assert bundle is not None
    (ref,) = bundle.files.values()
    other = EnvironmentLock("toy", "evil", "3.12").digest
    key = layout.environment_bundle(other if what == "other lock" else LOCK.digest, "win-64")
    name = {"up": "../../evil", "absolute": "/tmp/evil"}.get(what, "a.whl")  # noqa: S108 # never written
    lock = other if what in ("other lock", "other place") else LOCK.digest
    content = with_checksum(key, wire.dumps(Bundle(lock, "win-64", {name: ref}, 1.0)))
    content = {"no checksum": content[9:-1], "garbage": b"\0" * 100}.get(what, content)
    hostile = repacked(path, key, content, without=ref.digest if what == "no file" else "")
    with pytest.raises(UsageError, match="refused"):
        imported(target, hostile)
    assert [info.key for info in target.objects.list(layout.ENVIRONMENTS)] == []
    assert [info.key for info in target.objects.list(layout.BLOBS)] == []


def test_a_bundle_that_is_well_made_is_taken(make: Callable[[str], Store], tmp_path: Path) -> None:
    """What the hostile ones are made of is accepted where nothing is wrong with it."""
    source, target = make("file"), make("file")
    fill(source)
    bundle = Catalog(source).bundle(LOCK.digest, "linux-64")
    assert bundle is not None
    key = layout.environment_bundle(LOCK.digest, "win-64")
    content = with_checksum(key, wire.dumps(attrs.evolve(bundle, platform="win-64")))
    imported(target, repacked(exported(source, tmp_path / "run.mlprun"), key, content))
    assert unpacked(target, tmp_path / "out", "win-64") == {"a.whl": WHEEL}


@pytest.mark.parametrize(
    "name", ["", "x", "../../x", "sha256-" + "0" * 64, "sha256-" + "0" * 64 + "/", "sha256-" + "0" * 64 + "/../x"]
)
def test_names_of_bundles_that_none_can_have_are_refused(name: str) -> None:
    """A manifest names a lock's digest and a platform, and nothing else."""
    members = [form.Member(kind, "sha256-" + "1" * 64, 0) for kind in ("journal", "logs")]
    with pytest.raises(UsageError):
        form.Manifest.of(
            "Flow", "20260131-094500-123456", [*members, form.Member("bundle", "sha256-" + "1" * 64, 0, name)]
        )
