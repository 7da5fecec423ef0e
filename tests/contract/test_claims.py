"""A named backend is answered by the plugin that owns the name, and by no other; what goes wrong is blamed on it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from mlp_core.errors import (
    OptionError,
    PluginError,
    PluginRefused,
    SettingError,
    StoreError,
    UnknownBackend,
    UsageError,
)
from mlp_hookspecs import (
    ArtifactRef,
    CodeRef,
    DeployRequest,
    EnvironmentLock,
    EnvironmentSpec,
    FlowGraph,
    FlowPlan,
    PluginId,
    PluginWarning,
    StepInfo,
    StepNode,
)
from mlp_hookspecs.events import RunStarted

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlp_core.hooks import Hooks
    from tests.contract.conftest import Lab

# A plugin with a backend of every kind. Each hook runs ANSWER, which a test replaces.
EVERYTHING = """
    import attrs, contextlib

    @attrs.frozen
    class Everything(Option):
        name = "every"

    def backends():
        return [Backend(kind, "every", "Everything.", types=("builtins.int",)) for kind in
                ("launcher", "environment", "format", "store", "target", "secret")]

    @hookimpl
    def mlp_backends():
        return backends()

    @hookimpl
    def mlp_options():
        return [Everything]

    @hookimpl
    def mlp_open_store(url): ANSWER

    @hookimpl
    def mlp_resolve_environment(platforms, spec): ANSWER

    @hookimpl
    def mlp_bundle_environment(lock, folder): ANSWER

    @hookimpl
    def mlp_provision_environment(lock): ANSWER

    @hookimpl
    def mlp_fetch_secret(reference): ANSWER

    @hookimpl
    def mlp_open_launcher(name, settings, sink): ANSWER

    @hookimpl
    def mlp_launch_step(requests, launcher): ANSWER

    @hookimpl
    def mlp_persist_artifact(value, target): ANSWER

    @hookimpl
    def mlp_load_artifact(ref, source): ANSWER

    @hookimpl
    def mlp_open_target(name, context): ANSWER

    @hookimpl
    def mlp_deploy(request, target): ANSWER
