"""A bundle holds the very files of a lock: enough to make the environment with no network, or refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from mlp_hookspecs import EnvironmentLock, EnvironmentSpec, wire
from mlp_plugin_uv.bundle import LIST
from mlp_plugin_uv.platforms import best_wheel, is_needed, tags_of, this_platform
from mlp_plugin_uv.plugin import mlp_bundle_environment, mlp_provision_environment, mlp_resolve_environment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Index  # a fixture's class

PROVISION = """
import os, subprocess, sys
from pathlib import Path
from mlp_hookspecs import EnvironmentLock, wire
from mlp_plugin_uv.plugin import mlp_provision_environment
lock = wire.loads(EnvironmentLock, sys.argv[1])
made = mlp_provision_environment(lock, Path(sys.argv[2]), Path(sys.argv[3]))
print(subprocess.check_output([made.python, "-c", sys.argv[4]], text=True).strip())
"""


def resolve(python: str, **packages: str) -> EnvironmentLock:
    """Resolve packages."""
    return mlp_resolve_environment(EnvironmentSpec("pypi", {"packages": packages, "python": python}), ())


def bundle(lock: EnvironmentLock, folder: Path, platform: str = "") -> tuple[str, ...]:
    """Bundle a lock into a new folder."""
    folder.mkdir()
    return tuple(mlp_bundle_environment(lock, platform or this_platform(), folder))


@pytest.fixture
def lock(island: Index, other_python: str) -> EnvironmentLock:
    """A lock with one package, which is newer in the index by now."""
    lock = resolve(other_python, tinypkg="")
    island.add("tinypkg", "2.0")
    return lock


def no_network() -> list[str]:
    """Return the command that runs another with no network, where this host can do that."""
    command = ["unshare", "--user", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], check=False).returncode:
        return []
    return command


def test_environment_is_made_without_a_network(
    lock: EnvironmentLock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: Callable[[], None]
) -> None:
    """With a whole bundle nothing else is needed: no network, and nothing that uv remembers."""
    names = bundle(lock, tmp_path / "bundle")
    assert sorted(path.name for path in (tmp_path / "bundle").iterdir()) == sorted(names)
    assert {"tinypkg-1.0-py3-none-any.whl", LIST} < set(names)
    forget()
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    arguments = [wire.dumps(lock).decode(), str(tmp_path / "envs"), str(tmp_path / "bundle")]
    code = "import tinypkg, attrs, pluggy; print(tinypkg.version)"
    command = [*no_network(), sys.executable, "-c", PROVISION, *arguments, code]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "1.0\n"), done.stderr


def test_foreign_platform_gets_its_files(island: Index, other_python: str, tmp_path: Path) -> None:
    """A bundle for another platform has that platform's wheels and packages, and cannot be used here."""
    python = f"cp{other_python.replace('.', '')}"
    for tag in ("manylinux_2_17_x86_64", "manylinux_2_39_x86_64", "macosx_11_0_arm64"):
        island.add("fast", "1.0", tag=f"{python}-{python}-{tag}")
    island.add("onmac", "1.0")
    island.add("root", "1.0", ["fast", "onmac; sys_platform == 'darwin'"])
    lock = resolve(other_python, root="")
    mac = bundle(lock, tmp_path / "mac", "osx-arm64")
    linux = bundle(lock, tmp_path / "linux", "linux-64")
    assert {f"fast-1.0-{python}-{python}-macosx_11_0_arm64.whl", "onmac-1.0-py3-none-any.whl"} < set(mac)
    assert f"fast-1.0-{python}-{python}-manylinux_2_17_x86_64.whl" in linux
    assert len(linux) == len(mac) - 1
    foreign = tmp_path / ("mac" if this_platform() != "osx-arm64" else "linux")
    with pytest.raises(OSError, match=f"the bundle is for .* and this host is {this_platform()}"):
        mlp_provision_environment(lock, tmp_path / "envs", foreign)
    with pytest.raises(ValueError, match=r"fast==1\.0 is not published for linux-aarch64 with Python"):
        bundle(lock, tmp_path / "arm", "linux-aarch64")
    with pytest.raises(ValueError, match="platform 'win-64' is not known; known are linux-64"):
        bundle(lock, tmp_path / "win", "win-64")


