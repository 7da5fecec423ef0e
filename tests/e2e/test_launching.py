"""A flow's command is run from Python as a process of its own, and its run is found."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from mlp_core.errors import NotFound, UsageError
from mlp_core.launching import Runner

if TYPE_CHECKING:
    from conftest import Project

FLOW = """
class Flow(FlowSpec):
    size = Parameter("size", type=int, required=True)

    @step(start=True, end=True)
    def only(self):
        self.twice = 2 * self.size
        print("working")
"""


@pytest.fixture
def runner(new_project: Project, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """A runner of a small flow."""
    monkeypatch.setenv("MLP_NO_PLUGINS", "1")
    return Runner(new_project.write(FLOW), show_output=False)


def test_a_run_is_started_and_read(runner: Runner) -> None:
    """A run's status, its output and its artifacts are there once it has ended."""
    with runner:
        done = runner.run(size=4, tags=["nightly"])
        assert (done.returncode, done.status) == (0, "successful")
        assert done.run.data.twice == 8
        assert "nightly" in done.run.tags
        assert "working" in done.stdout


def test_a_run_that_was_refused(runner: Runner) -> None:
    """Where a run was refused there is none to read, and what the command said tells why."""
    with runner:
        done = runner.run()
        assert (done.returncode, done.status) == (2, "failed")
        with pytest.raises(UsageError, match=r"there is no run yet: error: .*size"):
            done.run  # noqa: B018 # it is the reading that fails


def test_a_run_that_is_gone(new_project: Project, runner: Runner) -> None:
    """A run that was removed from the store since is not found."""
    with runner:
        done = runner.run(size=1)
        shutil.rmtree(new_project.root / ".mlp/flows/Flow")
        with pytest.raises(NotFound, match="there is no run"):
            done.run  # noqa: B018 # as above


@pytest.mark.parametrize("given", [{}, {"size": "large"}])
def test_a_refused_parameter_leaves_no_store(new_project: Project, runner: Runner, given: dict[str, str]) -> None:
    """A parameter that is missing or refused is told before a store is made."""
    with runner:
        assert runner.run(**given).returncode == 2
    assert not (new_project.root / ".mlp").exists()
