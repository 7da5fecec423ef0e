"""What installed plugins see and do while flows run: observers, wraps, options, and workers that differ."""

from __future__ import annotations

import json
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from mlp_core.errors import PluginError, UsageError
from mlp_core.loading import load_flow
from mlp_core.runner import RunOptions, SilentProgress, observing, run_flow
from mlp_core.session import Session
from mlp_hookspecs import PluginWarning

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Isolation, Processes, Project, Ran

WRITER = """
import json

@hookimpl
def mlp_event(event, settings):
    facts = {"event": type(event).__name__, "id": event.id, "sequence": event.sequence}
    for name in ("key", "name", "status", "will_retry", "origin"):
        value = getattr(event, name, None)
        facts[name] = getattr(value, "path", value)
    with open("events", "a") as file:
        file.write(json.dumps(facts) + "\\n")
"""


class Plugins:
    """Throw-away plugins on the path of a project's runs."""

    def __init__(self, project: Project, site: Path) -> None:
        self.project = project
        self.site = site

    def install(self, name: str, code: str, version: str = "1.0") -> None:
        """Install a distribution with one plugin."""
        header = "import os, sys, time\nfrom mlp_hookspecs import *\nfrom mlp_hookspecs import hookimpl\n"
        (self.site / f"throwaway_{name}.py").write_text(header + textwrap.dedent(code))
        info = self.site / f"mlp_plugin_{name}-{version}.dist-info"
        info.mkdir()
        (info / "entry_points.txt").write_text(f"[mlp]\n{name} = throwaway_{name}\n")
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: mlp-plugin-{name}\nVersion: {version}\n"
            "Requires-Dist: mlp-hookspecs>=0.3,<0.4\n"
        )

    def flags(self) -> dict[str, object]:
        """Return settings that load these plugins and no others."""
        names = [folder.name.split("-")[0].removeprefix("mlp_plugin_") for folder in self.site.glob("*.dist-info")]
        return {"plugins.safe": False, "plugins.allow": names}

    def run(self, code: str, **options: Any) -> Ran:
        """Run a flow with the plugins."""
        return self.project.run(code, flags=self.flags(), **options)

    def events(self, file: str = "events") -> list[dict[str, Any]]:
        """Return what the writing observer was told."""
        path = self.project.root / file
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def plugins(new_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plugins]:
    """A folder for plugins, on the path of this process for as long as the test runs."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    yield Plugins(new_project, site)
    for name in [name for name in sys.modules if name.startswith("throwaway_")]:
        del sys.modules[name]


FLOW = """
class Flow(FlowSpec):
    @step
    def start(self):
        self.x = 1
        self.items = [0, 1]
        self.next(self.work, foreach="items")

    @retry(times=1, minutes_between_retries=0)
    @step
    def work(self):
        self.y = self.input
        if current.retry_count == 0 and self.input == 1:
            raise ValueError("once")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def test_observers_get_every_event_in_order(plugins: Plugins) -> None:
    """An observer is told of everything that was recorded, once, in the order of the records."""
    plugins.install("writer", WRITER)
    ran = plugins.run(FLOW)
    assert ran.status == "succeeded"
    events = plugins.events()
    assert [event["sequence"] for event in events] == sorted(event["sequence"] for event in events)
    assert len({event["id"] for event in events}) == len(events)
    kinds = [(event["event"], event["key"]) for event in events]
    assert kinds[0] == ("RunStarted", None)
    assert kinds[1] == ("TaskStarted", "start/0")
    assert kinds[-1] == ("RunFinished", None)
    assert events[-1]["status"] == "succeeded"
    assert kinds.count(("TaskStarted", "work/1")) == 2
    ends = [(event["status"], event["will_retry"]) for event in events if event["event"] == "TaskFinished"]
    assert sorted(ends) == [("failed", True), *5 * [("succeeded", False)]]
    persisted = {(event["key"], event["name"]) for event in events if event["event"] == "ArtifactPersisted"}
    assert {("start/0", "x"), ("work/0", "y"), ("work/1", "y")} <= persisted
    assert not ran.state.observer_failures

    plugins.run(FLOW, origin=ran.state)
    reused = [event["origin"] for event in plugins.events() if event["event"] == "TaskReused"]
    assert f"Flow/{ran.run_id}/join/0" in reused


