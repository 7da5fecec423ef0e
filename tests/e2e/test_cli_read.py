"""The commands that look at runs: list, show, logs, artifacts, tag, plugins."""

from __future__ import annotations

import json
import shlex
import time
from typing import TYPE_CHECKING, Any

import pytest

from mlp_core.client import client_for
from mlp_core.store import AttemptFinished, RunBegan, RunEnded
from mlp_hookspecs import Failure, FlowGraph, RunContext, StepNode, StepOutcome, TaskKey

if TYPE_CHECKING:
    import subprocess

    from conftest import Processes, Project, Ran

CLI = ("-m", "mlp_core.cli")

FLOW = """
class Flow(FlowSpec):
    scale = Parameter("scale", default=2)
    fail = Parameter("fail", default=False)

    @step
    def start(self):
        self.xs = ["a", "b"]
        print("out")
        print("err", file=sys.stderr)
        self.next(self.work, foreach="xs")

    @retry(times=1, minutes_between_retries=0)
    @step
    def work(self):
        self.y = self.input * self.scale
        print("try", current.retry_count, "of", self.input)
        if self.input == "b" and (self.fail or current.retry_count == 0):
            raise ValueError("not yet")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.ys = [branch.y for branch in inputs]
        self.next(self.end)

    @step
    def end(self):
        self.text = "line one" + chr(10) + "line two"
"""


@pytest.fixture(scope="module")
def good(project: Project) -> Ran:
    """A run that succeeded, after one attempt had failed."""
    return project.run(FLOW, tags=("nice", "blue"))


@pytest.fixture(scope="module")
def bad(project: Project, good: Ran) -> Ran:  # noqa: ARG001 # the newer one
    """A run that failed, and is the newest."""
    return project.run(FLOW, parameters={"fail": True})


def say(project: Project, *words: str, status: int = 0) -> str:
    """Return what a command prints."""
    done: subprocess.CompletedProcess[str] = project.command(*CLI, *words)
    assert done.returncode == status, done.stderr
    assert "Traceback (most recent call last)" not in done.stderr
    return done.stderr if status else done.stdout


def data(project: Project, *words: str) -> Any:
    """Return what a command prints as JSON."""
    return json.loads(say(project, *words, "--json"))


def place(ran: Ran) -> str:
    """Return a run's place."""
    return f"Flow/{ran.run_id}"


def test_list_shows_runs_newest_first(project: Project, good: Ran, bad: Ran) -> None:
    """A line a run with status, time and tags; the same as JSON."""
    header, first, second = say(project, "list").splitlines()
    assert header.split() == ["run", "status", "started", "took", "user", "tags"]
    assert first.startswith(f"{place(bad)}  failed")
    assert second.startswith(f"{place(good)}  succeeded")
    assert second.endswith("nice, blue")
    assert [run["run_id"] for run in data(project, "list", "Flow")] == [bad.run_id, good.run_id]


def test_list_filters(project: Project, good: Ran, bad: Ran) -> None:
    """Status, tags, times, namespace and number narrow the list down."""

    def found(*words: str) -> list[str]:
        return [run["run_id"] for run in data(project, "list", *words)]

    both = [bad.run_id, good.run_id]
    assert found("--status", "succeeded") == [good.run_id]
    assert found("--status", "succeeded", "--status", "failed") == both
    assert found("--tag", "nice", "--tag", "blue") == [good.run_id]
    assert found("--tag", "nice", "--tag", "red") == []
    assert found("--since", "1h") == both
    assert found("--until", "2020-01-31T09:45") == []
    assert found("--namespace", "user:nobody-of-that-name") == []
    assert found("--limit", "1") == [bad.run_id]
    assert "and older ones: mlp list" in say(project, "list", "--limit", "1")
    assert say(project, "list", "--tag", "red") == "no run matches\n"


