"""A requirement becomes one exact lock, whatever index, cache and configuration uv has; or an explanation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mlp_hookspecs import EnvironmentSpec
from mlp_plugin_uv import Pypi
from mlp_plugin_uv.locks import read_lock, read_pins, write_pins
from mlp_plugin_uv.planning import plan
from mlp_plugin_uv.plugin import mlp_resolve_environment
from mlp_plugin_uv.tool import explain

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Index  # a fixture's class
    from mlp_hookspecs import EnvironmentLock


def resolve(python: str, **packages: str) -> EnvironmentLock:
    """Resolve a requirement."""
    return mlp_resolve_environment(EnvironmentSpec("pypi", {"packages": packages, "python": python}), ("linux-64",))


def test_lock_is_exact(lock: EnvironmentLock, other_python: str) -> None:
    """A lock pins the packages that were asked for and those that the worker needs, each with hashes."""
    contents = read_lock(lock.content)
    assert (contents.python, lock.python, lock.backend, lock.platforms) == (other_python, other_python, "pypi", ())
    assert list(lock.packages) == ["attrs", "cloudpickle", "packaging", "pluggy", "six"]
    assert lock.packages["six"] == "1.17.0"
    assert all(pin.hashes for pin in contents.pins)
    assert not lock.has_own_packages


def test_same_requirement_gives_same_lock(lock: EnvironmentLock, other_python: str) -> None:
    """Asked again, in another spelling, the answer has the same digest."""
    again = plan([Pypi(packages={"SIX": " == 1.17.0"}, python=other_python)], "")
    assert again is not None
    assert mlp_resolve_environment(again, ()).digest == lock.digest


def test_lock_holds_for_every_platform(other_python: str) -> None:
    """Packages of which some platforms have no need are in the lock, with a marker."""
    pins = read_lock(resolve(other_python, click="8.1.7").content).pins
    assert any(pin.requirement.startswith("colorama==") and "; " in pin.requirement for pin in pins)


def test_lock_names_no_index(index: Index, other_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the index nor its password is in the lock, whatever uv's configuration has it print."""
    (tmp_path / "uv.toml").write_text("[pip]\nemit-index-url = true\nemit-index-annotation = true\n")
    monkeypatch.setenv("UV_CONFIG_FILE", str(tmp_path / "uv.toml"))
    lock = resolve(other_python, tinypkg="1.0")
    assert "tinypkg==1.0" in lock.content
    assert "://" not in lock.content
    index.add("tinypkg", "2.0")
    assert resolve(other_python, tinypkg="1.0") == lock


def test_resolves_again_without_network(index: Index, other_python: str) -> None:
    """Where the index cannot be reached, what was resolved before is resolved to the same lock."""
    lock = resolve(other_python, tinypkg="")
    index.stop()
    assert resolve(other_python, tinypkg="") == lock


def test_unreachable_index_is_explained_without_password(index: Index, other_python: str) -> None:
    """Where nothing can be resolved for want of an index, the message says so, and no password."""
    index.stop()
    with pytest.raises(ValueError, match="127") as caught:
        resolve(other_python, tinypkg="1.0")
    assert "correct-horse" not in "".join(map(str, [caught.value, caught.value.__cause__, caught.value.__context__]))


@pytest.mark.parametrize(
    ("packages", "explanation"),
    [
        ({"six": "99"}, "no version of six==99"),
        ({"attrs": "22.1.0"}, "attrs>=23.2, which the platform itself needs"),
        ({"six": ">=1.17,<1.17"}, "six"),
    ],
)
def test_impossible_requirement_is_explained(packages: dict[str, str], explanation: str, other_python: str) -> None:
    """What cannot be met is refused with uv's own explanation on one line."""
    with pytest.raises(ValueError, match="No solution found") as caught:
        resolve(other_python, **packages)
    assert explanation in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_python_is_refused(other_python: str) -> None:
    """An interpreter that is not there is refused with those that are, and how to get it."""
    with pytest.raises(ValueError, match=r"Python 3\.99 is not on this machine") as caught:
        resolve("3.99", six="1.17.0")
    assert other_python in str(caught.value)
    assert "uv python install 3.99" in str(caught.value)


@pytest.mark.parametrize(
    ("requirement", "culprit"),
    [
        ({"packages": {}, "python": "3.12", "conda": {}}, "conda"),
        ({"packages": {"six": "-r x"}, "python": "3.12"}, "six"),
        ({"packages": {}, "python": "3.12; rm"}, "3.12; rm"),
    ],
)
def test_requirement_is_checked_again(requirement: dict[str, Any], culprit: str) -> None:
    """A requirement that did not come from the decorator is checked like one that did."""
    with pytest.raises(ValueError, match=r"refused|allowed|does not know") as caught:
        mlp_resolve_environment(EnvironmentSpec("pypi", requirement), ())
    assert culprit in str(caught.value)


def test_pins_are_canonical() -> None:
    """However a requirements file is laid out, the same packages give the same text, which reads back as itself."""
    one = """# by uv
--index-url https://host/
b==2 ; os_name == 'nt' \\
    --hash=sha256:bb \\
    --hash=sha256:aa
a==1 --hash=sha256:cc
"""
    two = "a==1 --hash=sha256:cc\n\nb==2   ;  os_name == 'nt' --hash=sha256:aa --hash=sha256:bb\n"
    text = write_pins(read_pins(one))
    assert text.startswith("a==1 \\\n    --hash=sha256:cc\nb==2 ; os_name == 'nt' \\\n    --hash=sha256:aa \\\n")
    assert write_pins(read_pins(two)) == write_pins(read_pins(text)) == text


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (
            "Resolved in 1ms\nerror: No solution\n  cause: Because six.\n\nhint: Try.\n",
            "No solution; Because six. hint: Try.",
        ),
        (
            "warning: old\n  \u00d7 No solution:\n  ╰─▶ Because six\n      and seven.\n",
            "No solution: Because six and seven.",
        ),
        ("error: Failed: https://ada:s3cret@host/six/\n", "Failed: https://***@host/six/"),
        ("  something else", "something else"),
        ("error: " + 2000 * "x", 996 * "x" + " ..."),
    ],
)
def test_errors_are_shortened(output: str, text: str) -> None:
    """What uv prints becomes one line: no warnings, no drawings, no passwords, and of a length that can be read."""
    assert explain(output) == text
