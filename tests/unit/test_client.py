"""The client over runs that are written record by record, without running anything."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from mlp_core import client as top
from mlp_core.client import Client, TaskException, client_for
from mlp_core.errors import ArtifactError, NameRefused, NotFound, UsageError
from mlp_core.session import Session
from mlp_core.store import AttemptFinished, AttemptStarted, RunBegan, RunEnded, RunWriter, TaskReused
from mlp_hookspecs import (
    ArtifactRef,
    CodeRef,
    Failure,
    FlowGraph,
    ForeachFrame,
    RunContext,
    StepNode,
    StepOutcome,
    TaskKey,
    Transition,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

GRAPH = FlowGraph(
    "Try",
    "start",
    "end",
    (
        StepNode("start", "foreach", ("work",), foreach="xs", join="join"),
        StepNode("work", "linear", ("join",), parents=("start",), splits=("start",)),
        StepNode("join", "linear", ("end",), is_join=True, parents=("work",), splits=("start",)),
        StepNode("end", "end", parents=("join",)),
    ),
)
START, JOIN, END = TaskKey("start"), TaskKey("join"), TaskKey("end")
WORK = tuple(TaskKey("work", (index,)) for index in range(3))


@attrs.define
class Book:
    """Writes runs as a driver would."""

    session: Session
    open: list[RunWriter] = attrs.field(factory=list)

    def begin(self, *, user: str = "alice", tags: tuple[str, ...] = (), code: CodeRef | None = None) -> RunWriter:
        """Create a run."""
        parameters = {"alpha": self.put(0.5)}

        def make(run_id: str) -> RunBegan:
            run = RunContext("Try", run_id, user, f"user:{user}", tags)
            metadata = {"python": "3.12.1"}
            return RunBegan(run, time.time(), "here", 1, GRAPH, parameters, code=code, metadata=metadata)

        writer = self.session.open_store(create=True).create_run(make, time.time())
        self.open.append(writer)
        return writer

    def close(self, writer: RunWriter) -> None:
        """Let go of a run, as a driver does in the end."""
        self.open.remove(writer)
        writer.close()

    def put(self, value: object) -> ArtifactRef:
        """Store a value."""
        return self.session.values(self.session.open_store(create=True)).put("x", value)

    def task(
        self, writer: RunWriter, key: TaskKey, outcome: StepOutcome, parents: tuple[TaskKey, ...] = (), **more: Any
    ) -> None:
        """Record an attempt."""
        attempt = more.pop("attempt", 0)
        frames = ()
        if key in WORK:
            frames = (ForeachFrame("start", "xs", key.index[0], 3),)
        finished = AttemptFinished(key, attempt, outcome, parents=parents, frames=frames, time=time.time(), **more)
        writer.write([AttemptStarted(key, attempt, "local", time.time()), finished])

    def whole(self, *, status: str = "succeeded", **about: Any) -> str:
        """Write a run with three items to its end, and return its place."""
        writer = self.begin(**about)
        started = StepOutcome("succeeded", {"xs": self.put([1, 2, 3])}, transition=Transition(("work",), 3))
        self.task(writer, START, started)
        for key in WORK[::-1]:
            self.task(writer, key, StepOutcome("succeeded", {"y": self.put(key.index[0] * 10)}), (START,))
        self.task(writer, JOIN, StepOutcome("succeeded", {"best": self.put("work/2")}), WORK)
        self.task(writer, END, StepOutcome("succeeded", removed=("alpha",), host="there", pid=7), (JOIN,))
        writer.log("start/0/0", "stdout", b"one\ntw", 10.0)
        writer.log("start/0/0", "stderr", b"oops\n", 11.0)
        writer.log("start/0/0", "stdout", b"o\nthree", 12.0)
        writer.write([RunEnded(status, "", time.time(), 6)])  # type: ignore[arg-type] # one of the three
        self.close(writer)
        run = writer.began.run
        return f"{run.flow}/{run.run_id}"


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Book]:
    """A project with a store, and the user alice."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("MLP_USERNAME", "alice")
    monkeypatch.setenv("MLP_NO_PLUGINS", "1")
    root = tmp_path / "project"
    root.mkdir()
    (root / "mlp.toml").touch()
    monkeypatch.chdir(root)
    book = Book(Session.open(start=root))
    yield book
    for writer in book.open:
        writer.close()


