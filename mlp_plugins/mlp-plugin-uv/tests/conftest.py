"""A second Python, a lock for it, indexes of our own that ask for a password, and projects to build."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import shutil
import sys
import tarfile
import threading
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from mlp_hookspecs import PLATFORM_FLOORS
from mlp_plugin_uv import Pypi
from mlp_plugin_uv.planning import plan
from mlp_plugin_uv.plugin import mlp_resolve_environment
from mlp_plugin_uv.tool import installed_pythons, run_uv

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mlp_hookspecs import EnvironmentLock, EnvironmentSpec

USER = "ada"
PASSWORD = "correct-horse"  # noqa: S105 # of a server that lives as long as a test

JSON = "application/vnd.pypi.simple.v1+json"

BACKEND = """
import io, os, tarfile, zipfile
NAME, VERSION, TAG, REQUIRES = {name!r}, {version!r}, {tag!r}, {requires!r}

def build_wheel(folder, config_settings=None, metadata_directory=None):
    info = NAME + "-" + VERSION + ".dist-info"
    log = os.environ.get("BUILD_LOG")
    if log:
        open(log, "a").write(NAME + "\\n")
    files = {{
        NAME + ".py": open(NAME + ".py").read(),
        info + "/METADATA": "Metadata-Version: 2.1\\nName: " + NAME + "\\nVersion: " + VERSION + "\\n"
            + "".join("Requires-Dist: " + text + "\\n" for text in REQUIRES),
        info + "/WHEEL": "Wheel-Version: 1.0\\nGenerator: tests\\nRoot-Is-Purelib: true\\nTag: " + TAG + "\\n",
    }}
    files[info + "/RECORD"] = "".join(path + ",,\\n" for path in [*files, info + "/RECORD"])
    wheel = NAME + "-" + VERSION + "-" + TAG + ".whl"
    with zipfile.ZipFile(os.path.join(folder, wheel), "w") as archive:
        for path, content in files.items():
            archive.writestr(zipfile.ZipInfo(path), content)
    return wheel
