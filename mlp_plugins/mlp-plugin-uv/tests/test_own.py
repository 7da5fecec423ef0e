"""What no index has is built when it is locked, named by the hash of its wheel, and found again by it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from mlp_hookspecs import EnvironmentLock, EnvironmentSpec
from mlp_plugin_uv import Pypi, Uv
from mlp_plugin_uv.locks import read_lock
from mlp_plugin_uv.planning import plan
from mlp_plugin_uv.platforms import this_platform
from mlp_plugin_uv.plugin import mlp_bundle_environment, mlp_provision_environment, mlp_resolve_environment
from mlp_plugin_uv.tool import run_uv

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Index  # a fixture's class
    from mlp_hookspecs import Option


@pytest.fixture
def flow(tmp_path: Path, island: Index) -> Path:
    """A flow's file in a project, where nothing but the index can be reached."""
    assert island.url
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "flow.py").write_text("")
    return tmp_path / "project" / "flow.py"


def asked(flow: Path, *options: Option) -> EnvironmentSpec:
    """Return the requirement of a step."""
    spec = plan(options, str(flow))
    assert spec is not None
    return spec


def lock_of(flow: Path, python: str, text: str) -> EnvironmentLock:
    """Lock what a requirements file asks for."""
    (flow.parent / "requirements.txt").write_text(text)
    return mlp_resolve_environment(asked(flow, Pypi(file="requirements.txt", python=python)), (this_platform(),))