@pytest.fixture
def client(book: Book) -> Client:
    """A client of the project's store."""
    return client_for(book.session)


def test_a_run_is_read_from_its_place(book: Book, client: Client) -> None:
    """A run tells its status, times, tags and parts."""
    place = book.whole(tags=("good",))
    run = client.Run(place)
    assert (run.pathspec, run.id, run.path_components) == (place, place.split("/")[1], place.split("/"))
    assert run.status == "succeeded"
    assert run.finished
    assert run.successful
    assert run.created_at <= run.finished_at
    assert run.created_at.tzinfo is not None
    assert run.user_tags == {"good"}
    assert run.system_tags >= {"user:alice", "runtime:dev", "python_version:3.12.1"}
    assert run.tags == run.user_tags | run.system_tags
    assert run.parent == client.Flow("Try")
    assert repr(run) == f"Run('{place}')"
    assert run.trigger is None
    assert run.origin_pathspec is None


def test_children_are_iterated_newest_first(book: Book, client: Client) -> None:
    """Flows give their runs, runs their steps, steps their tasks, each newest first."""
    places = [book.whole() for _ in range(3)]
    assert [run.pathspec for run in client.Flow("Try")] == places[::-1]
    assert [step.id for step in client.Run(places[0])] == ["end", "join", "work", "start"]
    assert [task.id for task in client.Step(f"{places[0]}/work")] == ["0", "1", "2"]
    assert [flow.id for flow in client.Metaflow()] == ["Try"]
    assert client.Metaflow().flows == [client.Flow("Try")]


def test_artifacts_are_visible_as_steps_saw_them(book: Book, client: Client) -> None:
    """A task sees its parent's artifacts, a join does not; what was removed is gone; parameters are everywhere."""
    run = client.Run(book.whole())
    work = run["work"]["1"]
    assert (work.data.xs, work.data.y, work.data.alpha) == ([1, 2, 3], 10, 0.5)
    assert {artifact.id for artifact in run["join"].task.artifacts} == {"alpha", "best"}
    assert run.data.best == "work/2"
    assert "alpha" not in run.data
    assert "best" in run.data
    assert run.end_task == run["end"].task
    artifact = work["y"]
    assert (artifact.data, artifact.format, artifact.type, artifact.size) == (10, "json", "int", 2)
    assert len(artifact.sha) == 64
    assert artifact.parent == work
    assert client.DataArtifact(artifact.pathspec).data == 10
    assert "y" in work
    assert "z" not in work
    assert work.artifacts.y == artifact
    assert set(work.artifacts._asdict()) == {"xs", "y", "alpha"} == set(work.artifacts._fields)
    assert "y" in repr(work.data)


def test_tasks_know_their_neighbours(book: Book, client: Client) -> None:
    """Parents come in the order of the split, children are found, an index is that of the innermost foreach."""
    run = client.Run(book.whole())
    join = run["join"].task
    assert [task.id for task in join.parent_tasks] == ["0", "1", "2"]
    assert [task.pathspec for task in run["start"].task.child_tasks] == [f"{run.pathspec}/work/{n}" for n in (2, 1, 0)]
    assert list(run["end"].task.child_tasks) == []
    assert run["work"]["2"].index == 2
    assert join.index is None
    assert [step.id for step in run["join"].parent_steps()] == ["work"]
    assert [step.id for step in run["join"].child_steps()] == ["end"]
    assert list(join.parent_task_pathspecs) == [f"{run.pathspec}/work/{n}" for n in range(3)]


def test_logs_are_lines_with_times(book: Book, client: Client) -> None:
    """A line that was printed in pieces is whole, and has the time of its first."""
    task = client.Run(book.whole())["start"].task
    assert task.stdout == "one\ntwo\nthree\n"
    assert task.stderr == "oops\n"
    assert [(when.timestamp(), line) for when, line in task.loglines("stdout")] == [
        (10.0, "one"),
        (10.0, "two"),
        (12.0, "three"),
    ]
    assert [line for _, line in task.loglines("stderr", as_unicode=False)] == [b"oops"]
    with pytest.raises(ValueError, match="stdout and stderr"):
        list(task.loglines("both"))


