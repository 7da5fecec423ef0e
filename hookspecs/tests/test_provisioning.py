"""Environments are made once on a host, whoever asks for them and whoever is killed, and are read-only afterwards."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the test folder is not a package

from provisioner import FILES, NAME, NOBODY, is_locked, is_whole

from mlp_hookspecs import provisioning
from mlp_hookspecs.provisioning import BUILDING, LOCK, file_lock, make_once, protect, remove

CROWD = 20
KILLS = 6


def command(action: str, folder: Path, *arguments: str) -> list[str]:
    """Return the command of an action in a process of its own."""
    return [sys.executable, str(Path(__file__).with_name("provisioner.py")), action, str(folder), *arguments]


def run(action: str, folder: Path, *arguments: str) -> None:
    """Let a process do something to its end."""
    done = subprocess.run(command(action, folder, *arguments), check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def log_of(folder: Path) -> list[str]:
    """Return what the builders of a folder have noted."""
    return (folder / "log").read_text().splitlines()


def make(staging: Path, _: int) -> None:
    """Make a small environment."""
    (staging / "inner").mkdir(parents=True)
    (staging / "0").write_text("whole")
    (staging / "inner" / "file").write_text("text")


def modes(folder: Path) -> set[int]:
    """Return the permissions to write that are left in a folder."""
    return {path.stat().st_mode & 0o222 for path in (folder, *folder.rglob("*")) if not path.is_symlink()}


@pytest.fixture
def nobodys(tmp_path: Path) -> Path:
    """A folder for a process that is not root."""
    folder = tmp_path / "nobody's"
    folder.mkdir()
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    return folder


# -------------------------------------------------------------------------------------------------------- once


def test_a_crowd_makes_it_once(tmp_path: Path) -> None:
    """Of twenty processes that begin at the same moment one makes the environment, and all get it whole."""
    run("crowd", tmp_path, str(CROWD))
    assert log_of(tmp_path) == ["builder begins", "helper begins", "helper ends", "builder ends"]
    assert {path.name for path in tmp_path.iterdir()} == {NAME, LOCK.format(NAME), "log"}
    assert modes(tmp_path / NAME) == {0}


def test_what_is_whole_is_not_touched(tmp_path: Path) -> None:
    """An environment that is there is neither made nor locked."""
    make_once(tmp_path / NAME, make, is_whole)
    with file_lock(tmp_path / LOCK.format(NAME)):
        make_once(tmp_path / NAME, lambda *_: pytest.fail("made again"), is_whole)


@pytest.mark.parametrize("dies", ["builder", "builder and helper"])
def test_killed_builder_is_succeeded(tmp_path: Path, dies: str) -> None:
    """Whenever a builder is killed the next one waits for its helpers, removes what it left, and makes a whole one."""
    chance = random.Random(4)  # noqa: S311 # the same moments each time
    for turn in range(KILLS):
        folder = tmp_path / str(turn)
        folder.mkdir()
        builder = subprocess.Popen(command("one", folder), start_new_session=True)
        while not (folder / "log").exists():
            assert builder.poll() is None
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.25))
        if dies == "builder":
            builder.kill()
        else:
            os.killpg(builder.pid, signal.SIGKILL)
        builder.wait()
        assert len(list((folder / NAME).glob("*"))) in {0, FILES}, "half an environment has its name"
        run("one", folder)
        made = sorted(path.read_text() for path in (folder / NAME).iterdir())
        assert made == ["whole\n"] * FILES
        assert not (folder / BUILDING.format(NAME)).exists()
        assert modes(folder / NAME) == {0}
        if dies == "builder":
            writers = [line for line in log_of(folder) if line.startswith("helper")]
            assert writers == ["helper begins", "helper ends"] * (len(writers) // 2), "two have written at once"


def test_helper_of_a_killed_builder_keeps_the_lock(tmp_path: Path) -> None:
    """The lock of a builder that was killed lasts until the processes end that it gave the descriptor to."""
    builder = subprocess.Popen(command("one", tmp_path))
    while not (tmp_path / "log").exists() or "helper begins" not in log_of(tmp_path):
        assert builder.poll() is None
        time.sleep(0.002)
    builder.kill()
    builder.wait()
    was_locked = is_locked(tmp_path / NAME)
    assert was_locked or "helper ends" in log_of(tmp_path)
    with file_lock(tmp_path / LOCK.format(NAME)):
        assert log_of(tmp_path) == ["builder begins", "helper begins", "helper ends"]


def test_stray_fork_does_not_keep_the_lock(tmp_path: Path) -> None:
    """A process that was forked while an environment was made, and lives on, keeps nobody from the lock."""
    run("stray", tmp_path)


def test_failed_builder_leaves_the_lock_to_its_helpers(tmp_path: Path) -> None:
    """After a builder has failed the next one waits for its helpers, which may be writing still."""
    run("failing", tmp_path)
    assert len(list((tmp_path / NAME).iterdir())) == FILES


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace tells which system calls were made")
def test_files_are_on_the_disk_before_the_name(tmp_path: Path) -> None:
    """After a loss of power an environment that has its name has its files: they are written out before."""
    traced = ["strace", "-o", str(tmp_path / "trace"), "-e", "trace=fchmodat,chmod,syncfs,rename,renameat,renameat2"]
    done = subprocess.run([*traced, *command("one", tmp_path)], check=False, capture_output=True, text=True)
    if "ptrace" in done.stderr:
        pytest.skip("processes cannot be traced here")
    assert done.returncode == 0, done.stderr
    calls = [line.split("(")[0] for line in (tmp_path / "trace").read_text().splitlines() if line.endswith("= 0")]
    assert calls[-2] == "syncfs"
    assert calls[-1].startswith("rename")


def test_what_is_not_on_the_disk_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the files cannot be written out, there is no environment, and the next one makes it."""
    with monkeypatch.context() as patch:
        patch.setattr(provisioning, "_write_out", Mock(side_effect=OSError("the disk is full")))
        with pytest.raises(OSError, match="the disk is full"):
            make_once(tmp_path / NAME, make, is_whole)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK.format(NAME)]
    make_once(tmp_path / NAME, make, is_whole)


