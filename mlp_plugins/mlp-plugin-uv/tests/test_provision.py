"""A lock becomes a working interpreter: once, whole, of the locked files, however many ask and whoever is killed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from mlp_hookspecs import EnvironmentLock, EnvironmentSpec, ProvisionedEnvironment, wire
from mlp_hookspecs.provisioning import remove
from mlp_plugin_uv.plugin import mlp_provision_environment, mlp_resolve_environment

if TYPE_CHECKING:
    from conftest import Index  # a fixture's class

PROVISION = """
import os, sys
from pathlib import Path
from mlp_hookspecs import EnvironmentLock, wire
from mlp_plugin_uv import tool
from mlp_plugin_uv.plugin import mlp_provision_environment

def run_uv(arguments, **options):
    if "venv" in arguments:
        with open(os.environ["BUILDS"], "a") as log:
            log.write("built\\n")
    return original(arguments, **options)

if "BUILDS" in os.environ:
    original, tool.run_uv = tool.run_uv, run_uv
made = mlp_provision_environment(wire.loads(EnvironmentLock, sys.argv[1]), Path(sys.argv[2]), None)
print(made.python, Path(made.python).parents[1].stat().st_ino)
"""


def run_in(made: ProvisionedEnvironment, code: str) -> str:
    """Return what a piece of code prints in an environment."""
    environ = {**os.environ, **made.variables}
    return subprocess.run(
        [made.python, "-c", code], env=environ, check=True, capture_output=True, text=True
    ).stdout.strip()


def provision_command(lock: EnvironmentLock, root: Path) -> list[str]:
    """Return the command that provisions a lock in a process of its own."""
    return [sys.executable, "-c", PROVISION, wire.dumps(lock).decode(), str(root)]


def check(made: ProvisionedEnvironment, root: Path, lock: EnvironmentLock) -> None:
    """Check that an environment works and that nothing but it, and its lock, lies in the folder."""
    code = "import sys, six, attr, pluggy, cloudpickle; print(six.__version__, *sys.version_info[:2], sep='.')"
    assert run_in(made, code) == f"1.17.0.{lock.python}"
    assert sorted(path.name for path in root.iterdir()) == [f".{lock.digest}.lock", lock.digest]


def test_environment_works(lock: EnvironmentLock, tmp_path: Path) -> None:
    """The interpreter has the version and packages of the lock, and lies in a folder named by its digest."""
    made = mlp_provision_environment(lock, tmp_path / "deep" / "root", None)
    check(made, tmp_path / "deep" / "root", lock)
    assert made.python == str(tmp_path / "deep" / "root" / lock.digest / "bin" / "python")
    assert run_in(made, "import sys; print(sys.prefix)") == str(tmp_path / "deep" / "root" / lock.digest)
    assert not made.has_platform


def test_second_request_finds_it_made(lock: EnvironmentLock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that is there is returned as it is, without uv."""
    made = mlp_provision_environment(lock, tmp_path, None)
    monkeypatch.setattr("mlp_plugin_uv.provision.run_uv", None)
    assert mlp_provision_environment(lock, tmp_path, None) == made


def test_relative_root_gives_an_absolute_path(
    lock: EnvironmentLock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter's path holds in any working folder."""
    monkeypatch.chdir(tmp_path)
    assert mlp_provision_environment(lock, Path("envs"), None).python == str(
        tmp_path / "envs" / lock.digest / "bin" / "python"
    )


def test_commands_are_found(index: Index, other_python: str, tmp_path: Path) -> None:
    """A command that a package brings is found by name from the step's processes, and runs in the environment."""
    assert index.url
    spec = EnvironmentSpec("pypi", {"packages": {"tinypkg": "1.0"}, "python": other_python})
    made = mlp_provision_environment(mlp_resolve_environment(spec, ()), tmp_path / "envs", None)
    code = "import subprocess; print(subprocess.check_output(['tinypkg-version'], text=True))"
    assert run_in(made, code) == "1.0"


def test_made_again_without_network(index: Index, other_python: str, tmp_path: Path) -> None:
    """Once its packages are in uv's cache, an environment is made with no index to be reached."""
    spec = EnvironmentSpec("pypi", {"packages": {"tinypkg": "1.0"}, "python": other_python})
    lock = mlp_resolve_environment(spec, ())
    mlp_provision_environment(lock, tmp_path / "one", None)
    index.stop()
    made = mlp_provision_environment(lock, tmp_path / "two", None)
    assert run_in(made, "import tinypkg; print(tinypkg.version)") == "1.0"


def test_other_files_are_refused(lock: EnvironmentLock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that do not have the locked hashes are not installed, whatever uv's variables say; nothing is left."""
    monkeypatch.setenv("UV_NO_VERIFY_HASHES", "1")
    name, _, rest = lock.content.partition("six==1.17.0")
    first, second = rest.split("--hash=sha256:")[1:]
    forged = name + "six==1.17.0" + rest.replace(first[:8], "00000000").replace(second[:8], "00000000")
    with pytest.raises(OSError, match=r"(?i)hash mismatch.*six"):
        mlp_provision_environment(attrs.evolve(lock, content=forged), tmp_path, None)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


@pytest.mark.parametrize(
    "content",
    [
        "",
        "# mlp-plugin-uv 2, python 3.12\n",
        "# mlp-plugin-uv 1, python ../x\n",
        "# mlp-plugin-uv 1, python 3.12\nsix==1.17.0\n",
        "# mlp-plugin-uv 1, python 3.12\nsix @ file:six.whl --hash=sha256:aa\n",
        "# mlp-plugin-uv 1, python 3.12\nsix==1.17.0 --config-settings=x --hash=sha256:aa\n",
        "# mlp-plugin-uv 1, python 3.12\nsix==1.17.0 --hash=md5:aa\n",
    ],
)
def test_strange_locks_are_refused(content: str, tmp_path: Path) -> None:
    """A lock that this plugin did not write, or that lacks a hash, is refused before uv sees it."""
    with pytest.raises(OSError, match="the lock is damaged or of an unknown version"):
        mlp_provision_environment(EnvironmentLock("pypi", content, "3.12"), tmp_path, None)
    assert list(tmp_path.iterdir()) == []


def test_missing_python_is_refused(lock: EnvironmentLock, tmp_path: Path) -> None:
    """A host without the interpreter says which it has."""
    content = lock.content.replace(f"python {lock.python}", "python 3.99")
    with pytest.raises(OSError, match=r"Python 3\.99 is not on this machine; uv finds .*\d"):
        mlp_provision_environment(attrs.evolve(lock, content=content), tmp_path, None)


def test_broken_interpreter_is_passed_over(
    lock: EnvironmentLock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interpreter of the version that is first on the path, and does not run, is in nobody's way."""
    (tmp_path / "bin").mkdir()
    broken = tmp_path / "bin" / f"python{lock.python}"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]]))
    made = mlp_provision_environment(lock, tmp_path / "envs", None)
    assert run_in(made, "import six; print(six.__version__)") == "1.17.0"
    spec = EnvironmentSpec("pypi", {"packages": {"six": "1.17.0"}, "python": lock.python})
    assert mlp_resolve_environment(spec, ()) == lock


