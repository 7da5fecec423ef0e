"""After damage: what a check says, a repair, and a resumed run or a new one that makes the store whole again."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from mlp_core.cli import main

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Project, Ran

FLOW = """
class Flow(FlowSpec):
    @step
    def start(self):
        self.first = b"f" * 20_000
        self.next(self.work)

    @step
    def work(self):
        self.items = [b"i" * 9_000, b"j" * 9_000]
        self.made = b"m" * 20_000
        self.next(self.each, foreach="items")

    @step
    def each(self):
        self.out = self.input * 2
        self.next(self.join)

    @step
    def join(self, inputs):
        self.total = sum(len(one.out) for one in inputs)
        self.next(self.end)

    @step
    def end(self):
        pass
"""


class Command(Protocol):
    """Carries out a command of ``mlp``."""

    def __call__(self, *words: str) -> tuple[int, str]:
        """Return its exit status and what it printed."""


@pytest.fixture
def mlp(capfd: pytest.CaptureFixture[str]) -> Command:
    """The command line, in this process."""

    def carry_out(*words: str) -> tuple[int, str]:
        capfd.readouterr()
        status = main([words[0], "--no-plugins", *words[1:]])
        out, err = capfd.readouterr()
        return status, out + err

    return carry_out


def blob(project: Project, ran: Ran, path: str, name: str) -> Path:
    """Return the file of an artifact's blob."""
    digest = ran.outcome(path).assigned[name].digest
    return project.root / ".mlp/blobs" / digest[7:9] / digest


def reused(ran: Ran) -> set[str]:
    """Return the tasks that a run has taken over."""
    return {key.path for key, task in ran.state.tasks.items() if task.origin is not None}


@pytest.mark.parametrize("harm", ["flip", "delete"])
def test_a_resumed_run_makes_anew_what_is_damaged(new_project: Project, mlp: Command, harm: str) -> None:
    """The step whose artifact is damaged runs again with all that follows, and the earlier run is whole again too."""
    file = new_project.write(FLOW, "flow.py")
    ran = new_project.run(FLOW)
    path = blob(new_project, ran, "work/0", "made")
    content = path.read_bytes()
    if harm == "flip":
        path.write_bytes(b"?" + content[1:])
    else:
        path.unlink()
    run = f"Flow/{ran.run_id}"
    status, text = mlp("fsck")
    assert status == 1
    assert f"{run}/work/0/made" in text
    assert path.name in text
    assert f"mlp resume FLOW.py --origin-run-id {ran.run_id}" in text
    status, text = mlp("fsck", "--repair")
    assert status == 1
    assert ("moved to damaged/blobs/" in text) == (harm == "flip")
    assert not path.exists()
    status, text = mlp("resume", str(file), "--origin-run-id", ran.run_id)
    assert status == 0, text
    resumed = new_project.read()
    assert reused(resumed) == {"start/0"}
    assert path.read_bytes() == content
    assert mlp("fsck")[0] == 0
    assert ran.value("made", "work/0") == b"m" * 20_000
    quarantined = list((new_project.root / ".mlp/damaged").rglob("sha256-*"))
    assert [each.read_bytes()[:1] for each in quarantined] == ([b"?"] if harm == "flip" else [])


def test_a_resumed_run_needs_no_repair_first(new_project: Project) -> None:
    """A blob that was changed is noticed by the resumed run itself; so are damaged items of a foreach."""
    ran = new_project.run(FLOW)
    path = blob(new_project, ran, "work/0", "items")
    path.write_bytes(path.read_bytes()[:-1])
    resumed = new_project.run(FLOW, origin=ran.state)
    assert resumed.status == "succeeded"
    assert reused(resumed) == {"start/0"}
    again = new_project.run(FLOW, origin=ran.state)
    assert reused(again) == {"start/0", "work/0", "each/0", "each/1", "join/0", "end/0"}


def test_a_new_run_heals_too(new_project: Project, mlp: Command) -> None:
    """Whatever writes the same value again replaces a damaged blob."""
    ran = new_project.run(FLOW)
    path = blob(new_project, ran, "start/0", "first")
    content = path.read_bytes()
    path.write_bytes(content[1:])
    new_project.run(FLOW)
    assert path.read_bytes() == content
    assert mlp("fsck")[0] == 0


def test_what_a_check_finds_is_told_as_json(new_project: Project, mlp: Command) -> None:
    """Programs get the findings as data, and the exit status says the same."""
    ran = new_project.run(FLOW)
    path = blob(new_project, ran, "start/0", "first")
    path.write_bytes(b"")
    status, text = mlp("fsck", "--json")
    report: dict[str, Any] = json.loads(text)
    assert (status, report["clean"], report["runs"]) == (1, False, 1)
    (finding,) = report["findings"]
    assert finding["severity"] == "damage"
    assert f"Flow/{ran.run_id}/start/0/first" in finding["affects"]
    status, text = mlp("fsck", "--json", f"Flow/{ran.run_id}")
    assert status == 1
    status, text = mlp("fsck", "Flow/20200101-000000-000000")
    assert (status, "there is no run" in text) == (2, True)
    status, text = mlp("fsck", "--store", str(new_project.root / "nothing"))
    assert (status, "there is no store" in text) == (2, True)
    assert not (new_project.root / "nothing").exists()


def test_the_index_can_be_made_anew(new_project: Project, mlp: Command) -> None:
    """A user's index that tells nonsense is replaced."""
    new_project.run(FLOW)
    assert "succeeded" in mlp("list")[1]
    (index,) = (new_project.root.parent / "cache").rglob("*.sqlite")
    with contextlib.closing(sqlite3.connect(index)) as database, database:
        database.execute("UPDATE runs SET status = 'failed'")
    assert "failed" in mlp("list")[1]
    assert mlp("fsck", "--rebuild-index")[0] == 0
    assert "succeeded" in mlp("list")[1]
