"""The target of a value: what a format makes there is taken in within the same bounds, whatever way it chose."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from mlp_core.builtin.file_store import FileStore
from mlp_core.errors import ArtifactError
from mlp_core.store.blobs import Blobs
from mlp_core.store.target import check_part
from mlp_core.store.verified import VerifiedFiles

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def blobs(tmp_path: Path) -> Iterator[Blobs]:
    """Access to a store, with little room for inline content."""
    objects = FileStore(tmp_path / "store")
    yield Blobs(objects, inline_bytes=100, verified=VerifiedFiles(None))
    objects.close()


def test_files_of_a_folder_share_the_room(blobs: Blobs) -> None:
    """A folder of many small files makes no record of any size, and the parts beside it share the room too."""
    target = blobs.target("folder")
    folder = target.local_path()
    folder.mkdir()
    for number in range(5):
        (folder / f"file{number}").write_bytes(bytes([number]) * 30)
    target.part("more").write([b"x" * 10])
    target.part("too much").write([b"x"])
    ref = target.finish("folder")
    assert [part.name for part in ref.parts if part.data is None] == ["file3", "file4", "too much"]
    assert sum(len(part.data or b"") for part in ref.parts) == 100


def test_where_a_format_writes_nobody_else_looks(blobs: Blobs) -> None:
    """The folder of an unfinished local file is private, and each target has its own."""
    paths = [blobs.target("file").local_path() for _ in range(2)]
    assert paths[0] != paths[1]
    assert [path.parent.stat().st_mode & 0o777 for path in paths] == [0o700] * 2
    assert not any(path.exists() for path in paths)


def test_what_is_gone_already_can_be_dropped(blobs: Blobs) -> None:
    """Dropping what somebody else has cleared away, or what was never made, is no error."""
    target = blobs.target("file")
    shutil.rmtree(target.local_path().parent)
    target.discard()
    target.discard()
    blobs.target("file").discard()


def test_a_file_of_one_name_is_moved_in(blobs: Blobs) -> None:
    """A file that belongs to nobody else is not copied."""
    target = blobs.target("file")
    path = target.local_path()
    path.write_bytes(bytes(1000))
    number = path.stat().st_ino
    ref = target.finish("file")
    assert blobs.source(ref).local_path().stat().st_ino == number


def test_a_name_has_a_longest_length() -> None:
    """It becomes a file's name when the value is read."""
    check_part("x" * 1024)
    with pytest.raises(ArtifactError, match="plain relative path"):
        check_part("x" * 1025)
    for name in ("a\\b", "a\0", ".", "a/.", "./a"):
        with pytest.raises(ArtifactError, match="plain relative path"):
            check_part(name)
    check_part("a.b/..c/d..")
