"""Runs that move: to a bucket and back, into a file and out of it, by the commands that people use."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from mlp_core.builtin.file_store import FileStore
from mlp_core.client import client_for
from mlp_core.session import Session
from mlp_core.store import RunBegan, RunEnded, Store
from mlp_hookspecs.types import FlowGraph, RunContext, StepNode
from mlp_reliability import fixtures

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from conftest import Processes, Project, Ran
    from mlp_reliability.s3_servers import S3Server

moto, seaweedfs = fixtures.moto, fixtures.seaweedfs  # pytest finds them here

CLI = ("-m", "mlp_core.cli")

FLOW = """
class Flow(FlowSpec):
    @step
    def start(self):
        self.table = "0123456789abcdef" * 100_000
        self.items = list(range(3))
        print("some output")
        self.next(self.work, foreach="items")

    @step
    def work(self):
        self.made = {"item": self.input, "text": "x" * 20_000}
        print("made", self.input, file=sys.stderr)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.total = sum(each.made["item"] for each in inputs)
        self.merge_artifacts(inputs, exclude=["made"])
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.fixture(scope="module")
def ran(project: Project) -> Ran:
    """A run with large and small artifacts, logs and tags."""
    ran = project.run(FLOW, tags=("first",))
    client_for(ran.session).run(f"Flow/{ran.run_id}").add_tag("good")
    return ran


def mlp(project: Project, *words: str) -> subprocess.CompletedProcess[str]:
    """Carry out a command that succeeds."""
    done = project.command(*CLI, *words)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done


def told(project: Project, run_id: str, store: str) -> dict[str, Any]:
    """Return what the client tells of a run in some store: tags, values, logs."""
    session = Session.open(start=project.root, flags={"plugins.safe": True, "store": store})
    client = client_for(session)
    client.namespace = None
    run = client.run(f"Flow/{run_id}")
    tasks = {task.pathspec: task for step in run for task in step}
    return {
        "successful": run.successful,
        "tags": run.tags,
        "times": {place: (task.created_at, task.finished_at) for place, task in tasks.items()},
        "values": {place: {each.id: each.data for each in task} for place, task in tasks.items()},
        "logs": {place: (task.stdout, task.stderr) for place, task in tasks.items()},
    }


@pytest.fixture(params=["moto", "seaweedfs"])
def server(request: pytest.FixtureRequest) -> S3Server:
    """An S3 server."""
    found: S3Server = request.getfixturevalue(request.param)
    return found


def test_to_a_bucket_and_back(project: Project, ran: Ran, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is the same in a bucket and in the folder that it is copied back to: status, tags, logs, values."""
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    bucket, back = f"s3://bucket/moved-{server.kind}", f"back-{server.kind}"
    assert f"Flow/{ran.run_id} copied" in mlp(project, "sync", ".mlp", bucket).stdout
    assert "there already; 0 blobs, 0 B" in mlp(project, "sync", ".mlp", bucket).stdout
    here = told(project, ran.run_id, ".mlp")
    assert here["successful"]
    assert "good" in here["tags"]
    assert len(here["values"][f"Flow/{ran.run_id}/end/0"]["table"]) == 1_600_000
    assert here["logs"][f"Flow/{ran.run_id}/start/0"] == ("some output\n", "")
    assert told(project, ran.run_id, bucket) == here
    mlp(project, "tag", "add", f"Flow/{ran.run_id}", "in-the-bucket", "--store", bucket)
    mlp(project, "sync", bucket, back)
    assert told(project, ran.run_id, back) == {**here, "tags": here["tags"] | {"in-the-bucket"}}
    mlp(project, "export", f"Flow/{ran.run_id}", f"{back}.1", "--store", bucket)
    mlp(project, "export", f"Flow/{ran.run_id}", f"{back}.2", "--store", back)
    assert (project.root / f"{back}.1").read_bytes() == (project.root / f"{back}.2").read_bytes()
    assert "imported into s3://" in mlp(project, "import", f"{back}.1", "--store", f"{bucket}-2").stdout
    assert told(project, ran.run_id, f"{bucket}-2") == told(project, ran.run_id, back)


def test_into_a_file_and_out_of_it(project: Project, ran: Ran) -> None:
    """A run is the same in the store that it is unpacked into; a flow's name means its newest run."""
    assert f"Flow/{ran.run_id} exported to a.mlprun" in mlp(project, "export", "Flow", "a.mlprun").stdout
    imported = mlp(project, "import", "a.mlprun", "--store", "unpacked").stdout
    assert f"Flow/{ran.run_id} imported into unpacked" in imported
    again = json.loads(mlp(project, "import", "a.mlprun", "--store", "unpacked", "--json").stdout)
    assert (again["run"], again["was"], again["blobs"]) == (f"Flow/{ran.run_id}", "same", 0)
    assert told(project, ran.run_id, "unpacked") == told(project, ran.run_id, ".mlp")


def test_what_would_be_copied(project: Project, ran: Ran) -> None:
    """A dry run tells runs, blobs and bytes, as JSON too, and makes nothing."""
    assert f"Flow/{ran.run_id} would be copied" in mlp(project, "sync", ".mlp", "nowhere", "--dry-run").stdout
    found = json.loads(mlp(project, "sync", ".mlp", "nowhere", "--dry-run", "--json", "--flow", "Flow").stdout)
    assert [(each["run"], each["outcome"]) for each in found] == [(f"Flow/{ran.run_id}", "copied")]
    assert found[0]["blobs"] >= 4
    assert not (project.root / "nowhere").exists()
    assert (
        json.loads(mlp(project, "sync", ".mlp", "nowhere", "--dry-run", "--json", "--since", "2999-01-01").stdout) == []
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sync", ".mlp", "./.mlp"), "both stores are"),
        (("sync", "absent", "x"), "there is no store at"),
        (("sync", ".mlp", "x", "Flow/20200101-000000-000000"), "there is no run"),
        (("sync", ".mlp", "x", "Flow"), "is no run"),
        (("sync", ".mlp", "x", "../../x"), "is refused"),
        (("sync", ".mlp", "x", "--flow", "Other"), "there is no run of flow Other"),
        (("sync", ".mlp", "x", "--since", "soon"), "is no time"),
        (("sync", ".mlp"), "required"),
        (("export", "Flow/20200101-000000-000000", "x"), "there is no run"),
        (("export", "Flow", "absent/x"), "cannot be written"),
        (("export", "Flow", "mlp.toml"), "is there already"),
        (("import", "absent"), "cannot be read"),
        (("import", "mlp.toml"), "is no intact archive"),
        (("import", "."), "it is no file"),
    ],
)
def test_refusals(project: Project, ran: Ran, words: tuple[str, ...], said: str) -> None:  # noqa: ARG001 # its store
    """Each mistake gets one message and a status, and nothing is made."""
    done = project.command(*CLI, *words)
    assert done.returncode == (1 if said == "cannot be written" else 2)
    assert said in done.stderr
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr
    assert not (project.root / "x").exists()


