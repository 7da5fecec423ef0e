"""A lock becomes a working interpreter: once, whole, of the locked files, however many ask and whoever is killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from mlp_hookspecs import EnvironmentLock, ProvisionedEnvironment, wire
from mlp_hookspecs.provisioning import remove
from mlp_plugin_conda.locks import read_lock
from mlp_plugin_conda.plugin import mlp_bundle_environment, mlp_provision_environment, mlp_resolve_environment
from mlp_plugin_conda.tools import this_platform

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Channel  # a fixture's class

pytestmark = pytest.mark.usefixtures("shared_cache")

PROVISION = """
import sys
from pathlib import Path
from mlp_hookspecs import EnvironmentLock, wire
from mlp_plugin_conda.plugin import mlp_provision_environment
made = mlp_provision_environment(wire.loads(EnvironmentLock, sys.stdin.buffer.read()), Path(sys.argv[1]), None)
print(made.python, Path(made.python).parents[1].stat().st_ino)
"""
MISMATCHES = {"tiny": r"tiny-1\.0-0\.tar\.bz2 is not the file that was locked", "pluggy": r"(?i)hash mismatch.*pluggy"}
DEAD_PROXY = "http://127.0.0.1:9"


def run_in(made: ProvisionedEnvironment, *command: str) -> str:
    """Return what a command prints in an environment."""
    environ = {**os.environ, **made.variables}
    return subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout.strip()


def start_provision(lock: EnvironmentLock, root: Path) -> subprocess.Popen[str]:
    """Provision a lock in a process of its own."""
    command = [sys.executable, "-c", PROVISION, str(root)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write(wire.dumps(lock).decode())
    process.stdin.close()
    process.stdin = None
    return process


def check(made: ProvisionedEnvironment, root: Path, lock: EnvironmentLock) -> None:
    """Check that an environment works and that nothing but it, and its lock, lies in the folder."""
    code = "import sys, tiny, attr, pluggy, cloudpickle; print(tiny.version, *sys.version_info[:3], sys.prefix)"
    assert run_in(made, made.python, "-c", code) == f"1.0 {lock.python.replace('.', ' ')} {root / lock.digest}"
    assert sorted(path.name for path in root.iterdir()) == [f".{lock.digest}.lock", lock.digest]


def replaced(lock: EnvironmentLock, name: str, **changes: str) -> EnvironmentLock:
    """Return a lock with something else of one package."""
    content = read_lock(lock.content)
    packages = tuple(attrs.evolve(p, **changes) if p.name == name else p for p in content.packages)
    return attrs.evolve(lock, content=attrs.evolve(content, packages=packages).text)


def test_environment_works(lock: EnvironmentLock, tmp_path: Path) -> None:
    """The interpreter has the version and packages of the lock, and lies in a folder named by its digest."""
    root = tmp_path / "deep" / "root"
    made = mlp_provision_environment(lock, root, None)
    check(made, root, lock)
    assert made.python == str(root / lock.digest / "bin" / "python")
    assert made.variables["CONDA_PREFIX"] == str(root / lock.digest)
    assert not made.has_platform


def test_files_name_the_final_place(channel: Channel, tmp_path: Path) -> None:
    """Commands of conda packages, of noarch ones and of wheels run by name, and nothing names the place of building."""
    spec = channel.spec(packages={"prefixed": "", "tiny": "2.0"}, pip={"pyflakes": "3.2.0"})
    made = mlp_provision_environment(mlp_resolve_environment(spec, (this_platform(),)), tmp_path / "root", None)
    prefix = Path(made.python).parents[1]
    assert run_in(made, "prefixed") == str(prefix)
    assert run_in(made, "tiny-version") == "2.0"
    assert run_in(made, "pyflakes", "--version").startswith("3.2.0")
    assert (prefix / "etc" / "prefixed.conf").read_text() == f"home = {prefix}\n"
    staging = f".{prefix.name}.building".encode()
    assert [path for path in prefix.rglob("*") if path.is_file() and staging in path.read_bytes()] == []


def test_environment_is_read_only(lock: EnvironmentLock, tmp_path: Path) -> None:
    """Neither files nor folders can be written by who is not root."""
    made = mlp_provision_environment(lock, tmp_path, None)
    modes = {path: path.lstat().st_mode for path in Path(made.python).parents[1].rglob("*")}
    assert [path for path, mode in modes.items() if mode & 0o222 and not stat.S_ISLNK(mode)] == []


def test_second_request_finds_it_made(lock: EnvironmentLock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that is there is returned as it is, without a helper."""
    made = mlp_provision_environment(lock, tmp_path, None)
    monkeypatch.setattr("mlp_plugin_conda.provision.run_helper", None)
    assert mlp_provision_environment(lock, tmp_path, None) == made


