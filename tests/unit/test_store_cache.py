"""The cache of blobs from elsewhere: bounded, verified, and never in anybody's way."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from typing import TYPE_CHECKING

import pytest

from mlp_core.builtin.file_store import FileStore
from mlp_core.errors import StoreDamaged, StoreFull, StoreUnavailable
from mlp_core.store import cache as module
from mlp_core.store import layout
from mlp_core.store.cache import BlobCache
from mlp_core.store.content import hash_file

if TYPE_CHECKING:
    from pathlib import Path


def digest(data: bytes) -> str:
    """Return the digest of bytes."""
    return f"sha256-{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
def objects(tmp_path: Path) -> FileStore:
    """A store elsewhere, with a few blobs."""
    made = FileStore(tmp_path / "store", durable=False)
    for data in (b"a" * 100, b"b" * 100, b"c" * 100):
        made.create(layout.blob(digest(data)), data, sync=False)
    return made


def get(cache: BlobCache, objects: FileStore, data: bytes) -> Path | None:
    """Ask for a blob."""
    return cache.path(objects, layout.blob(digest(data)), digest(data), len(data))


def test_what_was_not_asked_for_for_longest_goes(tmp_path: Path, objects: FileStore) -> None:
    """The cache stays within its bound; what was used of late stays, and a piece that somebody abandoned goes too."""
    cache = BlobCache(tmp_path / "cache", 250, paranoid=False)
    for number, data in enumerate((b"a" * 100, b"b" * 100)):
        path = get(cache, objects, data)
        assert path is not None
        for each in (path, path.with_suffix(".used")):
            if each.exists():
                os.utime(each, (number, number))
    abandoned = tmp_path / "cache" / "0123.part"
    abandoned.write_bytes(bytes(40))
    os.utime(abandoned, (0, 0))
    assert get(cache, objects, b"a" * 100) is not None
    assert get(cache, objects, b"c" * 100) is not None
    left = {path.name for path in (tmp_path / "cache").iterdir() if path.suffix != ".used"}
    assert left == {digest(b"a" * 100), digest(b"c" * 100)}


def test_what_is_larger_than_the_cache_is_not_kept(tmp_path: Path, objects: FileStore) -> None:
    """A blob for which there never is room is not fetched into the cache."""
    assert get(BlobCache(tmp_path / "cache", 99, paranoid=False), objects, b"a" * 100) is None
    assert not (tmp_path / "cache").exists()


def test_a_full_disk_is_no_error(tmp_path: Path, objects: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the cache's disk has no room, the blob is read without it, and no piece of it stays."""

    def full(_key: str, target: Path) -> None:
        target.write_bytes(b"half")
        raise StoreFull("no room")

    monkeypatch.setattr(objects, "download", full)
    assert get(BlobCache(tmp_path / "cache", 1000, paranoid=False), objects, b"a" * 100) is None
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path, objects: FileStore) -> None:
    """Where the cache has no place, the blob is read without it."""
    (tmp_path / "file").touch()
    assert get(BlobCache(tmp_path / "file" / "cache", 1000, paranoid=False), objects, b"a" * 100) is None


def test_what_the_store_lacks_is_told(tmp_path: Path, objects: FileStore) -> None:
    """An absent blob is told as such, a damaged one as damage, and neither leaves anything."""
    cache = BlobCache(tmp_path / "cache", 1000, paranoid=False)
    with pytest.raises(FileNotFoundError):
        get(cache, objects, b"absent")
    objects.replace(layout.blob(digest(b"a" * 100)), b"x" * 100, sync=False)
    with pytest.raises(StoreDamaged, match="is damaged"):
        get(cache, objects, b"a" * 100)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_copy_is_fetched_again(tmp_path: Path, objects: FileStore) -> None:
    """A copy that changed is not believed: another one takes its place."""
    cache = BlobCache(tmp_path / "cache", 1000, paranoid=False)
    path = get(cache, objects, b"a" * 100)
    assert path is not None
    path.unlink()
    path.write_bytes(b"x" * 100)
    again = get(cache, objects, b"a" * 100)
    assert again is not None
    assert again.read_bytes() == b"a" * 100


def test_a_system_that_does_not_tell_its_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where nothing tells one start of the system from another, that is one and the same."""
    monkeypatch.setattr(module, "_BOOT_ID", tmp_path / "absent")
    assert module._boot() == ""


def test_what_was_just_fetched_stays(tmp_path: Path, objects: FileStore) -> None:
    """Whatever the times of other files say, as when the clock was set back, what is asked for is not removed."""
    cache = BlobCache(tmp_path / "cache", 150, paranoid=False)
    first = get(cache, objects, b"a" * 100)
    assert first is not None
    later = time.time() + 1000
    os.utime(first, (later, later))
    second = get(cache, objects, b"b" * 100)
    assert second is not None
    assert list((tmp_path / "cache").glob("sha256-*")) == [second]


def test_a_user_has_one_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objects: FileStore) -> None:
    """It lies in the user's folder for such things, for this user alone; without a home there is none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    cache = BlobCache.for_user(1000, paranoid=False)
    assert cache is not None
    path = get(cache, objects, b"a" * 100)
    assert path == tmp_path / "home" / "mlp" / "blobs" / digest(b"a" * 100)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(module, "cache_folder", lambda: None)
    assert BlobCache.for_user(1000, paranoid=False) is None


