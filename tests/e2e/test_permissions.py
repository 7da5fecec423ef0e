"""Who may read what runs leave: its user, and nobody else."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from mlp_core.closure import ship_platform

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Project

FLOW = """
from datetime import date
import os

class Flow(FlowSpec):
    big = Parameter("big", default="x")

    @step
    def start(self):
        print("hello")
        self.small = date(2026, 1, 31)
        self.large = os.urandom(100_000)
        self.items = [1, 2]
        self.next(self.each, foreach="items")

    @step
    def each(self):
        self.part = os.urandom(50_000)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.fixture
def loose_umask() -> Iterator[None]:
    """A umask that would let everybody read and write."""
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    """Return what is at or below a folder and may be used by others, with its mode."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        status = path.lstat()
        if not stat.S_ISLNK(status.st_mode) and status.st_mode & 0o077:
            found[str(path.relative_to(folder))] = oct(stat.S_IMODE(status.st_mode))
    return found


def test_everything_is_private(new_project: Project, tmp_path: Path, loose_umask: None) -> None:  # noqa: ARG001 # in force
    """Nobody else reads anything of the store, caches, marks and temporary folders, whatever the umask."""
    cli = ("-m", "mlp_core.cli")
    new_project.write(FLOW, "flow.py")
    temporary = tmp_path / "tmp"
    temporary.mkdir(mode=0o700)
    variables = {"TMPDIR": str(temporary)}
    for isolation in ("fork", "spawn", "inline"):
        done = new_project.command(*cli, "run", "flow.py", f"--isolation={isolation}", **variables)
        assert done.returncode == 0, done.stderr
    archive = tmp_path / "archive"
    for words in (
        ("deploy", "flow.py"),
        ("deployments", "run", "Flow"),
        ("list",),
        ("tag", "add", "Flow", "nice"),
        ("artifacts", "Flow"),
        ("fsck",),
        ("gc",),
        ("export", "Flow", str(archive)),
        ("sync", str(new_project.root / ".mlp"), str(tmp_path / "second")),
        ("import", str(archive), "--store", str(tmp_path / "third")),
    ):
        done = new_project.command(*cli, *words, **variables)
        assert done.returncode == 0, (words, done.stderr)
    ship_platform(())
    assert modes(archive) == {}
    for folder in (new_project.root / ".mlp", temporary, tmp_path / "second", tmp_path / "third", tmp_path / "mlp"):
        assert folder.is_dir()
        assert modes(folder) == {}, folder
    # What is copied into a cache, and what the interpreter compiles there, keeps its mode; nobody else comes that far.
    cache = tmp_path / "cache/mlp"
    assert {path.name for path in cache.iterdir()} >= {"code", "index", "platform", "verified"}
    assert [path for path in (cache, *cache.iterdir()) if path.stat().st_mode & 0o077] == []
    for name in ("index", "verified"):
        assert modes(cache / name) == {}


def test_the_test_sees_what_is_open(tmp_path: Path) -> None:
    """A file or folder with one bit for others is found."""
    (tmp_path / "folder").mkdir(mode=0o700)
    (tmp_path / "folder").chmod(0o701)
    (tmp_path / "file").touch(mode=0o600)
    (tmp_path / "file").chmod(0o640)
    tmp_path.chmod(0o700)
    assert modes(tmp_path) == {"folder": "0o701", "file": "0o640"}
