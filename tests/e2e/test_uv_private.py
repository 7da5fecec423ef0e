"""A flow whose packages come from a private index and from its own project: nothing of the password is kept."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mlp_plugin_uv.tool import run_uv

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(300)

PASSWORD = "battery-staple"  # noqa: S105 # of a server that lives as long as a test

FLOW = """
from mlp_core import FlowSpec, step
from mlp_plugin_uv import pypi, pypi_base


@pypi_base(packages={"six": "1.17.0"}, extra_indexes=["acme=INDEX"])
class Private(FlowSpec):
    @step
    def start(self):
        import six

        self.base = six.__version__
        self.next(self.middle)

    @pypi(file="requirements.txt")
    @step
    def middle(self):
        import mine
        import priv
        import six

        self.found = six.__version__, priv.version, mine.version
        self.next(self.end)

    @pypi(disabled=True)
    @step
    def end(self):
        import importlib.util

        self.outside = importlib.util.find_spec("priv") is None


if __name__ == "__main__":
    Private()
"""

BACKEND = """
import os, zipfile

def build_wheel(folder, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(os.path.join(folder, "mine-3.0-py3-none-any.whl"), "w") as wheel:
        wheel.writestr("mine.py", open("mine.py").read())
        wheel.writestr("mine-3.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: mine\\nVersion: 3.0\\n")
        wheel.writestr("mine-3.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("mine-3.0.dist-info/RECORD", "")
    return "mine-3.0-py3-none-any.whl"
"""


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an index with the package ``priv``, whose password the environment has."""
    wheel = tmp_path / "priv-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("priv.py", "version = '1.0'\n")
        archive.writestr("priv-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: priv\nVersion: 1.0\n")
        archive.writestr("priv-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("priv-1.0.dist-info/RECORD", "")
    content = wheel.read_bytes()
    link = f'<a href="{wheel.name}#sha256={hashlib.sha256(content).hexdigest()}">{wheel.name}</a>'
    served = {"/index/priv/": link.encode(), f"/index/priv/{wheel.name}": content}
    expected = "Basic " + base64.b64encode(f"ada:{PASSWORD}".encode()).decode()

    class Handler(http.server.BaseHTTPRequestHandler):
        """Serve the package."""

        def do_GET(self) -> None:
            """Answer whoever knows the password."""
            allowed = self.headers.get("Authorization") == expected
            body = served.get(self.path, b"") if allowed else b""
            self.send_response(401 if not allowed else 200 if body else 404)
            self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/octet-stream")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 # the standard library's name

        def log_message(self, *arguments: object) -> None:
            """Keep quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv("UV_INDEX_ACME_USERNAME", "ada")
    monkeypatch.setenv("UV_INDEX_ACME_PASSWORD", PASSWORD)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    try:
        yield f"http://127.0.0.1:{server.server_port}/index"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: str) -> Path:
    """A project with a flow, a requirements file and a local package; a cache of the platform's own, and uv's."""
    monkeypatch.setenv("UV_CACHE_DIR", run_uv(["cache", "dir"]).strip())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "project"
    (folder / "mine").mkdir(parents=True)
    (folder / "flow.py").write_text(FLOW.replace("INDEX", index))
    (folder / "requirements.txt").write_text("priv\n-e ./mine\n")
    (folder / "mine" / "mine.py").write_text("version = '3.0'\n")
    (folder / "mine" / "backend.py").write_text(BACKEND)
    (folder / "mine" / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "mine"\nversion = "3.0"\n'
    )
    monkeypatch.chdir(folder)
    return folder


def command_lines() -> set[str]:
    """Return the command lines of all processes."""
    seen = set()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            seen.add(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return seen


def test_private_and_local_packages(project: Path) -> None:
    """Steps have what flow, file, index and project give them; the password is in no file, output or command line."""
    run = subprocess.Popen(
        [sys.executable, "flow.py", "run"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    seen: set[str] = set()
    while run.poll() is None:
        seen |= command_lines()
    output = run.communicate()[0]
    assert run.returncode == 0, output
    code = "from mlp_core.client import Flow; d = Flow('Private').latest_run.data; print(d.base, d.found, d.outside)"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert shown == "1.17.0 ('1.17.0', '1.0', '3.0') True\n"
    assert any("uv" in command and "compile" in command for command in seen), "the watch has seen uv"
    assert [command for command in seen if PASSWORD in command] == []
    assert PASSWORD not in output
    kept = [path for path in project.parent.rglob("*") if path.is_file()]
    assert any(".mlp" in path.parts for path in kept)
    assert [path for path in kept if PASSWORD.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "priv @ https://ada:battery-staple@host/priv-1.0-py3-none-any.whl\n",
            "has credentials in the URL https://***@",
        ),
        ("priv @ https://host/priv-1.0-py3-none-any.whl\n", "may change: add its hash"),
        ("priv==2.0\n", "no version of priv==2.0"),
    ],
)
def test_what_cannot_be_locked_ends_the_command(project: Path, text: str, message: str) -> None:
    """A requirements file that is refused ends the command with status 2, before anything runs, in one line."""
    (project / "requirements.txt").write_text(text)
    result = subprocess.run([sys.executable, "flow.py", "run"], check=False, capture_output=True, text=True)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert PASSWORD not in result.stderr + result.stdout
