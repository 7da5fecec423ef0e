"""A step in a uv environment under another Python than the driver's is a step like any other."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlp_plugin_uv.tool import installed_pythons, run_uv

pytestmark = pytest.mark.timeout(300)

FLOW = """
import sys
from datetime import date

import attrs

from mlp_core import FlowSpec, Parameter, step
from mlp_plugin_uv import pypi


@attrs.frozen
class Point:
    x: int
    day: date


class Across(FlowSpec):
    scale = Parameter("scale", default=2)

    @step
    def start(self):
        self.points = [Point(x, date(2026, 1, 31)) for x in range(3)]
        self.big = bytearray(b"driver" * 10_000)
        self.next(self.inside, foreach="points")

    @pypi(packages={"six": "1.17.0"}, python="PYTHON")
    @step
    def inside(self):
        import six

        self.six = six.__version__
        self.pythons = sys.version_info[:2], sys.prefix
        self.moved = Point(self.input.x * self.scale, self.input.day)
        self.big[:6] = b"inside"
        print("six", self.six)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.moved = [branch.moved for branch in inputs]
        self.pythons = {branch.pythons for branch in inputs}
        self.bytes = {bytes(branch.big[:12]) for branch in inputs}
        self.own = sys.version_info[:2]
        assert all(isinstance(point, Point) for point in self.moved)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Across()
"""

READ = """
import json, sys
from mlp_core.client import Flow

run = Flow("Across").latest_run
data = run.data
print(json.dumps({
    "successful": run.successful,
    "moved": [[point.x, str(point.day), type(point).__module__] for point in data.moved],
    "pythons": sorted(data.pythons),
    "own": data.own,
    "bytes": sorted(text.decode() for text in data.bytes),
    "six": [task.data.six for task in run["inside"]],
    "logs": [task.stdout for task in run["inside"]],
}))
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder, with a cache of the platform's own, and uv's as it is."""
    monkeypatch.setenv("UV_CACHE_DIR", run_uv(["cache", "dir"]).strip())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def other_python(*wanted: str) -> str:
    """Return a minor version from 3.11 on that is not this one's, one that is wanted if there is a choice."""
    minors = {".".join(version.split(".")[:2]) for version, _ in installed_pythons()}
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    others = [m for m in sorted(minors - {own}, key=lambda m: int(m[2:])) if m.startswith("3.") and int(m[2:]) >= 11]
    found = next((minor for minor in (*wanted, *others) if minor in others), None)
    if found is None:
        pytest.skip("uv finds no second Python from 3.11 on: install one, for example by `uv python install 3.12`")
    return found


def run_python(*arguments: str) -> str:
    """Run Python in the working folder and return what it prints."""
    result = subprocess.run([sys.executable, *arguments], check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_artifacts_cross_in_both_directions(project: Path) -> None:
    """A foreach step under another Python reads what the driver's wrote, and the other way round; so does a client.

    Instances of the flow file's classes cross, and large buffers that are changed in place.
    """
    python = other_python("3.12")
    (project / "across.py").write_text(FLOW.replace("PYTHON", python))
    (project / "read.py").write_text(READ)
    run_python("across.py", "run", "--scale", "5")
    found = json.loads(run_python("read.py"))
    assert found["successful"]
    assert found["moved"] == [[5 * x, "2026-01-31", "across"] for x in range(3)]
    ((version, prefix),) = found["pythons"]
    assert version == [int(part) for part in python.split(".")]
    assert found["own"] == list(sys.version_info[:2])
    assert Path(prefix).parent == project.parent / "cache" / "mlp" / "environments"
    assert found["bytes"] == ["insidedriver"]
    assert found["six"] == 3 * ["1.17.0"]
    assert found["logs"] == 3 * ["six 1.17.0\n"]


def test_readme_example_runs(project: Path) -> None:
    """The example in the plugin's README runs as it stands."""
    if "3.12" not in {".".join(version.split(".")[:2]) for version, _ in installed_pythons()}:
        pytest.skip("the example asks for Python 3.12, and uv finds none: `uv python install 3.12`")
    readme = Path(__file__).parents[2] / "mlp_plugins/mlp-plugin-uv/README.md"
    (code,) = re.findall(r"^```python\n(.*?)^```", readme.read_text(), re.DOTALL | re.MULTILINE)
    (project / "six_flow.py").write_text(code)
    run_python("six_flow.py", "run")
    shown = "from mlp_core.client import Flow; run = Flow('Six').latest_run; print(run.data.version, run.data.total)"
    assert run_python("-c", shown) == "1.17.0 6\n"


def test_impossible_requirement_is_refused_before_the_first_task(project: Path) -> None:
    """A requirement that cannot be met ends the command with status 2, uv's reason, and no traceback or task."""
    text = FLOW.replace("PYTHON", other_python("3.12")).replace("1.17.0", "99")
    (project / "across.py").write_text(text)
    result = subprocess.run([sys.executable, "across.py", "run"], check=False, capture_output=True, text=True)
    assert result.returncode == 2
    assert "no version of six==99" in result.stderr
    assert "step 'inside'" in result.stderr
    assert "Traceback" not in result.stderr


def test_with_attaches_an_environment(project: Path) -> None:
    """``--with pypi:...`` gives every step that lacks one an environment."""
    (project / "plain.py").write_text(
        """
import sys
from mlp_core import FlowSpec, step


class Plain(FlowSpec):
    @step(start=True, end=True)
    def only(self):
        self.python = sys.version_info[:2]


if __name__ == "__main__":
    Plain()
"""
    )
    python = other_python("3.12")
    run_python("plain.py", "run", "--with", f"pypi:python={python}")
    shown = "from mlp_core.client import Flow; print(*Flow('Plain').latest_run.data.python, sep='.')"
    assert run_python("-c", shown) == f"{python}\n"