"""

LOCK = EnvironmentLock("every", "", "3")
REF = ArtifactRef("every", "sha256-0", 0, "builtins.int")
PLAN = FlowPlan(FlowGraph("F", "start", "end", ()), ())
REQUEST = DeployRequest("every", "name", 1, PLAN, CodeRef("m", "F"))
NODE = StepNode("start", "linear")

CALLS: dict[str, Callable[[Hooks], Any]] = {
    "mlp_open_store": lambda hooks: hooks.open_store("every://place"),
    "mlp_resolve_environment": lambda hooks: hooks.resolve_environment(EnvironmentSpec("every"), ["linux-64"]),
    "mlp_bundle_environment": lambda hooks: hooks.bundle_environment(LOCK, "linux-64", "folder"),
    "mlp_provision_environment": lambda hooks: hooks.provision_environment(LOCK, "root"),
    "mlp_fetch_secret": lambda hooks: hooks.fetch_secret("every://secret"),
    "mlp_open_launcher": lambda hooks: hooks.open_launcher("every", {}, SimpleNamespace()),
    "mlp_launch_step": lambda hooks: hooks.launch_step("every", [], SimpleNamespace()),
    "mlp_persist_artifact": lambda hooks: hooks.persist_artifact("every", 1, SimpleNamespace()),
    "mlp_load_artifact": lambda hooks: hooks.load_artifact(REF, SimpleNamespace()),
    "mlp_open_target": lambda hooks: hooks.open_target("every", SimpleNamespace()),
    "mlp_deploy": lambda hooks: hooks.deploy(REQUEST, SimpleNamespace()),
}
# What each hook may raise by its specification.
PASSING = {
    "mlp_open_store": [OSError],
    "mlp_resolve_environment": [OSError, ValueError],
    "mlp_bundle_environment": [OSError, ValueError],
    "mlp_provision_environment": [OSError],
    "mlp_fetch_secret": [OSError],
    "mlp_open_launcher": [OSError, ValueError],
    "mlp_launch_step": [OSError],
    "mlp_persist_artifact": [OSError, ValueError, KeyError],
    "mlp_load_artifact": [OSError, ValueError, KeyError],
    "mlp_open_target": [OSError],
    "mlp_deploy": [OSError, ValueError],
}


def everything(lab: Lab, answer: str, **settings: object) -> Hooks:
    """Install the plugin with an answer for every hook, and load it."""
    lab.install("every", EVERYTHING.replace("ANSWER", answer))
    return lab.hooks(**settings)


@pytest.mark.parametrize("hook", CALLS)
@pytest.mark.parametrize("error", [OSError, ValueError, KeyError])
def test_exceptions_are_blamed(lab: Lab, hook: str, error: type[Exception]) -> None:
    """What the specification lets a hook raise passes with a note; all else becomes a PluginError."""
    hooks = everything(lab, f"raise {error.__name__}('out of paper')")
    with pytest.raises(Exception, match="out of paper") as caught:
        CALLS[hook](hooks)
    note = f"from plugin every (mlp-plugin-every 1.0), in {hook}"
    if error in PASSING[hook]:
        assert type(caught.value) is error
        assert caught.value.__notes__ == [note]
    else:
        assert type(caught.value) is PluginError
        assert str(caught.value).startswith(f"plugin every (mlp-plugin-every 1.0) raised {error.__name__}: ")
        assert str(caught.value).endswith(f", in {hook}")
        assert type(caught.value.__cause__) is error
        assert caught.value.__cause__.__notes__ == [note]


@pytest.mark.parametrize("hook", CALLS)
def test_exit_in_a_hook_is_a_fault(lab: Lab, hook: str) -> None:
    """A plugin cannot end the process by SystemExit."""
    hooks = everything(lab, "raise SystemExit(0)")
    with pytest.raises(PluginError, match=rf"plugin every .* raised SystemExit: 0, in {hook}"):
        CALLS[hook](hooks)


@pytest.mark.parametrize("hook", CALLS)
def test_interruption_passes(lab: Lab, hook: str) -> None:
    """An interruption is not the plugin's fault, and passes unchanged but for the note."""
    hooks = everything(lab, "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt) as caught:
        CALLS[hook](hooks)
    assert caught.value.__notes__ == [f"from plugin every (mlp-plugin-every 1.0), in {hook}"]


@pytest.mark.parametrize("hook", [hook for hook in CALLS if hook not in ("mlp_persist_artifact", "mlp_load_artifact")])
@pytest.mark.parametrize("answer", ["return None", "return 'a string'", "return {'a': 1}", "return object()"])
def test_answers_are_checked(lab: Lab, hook: str, answer: str) -> None:
    """A plugin that owns a name and answers None, or something of another type, is blamed at once."""
    hooks = everything(lab, answer)
    with pytest.raises(PluginError, match=rf"plugin every \(mlp-plugin-every 1\.0\) .*, in {hook}$"):
        CALLS[hook](hooks)


def test_incomplete_handle_is_refused(lab: Lab) -> None:
    """A launcher that lacks a method is refused when it is opened, not when the method is called."""
    hooks = everything(lab, "return contextlib.nullcontext()")
    with pytest.raises(PluginError, match="an instance of nullcontext, which is no Launcher: it lacks cancel"):
        hooks.open_launcher("every", {}, SimpleNamespace())


def test_secret_is_not_shown(lab: Lab) -> None:
    """The message about a badly made secret does not contain it."""
    hooks = everything(lab, "return {'PASSWORD': 12345}")
    with pytest.raises(PluginError) as caught:
        hooks.fetch_secret("every://x")
    assert "12345" not in str(caught.value)
    with pytest.raises(UnknownBackend, match="'plain' is no reference"):
        hooks.fetch_secret("plain")


def test_only_the_owner_is_called(lab: Lab) -> None:
    """A plugin that answers for every name is not asked about names that it did not declare."""
    lab.install("every", EVERYTHING.replace("ANSWER", "return EnvironmentLock('every', 'mine', '3')"))
    lab.install("aa-greedy", EVERYTHING.replace("ANSWER", "return 1 / 0").replace('"every"', '"greedy"'))
    lab.install("zz-greedy", EVERYTHING.replace("ANSWER", "return 1 / 0").replace('"every"', '"greedier"'))
    assert lab.hooks().resolve_environment(EnvironmentSpec("every"), ()).content == "mine"


def test_arguments_arrive_by_name(lab: Lab) -> None:
    """An implementation may take some of the arguments, in any order, and may have further ones with defaults."""
    body = "return EnvironmentLock('every', repr((platforms, spec.backend, extra)), '3')"
    code = EVERYTHING.replace("(platforms, spec): ANSWER", f"(platforms, spec, extra=5): {body}")
    lab.install("every", code.replace("ANSWER", "pass"))
    lock = lab.hooks().resolve_environment(EnvironmentSpec("every"), ["linux-64"])
    assert lock.content == "(('linux-64',), 'every', 5)"


def test_the_platforms_own_errors_pass(lab: Lab) -> None:
    """An error of the platform, raised by a plugin with an API on top of it, keeps its class and exit status."""
    hooks = everything(lab, "from mlp_core.errors import StoreError; raise StoreError('lost')")
    with pytest.raises(StoreError, match="lost") as caught:
        hooks.open_store("every://x")
    assert caught.value.exit_status == 1


def test_using_a_handle_is_blamed_too(lab: Lab) -> None:
    """What a launcher, store or target raises later is blamed like the hook that returned it."""
    hooks = everything(lab, "pass")
    with pytest.raises(OSError, match="gone") as passed, hooks.using("launcher", "every"):
        raise OSError("gone")
    assert passed.value.__notes__ == ["from plugin every (mlp-plugin-every 1.0), in launcher every"]
    with (
        pytest.raises(PluginError, match=r"plugin every .* raised KeyError: 'x', in target every"),
        hooks.using("target", "every"),
    ):
        raise KeyError("x")


# ------------------------------------------------------------------------------------------------- names


def test_unknown_backend_names_the_known_ones(lab: Lab) -> None:
    """The error for an unknown name has the known names of the kind, and the nearest one."""
    hooks = everything(lab, "pass")
    with pytest.raises(UnknownBackend, match="unknown launcher 'evry'; known are every") as caught:
        hooks.backend("launcher", "evry")
    assert caught.value.hint == "did you mean 'every'?"
    assert caught.value.exit_status == 2
    with pytest.raises(UnknownBackend, match="unknown secret 'vault'; known are every"):
        hooks.fetch_secret("vault://x")
    with pytest.raises(UnknownBackend, match=r"unknown format 'x\\x00'"):
        hooks.persist_artifact("x\0", 1, SimpleNamespace())


@pytest.mark.parametrize(
    ("kind", "name", "command"),
    [
        ("launcher", "ray", "pip install mlp-plugin-ray"),
        ("environment", "pypi", "pip install mlp-plugin-uv"),
        ("environment", "conda", "pip install mlp-plugin-conda"),
        ("target", "airflow", "pip install mlp-plugin-airflow"),
    ],
)
def test_missing_plugin_names_its_pip_command(lab: Lab, kind: Any, name: str, command: str) -> None:
    """A backend of one of our own plugins that is not installed is answered by the command that installs it."""
    with pytest.raises(UnknownBackend, match=f"unknown {kind} '{name}'") as caught:
        lab.hooks().backend(kind, name)
    assert caught.value.hint == command


def test_unknown_option(lab: Lab) -> None:
    """An unknown decorator is answered by the nearest name, or by the pip command of the plugin that has it."""
    hooks = everything(lab, "pass")
    assert hooks.option("every").name == "every"
    assert hooks.options()["every"] is hooks.option("every")
    with pytest.raises(OptionError, match=r"unknown decorator @evry; known are .*@every") as caught:
        hooks.option("evry")
    assert caught.value.hint == "did you mean 'every'?"
    with pytest.raises(OptionError) as caught:
        hooks.option("conda")
    assert caught.value.hint == "pip install mlp-plugin-conda"


def test_requested_backend_of_a_broken_plugin_raises_the_cause(lab: Lab) -> None:
    """A backend whose plugin could not be loaded, is disabled or denied is answered by that reason, not as unknown."""
    lab.install("ray", "import no_such_library")
    lab.install("bad", EVERYTHING.replace("ANSWER", "pass") + "\n    @hookimpl\n    def mlp_settings(): return 1 / 0\n")
    with pytest.warns(PluginWarning):
        hooks = lab.hooks()
    reason = r"launcher 'ray' comes with plugin ray \(mlp-plugin-ray 1\.0\), which is failed: .*no_such_library"
    with pytest.raises(PluginRefused, match=reason) as caught:
        hooks.backend("launcher", "ray")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert caught.value.exit_status == 2
    with pytest.raises(PluginRefused, match="decorator @ray comes with plugin ray"):
        hooks.option("ray")
    with pytest.raises(UnknownBackend) as unknown:
        hooks.backend("launcher", "every")
    assert "it may come with a plugin that is not in force: bad (mlp-plugin-bad 1.0)" in unknown.value.hint
    with pytest.raises(PluginRefused, match=r"is denied: plugins\.deny names it") as caught:
        lab.hooks(plugins_deny="ray,bad").backend("launcher", "ray")
    assert caught.value.hint == "change the settings plugins.allow and plugins.deny"


def test_one_name_of_two_plugins_is_nobodys(lab: Lab) -> None:
    """Neither the first nor the last wins: asking is an error that names both, until the setting chooses."""
    answer = "return EnvironmentLock('every', '{}', '3')"
    lab.install("every", EVERYTHING.replace("ANSWER", answer.format("one")))
    lab.install("second", EVERYTHING.replace("ANSWER", answer.format("two")))
    hooks = lab.hooks()
    spec = EnvironmentSpec("every")
    both = (
        r"environment 'every' is provided by every \(mlp-plugin-every 1\.0\) and by second \(mlp-plugin-second 1\.0\)"
    )
    with pytest.raises(PluginRefused, match=both) as caught:
        hooks.resolve_environment(spec, ())
    assert 'plugins.provider = ["environment:every=mlp-plugin-every"]' in caught.value.hint
    with pytest.raises(PluginRefused, match="decorator @every is provided by"):
        hooks.option("every")
    assert "every" not in hooks.options()
    assert hooks.backend("environment", "current").name == "current"
    for chosen, content in (("mlp-plugin-every", "one"), ("MLP_plugin.second", "two")):
        hooks = lab.hooks(plugins_provider=[f"environment:every={chosen}", f"option:every={chosen}"])
        assert hooks.resolve_environment(spec, ()).content == content
        module = "lab_" + chosen.lower().replace(".", "_").replace("-", "_")
        assert hooks.option("every").__module__ == module


def test_builtin_backend_has_no_privilege(lab: Lab) -> None:
    """A plugin may claim a builtin backend's name; then somebody has to choose, too."""
    lab.install("pickier", EVERYTHING.replace("ANSWER", "return True").replace('"every", "Every', '"pickle", "Every'))
    with pytest.raises(PluginRefused, match=r"format 'pickle' is provided by pickle \(mlp-core .*\) and by pickier"):
        lab.hooks().persist_artifact("pickle", 1, SimpleNamespace())
    hooks = lab.hooks(plugins_provider="format:pickle=mlp-plugin-pickier")
    assert hooks.persist_artifact("pickle", 1, SimpleNamespace()) is True


@pytest.mark.parametrize("text", ["ray", "launcher:ray", "rocket:x=y", "launcher:=y"])
def test_malformed_choice_is_refused(lab: Lab, text: str) -> None:
    """An entry of plugins.provider that chooses nothing is refused, with the form that is expected."""
    with pytest.raises(SettingError, match=r"plugins\.provider contains") as caught:
        lab.hooks(plugins_provider=[text])
    assert caught.value.hint.startswith("write kind:name=distribution")


# ------------------------------------------------------------------------------------------------- other modes

PLANNER = """
    @hookimpl
    def mlp_plan_step(step, options):
        ANSWER
"""


def test_plans_are_merged_and_contradictions_name_both(lab: Lab) -> None:
    """What several plugins plan becomes one plan; two launchers are an error that names both plugins."""
    lab.install("first", PLANNER.replace("ANSWER", "return StepPlan(launcher='a', variables={'X': '1'})"))
    lab.install("second", PLANNER.replace("ANSWER", "return StepPlan(variables={'Y': '2'}) if options else None"))
    plan = lab.hooks().plan_step(StepInfo("F", NODE), [object()])
    assert (plan.launcher, dict(plan.variables)) == ("a", {"X": "1", "Y": "2"})
    lab.install("third", PLANNER.replace("ANSWER", "return StepPlan(launcher='b')"))
    message = (
        r"step start: first \(mlp-plugin-first 1\.0\) sets launcher to 'a', and third \(mlp-plugin-third 1\.0\) to 'b'"
    )
    with pytest.raises(OptionError, match=message):
        lab.hooks().plan_step(StepInfo("F", NODE), [])


@pytest.mark.parametrize(
    ("answer", "reason"), [("1 / 0", "raised ZeroDivisionError"), ("return 5", "returned 5 instead")]
)
def test_failing_planner_is_blamed(lab: Lab, answer: str, reason: str) -> None:
    """A plugin that fails to plan stops the flow before anything starts."""
    lab.install("bad", PLANNER.replace("ANSWER", answer))
    with pytest.raises(PluginError, match=rf"plugin bad \(mlp-plugin-bad 1\.0\) {reason}.*, in mlp_plan_step"):
        lab.hooks().plan_step(StepInfo("F", NODE), [])


WRAPPER = """
    import contextlib

    @contextlib.contextmanager
    def around(log):
        log.append("NAME in")
        try:
            yield
        finally:
            log.append("NAME out")

    @hookimpl
    def mlp_wrap_step(step):
        return Wrap(PRIORITY, "NAME", CONTEXT)
"""


def wrapper(lab: Lab, name: str, priority: int = 50, context: str = "around(step.log)") -> None:
    """Install a plugin that wraps steps."""
    lab.install(name, WRAPPER.replace("NAME", name).replace("PRIORITY", str(priority)).replace("CONTEXT", context))


def run_wrapped(hooks: Hooks, body: Callable[[], None]) -> list[str]:
    """Run a body inside all wraps and return what they logged."""
    from contextlib import ExitStack

    log: list[str] = []
    with ExitStack() as stack:
        for wrap in hooks.wraps(SimpleNamespace(log=log)):
            stack.enter_context(wrap.context)
        body()
    return log


def test_wraps_are_ordered_by_priority_then_name(lab: Lab) -> None:
    """Lower priorities lie outside; of equal ones the name decides; a plugin that answers None wraps nothing."""
    wrapper(lab, "late", 90)
    wrapper(lab, "zoo", 10)
    wrapper(lab, "ape", 10)
    lab.install("none", "@hookimpl\ndef mlp_wrap_step(step): return None\n")
    log = run_wrapped(lab.hooks(), lambda: None)
    assert log == ["ape in", "zoo in", "late in", "late out", "zoo out", "ape out"]


def test_users_exception_passes_wraps_unblamed(lab: Lab) -> None:
    """What the step raises is not the wraps' fault, although a context manager raises it again."""
    wrapper(lab, "fine")

    def body() -> None:
        raise ValueError("the user's")

    with pytest.raises(ValueError, match="the user's") as caught:
        run_wrapped(lab.hooks(), body)
    assert not hasattr(caught.value, "__notes__")


def test_wrap_cannot_swallow_the_users_exception(lab: Lab) -> None:
    """A step that failed has failed, whatever a wrap would like."""
    wrapper(lab, "greedy", context="contextlib.suppress(ValueError)")

    def body() -> None:
        raise ValueError("the user's")

    with pytest.raises(ValueError, match="the user's"):
        run_wrapped(lab.hooks(), body)


@pytest.mark.parametrize(
    ("context", "place"),
    [
        ("contextlib.closing(None)", r"\(leaving\)"),
        ("contextlib.contextmanager(lambda: 1 / 0)()", ""),
        ("contextlib.contextmanager(lambda: (x for x in ()))()", r"\(entering\)"),
    ],
)
def test_failing_wrap_is_blamed(lab: Lab, context: str, place: str) -> None:
    """An exception in the hook, or in entering or leaving its context, names the plugin and the place."""
    wrapper(lab, "bad", context=context)
    with pytest.raises(PluginError, match=rf"plugin bad \(mlp-plugin-bad 1\.0\) raised .*, in mlp_wrap_step ?{place}"):
        run_wrapped(lab.hooks(), lambda: None)


def test_observers_are_told_one_by_one(lab: Lab) -> None:
    """An observer that fails is reported and does not keep the others from being told; a silenced one is not told."""
    lab.install("bad", "@hookimpl\ndef mlp_event(event): raise ValueError('no')\n")
    code = "told = []\n@hookimpl\ndef mlp_event(settings, event): told.append((event.flow, settings['run.launcher']))\n"
    module = lab.install("good", code)
    hooks = lab.hooks(plugins_allow="good,bad")
    assert [plugin.name for plugin in hooks.observers()] == ["bad", "good"]
    event = RunStarted(sequence=1, flow="F", run_id="r", time=0)
    ((plugin, error),) = hooks.emit(event)
    assert plugin == PluginId("bad", "mlp-plugin-bad", "1.0")
    assert str(error) == "plugin bad (mlp-plugin-bad 1.0) raised ValueError: no, in mlp_event"
    assert hooks.emit(event, silenced=[plugin]) == ()
    import sys

    assert sys.modules[module].told == [("F", "local"), ("F", "local")]


COMMANDS = """
    @hookimpl
    def mlp_commands():
        return [Command("queue", "MODULE:main", "Show the queue.")]

    def main(arguments, session):
        ANSWER
"""


def test_commands(lab: Lab) -> None:
    """A plugin's command gets its arguments and the session, and its status is returned."""
    lab.install(
        "cmd", COMMANDS.replace("MODULE", "lab_mlp_plugin_cmd").replace("ANSWER", "return len(arguments) + session.x")
    )
    hooks = lab.hooks()
    assert [(plugin.name, command.name) for plugin, command in hooks.commands()] == [("cmd", "queue")]
    assert hooks.run_command("queue", ["a", "b"], SimpleNamespace(x=5)) == 7
    with pytest.raises(UsageError, match="unknown command 'nothing'"):
        hooks.run_command("nothing", [], SimpleNamespace())


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("1 / 0", "raised ZeroDivisionError"), ("return 'done'", "returned 'done' instead of int")],
)
def test_failing_command_is_blamed(lab: Lab, answer: str, reason: str) -> None:
    """A command that fails names its plugin; one that exits by itself, as argument parsers do, just exits."""
    lab.install("cmd", COMMANDS.replace("MODULE", "lab_mlp_plugin_cmd").replace("ANSWER", answer))
    with pytest.raises(PluginError, match=rf"plugin cmd \(mlp-plugin-cmd 1\.0\) {reason}.*, in command queue"):
        lab.hooks().run_command("queue", [], SimpleNamespace())