BAD = {
    "raises": "raise ValueError('I cannot')",
    "exits": "os._exit(3)",
    "leaves": "sys.exit(4)",
    "dies": "os.kill(os.getpid(), 11)",
    "hangs": "time.sleep(600)",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_observer_harms_nobody(
    plugins: Plugins, processes: Processes, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever an observer does, the run succeeds, other observers are told of everything, and it is recorded."""
    monkeypatch.setattr(observing, "CALL_SECONDS", 0.7)
    monkeypatch.setenv("MLP_TEST_MARK", processes.mark)
    code = f"""
    @hookimpl
    def mlp_event(event, settings):
        if type(event).__name__ == "TaskStarted":
            {BAD[kind]}
    """
    # One before and one after the writer, by name: neither may take its events away.
    plugins.install("early", code)
    plugins.install("zlate", code)
    plugins.install("writer", WRITER)
    ran = plugins.run(FLOW)
    assert ran.status == "succeeded"
    assert {failure.plugin.name for failure in ran.state.observer_failures} == {"early", "zlate"}
    for failure in ran.state.observer_failures:
        assert "TaskStarted" in failure.event
        assert f"plugin {failure.plugin.name} (mlp-plugin-{failure.plugin.name} 1.0)" in failure.message
    last = max(ran.state.observer_failures, key=lambda failure: failure.time)
    assert "nothing more of this run" in last.message
    events = plugins.events()
    first = list({event["id"]: event["sequence"] for event in events}.values())
    assert first == sorted(first)
    kinds = [event["event"] for event in events]
    assert kinds[-1] == "RunFinished"
    assert len({event["id"] for event in events if event["event"] == "TaskFinished"}) == 6
    processes.wait_until_gone(1)


def test_an_observer_that_is_not_done(
    plugins: Plugins, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Observers that take too long over what is left are stopped, and that is recorded."""
    monkeypatch.setattr(observing, "GRACE_SECONDS", 0.5)
    plugins.install(
        "slow",
        """
        @hookimpl
        def mlp_event(event, settings):
            time.sleep(0.4)
        """,
    )
    ran = plugins.run(FLOW)
    assert ran.status == "succeeded"
    assert "the observers were not done 0.5 s after the run's end" in capsys.readouterr().err
    assert any("were stopped" in failure.message for failure in ran.state.observer_failures)


WRAPS = """
import contextlib

def hold(step, name):
    @contextlib.contextmanager
    def context():
        print("enter", name)
        try:
            yield
        except BaseException as error:
            print("saw", name, type(error).__name__)
            raise
        finally:
            print("leave", name)
    return context()
"""


def wrap(name: str, priority: int, body: str = "") -> str:
    """Return a plugin whose wrap has a name and a priority."""
    text = textwrap.dedent(body) or f"return Wrap({priority}, {name!r}, hold(step, {name!r}))"
    return f"{WRAPS}\n@hookimpl\ndef mlp_wrap_step(step):\n{textwrap.indent(text, '    ')}\n"


WRAPPED = """
class Flow(FlowSpec):
    kind = Parameter("kind", default="")

    @step
    def start(self):
        print("body", current.get("color", "none"), current.step_name)
        if self.kind == "fail":
            raise ValueError("the step's")
        if self.kind == "interrupt":
            print("waiting")
            time.sleep(60)
        self.x = 1
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def test_wraps_are_entered_by_priority(plugins: Plugins, isolation: Isolation) -> None:
    """Wraps enclose the step's body by priority, then name, and are left in reverse."""
    plugins.install("b", wrap("b", 10))
    plugins.install("a", wrap("a", 20))
    plugins.install("c", wrap("c", 10))
    plugins.install("none", wrap("none", 0, "return None"))
    ran = plugins.run(WRAPPED, isolation=isolation)
    assert ran.status == "succeeded", ran.state.ended
    expected = ["enter b", "enter c", "enter a", "body none start", "leave a", "leave c", "leave b"]
    assert ran.log("start").splitlines() == expected


def test_wraps_see_the_step_fail(plugins: Plugins) -> None:
    """A wrap sees what the step raises, and cannot swallow it."""
    plugins.install("a", wrap("a", 1))
    plugins.install("swallow", wrap("swallow", 2, "return Wrap(2, 'swallow', contextlib.suppress(BaseException))"))
    ran = plugins.run(WRAPPED, parameters={"kind": "fail"}, isolation="inline")
    assert ran.status == "failed"
    assert (ran.failure("start").kind, ran.failure("start").message) == ("exception", "ValueError: the step's")
    assert "throwaway" not in ran.failure("start").traceback
    lines = ran.log("start").splitlines()
    assert [line for line in lines if line.split()[0] in ("enter", "saw", "leave")] == [
        "enter a",
        "saw a ValueError",
        "leave a",
    ]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise KeyError('hook')", "in mlp_wrap_step"),
        ("return 5", "returned 5 instead of Wrap"),
        (
            """
            @contextlib.contextmanager
            def bad():
                raise OSError("entering")
                yield
            return Wrap(1, "bad", bad())
            """,
            "raised OSError: entering",
        ),
        (
            """
            @contextlib.contextmanager
            def bad():
                yield
                raise OSError("leaving")
            return Wrap(1, "bad", bad())
            """,
            "raised OSError: leaving",
        ),
    ],
)
def test_a_failing_wrap_is_blamed(plugins: Plugins, body: str, message: str) -> None:
    """A wrap that fails, fails the attempt, with its plugin's name; what it encloses and what encloses it is left."""
    plugins.install("bad", wrap("bad", 1, body))
    plugins.install("outer", wrap("outer", 0))
    ran = plugins.run(WRAPPED, isolation="fork")
    assert ran.status == "failed"
    failure = ran.failure("start")
    assert failure.kind == "plugin"
    assert "plugin bad (mlp-plugin-bad 1.0)" in failure.message
    assert message in failure.message
    log = ran.log("start")
    assert log.count("enter outer") == log.count("leave outer")