def test_metadata_tells_about_the_attempt(book: Book, client: Client) -> None:
    """Host, process and launcher are told, and whatever else is known."""
    task = client.Run(book.whole())["end"].task
    assert task.metadata_dict.items() >= {"host": "there", "pid": "7", "launcher": "local", "attempt": "0"}.items()
    assert task.metadata[0].task == task
    assert task.runtime_name == "local"
    assert task.environment_info["backend"] == "current"


def test_attempts_are_read_one_by_one(book: Book, client: Client) -> None:
    """The last attempt counts, an earlier one can be asked for; a failure is the exception, or tells of it."""
    writer = book.begin()
    first = Failure("exception", "ValueError: no", "ValueError", "Traceback ...", book.put(ValueError("no")))
    book.task(writer, START, StepOutcome("failed", failure=first), will_retry=True)
    second = StepOutcome("succeeded", {"xs": book.put([])})
    book.task(writer, START, second, attempt=1)
    book.task(writer, WORK[0], StepOutcome("failed", failure=Failure("killed", "killed by SIGKILL")), (START,))
    run = client.run(f"Try/{writer.began.run.run_id}")
    task = run["start"].task
    assert task.successful
    assert task.exception is None
    assert task.current_attempt == 1
    earlier = client.Task(task.pathspec, attempt=0)
    assert not earlier.successful
    assert isinstance(earlier.exception, ValueError)
    assert list(earlier.artifacts) == []
    killed = run["work"].task
    assert killed.finished
    assert not killed.successful
    assert isinstance(killed.exception, TaskException)
    assert (killed.exception.kind, str(killed.exception)) == ("killed", "killed by SIGKILL")
    with pytest.raises(NotFound, match="no attempt 5"):
        client.Task(task.pathspec, attempt=5)


def test_a_run_that_goes_on_is_looked_at_again(book: Book, client: Client) -> None:
    """An object that was made before the run ended tells what has become of it."""
    writer = book.begin()
    run = client.Run(f"Try/{writer.began.run.run_id}")
    assert (run.status, run.finished, run.successful, run.finished_at) == ("running", False, False, None)
    assert run.data is None
    assert run.end_task is None
    book.task(writer, START, StepOutcome("succeeded", {"xs": book.put([1])}))
    assert run["start"].task.data.xs == [1]
    writer.write([RunEnded("failed", "no", time.time())])
    book.close(writer)
    assert (run.status, run.finished, run.successful) == ("failed", True, False)


def test_a_run_whose_driver_died_is_lost(book: Book, client: Client) -> None:
    """Without a driver and without an end, a run is finished but not successful."""
    writer = book.begin()
    book.close(writer)
    run = client.Run(f"Try/{writer.began.run.run_id}")
    assert (run.status, run.finished, run.successful, run.finished_at) == ("lost", True, False, None)


def test_a_task_that_was_taken_over_has_its_origins_log(book: Book, client: Client) -> None:
    """A resumed run's tasks tell where they come from, and print what the earlier one printed."""
    origin = book.whole()
    writer = book.begin()
    outcome = StepOutcome("succeeded", {"xs": book.put([1, 2, 3])})
    writer.write([TaskReused(START, f"{origin}/start/0", outcome, time=time.time())])
    task = client.Run(f"Try/{writer.began.run.run_id}")["start"].task
    assert task.origin_pathspec == f"{origin}/start/0"
    assert task.stdout == "one\ntwo\nthree\n"
    assert task.data.xs == [1, 2, 3]


def test_latest_runs_are_found(book: Book, client: Client) -> None:
    """The newest run and the newest that succeeded are told apart; there may be none."""
    good = book.whole()
    bad = book.whole(status="failed")
    flow = client.Flow("Try")
    assert flow.latest_run.pathspec == bad
    assert flow.latest_successful_run.pathspec == good
    assert flow.created_at == client.Run(good).created_at
    assert flow.finished_at == client.Run(bad).finished_at


def test_runs_are_filtered_by_tags(book: Book, client: Client) -> None:
    """A run must have all of the tags, those of the system's making included."""
    first, second = book.whole(tags=("a", "b")), book.whole(tags=("a",))
    flow = client.Flow("Try")
    assert [run.pathspec for run in flow.runs("a")] == [second, first]
    assert [run.pathspec for run in flow.runs("a", "b")] == [first]
    assert [run.pathspec for run in flow.runs("user:alice", "b")] == [first]
    assert list(flow.runs("user:bob")) == []
    assert [run.pathspec for run in flow.runs("python_version:3.12.1", "a")] == [second, first]
    assert list(flow.runs("python_version:3.11.1")) == []