# -------------------------------------------------------------------------------------------------------- failing


def test_error_of_the_builder_comes_through(tmp_path: Path) -> None:
    """What the builder raises is raised as it is; nothing is left, and it can be tried again."""
    error = RuntimeError("the index is gone")

    def fail(staging: Path, descriptor: int) -> None:
        make(staging, descriptor)
        protect(staging)
        raise error

    with pytest.raises(RuntimeError) as caught:
        make_once(tmp_path / NAME, fail, is_whole)
    assert caught.value is error
    assert [path.name for path in tmp_path.iterdir()] == [LOCK.format(NAME)]
    make_once(tmp_path / NAME, make, is_whole)
    assert is_whole(tmp_path / NAME)


def test_error_of_the_builder_is_not_hidden(nobodys: Path) -> None:
    """That what a builder has left cannot be removed does not hide why it has failed; the next one removes it."""
    run("unremovable", nobodys)


def test_what_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    """An environment that is not whole although it was made is an error that names it, each time."""
    for _ in range(2):
        with pytest.raises(OSError, match=r"100% was made, but it cannot be used"):
            make_once(tmp_path / NAME, make, lambda _: False)


# -------------------------------------------------------------------------------------------------------- in the way


@pytest.mark.parametrize("place", [NAME, BUILDING.format(NAME)])
@pytest.mark.parametrize("what", ["file", "link", "dangling link", "read-only folder"])
def test_what_is_in_the_way_goes(tmp_path: Path, place: str, what: str) -> None:
    """A file, a link or a folder where an environment belongs, or is built, is replaced; what is linked to stays."""
    kept = tmp_path / "kept"
    make(kept, 0)
    in_the_way = tmp_path / "root" / place
    in_the_way.parent.mkdir()
    if what == "file":
        in_the_way.write_text("in the way")
    elif what == "read-only folder":
        (in_the_way / "inner").mkdir(parents=True)
        protect(in_the_way)
    else:
        in_the_way.symlink_to(kept / "inner" if what == "link" else "nowhere")
    make_once(tmp_path / "root" / NAME, make, is_whole)
    assert not (tmp_path / "root" / NAME).is_symlink()
    assert sorted(path.name for path in (tmp_path / "root" / NAME).iterdir()) == ["0", "inner"]
    assert (kept / "inner" / "file").read_text() == "text"
    assert 0 not in modes(kept)


def test_read_only_environment_is_made_anew(nobodys: Path) -> None:
    """An environment that cannot be used any more is made anew by who is not root, although it is read-only."""
    run("replace", nobodys)


# -------------------------------------------------------------------------------------------------------- read-only


def test_nobody_can_write_to_it(nobodys: Path) -> None:
    """Files and folders lose their permissions to write and no others, whatever their modes were."""
    run("read_only", nobodys)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's file")
def test_other_users_file_may_be_linked(nobodys: Path) -> None:
    """A file that belongs to somebody else is left as it is: who does not own it cannot change its mode."""
    cached = nobodys / "cached"
    cached.write_text("from a shared cache")
    cached.chmod(0o666)
    run("others_links", nobodys)
    assert cached.stat().st_mode & 0o777 == 0o666


def test_links_are_not_followed(tmp_path: Path) -> None:
    """What an environment links to outside of itself keeps its modes, and stays when the environment is removed."""
    outside = tmp_path / "outside"
    make(outside, 0)
    before = {path: path.stat().st_mode for path in (outside, *outside.rglob("*"))}

    def link(staging: Path, descriptor: int) -> None:
        make(staging, descriptor)
        (staging / "folder").symlink_to(outside)
        (staging / "file").symlink_to(outside / "0")
        (staging / "inner" / "itself").symlink_to(staging)

    make_once(tmp_path / NAME, link, is_whole)
    remove(tmp_path / NAME)
    assert {path: path.stat().st_mode for path in (outside, *outside.rglob("*"))} == before


def test_hard_links_are_read_only_too(tmp_path: Path) -> None:
    """A file that is linked from a cache cannot be changed through either name, and outlives the environment."""
    cached = tmp_path / "cached"
    cached.write_text("text")

    def link(staging: Path, descriptor: int) -> None:
        make(staging, descriptor)
        (staging / "linked").hardlink_to(cached)

    make_once(tmp_path / NAME, link, is_whole)
    assert (tmp_path / NAME / "linked").samefile(cached)
    assert cached.stat().st_mode & 0o222 == 0
    remove(tmp_path / NAME)
    assert cached.read_text() == "text"


@pytest.mark.parametrize("what", ["nothing", "file", "link", "dangling link"])
def test_remove_takes_what_is_there(tmp_path: Path, what: str) -> None:
    """What is no folder is removed too, a link without what it links to; and nothing is nothing to remove."""
    make(tmp_path / "kept", 0)
    place = tmp_path / "place"
    if what == "file":
        place.write_text("text")
    elif what != "nothing":
        place.symlink_to(tmp_path / "kept" if what == "link" else "nowhere")
    remove(place)
    assert not os.path.lexists(place)
    assert (tmp_path / "kept" / "inner" / "file").exists()
