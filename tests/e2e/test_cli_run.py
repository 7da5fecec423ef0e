"""The commands that check, run and resume flows, as a user types them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Processes, Project

CLI = ("-m", "mlp_core.cli")
MLP = Path(sys.executable).with_name("mlp")

FLOW = '''
class Flow(FlowSpec):
    """Squares numbers."""

    count = Parameter("count", default=3, help="how many, 100% sure")
    learning_rate = Parameter("learning-rate", default=0.1)
    loud = Parameter("loud", default=False)
    fail = Parameter("fail", default=-1)
    mode = Parameter("mode", type=Literal["a", "b"], default="a")
    quiet_mode = Parameter("username", default="nobody")

    @step
    def start(self):
        """Make the numbers."""
        self.numbers = list(range(self.count))
        print("rate", self.learning_rate, "loud", self.loud, "mode", self.mode, "name", self.quiet_mode)
        self.next(self.square, foreach="numbers")

    @step
    def square(self):
        self.result = self.input**2
        if self.input == self.fail and not os.path.exists("mended"):
            raise ValueError(f"cannot square {self.input}")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.results = [branch.result for branch in inputs]
        self.next(self.end)

    @step
    def end(self):
        print(self.results)
'''


@pytest.fixture(scope="module", autouse=True)
def flow(project: Project) -> Path:
    """The flow's file in the project, which has an empty store."""
    project.session().open_store(create=True)
    return project.write("from typing import Literal\n" + FLOW, "flow.py")


@pytest.mark.parametrize("start", [(*CLI, "run", "flow.py"), ("flow.py", "run")], ids=["mlp", "file"])
def test_a_flow_runs_from_the_command_line(project: Project, start: tuple[str, ...]) -> None:
    """Both ways run the flow, print a line for each event, and end with status 0."""
    done = project.command(*start, "--count", "2", "--learning_rate=-0.5", "--loud", "--mode", "b", "--tag", "nice")
    assert (done.returncode, done.stderr) == (0, "")
    assert "[start/0] rate -0.5 loud True mode b name nobody" in done.stdout
    assert "square/1 done in" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("(5 tasks)")
    run = project.read()
    assert run.status == "succeeded"
    assert run.value("results") == [0, 1]
    assert run.state.tags == ("nice",)


def test_parameters_can_be_given_by_name(project: Project) -> None:
    """--param gives any parameter, also one whose option means something else."""
    done = project.command(*CLI, "run", "flow.py", "--param", "count=1", "--param", "username=me=you", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    run = project.read()
    assert run.value("results") == [0]
    assert run.value("quiet_mode") == "me=you"


def test_options_may_stand_before_the_command(project: Project) -> None:
    """What Metaflow's users write before ``run`` is taken there too."""
    done = project.command("flow.py", "--with", "retry:times=1,minutes_between_retries=0", "run", "--count=1")
    assert done.returncode == 0, done.stderr
    assert project.read().state.began.steps[0].plan.retry is not None


def test_json_lines_are_for_programs(project: Project) -> None:
    """With --json each line is an event, and nothing else is printed."""
    done = project.command(*CLI, "run", "flow.py", "--json", "--count", "1", "--run-id-file", "id.txt")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0]["event"] == "run_started"
    assert events[0]["run_id"] == (project.root / "id.txt").read_text()
    assert events[-1]["event"] == "run_finished"
    assert events[-1]["status"] == "succeeded"


def test_a_failed_run_tells_why_and_resumes(project: Project) -> None:
    """The user's traceback is shown without our frames, with what to do next; the resumed run reuses what succeeded."""
    failed = project.command(*CLI, "run", "flow.py", "--fail", "1")
    assert failed.returncode == 1
    run = project.read()
    assert f"error: run Flow/{run.run_id} failed: " in failed.stderr
    assert 'flow.py", line ' in failed.stderr
    assert "ValueError: cannot square 1" in failed.stderr
    assert "mlp_core" not in failed.stderr
    assert f"hint: its log: mlp logs Flow/{run.run_id}/square/1" in failed.stderr
    assert "hint: once mended, go on from there: mlp resume flow.py" in failed.stderr
    (project.root / "mended").touch()
    try:
        resumed = project.command(*CLI, "resume", "flow.py")
    finally:
        (project.root / "mended").unlink()
    assert resumed.returncode == 0, resumed.stderr
    assert f"started, resuming {run.run_id}" in resumed.stdout
    assert f"square/0 reused from Flow/{run.run_id}/square/0" in resumed.stdout
    assert "square/1 started" in resumed.stdout
    assert project.read().value("results") == [0, 1, 4]
    again = project.command(*CLI, "resume", "flow.py", "join", "--origin-run-id", f"Flow/{project.read().run_id}")
    assert again.returncode == 0, again.stderr
    assert "square/1 reused" in again.stdout
    assert "join/0 started" in again.stdout


