"""With its packages in the store a flow's uv environment is made where there is no network and no cache."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from mlp_plugin_uv.tool import run_uv

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(300)

FLOW = """
from mlp_core import FlowSpec, step
from mlp_plugin_uv import pypi


class Offline(FlowSpec):
    @pypi(packages={"six": "1.17.0"})
    @step
    def start(self):
        import sys

        import six

        self.found = six.__version__, sys.prefix
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Offline()
"""

NO_NETWORK = ["unshare", "--user", "--map-root-user", "--net"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder, with a cache of the platform's own, and uv's as it is."""
    if shutil.which("unshare") is None or subprocess.run([*NO_NETWORK, "true"], check=False).returncode:
        pytest.skip("needs unshare, and permission to make a namespace without a network")
    monkeypatch.setenv("UV_CACHE_DIR", run_uv(["cache", "dir"]).strip())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "flow.py").write_text(FLOW)
    monkeypatch.chdir(folder)
    return folder


def run(*command: str) -> str:
    """Run a command that succeeds, and return what it prints."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def found() -> list[str]:
    """Return what the latest run has found."""
    code = "import json; from mlp_core.client import Flow; print(json.dumps(Flow('Offline').latest_run.data.found))"
    answer: list[str] = json.loads(run(sys.executable, "-c", code))
    return answer


def test_bundled_environment_is_made_offline(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second host, which has the store, no network and empty caches, runs the flow in the very same environment."""
    cli = [sys.executable, "-m", "mlp_core.cli"]
    run(sys.executable, "flow.py", "run")
    version, first = found()
    digest = first.rpartition("/")[2]
    run(*cli, "env", "bundle", digest)
    monkeypatch.setenv("XDG_CACHE_HOME", str(project.parent / "other"))
    monkeypatch.setenv("UV_CACHE_DIR", str(project.parent / "empty"))
    run(*NO_NETWORK, sys.executable, "flow.py", "run")
    assert found() == [version, str(project.parent / "other" / "mlp" / "environments" / digest)]
