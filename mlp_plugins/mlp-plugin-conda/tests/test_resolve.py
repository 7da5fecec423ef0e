"""A requirement becomes one lock for all platforms, through conda-lock, with wheels where channels lack something."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import yaml

from mlp_hookspecs import PLATFORM_FLOORS, EnvironmentLock, EnvironmentSpec
from mlp_plugin_conda.locks import read_lock
from mlp_plugin_conda.plugin import mlp_provision_environment, mlp_resolve_environment
from mlp_plugin_conda.resolve import conda_floors
from mlp_plugin_conda.tools import this_platform

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from conftest import Channel  # a fixture's class

pytestmark = pytest.mark.usefixtures("shared_cache")

PASSWORD = "correct-horse"  # noqa: S105 # of a server that lives as long as a test
SLOW = pytest.mark.slow
FLOORS = {floor.partition(">=")[0] for floor in PLATFORM_FLOORS}


def managers(lock: EnvironmentLock, platform: str) -> dict[str, str]:
    """Return who installs each package."""
    return {package.name: package.manager for package in read_lock(lock.content).on(platform)}


def added(spec: EnvironmentSpec, base: EnvironmentLock) -> EnvironmentSpec:
    """Return a requirement as one of additions to an environment."""
    return attrs.evolve(spec, base=base)


def package(name: str, version: str, **fields: Any) -> dict[str, Any]:
    """Return the arguments of a small package for every platform."""
    return {"name": name, "version": version, "subdir": "noarch", "noarch": "generic", **fields}


def test_one_lock_holds_for_three_platforms(channel: Channel, tmp_path: Path) -> None:
    """Each platform has its own files of the same packages, and conda-lock itself reads the lock."""
    lock = mlp_resolve_environment(channel.spec(packages={"numpy": "", "tiny": "1.0"}), channel.platforms)
    assert lock.platforms == tuple(sorted(channel.platforms))
    assert lock.python == channel.python
    assert {"numpy", "tiny", "python"} | FLOORS == set(lock.packages)
    assert lock.packages["tiny"] == "1.0"
    assert not lock.has_own_packages
    for platform in channel.platforms:
        held = {package.name: package for package in read_lock(lock.content).on(platform)}
        assert held["numpy"].place.startswith(f"{platform}/")
        assert held["tiny"].place == "noarch/tiny-1.0-0.tar.bz2"
        # The channel has only Python and numpy: what the worker needs comes as wheels.
        assert {held[name].manager for name in FLOORS} == {"pip"}
    (tmp_path / "conda-lock.yml").write_text(lock.content)
    command = [sys.executable, "-m", "conda_lock", "render", "--kind", "explicit", "--platform", channel.platforms[1]]
    subprocess.run([*command, str(tmp_path / "conda-lock.yml")], check=True, capture_output=True, cwd=tmp_path)
    assert f"{channel.url}/noarch/tiny-1.0-0.tar.bz2#" in (tmp_path / f"conda-{channel.platforms[1]}.lock").read_text()
    assert yaml.safe_load(lock.content)["version"] == 1


@pytest.mark.slow
def test_answer_is_the_same_again(channel: Channel) -> None:
    """The same requirement gives the same digest, in whatever order the platforms are named."""
    spec = channel.spec(packages={"tiny": ""})
    first = mlp_resolve_environment(spec, channel.platforms[:2])
    assert mlp_resolve_environment(spec, channel.platforms[1::-1]) == first
    assert first.packages["tiny"] == "2.0"


def test_channels_that_have_what_the_worker_needs(
    channel: Channel, small_channel: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the channels have attrs and the rest, they come as conda packages, and no index is asked."""
    versions = {"attrs": "25.1", "cloudpickle": "3.1", "packaging": "24.0", "pluggy": "1.7.0"}
    folder = small_channel(*(package(name, v, depends=["python"]) for name, v in versions.items()))
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:1/nowhere")
    monkeypatch.setenv("UV_OFFLINE", "1")
    spec = channel.spec(packages={"attrs": ">=24"}, channels=[channel.url, folder.as_uri()])
    lock = mlp_resolve_environment(spec, (this_platform(),))
    assert set(managers(lock, this_platform()).values()) == {"conda"}
    assert {name: lock.packages[name] for name in versions} == versions
    with pytest.raises(ValueError, match=r"attrs.*which the platform itself needs"):
        mlp_resolve_environment(
            attrs.evolve(spec, requirement={**spec.requirement, "packages": {"attrs": "==22.1"}}), (this_platform(),)
        )


