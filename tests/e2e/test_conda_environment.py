"""A step in a conda environment, from a channel with a real CPython and numpy, is a step like any other."""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from mlp_hookspecs.provisioning import remove

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(300)

PLUGIN = Path(__file__).parents[2] / "mlp_plugins" / "mlp-plugin-conda"

FLOW = """
import sys

from mlp_core import FlowSpec, step
from mlp_plugin_conda import conda, conda_base


@conda_base(channels=["CHANNEL"], python="PYTHON")
class Tides(FlowSpec):
    @conda(disabled=True)
    @step
    def start(self):
        self.heights = [2.5, 3.5, 3.0]
        self.own = sys.version_info[:2]
        self.next(self.inside, foreach="heights")

    @conda(packages={"numpy": "", "tiny": "1.0"}, pip={"six": "1.17.0"})
    @step
    def inside(self):
        import subprocess

        import numpy
        import six
        import tiny

        self.found = [numpy.__version__, six.__version__, tiny.version]
        self.command = subprocess.check_output(["tiny-version"], text=True).strip()
        self.python = sys.version_info[:2], sys.prefix
        self.height = float(numpy.float64(self.input) * 2)
        print("numpy", numpy.__version__)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.heights = [branch.height for branch in inputs]
        self.found = inputs[0].found + [inputs[0].command]
        self.pythons = sorted({branch.python for branch in inputs}), (sys.version_info[:2], sys.prefix)
        self.own = inputs[0].own
        self.next(self.end)

    @step
    def end(self):
        try:
            import numpy
        except ImportError:
            self.bare = sys.prefix


if __name__ == "__main__":
    Tides()
"""

READ = """
import json
from mlp_core.client import Flow
run = Flow("Tides").latest_run
names = ("heights", "found", "pythons", "own", "bare")
print(json.dumps({name: getattr(run.data, name) for name in names}))
"""


@attrs.define
class Channel:
    """A channel on loopback that can be taken away."""

    folder: Path
    server: http.server.ThreadingHTTPServer

    @property
    def url(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def python(self) -> str:
        """The version of Python in it."""
        version: str = json.loads((self.folder / "about.json").read_text())["python"]
        return version

    def stop(self) -> None:
        """Go away."""
        self.server.shutdown()
        self.server.server_close()

    def write(self, text: str, path: str = "tides.py") -> None:
        """Write a flow that takes its packages from the channel."""
        minor = ".".join(self.python.split(".")[:2])
        Path(path).write_text(text.replace("CHANNEL", self.url).replace("PYTHON", minor))


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and says nothing."""

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""


@pytest.fixture
def channel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Channel]:
    """The channel that the plugin's tests have too, built once a session."""
    folder = tmp_path_factory.getbasetemp() / "conda-channel"
    if not (folder / "about.json").exists():
        subprocess.run([sys.executable, str(PLUGIN / "tests" / "channel.py"), str(folder)], check=True)
    handler = functools.partial(QuietHandler, directory=str(folder))
    served = Channel(folder, http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
    thread = threading.Thread(target=served.server.serve_forever)
    thread.start()
    try:
        yield served
    finally:
        served.stop()
        thread.join()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty project, the working folder, whose environments and packages are cached beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CONDA_EXE", "mlp-conda-solver")
    monkeypatch.delenv("RATTLER_CACHE_DIR", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    remove(tmp_path / "cache")


def run_python(*arguments: str, **variables: str) -> str:
    """Run Python in the working folder and return what it prints."""
    environ = {**os.environ, **variables}
    result = subprocess.run([sys.executable, *arguments], check=False, capture_output=True, text=True, env=environ)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture
def nowhere(tmp_path: Path) -> dict[str, str]:
    """Variables that leave no network, and uv's cache empty."""
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    return {**proxies, "NO_PROXY": "", "UV_CACHE_DIR": str(tmp_path / "uv")}


def check_run(channel: Channel, project: Path) -> None:
    """Check what the latest run's steps have found where they ran."""
    found = json.loads(run_python("-c", READ))
    assert found["heights"] == [5.0, 7.0, 6.0]
    assert found["found"] == ["2.4.6", "1.17.0", "1.0", "1.0"]
    ((version, prefix),), (other_version, other_prefix) = found["pythons"]
    minor = [int(part) for part in channel.python.split(".")[:2]]
    assert version == other_version == minor
    assert found["own"] == list(sys.version_info[:2])
    assert prefix != other_prefix == found["bare"]
    for path in (prefix, other_prefix):
        assert Path(path).parent == project.parent / "cache" / "mlp" / "environments"


def test_steps_run_under_condas_interpreter(channel: Channel, project: Path, nowhere: dict[str, str]) -> None:
    """Each step has its own interpreter and packages, and artifacts cross between them; a second run asks nobody."""
    channel.write(FLOW)
    run_python("tides.py", "run")
    check_run(channel, project)
    channel.stop()
    run_python("tides.py", "run", **nowhere)
    check_run(channel, project)


@pytest.mark.slow
def test_bundle_stands_in_for_the_channel(channel: Channel, project: Path, nowhere: dict[str, str]) -> None:
    """Once bundled, the environments are made again from the store, with neither caches nor channel nor index."""
    channel.write(FLOW)
    run_python("tides.py", "run")
    run_python("-m", "mlp_core.cli", "env", "bundle", "tides.py")
    channel.stop()
    remove(project.parent / "cache")
    run_python("tides.py", "run", **nowhere)
    check_run(channel, project)


@pytest.mark.slow
def test_impossible_requirement_is_refused_before_the_first_task(channel: Channel, project: Path) -> None:
    """A requirement that cannot be met ends the command with status 2, the solver's reason, and no traceback."""
    channel.write(FLOW.replace('"tiny": "1.0"', '"tiny": "99"'))
    result = subprocess.run([sys.executable, "tides.py", "run"], check=False, capture_output=True, text=True)
    assert result.returncode == 2
    assert "No candidates were found for tiny ==99" in result.stderr
    assert "step 'inside'" in result.stderr
    assert "Traceback" not in result.stderr
    assert project.exists()


@pytest.mark.slow
def test_readme_example_runs(channel: Channel, project: Path) -> None:
    """The example in the plugin's README runs as it stands, with our channel for the one that it names."""
    (code,) = re.findall(r"^```python\n(.*?)^```", (PLUGIN / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    channel.write(code.replace('"conda-forge"', '"CHANNEL"').replace('"3.12"', '"PYTHON"'))
    run_python("tides.py", "run")
    shown = "from mlp_core.client import Flow; print(Flow('Tides').latest_run.data.highest)"
    assert run_python("-c", shown) == "3.4\n"
    assert project.exists()