def versions_in(lock: EnvironmentLock, root: Path, packages: Path | None) -> str:
    """Return the version of the package ``mine`` in a lock's environment."""
    made = mlp_provision_environment(lock, root, packages)
    command = [made.python, "-c", "import mine, tinypkg; print(mine.version, tinypkg.version)"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder."""
    command = ["git", "-c", "user.name=tests", "-c", "user.email=tests@localhost", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("line", ["./mine", "-e ./mine", "mine @ file://{}/mine"])
def test_local_source(flow: Path, other_python: str, make_project: Callable[..., Path], line: str) -> None:
    """A local project becomes a wheel: locked by its hash, handed out by itself, and installed from there."""
    make_project(flow.parent / "mine", "mine", requires=["tinypkg"])
    lock = lock_of(flow, other_python, line.format(flow.parent) + "\n")
    assert (lock.has_own_packages, lock.platforms, lock.packages["mine"]) == (True, (), "1.0")
    folder = flow.parent / "own"
    folder.mkdir()
    assert mlp_bundle_environment(lock, "", folder) == ("mine-1.0-py3-none-any.whl",)
    digest = hashlib.sha256((folder / "mine-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    assert [pin.hashes for pin in read_lock(lock.content).own] == [(f"sha256:{digest}",)]
    assert versions_in(lock, flow.parent / "envs", folder) == "1.0 1.0"
    assert str(flow.parent) not in lock.content


def test_same_source_is_built_once(
    flow: Path, other_python: str, make_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same source gives the same lock, from another place too; a changed one gives another lock."""
    make_project(flow.parent / "mine", "mine")
    first = lock_of(flow, other_python, "./mine\n")
    (flow.parent / "mine").rename(flow.parent / "moved")
    monkeypatch.setenv("BUILD_LOG", str(flow.parent / "builds"))
    assert lock_of(flow, other_python, "./moved\n") == first
    asked_by_uv = (flow.parent / "builds").read_text() if (flow.parent / "builds").exists() else ""
    assert asked_by_uv.count("mine") <= 1, "uv asks for what it needs; the wheel is not built again"
    (flow.parent / "moved" / "mine.py").write_text("version = 'new'\n")
    assert lock_of(flow, other_python, "./moved\n").digest != first.digest


def test_other_host_needs_the_wheel(
    flow: Path, other_python: str, make_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the wheel a lock with own packages cannot be made elsewhere, and says where the wheel is."""
    make_project(flow.parent / "mine", "mine", requires=["tinypkg"])
    lock = lock_of(flow, other_python, "./mine\n")
    folder = flow.parent / "own"
    folder.mkdir()
    mlp_bundle_environment(lock, "", folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(flow.parent / "elsewhere"))
    with pytest.raises(OSError, match=r"mine-1\.0-py3-none-any\.whl: built from a source when the lock was made"):
        mlp_provision_environment(lock, flow.parent / "envs", None)
    with pytest.raises(OSError, match="not kept on this host"):
        mlp_bundle_environment(lock, "", flow.parent / "envs")
    assert versions_in(lock, flow.parent / "envs", folder) == "1.0 1.0"
    again = flow.parent / "again"
    again.mkdir()
    assert mlp_bundle_environment(lock, "", again) == ("mine-1.0-py3-none-any.whl",), "kept for additions made here"


def test_tampered_wheel_is_refused(flow: Path, other_python: str, make_project: Callable[..., Path]) -> None:
    """An own wheel that is not the locked one is refused, and a damaged one in the cache is not used."""
    make_project(flow.parent / "mine", "mine")
    lock = lock_of(flow, other_python, "./mine\n")
    folder = flow.parent / "own"
    folder.mkdir()
    (name,) = mlp_bundle_environment(lock, "", folder)
    with (folder / name).open("ab") as wheel:
        wheel.write(b"more")
    with pytest.raises(OSError, match=rf"^{name} is not the file that the lock names: its hash is [0-9a-f]+$"):
        mlp_provision_environment(lock, flow.parent / "envs", folder)
    (kept,) = Path(os.environ["XDG_CACHE_HOME"]).rglob("*.whl")
    kept.write_bytes(b"damaged")
    with pytest.raises(OSError, match="packages of its own that are not here"):
        mlp_provision_environment(lock, flow.parent / "envs", None)
    assert lock_of(flow, other_python, "./mine\n") == lock, "it is built again"


def test_compiled_package_binds_the_lock(flow: Path, other_python: str, make_project: Callable[..., Path]) -> None:
    """A compiled own package makes the lock one for this platform, and is refused for another."""
    tag = f"cp{other_python.replace('.', '')}-none-linux_x86_64"
    if this_platform() != "linux-64":
        pytest.skip("the wheel's tag is for linux-64")
    make_project(flow.parent / "mine", "mine", tag=tag)
    lock = lock_of(flow, other_python, "./mine\n")
    assert lock.platforms == ("linux-64",)
    spec = asked(flow, Pypi(file="requirements.txt", python=other_python))
    with pytest.raises(ValueError, match="was compiled from a source for linux-64, and is asked for osx-arm64"):
        mlp_resolve_environment(spec, ("linux-64", "osx-arm64"))
    with pytest.raises(ValueError, match="the lock holds for linux-64, not for osx-arm64"):
        mlp_bundle_environment(lock, "osx-arm64", flow.parent)


def test_git_commit_is_recorded(flow: Path, other_python: str, make_project: Callable[..., Path]) -> None:
    """A branch becomes the commit that it is now, which the lock tells; later commits do not change the lock."""
    repository = make_project(flow.parent / "repository" / "part", "mine", requires=["tinypkg"]).parent
    git(repository, "init", "--quiet", "--initial-branch=main")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message=one")
    commit = git(repository, "rev-parse", "HEAD")
    line = f"mine @ git+{repository.as_uri()}@{{}}#subdirectory=part\n"
    lock = lock_of(flow, other_python, line.format("main"))
    (pin,) = read_lock(lock.content).own
    assert pin.origin == f"git+{repository.as_uri()}@{commit}#subdirectory=part"
    (repository / "part" / "mine.py").write_text("version = '2.0'\n")
    git(repository, "commit", "--quiet", "--all", "--message=two")
    assert lock_of(flow, other_python, line.format(commit)).digest == lock.digest
    assert versions_in(lock, flow.parent / "envs", None) == "1.0 1.0"


def test_missing_repository_is_told(flow: Path, other_python: str) -> None:
    """A repository that is not there is an error in one line."""
    with pytest.raises(ValueError, match="gone") as caught:
        lock_of(flow, other_python, f"mine @ git+{(flow.parent / 'gone').as_uri()}\n")
    assert "\n" not in str(caught.value)


def test_hashed_url_is_locked(served: Index, flow: Path, other_python: str, forget: Callable[[], None]) -> None:
    """What a URL serves is taken when it is locked, if it has the hash that is given."""
    wheel = served.add("elsewhere", "1.0")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    url = f"{served.bare_url}elsewhere/{wheel.name}"
    lock = lock_of(flow, other_python, f"{url}#sha256={digest}\n")
    assert [pin.wheel for pin in read_lock(lock.content).own] == [wheel.name]
    assert "://" not in lock.content
    served.add("elsewhere", "1.0", code="changed = True\n")
    forget()
    shutil.rmtree(os.environ["XDG_CACHE_HOME"])
    with pytest.raises(
        OSError, match=rf"^{wheel.name} from 127.0.0.1 is not the file that the lock names: it has sha256"
    ):
        lock_of(flow, other_python, f"{url}#sha256={digest}\n")


def test_failing_build_is_told(flow: Path, other_python: str, make_project: Callable[..., Path]) -> None:
    """A project that cannot be built is named, with what its build says."""
    folder = make_project(flow.parent / "mine", "mine")
    (folder / "backend.py").write_text("raise SystemExit('no compiler here')\n")
    with pytest.raises(ValueError, match="mine") as caught:
        lock_of(flow, other_python, "./mine\n")
    assert "no compiler here" in str(caught.value)


def test_unnamed_local_path_is_refused(flow: Path, other_python: str, make_project: Callable[..., Path]) -> None:
    """A path that only a package's own metadata names is refused: no change to it would be noticed."""
    make_project(flow.parent / "inner", "inner")
    uri = (flow.parent / "inner").as_uri()
    make_project(flow.parent / "mine", "mine", requires=[f"inner @ {uri}"])
    with pytest.raises(ValueError, match=r"inner comes from the local path .* which no file of the project names"):
        lock_of(flow, other_python, "./mine\n")


# -------------------------------------------------------------------------------------------- whole locks


def uv_project(flow: Path, python: str) -> None:
    """Make a project with a lock around a flow."""
    (flow.parent / "pyproject.toml").write_text(
        f'[project]\nname = "whole"\nversion = "1"\n'
        f'requires-python = ">={python}"\ndependencies = ["tinypkg", "mine"]\n'
        '[project.optional-dependencies]\nviz = ["extra"]\n[dependency-groups]\ndev = ["extra"]\n'
        '[tool.uv.sources]\nmine = {path = "mine", editable = true}\n'
    )
    run_uv(["lock", "--project", str(flow.parent), "--python", f"cpython{python}"])


def test_uv_lock_is_taken(
    island: Index, flow: Path, other_python: str, make_project: Callable[..., Path], forget: Callable[[], None]
) -> None:
    """A ``uv.lock`` is the answer, though the index has newer releases; the platform's packages are added to it."""
    island.add("extra", "1.0")
    make_project(flow.parent / "mine", "mine")
    uv_project(flow, other_python)
    before = (flow.parent / "uv.lock").read_bytes()
    island.add("tinypkg", "2.0")
    forget()
    plain = mlp_resolve_environment(asked(flow, Uv(python=other_python)), ())
    assert {"tinypkg": "1.0", "mine": "1.0"}.items() <= plain.packages.items()
    assert "attrs" in plain.packages
    assert "extra" not in plain.packages
    assert "whole" not in plain.packages
    with_extra = mlp_resolve_environment(asked(flow, Uv(python=other_python, extras=["viz"])), ())
    assert with_extra.packages == {**plain.packages, "extra": "1.0"}
    assert versions_in(with_extra, flow.parent / "envs", None) == "1.0 1.0"
    assert (flow.parent / "uv.lock").read_bytes() == before


def test_stale_uv_lock_is_refused(
    island: Index, flow: Path, other_python: str, make_project: Callable[..., Path]
) -> None:
    """A lock that does not fit its project is refused with the command that renews it, and not written."""
    island.add("extra", "1.0")
    make_project(flow.parent / "mine", "mine")
    uv_project(flow, other_python)
    before = (flow.parent / "uv.lock").read_bytes()
    first = asked(flow, Uv(python=other_python))
    text = (flow.parent / "pyproject.toml").read_text()
    (flow.parent / "pyproject.toml").write_text(text.replace('"tinypkg",', '"tinypkg>=1",'))
    stale = asked(flow, Uv(python=other_python))
    assert stale.digest != first.digest
    with pytest.raises(ValueError, match=rf"renew it by `uv lock --project {flow.parent}`"):
        mlp_resolve_environment(stale, ())
    assert (flow.parent / "uv.lock").read_bytes() == before


def test_pylock_is_taken_exactly(island: Index, flow: Path, other_python: str) -> None:
    """A ``pylock.toml`` gives its versions and hashes; what is asked for beside it is added, or in conflict."""
    text = run_uv(
        ["pip", "compile", "-", "--format", "pylock.toml", "--universal", "--python-version", other_python],
        stdin="tinypkg\n",
    )
    (flow.parent / "pylock.toml").write_text(text)
    wheel = island.folder / "index" / "tinypkg" / "tinypkg-1.0-py3-none-any.whl"
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    island.add("tinypkg", "2.0")
    island.add("tinypkg", "1.0", tag="py2.py3-none-any")
    lock = mlp_resolve_environment(asked(flow, Pypi(file="pylock.toml", python=other_python)), ())
    (pin,) = (pin for pin in read_lock(lock.content).pins if pin.name == "tinypkg")
    assert (pin.requirement, pin.hashes) == ("tinypkg==1.0", (f"sha256:{digest}",))
    with pytest.raises(ValueError, match=r"the lock that is taken has tinypkg==1\.0, which must stay as it is"):
        mlp_resolve_environment(
            asked(flow, Pypi(packages={"tinypkg": "2.0"}, file="pylock.toml", python=other_python)), ()
        )
    spec = asked(flow, Pypi(file="pylock.toml", python=other_python))
    with pytest.raises(ValueError, match=r"a whole lock .* cannot be added"):
        mlp_resolve_environment(attrs.evolve(spec, base=lock), ())


def test_hashes_of_a_requirements_file_hold(island: Index, flow: Path, other_python: str) -> None:
    """Where a requirements file names hashes, no other file gets into the lock."""
    wheel = island.add("two", "1.0")
    island.add("two", "1.0", tag="py2.py3-none-any")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    lock = lock_of(flow, other_python, f"two==1.0 --hash=sha256:{digest}\n")
    (pin,) = (pin for pin in read_lock(lock.content).pins if pin.name == "two")
    assert pin.hashes == (f"sha256:{digest}",)
    with pytest.raises(ValueError, match=r"two==1\.0 has a hash that the requirements file allows"):
        lock_of(flow, other_python, f"two==1.0 --hash=sha256:{64 * '0'}\n")


def test_constraints_hold(island: Index, flow: Path, other_python: str) -> None:
    """A constraint keeps what others bring below a version, and brings nothing itself."""
    island.add("tinypkg", "2.0")
    island.add("root", "1.0", ["tinypkg"])
    (flow.parent / "limits.txt").write_text("tinypkg<2\nabsent<1\n")
    lock = lock_of(flow, other_python, "-c limits.txt\nroot\n")
    assert (lock.packages["tinypkg"], lock.packages.get("absent")) == ("1.0", None)


def test_requirement_is_data(flow: Path, make_project: Callable[..., Path], other_python: str) -> None:
    """Tampering with what the decorator wrote is noticed where it is read."""
    make_project(flow.parent / "mine", "mine")
    (flow.parent / "requirements.txt").write_text("./mine\n")
    spec = asked(flow, Pypi(file="requirements.txt", python=other_python))
    for change in (
        {"requirements": ["-r x"]},
        {"sources": {"/x": {"colour": "red"}}},
        {"index": "x"},
        {"pylock": 1},
        {"colour": 1},
    ):
        data = {**json.loads(json.dumps(spec.requirement, default=dict)), **change}
        with pytest.raises(ValueError, match=r"refused|does not know"):
            mlp_resolve_environment(EnvironmentSpec("pypi", data), ())
    ((path, _),) = json.loads(json.dumps(spec.requirement, default=dict))["sources"].items()
    (Path(path) / "mine.py").write_text("version = 'changed'\n")
    with pytest.raises(ValueError, match="was changed while it was being locked"):
        mlp_resolve_environment(spec, ())