@pytest.mark.slow
def test_wheels_keep_what_conda_has(channel: Channel, small_channel: Callable[..., Path]) -> None:
    """A wheel's dependency that conda provides is not installed again, and its version binds the wheel."""
    here = this_platform()
    six = package("six", "1.16.0", depends=["python"])
    fields = {"packages": {"six": ""}, "channels": [channel.url, small_channel(six).as_uri()]}
    lock = mlp_resolve_environment(channel.spec(**fields, pip={"python-dateutil": "2.9.0.post0"}), (here,))
    assert managers(lock, here)["python-dateutil"] == "pip"
    assert managers(lock, here)["six"] == "conda"
    assert lock.packages["six"] == "1.16.0"
    with pytest.raises(ValueError, match=rf"for {here} cannot be met: .*six==1\.17"):
        mlp_resolve_environment(channel.spec(**fields, pip={"six": "1.17.0"}), (here,))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({"packages": {"tiny": "7"}}, r"no answer for .*tiny ==7", marks=SLOW),
        pytest.param(
            {"packages": {"tiny": "2.0", "needs-old-tiny": ""}},
            r"no answer for .*needs-old-tiny 1\.0 would require",
            marks=SLOW,
        ),
        pytest.param({"packages": {"no-such-thing": ""}}, r"no answer for .*no-such-thing", marks=SLOW),
        pytest.param({"python": "3.11.0"}, r"no answer for .*python ==3\.11\.0", marks=SLOW),
        pytest.param({"pip": {"six": "99"}}, r"cannot be met: .*six==99", marks=SLOW),
    ],
)
def test_impossible_requirements_are_explained(channel: Channel, fields: dict[str, Any], message: str) -> None:
    """The solver's own explanation is the message, in one line."""
    with pytest.raises(ValueError, match=message) as caught:
        mlp_resolve_environment(channel.spec(**fields), (this_platform(),))
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/channel", "file:///no/such/channel"])
def test_unreachable_channel_is_an_error(channel: Channel, url: str) -> None:
    """A channel that cannot be read is named, and is not taken for one without packages."""
    with pytest.raises(OSError, match=r"127\.0\.0\.1:1|/no/such/channel"):
        mlp_resolve_environment(channel.spec(channels=[url]), (this_platform(),))


def test_unknown_requirement_is_refused() -> None:
    """A requirement of a later version is not half understood."""
    with pytest.raises(ValueError, match="has colour, which this version does not know"):
        mlp_resolve_environment(EnvironmentSpec("conda", {"colour": "red"}), ("linux-64",))


# -------------------------------------------------------------------------------------------------- additions


@pytest.fixture(scope="module")
def base(channel: Channel, cache: Path) -> EnvironmentLock:
    """An environment with an old version of a package, for two platforms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RATTLER_CACHE_DIR", str(cache))
        patch.setenv("CONDA_EXE", "mlp-conda-solver")
        return mlp_resolve_environment(channel.spec(packages={"tiny": "1.0"}), channel.platforms[:2])


def test_additions_keep_every_pin(channel: Channel, base: EnvironmentLock) -> None:
    """The base's very files are in the lock, the additions beside them; its channels and Python go without saying."""
    spec = added(
        channel.spec(packages={"prefixed": "", "tiny": ">=1"}, pip={"six": ""}, channels=[], python=None), base
    )
    lock = mlp_resolve_environment(spec, base.platforms)
    before, after = read_lock(base.content), read_lock(lock.content)
    assert set(before.packages) < set(after.packages)
    assert {package.name for package in after.packages} - {package.name for package in before.packages} == {
        "prefixed",
        "six",
    }
    assert lock.platforms == base.platforms


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"packages": {"tiny": "2.0"}}, r"pins tiny 1\.0"),
        pytest.param({"packages": {"tiny": "1.0=other"}}, r"pins tiny 1\.0", marks=SLOW),
        pytest.param({"python": "3.99"}, r"pins python 3\.1", marks=SLOW),
        pytest.param({"pip": {"attrs": "<24"}}, r"pins attrs \d", marks=SLOW),
    ],
)
def test_conflict_names_the_pin(channel: Channel, base: EnvironmentLock, fields: dict[str, Any], message: str) -> None:
    """What the base pins is not changed for an addition: the pin is named."""
    with pytest.raises(ValueError, match=message):
        mlp_resolve_environment(added(channel.spec(**fields), base), (this_platform(),))


def test_base_for_another_platform_is_refused(channel: Channel, base: EnvironmentLock) -> None:
    """An environment that is not known for a platform cannot be added to there."""
    with pytest.raises(ValueError, match=rf"not {channel.platforms[2]}"):
        mlp_resolve_environment(added(channel.spec(), base), (channel.platforms[2],))


# -------------------------------------------------------------------------------------------------- private channels


@pytest.mark.slow
@pytest.mark.usefixtures("empty_cache")
def test_private_channel_is_read_with_the_users_credentials(
    channel: Channel,
    private: Callable[[Path, str], AbstractContextManager[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A channel that asks for a password is read with what netrc has, which is nowhere in the lock."""
    with private(channel.folder, f"ada:{PASSWORD}") as url:
        spec = channel.spec(packages={"tiny": "1.0"}, channels=[url])
        with pytest.raises(OSError, match="401"):
            mlp_resolve_environment(spec, (this_platform(),))
        (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login ada password {PASSWORD}\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        lock = mlp_resolve_environment(spec, (this_platform(),))
        assert PASSWORD not in lock.content
        made = mlp_provision_environment(lock, tmp_path / "root", None)
        found = "\n".join(path.read_text() for path in Path(made.python).parents[1].glob("conda-meta/*"))
        assert url in found
        assert PASSWORD not in found


@pytest.mark.parametrize("url", ["conda-forge", "https://mirror.example.org/conda-forge"])
def test_well_known_channels_are_not_asked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """conda-forge, and a mirror of it, is known to have what the worker needs, so that no request is made for that."""
    monkeypatch.setattr("mlp_plugin_conda.resolve.run_helper", None)
    assert conda_floors(("local", url), ("linux-64",), sorted(FLOORS)) == sorted(FLOORS)
