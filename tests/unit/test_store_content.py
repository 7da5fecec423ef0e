"""Content on its way: hashed as it passes, in memory or in a file, and gone when it is dropped."""

from __future__ import annotations

import hashlib
import io
import os
from typing import TYPE_CHECKING

import pytest

from mlp_core.store import content as module
from mlp_core.store.content import Content, ContentFile, hash_file

if TYPE_CHECKING:
    from pathlib import Path


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
    monkeypatch.setattr(module, "_FLUSHED", 1 << 19)
    monkeypatch.setattr(os, "fdatasync", synced.append, raising=False)
    data = os.urandom((1 << 20) + 12_345)
    content = Content(lambda: tmp_path)
    content.write(memoryview(b"first"))
    content.write(memoryview(data))
    found, path = content.finish(0)
    assert found == digest(b"first" + data)
    assert not isinstance(path, bytes)
    assert path.read_bytes() == b"first" + data
    assert len(synced) == 2


def test_a_content_file_is_for_writing(tmp_path: Path) -> None:
    """The file that a format gets can be written, tells its position, and can be neither read nor moved in."""
    content = Content(lambda: tmp_path)
    file = ContentFile(content)
    assert file.writable()
    assert not file.readable()
    file.write(b"abc")
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