def test_wraps_add_to_current_and_attach(plugins: Plugins) -> None:
    """A wrap adds attributes to `current`, and stores reports with the attempt; live ones until one is final."""
    plugins.install(
        "reporter",
        wrap(
            "reporter",
            1,
            """
            step.set_current("color", f"blue {step.key.path} {step.attempt} {step.graph.flow} {len(step.options)}")
            step.attach("card", "main", b"first", live=True)
            step.attach("card", "main", b"second", live=True)
            step.attach("trace", "t", b"once")
            step.attach("table", "rows", b"growing", live=True)
            step.attach("table", "rows", b"final")
            for kind, name, live in (("trace", "t", False), ("trace", "t", True), ("table", "rows", True)):
                try:
                    step.attach(kind, name, b"twice", live=live)
                except ValueError as error:
                    print(error)
            return None
            """,
        ),
    )
    ran = plugins.run(WRAPPED)
    assert ran.status == "succeeded", ran.state.ended
    assert "body blue start/0 0 Flow 0 start" in ran.log("start")
    log = ran.log("start")
    assert log.count("there is already a trace named 't'; only live ones can be replaced") == 2
    assert "there is already a table named 'rows'; only live ones can be replaced" in log
    attached = {(a.kind, a.name): a.content for a in ran.outcome("start").attachments}
    values = ran.session.values(ran.session.open_store(create=False))
    assert {place: values.get(ref) for place, ref in attached.items()} == {
        ("card", "main"): b"second",
        ("trace", "t"): b"once",
        ("table", "rows"): b"final",
    }


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_a_worker_with_other_plugins_is_refused(plugins: Plugins, way: Isolation, tmp_path: Path) -> None:
    """A worker whose plugins are not the driver's runs nothing, and lists every difference."""
    plugins.install("same", wrap("same", 1))
    plugins.install("drifts", wrap("drifts", 1))
    plugins.install("goes", wrap("goes", 1))
    code = f"""
    import pathlib
    site = pathlib.Path({str(plugins.site)!r})
    if (site / "mlp_plugin_goes-1.0.dist-info").exists():
        (site / "mlp_plugin_goes-1.0.dist-info").rename({str(tmp_path / "gone")!r})
        drifts = (site / "mlp_plugin_drifts-1.0.dist-info").rename(site / "mlp_plugin_drifts-2.0.dist-info")
        meta = drifts / "METADATA"
        meta.write_text(meta.read_text().replace("Version: 1.0", "Version: 2.0"))
    """
    session = Session.open(start=plugins.project.root, flags={"local.isolation": way, **plugins.flags()})
    flow = load_flow(plugins.project.write(WRAPPED), "Flow")
    exec(textwrap.dedent(code), {})  # noqa: S102 # the drift, between the driver's start and the worker's
    result = run_flow(flow, session, RunOptions(), SilentProgress())
    assert result.status == "failed"
    (failure,) = result.failures
    assert failure.failure.kind == "plugin"
    message = failure.failure.message
    assert "the worker's plugins are not the driver's" in message
    assert "goes (mlp-plugin-goes 1.0) is not installed" in message
    assert "drifts (mlp-plugin-drifts 1.0) is mlp-plugin-drifts 2.0" in message
    assert "same" not in message.partition("pip install")[0]
    assert "pip install" in message