"""


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
    requests: list[str] = attrs.Factory(list)
    yanked: set[str] = attrs.Factory(set)
    speaks_json: bool = True

    @property
    def bare_url(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.server.server_port}/index/"

    @property
    def url(self) -> str:
        """Its URL, with the password."""
        return self.bare_url.replace("://", f"://{USER}:{PASSWORD}@")

    def add(
        self, name: str, version: str, requires: Sequence[str] = (), tag: str = "py3-none-any", code: str = ""
    ) -> Path:
        """Publish a wheel with one module, which holds its version, and one command."""
        project = self.folder / "index" / name
        project.mkdir(parents=True, exist_ok=True)
        info = f"{name}-{version}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        files = {
            f"{name}.py": f"version = {version!r}\ndef main(): print(version)\n{code}",
            f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {text}\n" for text in requires),
            f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n",
            f"{info}/entry_points.txt": f"[console_scripts]\n{name}-version = {name}:main\n",
        }
        files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
        place = project / f"{name}-{version}-{tag}.whl"
        with zipfile.ZipFile(place, "w") as wheel:
            for path, content in files.items():
                wheel.writestr(zipfile.ZipInfo(path), content)
        return place

    def add_source(self, name: str, version: str, tag: str = "py3-none-any") -> Path:
        """Publish an archive of sources, which needs no tool to be built."""
        project = self.folder / "index" / name
        project.mkdir(parents=True, exist_ok=True)
        place = project / f"{name}-{version}.tar.gz"
        files = project_files(name, version, tag)
        files["PKG-INFO"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        with tarfile.open(place, "w:gz") as archive:
            for path, content in files.items():
                member = tarfile.TarInfo(f"{name}-{version}/{path}")
                member.size = len(content.encode())
                archive.addfile(member, io.BytesIO(content.encode()))
        return place

    def answer(self, path: str, accepted: str) -> tuple[str, bytes] | None:
        """Return the content of a page or file, with its type; None for what is not there."""
        place = self.folder / path.strip("/")
        if place.is_file():
            return "application/octet-stream", place.read_bytes()
        if not place.is_dir():
            return None
        files = sorted(file for file in place.iterdir() if file.is_file())
        hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
        if self.speaks_json and JSON in accepted:
            listed = [
                {"filename": name, "url": name, "hashes": {"sha256": text}, "yanked": name in self.yanked}
                for name, text in hashes.items()
            ]
            page = {"meta": {"api-version": "1.0"}, "name": place.name, "files": listed}
            return JSON, json.dumps(page).encode()
        links = [
            f'<a href="{name}#sha256={text}"{" data-yanked=gone" if name in self.yanked else ""}>{name}</a>'
            for name, text in hashes.items()
        ]
        return "text/html", f"<!DOCTYPE html><html><body>{' '.join(links)}</body></html>".encode()

    def stop(self) -> None:
        """Go away."""
        self.server.shutdown()
        self.server.server_close()


def serve(folder: Path) -> Index:
    """Start an index."""
    expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    class Handler(http.server.BaseHTTPRequestHandler):
        """Serve the folder."""

        def do_GET(self) -> None:
            """Answer whoever knows the password."""
            opened.requests.append(self.path)
            found = None
            if self.headers.get("Authorization") != expected:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="tests"')
            else:
                found = opened.answer(self.path, self.headers.get("Accept", ""))
                self.send_response(200 if found else 404)
            kind, content = found or ("text/plain", b"")
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET  # noqa: N815 # the standard library's name

        def log_message(self, *arguments: object) -> None:
            """Keep quiet."""

    opened = Index(folder, http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
    return opened


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """An index with the package ``tinypkg``, which nothing is configured for, and empty caches."""
    served = serve(tmp_path / "served")
    thread = threading.Thread(target=served.server.serve_forever, args=(0.02,))
    thread.start()
    served.add("tinypkg", "1.0")
    # What uv knows of interpreters, which takes a second to find out, is the same for every cache.
    for known in Path(run_uv(["cache", "dir"]).strip()).glob("interpreter-*"):
        shutil.copytree(known, tmp_path / "cache" / known.name)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    try:
        yield served
    finally:
        served.stop()
        thread.join()


@pytest.fixture
def forget(tmp_path: Path) -> Callable[[], None]:
    """Let uv forget all that it has fetched, but not what it knows of interpreters."""

    def forget() -> None:
        for bucket in (tmp_path / "cache").iterdir():
            if bucket.is_dir() and not bucket.name.startswith("interpreter-"):
                shutil.rmtree(bucket)

    return forget


@pytest.fixture
def index(served: Index, monkeypatch: pytest.MonkeyPatch) -> Index:
    """The index, beside the one that uv is configured for."""
    monkeypatch.setenv("UV_INDEX", served.url)
    return served


@pytest.fixture
def locked_out(served: Index, monkeypatch: pytest.MonkeyPatch) -> Index:
    """The index as the only one, with a stand-in for each of the platform's own packages, and no credentials given."""
    for floor in PLATFORM_FLOORS:
        name, _, version = floor.partition(">=")
        served.add(name, f"{version}.7")
    monkeypatch.setenv("UV_DEFAULT_INDEX", served.bare_url)
    return served


@pytest.fixture
def island(locked_out: Index, monkeypatch: pytest.MonkeyPatch) -> Index:
    """The index as the only one, so that nothing else is reached."""
    monkeypatch.setenv("UV_DEFAULT_INDEX", locked_out.url)
    return locked_out


def project_files(name: str, version: str, tag: str, requires: Sequence[str] = ()) -> dict[str, str]:
    """Return the files of a project that needs no tool to be built."""
    head = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    text = f'{head}[project]\nname = "{name}"\nversion = "{version}"\ndependencies = {json.dumps(list(requires))}\n'
    return {
        "pyproject.toml": text,
        "backend.py": BACKEND.format(name=name, version=version, tag=tag, requires=tuple(requires)),
        f"{name}.py": f"version = {version!r}\n",
    }


@pytest.fixture
def make_project() -> Callable[..., Path]:
    """Make a project in a folder."""

    def make(
        folder: Path, name: str, version: str = "1.0", tag: str = "py3-none-any", requires: Sequence[str] = ()
    ) -> Path:
        folder.mkdir(parents=True)
        for path, content in project_files(name, version, tag, requires).items():
            (folder / path).write_text(content)
        return folder

    return make
