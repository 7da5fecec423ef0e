"""A conda channel of our own on loopback, with a real CPython and numpy, and locks of what is in it."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from mlp_hookspecs.provisioning import remove
from mlp_plugin_conda import Conda
from mlp_plugin_conda.plugin import mlp_resolve_environment
from mlp_plugin_conda.tools import this_platform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlp_hookspecs import EnvironmentLock, EnvironmentSpec

BUILDER = Path(__file__).with_name("channel.py")


@attrs.frozen
class Channel:
    """A channel that is served on loopback.

    Attributes
    ----------
    folder : pathlib.Path
        Its files.
    url : str
        Its URL.
    python : str
        The version of Python in it.
    platforms : tuple of str
        Three platforms that it has packages for, this one first.
    """

    folder: Path
    url: str
    python: str
    platforms: tuple[str, ...]

    def spec(self, **fields: object) -> EnvironmentSpec:
        """Return the requirement of a decorator that names this channel and its Python."""
        given = {"channels": [self.url], "python": ".".join(self.python.split(".")[:2]), **fields}
        spec = Conda(**given).environment  # type: ignore[arg-type] # as a user writes it
        assert spec is not None
        return spec


@pytest.fixture(autouse=True)
def solver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Solve by ours, whatever the machine has; loopback is never behind a proxy."""
    monkeypatch.setenv("CONDA_EXE", "mlp-conda-solver")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="session")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Channel]:
    """The channel, built once for all test files of a session and served until its end."""
    folder = tmp_path_factory.getbasetemp() / "conda-channel"
    if not (folder / "about.json").exists():
        subprocess.run([sys.executable, str(BUILDER), str(folder)], check=True)
    about = json.loads((folder / "about.json").read_text())
    with serve(folder) as url:
        yield Channel(folder, url, about["python"], tuple(about["platforms"]))


@contextlib.contextmanager
def serve(folder: Path, login: str = "") -> Iterator[str]:
    """Serve a folder on loopback, to whoever knows the login if there is one, and tell its URL."""
    expected = "Basic " + base64.b64encode(login.encode()).decode() if login else None

    class Handler(http.server.SimpleHTTPRequestHandler):
        """Serve the folder."""

        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type] # passed through

        def do_GET(self) -> None:
            """Answer who is known."""
            if expected in {None, self.headers.get("Authorization")}:
                super().do_GET()
                return
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="tests"')
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Keep quiet."""

        def copyfile(self, source: Any, outputfile: Any) -> None:
            """Send a file to whoever still wants it: a client may be killed, or know it already."""
            with contextlib.suppress(ConnectionError):
                super().copyfile(source, outputfile)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def private() -> Callable[[Path, str], contextlib.AbstractContextManager[str]]:
    """A function that serves a folder to who knows the login."""
    return serve


@pytest.fixture
def small_channel(tmp_path: Path) -> Callable[..., Path]:
    """A function that builds a channel of small packages, or adds to one."""

    def build(*packages: dict[str, Any], name: str = "small") -> Path:
        subprocess.run([sys.executable, str(BUILDER), str(tmp_path / name), json.dumps(packages)], check=True)
        return tmp_path / name

    return build


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of packages for all tests."""
    folder = tmp_path_factory.mktemp("conda-cache")
    yield folder
    remove(folder)


@pytest.fixture
def shared_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep extracted packages in the tests' own cache."""
    monkeypatch.setenv("RATTLER_CACHE_DIR", str(cache))


@pytest.fixture
def empty_cache(
    shared_cache: None,  # noqa: ARG001 # replaced by this one, whatever the order in which a test names them
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """Keep extracted packages in a cache that is empty at first."""
    monkeypatch.setenv("RATTLER_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def requirement(channel: Channel) -> EnvironmentSpec:
    """A small requirement: one package of a few bytes, and Python."""
    return channel.spec(packages={"tiny": "1.0", "prefixed": ""})


@pytest.fixture(scope="session")
def lock(requirement: EnvironmentSpec, cache: Path) -> EnvironmentLock:
    """The requirement's lock for this platform."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RATTLER_CACHE_DIR", str(cache))
        patch.setenv("CONDA_EXE", "mlp-conda-solver")
        return mlp_resolve_environment(requirement, (this_platform(),))
