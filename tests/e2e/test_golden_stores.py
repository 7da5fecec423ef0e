"""Stores of every format that was ever released are read by this version, and written on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlp_core.store.store import FORMAT_VERSION

GOLDEN = Path(__file__).parent.parent / "golden"
FORMATS = sorted(GOLDEN.glob("format-*"))

READ = """
import json, sys
from mlp_core import Flow, namespace
namespace(None)
runs = {}
for run in Flow("Golden"):
    tasks = {}
    for step in run:
        for task in step:
            values = {artifact.id: repr(artifact.data) for artifact in task}
            tasks[task.pathspec] = [task.finished, task.successful, values, task.stdout]
    runs[run.id] = [run.successful, sorted(run.user_tags), tasks]
json.dump(runs, sys.stdout)
"""


@pytest.fixture(params=FORMATS, ids=lambda path: path.name)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A project with a copy of a golden store, as private as stores are."""
    shutil.copytree(request.param / "store", tmp_path / ".mlp")
    for path in (tmp_path / ".mlp").rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    (tmp_path / ".mlp").chmod(0o700)
    (tmp_path / "mlp.toml").write_text('username = "golden"\n')
    shutil.copyfile(request.param / "expected.json", tmp_path / "expected.json")
    return tmp_path


def command(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a project."""
    environ = {**os.environ, "XDG_CACHE_HOME": str(project / "cache")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=project, env=environ, capture_output=True, text=True, check=False
    )


def mlp(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a project."""
    return command(project, "-c", "import sys; from mlp_core.cli import main; sys.exit(main())", *arguments)


def test_there_is_a_golden_store_of_each_format() -> None:
    """A new format comes with a store of it: python tests/golden/make.py FOLDER."""
    assert [path.name for path in FORMATS] == [f"format-{number}" for number in range(1, FORMAT_VERSION + 1)]


def test_everything_in_it_is_read(golden: Path) -> None:
    """Each value, tag, status and line of output is what it was when the store was made; reading changes nothing."""
    before = {path: path.read_bytes() for path in (golden / ".mlp").rglob("*") if path.is_file()}
    told = command(golden, "-c", READ)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout) == json.loads((golden / "expected.json").read_text())
    deployed = mlp(golden, "deployments", "--json")
    assert deployed.returncode == 0, deployed.stderr
    assert "Golden" in deployed.stdout
    assert {path: path.read_bytes() for path in (golden / ".mlp").rglob("*") if path.is_file()} == before


def test_it_is_whole(golden: Path) -> None:
    """Nothing that an earlier version wrote counts as damage."""
    checked = mlp(golden, "fsck")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_it_is_written_on(golden: Path) -> None:
    """A run that an earlier version began and lost is resumed, and marks the store as of this version."""
    lost = next(
        run_id
        for run_id, (_, _, tasks) in json.loads((golden / "expected.json").read_text()).items()
        if not all(finished for finished, *_ in tasks.values())
    )
    flow = (GOLDEN / "make.py").read_text().split("FLOW = '''")[1].split("'''")[0]
    (golden / "golden.py").write_text(flow.replace("time.sleep(600)", "pass"))
    resumed = mlp(golden, "resume", "golden.py", "--origin-run-id", lost)
    assert resumed.returncode == 0, resumed.stderr
    assert "reused" in resumed.stdout + resumed.stderr
    assert json.loads((golden / ".mlp" / "format.json").read_text()) == {"format": FORMAT_VERSION}
    assert mlp(golden, "fsck").returncode == 0