def test_show_tells_a_run(project: Project, good: Ran, bad: Ran) -> None:
    """Parameters, steps and failures of a run, the newest where none is named, as text and as JSON."""
    shown = say(project, "show", "Flow")
    assert shown.startswith(f"{place(bad)}  failed after ")
    for text in ("scale", "2", "work   2", "1 succeeded, 1 failed", "failed: work/1: ", f"mlp logs {place(bad)}"):
        assert text in shown
    assert "nice" in say(project, "show", place(good))
    told = data(project, "show", place(bad))
    assert told["status"] == "failed"
    assert told["parameters"] == {"scale": "2", "fail": "true"}
    failed = next(task for task in told["tasks"] if task["task"] == "work/1")
    assert [attempt["status"] for attempt in failed["attempts"]] == ["failed", "failed"]
    assert failed["attempts"][0]["will_retry"]
    assert failed["attempts"][1]["failure"]["type"] == "ValueError"


def test_show_tells_a_step_and_a_task(project: Project, good: Ran, bad: Ran) -> None:
    """A step lists its tasks by position; a task has attempts, artifacts and the user's traceback."""
    lines = say(project, "show", f"{place(good)}/work").splitlines()
    assert [line.split()[:3] for line in lines[-2:]] == [["0", "succeeded", "1"], ["1", "succeeded", "2"]]
    shown = say(project, "show", f"{place(bad)}/work/1")
    for text in ("item 2 of 2 of xs in start", "exception: ", "ValueError: not yet", "local", "scale"):
        assert text in shown
    assert "mlp_core" not in shown
    assert data(project, "show", f"{place(good)}/work/1")["artifacts"][0]["format"] == "json"
    assert [task["task"] for task in data(project, "show", f"{place(good)}/work")] == ["work/0", "work/1"]


def test_logs_are_printed(project: Project, good: Ran) -> None:
    """All of a run with the task before each line, a task's own without, by stream and attempt."""
    lines = say(project, "logs", place(good)).splitlines()
    assert {"[start/0] out", "[start/0] err", "[work/0] try 0 of a", "[work/1 (attempt 2)] try 1 of b"} <= set(lines)
    task = f"{place(good)}/start/0"
    assert sorted(say(project, "logs", task).splitlines()) == ["err", "out"]
    assert say(project, "logs", task, "--stderr") == "err\n"
    assert say(project, "logs", task, "--stdout") == "out\n"
    assert say(project, "logs", f"{place(good)}/work/1", "--attempt", "1") == "try 1 of b\n"
    pieces = [json.loads(line) for line in say(project, "logs", f"{place(good)}/work", "--json").splitlines()]
    assert {piece["task"] for piece in pieces} == {"work/0", "work/1"}
    assert "".join(piece["text"] for piece in pieces if piece["task"] == "work/0") == "try 0 of a\n"


def test_damaged_logs_are_told(new_project: Project) -> None:
    """What of a log is damaged is passed over, and a warning says how much that is; the rest is printed."""
    ran = new_project.run(FLOW)
    log = new_project.root / ".mlp/flows" / place(ran) / "logs"
    content = log.read_bytes()
    log.write_bytes(content.replace(b"try 0 of a", b"lie 0 of a"))
    done = new_project.command(*CLI, "logs", place(ran))
    assert done.returncode == 0
    assert "[start/0] out" in done.stdout
    assert "of a" not in done.stdout
    assert "of the log are damaged and were passed over" in done.stderr
    assert "hint: mlp fsck" in done.stderr
    log.write_bytes(content)
    assert new_project.command(*CLI, "logs", place(ran)).stderr == ""


