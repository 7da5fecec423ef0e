"""What a step finds around it: facts, variables, resources, a process of its own, and the flow's file imported."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Isolation, Project, Ran

FACTS = """
from mlp_core import current

class Flow(FlowSpec):
    @step
    def start(self):
        assert current.is_running_flow
        self.facts = {
            name: getattr(current, name)
            for name in (
                "flow_name run_id step_name task_id pathspec retry_count attempt origin_run_id namespace username tags"
                " project_name branch_name project_flow_name is_production trigger parallel foreach_stack"
            ).split()
        }
        self.graph = [(node.name, node.kind) for node in current.graph.steps]
        self.absent = current.get("color", "none"), "color" in current, "step_name" in current
        try:
            current.color
        except AttributeError as error:
            self.message = str(error)
        with open(os.path.join(current.tempdir, "file"), "w") as file:
            file.write("x")
        self.folder = current.tempdir
        assert self.folder == current.tempdir and os.path.exists(self.folder)
        self.items = "ab"
        self.next(self.work, foreach="items")

    @step
    def work(self):
        self.fact = current.task_id, current.pathspec.split("/")[2:], current.foreach_stack
        seen = []
        thread = threading.Thread(target=lambda: seen.append(current.task_id))
        thread.start()
        thread.join()
        self.seen = seen
        self.next(self.join)

    @step
    def join(self, inputs):
        self.facts = [branch.fact for branch in inputs]
        self.seen = [branch.seen for branch in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.fixture(scope="module")
def facts(project: Project, isolation: Isolation) -> Ran:
    """A run whose steps look around."""
    ran = project.run(FACTS, isolation=isolation, tags=("a", "b"), trigger={"event": "x"}, flags={"username": "ada"})
    assert ran.status == "succeeded", ran.state.ended
    return ran


def test_current(facts: Ran) -> None:
    """`current` tells the task, the run and its owner."""
    assert facts.value("facts", "start") == {
        "flow_name": "Flow",
        "run_id": facts.run_id,
        "step_name": "start",
        "task_id": "0",
        "pathspec": f"Flow/{facts.run_id}/start/0",
        "retry_count": 0,
        "attempt": 0,
        "origin_run_id": None,
        "namespace": "user:ada",
        "username": "ada",
        "tags": frozenset("ab"),
        "project_name": None,
        "branch_name": None,
        "project_flow_name": None,
        "is_production": False,
        "trigger": {"event": "x"},
        "parallel": None,
        "foreach_stack": [],
    }
    assert facts.value("graph", "start") == [
        ("start", "foreach"),
        ("work", "linear"),
        ("join", "linear"),
        ("end", "end"),
    ]


def test_current_of_an_absent_plugin(facts: Ran) -> None:
    """What no plugin provides is not there, and the message says why."""
    assert facts.value("absent", "start") == ("none", False, True)
    assert facts.value("message", "start") == "current has no 'color'; a plugin that provides it may be missing"


def test_current_in_a_foreach(facts: Ran) -> None:
    """Tasks of a foreach know their place, also in threads that they start."""
    assert facts.value("facts") == [
        ("0", ["work", "0"], [(0, 2, "a")]),
        ("1", ["work", "1"], [(1, 2, "b")]),
    ]
    assert facts.value("seen") == [["0"], ["1"]]


def test_tempdir_is_removed(facts: Ran) -> None:
    """The task's temporary folder is gone with the task."""
    assert not os.path.exists(facts.value("folder", "start"))  # noqa: PTH110 # a path's text is what was stored


def test_current_outside_of_a_task() -> None:
    """Outside of a task the facts are None."""
    from mlp_core import current

    assert not current.is_running_flow
    assert current.run_id is None
    assert current.get("run_id") is None


VARIABLES = """
class Flow(FlowSpec):
    @environment(vars={"MLP_TEST_A": "one", "MLP_TEST_B": "two words"})
    @step
    def start(self):
        self.seen = os.environ["MLP_TEST_A"], os.environ["MLP_TEST_B"], AT_IMPORT
        os.environ["MLP_TEST_LEAK"] = "1"
        self.next(self.other)

    @resources(cpu=2, memory=100)
    @step
    def other(self):
        self.absent = "MLP_TEST_A" in os.environ, "MLP_TEST_LEAK" in os.environ
        self.threads = os.environ.get("OMP_NUM_THREADS")
        self.unset = "PYTHONDONTWRITEBYTECODE" in os.environ
        self.stdin = sys.stdin.read() if sys.stdin else ""
        self.cwd = os.getcwd()
        self.next(self.end)

    @step
    def end(self):
        self.single = os.environ.get("OMP_NUM_THREADS")

AT_IMPORT = os.environ.get("MLP_TEST_A")
"""


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_environment(project: Project, way: Isolation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables are set before the step's process starts, for its step alone; numeric libraries keep to the cores."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    ran = project.run(VARIABLES, isolation=way)
    assert ran.status == "succeeded", ran.state.ended
    assert ran.value("seen") == ("one", "two words", "one")
    assert ran.value("absent") == (False, False)
    assert (ran.value("threads"), ran.value("single")) == ("2", "1")
    assert ran.value("unset") is False
    assert ran.value("stdin") == ""
    assert ran.value("cwd") == str(project.root)


def test_environment_inline(project: Project) -> None:
    """In the driver's own process the variables are set for the time of the step."""
    code = VARIABLES.replace('self.stdin = sys.stdin.read() if sys.stdin else ""', 'self.stdin = ""')
    ran = project.run(code.replace(", AT_IMPORT\n", "\n"), isolation="inline")
    assert ran.status == "succeeded", ran.state.ended
    assert ran.value("seen") == ("one", "two words")
    assert ran.value("absent") == (False, False)
    assert "MLP_TEST_A" not in os.environ


CROWD = """
class Flow(FlowSpec):
    folder = Parameter("folder", default="")

    @step
    def start(self):
        self.items = list(range(6))
        self.next(self.work, foreach="items")

    DECORATOR
    @step
    def work(self):
        place = f"{self.folder}/{self.input}"
        open(place, "w").close()
        time.sleep(0.15)
        self.crowd = len(os.listdir(self.folder))
        os.unlink(place)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.crowd = max(branch.crowd for branch in inputs)
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.mark.parametrize(
    ("decorator", "options", "expected"),
    [
        ("@resources(cpu=0.01)", {}, range(3, 7)),
        ("@resources(cpu=0.01)\n    @limit(2)", {}, range(1, 3)),
        ("@resources(cpu=0.01)", {"max_workers": 2}, range(1, 3)),
        ("@resources(cpu=10_000)", {}, range(1, 2)),
        ("@resources(memory=100_000_000)", {}, range(1, 2)),
    ],
)
def test_how_many_run_at_once(
    project: Project, tmp_path: Path, decorator: str, options: dict[str, int], expected: range
) -> None:
    """Resources, a step's limit and the bound on workers hold while tasks run."""
    ran = project.run(CROWD.replace("DECORATOR", decorator), parameters={"folder": str(tmp_path)}, **options)
    assert ran.status == "succeeded", ran.state.ended
    assert ran.value("crowd") in expected


RANDOM = """
import random
import numpy

EARLY = numpy.random.default_rng(1)

class Flow(FlowSpec):
    @step
    def start(self):
        self.items = [0, 1, 2]
        self.next(self.work, foreach="items")

    @step
    def work(self):
        self.drawn = random.random(), float(numpy.random.random()), os.urandom(4)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.drawn = [branch.drawn for branch in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def test_gpus_that_are_not_there(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that asks for a GPU runs on a machine without, and one line of the run says so."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code = """
    class Flow(FlowSpec):
        @resources(gpu=1)
        @step
        def start(self):
            self.next(self.end)

        @step
        def end(self):
            pass
    """
    text = "start asks for GPUs, and none can be seen on this machine: running without"
    ran = project.run(code, isolation="inline")
    assert ran.status == "succeeded"
    assert ran.notes == (text,)
    assert [(note.kind, note.text) for note in ran.state.notes] == [("resources", text)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert project.run(code, isolation="inline").notes == ()


def test_random_state_differs(project: Project) -> None:
    """Forked tasks do not draw the same numbers; a generator that they would share is pointed out."""
    ran = project.run(RANDOM, isolation="fork")
    for column in zip(*ran.value("drawn"), strict=True):
        assert len(set(column)) == 3
    assert "EARLY is a random generator made when the file is imported" in ran.log("start")


@pytest.fixture
def driver_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that tells the driver's process from all others."""
    monkeypatch.setenv("MLP_TEST_DRIVER", str(os.getpid()))


ENDING = """
import atexit, logging, tempfile, weakref

if os.environ["MLP_TEST_DRIVER"] != str(os.getpid()):
    SHARED = tempfile.TemporaryDirectory()
    atexit.register(lambda: print("registered at import"))

class Flow(FlowSpec):
    @step
    def start(self):
        self.shared = SHARED.name
        assert os.path.isdir(SHARED.name)
        atexit.register(lambda: print("at exit"))
        self.own = tempfile.TemporaryDirectory()
        folder = self.own.name
        globals()["kept"] = self.own
        del self.own
        self.folder = folder
        handler = logging.handlers.MemoryHandler(100, target=logging.StreamHandler(sys.stdout))
        logging.getLogger("x").addHandler(handler)
        logging.getLogger("x").warning("buffered")

        def later():
            time.sleep(0.3)
            print("thread", flush=True)

        threading.Thread(target=later).start()
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        print("no newline at the end", end="")
        self.next(self.end)

    @step
    def end(self):
        assert os.path.isdir(SHARED.name), "an earlier task removed what all have in common"
        self.left = os.path.exists(self.folder)

import logging.handlers
"""


@pytest.mark.usefixtures("driver_id")
@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_a_task_ends_as_a_process_does(project: Project, way: Isolation) -> None:
    """Threads are waited for, exit functions of the step run, its temporary folders go, and output is not lost."""
    ran = project.run(ENDING, isolation=way)
    assert ran.status == "succeeded", ran.state.ended
    log = ran.log("start")
    assert "no newline at the endthread\n" in log
    assert "at exit\n" in log
    assert "buffered\n" in log
    assert ("registered at import" in log) == (way == "spawn")
    assert ran.value("left") is False


def test_prints_while_importing(project: Project) -> None:
    """What the flow's file prints when a worker imports it is in the log of the first task."""
    code = """
    print("imported")
    print("complained", file=sys.stderr)

    class Flow(FlowSpec):
        @step
        def start(self):
            print("start")
            self.next(self.end)

        @step
        def end(self):
            print("end")
    """
    ran = project.run(code, isolation="fork")
    assert ran.log("start", streams=("stdout",)) == "imported\nstart\n"
    assert ran.log("start", streams=("stderr",)) == "complained\n"
    assert ran.log("end") == "end\n"
    spawned = project.run(code, isolation="spawn")
    assert spawned.log("end", streams=("stdout",)) == "imported\nend\n"


@pytest.mark.usefixtures("driver_id")
@pytest.mark.parametrize("way", ["fork", "spawn"])
@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        ("raise ValueError('only in workers')", "exception", "the flow could not be loaded: ValueError: only in work"),
        ("import nothing_of_that_name", "exception", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("sys.exit(3)", "exit", "the process exited with status 3 before the step had finished"),
        ("os._exit(4)", "exit", "the process exited with status 4 before the step had finished"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed", "killed by SIGSEGV"),
    ],
)
def test_import_that_fails_in_the_worker(project: Project, way: Isolation, line: str, kind: str, message: str) -> None:
    """A file that cannot be imported where the step runs fails the task with the reason and the user's lines."""
    code = f"""
    if os.environ.get("MLP_TEST_DRIVER") != str(os.getpid()):
        print("importing")
        {line}

    class Flow(FlowSpec):
        @step
        def start(self):
            self.next(self.end)

        @step
        def end(self):
            pass
    """
    ran = project.run(code, isolation=way)
    assert ran.status == "failed"
    failure = ran.failure("start")
    assert failure.kind == kind
    assert message in failure.message
    assert ran.log("start").startswith("importing\n")
    if kind == "exception":
        assert line in failure.traceback
        assert "mlp_core/" not in failure.traceback
        assert "importlib" not in failure.traceback


THREADED = """
THREAD

class Flow(FlowSpec):
    @step
    def start(self):
        self.items = list(range(3))
        self.next(self.work, foreach="items")

    @step
    def work(self):
        self.x = self.input
        self.next(self.join)

    @step
    def join(self, inputs):
        self.xs = [branch.x for branch in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def test_a_thread_started_by_the_import(project: Project) -> None:
    """Where the file's import starts a thread, tasks run in fresh processes, and one line says why."""
    thread = "threading.Thread(target=time.sleep, args=(600,), daemon=True, name='poller').start()"
    ran = project.run(THREADED.replace("THREAD", thread))
    assert (ran.status, ran.value("xs")) == ("succeeded", [0, 1, 2])
    note = "note: tasks run in fresh processes, since forking is not safe here: importing the flow started the thread"
    assert ran.log("start") == f"{note} 'poller'\n"
    assert ran.log("end") == ""


def test_a_thread_that_never_ends(project: Project) -> None:
    """A thread of the file's that nobody could wait for does not hold up the launcher."""
    thread = """
if os.environ.get("MLP_WORKER_FD") is None and sys.argv[0].endswith("template.py"):
    threading.Thread(target=time.sleep, args=(600,)).start()
"""
    ran = project.run(THREADED.replace("THREAD", thread))
    assert (ran.status, ran.value("xs")) == ("succeeded", [0, 1, 2])


@pytest.mark.slow
def test_polars(project: Project) -> None:
    """Polars, whose threads do not survive a fork, works in steps whether it was used at the import or not."""
    pytest.importorskip("polars")
    use = "polars.DataFrame({'a': range(10_000)}).lazy().group_by('a').agg(polars.len()).collect().height"
    code = THREADED.replace("self.x = self.input", f"import polars; self.x = {use}")
    assert project.run(code.replace("THREAD", "")).value("xs") == 3 * [10_000]
    used = project.run(code.replace("THREAD", f"import polars\nassert {use} == 10_000"))
    assert (used.status, used.value("xs")) == ("succeeded", 3 * [10_000])
    assert "importing the flow started the thread 'polars" in used.log("start")


def test_a_fork_that_gives_no_sign(project: Project) -> None:
    """A forked task that does not come to life, as with a lock held by nobody, is started afresh."""
    hang = """
def hang():
    if sys.argv[0].endswith("template.py"):
        time.sleep(600)

os.register_at_fork(after_in_child=hang)
"""
    ran = project.run(THREADED.replace("THREAD", hang), flags={"local.start_timeout": 0.4}, max_workers=4)
    assert (ran.status, ran.value("xs")) == ("succeeded", [0, 1, 2])
    assert ran.log("start") == "note: the forked task gave no sign for 0.4 s and is started afresh\n"


def test_unknown_isolation(project: Project) -> None:
    """An isolation that does not exist is refused with those that do, and leaves no run behind."""
    from mlp_core.errors import MlpError

    before = project.runs()
    with pytest.raises(MlpError, match="allowed are fork, spawn, inline"):
        project.run(THREADED.replace("THREAD", ""), flags={"local.isolation": "docker"})
    assert project.runs() == before


def test_code_beside_the_flow(new_project: Project) -> None:
    """A step imports modules and packages that lie beside the flow's file, whatever the working folder."""
    project = new_project
    (project.root / "helpers.py").write_text("VALUE = 1\nclass Thing:\n    pass\n")
    (project.root / "package").mkdir()
    (project.root / "package/__init__.py").write_text("")
    (project.root / "package/inner.py").write_text("VALUE = 2\n")
    project.write(
        """
        import helpers

        class Flow(FlowSpec):
            @step
            def start(self):
                import package.inner
                self.seen = helpers.VALUE, package.inner.VALUE
                self.thing = helpers.Thing()
                self.next(self.end)

            @step
            def end(self):
                assert isinstance(self.thing, helpers.Thing)
        """,
        "flow.py",
    )
    (project.root / "elsewhere").mkdir()
    for way in ("fork", "spawn"):
        for command in (("../flow.py", "run"), ("-m", "mlp_core.cli", "run", "../flow.py")):
            done = project.command(*command, "--isolation", way, cwd="elsewhere")
            assert done.returncode == 0, done.stderr
            assert project.read().value("seen") == (1, 2)


def test_run_id_file(new_project: Project) -> None:
    """The run's id is written where it is asked for; where that cannot be done, the run is refused and not begun."""
    from mlp_core.errors import UsageError

    code = THREADED.replace("THREAD", "")
    ran = new_project.run(code, run_id_file=new_project.root / "id")
    assert (new_project.root / "id").read_text() == ran.run_id
    with pytest.raises(UsageError, match=r"the run.s id cannot be written"):
        new_project.run(code, run_id_file=new_project.root / "nowhere/id")
    assert new_project.runs() == [ran.run_id]


def test_run_id_file_of_an_earlier_run(new_project: Project) -> None:
    """A file is used again, and holds no id once a run is refused; one that holds anything else is left alone."""
    from mlp_core.errors import UsageError

    path = new_project.root / "id"
    code = THREADED.replace("THREAD", "")
    first = new_project.run(code, run_id_file=path)
    assert path.read_text() == first.run_id
    with pytest.raises(UsageError):
        new_project.run(code, run_id_file=path, with_options=("nonsense",))
    assert path.read_text() == ""
    link = new_project.root / "link"
    link.symlink_to(path)
    second = new_project.run(code, run_id_file=link)
    assert (path.read_text(), link.is_symlink()) == (second.run_id, True)
    for content in ("precious", f"{second.run_id}\n{second.run_id}\n", "\0", second.run_id + "x" * 500):
        path.write_text(content)
        with pytest.raises(UsageError, match="the file holds something else"):
            new_project.run(code, run_id_file=path)
        assert path.read_text() == content
    assert new_project.runs() == [second.run_id, first.run_id]
    left = sorted(path.name for path in new_project.root.iterdir() if "id" in path.name)
    assert left == ["id"]


def test_run_id_pipe(new_project: Project) -> None:
    """What is no file, such as a pipe, is written to, and stays."""
    import threading

    pipe = new_project.root / "pipe"
    os.mkfifo(pipe)
    found: list[str] = []

    def read() -> None:
        while not found:
            found.extend(filter(None, [pipe.read_text()]))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    ran = new_project.run(THREADED.replace("THREAD", ""), run_id_file=pipe, isolation="inline")
    reader.join(10)
    assert found == [ran.run_id]
    assert pipe.is_fifo()


@pytest.mark.parametrize("tag", ["", "a\nb", "x" * 200])
def test_refused_tags(new_project: Project, tag: str) -> None:
    """A tag that breaks the grammar is refused before there is a run."""
    from mlp_core.errors import UsageError

    with pytest.raises(UsageError, match="tag"):
        new_project.run(THREADED.replace("THREAD", ""), tags=(tag,))
    assert not (new_project.root / ".mlp/flows").exists()


@pytest.mark.parametrize("way", ["fork", "spawn", "inline"])
def test_output_is_complete(project: Project, way: Isolation) -> None:
    """Much output, output without a line's end, and output that is no text are kept to the last byte."""
    code = """
    import subprocess

    class Flow(FlowSpec):
        @step(start=True, end=True)
        def only(self):
            for number in range(20_000):
                print("line", number)
            print("to stderr", file=sys.stderr)
            if WAY != "inline":
                sys.stdout.flush()
                subprocess.run(["echo", "from a child"], check=True)
                os.write(1, b"\\xff no text\\n")
            sys.stdout.write("z" * 300_000)
    """
    ran = project.run(code.replace("WAY", repr(way)), isolation=way)
    assert ran.status == "succeeded", ran.state.ended
    from mlp_core.store.logs import read_logs

    run = ran.state.context
    chunks = list(read_logs(ran.session.open_store(create=False).objects, run.flow, run.run_id, ["only/0/0"]))
    out = b"".join(chunk.data for chunk in chunks if chunk.stream == "stdout")
    lines = b"".join(b"line %d\n" % number for number in range(20_000))
    assert out == lines + (b"" if way == "inline" else b"from a child\n\xff no text\n") + 300_000 * b"z"
    assert b"".join(chunk.data for chunk in chunks if chunk.stream == "stderr") == b"to stderr\n"


@pytest.mark.slow
def test_a_wide_foreach(project: Project) -> None:
    """A foreach over a thousand items comes to its end in order, with large artifacts in every branch."""
    code = """
    class Flow(FlowSpec):
        @step
        def start(self):
            self.items = list(range(1000))
            self.next(self.work, foreach="items")

        @step
        def work(self):
            self.x = self.input
            self.text = "t" * 3000
            self.next(self.join)

        @step
        def join(self, inputs):
            self.xs = [branch.x for branch in inputs]
            self.next(self.end)

        @step
        def end(self):
            pass
    """
    ran = project.run(code, max_workers=8, with_options=("resources:cpu=0.1",))
    assert ran.value("xs") == list(range(1000))
