"""Which files are known to be intact: by their identity, for all processes of a user, and only where that is sure."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mlp_core.store import verified as module
from mlp_core.store.verified import VerifiedFiles, cache_folder, make_private


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file."""
    made = tmp_path / "file"
    made.write_bytes(b"content")
    return made


def test_a_file_is_known_until_it_changes(tmp_path: Path, file: Path) -> None:
    """Another process knows it too; a change of content, of times or of the file itself makes it unknown."""
    cache = tmp_path / "cache" / "known"
    first = VerifiedFiles(cache)
    assert not first.has(file)
    first.add(file)
    first.add(file)
    assert cache.stat().st_size == 16
    assert cache.stat().st_mode & 0o777 == 0o600
    assert cache.parent.stat().st_mode & 0o777 == 0o700
    other = tmp_path / "other"
    other.write_bytes(b"content")
    assert [files.has(file) for files in (first, VerifiedFiles(cache), VerifiedFiles(None))] == [True, True, False]
    assert not first.has(other)
    first.add(other)
    assert all(VerifiedFiles(cache).has(path) for path in (file, other))
    other.replace(file)
    assert not VerifiedFiles(cache).has(file)
    with pytest.raises(FileNotFoundError):
        first.has(other)


def test_without_a_cache_only_this_process_knows(file: Path) -> None:
    """What nothing remembers is known in this set alone."""
    known = VerifiedFiles(None)
    known.add(file)
    assert known.has(file)
    assert not VerifiedFiles(None).has(file)


@pytest.mark.parametrize("size", [15, 17, 4 * 2**20 + 16])
def test_a_cache_that_is_damaged_or_too_large_begins_anew(tmp_path: Path, file: Path, size: int) -> None:
    """What is no row of identities is thrown away, and the next file is remembered as ever."""
    cache = tmp_path / "known"
    cache.write_bytes(bytes(size))
    known = VerifiedFiles(cache)
    assert not known.has(file)
    assert not cache.exists()
    known.add(file)
    assert VerifiedFiles(cache).has(file)


def test_a_full_cache_is_kept(tmp_path: Path, file: Path) -> None:
    """Up to its bound a cache is believed."""
    cache = tmp_path / "known"
    VerifiedFiles(cache).add(file)
    cache.write_bytes(bytes(4 * 2**20 - 16) + cache.read_bytes())
    assert VerifiedFiles(cache).has(file)


def test_a_cache_that_cannot_be_written_is_given_up(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The set goes on knowing its files, and does not try again."""
    (tmp_path / "no folder").touch()
    known = VerifiedFiles(tmp_path / "no folder" / "known")
    known.add(file)
    assert known.has(file)
    monkeypatch.setattr(module, "make_private", lambda _: pytest.fail("it is tried again"))
    (tmp_path / "other").touch()
    known.add(tmp_path / "other")
    assert known.has(tmp_path / "other")


def test_stores_have_caches_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: Path) -> None:
    """What was verified for one store is not known for another; without a home nothing is remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    VerifiedFiles.for_store("file:///one").add(file)
    assert VerifiedFiles.for_store("file:///one").has(file)
    assert not VerifiedFiles.for_store("file:///two").has(file)
    (entry,) = (tmp_path / "cache" / "mlp" / "verified").iterdir()
    assert len(entry.name) == 32
    without_home(monkeypatch)
    assert cache_folder() is None
    VerifiedFiles.for_store("file:///one").add(file)
    assert not VerifiedFiles.for_store("file:///one").has(file)


def without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing tell the user's home."""

    def refuse() -> Path:
        raise RuntimeError("no home")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", refuse)


@pytest.mark.parametrize(("platform", "below"), [("linux", ".cache"), ("darwin", "Library/Caches")])
def test_the_cache_lies_where_the_system_has_such_things(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, platform: str, below: str
) -> None:
    """A variable counts where it is an absolute path; otherwise it is the system's custom."""
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for given in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert cache_folder() == tmp_path / below / "mlp"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own" / "mlp"


def test_folders_are_made_for_one_user(tmp_path: Path) -> None:
    """All that is missing is made private, whatever the umask; what is there stays as it is."""
    tmp_path.chmod(0o755)
    before = os.umask(0)
    try:
        make_private(tmp_path / "a" / "b" / "c")
        make_private(tmp_path / "a" / "b" / "c")
    finally:
        os.umask(before)
    made = [tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"]
    assert [path.stat().st_mode & 0o777 for path in (tmp_path, *made)] == [0o755, 0o700, 0o700, 0o700]


def test_nothing_stays_open(tmp_path: Path, file: Path) -> None:
    """Remembering a file leaves no descriptor behind, also where it fails."""
    before = len(list(Path("/dev/fd").iterdir()))
    VerifiedFiles(tmp_path / "known").add(file)
    assert len(list(Path("/dev/fd").iterdir())) == before
