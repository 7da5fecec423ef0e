"""Content on its way: hashed as it passes, in memory or in a file, and gone when it is dropped."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import time
from pathlib import Path

import pytest

from mlp_core.errors import StoreError
from mlp_core.store import content as module
from mlp_core.store.content import Content, ContentFile, hash_file


def digest(data: bytes) -> str:
    """Return the digest of bytes."""
    return f"sha256-{hashlib.sha256(data).hexdigest()}"


@pytest.mark.parametrize("room", [0, 100])
def test_nothing_is_content_too(tmp_path: Path, room: int) -> None:
    """Content without a byte takes no file, however little may stay in memory."""
    assert Content(lambda: tmp_path).finish(room) == (digest(b""), b"")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [10, 300_000])
def test_what_is_dropped_leaves_no_file(tmp_path: Path, size: int) -> None:
    """Dropped content is gone, whether it was in memory or in a file; dropping it again is no error."""
    content = Content(lambda: tmp_path)
    content.write(memoryview(bytes(size)))
    content.discard()
    content.discard()
    assert list(tmp_path.iterdir()) == []


def test_finished_content_is_its_takers(tmp_path: Path) -> None:
    """Dropping content that was finished leaves the file, which belongs to whoever took it."""
    content = Content(lambda: tmp_path)
    content.write(memoryview(b"x" * 1000))
    found, path = content.finish(100)
    content.discard()
    assert found == digest(b"x" * 1000)
    assert not isinstance(path, bytes)
    assert path.read_bytes() == b"x" * 1000


def test_large_buffers_are_synced_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A buffer beyond the limits is written in pieces that are synced meanwhile, and hashes as a whole."""
    synced: list[int] = []
    monkeypatch.setattr(module, "_LARGE", 1 << 20)
    monkeypatch.setattr(module, "_WINDOW", 1 << 18)
    monkeypatch.setattr(module, "_FLUSHED", 1 << 20)
    monkeypatch.setattr(os, "fdatasync", synced.append, raising=False)
    data = os.urandom(6 << 18)
    content = Content(lambda: tmp_path)
    content.write(memoryview(b"first"))
    content.write(memoryview(data))
    found, path = content.finish(0)
    assert found == digest(b"first" + data)
    assert not isinstance(path, bytes)
    assert path.read_bytes() == b"first" + data
    assert len(synced) == 1


def test_a_content_file_is_for_writing(tmp_path: Path) -> None:
    """The file that a format gets can be written, tells its position, and can be neither read nor moved in."""
    content = Content(lambda: tmp_path)
    file = ContentFile(content)
    assert file.writable()
    assert not file.readable()
    assert file.write(b"abc") == 3
    assert file.tell() == 3
    with pytest.raises(io.UnsupportedOperation):
        file.seek(0)


def test_a_file_that_gets_shorter_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that ends before its size, while it is hashed in place, is an error and not the end of the process."""
    path = tmp_path / "file"
    path.write_bytes(bytes(10 << 20))
    real = os.fstat

    def longer(fd: int) -> os.stat_result:
        status = list(real(fd))
        status[6] += 1 << 20
        return os.stat_result(status)

    monkeypatch.setattr(os, "fstat", longer)
    with pytest.raises(OSError, match="the file ended while it was read"):
        hash_file(path)


@pytest.mark.parametrize("where", ["fdatasync", "hashing"])
def test_what_fails_beside_the_writing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """A failure of the threads that hash and sync is one of the writing."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    if where == "hashing":
        monkeypatch.setattr(module, "_hash_mapped", fail)
    else:
        monkeypatch.setattr(module, "_FLUSHED", module._WINDOW)
        monkeypatch.setattr(os, "fdatasync", fail, raising=False)
    content = Content(lambda: tmp_path)
    with pytest.raises(StoreError, match="Input/output error"):
        content.write(memoryview(bytes(module._WINDOW)))
    content.discard()


def test_pieces_are_hashed_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the first takes, the second waits for it."""
    real = module._hash_mapped

    def slow(fd: int, start: int, length: int, hasher: hashlib._Hash) -> None:
        time.sleep(0.2 if not start else 0)
        real(fd, start, length, hasher)

    monkeypatch.setattr(module, "_hash_mapped", slow)
    monkeypatch.setattr(module, "_LARGE", 1 << 16)
    monkeypatch.setattr(module, "_WINDOW", 1 << 16)
    data = os.urandom(20 << 16)
    content = Content(lambda: tmp_path)
    content.write(memoryview(data))
    assert content.finish(0)[0] == digest(data)


@pytest.mark.parametrize("size", [300_000, 17 << 20])
def test_nothing_stays_open_and_nobody_else_reads(tmp_path: Path, size: int) -> None:
    """An unfinished file is private; writing, finishing, dropping and verifying leave no descriptor behind."""
    before = len(list(Path("/dev/fd").iterdir()))
    content, dropped = Content(lambda: tmp_path), Content(lambda: tmp_path)
    for each in (content, dropped):
        each.write(memoryview(bytes(size)))
    dropped.discard()
    found, path = content.finish(0)
    assert not isinstance(path, bytes)
    assert path.stat().st_mode & 0o777 == 0o600
    assert hash_file(path) == (found, size) == (digest(bytes(size)), size)
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_what_is_gone_already_can_be_dropped(tmp_path: Path) -> None:
    """Somebody may have cleared the unfinished files away."""
    content = Content(lambda: tmp_path)
    content.write(memoryview(bytes(2 << 20)))
    for path in tmp_path.iterdir():
        path.unlink()
    content.discard()
