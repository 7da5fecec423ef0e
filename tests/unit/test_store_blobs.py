"""Artifacts' bytes: hashed as written, verified as read, inline when small, shared when equal, healed when damaged."""

from __future__ import annotations

import errno
import gc
import hashlib
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlp_core.builtin.file_store import FileStore
from mlp_core.builtin.fsspec_store.store import FsspecStore
from mlp_core.errors import ArtifactError, StoreDamaged, StoreError
from mlp_core.store import blobs as blobs_module
from mlp_core.store import layout
from mlp_core.store.blobs import Blobs
from mlp_core.store.content import hash_file
from mlp_core.store.faults import GuardedObjects
from mlp_core.store.verified import VerifiedFiles
from mlp_hookspecs.types import ArtifactPart, ArtifactRef

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mlp_core.store import Store
    from mlp_reliability.counting import CountingBucket

MIB = 2**20


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[FileStore]:
    """A store on a local folder."""
    opened = FileStore(tmp_path / "store")
    yield opened
    opened.close()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where this test remembers what was verified."""
    return tmp_path / "cache" / "verified"


@pytest.fixture
def blobs(objects: FileStore, cache: Path) -> Blobs:
    """Access with a cache of its own, and a low limit for what is inline."""
    return Blobs(objects, inline_bytes=100, verified=VerifiedFiles(cache))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were hashed for verification, in order."""
    found: list[Path] = []

    def spy(path: Path) -> tuple[str, int]:
        found.append(path)
        return hash_file(path)

    monkeypatch.setattr(blobs_module, "hash_file", spy)
    return found


def put(blobs: Blobs, *chunks: bytes) -> ArtifactRef:
    """Store chunks."""
    target = blobs.target("bytes")
    target.write(chunks)
    return target.finish("builtins.bytes")


def digest(content: bytes) -> str:
    """Return the digest of content."""
    return "sha256-" + hashlib.sha256(content).hexdigest()


