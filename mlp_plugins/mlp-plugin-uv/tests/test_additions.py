"""What is added to an environment leaves all of it as it is, or is refused with the package that is in the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import pytest

from mlp_hookspecs import EnvironmentLock, EnvironmentSpec
from mlp_plugin_uv import Pypi
from mlp_plugin_uv.locks import read_lock
from mlp_plugin_uv.planning import plan
from mlp_plugin_uv.plugin import mlp_provision_environment, mlp_resolve_environment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Index  # a fixture's class

PLATFORMS = ("linux-64",)


def resolve(python: str | None, base: EnvironmentLock | None = None, **packages: str) -> EnvironmentLock:
    """Resolve packages, in addition to a base."""
    spec = plan([Pypi(packages=packages, python=python)], "")
    assert spec is not None
    return mlp_resolve_environment(attrs.evolve(spec, base=base), PLATFORMS)


@pytest.fixture
def base(island: Index, other_python: str) -> EnvironmentLock:
    """A lock with a package that is not the newest any more, and one that only Windows needs."""
    island.add("onwin", "1.0")
    island.add("root", "1.0", ["tinypkg", "onwin; sys_platform == 'win32'"])
    lock = resolve(other_python, root="")
    island.add("tinypkg", "2.0")
    island.add("onwin", "2.0")
    return lock


def test_base_is_kept(base: EnvironmentLock, island: Index) -> None:
    """Every package of the base keeps version, marker and hashes, though there are newer ones."""
    island.add("more", "1.0", ["tinypkg>=1"])
    island.add("tinypkg", "1.0", tag="py2.py3-none-any")
    lock = resolve(None, base, more="")
    pins = read_lock(lock.content).pins
    assert set(read_lock(base.content).pins) < set(pins)
    assert {pin.requirement for pin in set(pins) - set(read_lock(base.content).pins)} == {"more==1.0"}
    assert lock.packages == {**base.packages, "more": "1.0"}
    assert any(pin.requirement == "onwin==1.0 ; sys_platform == 'win32'" for pin in pins)


def test_nothing_added_changes_nothing(base: EnvironmentLock, island: Index) -> None:
    """An addition that the base meets already is the base, and asks no index."""
    island.requests.clear()
    assert resolve(None, base, tinypkg=">=1").digest == base.digest
    assert island.requests == []


@pytest.mark.parametrize("packages", [{"tinypkg": "2.0"}, {"more": ""}], ids=["asked for", "needed"])
def test_conflict_names_the_pin(base: EnvironmentLock, island: Index, packages: dict[str, str]) -> None:
    """An addition that needs another version of what is there is refused with the package's name and version."""
    island.add("more", "1.0", ["tinypkg>=2"])
    with pytest.raises(ValueError, match=r"the environment that is added to has tinypkg==1\.0, which must stay"):
        resolve(None, base, **packages)


def test_python_is_the_base_s(base: EnvironmentLock, other_python: str) -> None:
    """The addition has the base's Python, whatever starts the run, and another one is refused."""
    assert resolve(None, base, tinypkg="").python == other_python
    assert resolve(other_python, base, tinypkg="").python == other_python
    with pytest.raises(ValueError, match=rf"has Python {other_python}, and the addition asks for 3\.11\b"):
        resolve("3.11", base, tinypkg="")


def test_addition_works(base: EnvironmentLock, island: Index, tmp_path: Path) -> None:
    """The environment of an addition has the packages of both."""
    island.add("more", "1.0")
    made = mlp_provision_environment(resolve(None, base, more=""), tmp_path / "envs", None)
    installed = {path.name for path in (tmp_path / "envs").rglob("*.dist-info")}
    assert {"tinypkg-1.0.dist-info", "more-1.0.dist-info"} <= installed
    assert made.python.startswith(str(tmp_path))


def test_own_packages_are_kept(
    island: Index, other_python: str, tmp_path: Path, make_project: Callable[..., Path]
) -> None:
    """A base's own package stays in the addition, with its hash and what it needs."""
    (tmp_path / "project").mkdir()
    make_project(tmp_path / "project" / "mine", "mine", requires=["tinypkg"])
    (tmp_path / "project" / "requirements.txt").write_text("./mine\n")
    (tmp_path / "project" / "flow.py").write_text("")
    spec = plan([Pypi(file="requirements.txt", python=other_python)], str(tmp_path / "project" / "flow.py"))
    assert spec is not None
    base = mlp_resolve_environment(spec, PLATFORMS)
    island.add("more", "1.0", ["mine"])
    lock = resolve(None, base, more="")
    assert set(read_lock(base.content).own) == set(read_lock(lock.content).own) != set()
    assert lock.has_own_packages


def test_damaged_base_is_refused(island: Index, other_python: str) -> None:
    """A base that no lock of this plugin is read as says so."""
    assert island.url
    spec = EnvironmentSpec("pypi", {"python": other_python}, EnvironmentLock("pypi", "nonsense", other_python))
    with pytest.raises(ValueError, match="the base's lock is damaged"):
        mlp_resolve_environment(spec, PLATFORMS)