def test_command_may_exit(lab: Lab) -> None:
    """A command that exits by itself, as argument parsers do, exits with its own status."""
    lab.install("cmd", COMMANDS.replace("MODULE", "lab_mlp_plugin_cmd").replace("ANSWER", "raise SystemExit(2)"))
    with pytest.raises(SystemExit, match="2"):
        lab.hooks().run_command("queue", [], SimpleNamespace())


def test_command_of_two_plugins(lab: Lab) -> None:
    """A command's name that two plugins claim is an error that names both; a broken plugin's commands are left out."""
    for name in ("cmd", "second"):
        lab.install(name, COMMANDS.replace("MODULE", "lab_mlp_plugin_cmd").replace("ANSWER", "return 0"))
    with pytest.raises(UsageError, match=r"command queue is provided by cmd \(.*\) and by second \("):
        lab.hooks().run_command("queue", [], SimpleNamespace())
    lab.install("broken", "@hookimpl\ndef mlp_commands(): raise OSError\n")
    hooks = lab.hooks(plugins_deny="second")
    with pytest.warns(
        PluginWarning, match="plugin broken .* raised OSError, in mlp_commands; its commands are left out"
    ):
        assert hooks.run_command("queue", [], SimpleNamespace()) == 0


# ------------------------------------------------------------------------------------------------- formats, workers