def test_quiet_shows_failures_only(project: Project) -> None:
    """With --quiet a failed run still says why."""
    done = project.command("flow.py", "run", "-q", "--fail", "0")
    assert (done.returncode, done.stdout) == (1, "")
    assert "ValueError: cannot square 0" in done.stderr
    assert "hint: once mended, go on from there: python flow.py resume" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run",), "no flow is given"),
        (("run", "nowhere.py"), "there is no file 'nowhere.py'"),
        (("run", "--count", "3", "flow.py"), "unknown option --count"),
        (("run", "flow.py", "--cuont", "3"), "did you mean --count?"),
        (("run", "flow.py", "--count", "many"), "parameter 'count'"),
        (("run", "flow.py", "--count"), "option --count needs a value"),
        (("run", "flow.py", "--mode", "c"), "parameter 'mode'"),
        (("run", "flow.py", "--param", "count"), "--param 'count' is refused"),
        (("run", "flow.py", "--param", "cuont=1"), "did you mean 'count'?"),
        (("run", "flow.py", "--count", "1", "--param", "count=2"), "parameter count is given twice"),
        (("run", "flow.py", "--username", "x"), "give the parameter by --param username=VALUE"),
        (("run", "flow.py", "--max-workers", "0"), "--max-workers"),
        (("run", "flow.py", "--with", "nothing"), "nothing"),
        (("run", "flow.py", "--with", "retry:tims=1"), "did you mean 'times'?"),
        (("run", "flow.py", "--launcher", "moon"), "moon"),
        (("run", "flow.py", "--isolation", "none"), "--isolation"),
        (("run", "flow.py", "--tag", "two\nlines"), "tag"),
        (("run", "flow.py", "--flow", "Other"), "there is no flow 'Other'"),
        (("run", "flow.py", "extra"), "unrecognized arguments: extra"),
        (("run", "flow.py", "--store", "moon://x"), "moon"),
        (("resume", "flow.py", "nothing"), "nothing"),
        (("resume", "flow.py", "--count", "3"), "unknown option --count"),
        (("resume", "flow.py", "--origin-run-id", "20000101-000000-000000"), "no run '20000101-000000-000000'"),
        (("resume", "flow.py", "--origin-run-id", "Other/20000101-000000-000000"), "is not one of Flow"),
        (("rnu", "flow.py"), "did you mean run?"),
        (("flow.py",), "to run a flow: mlp run flow.py"),
        (("--frob",), "unknown option --frob"),
        (("--frob", "run", "flow.py"), "options come after the command"),
    ],
)
def test_what_is_refused_starts_nothing(project: Project, words: tuple[str, ...], message: str) -> None:
    """Bad input ends with status 2 and one message, without a traceback and without a run."""
    before = project.runs()
    done = project.command(*CLI, *words)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert project.runs() == before


def test_mistakes_are_found_before_anything_runs(new_project: Project) -> None:
    """A check lists every mistake with its line, as text and as JSON; a right flow has none."""
    code = "class Flow(FlowSpec):\n    @step\n    def start(self):\n        self.next(self.midle)\n"
    code += "\n    @step\n    def middle(self):\n        pass\n\n    @step\n    def end(self):\n        pass\n"
    new_project.write(code, "flow.py")
    done = new_project.command(*CLI, "check", "flow.py")
    assert done.returncode == 2
    assert done.stderr.startswith("flow.py:7: step 'start' goes to 'midle'")
    assert "did you mean" in done.stderr
    assert "error: the flow has" in done.stderr
    told = new_project.command(*CLI, "check", "flow.py", "--json")
    assert told.returncode == 2
    errors = json.loads(told.stdout)["errors"]
    assert {error["line"] for error in errors} >= {7}
    assert new_project.command(*CLI, "run", "flow.py").returncode == 2
    assert not (new_project.root / ".mlp" / "flows").exists()
    new_project.write(FLOW.replace("Literal", "__import__('typing').Literal"), "flow.py")
    right = new_project.command(*CLI, "check", "flow.py")
    assert (right.returncode, right.stdout) == (0, "Flow: no mistakes found in 4 steps\n")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\n", "no flow"),
        ("import nothing_that_exists\n", "No module named 'nothing_that_exists'"),
        ("def f(:\n", "flow.py:"),
        ("raise SystemExit(3)\n", "SystemExit"),
        ("class A(FlowSpec):\n    pass\nclass B(FlowSpec):\n    pass\n", "choose one with --flow NAME"),
    ],
)
def test_a_file_without_a_flow_is_refused(new_project: Project, code: str, message: str) -> None:
    """A file that cannot be imported shows the user's own lines; one without or with several flows says so."""
    new_project.write(code + "# __main__", "flow.py")
    done = new_project.command(*CLI, "run", "flow.py")
    assert done.returncode == 2
    assert message in done.stderr
    assert "mlp_core" not in done.stderr