def test_runs_are_filtered_by_status_and_time(book: Book, client: Client) -> None:
    """Status, times and a number narrow the runs down."""
    first, second, third = (book.whole(status=status) for status in ("succeeded", "failed", "cancelled"))
    flow = client.Flow("Try")

    def found(*tags: str, **filters: Any) -> list[str]:
        return [run.pathspec for run in flow.runs(*tags, **filters)]

    assert found(status="failed") == [second]
    assert found(status=("succeeded", "cancelled")) == [third, first]
    assert found(limit=2) == [third, second]
    assert found("user:alice", status="succeeded", limit=1) == [first]
    assert found(since=client.Run(second).created_at) == [third, second]
    assert found(until=client.Run(second).created_at) == [first]


def test_tags_are_edited(book: Book, client: Client) -> None:
    """Tags are added, removed and replaced, seen by every object of the run at once; the system's stay."""
    run = client.Run(book.whole(tags=("a",)))
    other = client.Run(run.pathspec)["start"].task
    run.add_tag("b")
    run.add_tags(["c", "d"])
    run.remove_tag("a")
    run.remove_tag("never there")
    run.replace_tag("c", "e")
    assert run.user_tags == {"b", "d", "e"} == other.user_tags
    run.replace_tags(["b", "d"], ["f"])
    run.remove_tags(["e"])
    assert run.user_tags == {"f"}
    assert [found.pathspec for found in client.Flow("Try").runs("f")] == [run.pathspec]
    with pytest.raises(UsageError, match="user:alice is a tag of the system's"):
        run.remove_tag("user:alice")
    with pytest.raises(NameRefused):
        run.add_tag("two\nlines")


def test_a_namespace_hides_the_runs_of_others(book: Book, client: Client) -> None:
    """At first one sees one's own runs; another namespace shows another's, and None all."""
    mine, other = book.whole(), book.whole(user="bob", tags=("shared",))
    assert client.namespace == "user:alice"
    assert [run.pathspec for run in client.Flow("Try")] == [mine]
    with pytest.raises(NotFound, match="not in the namespace 'user:alice'"):
        client.Run(other)
    client.namespace = "user:bob"
    assert [run.pathspec for run in client.Flow("Try")] == [other]
    client.namespace = "shared"
    assert client.Flow("Try").latest_run.pathspec == other
    client.namespace = "user:carol"
    with pytest.raises(NotFound, match="has no run in the namespace"):
        client.Flow("Try")
    assert list(client.Metaflow()) == []
    client.namespace = None
    assert [run.pathspec for run in client.Flow("Try")] == [other, mine]