def test_a_lost_run_says_how_to_go_on(new_project: Project, processes: Processes) -> None:
    """Of a run whose driver was killed one line tells the command that resumes it, and the command does."""
    code = """
    class Flow(FlowSpec):
        @step
        def start(self):
            self.next(self.end)

        @step
        def end(self):
            if not os.path.exists("blocking"):
                with open("blocking", "w") as file:
                    file.write("now")
                time.sleep(600)
    """
    file = new_project.write(code, "my flows/flow.py")
    process = new_project.start(str(file), "run", mark=processes.mark)
    processes.wait_for((new_project.root / "blocking").exists, "the last step")
    process.kill()
    process.communicate()
    run_id = new_project.read().run_id
    (line,) = [line for line in say(new_project, "show", f"Flow/{run_id}").splitlines() if "driver is gone" in line]
    assert line == (f"its driver is gone; to go on from there: mlp resume 'my flows/flow.py' --origin-run-id {run_id}")
    words = shlex.split(line.partition("there: mlp ")[2])
    say(new_project, *words)
    resumed = new_project.read()
    assert (resumed.status, resumed.state.context.origin_run_id) == ("succeeded", run_id)


def test_artifacts_are_listed_and_printed(project: Project, good: Ran) -> None:
    """Of a run the last step's artifacts; of one artifact the value, as text and as JSON."""
    shown = say(project, "artifacts", place(good))
    assert f"{place(good)}/end/0" in shown
    assert [line.split()[0] for line in shown.splitlines()[2:]] == ["fail", "scale", "text", "ys"]
    assert say(project, "artifacts", f"{place(good)}/end/0/ys") == "['aa', 'bb']\n"
    assert say(project, "artifacts", f"{place(good)}/end/0/text") == "line one\nline two\n"
    assert say(project, "show", f"{place(good)}/end/0/text") == "line one\nline two\n"
    told = data(project, "artifacts", f"{place(good)}/end/0/ys")
    assert told["value"] == ["aa", "bb"]
    assert told["digest"].startswith("sha256-")
    assert list(data(project, "artifacts", f"{place(good)}/work")) == [f"{place(good)}/work/{n}" for n in (0, 1)]


def test_tags_are_edited(project: Project) -> None:
    """Adding, removing and replacing print the tags as they are then; a list has the system's too."""
    run = place(project.run(FLOW, tags=("old",)))
    assert say(project, "tag", "add", run, "b", "a") == f"{run}: a, b, old\n"
    assert say(project, "tag", "remove", run, "b") == f"{run}: a, old\n"
    assert say(project, "tag", "replace", run, "old", "new") == f"{run}: a, new\n"
    told = data(project, "tag", "list", run)
    assert told["tags"] == ["a", "new"]
    assert any(tag.startswith("user:") for tag in told["system_tags"])
    assert [found["run_id"] for found in data(project, "list", "--tag", "new")] == [run.partition("/")[2]]


def test_following_a_log_goes_on_until_the_run_ends(new_project: Project) -> None:
    """The lines of a run that goes on are printed as they come, and the command ends with the run."""
    new_project.write(
        """
        class Flow(FlowSpec):
            @step
            def start(self):
                for number in range(4):
                    print("tick", number, flush=True)
                    time.sleep(0.4)
                self.next(self.end)

            @step
            def end(self):
                print("over")
        """,
        "flow.py",
    )
    with new_project.start(*CLI, "run", "flow.py", "-q", "--run-id-file", "id") as process:
        told = new_project.root / "id"
        while process.poll() is None and not (told.exists() and told.read_text()):
            time.sleep(0.02)
        followed = say(new_project, "logs", f"Flow/{told.read_text()}", "--follow")
        assert process.wait() == 0
        process.communicate()
    assert followed.splitlines() == [*(f"[start/0] tick {number}" for number in range(4)), "[end/0] over"]