def test_help_is_there_at_every_level(project: Project) -> None:
    """Help lists commands, options, parameters and settings, and ends with status 0."""
    for words in ((), ("--help",), ("help",)):
        assert "Run a flow." in project.command(*CLI, *words).stdout
    run = project.command(*CLI, "run", "flow.py", "--help").stdout
    for text in ("--count int", "how many, 100% sure; default 3", "--learning-rate", "one of a, b", "--max-workers"):
        assert text in run
    assert "--plugins-deny" in project.command(*CLI, "run", "--help").stdout
    assert project.command(*CLI, "help", "list").stdout == project.command(*CLI, "list", "--help").stdout
    assert "python flow.py run --help" in project.command("flow.py").stdout
    assert project.command(*CLI, "--version").stdout.startswith("mlp 0.")
    refused = project.command("flow.py", "list")
    assert (refused.returncode, "write mlp list" in refused.stderr) == (2, True)


def test_show_tells_what_a_flow_does(project: Project) -> None:
    """Steps, what they do, where they go, and the parameters are shown, as text and as JSON."""
    for words in ((*CLI, "show", "flow.py"), ("flow.py", "show")):
        shown = project.command(*words).stdout
        for text in ("Squares numbers.", "square, for each of numbers", "Make the numbers.", "--learning-rate"):
            assert text in shown
        data = json.loads(project.command(*words, "--json").stdout)
        assert [step["name"] for step in data["steps"]] == ["start", "square", "join", "end"]
        assert data["parameters"][0]["help"] == "how many, 100% sure"


def test_an_interrupt_ends_the_run_cleanly(new_project: Project, processes: Processes) -> None:
    """SIGINT ends with status 130 and a message, leaves a cancelled run and no process."""
    new_project.write(
        """
        class Flow(FlowSpec):
            @step
            def start(self):
                print("began", flush=True)
                time.sleep(60)
                self.next(self.end)

            @step
            def end(self):
                pass
        """,
        "flow.py",
    )
    with new_project.start(*CLI, "run", "flow.py", mark=processes.mark) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "began" in line:
                break
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130, (out, err)
    assert "cancelled" in err
    assert "Traceback" not in err
    assert new_project.read().status == "cancelled"
    processes.wait_until_gone(5)


def test_a_closed_pipe_is_no_error(project: Project) -> None:
    """When nobody reads the output any more, the command ends without a word."""
    process = subprocess.Popen(
        [sys.executable, *CLI, "logs", "Flow"],
        cwd=project.root,
        env={**os.environ, "MLP_NO_PLUGINS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["plain", "json"])
def test_a_run_goes_on_without_its_reader(project: Project, options: tuple[str, ...]) -> None:
    """A run whose output nobody reads any more goes on to its end."""
    process = project.start(*CLI, "run", "flow.py", *options)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 0
    assert project.read().status == "succeeded"


def test_the_installed_command_is_the_same(project: Project) -> None:
    """``mlp`` is what ``python -m mlp_core.cli`` is."""
    done = subprocess.run([MLP, "check", "flow.py"], cwd=project.root, capture_output=True, text=True, check=True)
    assert "no mistakes found" in done.stdout


def test_help_needs_no_plugin_and_little_else() -> None:
    """``mlp --help`` imports none of what runs or reads flows."""
    code = "import sys; from mlp_core.cli import main; main(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1]
    for name in (
        "attr",
        "pluggy",
        "mlp_hookspecs",
        "asyncio",
        "sqlite3",
        "rich",
        "mlp_core.session",
        "importlib.metadata",
    ):
        assert f"'{name}'" not in loaded
