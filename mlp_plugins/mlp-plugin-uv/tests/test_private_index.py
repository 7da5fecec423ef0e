"""An index that asks for a password is used like any other, and the password is written down nowhere."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mlp_hookspecs import EnvironmentLock, wire
from mlp_plugin_uv import Pypi
from mlp_plugin_uv.credentials import find_login, masked
from mlp_plugin_uv.planning import plan
from mlp_plugin_uv.platforms import this_platform
from mlp_plugin_uv.plugin import mlp_bundle_environment, mlp_provision_environment, mlp_resolve_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Index  # a fixture's class
    from mlp_hookspecs import EnvironmentSpec

USER = "ada"
PASSWORD = "correct-horse"  # noqa: S105 # of the tests' index


@contextlib.contextmanager
def watched_commands() -> Iterator[set[str]]:
    """Collect the command lines of all processes, as far as one can look fast enough."""
    seen: set[str] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    seen.add(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def by_variables(index: Index, folder: Path, environ: pytest.MonkeyPatch) -> str:
    """Give the credentials of a named index by uv's variables."""
    assert folder.is_dir()
    environ.setenv("UV_INDEX_ACME_USERNAME", USER)
    environ.setenv("UV_INDEX_ACME_PASSWORD", PASSWORD)
    return f"acme={index.bare_url}"


def by_netrc(index: Index, folder: Path, environ: pytest.MonkeyPatch) -> str:
    """Give them in a netrc file."""
    (folder / "netrc").write_text(f"machine 127.0.0.1 login {USER} password {PASSWORD}\n")
    (folder / "netrc").chmod(0o600)
    environ.setenv("NETRC", str(folder / "netrc"))
    return index.bare_url


def by_url(index: Index, folder: Path, environ: pytest.MonkeyPatch) -> str:
    """Give them in the URL of one of uv's variables, for an index that the requirement does not name."""
    assert folder.is_dir()
    environ.setenv("UV_DEFAULT_INDEX", index.url)
    return ""


def by_file(index: Index, folder: Path, environ: pytest.MonkeyPatch) -> str:
    """Name the index in uv's configuration file, and give the credentials by its variables."""
    (folder / "uv.toml").write_text(f'[[index]]\nname = "acme"\nurl = "{index.bare_url}"\ndefault = true\n')
    environ.setenv("UV_CONFIG_FILE", str(folder / "uv.toml"))
    environ.delenv("UV_DEFAULT_INDEX")
    by_variables(index, folder, environ)
    return ""


def spec_of(python: str, url: str) -> EnvironmentSpec:
    """Return a requirement on an index."""
    spec = plan([Pypi(packages={"tinypkg": "1.0"}, python=python, index=url or None)], "")
    assert spec is not None
    return spec


def files_below(*folders: Path) -> dict[str, bytes]:
    """Return the content of all files in folders."""
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return {str(path): path.read_bytes() for path in found}