def test_installing_a_format_changes_nothing(lab: Lab) -> None:
    """A plugin's format for a type that was stored otherwise counts only where a setting names it, and then first."""
    assert lab.hooks().format_candidates(int) == ("json", "pickle")
    hooks = everything(lab, "return True")
    assert hooks.format_candidates(int) == ("json", "pickle")
    assert lab.hooks(formats_prefer="every").format_candidates(int) == ("every", "json", "pickle")
    assert lab.hooks(formats_prefer="every").format_candidates(str) == ("json", "pickle")


def test_most_specific_format_comes_first(lab: Lab) -> None:
    """Formats are ordered by the place of their type in the MRO; a type may be named as its package publishes it."""
    code = EVERYTHING.replace("ANSWER", "return True").replace('"builtins.int"', '"collections.OrderedDict"')
    lab.install("every", code)
    from collections import OrderedDict

    class Mine(OrderedDict[str, int]):
        """A subclass."""

    hooks = lab.hooks(formats_prefer="every")
    assert hooks.format_candidates(Mine) == hooks.format_candidates(OrderedDict) == ("every", "json", "pickle")
    assert hooks.format_candidates(dict) == ("json", "pickle")
    published = EVERYTHING.replace("ANSWER", "return True").replace(
        '"builtins.int"', '"pathlib.Path", "json.JSONDecoder"'
    )
    lab.install("second", published.replace('"every"', '"second"'))
    from json import JSONDecoder

    assert JSONDecoder.__module__ == "json.decoder"
    assert lab.hooks(formats_prefer="second").format_candidates(JSONDecoder) == ("second", "pickle")