def test_made_again_without_network(lock: EnvironmentLock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once its packages are in the caches, an environment is made with no channel or index to be reached."""
    mlp_provision_environment(lock, tmp_path / "one", None)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, DEAD_PROXY)
    monkeypatch.setenv("NO_PROXY", "")
    check(mlp_provision_environment(lock, tmp_path / "two", None), tmp_path / "two", lock)


@pytest.mark.slow
def test_declared_variables_are_set(channel: Channel, small_channel: Callable[..., Path], tmp_path: Path) -> None:
    """Variables that a package declares for an activated environment are in force."""
    files = {"etc/conda/env_vars.d/declared.json": json.dumps({"DECLARED": "yes"})}
    folder = small_channel(
        {"name": "declared", "version": "1", "subdir": "noarch", "noarch": "generic", "files": files}
    )
    spec = channel.spec(packages={"declared": ""}, channels=[channel.url, folder.as_uri()])
    made = mlp_provision_environment(mlp_resolve_environment(spec, (this_platform(),)), tmp_path / "root", None)
    assert run_in(made, made.python, "-c", "import os; print(os.environ['DECLARED'])") == "yes"


# -------------------------------------------------------------------------------------------------- other files


def test_other_files_are_refused(lock: EnvironmentLock, empty_cache: Path, tmp_path: Path) -> None:
    """A conda package without the locked hash is not installed; nothing is left, and the cache is not spoilt."""
    forged = replaced(lock, "tiny", sha256="0" * 64)
    with pytest.raises(
        OSError, match=r"tiny-1\.0-0\.tar\.bz2 is not the file that was locked: its sha256 is \w+, not 0+"
    ):
        mlp_provision_environment(forged, tmp_path / "root", None)
    assert empty_cache.exists()
    assert [path.name for path in (tmp_path / "root").iterdir() if not path.name.endswith(".lock")] == []
    check(mlp_provision_environment(lock, tmp_path / "other", None), tmp_path / "other", lock)


def test_other_wheels_are_refused(lock: EnvironmentLock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel without the locked hash is not installed, whatever uv's variables say."""
    monkeypatch.setenv("UV_NO_VERIFY_HASHES", "1")
    with pytest.raises(OSError, match=r"(?i)hash mismatch.*pluggy"):
        mlp_provision_environment(replaced(lock, "pluggy", sha256="0" * 64), tmp_path, None)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


@pytest.mark.usefixtures("empty_cache")
def test_tampered_file_channel_is_refused(channel: Channel, small_channel: Callable[..., Path], tmp_path: Path) -> None:
    """Packages of a file:// channel are verified too, and taken from the cache when they are there."""
    package = {
        "name": "local",
        "version": "1",
        "subdir": "noarch",
        "noarch": "generic",
        "files": {"share/local": "good"},
    }
    folder = small_channel(package)
    spec = channel.spec(packages={"local": "", "tiny": "1.0"}, channels=[channel.url, folder.as_uri()])
    lock = mlp_resolve_environment(spec, (this_platform(),))
    small_channel({**package, "files": {"share/local": "evil"}})
    with pytest.raises(OSError, match=r"local-1-0\.tar\.bz2 is not the file that was locked"):
        mlp_provision_environment(lock, tmp_path / "root", None)
    small_channel(package)
    made = mlp_provision_environment(lock, tmp_path / "root", None)
    assert (Path(made.variables["CONDA_PREFIX"]) / "share" / "local").read_text() == "good"
    shutil.rmtree(folder)
    made = mlp_provision_environment(lock, tmp_path / "again", None)
    assert (Path(made.variables["CONDA_PREFIX"]) / "share" / "local").read_text() == "good"


@pytest.mark.parametrize("content", ["", "{}", '{"version": 1, "metadata": {}, "package": []}'])
def test_strange_locks_are_refused(content: str, tmp_path: Path) -> None:
    """A lock that this plugin did not write is refused before a helper sees it."""
    with pytest.raises(OSError, match="the lock is damaged or of an unknown version"):
        mlp_provision_environment(EnvironmentLock("conda", content, "3.12"), tmp_path, None)
    assert list(tmp_path.iterdir()) == []


def test_lock_for_other_platforms_is_refused(lock: EnvironmentLock, tmp_path: Path) -> None:
    """A lock that does not hold here says for which platforms it does."""
    other = attrs.evolve(read_lock(lock.content), platforms=("plan9-64",)).text
    with pytest.raises(OSError, match=rf"the lock holds for plan9-64, and this host is {this_platform()}"):
        mlp_provision_environment(attrs.evolve(lock, content=other), tmp_path, None)


@pytest.mark.usefixtures("empty_cache")
def test_unreachable_channel_is_an_error(lock: EnvironmentLock, tmp_path: Path) -> None:
    """Where a package cannot be fetched, its URL is in the message."""
    url = f"http://127.0.0.1:1/{this_platform()}/prefixed-1.0-0.tar.bz2"
    with pytest.raises(OSError, match=r"cannot be installed: .*prefixed-1\.0-0\.tar\.bz2.*127\.0\.0\.1:1") as caught:
        mlp_provision_environment(replaced(lock, "prefixed", url=url), tmp_path, None)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------------- bundles


def bundled(lock: EnvironmentLock, folder: Path) -> list[str]:
    """Bundle a lock for this host, and return the files."""
    folder.mkdir()
    return list(mlp_bundle_environment(lock, this_platform(), folder))


def test_bundle_suffices(lock: EnvironmentLock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bundle's files an environment is made with empty caches and no network."""
    folder = tmp_path / "bundle"
    files = bundled(lock, folder)
    assert sorted(files) == sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert "noarch/tiny-1.0-0.tar.bz2" in files
    assert any(file.startswith("wheels/pluggy-") for file in files)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, DEAD_PROXY)
    for name in ("RATTLER_CACHE_DIR", "UV_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("NO_PROXY", "")
    check(mlp_provision_environment(lock, tmp_path / "root", folder), tmp_path / "root", lock)


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("name", ["tiny", "pluggy"])
def test_tampered_bundle_is_refused(
    name: str, lock: EnvironmentLock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of a bundle that is not the one that was locked is refused, and so is a bundle that lacks one."""
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    folder = tmp_path / "bundle"
    (file,) = [folder / file for file in bundled(lock, folder) if name in file]
    if file.suffix == ".whl":
        with zipfile.ZipFile(file, "a") as wheel:
            wheel.writestr("evil.py", "")
    else:
        file.write_bytes(file.read_bytes()[:-9] + b"different")
    with pytest.raises(OSError, match=MISMATCHES[name]):
        mlp_provision_environment(lock, tmp_path / "root", folder)
    file.unlink()
    with pytest.raises(OSError, match=name):
        mlp_provision_environment(lock, tmp_path / "root", folder)


def test_bundle_verifies_and_refuses(lock: EnvironmentLock, channel: Channel, tmp_path: Path) -> None:
    """What is not the locked file does not get into a bundle; a lock has no packages of its own."""
    with pytest.raises(OSError, match=r"tiny-1\.0-0\.tar\.bz2 is not the file that was locked"):
        bundled(replaced(lock, "tiny", sha256="0" * 64), tmp_path / "bundle")
    with pytest.raises(ValueError, match=rf"not for {channel.platforms[1]}"):
        mlp_bundle_environment(lock, channel.platforms[1], tmp_path)
    assert mlp_bundle_environment(lock, "", tmp_path) == ()


# -------------------------------------------------------------------------------------------------- many, and killed


@pytest.mark.slow
@pytest.mark.usefixtures("empty_cache")
def test_twenty_at_once_share_one(lock: EnvironmentLock, tmp_path: Path) -> None:
    """Processes that ask at the same time all get the one environment that one of them makes."""
    root = tmp_path / "root"
    processes = [start_provision(lock, root) for _ in range(20)]
    answers = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 20
    assert len(set(answers)) == 1
    check(mlp_provision_environment(lock, root, None), root, lock)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_builder_leaves_nothing_that_is_used(lock: EnvironmentLock, tmp_path: Path) -> None:
    """A builder killed at any moment leaves no half environment in place, while its helper may go on for a while."""
    seeded = random.Random(4)  # noqa: S311 # the same moments each time
    began = time.monotonic()
    check(mlp_provision_environment(lock, tmp_path / "root", None), tmp_path / "root", lock)
    took = time.monotonic() - began
    for _ in range(15):
        remove(tmp_path / "root" / lock.digest)
        builder = start_provision(lock, tmp_path / "root")
        time.sleep(seeded.uniform(0, 1.5 * took))
        builder.kill()
        builder.communicate()
        check(mlp_provision_environment(lock, tmp_path / "root", None), tmp_path / "root", lock)