def test_source_is_built_into_the_bundle(
    island: Index, other_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: Callable[[], None]
) -> None:
    """What is only published as source is built once, for the bundle, and its wheel is held against that."""
    island.add_source("mine", "1.0")
    lock = resolve(other_python, mine="")
    names = bundle(lock, tmp_path / "bundle")
    assert "mine-1.0-py3-none-any.whl" in names
    assert list(json.loads((tmp_path / "bundle" / LIST).read_text())["built"]) == ["mine-1.0-py3-none-any.whl"]
    monkeypatch.setenv("BUILD_LOG", str(tmp_path / "builds"))
    forget()
    island.stop()
    made = mlp_provision_environment(lock, tmp_path / "envs", tmp_path / "bundle")
    assert subprocess.check_output([made.python, "-c", "import mine; print(mine.version)"], text=True) == "1.0\n"
    assert not (tmp_path / "builds").exists()
    with (tmp_path / "bundle" / "mine-1.0-py3-none-any.whl").open("ab") as wheel:
        wheel.write(b"more")
    with pytest.raises(OSError, match="is not the file that the lock names"):
        mlp_provision_environment(lock, tmp_path / "others", tmp_path / "bundle")


def test_compiled_source_is_not_bundled_for_others(island: Index, other_python: str, tmp_path: Path) -> None:
    """A source that has to be compiled is not built for a platform that this is not."""
    foreign = "osx-arm64" if this_platform() != "osx-arm64" else "linux-64"
    tag = f"cp{other_python.replace('.', '')}-none-{'linux_x86_64' if foreign != 'linux-64' else 'macosx_11_0_arm64'}"
    island.add_source("mine", "1.0", tag=tag)
    lock = resolve(other_python, mine="")
    with pytest.raises(ValueError, match=rf"mine==1\.0 is only published as source for {foreign}"):
        bundle(lock, tmp_path / "foreign", foreign)


# -------------------------------------------------------------------------------------------- tampering


def change_wheel(folder: Path, names: tuple[str, ...]) -> str:
    """Change a wheel in a bundle."""
    name = next(name for name in names if name.startswith("tinypkg"))
    (folder / name).write_bytes((folder / name).read_bytes().replace(b"version = '1.0'", b"version = '6.6'"))
    return rf"^{name} in the bundle is not the file that the lock names: its hash is sha256:[0-9a-f]+$"


def remove_wheel(folder: Path, names: tuple[str, ...]) -> str:
    """Take a wheel out of a bundle."""
    (folder / next(name for name in names if name.startswith("tinypkg"))).unlink()
    return r"^the bundle has no wheel of tinypkg==1\.0, which its lock names$"


def damage_list(folder: Path, names: tuple[str, ...]) -> str:
    """Damage a bundle's list."""
    assert names
    (folder / LIST).write_text("{")
    return "^the bundle's list is damaged"


def redirect_list(folder: Path, names: tuple[str, ...]) -> str:
    """Let a bundle's list name a file outside of it."""
    assert names
    table = json.loads((folder / LIST).read_text())
    (folder.parent / "x-1.0-py3-none-any.whl").write_bytes(b"")
    table["wheels"] = {"../x-1.0-py3-none-any.whl": "tinypkg==1.0"}
    (folder / LIST).write_text(json.dumps(table))
    return "^the bundle has no wheel of"


@pytest.mark.parametrize("tamper", [change_wheel, remove_wheel, damage_list, redirect_list])
def test_tampered_bundle_is_refused(
    lock: EnvironmentLock, tmp_path: Path, tamper: Callable[[Path, tuple[str, ...]], str]
) -> None:
    """A bundle that is not what was bundled is refused in one line, and nothing is made from it."""
    names = bundle(lock, tmp_path / "bundle")
    message = tamper(tmp_path / "bundle", names)
    with pytest.raises(OSError, match=message):
        mlp_provision_environment(lock, tmp_path / "envs", tmp_path / "bundle")
    assert [path.name for path in (tmp_path / "envs").iterdir() if not path.name.endswith(".lock")] == []


def test_changed_wheel_on_the_index_is_refused(
    lock: EnvironmentLock, island: Index, tmp_path: Path, forget: Callable[[], None]
) -> None:
    """A wheel that the index has replaced under the same name gets neither into a bundle nor an environment."""
    island.add("tinypkg", "1.0", code="evil = True\n")
    forget()
    name = "tinypkg-1.0-py3-none-any.whl"
    with pytest.raises(OSError, match=f"^{name} on the index is not the file that the lock names: it has sha256:"):
        bundle(lock, tmp_path / "bundle")
    assert not (tmp_path / "bundle" / name).exists()
    told = "^uv cannot make the environment, since a file on the index is not the one that the lock names: "
    with pytest.raises(OSError, match=told) as caught:
        mlp_provision_environment(lock, tmp_path / "envs", None)
    assert "\n" not in str(caught.value)