def test_worker_gets_exactly_the_drivers_plugins(lab: Lab) -> None:
    """A worker loads the plugins that matter where steps run, and refuses others, listing every difference."""
    everything(lab, "pass")
    wrapper(lab, "wrapping")
    lab.install("observing", "@hookimpl\ndef mlp_event(event): ...\n")
    driver = lab.hooks()
    required = driver.worker_plugins()
    assert [plugin.name for plugin in required] == ["every", "wrapping"]
    worker = lab.worker_hooks(required)
    statuses = {record.name: record.status for record in worker.records}
    assert (statuses["every"], statuses["wrapping"], statuses["observing"]) == ("loaded", "loaded", "denied")
    lab.uninstall("mlp-plugin-wrapping")
    (lab.site / "mlp_plugin_every-1.0.dist-info/METADATA").write_text("Name: mlp-plugin-every\nVersion: 1.1\n")
    with pytest.raises(PluginRefused) as caught:
        lab.worker_hooks(required)
    assert "every (mlp-plugin-every 1.0) is mlp-plugin-every 1.1" in caught.value.message
    assert "wrapping (mlp-plugin-wrapping 1.0) is not installed" in caught.value.message
    assert "pip install mlp-plugin-every==1.0 mlp-plugin-wrapping==1.0" in caught.value.hint


