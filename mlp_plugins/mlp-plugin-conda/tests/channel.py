"""Builds a conda channel for the tests: a real CPython and numpy for this platform, and small packages for others.

``python channel.py FOLDER`` builds it, and leaves what a test has to know in its ``about.json``. With the arguments of
`small` in a list of JSON as a second argument, the channel has these packages and no others. It is a program of its own
because py-rattler is only ever run in one.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

SUBDIRS = {
    ("Linux", "x86_64"): "linux-64",
    ("Linux", "aarch64"): "linux-aarch64",
    ("Darwin", "x86_64"): "osx-64",
    ("Darwin", "arm64"): "osx-arm64",
}
HERE = SUBDIRS[platform.system(), platform.machine()]
PLATFORMS = (HERE, *[name for name in ("linux-64", "linux-aarch64", "osx-arm64") if name != HERE][:2])
PLACEHOLDER = "/opt/" + "placeholder_" * 20
NUMPY = "2.4.6"
_UNUSED = {"test", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "__pycache__", "site-packages"}


def small(folder: Path, name: str, version: str, subdir: str, **extra: object) -> Path:
    """Write a package of text files; what they hold of the placeholder is replaced by the environment's path."""
    files: dict[str, str] = extra.pop("files", {})  # type: ignore[assignment] # a test's own
    depends: list[str] = extra.pop("depends", [])  # type: ignore[assignment] # a test's own
    build = str(extra.pop("build", "0"))
    entry_points = extra.pop("entry_points", [])
    index = {"name": name, "version": version, "build": build, "build_number": 0, "depends": depends, "subdir": subdir}
    paths = [
        {"_path": path, "path_type": "hardlink"}
        | ({"prefix_placeholder": PLACEHOLDER, "file_mode": "text"} if PLACEHOLDER in text else {})
        for path, text in files.items()
    ]
    members = {
        "info/index.json": json.dumps(index | extra),
        "info/paths.json": json.dumps({"paths": paths, "paths_version": 1}),
        "info/files": "".join(f"{path}\n" for path in files),
    }
    if extra.get("noarch") == "python":
        members["info/link.json"] = json.dumps(
            {"noarch": {"type": "python", "entry_points": entry_points}, "package_metadata_version": 1}
        )
    target = folder / subdir / f"{name}-{version}-{build}.tar.bz2"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target, "w:bz2") as archive:
        for path, text in (members | files).items():
            entry = tarfile.TarInfo(path)
            entry.size = len(text.encode())
            entry.mode = 0o755 if path.startswith("bin/") else 0o644
            archive.addfile(entry, io.BytesIO(text.encode()))
    return target


def choose_python() -> tuple[str, Path]:
    """Return version and prefix of a CPython to package: another one than ours if there is a choice."""
    import uv

    listing = [
        uv.find_uv_bin(),
        "python",
        "list",
        "--only-installed",
        "--no-python-downloads",
        "--output-format",
        "json",
    ]
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions")
    path = os.pathsep.join([*map(str, sorted(versions.glob("3.*/bin"))), f"{sys.base_prefix}/bin"])
    found = json.loads(subprocess.check_output(listing, env={**os.environ, "PATH": path}))
    own = ".".join(map(str, sys.version_info[:3]))
    candidates = [
        (entry["version"], Path(entry["path"]).resolve().parents[1])
        for entry in found
        if entry["implementation"] == "cpython" and entry["version"].split(".")[1] in {"12", "13"}
    ]
    # A Debian Python lies among the rest of the system: only one that is alone in its prefix can be copied.
    usable = [(version, prefix) for version, prefix in candidates if prefix != Path("/usr")]
    return min(usable, default=(own, Path(sys.base_prefix)))


