"""What a run's code package holds."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from mlp_core.errors import SettingError, UsageError
from mlp_core.runner import package
from mlp_core.runner.package import build_package


def settings(**given: Any) -> dict[str, Any]:
    """Return the settings of packages."""
    return {"package.include": (), "package.exclude": (), "package.max_mb": 100} | {
        f"package.{name}": value for name, value in given.items()
    }


def fill(root: Path, *names: str) -> None:
    """Make files that contain their names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def packed(root: Path, store: str = "", **given: Any) -> list[str]:
    """Return the names in a project's package."""
    with tarfile.open(fileobj=io.BytesIO(build_package(root, settings(**given), store=store))) as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            assert file.read() == (root / member.name).read_bytes()
        return archive.getnames()


def test_source_is_taken_and_data_is_not(tmp_path: Path) -> None:
    """Files that count as source go in, whatever folder they lie in, sorted by name."""
    fill(
        tmp_path, "flow.py", "a/b/c.py", "a/query.SQL", "pyproject.toml", "notes.md", "model.pkl", "data.csv", "README"
    )
    assert packed(tmp_path) == ["a/b/c.py", "a/query.SQL", "flow.py", "notes.md", "pyproject.toml"]


def test_what_is_never_taken(tmp_path: Path) -> None:
    """Secrets, stores, repositories, caches, virtual environments and links stay out."""
    fill(tmp_path, "flow.py", ".env", ".env.py", "env.py", ".git/hook.py", "__pycache__/x.py", "node_modules/a.js")
    fill(tmp_path, "my_environment/pyvenv.cfg", "my_environment/lib/x.py", "thing.egg-info/a.txt", "stored/x.json")
    fill(tmp_path, ".mlp/x.json", ".hidden/x.py", "venv/x.py")
    fill(tmp_path.parent, "outside.py")
    (tmp_path / "link.py").symlink_to(tmp_path.parent / "outside.py")
    (tmp_path / "linked").symlink_to(tmp_path.parent)
    os.mkfifo(tmp_path / "pipe.py")
    assert packed(tmp_path, store=str(tmp_path / "stored")) == ["env.py", "flow.py"]


def test_gitignore_and_settings(tmp_path: Path) -> None:
    """What .gitignore or the setting excludes stays out, what is included goes in, whatever its ending."""
    fill(tmp_path, "flow.py", "build/x.py", "a/scratch.py", "keep/data.csv", "secret.toml", "weights/w.bin")
    (tmp_path / ".gitignore").write_text("build/\n# comment\n\nscratch.py\n***bad***[\n")
    assert packed(tmp_path) == ["flow.py", "secret.toml"]
    found = packed(tmp_path, exclude=("secret.*",), include=("*.csv", "weights/"))
    assert found == ["flow.py", "keep/data.csv", "weights/w.bin"]


@pytest.mark.parametrize("name", ["include", "exclude"])
def test_patterns_that_are_none(tmp_path: Path, name: str) -> None:
    """A setting's pattern that cannot be read is refused by name."""
    with pytest.raises(SettingError, match=f"setting package.{name} contains '!', which is no pattern"):
        build_package(tmp_path, settings(**{name: ("*.py", "!")}))


def test_same_files_same_bytes(tmp_path: Path) -> None:
    """Neither times nor permissions nor the order on the disk show in the package."""
    names = ["b.py", "a.py", "c/d.py"]
    fill(tmp_path / "one", *names)
    fill(tmp_path / "two", *reversed(names))
    os.utime(tmp_path / "two/a.py", (1, 1))
    (tmp_path / "two/b.py").chmod(0o600)
    assert build_package(tmp_path / "one", settings()) == build_package(tmp_path / "two", settings())


def test_odd_names(tmp_path: Path) -> None:
    """Names with spaces, of other scripts, long ones and ones that are no text come back."""
    fill(tmp_path, "with space.py", "größe.py", "日本/流.py", f"{'long' * 40}/{'name' * 30}.py")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/odd\xff.py")).write_text("odd")
    assert len(packed(tmp_path)) == 5


def test_size_limit(tmp_path: Path) -> None:
    """A package beyond the limit is refused with its largest files and what can be done."""
    fill(tmp_path, "flow.py")
    for number in range(4):
        (tmp_path / f"big{number}.json").write_bytes(bytes((number + 1) << 20))
    with pytest.raises(UsageError, match="larger than 5 MiB; the largest files are") as caught:
        build_package(tmp_path, settings(max_mb=5))
    assert "big3.json (4 MiB), big2.json (3 MiB), big1.json (2 MiB)" in caught.value.message
    assert "package.exclude" in caught.value.hint
    assert build_package(tmp_path, settings(max_mb=11))


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with very many files is no project, and is not read to its end."""
    monkeypatch.setattr(package, "MAX_FILES", 10)
    fill(tmp_path, *(f"{number}.csv" for number in range(11)))
    with pytest.raises(UsageError, match="has more than 10 files"):
        build_package(tmp_path, settings())


def test_files_that_change_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that goes while the package is made is left out; one that cannot be read is named."""
    fill(tmp_path, "a.py", "b.py")
    read = Path.read_bytes

    def vanish(path: Path) -> bytes:
        if path.name == "a.py":
            raise FileNotFoundError(2, "gone", str(path))
        return read(path)

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", vanish)
    with tarfile.open(fileobj=io.BytesIO(build_package(tmp_path, settings()))) as archive:
        assert archive.getnames() == ["b.py"]
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UsageError, match=r"a\.py cannot be put into the code package: Permission denied"):
        build_package(tmp_path, settings())
