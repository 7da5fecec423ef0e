"""Code packages become folders again, and nothing outside of them."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import attrs
import pytest

from mlp_core.errors import StoreDamaged
from mlp_core.runner.package import build_package
from mlp_core.session import Session
from mlp_core.unpack import code_folder, unpack, unpacked
from mlp_hookspecs import CodeRef

if TYPE_CHECKING:
    from pathlib import Path


def archive(*entries: tarfile.TarInfo) -> bytes:
    """Return an archive of entries with the content ``x``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for entry in entries:
            entry.size = 1 if entry.isreg() else 0
            file.addfile(entry, io.BytesIO(b"x") if entry.isreg() else None)
    return buffer.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    """Return an entry of a kind."""
    made = tarfile.TarInfo(name)
    made.type = kind
    made.linkname = target
    return made


@pytest.mark.parametrize(
    "content",
    [
        archive(entry("../up")),
        archive(entry("a/../../up")),
        archive(entry("/absolute")),
        archive(entry("link", tarfile.SYMTYPE, "/etc/passwd")),
        archive(entry("link", tarfile.LNKTYPE, "a")),
        archive(entry("device", tarfile.CHRTYPE)),
        archive(entry("pipe", tarfile.FIFOTYPE)),
        archive(entry("folder", tarfile.DIRTYPE)),
        archive(entry("a"), entry("a")),
        archive(entry("a"), entry("a/b")),
        b"no archive",
        archive(entry("a"))[:600],
    ],
)
def test_anything_but_plain_files_below_is_damage(content: bytes, tmp_path: Path) -> None:
    """Links, devices, doubles and paths that lead out are refused, and nothing lies outside the folder."""
    folder = tmp_path / "in" / "side"
    folder.mkdir(parents=True)
    with pytest.raises(StoreDamaged, match="code package"):
        unpack(content, folder)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(folder)] == []


def test_a_package_comes_out_as_it_went_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of a project are unpacked once, by digest, into the user's cache, for reading."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    root = tmp_path / "project"
    (root / "sub").mkdir(parents=True)
    (root / "mlp.toml").touch()
    (root / "flow.py").write_text("x = 1\n")
    (root / "sub" / "naïve.py").write_text("y = 2\n")
    session = Session.open(start=root, flags={"plugins.safe": True})
    values = session.values(session.open_store(create=True))
    package = values.put_bytes(build_package(root, session.settings, store=session.store_url))
    folder = unpacked(package, values)
    assert folder.name == package.digest
    found = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert found == {"mlp.toml": "", "flow.py": "x = 1\n", "sub/naïve.py": "y = 2\n"}
    assert unpacked(package, values) == folder
    code = CodeRef("flow", "Flow", "flow.py", str(root), package)
    assert code_folder(code, values) is None
    assert code_folder(attrs.evolve(code, root=str(tmp_path / "gone")), values) == folder
    monkeypatch.chdir(root)
    assert code_folder(attrs.evolve(code, root=""), values) == folder


def test_a_file_with_holes_is_refused(tmp_path: Path) -> None:
    """A header of a few bytes can say that a file is of any size: nothing of it is written."""
    header = bytearray(tarfile.TarInfo("bomb.py").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[483:495] = b"77777777777\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(StoreDamaged, match=r"bomb\.py"):
        unpack(bytes(header) + bytes(1024), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "size", [b"\xff" * 12, b"\x80" + b"\xff" * 11, b"77777777777\0"], ids=["negative", "huge", "large"]
)
@pytest.mark.parametrize("kind", [b"0", b"x", b"L", b"g"], ids=["file", "pax", "long name", "global"])
def test_sizes_that_cannot_be_are_refused(tmp_path: Path, size: bytes, kind: bytes) -> None:
    """Whatever a header says of its size, the answer is that the package is damaged, and soon."""
    header = bytearray(tarfile.TarInfo("flow.py").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = size
    header[156:157] = kind
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(StoreDamaged):
        unpack(bytes(header) * 2 + bytes(1024), tmp_path)


@pytest.mark.parametrize("name", ["a" * 300, "dir/" * 2000 + "x"], ids=["long name", "long path"])
def test_names_that_no_file_can_have_are_refused(tmp_path: Path, name: str) -> None:
    """A name that the file system refuses is the archive's fault."""
    with pytest.raises(StoreDamaged):
        unpack(archive(entry(name)), tmp_path)