def test_the_bound_is_exact(tmp_path: Path, objects: FileStore) -> None:
    """A blob that fills the cache is kept, and two that fill it together are both kept."""
    for limit, kept in ((100, 1), (199, 1), (200, 2)):
        cache = BlobCache(tmp_path / str(limit), limit, paranoid=False)
        for data in (b"a" * 100, b"b" * 100):
            assert get(cache, objects, data) is not None
        assert len(list((tmp_path / str(limit)).glob("sha256-*"))) == kept
    assert module.DEFAULT_CACHE_BYTES == 10 * 1024**3


def test_a_blob_is_fetched_and_verified_once(
    tmp_path: Path, objects: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks again gets the file without its being hashed, unless nothing is trusted; every time leaves its mark."""
    hashed: list[Path] = []

    def spy(path: Path) -> tuple[str, int]:
        found = hash_file(path)
        hashed.append(path)
        return found

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(module, "hash_file", spy)
    for paranoid, times in ((False, 1), (True, 3)):
        folder = tmp_path / str(paranoid)
        for _ in range(3):
            path = get(BlobCache(folder, 1000, paranoid=paranoid), objects, b"a" * 100)
            assert path is not None
        assert len(hashed) == times
        hashed.clear()
        assert path.with_suffix(".used").stat().st_mode & 0o777 == 0o600
        assert not list(folder.glob("*.part"))
    shutil.copy(path, tmp_path / "copy")
    (tmp_path / "copy").replace(path)
    other = BlobCache(folder, 1000, paranoid=False)
    assert get(other, objects, b"a" * 100) is not None
    assert get(other, objects, b"a" * 100) is not None
    assert len(hashed) == 1


def test_the_mark_says_when_a_blob_was_asked_for(tmp_path: Path, objects: FileStore) -> None:
    """It is made where it is not there, and made new where it is."""
    cache = BlobCache(tmp_path / "cache", 1000, paranoid=False)
    path = get(cache, objects, b"a" * 100)
    assert path is not None
    mark = path.with_suffix(".used")
    assert not mark.exists()
    get(cache, objects, b"a" * 100)
    os.utime(mark, (0, 0))
    get(cache, objects, b"a" * 100)
    assert mark.stat().st_mtime > time.time() - 3600


def test_a_copy_that_cannot_be_read_is_not_used(
    tmp_path: Path, objects: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the cache's disk fails, the blob is fetched again."""
    cache = BlobCache(tmp_path / "cache", 1000, paranoid=True)
    assert get(cache, objects, b"a" * 100) is not None
    fetched: list[str] = []
    real = objects.download

    def spy(key: str, target: Path) -> None:
        fetched.append(key)
        real(key, target)

    def fail(path: Path) -> tuple[str, int]:
        if path.suffix != ".part":
            raise OSError(errno.EIO, "Input/output error")
        return hash_file(path)

    monkeypatch.setattr(objects, "download", spy)
    monkeypatch.setattr(module, "hash_file", fail)
    assert get(cache, objects, b"a" * 100) is not None
    assert fetched == [layout.blob(digest(b"a" * 100))]


@pytest.mark.parametrize("error", [FileNotFoundError("absent"), KeyboardInterrupt(), StoreUnavailable("no")])
def test_what_interrupts_a_fetch_passes(
    tmp_path: Path, objects: FileStore, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Whatever it is, it is raised as it is, and no piece of the blob stays, whether one was written or not."""
    for piece in (b"half", None):

        def fail(_key: str, target: Path, piece: bytes | None = piece) -> None:
            if piece is not None:
                target.write_bytes(piece)
            raise error

        monkeypatch.setattr(objects, "download", fail)
        with pytest.raises(type(error)) as caught:
            get(BlobCache(tmp_path / "cache", 1000, paranoid=False), objects, b"a" * 100)
        assert caught.value is error
        assert list((tmp_path / "cache").iterdir()) == []


def test_a_full_disk_without_a_piece_is_no_error(
    tmp_path: Path, objects: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where not even the beginning could be written, there is nothing to remove."""

    def full(_key: str, _target: Path) -> None:
        raise StoreFull("no room")

    monkeypatch.setattr(objects, "download", full)
    assert get(BlobCache(tmp_path / "cache", 1000, paranoid=False), objects, b"a" * 100) is None
