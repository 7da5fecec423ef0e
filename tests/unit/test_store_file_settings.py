"""What the settings of storage make of a folder: synced or not, private or shared; and what threads make of it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from mlp_core.builtin import file_store
from mlp_core.builtin.file_store import FileStore, mlp_open_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def everything(store: FileStore) -> None:
    """Do all that may sync."""
    assert store.create("a/created", b"x", sync=True)
    store.replace("a/replaced", b"x", sync=True)
    for key, sync in (("b/adopted", True), ("c/later", False)):
        (store.staging() / "file").write_bytes(b"x")
        store.adopt(store.staging() / "file", key, sync=sync)
    store.sync(["c/later"])
    file = store.open_append("d/grown")
    file.append(b"x", sync=True)
    file.close()
    with store.lock("e/lock") as free:
        assert free


@pytest.mark.parametrize(("durability", "syncs"), [("fast", 0), ("durable", 10), (None, 10)])
def test_fast_syncs_nothing(tmp_path: Path, durability: str | None, syncs: int) -> None:
    """A store is durable unless the setting says fast; then the system is never asked to sync anything."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from test_store_file_settings import *\n"
        "settings = {} if sys.argv[3] == 'None' else {'storage.durability': sys.argv[3]}\n"
        "store = mlp_open_store(sys.argv[1], settings); everything(store); store.close()"
    )
    traced = tmp_path / "trace"
    arguments = [sys.executable, "-c", code, str(tmp_path / "store"), os.path.dirname(__file__), str(durability)]  # noqa: PTH120 # text
    subprocess.run(["strace", "-f", "-o", traced, "-e", "trace=fsync,fdatasync,sync,syncfs", *arguments], check=True)
    calls = [line for line in traced.read_text().splitlines() if "sync" in line]
    assert len(calls) == 0 if syncs == 0 else len(calls) >= syncs
    objects = {info.key for info in FileStore(tmp_path / "store").list("")}
    assert objects == {"a/created", "a/replaced", "b/adopted", "c/later", "d/grown", "e/lock"}


@pytest.fixture
def umask() -> Iterator[None]:
    """A umask that leaves nothing to the group."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def modes(root: Path) -> tuple[set[str], set[str]]:
    """The permission bits of the files, and of the folders, of a store."""
    paths = [root, *root.rglob("*")]
    return (
        {oct(stat.S_IMODE(path.stat().st_mode)) for path in paths if path.is_file()},
        {oct(stat.S_IMODE(path.stat().st_mode)) for path in paths if path.is_dir()},
    )


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize(
    ("settings", "files", "folders"),
    [
        ({}, "0o600", "0o700"),
        ({"storage.shared": False}, "0o600", "0o700"),
        ({"storage.shared": True}, "0o660", "0o770"),
    ],
)
def test_what_the_group_may(tmp_path: Path, settings: dict[str, Any], files: str, folders: str) -> None:
    """A store is its owner's alone unless it is shared; then the group may write all of it, whatever the umask."""
    store = mlp_open_store(str(tmp_path / "store"), settings)
    everything(store)
    (store.staging() / "unfinished").touch(mode=int(files, 8))
    (store.staging() / "unfinished").chmod(int(files, 8))
    assert modes(tmp_path / "store") == ({files}, {folders})
    store.close()


@pytest.mark.usefixtures("umask")
def test_a_shared_store_keeps_its_group(tmp_path: Path) -> None:
    """Folders in a folder with setgid have it too, so that what is made belongs to the same group."""
    root = tmp_path / "store"
    root.mkdir()
    root.chmod(0o2770)
    store = FileStore(root, shared=True)
    store.create("a/b/c", b"", sync=True)
    assert modes(root) == ({"0o660"}, {"0o2770"})
    store.close()


def test_files_of_others_keep_their_mode(tmp_path: Path) -> None:
    """A lock or a growing file that somebody else made is opened as it is: its mode is not this user's to set."""
    store = FileStore(tmp_path, shared=True)
    for name in ("lock", "grown"):
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).chmod(0o600)
    with store.lock("lock") as free:
        assert free
    store.open_append("grown").close()
    assert modes(tmp_path)[0] == {"0o600"}


def test_a_key_that_is_made_anew_is_synced_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That an earlier object of a key was durable says nothing of the one that took its place."""
    store = FileStore(tmp_path / "store")
    (store.staging() / "file").write_bytes(b"old")
    store.adopt(store.staging() / "file", "x", sync=False)
    store.delete("x")
    store.create("x", b"new", sync=False)
    synced = []
    monkeypatch.setattr(file_store, "_sync", lambda _fd, path: synced.append(path.name))
    store.sync(["x"])
    assert "x" in synced
    store.close()


def test_threads_share_one_folder_for_unfinished_files(tmp_path: Path) -> None:
    """Threads that need it at the same moment get the same, and nothing is left of the others."""
    store = FileStore(tmp_path / "store")
    ready = threading.Barrier(8)

    def ask(_: int) -> Path:
        ready.wait()
        return store.staging()

    with ThreadPoolExecutor(8) as threads:
        (folder,) = set(threads.map(ask, range(8)))
    assert list((tmp_path / "store/tmp").iterdir()) == [folder]
    store.close()


def test_downloads_leave_nothing_half_done(tmp_path: Path) -> None:
    """A copy that cannot be written is removed again."""
    store = FileStore(tmp_path / "store")
    store.create("x", b"data", sync=False)
    with pytest.raises(NotADirectoryError):
        store.download("x", tmp_path / "store/x/file")
    store.download("x", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"data"
    store.close()
