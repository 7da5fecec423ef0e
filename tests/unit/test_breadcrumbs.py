"""Marks before entries into plugins: where they may lie, what survives in them, and what they cost."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlp_core.breadcrumbs import IMPORT, Crumb, Trail, Watchdog, runtime_folder, take_dead
from mlp_hookspecs import PluginId

CRUMB = Crumb(PluginId("ray", "mlp-plugin-ray", "1.0"), "mlp_open_launcher")


@given(st.builds(PluginId, st.text(), st.text(), st.text()), st.text())
def test_any_mark_can_be_read(plugin: PluginId, place: str) -> None:
    """Whatever names a plugin has, its mark fills one slot and reading it raises nothing."""
    slot = Crumb(plugin, place).encoded()
    assert len(slot) == len(CRUMB.encoded())
    found = Crumb.decoded(slot, 7)
    assert found is None or all(character.isprintable() for character in str(found))


@given(st.binary(max_size=300))
def test_nonsense_is_no_mark(content: bytes) -> None:
    """A file that something else has written to is read without an error."""
    found = Crumb.decoded(content, 7)
    assert found is None or found.pid == 7


def test_mark_says_where() -> None:
    """The text names plugin, distribution, version and place."""
    assert str(CRUMB) == "plugin ray (mlp-plugin-ray 1.0), in its mlp_open_launcher"
    assert str(Crumb(CRUMB.plugin, IMPORT)) == "plugin ray (mlp-plugin-ray 1.0), while it was imported"
    assert Crumb.decoded(CRUMB.encoded(), 0) == CRUMB
    assert Crumb.decoded(bytes(256), 0) is None


def test_marks_hide_each_other(tmp_path: Path) -> None:
    """A plugin that is entered from within another hides its mark, and gives it back."""
    trail = Trail(tmp_path)
    inner = Crumb(CRUMB.plugin, "mlp_persist_artifact").encoded()
    outside = trail.enter(CRUMB.encoded())
    before = trail.enter(inner)
    assert before == CRUMB.encoded()
    (file,) = tmp_path.iterdir()
    assert file.read_bytes().startswith(inner)
    trail.leave(before)
    assert file.read_bytes().startswith(CRUMB.encoded())
    trail.leave(outside)
    assert file.read_bytes() == bytes(file.stat().st_size)
    trail.close()
    assert list(tmp_path.iterdir()) == []


def test_every_thread_has_a_mark_of_its_own(tmp_path: Path) -> None:
    """Threads do not take away each other's marks; more of them than there are slots do no harm."""
    trail = Trail(tmp_path)
    outside = trail.enter(CRUMB.encoded())
    entered, leave = threading.Barrier(13), threading.Event()

    def work(number: int) -> None:
        before = trail.enter(Crumb(CRUMB.plugin, f"place{number}").encoded())
        entered.wait()
        leave.wait()
        trail.leave(before)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    entered.wait()
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    assert content.count(b"place") == len(content) // 256 - 1
    leave.set()
    for thread in threads:
        thread.join()
    assert file.read_bytes().startswith(CRUMB.encoded())
    trail.leave(outside)
    trail.close()


@pytest.mark.parametrize("folder", [None, Path("/no/such/folder"), Path("/dev/null")])
def test_without_a_folder_there_are_no_marks(folder: Path | None) -> None:
    """Where no file can be made, entering and leaving do nothing."""
    trail = Trail(folder)
    trail.leave(trail.enter(CRUMB.encoded()))
    trail.close()
    assert take_dead(folder) == []


def test_runtime_folder_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is made for the user alone; one that others can write to, or that is a link, is not used."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = runtime_folder()
    assert folder == tmp_path / "mlp"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    assert runtime_folder() is None
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir(0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    assert runtime_folder() is None
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "absent"))
    assert runtime_folder() is None


def test_runtime_folder_without_a_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of a login session the folder lies with temporary files, one for each user."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert runtime_folder() == tmp_path / f"mlp-{os.getuid()}"


def test_watchdog_leaves_no_thread_behind() -> None:
    """After watching what returns, the process has the threads it had, so that it can fork."""
    before = threading.active_count()
    with Watchdog(60) as watchdog:
        assert threading.active_count() == before
        for _ in range(2):
            with watchdog.watch("something", "nothing"):
                assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_watchdog_lets_exceptions_pass() -> None:
    """What the watched code raises is not the watchdog's business."""
    with Watchdog(60) as watchdog, pytest.raises(ValueError, match="x"), watchdog.watch("something", "nothing"):
        raise ValueError("x")