def test_unwritable_root_is_an_error(lock: EnvironmentLock, tmp_path: Path) -> None:
    """Where the folder cannot be made, the system's error says so."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        mlp_provision_environment(lock, tmp_path / "file", None)


def test_environment_is_made_again_when_its_python_has_gone(lock: EnvironmentLock, tmp_path: Path) -> None:
    """An environment whose base interpreter was removed is replaced."""
    made = mlp_provision_environment(lock, tmp_path, None)
    binary = Path(made.python)
    binary.unlink()
    binary.symlink_to(tmp_path / "gone" / "python3")
    check(mlp_provision_environment(lock, tmp_path, None), tmp_path, lock)


def test_many_at_once_share_one(lock: EnvironmentLock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that ask at the same time all get the one environment that one of them makes, once."""
    monkeypatch.setenv("BUILDS", str(tmp_path / "builds"))
    root = tmp_path / "envs"
    processes = [subprocess.Popen(provision_command(lock, root), stdout=subprocess.PIPE, text=True) for _ in range(20)]
    answers = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 20
    assert len(set(answers)) == 1
    assert (tmp_path / "builds").read_text() == "built\n"
    check(mlp_provision_environment(lock, root, None), root, lock)


def test_crowd_survives_killings(lock: EnvironmentLock, tmp_path: Path) -> None:
    """Of processes that ask at the same time some are killed at any moment: the others get a whole environment."""
    chance = random.Random(20260131)  # noqa: S311 # repeatable on purpose
    for round_number in range(4):
        root = tmp_path / f"envs{round_number}"
        processes = [
            subprocess.Popen(
                provision_command(lock, root), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            for _ in range(5)
        ]
        doomed = set(chance.sample(range(5), 3))
        for number in doomed:
            time.sleep(chance.uniform(0, 0.25))
            processes[number].kill()
        answers = [process.communicate()[0] for process in processes]
        kept = {answers[number] for number in set(range(5)) - doomed}
        assert len(kept) == 1
        assert kept != {""}
        check(mlp_provision_environment(lock, root, None), root, lock)


def test_environment_is_read_only(lock: EnvironmentLock, tmp_path: Path) -> None:
    """Neither the files nor the folders of an environment can be written to."""
    mlp_provision_environment(lock, tmp_path, None)
    found = [path for path in (tmp_path / lock.digest).rglob("*") if not path.is_symlink()]
    assert len(found) > len(lock.packages)
    assert [path for path in found if path.stat().st_mode & 0o222] == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace to kill at chosen system calls")
@pytest.mark.parametrize(("call", "stride"), [("/^rename", 1), ("/^p?poll$", 3)], ids=["rename", "poll"])
def test_killed_builder_leaves_nothing_that_is_used(
    lock: EnvironmentLock, tmp_path: Path, call: str, stride: int
) -> None:
    """A builder killed before its last step, or while its uv goes on alone, leaves no half environment in place."""
    killed = 0
    for when in range(1, 100, stride):
        inject = ["strace", "-qq", "-o", os.devnull, "-e", f"inject={call}:signal=SIGKILL:when={when}"]
        builder = subprocess.run([*inject, *provision_command(lock, tmp_path)], check=False, capture_output=True)
        if builder.returncode == 0:
            break
        assert builder.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
        killed += 1
        check(mlp_provision_environment(lock, tmp_path, None), tmp_path, lock)
        remove(tmp_path / lock.digest)
    assert killed > 0
    check(mlp_provision_environment(lock, tmp_path, None), tmp_path, lock)