def pattern(size: int) -> bytes:
    """Return bytes that do not repeat in step with any buffer."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def stored(objects: FileStore) -> list[str]:
    """Return the keys of all blobs."""
    return sorted(info.key for info in objects.list(layout.BLOBS))


SIZES = (0, 1, 100, 101, MIB - 1, MIB, MIB + 1, 9 * MIB, 17 * MIB + 3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", ["write", "pieces", "open", "local_path"])
def test_content_comes_back_however_it_was_written(blobs: Blobs, size: int, way: str) -> None:
    """Whatever the size and the way, the reference has the content's hash, and all ways of reading give the content."""
    content = pattern(size)
    target = blobs.target("bytes")
    if way == "write":
        target.write([content])
    elif way == "pieces":
        target.write(content[start : start + 300_007] for start in range(0, size, 300_007))
    elif way == "open":
        with target.open() as file:
            file.write(content[: size // 2])
            file.write(content[size // 2 :])
            assert file.tell() == size
    else:
        target.local_path().write_bytes(content)
    ref = target.finish("builtins.bytes")
    assert (ref.digest, ref.size, ref.parts) == (digest(content), size, ())
    assert (ref.data is not None) == (size <= 100)
    source = blobs.source(ref)
    assert source.buffer() == content
    with source.open() as file:
        assert file.read() == content
    assert source.local_path().read_bytes() == content


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(sizes=st.lists(st.sampled_from([0, 1, 99, MIB // 2, MIB, 3 * MIB, 9 * MIB]), max_size=5))
def test_chunks_of_any_sizes_are_one_content(blobs: Blobs, sizes: list[int]) -> None:
    """How a value is cut into chunks changes neither its content nor its hash."""
    content = pattern(sum(sizes))
    ends = np.cumsum(sizes)
    ref = put(blobs, *(content[end - size : end] for end, size in zip(ends, sizes, strict=True)))
    assert ref.digest == digest(content)
    assert blobs.source(ref).buffer() == content


@pytest.mark.parametrize(
    "make",
    [
        bytearray,
        memoryview,
        pickle.PickleBuffer,
        lambda content: np.frombuffer(content, dtype="u1").reshape(2, -1),
        lambda content: np.asfortranarray(np.frombuffer(content, dtype="<f8").reshape(2, -1)).T.T,
    ],
    ids=["bytearray", "memoryview", "PickleBuffer", "array", "fortran"],
)
def test_any_contiguous_buffer_can_be_written(blobs: Blobs, make: Callable[[bytes], bytes]) -> None:
    """Everything with contiguous memory is taken as it lies there."""
    buffer = make(pattern(1600))
    ref = put(blobs, buffer)
    assert ref.digest == digest(pickle.PickleBuffer(buffer).raw().tobytes())


def test_equal_content_is_stored_once(blobs: Blobs, objects: FileStore) -> None:
    """A second value of the same content adds no file."""
    first, second = put(blobs, pattern(5000)), put(blobs, pattern(2000), pattern(5000)[2000:])
    assert first == second
    assert len(stored(objects)) == 1


def test_nothing_unfinished_stays(blobs: Blobs, objects: FileStore) -> None:
    """After values were finished or given up, no temporary file is left."""
    put(blobs, pattern(5000))
    put(blobs, pattern(5000))
    given_up = blobs.target("bytes")
    given_up.write([pattern(2 * MIB)])
    given_up.part("more").local_path().write_bytes(b"x")
    given_up.discard()
    made = blobs.target("folder")
    made.local_path().mkdir()
    (made.local_path() / "a").write_bytes(pattern(5000))
    made.finish("folder")
    assert list(objects.staging().iterdir()) == []
    assert len(stored(objects)) == 1


def test_a_loaded_buffer_is_private(blobs: Blobs) -> None:
    """Writing to what was loaded changes neither the store nor what is loaded next."""
    for size in (50, 5000):
        ref = put(blobs, pattern(size))
        buffer = blobs.source(ref).buffer()
        assert not buffer.readonly
        buffer[0] = 255
        assert blobs.source(ref).buffer() == pattern(size)


def test_parts_come_back_by_name(blobs: Blobs) -> None:
    """A value may have content of its own and named parts, nested ones too; its digest stands for all of them."""
    target = blobs.target("torch")
    target.write([b"main"])
    target.part("weights").write([pattern(5000)])
    target.part("weights").write([b"!"])
    target.part("meta/shape").write([b"2x2"])
    target.part("meta").part("dtype").write([b"f8"])
    target.describe("version", "1")
    ref = target.finish("torch.Tensor")
    assert [part.name for part in ref.parts] == ["", "weights", "meta/shape", "meta/dtype"]
    assert (ref.size, ref.metadata) == (4 + 5001 + 3 + 2, {"version": "1"})
    source = blobs.source(ref)
    assert bytes(source.buffer()) == b"main"
    assert bytes(source.part("weights").buffer()) == pattern(5000) + b"!"
    assert bytes(source.part("meta").part("dtype").buffer()) == b"f8"
    with pytest.raises(KeyError):
        source.part("absent")
    folder = source.part("meta").local_path()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"shape": b"2x2", "dtype": b"f8"}
    swapped = attrs.evolve(ref, parts=(ref.parts[0], *reversed(ref.parts[1:])))
    with pytest.raises(StoreDamaged, match="list of parts"):
        blobs.source(swapped).part("weights").buffer()


def test_parts_share_the_room_for_inline_content(blobs: Blobs, objects: FileStore) -> None:
    """A value of many small parts does not make a record of any size."""
    target = blobs.target("many")
    for number in range(10):
        target.part(str(number)).write([bytes([number]) * 30])
    ref = target.finish("many")
    assert sum(part.data is not None for part in ref.parts) == 3
    assert len(stored(objects)) == 7
    assert all(bytes(blobs.source(ref).part(str(n)).buffer()) == bytes([n]) * 30 for n in range(10))


def test_a_folder_comes_back_as_a_folder(blobs: Blobs) -> None:
    """A local folder is stored file by file, small ones inline, and made again when it is read."""
    target = blobs.target("model")
    folder = target.local_path()
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "deep" / "er" / "weights").write_bytes(pattern(5000))
    ref = target.finish("model")
    again = blobs.source(ref).local_path()
    assert (again / "config.json").read_text() == "{}"
    assert (again / "deep" / "er" / "weights").read_bytes() == pattern(5000)
    assert sorted(path.name for path in again.rglob("*")) == ["config.json", "deep", "er", "weights"]


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to], ids=["symbolic", "hard"])
def test_a_linked_file_is_copied(blobs: Blobs, tmp_path: Path, link: Callable[[Path, Path], None]) -> None:
    """A file that lives elsewhere too is not moved in: what is stored does not change with it."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(pattern(5000))
    target = blobs.target("file")
    link(target.local_path(), elsewhere)
    ref = target.finish("file")
    elsewhere.write_bytes(b"changed")
    assert blobs.source(ref).buffer() == pattern(5000)


def test_what_a_format_may_not_do_is_refused(blobs: Blobs) -> None:
    """Mixing a local file with writing, leaving a file open, making nothing, or names that lead elsewhere."""
    mixed = blobs.target("bad")
    mixed.local_path()
    with pytest.raises(ArtifactError, match="not both"):
        mixed.write([b""])
    with pytest.raises(ArtifactError, match="made no file"):
        mixed.finish("x")
    mixed.discard()
    other = blobs.target("bad")
    other.write([b""])
    with pytest.raises(ArtifactError, match="not both"):
        other.local_path()
    unclosed = blobs.target("bad")
    file = unclosed.open()
    with pytest.raises(ArtifactError, match="did not close"):
        unclosed.finish("x")
    file.close()
    for name in ("", "..", "a/../b", "/a", "a//b", "a\0", "x" * 2000):
        with pytest.raises(ArtifactError, match="relative path"):
            blobs.target("bad").part(name)
    special = blobs.target("bad")
    os.mkfifo(special.local_path())
    with pytest.raises(ArtifactError, match="made no file"):
        special.finish("x")
    special.discard()
    linked = blobs.target("bad")
    linked.local_path().mkdir()
    (linked.local_path() / "link").symlink_to("/")
    with pytest.raises(ArtifactError, match="link is no regular file"):
        linked.finish("x")
    linked.discard()
    twice = blobs.target("bad")
    twice.local_path().mkdir()
    (twice.local_path() / "a").write_bytes(b"1")
    twice.part("a").write([b"2"])
    with pytest.raises(ArtifactError, match="one name to two parts"):
        twice.finish("x")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a\0b"])
def test_a_stored_reference_can_not_write_elsewhere(blobs: Blobs, name: str) -> None:
    """References come from a store, which is not trusted: a part's name never leads out of its folder."""
    part = ArtifactPart(name, digest(b"x"), 1, b"x")
    ref = ArtifactRef("folder", blobs_module.manifest_digest((part,)), 1, "folder", parts=(part,))
    with pytest.raises(ArtifactError, match="relative path"):
        blobs.source(ref).local_path()
    with pytest.raises(StoreDamaged, match="is no digest"):
        blobs.source(ArtifactRef("bytes", f"sha256-{name}", 1, "bytes")).buffer()


def damage(path: Path, content: bytes) -> None:
    """Overwrite a file's beginning in place."""
    with path.open("r+b") as file:
        file.write(content)


def test_damaged_content_is_never_returned(blobs: Blobs, objects: FileStore, cache: Path) -> None:
    """A changed, cut or missing blob, and changed inline content, raise an error that names them."""
    ref, small = put(blobs, pattern(5000)), put(blobs, b"small")
    path = objects.local_path(layout.blob(ref.digest))
    changed = attrs.evolve(small, data=b"smell")
    for read in (lambda s: s.buffer(), lambda s: s.open(), lambda s: s.local_path()):
        with pytest.raises(StoreDamaged, match="inline content"):
            read(blobs.source(changed))
    damage(path, b"xxxx")
    for access in (blobs, Blobs(objects, verified=VerifiedFiles(cache))):
        for read in (lambda s: s.buffer(), lambda s: s.open(), lambda s: s.local_path()):
            with pytest.raises(StoreDamaged, match=ref.digest):
                read(access.source(ref))
    os.truncate(path, 4000)
    with pytest.raises(StoreDamaged, match=ref.digest):
        blobs.source(ref).buffer()
    path.unlink()
    with pytest.raises(StoreDamaged, match="missing"):
        blobs.source(ref).buffer()


@pytest.mark.parametrize("spoil", ["change", "cut", "remove"])
def test_a_damaged_blob_heals_on_the_next_write(blobs: Blobs, objects: FileStore, spoil: str) -> None:
    """An existing blob is not trusted unseen: writing the same value again puts it right."""
    ref = put(blobs, pattern(5000))
    path = objects.local_path(layout.blob(ref.digest))
    if spoil == "change":
        damage(path, b"xxxx")
    elif spoil == "cut":
        os.truncate(path, 0)
    else:
        path.unlink()
    assert put(blobs, pattern(5000)) == ref
    assert blobs.source(ref).buffer() == pattern(5000)


def test_a_file_is_verified_once_per_host(
    blobs: Blobs, objects: FileStore, cache: Path, hashed: list[Path], tmp_path: Path
) -> None:
    """What one process has written or verified others do not hash again, until the file changes."""
    ref = put(blobs, pattern(5000))
    path = objects.local_path(layout.blob(ref.digest))
    assert Blobs(objects, verified=VerifiedFiles(cache)).source(ref).buffer() == pattern(5000)
    assert hashed == []
    elsewhere = tmp_path / "elsewhere"  # another user's
    for _ in range(2):
        Blobs(objects, verified=VerifiedFiles(elsewhere)).source(ref).buffer()
    assert hashed == [path]
    path.touch()
    Blobs(objects, verified=VerifiedFiles(cache)).source(ref).buffer()
    assert hashed == [path, path]


def test_paranoid_access_verifies_every_time(objects: FileStore, cache: Path, hashed: list[Path]) -> None:
    """Where nothing is trusted, every read hashes."""
    access = Blobs(objects, paranoid=True, verified=VerifiedFiles(cache))
    ref = put(access, pattern(50_000))
    for _ in range(3):
        access.source(ref).buffer()
    assert len(hashed) == 3


def test_nothing_is_taken_for_verified_before_it_is_durable(
    blobs: Blobs, objects: FileStore, cache: Path, hashed: list[Path]
) -> None:
    """A value finished without sync may be lost in a power cut, so that it is hashed before it is trusted."""
    target = blobs.target("bytes")
    target.write([pattern(5000)])
    ref = target.finish("bytes", sync=False)
    put(Blobs(objects, inline_bytes=100, verified=VerifiedFiles(cache)), pattern(5000))
    assert len(hashed) == 1
    blobs.sync()
    assert blobs.source(ref).buffer() == pattern(5000)


def test_the_cache_of_verified_files_may_be_anything(blobs: Blobs, objects: FileStore, cache: Path) -> None:
    """A cache that is damaged, too large or not writable costs time and nothing else."""
    ref = put(blobs, pattern(5000))
    for content in (b"123", bytes(5 * MIB)):
        cache.write_bytes(content)
        assert Blobs(objects, verified=VerifiedFiles(cache)).source(ref).buffer() == pattern(5000)
    cache.unlink()
    cache.mkdir()
    assert Blobs(objects, verified=VerifiedFiles(cache)).source(ref).buffer() == pattern(5000)
    assert Blobs(objects, verified=VerifiedFiles(None)).source(ref).buffer() == pattern(5000)


@pytest.mark.parametrize("size", [MIB, 32 * MIB])
def test_a_value_that_changes_while_it_is_stored_is_still_intact(objects: FileStore, cache: Path, size: int) -> None:
    """Another thread may write to an array at any time: hash and content agree, whichever moment was stored."""
    array = np.zeros(size // 8)
    stop = threading.Event()

    def scribble() -> None:
        while not stop.is_set():
            array[:] += 1

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        access = Blobs(objects, paranoid=True, verified=VerifiedFiles(cache))
        refs = [put(access, array.data) for _ in range(5)]
    finally:
        stop.set()
        thread.join()
    assert all(access.source(ref).buffer().nbytes == size for ref in refs)


def test_a_process_without_its_own_blob_makes_durable_what_it_relies_on(
    objects: FileStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blob that another process wrote a moment ago may not be durable yet: whoever refers to it syncs it too."""
    first = Blobs(objects, verified=VerifiedFiles(cache)).target("bytes")
    first.write([pattern(50_000)])
    first.finish("bytes", sync=False)
    other = FileStore(Path(objects.url.removeprefix("file://")))
    synced: list[int] = []
    real = os.fsync

    def spy(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        real(fd)

    monkeypatch.setattr(os, "fsync", spy)
    ref = put(Blobs(other, verified=VerifiedFiles(cache)), pattern(50_000))
    path = objects.local_path(layout.blob(ref.digest))
    root = path.parents[2]
    assert {p.stat().st_ino for p in (path, path.parent, path.parents[1], root)} <= set(synced)
    other.close()


def test_a_sync_that_failed_is_not_made_up_for_by_another_one(
    objects: FileStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be made durable is written anew by the next attempt, in a file of its own."""
    earlier = put(Blobs(objects, inline_bytes=0, verified=VerifiedFiles(cache)), b"earlier")
    access = Blobs(GuardedObjects(objects), inline_bytes=0, verified=VerifiedFiles(cache))
    target = access.target("bytes")
    target.write([b"earlier"])
    target.finish("bytes", sync=False)
    target = access.target("bytes")
    target.write([b"later"])
    later = target.finish("builtins.bytes", sync=False)

    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StoreError, match="Input/output error"):
            access.sync()
    files = {ref.digest: objects.local_path(layout.blob(ref.digest)).stat().st_ino for ref in (earlier, later)}
    assert put(access, b"later") == later
    assert access.source(later).buffer() == b"later"
    assert put(access, b"earlier").digest == earlier.digest
    written = {digest: objects.local_path(layout.blob(digest)).stat().st_ino for digest in files}
    assert written[later.digest] != files[later.digest]
    assert written[earlier.digest] == files[earlier.digest]


def test_a_sync_that_failed_takes_nothing_from_others(
    objects: FileStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blob that another process found, and made durable, is still there when its first writer fails."""
    access = Blobs(GuardedObjects(objects), inline_bytes=0, verified=VerifiedFiles(cache))
    for content in (b"shared", b"own"):
        target = access.target("bytes")
        target.write([content])
        target.finish("bytes", sync=False)
    other = FileStore(Path(objects.url.removeprefix("file://")))
    acknowledged = put(Blobs(other, inline_bytes=0, verified=VerifiedFiles(cache)), b"shared")

    def fail(_keys: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(objects, "sync", fail)
    with pytest.raises(StoreError, match="Input/output error"):
        access.sync()
    assert Blobs(other, verified=VerifiedFiles(cache)).source(acknowledged).buffer() == b"shared"
    other.close()


def test_memory_does_not_grow_with_the_value(tmp_path: Path) -> None:
    """Storing, verifying and mapping a large array takes a small part of its size on top."""
    code = """
import sys, resource
from pathlib import Path
import numpy as np
from mlp_core.builtin.file_store import FileStore
from mlp_core.builtin.fsspec_store.store import FsspecStore
from mlp_core.store.blobs import Blobs
from mlp_core.store.verified import VerifiedFiles
objects = FileStore(Path(sys.argv[1]))
blobs = Blobs(objects, paranoid=True, verified=VerifiedFiles(None))
import concurrent.futures.thread
array = np.arange(256 * 2**20 // 8, dtype="f8")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
target = blobs.target("npy")
target.write([array.data])
ref = target.finish("numpy.ndarray")
view = blobs.source(ref).buffer()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024))
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 256 * MIB * 0.2


def test_small_values_make_no_files(objects: FileStore, cache: Path) -> None:
    """What is small sits in the reference alone."""
    access = Blobs(objects, verified=VerifiedFiles(cache))
    refs = [put(access, pattern(8192 - number)) for number in range(50)]
    assert stored(objects) == []
    assert all(access.source(ref).buffer().nbytes == ref.size for ref in refs)


def test_a_blob_without_local_files_is_read_into_memory(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Without a cache on this host, as for a blob that is too large for it, content is read, verified, as a whole."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    bucket = FsspecStore(f"memory://{cache.parent.parent.name}", {}, retry_seconds=0)
    access = Blobs(bucket, inline_bytes=0, cache_bytes=0, verified=VerifiedFiles(None))
    ref = put(access, b"content")
    assert bytes(access.source(ref).buffer()) == access.source(ref).open().read() == b"content"
    assert access.source(ref).local_path().read_bytes() == b"content"
    bucket.replace(layout.blob(ref.digest), b"changed", sync=True)
    with pytest.raises(StoreDamaged, match="is damaged"):
        access.source(ref).buffer()
    bucket.delete(layout.blob(ref.digest))
    with pytest.raises(StoreDamaged, match="is missing"):
        access.source(ref).buffer()
    bucket.close()


def test_somebody_elses_old_blob_is_written_anew(
    objects: FileStore, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old blob whose time may not be changed, in a shared store, is replaced by one of our own."""
    ref = put(blobs, pattern(1000))
    path = objects.local_path(layout.blob(ref.digest))
    os.utime(path, (0, 0))
    before = path.stat().st_ino

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "not the owner")

    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", refuse)
        assert put(blobs, pattern(1000)) == ref
    assert path.stat().st_ino != before


def test_a_blob_is_held_where_it_is_intact(objects: FileStore, blobs: Blobs) -> None:
    """Who is about to refer to a blob finds an intact one, which is made new; a damaged or absent one is not held."""
    ref = put(blobs, pattern(1000))
    path = objects.local_path(layout.blob(ref.digest))
    os.utime(path, (0, 0))
    assert blobs.holds(ref.digest, 1000)
    assert path.stat().st_mtime > time.time() - 3600
    assert not blobs.holds(ref.digest, 999)
    assert not blobs.holds(digest(b"absent"), 6)
    damage(path, b"xxxx")
    assert not blobs.holds(ref.digest, 1000)


def test_an_empty_blob_is_a_value_too(objects: FileStore, blobs: Blobs) -> None:
    """A reference may lead to a blob without a byte, which cannot be mapped."""
    objects.create(layout.blob(digest(b"")), b"", sync=False)
    source = blobs.source(ArtifactRef("bytes", digest(b""), 0, "bytes"))
    with source.open() as file:
        assert bytes(source.buffer()) == file.read() == source.local_path().read_bytes() == b""
    assert not source.buffer().readonly


def test_a_value_of_parts_alone_has_no_content_of_its_own(blobs: Blobs) -> None:
    """Who asks for what was not written is told what there is."""
    target = blobs.target("parts")
    assert target.format == "parts"
    target.part("a/b").write([b"1"])
    target.part("c").write([b"2"])
    source = blobs.source(target.finish("x"))
    for asked in (source, source.part("a")):
        with pytest.raises(ArtifactError, match="no content of its own, only the parts a/b, c"):
            asked.buffer()


def test_nothing_written_is_an_empty_value(blobs: Blobs) -> None:
    """A format that writes nothing, to the value or to a part of it, has stored content without a byte."""
    assert put(blobs).digest == digest(b"")
    target = blobs.target("parts")
    target.part("empty")
    (part,) = target.finish("x").parts
    assert (part.name, part.size, part.data) == ("empty", 0, b"")


class Forgetful(FileStore):
    """A store whose syncs fail where a test says so, and are written down."""

    fails = False
    synced: tuple[str, ...] = ()

    def sync(self, keys: Sequence[str]) -> None:
        """Fail, or write down what is to be durable."""
        if self.fails:
            raise OSError(errno.EIO, "Input/output error")
        self.synced += tuple(keys)
        super().sync(keys)


def test_each_blob_is_synced_once(tmp_path: Path, cache: Path) -> None:
    """What is durable is not synced again, and what could not be made durable is not tried again by itself."""
    objects = Forgetful(tmp_path / "store")
    access = Blobs(GuardedObjects(objects), inline_bytes=0, verified=VerifiedFiles(cache))

    def is_doubtful(content: bytes) -> bool:
        path = objects.local_path(layout.blob(digest(content)))
        assert path is not None
        return path.stat().st_mtime == 2**31 - 2

    first = put(access, b"first")
    access.sync()
    objects.fails = True
    with pytest.raises(StoreError):
        put(access, b"second")
    objects.fails = False
    access.sync()
    assert objects.synced == (layout.blob(first.digest),)
    assert (is_doubtful(b"first"), is_doubtful(b"second")) == (False, True)
    put(access, b"second")
    objects.fails = True
    with pytest.raises(StoreError):
        put(access, b"third")
    assert [is_doubtful(content) for content in (b"first", b"second", b"third")] == [False, False, True]
    objects.close()


def test_blobs_are_made_durable_together(objects: FileStore, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moving a blob in syncs nothing by itself; `sync` does, for all of them at once."""
    asked: list[bool] = []
    real = objects.adopt

    def spy(source: Path, key: str, *, sync: bool) -> None:
        asked.append(sync)
        real(source, key, sync=sync)

    monkeypatch.setattr(objects, "adopt", spy)
    put(Blobs(objects, inline_bytes=0, verified=VerifiedFiles(cache)), b"content")
    assert asked == [False]


@pytest.mark.parametrize(("age", "is_touched"), [(3500, False), (3700, True)])
def test_a_blob_is_new_for_an_hour(
    objects: FileStore,
    blobs: Blobs,
    hashed: list[Path],
    age: float,
    is_touched: bool,  # a parameter of the test
) -> None:
    """A younger blob is left alone; an older one is made new and stays verified; neither is written again."""
    ref = put(blobs, pattern(1000))
    path = objects.local_path(layout.blob(ref.digest))
    then = time.time() - age
    os.utime(path, (then, then))
    number = path.stat().st_ino
    assert put(blobs, pattern(1000)) == ref
    assert path.stat().st_ino == number
    assert (path.stat().st_mtime > time.time() - 60) == is_touched
    assert blobs.source(ref).buffer() == pattern(1000)
    assert len(hashed) == 1


def test_from_afar_an_intact_blob_is_reused_while_it_is_new(bucket_store: Store, bucket: CountingBucket) -> None:
    """Where there are no local files, size and age decide: what is new is not uploaded again, what is old is."""
    blobs = bucket_store.blobs(inline_bytes=0)
    ref = put(blobs, pattern(1000))
    key = layout.blob(ref.digest)
    assert bucket.requests["adopt"] == 1
    assert put(blobs, pattern(1000)) == ref
    assert bucket.requests["adopt"] == 1
    assert blobs.holds(ref.digest, 1000) is True
    assert blobs.holds(ref.digest, 999) is False
    assert blobs.holds(digest(b"absent"), 1) is False
    for _ in range(2):
        os.utime(bucket.root / key, (0, 0))
        assert put(blobs, pattern(1000)) == ref
    assert bucket.requests["adopt"] == 3
    os.utime(bucket.root / key, (0, 0))
    assert blobs.holds(ref.digest, 1000) is True
    assert list(bucket.staging().iterdir()) == []


def test_what_formats_get_of_a_blob_is_the_blob_itself(objects: FileStore, blobs: Blobs) -> None:
    """A local file is not copied: its path is the blob's, or a link to it in a folder that goes with the access."""
    ref = put(blobs, pattern(1000))
    path = objects.local_path(layout.blob(ref.digest))
    assert blobs.verified_path(ref.digest, 1000) == path
    assert blobs.source(ref).local_path() == path
    target = blobs.target("folder")
    target.part("a/b").write([pattern(1000)])
    target.part("a/c").write([b"small"])
    access = Blobs(objects, verified=VerifiedFiles(None))
    made = access.source(target.finish("x")).local_path()
    assert (made / "a" / "b").readlink() == path
    assert (made / "a" / "c").read_bytes() == b"small"
    del access
    gc.collect()
    assert not made.exists()


def test_a_folder_is_checked_before_it_is_made(blobs: Blobs) -> None:
    """Parts that are not those of the value are found for a folder too."""
    target = blobs.target("folder")
    target.part("a").write([b"1"])
    target.part("b").write([b"2"])
    ref = target.finish("x")
    with pytest.raises(StoreDamaged, match="list of parts"):
        blobs.source(attrs.evolve(ref, parts=ref.parts[:1])).local_path()


def test_the_inline_limit_is_8_kib(objects: FileStore, cache: Path) -> None:
    """Unless another is given."""
    access = Blobs(objects, verified=VerifiedFiles(cache))
    assert [put(access, pattern(size)).data is not None for size in (8192, 8193)] == [True, False]