def test_top_level_names_use_the_working_folder(book: Book, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`Flow` and `Run` read the project's store; the namespace of the process holds for all of them."""
    mine, other = book.whole(), book.whole(user="bob")
    assert top.get_namespace() == "user:alice"
    assert top.Run(mine).successful
    try:
        assert top.namespace(None) is None
        assert [run.pathspec for run in top.Flow("Try")] == [other, mine]
        assert top.namespace("user:bob") == "user:bob" == top.get_namespace()
        assert top.Flow("Try").latest_run.pathspec == other
    finally:
        assert top.default_namespace() == "user:alice"
    assert top.default_client() is top.default_client()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("MLP_STORE", str(book.session.root / ".mlp"))
    assert top.Flow("Try").latest_run.pathspec == mine


def test_what_is_not_there_is_told_with_what_is(book: Book, client: Client) -> None:
    """Each error names the nearest or the known; by [...] it is a KeyError too."""
    place = book.whole()
    run = client.Run(place)
    cases: list[tuple[Any, str]] = [
        (lambda: client.Flow("Tri"), "did you mean Try"),
        (lambda: client.Run("Try/20000101-000000-000000"), place.split("/")[1]),
        (lambda: client.Run("Other/20000101-000000-000000"), "there are Try"),
        (lambda: client.Step(f"{place}/wrok"), "did you mean work"),
        (lambda: client.Task(f"{place}/work/7"), "it has 2, 1, 0"),
        (lambda: client.DataArtifact(f"{place}/work/0/yy"), "did you mean y"),
        (lambda: client.Run("Try"), "one is Flow/"),
        (lambda: client.Task(place), "one is Flow/"),
        (lambda: run["nothing"], "its steps are start, work, join, end"),
        (lambda: run["work"]["0"]["nothing"], "it has alpha, xs, y"),
        (lambda: client.Metaflow()["Tri"], "did you mean Try"),
        (lambda: client.Flow("Try")["20000101-000000-000000"], "the newest are"),
    ]
    for look, hint in cases:
        with pytest.raises(NotFound) as caught:
            look()
        assert hint in caught.value.hint
    for look, _ in cases[8:]:
        with pytest.raises(KeyError):
            look()
    with pytest.raises(AttributeError, match="did you mean best"):
        _ = run.data.bst
    with pytest.raises(AttributeError, match="there are"):
        _ = run["end"].task.artifacts.zzz
    with pytest.raises(NameRefused):
        client.Run("Try/../x")
    assert "nothing" not in run
    assert "work" in run


def test_a_step_that_has_not_begun_is_told_so(book: Book, client: Client) -> None:
    """A known step without tasks is not taken for a misspelt one."""
    writer = book.begin()
    with pytest.raises(NotFound, match="has no task yet"):
        client.Step(f"Try/{writer.began.run.run_id}/join")


def test_classes_of_the_flows_own_module_are_found(book: Book, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value whose class lies beside the flow loads where it was never imported; the path is left as it was."""
    module = "own_module_of_a_flow"
    root = book.session.root
    (root / "src").mkdir()
    (root / "src" / f"{module}.py").write_text("class Model:\n    size = 3\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(root / "src")
        own = __import__(module)
        ref = book.put(own.Model())
    del sys.modules[module]
    code = CodeRef(module, "Try", file=f"src/{module}.py", root=str(root))
    writer = book.begin(code=code)
    book.task(writer, START, StepOutcome("succeeded", {"model": ref}))
    task = client.Run(f"Try/{writer.began.run.run_id}")["start"].task
    before = list(sys.path)
    assert task.data.model.size == 3
    assert sys.path == before
    del sys.modules[module]


def test_a_missing_module_is_named(book: Book, client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the module is nowhere, the error says which it is and what to do."""
    module = "module_that_is_gone"
    (tmp_path / f"{module}.py").write_text("class Model:\n    pass\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        ref = book.put(__import__(module).Model())
    del sys.modules[module]
    writer = book.begin(code=CodeRef("flow", "Try", file="flow.py", root=str(tmp_path / "nowhere")))
    book.task(writer, START, StepOutcome("succeeded", {"model": ref}))
    task = client.Run(f"Try/{writer.began.run.run_id}")["start"].task
    with pytest.raises(ArtifactError, match=f"the module '{module}' cannot be imported here") as caught:
        _ = task.data.model
    assert module in caught.value.hint


def test_code_is_read_from_its_package(book: Book, client: Client) -> None:
    """A run's code can be read and unpacked."""
    from mlp_core.runner.package import build_package

    root = book.session.root
    (root / "flow.py").write_text("print('hello')\n")
    values = book.session.values(book.session.open_store(create=True))
    package = values.put_bytes(build_package(root, book.session.settings))
    writer = book.begin(code=CodeRef("flow", "Try", file="flow.py", root=str(root), package=package))
    code = client.Run(f"Try/{writer.began.run.run_id}").code
    assert code is not None
    assert code.flowspec == "print('hello')\n"
    assert code.script_name == "flow.py"
    assert code.info["host"] == "here"
    assert code.digest == package.digest
    with code.extract() as folder:
        assert (Path(folder) / "flow.py").read_text() == "print('hello')\n"


def test_objects_compare_by_place_and_store(book: Book, client: Client) -> None:
    """Two objects of one place are equal and have one hash, whichever way they were reached."""
    run = client.Run(book.whole())
    assert run["start"] == client.Step(f"{run.pathspec}/start")
    assert {run["start"].task, client.Task(f"{run.pathspec}/start/0")} == {run["start"].task}
    assert run["start"] != run["end"]
    assert run != json


def test_nothing_is_written_by_reading(book: Book) -> None:
    """A store that is not there is not made, and the error says so."""
    from mlp_core.errors import StoreUnavailable

    with pytest.raises(StoreUnavailable, match="there is no store"):
        client_for(book.session).Flow("Try")
    assert not (book.session.root / ".mlp").exists()
