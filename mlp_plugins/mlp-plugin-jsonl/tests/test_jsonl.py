"""A run's events become lines of JSON, each once, whatever is delivered again, cut off or written at the same time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pluggy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlp_hookspecs import ArtifactRef, Failure, TaskKey, specs, wire
from mlp_hookspecs.events import ArtifactPersisted, Deployed, Event, RunFinished, RunStarted, TaskFinished, TaskStarted
from mlp_plugin_jsonl import plugin
from mlp_plugin_jsonl.lines import append_event, event_line, event_path

RUN = "20260131-094500-123456"


def make_run(run_id: str = RUN) -> list[Event]:
    """Return the events of a small run; those of one record share their sequence number."""
    where: dict[str, Any] = {"flow": "Train", "run_id": run_id, "time": 1.5}
    task: dict[str, Any] = {**where, "key": TaskKey("start"), "attempt": 0}
    ref = ArtifactRef("json", digest="sha256-" + 64 * "0", size=3, type="builtins.int")
    return [
        RunStarted(sequence=0, username="ada", parameters={"alpha": "0.1"}, **where),
        TaskStarted(sequence=1, launcher="local", **task),
        TaskFinished(sequence=2, status="failed", failure=Failure("exception", "it\nbröke"), **task),
        ArtifactPersisted(sequence=2, name="x", ref=ref, **task),
        ArtifactPersisted(sequence=2, name="y", ref=ref, **task),
        RunFinished(sequence=3, status="failed", **where),
    ]


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def manager() -> pluggy.PluginManager:
    """A manager that knows the contract and the plugin."""
    manager = pluggy.PluginManager("mlp")
    manager.add_hookspecs(specs)
    manager.register(plugin)
    manager.check_pending()
    return manager


def test_every_event_becomes_a_line(manager: pluggy.PluginManager, tmp_path: Path) -> None:
    """Told of a run's events through the hook, the plugin writes a line for each, from which the event can be made."""
    settings = {"jsonl.path": str(tmp_path / "{flow}" / "{run_id}.jsonl")}
    for event in make_run():
        manager.hook.mlp_event(event=event, settings=settings)
    lines = read(tmp_path / "Train" / f"{RUN}.jsonl")
    assert [line["event"] for line in lines] == [type(event).__name__ for event in make_run()]
    assert [wire.decode(type(event), line) for event, line in zip(make_run(), lines, strict=True)] == make_run()


def test_readme_shows_a_line() -> None:
    """The line in the README is the one that its event becomes."""
    (shown,) = re.findall(
        r"^```json\n(.*?)^```", (Path(__file__).parents[1] / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert event_line(wire.decode(RunStarted, json.loads(shown))).decode() == shown


def test_setting_has_a_default_per_run(manager: pluggy.PluginManager) -> None:
    """Without a setting, each run gets a file of its own below the project's ``.mlp`` folder."""
    ((setting,),) = manager.hook.mlp_settings()
    assert (setting.name, setting.type) == ("jsonl.path", "path")
    assert event_path(setting.default, make_run()[0]) == f".mlp/events/Train/{RUN}.jsonl"


@given(st.lists(st.integers(min_value=0, max_value=5), max_size=6))
def test_repeated_delivery_adds_nothing(tmp_path_factory: pytest.TempPathFactory, restarts: list[int]) -> None:
    """However often delivery begins again from an earlier event, each event stands in the file once, in order."""
    path = tmp_path_factory.mktemp("events") / "events.jsonl"
    events = make_run()
    for position, event in enumerate(events):
        append_event(path, event)
        for start in restarts:
            for again in events[min(start, position) : position + 1]:
                assert not append_event(path, again)
    assert [line["id"] for line in read(path)] == [event.id for event in events]


def test_runs_can_share_a_file(tmp_path: Path) -> None:
    """Two runs in one file do not hide each other's events, in whatever order they mix."""
    path = tmp_path / "events.jsonl"
    one, two = make_run(), make_run("20260131-094500-123457")
    order = [*one[:3], *two[:5], *one[3:], *two[5:]]
    for event in order * 2:
        append_event(path, event)
    assert [line["id"] for line in read(path)] == [event.id for event in order]


def test_deployments_need_no_order(tmp_path: Path) -> None:
    """Events that belong to no run are told apart by their identity alone."""
    events = [
        Deployed(sequence=1, flow="Train", run_id="", time=float(number), target="local", name="train", version=1)
        for number in (3, 1, 3, 2, 1)
    ]
    path = tmp_path / event_path("{flow}-{run_id}.jsonl", events[0])
    assert [append_event(path, event) for event in events] == [True, True, False, True, False]
    assert path.name == "Train-deployments.jsonl"


@pytest.mark.parametrize("torn", ['{"event":"Task', 100_000 * "x"], ids=["short", "long"])
def test_torn_line_is_cut_off(tmp_path: Path, torn: str) -> None:
    """What a writer left unfinished is removed before the next line, so that every line stays whole."""
    path = tmp_path / "events.jsonl"
    first, second = make_run()[:2]
    append_event(path, first)
    whole = path.read_text()
    path.write_text(whole + torn)
    append_event(path, second)
    assert [line["id"] for line in read(path)] == [first.id, second.id]


def test_torn_first_line_is_cut_off(tmp_path: Path) -> None:
    """A file that holds nothing but the beginning of a line is as good as an empty one."""
    path = tmp_path / "events.jsonl"
    path.write_text('{"event"')
    append_event(path, make_run()[0])
    assert [line["event"] for line in read(path)] == ["RunStarted"]


def test_processes_can_share_a_file(tmp_path: Path) -> None:
    """Observers of several runs that write to one file at once lose no line and tear none."""
    path = tmp_path / "events.jsonl"
    code = """
import sys
from pathlib import Path
from mlp_hookspecs.events import RunFinished
from mlp_plugin_jsonl.lines import append_event
for number in range(100):
    event = RunFinished(sequence=number, flow="Train", run_id=sys.argv[2], time=0.0, status="x" * 500)
    append_event(Path(sys.argv[1]), event)
"""
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), f"run-{n}"]) for n in range(4)]
    assert [writer.wait() for writer in writers] == [0, 0, 0, 0]
    lines = read(path)
    for n in range(4):
        assert [line["sequence"] for line in lines if line["run_id"] == f"run-{n}"] == list(range(100))


def test_file_is_private(tmp_path: Path) -> None:
    """Only its owner can read the file, since it holds the values of parameters."""
    path = tmp_path / "events.jsonl"
    append_event(path, make_run()[0])
    assert path.stat().st_mode & 0o077 == 0


def test_unwritable_file_is_an_error(tmp_path: Path) -> None:
    """Where the file cannot be made, the hook raises the system's error, which the core records on the run."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        append_event(tmp_path / "file" / "events.jsonl", make_run()[0])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")  # noqa: PTH110 # not a file
def test_full_disk_is_an_error() -> None:
    """A line that could not be written is not counted as written."""
    with pytest.raises(OSError, match="space"):
        append_event(Path("/dev/full"), make_run()[0])


def test_unknown_placeholder_is_refused() -> None:
    """A misspelt placeholder is named, with those that are known."""
    with pytest.raises(ValueError, match=r"\{runid\}; only \{flow\} and \{run_id\}"):
        event_path("{runid}.jsonl", make_run()[0])
