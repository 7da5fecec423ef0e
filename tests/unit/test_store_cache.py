"""The cache of blobs from elsewhere: bounded, verified, and never in anybody's way."""

from __future__ import annotations

import hashlib
import os
import time
from typing import TYPE_CHECKING

import pytest

from mlp_core.builtin.file_store import FileStore
from mlp_core.errors import StoreDamaged, StoreFull
from mlp_core.store import cache as module
from mlp_core.store import layout
from mlp_core.store.cache import BlobCache

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