def add_python(folder: Path, scratch: Path) -> str:
    """Package a CPython of this machine, without what no test needs; return its version."""
    from rattler_build import assemble_package

    version, prefix = choose_python()
    minor = ".".join(version.split(".")[:2])
    staged = scratch / "python"
    (staged / "bin").mkdir(parents=True)
    shutil.copy2((prefix / "bin" / f"python{minor}").resolve(), staged / "bin" / f"python{minor}")
    for name in ("python", "python3"):
        (staged / "bin" / name).symlink_to(f"python{minor}")
    library = f"lib/python{minor}"
    shutil.copytree(
        prefix / library,
        staged / library,
        symlinks=True,
        ignore=lambda _, names: [name for name in names if name in _UNUSED or name.startswith("config-")],
    )
    (staged / library / "site-packages").mkdir()
    (staged / library / "site-packages" / "README.txt").write_text("Packages are installed here.\n")
    for shared in (prefix / "lib").glob("libpython*.so*"):
        shutil.copy2(shared, staged / "lib" / shared.name, follow_symlinks=False)
    assemble_package(
        "python", version, HERE, "h0_0", folder / HERE, files_dir=staged, compression_level=1, detect_prefix=False
    )
    return version


def add_numpy(folder: Path, scratch: Path, python: str) -> None:
    """Package numpy's wheel for this platform."""
    import uv
    from rattler_build import assemble_package

    minor = ".".join(python.split(".")[:2])
    staged = scratch / "numpy"
    target = staged / "lib" / f"python{minor}" / "site-packages"
    command = [uv.find_uv_bin(), "pip", "install", "--target", str(target), "--python-version", minor, "--no-deps"]
    subprocess.run([*command, "--only-binary", ":all:", "--quiet", f"numpy=={NUMPY}"], check=True)
    for path in (*target.rglob("tests"), target / "bin"):
        shutil.rmtree(path, ignore_errors=True)
    depends = [f"python {minor}.*"]
    build = f"py{minor.replace('.', '')}_0"
    assemble_package(
        "numpy",
        NUMPY,
        HERE,
        build,
        folder / HERE,
        files_dir=staged,
        compression_level=1,
        depends=depends,
        detect_prefix=False,
    )


def build(folder: Path) -> None:
    """Build the channel."""
    from rattler.index import index_fs

    scratch = folder.with_name(folder.name + ".scratch")
    (folder / "noarch").mkdir(parents=True)
    (folder / HERE).mkdir()
    python = add_python(folder, scratch)
    add_numpy(folder, scratch, python)
    minor = ".".join(python.split(".")[:2])
    for subdir in PLATFORMS[1:]:
        small(folder, "python", python, subdir)
        small(folder, "numpy", NUMPY, subdir, depends=[f"python {minor}.*"], build=f"py{minor.replace('.', '')}_0")
    for version in ("1.0", "2.0"):
        code = f"version = {version!r}\n\n\ndef main():\n    print(version)\n"
        small(
            folder,
            "tiny",
            version,
            "noarch",
            noarch="python",
            entry_points=["tiny-version = tiny:main"],
            depends=["python >=3.11"],
            files={"site-packages/tiny.py": code},
        )
    for subdir in PLATFORMS:
        small(
            folder,
            "prefixed",
            "1.0",
            subdir,
            depends=["python"],
            files={
                "bin/prefixed": f"#!{PLACEHOLDER}/bin/python\nimport sys\nprint(sys.prefix)\n",
                "etc/prefixed.conf": f"home = {PLACEHOLDER}\n",
            },
        )
    small(folder, "needs-old-tiny", "1.0", "noarch", noarch="generic", depends=["tiny <2"])
    asyncio.run(index_fs(folder))
    shutil.rmtree(scratch)
    (folder / "about.json").write_text(
        json.dumps({"python": python, "platforms": PLATFORMS, "placeholder": PLACEHOLDER})
    )


def build_small(folder: Path, packages: list[dict[str, Any]]) -> None:
    """Build a channel of small packages, or add them to it."""
    from rattler.index import index_fs

    (folder / "noarch").mkdir(parents=True, exist_ok=True)
    for package in packages:
        small(folder, **package)
    asyncio.run(index_fs(folder, force=True))


if __name__ == "__main__":
    if sys.argv[2:]:
        build_small(Path(sys.argv[1]), json.loads(sys.argv[2]))
    else:
        build(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # py-rattler may crash when the interpreter ends