def test_an_altered_archive_is_refused(project: Project, ran: Ran) -> None:  # noqa: ARG001 # its store
    """A file that was cut or altered is refused with one message and status 2, and nothing of it is to be seen."""
    mlp(project, "export", "Flow", "intact.mlprun")
    content = (project.root / "intact.mlprun").read_bytes()
    altered = project.root / "altered.mlprun"
    places = (100, 600, 3_000, len(content) // 2, len(content) - 600)
    for changed in (content[: len(content) // 2], *(content[:at] + b"\xff" + content[at + 1 :] for at in places)):
        altered.write_bytes(changed)
        done = project.command(*CLI, "import", "altered.mlprun", "--store", "clean")
        assert (done.returncode, done.stderr.count("error:")) == (2, 1)
        assert "Traceback" not in done.stderr
        assert "altered.mlprun is refused" in done.stderr
    assert not list((project.root / "clean").glob("flows/*"))
    assert not list((project.root / "clean").glob("blobs/*"))


def test_two_runs_of_one_name(project: Project) -> None:
    """A run whose name another one has is not copied: both stores are named, and the status says so."""
    add_runs(project.root / "one", 1, "first")
    add_runs(project.root / "two", 1, "second")
    done = project.command(*CLI, "sync", "one", "two")
    assert done.returncode == 2
    assert "project/one" in done.stderr
    assert "project/two" in done.stderr
    assert "1 not copied" in done.stdout


def test_an_interrupted_copying_goes_on_later(project: Project, processes: Processes) -> None:
    """Ctrl-C ends a copying at once, without a traceback; the runs that are there are complete, the others follow."""
    add_runs(project.root / "many", 400, "many")
    with project.start(*CLI, "sync", "many", "copy", mark=processes.mark) as child:
        assert child.stdout is not None
        assert "copied" in child.stdout.readline()
        child.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, errors = child.communicate(timeout=30)
    assert child.returncode == 130, errors
    assert "Traceback" not in errors
    assert time.monotonic() - began < 20
    some = len(json.loads(mlp(project, "list", "--limit", "0", "--store", "copy", "--json").stdout))
    assert 0 < some < 400
    counted = mlp(project, "sync", "many", "copy").stdout.splitlines()[-1]
    assert counted.startswith("400 runs: ")
    listed = json.loads(mlp(project, "list", "--limit", "0", "--store", "copy", "--json").stdout)
    assert [each["status"] for each in listed] == ["succeeded"] * 400


def add_runs(place: Path, count: int, host: str) -> None:
    """Make a store with small runs."""
    store = Store.open(FileStore(place, durable=False), create=True)
    graph = FlowGraph("Flow", "start", "start", (StepNode("start", "end"),))
    for number in range(count):
        writer = store.create_run(
            lambda run_id: RunBegan(RunContext("Flow", run_id), 1.0, host, 1, graph), 1e9 + number
        )
        writer.write([RunEnded("succeeded", "", 2.0, 0)])
        writer.close()
    store.close()