def test_options_of_plugins(plugins: Plugins) -> None:
    """An option of a plugin plans a step, travels to the worker with it, and comes by ``--with`` as well."""
    plugins.install(
        "tint",
        """
        import attrs, contextlib

        @attrs.frozen
        class Tint(Option):
            name = "tint"
            color: str = "red"

        @hookimpl
        def mlp_options():
            return (Tint,)

        @hookimpl
        def mlp_plan_step(step, options):
            for option in options:
                if isinstance(option, Tint):
                    return StepPlan(variables={"TINT": option.color})

        tint = decorator(Tint)
        """,
    )
    code = """
    from throwaway_tint import tint

    class Flow(FlowSpec):
        @tint(color="green")
        @step
        def start(self):
            self.start_tint = os.environ.get("TINT")
            self.next(self.end)

        @step
        def end(self):
            self.end_tint = os.environ.get("TINT")
    """
    ran = plugins.run(code, with_options=("tint:color=blue",))
    assert ran.status == "succeeded", ran.state.ended
    assert (ran.value("start_tint"), ran.value("end_tint")) == ("green", "blue")
    planned = {step.node.name: step.options for step in ran.state.began.steps}
    assert planned["start"] == {"tint": {"color": "green"}}
    assert [str(plugin) for plugin in ran.state.began.plugins if plugin.name == "tint"] == [
        "tint (mlp-plugin-tint 1.0)"
    ]


def test_a_launcher_that_fails_to_open(plugins: Plugins) -> None:
    """A launcher that cannot be reached is told, with its plugin, before there is a run."""
    plugins.install(
        "far",
        """
        @hookimpl
        def mlp_backends():
            return (Backend("launcher", "far", "Far away."),)

        @hookimpl
        def mlp_open_launcher(name, settings, sink):
            raise ConnectionError("nobody answers")

        @hookimpl
        def mlp_launch_step(requests, launcher):
            return True
        """,
    )
    with pytest.raises(UsageError, match="nobody answers") as caught:
        plugins.run(WRAPPED, launcher="far")
    assert "plugin far" in "".join(getattr(caught.value, "__notes__", ())) + str(caught.value)
    assert not (plugins.project.root / ".mlp/flows").exists() or plugins.project.runs() == []


ODD = """
import contextlib

class Odd(contextlib.AbstractContextManager):
    def __init__(self, sink):
        self.sink, self.count = sink, 0
    def __exit__(self, *_):
        return None
    def capacity(self):
        return None
    def cancel(self, ids, grace):
        for attempt_id in ids:
            self.sink.lost(attempt_id, Failure("killed", "all at once"))
        raise RuntimeError("but it was not easy")
    def reattach(self, ids):
        return ()

@hookimpl
def mlp_backends():
    return (Backend("launcher", "odd", "Odd."),)

@hookimpl
def mlp_open_launcher(name, settings, sink):
    return Odd(sink)
"""