@pytest.fixture(
    params=[(by_variables, True), (by_variables, False), (by_netrc, True), (by_url, False), (by_file, True)],
    ids=lambda param: f"{param[0].__name__}-{'json' if param[1] else 'html'}",
)
def url(request: pytest.FixtureRequest, locked_out: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The index as a requirement names it; its credentials are given in one of the ways that there are."""
    give: Callable[[Index, Path, pytest.MonkeyPatch], str]
    give, locked_out.speaks_json = request.param
    return give(locked_out, tmp_path, monkeypatch)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="command lines are read from /proc")
def test_password_is_used_and_written_nowhere(
    url: str, other_python: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With the credentials an environment is resolved, bundled and made; no file, command line or output has them."""
    with watched_commands() as commands:
        spec = spec_of(other_python, url)
        lock = mlp_resolve_environment(spec, ())
        (tmp_path / "bundle").mkdir()
        names = mlp_bundle_environment(lock, this_platform(), tmp_path / "bundle")
        mlp_provision_environment(lock, tmp_path / "envs", None)
    assert "tinypkg-1.0-py3-none-any.whl" in names
    written = {"lock": wire.dumps(lock), "requirement": wire.dumps(spec)}
    written |= files_below(tmp_path / "envs", tmp_path / "bundle", tmp_path / "xdg")
    assert [name for name, content in written.items() if PASSWORD.encode() in content] == []
    assert any("pip compile" in command for command in commands), "the watch has seen uv"
    assert [command for command in commands if PASSWORD in command] == []
    assert PASSWORD not in "".join(capfd.readouterr())
    assert (f"# index {url}\n" in lock.content) is bool(url)


def test_missing_and_wrong_passwords_are_told(
    locked_out: Index, other_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: Callable[[], None]
) -> None:
    """Without the right credentials the message says that they are missing, and does not show the wrong ones."""
    named = spec_of(other_python, f"acme={locked_out.bare_url}")
    with pytest.raises(ValueError, match="lack of valid authentication credentials"):
        mlp_resolve_environment(named, ())
    monkeypatch.setenv("UV_INDEX_ACME_USERNAME", USER)
    monkeypatch.setenv("UV_INDEX_ACME_PASSWORD", PASSWORD)
    lock = mlp_resolve_environment(named, ())
    monkeypatch.setenv("UV_INDEX_ACME_PASSWORD", "batterystaple")
    (tmp_path / "bundle").mkdir()
    with pytest.raises(OSError, match=r"\w") as caught:
        mlp_bundle_environment(lock, this_platform(), tmp_path / "bundle")
    assert "batterystaple" not in str(caught.value)
    forget()
    with pytest.raises(OSError, match="cannot make the environment") as failed:
        mlp_provision_environment(lock, tmp_path / "envs", None)
    assert "batterystaple" not in str(failed.value)


def test_lock_s_index_is_used_elsewhere(
    locked_out: Index, other_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: Callable[[], None]
) -> None:
    """An index that the requirement names is in the lock: a host that knows the password needs no more."""
    monkeypatch.setenv("UV_INDEX_ACME_USERNAME", USER)
    monkeypatch.setenv("UV_INDEX_ACME_PASSWORD", PASSWORD)
    lock = mlp_resolve_environment(spec_of(other_python, f"acme={locked_out.bare_url}"), ())
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/nothing")
    forget()
    assert Path(mlp_provision_environment(lock, tmp_path / "envs", None).python).exists()


def test_credentials_are_for_their_server_alone(locked_out: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password is found for the index that it was given for, and for no other server."""
    monkeypatch.setenv("UV_INDEX_ACME_USERNAME", USER)
    monkeypatch.setenv("UV_INDEX_ACME_PASSWORD", PASSWORD)
    indexes = [f"acme={locked_out.bare_url}", "other=http://127.0.0.1:9/x"]
    assert find_login(f"{locked_out.bare_url}tinypkg/x.whl", indexes) == (USER, PASSWORD)
    for url in ("http://127.0.0.1:9/x/y.whl", "https://elsewhere/x.whl", locked_out.bare_url.replace("http", "https")):
        assert find_login(url, indexes) is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("to https://ada:pw@host/x", "to https://***@host/x"),
        ("token s3cret-t0ken in a log", "token ******** in a log"),
        ("nothing", "nothing"),
    ],
)
def test_messages_are_masked(monkeypatch: pytest.MonkeyPatch, text: str, shown: str) -> None:
    """What stands in a URL or in one of uv's variables for secrets is masked in messages."""
    monkeypatch.setenv("UV_INDEX_ACME_PASSWORD", "s3cret-t0ken")
    assert masked(text) == shown


def test_credentials_in_a_lock_are_refused(other_python: str, tmp_path: Path) -> None:
    """A lock whose index has credentials in it is none of ours."""
    content = f"# mlp-plugin-uv 1, python {other_python}\n# index https://{USER}:{PASSWORD}@host/index\n"
    with pytest.raises(OSError, match="the lock is damaged") as caught:
        mlp_provision_environment(EnvironmentLock("pypi", content, other_python), tmp_path, None)
    assert PASSWORD not in str(caught.value)