def test_lying_index_is_refused(
    lock: EnvironmentLock, island: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel whose content is not what the index itself says of it is refused."""
    true_answer = island.answer
    forged = tmp_path / "forged.whl"
    forged.write_bytes(b"forged")

    def answer(self: Index, path: str, accepted: str) -> tuple[str, bytes] | None:
        assert self is island
        if path.endswith("tinypkg-1.0-py3-none-any.whl"):
            return "application/octet-stream", forged.read_bytes()
        return true_answer(path, accepted)

    monkeypatch.setattr(type(island), "answer", answer)
    with pytest.raises(OSError, match=r"^tinypkg-1.0-py3-none-any.whl from 127.0.0.1 is not the file that the lock"):
        bundle(lock, tmp_path / "bundle")


def test_missing_release_is_told(
    lock: EnvironmentLock, island: Index, tmp_path: Path, forget: Callable[[], None]
) -> None:
    """A release that the index no longer has is named."""
    (island.folder / "index" / "tinypkg" / "tinypkg-1.0-py3-none-any.whl").unlink()
    forget()
    with pytest.raises(OSError, match=r"^the index no longer has what the lock names: .*tinypkg==1\.0"):
        bundle(lock, tmp_path / "bundle")
    with pytest.raises(OSError, match=r"since the index no longer has what the lock names: .*tinypkg==1\.0"):
        mlp_provision_environment(lock, tmp_path / "envs", None)


def test_unreachable_index_is_told(
    lock: EnvironmentLock, island: Index, tmp_path: Path, forget: Callable[[], None]
) -> None:
    """An index that is not there is told from one that has lost something."""
    island.stop()
    forget()
    with pytest.raises(OSError, match=r"^the index cannot be asked for what the lock names: .*127\.0\.0\.1"):
        bundle(lock, tmp_path / "bundle")
    with pytest.raises(OSError, match=r"^uv cannot make the environment: .*127\.0\.0\.1"):
        mlp_provision_environment(lock, tmp_path / "envs", None)


def test_yanked_release(
    lock: EnvironmentLock, island: Index, tmp_path: Path, forget: Callable[[], None], other_python: str
) -> None:
    """A yanked release is not chosen any more, and said to be yanked; a lock that has it can still be made."""
    island.yanked.add("tinypkg-1.0-py3-none-any.whl")
    forget()
    with pytest.raises(ValueError, match=r"tinypkg==1\.0 .*yanked"):
        resolve(other_python, tinypkg="<2")
    assert "tinypkg-1.0-py3-none-any.whl" in bundle(lock, tmp_path / "bundle")
    assert os.access(mlp_provision_environment(lock, tmp_path / "envs", None).python, os.X_OK)


# -------------------------------------------------------------------------------------------- platforms


@pytest.mark.parametrize(
    ("names", "best"),
    [
        (["a-1-py3-none-any.whl", "a-1-cp312-cp312-manylinux_2_17_x86_64.whl"], 1),
        (["a-1-cp312-cp312-manylinux_2_31_x86_64.whl", "a-1-cp312-cp312-manylinux_2_28_x86_64.whl"], 1),
        (["a-1-cp312-cp312-manylinux_2_34_x86_64.whl", "a-1-cp312-cp312-manylinux_2_31_x86_64.whl"], 1),
        (["a-1-cp38-abi3-manylinux2014_x86_64.whl", "a-1-cp38-abi3-musllinux_1_2_x86_64.whl"], 0),
        (["a-1-cp313-cp313-manylinux_2_17_x86_64.whl", "a-1-cp312-cp312-win_amd64.whl", "a-1.tar.gz", "a.whl"], None),
    ],
)
def test_best_wheel_is_chosen(names: list[str], best: int | None) -> None:
    """The wheel is the most specific one that a usual host of the platform can use."""
    assert best_wheel(names, tags_of("linux-64", "3.12")) == (None if best is None else names[best])


@pytest.mark.parametrize(
    ("marker", "platform", "needed"),
    [
        ("", "linux-64", True),
        ("sys_platform == 'win32'", "linux-64", False),
        ("platform_machine == 'arm64'", "osx-arm64", True),
        ("platform_system == 'Darwin'", "osx-64", True),
        ("python_full_version >= '3.13'", "linux-64", False),
        ("python_full_version < '3.12.4'", "linux-64", True),
        ("python_full_version >= '3.12.4'", "linux-64", True),
    ],
)
def test_markers_tell_what_is_needed(marker: str, platform: str, needed: bool) -> None:
    """A package is for a platform if it is under some release of the lock's Python."""
    assert is_needed(marker, platform, "3.12") is needed