def test_plugins_are_shown(project: Project) -> None:
    """Each plugin with version, status and what it provides; settings with their sources."""
    shown = say(project, "plugins", "--settings", "--run-max-workers", "3")
    assert "launcher:local" in shown
    assert "run.max_workers" in shown
    assert "--run-max-workers" in shown
    told = data(project, "plugins")
    local = next(plugin for plugin in told["plugins"] if plugin["name"] == "local")
    assert (local["status"], local["distribution"], local["backends"]) == ("builtin", "mlp-core", ["launcher:local"])
    assert {"mlp_open_launcher", "mlp_launch_step"} <= set(local["hooks"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "Folw"), "did you mean Flow?"),
        (("show", "Flow/1"), "run id '1' is refused"),
        (("show", "Flow/20000101-000000-000000"), "the newest are"),
        (("show", "Flow/../x"), "is refused"),
        (("show", "nothing.py"), "there is no file"),
        (("logs", "RUN/wrok"), "did you mean work?"),
        (("logs", "RUN/work/9"), "it has 0, 1"),
        (("logs", "RUN/end/0/text"), "is an artifact"),
        (("artifacts", "RUN/end/0/txet"), "did you mean text?"),
        (("list", "--status", "sleeping"), "there are running, succeeded"),
        (("list", "--since", "tomorrow"), "is no time"),
        (("list", "Folw"), "did you mean Flow?"),
        (("list", "--limit", "many"), "invalid whole number value"),
        (("tag", "add", "RUN"), "which tags are to be added?"),
        (("tag", "replace", "RUN", "a"), "takes two tags"),
        (("tag", "list", "RUN", "a"), "takes no tags"),
        (("tag", "paint", "RUN"), "invalid choice"),
        (("tag", "add", "RUN/start", "a"), "only runs have tags"),
        (("tag", "add", "RUN", "x\ty"), "is refused"),
        (("list", "--store", "nowhere"), "there is no store"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(
    project: Project, good: Ran, words: tuple[str, ...], message: str
) -> None:
    """One message and status 2, with the nearest or the known names."""
    told = say(project, *(word.replace("RUN", place(good)) for word in words), status=2)
    assert message in told
    assert told.startswith("error: ")


def test_nothing_yet_says_how_to_begin(new_project: Project) -> None:
    """In a project without runs, the list says how to make one."""
    assert "mlp run" in say(new_project, "list", status=2) + say(new_project, "--help")


def hostile(project: Project) -> str:
    """Write a run whose texts are commands to a terminal, and return its place."""
    bad = "\x1b]0;owned\x07\x1b[2J\u202e"
    graph = FlowGraph("Evil", "start", "start", (StepNode("start", "end", doc=bad),), doc=bad)

    def make(run_id: str) -> RunBegan:
        run = RunContext("Evil", run_id, username=bad, tags=(f"tag{bad}",))
        texts = {"x": bad}
        return RunBegan(
            run, time.time(), bad, 1, graph, parameter_texts=texts, command=(bad,), metadata={"python": bad}
        )

    store = project.session().open_store(create=True)
    writer = store.create_run(make, time.time())
    failure = Failure("exception", bad, bad, bad)
    key = TaskKey("start")
    outcome = StepOutcome("failed", failure=failure, host=bad, started_at=1, finished_at=2)
    writer.write([AttemptFinished(key, 0, outcome, time=time.time()), RunEnded("failed", bad, time.time())])
    writer.log("start/0/0", "stdout", f"{bad}\n".encode(), 1)
    writer.log("../../etc/passwd", "stdout", b"x\n", 1)
    writer.log("not an id", "stdout", b"x\n", 1)
    writer.close()
    return f"Evil/{writer.began.run.run_id}"


def test_hostile_texts_are_shown_not_obeyed(new_project: Project) -> None:
    """What a terminal would obey in names, tags, messages and tracebacks of a store is printed escaped."""
    run = hostile(new_project)
    for words in (("list",), ("show", run), ("show", f"{run}/start"), ("show", f"{run}/start/0"), ("tag", "list", run)):
        shown = say(new_project, *words)
        assert "\x1b" not in shown
        assert "\x07" not in shown
        assert "\u202e" not in shown
        assert r"\x1b]0;owned" in shown
    # In a pipe a log is what was printed, byte for byte; and only attempts have one.
    assert say(new_project, "logs", run) == "[start/0] \x1b]0;owned\x07\x1b[2J\u202e\n"
    assert client_for(new_project.session()).namespace is not None