def test_a_launcher_that_loses_its_mind(plugins: Plugins) -> None:
    """What a launcher tells twice counts once, what it refuses is a failed attempt, and its name is in the message."""
    plugins.install(
        "odd",
        ODD
        + textwrap.dedent("""
        @hookimpl
        def mlp_launch_step(requests, launcher):
            launcher.count += 1
            if launcher.count == 1:
                for request in requests:
                    launcher.sink.lost(request.id, Failure("system", "first"))
                raise OSError("and then some")
            for request in requests:
                launcher.sink.lost("nobody/0/0", Failure("system", "unknown"))
                launcher.sink.lost(request.id, Failure("system", "second"))
                launcher.sink.finished(request.id, StepOutcome("succeeded"))
            return True
        """),
    )
    ran = plugins.run(WRAPPED, launcher="odd", with_options=("retry:times=1,minutes_between_retries=0",))
    assert ran.status == "failed"
    messages = [attempt.outcome.failure.message for attempt in ran.state.tasks[ran.key("start")].attempts]
    assert messages == ["first", "second"]


SPLIT = """
class Flow(FlowSpec):
    @step
    def start(self):
        self.next(self.a, self.b)

    @retry(times=1, minutes_between_retries=0)
    @step
    def a(self):
        self.next(self.join)

    @step
    def b(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def test_a_final_failure_stops_the_retries_of_its_turn(plugins: Plugins) -> None:
    """Of failures that arrive together one that is final lets no other task be tried again; all are reported."""
    plugins.install(
        "odd",
        ODD
        + textwrap.dedent("""
        @hookimpl
        def mlp_launch_step(requests, launcher):
            for request in requests:
                launcher.sink.lost("a/0/1", Failure("system", "not started yet"))
                if request.step.key.step == "start":
                    launcher.sink.finished(request.id, StepOutcome("succeeded", transition=Transition(("a", "b"))))
                else:
                    launcher.sink.lost(request.id, Failure("system", request.id))
            return True
        """),
    )
    ran = plugins.run(SPLIT, launcher="odd")
    assert ran.status == "failed"
    assert ran.result is not None
    assert [failure.failure.message for failure in ran.result.failures] == ["a/0/0", "b/0/0"]
    (attempt,) = ran.state.tasks[ran.key("a")].attempts
    assert not attempt.will_retry


@pytest.mark.parametrize("place", ["__enter__", "capacity"])
def test_a_launcher_that_raises_at_the_start(plugins: Plugins, place: str) -> None:
    """A launcher that raises before the first task is blamed, and there is no run."""
    launch = "@hookimpl\ndef mlp_launch_step(requests, launcher):\n    return True\n"
    broken = f"def broken(self):\n    raise KeyError('no')\nOdd.{place} = broken\n"
    plugins.install("odd", ODD + launch + broken)
    with pytest.raises(PluginError, match=r"plugin odd \(mlp-plugin-odd 1.0\) raised KeyError: 'no'"):
        plugins.run(WRAPPED, launcher="odd")
    assert not (plugins.project.root / ".mlp/flows").exists()


def test_a_launcher_that_does_not_close(plugins: Plugins) -> None:
    """A launcher that raises when it is left costs a warning, not the run."""
    plugins.install(
        "odd",
        ODD
        + textwrap.dedent("""
        def broken(self, *error):
            raise KeyError("still here")

        Odd.__exit__ = broken

        @hookimpl
        def mlp_launch_step(requests, launcher):
            for request in requests:
                outcome = StepOutcome("succeeded", transition=Transition(request.step.node.next))
                launcher.sink.finished(request.id, outcome)
            return True
        """),
    )
    with pytest.warns(PluginWarning, match=r"launcher odd did not close: plugin odd .* raised KeyError: 'still here'"):
        ran = plugins.run(WRAPPED, launcher="odd")
    assert ran.status == "succeeded"


def test_a_launcher_that_fails_to_cancel(plugins: Plugins) -> None:
    """A launcher that raises when it is to end an attempt is blamed in a note, and the run comes to its end."""
    plugins.install(
        "odd",
        ODD
        + textwrap.dedent("""
        @hookimpl
        def mlp_launch_step(requests, launcher):
            for request in requests:
                launcher.sink.started(request.id, "far", 1)
            return True
        """),
    )
    ran = plugins.run(WRAPPED, launcher="odd", with_options=("timeout:seconds=1",))
    assert (ran.status, ran.failure("start").kind) == ("failed", "timeout")
    (note,) = [note.text for note in ran.state.notes if note.kind == "launcher"]
    assert note in ran.notes
    assert note.startswith("launcher odd could not end start/0/0: plugin odd (mlp-plugin-odd 1.0) raised RuntimeError")
    assert "but it was not easy" in note
