"""A second Python, a lock for it, and an index of our own that asks for a password."""

from __future__ import annotations

import base64
import hashlib
import http.server
import sys
import threading
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from mlp_plugin_uv import Pypi
from mlp_plugin_uv.planning import plan
from mlp_plugin_uv.plugin import mlp_resolve_environment
from mlp_plugin_uv.tool import installed_pythons

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlp_hookspecs import EnvironmentLock, EnvironmentSpec

PASSWORD = "correct-horse"  # noqa: S105 # of a server that lives as long as a test


@pytest.fixture(scope="session")
def other_python() -> str:
    """A minor version that the worker runs under, 3.12 if there is a choice, and not the one that runs the tests."""
    minors = {tuple(map(int, version.split(".")[:2])) for version, _ in installed_pythons()}
    others = sorted(minor for minor in minors if (3, 11) <= minor != sys.version_info[:2])
    if not others:
        pytest.skip("uv finds no second Python from 3.11 on: install one, for example by `uv python install 3.12`")
    return ".".join(map(str, (3, 12) if (3, 12) in others else others[0]))


@pytest.fixture(scope="session")
def requirement(other_python: str) -> EnvironmentSpec:
    """A requirement with one small package, under the other Python."""
    spec = plan([Pypi(packages={"six": "1.17.0"}, python=other_python)], "")
    assert spec is not None
    return spec


@pytest.fixture(scope="session")
def lock(requirement: EnvironmentSpec) -> EnvironmentLock:
    """The requirement's lock."""
    return mlp_resolve_environment(requirement, ())


@attrs.define
class Index:
    """A package index on loopback, for whoever knows the password."""

    folder: Path
    server: http.server.ThreadingHTTPServer

    @property
    def url(self) -> str:
        """Its URL, with the password."""
        return f"http://ada:{PASSWORD}@127.0.0.1:{self.server.server_port}/index/"

    def add(self, name: str, version: str) -> None:
        """Publish a wheel with one module, which holds its version, and one command."""
        project = self.folder / "index" / name
        project.mkdir(parents=True, exist_ok=True)
        info = f"{name}-{version}.dist-info"
        files = {
            f"{name}.py": f"version = {version!r}\ndef main(): print(version)\n",
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/entry_points.txt": f"[console_scripts]\n{name}-version = {name}:main\n",
        }
        files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
        with zipfile.ZipFile(project / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            for path, content in files.items():
                wheel.writestr(path, content)
        wheels = sorted(project.glob("*.whl"))
        links = [f'<a href="{w.name}#sha256={hashlib.sha256(w.read_bytes()).hexdigest()}">{w.name}</a>' for w in wheels]
        (project / "index.html").write_text(f"<!DOCTYPE html><html><body>{' '.join(links)}</body></html>")

    def stop(self) -> None:
        """Go away."""
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """An index with the package ``tinypkg``, beside the one that uv is configured for, and an empty cache of uv's."""
    expected = "Basic " + base64.b64encode(f"ada:{PASSWORD}".encode()).decode()

    class Handler(http.server.SimpleHTTPRequestHandler):
        """Serve the folder."""

        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path / "served"))  # type: ignore[arg-type] # passed through

        def do_GET(self) -> None:
            """Answer whoever knows the password."""
            if self.headers.get("Authorization") == expected:
                super().do_GET()
                return
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="tests"')
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Keep quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    served = Index(tmp_path / "served", server)
    served.add("tinypkg", "1.0")
    monkeypatch.setenv("UV_INDEX", served.url)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    try:
        yield served
    finally:
        served.stop()
        thread.join()
