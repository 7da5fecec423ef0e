"""The files of a bundle come out of the store as they were put in, and a hostile bundle leads nowhere."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pytest

from mlp_core.environments.bundling import checked_path, store_bundle, unpacker
from mlp_core.environments.catalog import Catalog
from mlp_core.errors import StoreDamaged
from mlp_core.store import Store, layout
from mlp_hookspecs import EnvironmentLock

if TYPE_CHECKING:
    from collections.abc import Mapping

LOCK = EnvironmentLock("toy", "numpy==2.0", "3.12", has_own_packages=True)
FILES = {"a.whl": b"a" * 20_000, "linux-64/b.conda": b"b" * 20_000, "same.whl": b"a" * 20_000}


class ToyHooks:
    """The hooks of a backend that has some files at hand."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        """Take the files."""
        self._files = files

    def bundle_environment(self, _lock: EnvironmentLock, _platform: str, folder: Path) -> tuple[str, ...]:
        """Put the files into the folder."""
        for name, content in self._files.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        return tuple(self._files)


def bundle(store: Store, platform: str, files: Mapping[str, bytes] = FILES) -> None:
    """Store a bundle."""
    store_bundle(store, ToyHooks(files), LOCK, platform)  # type: ignore[arg-type] # all that is used


def unpacked(store: Store, folder: Path, platform: str = "linux-64", lock: EnvironmentLock = LOCK) -> dict[str, bytes]:
    """Unpack a bundle, and return what lies in the folder."""
    folder.mkdir()
    unpacker(lambda: store, lock, platform)(folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_bundle_comes_out_as_it_went_in(any_store: Store, tmp_path: Path) -> None:
    """Names, folders and bytes are the same, and equal files are stored once."""
    bundle(any_store, "linux-64")
    assert unpacked(any_store, tmp_path / "out") == FILES
    assert len(list(any_store.objects.list(layout.BLOBS))) == 2


def test_the_platforms_own_bundle_comes_first(any_store: Store, tmp_path: Path) -> None:
    """Without one it is the own packages alone, for a lock that has such; else nothing."""
    assert unpacked(any_store, tmp_path / "none") == {}
    bundle(any_store, "", {"own.whl": b"own"})
    assert unpacked(any_store, tmp_path / "own") == {"own.whl": b"own"}
    assert unpacked(any_store, tmp_path / "other", lock=EnvironmentLock("toy", "x", "3")) == {}
    bundle(any_store, "linux-64")
    assert unpacked(any_store, tmp_path / "whole") == FILES
    assert unpacked(any_store, tmp_path / "elsewhere", "osx-arm64") == {"own.whl": b"own"}


HOSTILE = [
    "../x", "a/../../x", "/x", "//x", "..", ".", "", "./", "a/..", "a\0b", "a\nb", "\ud800", "\x1b[2J", "a" * 256,
    "a/" * 600 + "b",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_lead_out_of_the_folder_are_refused(name: str) -> None:
    """Nothing absolute, no way up, nothing that cannot be seen or can be no file."""
    with pytest.raises(StoreDamaged, match="a bundle names the file"):
        checked_path(name)


def test_ordinary_names_pass() -> None:
    """Wheels and conda packages have names like these."""
    for name in ("numpy-2.0-cp312-cp312-linux_x86_64.whl", "linux-64/a-1.0-0.conda", "a..b", "noarch/x!y+z.tar.bz2"):
        assert checked_path(name) == PurePosixPath(name)


@pytest.mark.parametrize("names", [("ok.whl", "../evil"), ("a", "a/b"), ("a/b", "a/./b"), ("a/b", "a//b")])
def test_a_hostile_bundle_writes_nothing(any_store: Store, tmp_path: Path, names: tuple[str, str]) -> None:
    """All names are checked before the first file is written, and one name is one file."""
    bundle(any_store, "linux-64", {"x": b"x"})
    catalog = Catalog(any_store)
    stored = catalog.bundle(LOCK.digest, "linux-64")
    assert stored is not None
    catalog.add_bundle(LOCK.digest, "linux-64", dict.fromkeys(names, stored.files["x"]))
    with pytest.raises(StoreDamaged):
        unpacked(any_store, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("is_there", [True, False])
def test_a_damaged_file_is_never_handed_out(
    bucket_store: Store,
    tmp_path: Path,
    is_there: bool,  # a parameter of the test
) -> None:
    """Where a blob has other bytes, or is gone, the environment is not made from it."""
    bundle(bucket_store, "linux-64", {"a.whl": b"a" * 20_000})
    (info,) = bucket_store.objects.list(layout.BLOBS)
    if is_there:
        bucket_store.objects.replace(info.key, b"e" * 20_000, sync=False)
    else:
        bucket_store.objects.delete(info.key)
    with pytest.raises(StoreDamaged):
        unpacked(bucket_store, tmp_path / "out")


def test_a_backend_that_names_a_file_outside_is_refused(any_store: Store) -> None:
    """What a backend returns is checked too, and no bundle is kept."""

    class Hooks(ToyHooks):
        def bundle_environment(self, _lock: EnvironmentLock, _platform: str, _folder: Path) -> tuple[str, ...]:
            return ("../outside",)

    with pytest.raises(StoreDamaged, match="lies outside"):
        store_bundle(any_store, Hooks({}), LOCK, "linux-64")  # type: ignore[arg-type] # all that is used
    assert Catalog(any_store).bundles(LOCK.digest) == []