def test_worker_names_the_reason_of_a_broken_plugin(lab: Lab) -> None:
    """A plugin that does not load where the worker runs is a difference, with its reason."""
    required = [PluginId("broken", "mlp-plugin-broken", "1.0")]
    lab.install("broken", "import no_such_library")
    with pytest.raises(PluginRefused, match=r"broken \(mlp-plugin-broken 1\.0\) is failed: .*no_such_library"):
        lab.worker_hooks(required)


def test_worker_has_the_drivers_settings(lab: Lab) -> None:
    """Settings travel as JSON; secrets do not, and are read where the worker runs."""
    import json

    from mlp_core.hooks import build_hooks, build_worker_hooks

    code = """
        @hookimpl
        def mlp_options(): return []
        @hookimpl
        def mlp_settings():
            return [Setting("sets.names", "list"), Setting("sets.key", secret=True), Setting("sets.n", "int", 3)]
    """
    lab.install("sets", code)
    flags = {"sets.names": "a,b", "plugins.allow": "sets"}
    hooks, settings = build_hooks(flags=flags, start=lab.project, environ={"MLP_SETS_KEY": "hush"})
    assert settings["sets.key"] == "hush"
    sent = json.loads(json.dumps(settings.portable()))
    assert "hush" not in repr(sent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLP_SETS_KEY", "whisper")
        patch.setenv("MLP_SETS_N", "9")
        _, there = build_worker_hooks(hooks.worker_plugins(), sent)
    assert (there["sets.names"], there["sets.n"], there["sets.key"]) == (("a", "b"), 3, "whisper")
    assert there["store"] == settings["store"]
    assert there.source("sets.n") == "driver"
