"""A lock's text says what was locked, in one way, and nothing that this plugin did not write is taken for one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlp_plugin_conda.locks import Lock, Package, read_lock

SHA = "ab" * 32


def entry(**changes: Any) -> dict[str, Any]:
    """Return the entry of a package."""
    url = "https://h/c/linux-64/numpy-2.4.6-py312_0.conda"
    return Package("numpy", "2.4.6", "conda", "linux-64", url, SHA, {"python": ">=3.12"}).entry | changes


def text(*entries: dict[str, Any], **changes: Any) -> str:
    """Return the text of a lock."""
    metadata = {"content_hash": {"linux-64": "x"}, "channels": [{"url": "c"}], "platforms": ["linux-64"]}
    return json.dumps({"version": 1, "metadata": metadata, "package": list(entries)} | changes)


def test_lock_is_written_one_way() -> None:
    """What is read is written again, whatever the order of the packages and the keys."""
    wheel = entry(name="six", manager="pip", url="https://i/f/six-1.17.0-py2.py3-none-any.whl", version="1.17.0")
    lock = read_lock(text(entry(), wheel))
    assert read_lock(lock.text) == lock
    assert read_lock(text(wheel, entry())).text == lock.text
    assert lock.text.count("\n") == 4
    assert lock.versions == {"numpy": "2.4.6", "six": "1.17.0"}


def test_places_and_builds_follow_from_files() -> None:
    """A package lies in its channel's subdir, a wheel among the wheels; the build is the end of the file's name."""
    lock = read_lock(text(entry(), entry(name="a", url="file:///c/noarch/a-1-pyh_0.tar.bz2", version="1")))
    assert [(package.place, package.build) for package in lock.packages] == [
        ("noarch/a-1-pyh_0.tar.bz2", "pyh_0"),
        ("linux-64/numpy-2.4.6-py312_0.conda", "py312_0"),
    ]


@pytest.mark.parametrize(
    ("versions", "python"),
    [(("3.12.1", "3.12.1"), "3.12.1"), (("3.12.1", "3.12.4"), "3.12"), (("3.12.1", "3.13.0"), ""), ((), "")],
)
def test_python_is_as_exact_as_it_holds_everywhere(versions: tuple[str, ...], python: str) -> None:
    """Platforms may differ in the last number of Python's version."""
    packages = tuple(Package("python", v, "conda", f"p-{n}", "u", SHA) for n, v in enumerate(versions))
    assert Lock((), (), packages, {}).python == python


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no JSON"),
        ("[]", "no conda-lock file of version 1"),
        (text(version=2), "no conda-lock file of version 1"),
        (text(metadata={}), "missing"),
        (text(entry(hash={"md5": "00"})), "no sha256"),
        (text(entry(hash={"sha256": "00"})), "no sha256"),
        (text(entry(name="../x")), "no name"),
        (text(entry(platform="../x")), "unknown manager or platform"),
        (text(entry(manager="npm")), "unknown manager or platform"),
        (text(entry(url="https://h/c/linux-64/..%2fx.conda")), "no package's file"),
        (text(entry(url="https://h/c/linux-64/-x.conda")), "no package's file"),
        (text(entry(url="https://h/c/..../x-1-0.conda")), "no package's file"),
        (text(entry(url="https://h/c/linux-64/x-1.whl")), "no package's file"),
        (text(entry(url="https://u:secret@h/c/linux-64/x-1-0.conda")), "holds credentials"),
        (text({"name": "x"}), "missing"),
    ],
)
def test_strange_locks_are_refused(content: str, message: str) -> None:
    """A lock that lacks a hash, or whose names would lead elsewhere, is refused, and no credentials are repeated."""
    with pytest.raises(ValueError, match=message) as caught:
        read_lock(content)
    assert "secret" not in str(caught.value)
