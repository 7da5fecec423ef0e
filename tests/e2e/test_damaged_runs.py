"""What is read of runs whose files were changed, exchanged, cut off or removed: what is right, or an error."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from mlp_core.client import client_for
from mlp_core.deploy import Deployments
from mlp_core.errors import NotFound, StoreDamaged
from mlp_core.session import Session

if TYPE_CHECKING:
    from conftest import Project
    from mlp_core.client import Client

CLI = ("-m", "mlp_core.cli")

FLOW = """
class Flow(FlowSpec):
    @step
    def start(self):
        print("printed")
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@attrs.frozen
class Copy:
    """A copy of a store with two runs of one flow, each with a tag of its own, and a deployment.

    Attributes
    ----------
    project : Project
        The project.
    session : Session
        Reads the copy.
    store, first, second : Path
        The copy's folder, and those of its runs.
    """

    project: Any
    session: Session
    store: Path
    first: Path
    second: Path

    @property
    def client(self) -> Client:
        """A client that has read nothing yet."""
        client = client_for(self.session)
        client.namespace = None
        return client

    def listed(self) -> dict[str, str]:
        """Return the runs' statuses in a list."""
        return {run.run_id: run.status for run in self.client.runs("Flow")}

    def stdout(self) -> str:
        """Return what the first run's first task printed."""
        text: str = self.client.run(f"Flow/{self.first.name}")["start"]["0"].stdout
        return text


@pytest.fixture(scope="module")
def intact(project: Project) -> Path:
    """The store that is copied."""
    for _ in range(2):
        run_id = project.run(FLOW).run_id
        assert not project.command(*CLI, "tag", "add", f"Flow/{run_id}", f"of-{run_id}").returncode
    assert not project.command(*CLI, "deploy", str(project.write(FLOW))).returncode
    return project.root / ".mlp"


@pytest.fixture
def copy(project: Project, intact: Path, tmp_path: Path) -> Copy:
    """A copy to be damaged."""
    store = tmp_path / "store"
    shutil.copytree(intact, store)
    first, second = sorted((store / "flows" / "Flow").iterdir())
    return Copy(project, project.session(store=str(store)), store, first, second)


def exchange(one: Path, other: Path) -> None:
    """Let two files change places."""
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def change_log(copy: Copy) -> None:
    """Change a byte of a log."""
    log = copy.first / "logs"
    log.write_bytes(log.read_bytes().replace(b"printed", b"Printed"))


def cut_log(copy: Copy) -> None:
    """Cut a log off."""
    (copy.first / "logs").write_bytes((copy.first / "logs").read_bytes()[:-3])


def remove_log(copy: Copy) -> None:
    """Remove a log."""
    (copy.first / "logs").unlink()


def exchange_logs(copy: Copy) -> None:
    """Give a run the log of another."""
    exchange(copy.first / "logs", copy.second / "logs")


@pytest.mark.parametrize("harm", [change_log, cut_log, remove_log, exchange_logs])
def test_a_log_that_is_not_what_was_written_is_told(copy: Copy, harm: object) -> None:
    """The client raises where it would return less or other than was printed, and the command warns."""
    assert copy.stdout() == "printed\n"
    assert callable(harm)
    harm(copy)
    with pytest.raises(StoreDamaged, match=r"^the log of Flow/\S+ in \S+ is damaged"):
        copy.stdout()
    done = copy.project.command(*CLI, "logs", f"Flow/{copy.first.name}", "--store", str(copy.store))
    assert done.returncode == 0
    assert "damaged" in done.stderr


def test_a_journal_that_is_gone_is_no_run_that_never_was(copy: Copy) -> None:
    """A run that has ended and has no journal is listed as damaged, and asking for it tells what is missing."""
    (copy.first / "journal").unlink()
    assert copy.listed() == {copy.first.name: "damaged", copy.second.name: "succeeded"}
    with pytest.raises(StoreDamaged, match="journal is missing"):
        copy.client.run(f"Flow/{copy.first.name}")


def test_a_run_that_is_being_deleted_is_gone_with_its_journal(copy: Copy) -> None:
    """Where a deletion was not carried to its end, there is no run any more, and no damage."""
    (copy.first / "removed").touch()
    (copy.first / "journal").unlink()
    assert list(copy.listed()) == [copy.second.name]
    with pytest.raises(NotFound):
        copy.client.run(f"Flow/{copy.first.name}")


def test_a_list_tells_of_a_journal_without_its_end(copy: Copy) -> None:
    """A journal that was cut off between two records does not pass for that of a run whose driver died."""
    lines = (copy.first / "journal").read_bytes().splitlines(keepends=True)
    (copy.first / "journal").write_bytes(b"".join(lines[:-1]))
    assert copy.listed()[copy.first.name] == "damaged"


def test_a_list_tells_of_another_runs_journal(copy: Copy) -> None:
    """Journals that have changed places are damage in a list too, whatever its cache knew before."""
    (copy.second / "journal").write_bytes((copy.first / "journal").read_bytes())
    (copy.second / "seal").unlink()
    assert copy.listed() == {copy.first.name: "succeeded", copy.second.name: "damaged"}


def test_another_runs_summary_counts_for_nothing(copy: Copy) -> None:
    """Where the summaries of two runs have changed places, the journals are read."""
    exchange(copy.first / "seal", copy.second / "seal")
    assert copy.listed() == {copy.first.name: "succeeded", copy.second.name: "succeeded"}
    assert copy.client.run(f"Flow/{copy.first.name}").user_tags == {f"of-{copy.first.name}"}


def test_another_runs_tags_are_damage(copy: Copy) -> None:
    """A tag edit that has come to another run is refused."""
    (edit,) = (copy.first / "segments").iterdir()
    (other,) = (copy.second / "segments").iterdir()
    exchange(edit, other)
    assert set(copy.listed().values()) == {"damaged"}
    with pytest.raises(StoreDamaged, match="segment"):
        copy.client.run(f"Flow/{copy.first.name}")


def test_an_active_version_that_is_gone_is_told(copy: Copy) -> None:
    """A deployment whose active version is missing is not one that never was."""
    (copy.store / "deployments" / "local" / "Flow" / "v000001.json").unlink()
    deployments = Deployments(copy.session)
    with pytest.raises(StoreDamaged, match=r"v000001\.json is missing"):
        deployments.versions("Flow", "local")
    with pytest.raises(StoreDamaged, match=r"v000001\.json is missing"):
        deployments.find("Flow", "local")


READING = """
class Flow(FlowSpec):
    @step
    def start(self):
        self.large = bytes(20_000)
        self.next(self.end)

    @step
    def end(self):
        from pathlib import Path
        for blob in Path(STORE).glob("blobs/*/*"):
            blob.write_bytes(b"damaged")
        print(len(self.large))
"""


def test_a_step_that_reads_what_is_damaged_shows_its_own_line_alone(project: Project, tmp_path: Path) -> None:
    """The message tells what is damaged; of the traceback only what leads to the step's line is left."""
    store = str(tmp_path / "own")
    ran = project.run(READING.replace("STORE", repr(store)), flags={"store": store})
    failure = ran.state.tasks[ran.key("end")].outcome.failure
    assert "is damaged: its content has the digest" in failure.message
    lines = failure.traceback.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert [line for line in lines if line.startswith("  File ")] == [line for line in lines if " in end" in line]
    assert failure.traceback.count("Traceback") == 1
    assert lines[2].strip() == "print(len(self.large))"
