"""Runs whose store is a bucket on a real S3 server, the memory of one process, or a folder that nobody syncs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from mlp_reliability import fixtures
from mlp_reliability.s3_servers import KEY, SECRET

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Project
    from mlp_reliability.s3_servers import S3Server

seaweedfs = fixtures.seaweedfs  # pytest finds it here

SQUARES = """
    class Flow(FlowSpec):
        n = Parameter("n", default=4)

        @step
        def start(self):
            self.xs = list(range(self.n))
            self.large = os.urandom(9 << 20)
            self.next(self.square, foreach="xs")

        @step
        def square(self):
            print("squaring", self.input)
            if {broken} and self.input == 2:
                raise ValueError("two")
            self.y = self.input ** 2
            self.length = len(self.large)
            self.next(self.join)

        @step
        def join(self, inputs):
            self.total = sum(i.y for i in inputs)
            self.lengths = [i.length for i in inputs]
            self.next(self.end)

        @step
        def end(self):
            pass
"""


@pytest.fixture
def bucket(seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a new folder on the server, which every process finds by its environment."""
    for name, value in seaweedfs.environ.items():
        monkeypatch.setenv(name, value)
    return f"s3://bucket/{request.node.name.translate(dict.fromkeys(map(ord, '[]')))}"


@pytest.mark.parametrize("isolation", ["fork", "inline"])
def test_run_on_a_bucket(project: Project, bucket: str, isolation: Any) -> None:
    """A run on a bucket is a run: values, large ones too, what was printed; and its tasks are forked as ever."""
    ran = project.run(SQUARES.format(broken=False), flags={"store": bucket}, isolation=isolation)
    assert ran.status == "succeeded", ran.result
    assert (ran.value("total"), ran.value("lengths")) == (14, [9 << 20] * 4)
    assert len(ran.value("large", "start")) == 9 << 20
    assert ran.log("square/3") == "squaring 3\n"
    assert ran.notes == ()
    store = ran.session.open_store(create=False)
    assert store.url == bucket
    assert [summary.status for summary in store.runs("Flow")] == ["succeeded"]


def test_resuming_on_a_bucket(project: Project, bucket: str) -> None:
    """A run that failed is resumed from what it left on the bucket."""
    failed = project.run(SQUARES.format(broken=True), flags={"store": bucket})
    assert failed.status == "failed"
    mended = project.run(SQUARES.format(broken=False), flags={"store": bucket}, origin=failed.state)
    assert mended.status == "succeeded"
    assert mended.value("total") == 14
    assert ("reused", "start/0") in mended.events


def test_credentials_are_nowhere(project: Project, seaweedfs: S3Server) -> None:
    """Credentials that a variable gives reach the driver and its workers, and stand in nothing that they store."""
    file = project.write(SQUARES.format(broken=False))
    options = {"endpoint_url": seaweedfs.endpoint, "key": KEY, "secret": SECRET}
    environ = {"MLP_STORAGE_OPTIONS": json.dumps(options), "AWS_EC2_METADATA_DISABLED": "true"}
    done = project.command("-m", "mlp_core.cli", "run", file.name, "--store", "s3://bucket/credentials", **environ)
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    with seaweedfs.filesystem() as plain:
        paths = plain.find("bucket/credentials")
        assert any(path.endswith("/journal") for path in paths)
        stored = {path: plain.cat_file(path) for path in paths}
    assert [path for path, content in stored.items() if SECRET.encode() in content or KEY.encode() in content] == []
    journal = next(content for path, content in stored.items() if path.endswith("/journal"))
    assert seaweedfs.endpoint.encode() in journal, "what is no secret is recorded"


def test_run_in_memory(project: Project) -> None:
    """A store in memory serves a run of this process, and leaves nothing on the disk."""
    ran = project.run(SQUARES.format(broken=False), flags={"store": "memory://runs"}, isolation="inline")
    assert (ran.status, ran.value("total")) == ("succeeded", 14)
    assert not (project.root / ".mlp").exists()


def test_fast_is_told(new_project: Project) -> None:
    """A run whose store was told to sync nothing says so whenever it is shown."""
    for durability, told in (("fast", 1), ("durable", 0)):
        ran = new_project.run(SQUARES.format(broken=False), flags={"storage.durability": durability})
        shown = new_project.command("-m", "mlp_core.cli", "show", f"Flow/{ran.run_id}").stdout
        assert shown.count("kept    without syncs (storage.durability is fast): a power cut may take it") == told
