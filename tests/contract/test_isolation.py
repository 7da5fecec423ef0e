"""A broken plugin disables nothing but itself, and is named with the reason and the next step."""

from __future__ import annotations

import textwrap
import warnings
from typing import TYPE_CHECKING

import pytest

from mlp_core.errors import PluginError, PluginRefused
from mlp_hookspecs import PluginWarning

if TYPE_CHECKING:
    from tests.contract.conftest import Lab

FINE = """
    @hookimpl
    def mlp_settings():
        return (Setting("good.color", default="blue"),)
"""

BROKEN = {
    "import error": ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
    "syntax error": ("def (", "SyntaxError"),
    "exit": ("raise SystemExit(3)", "SystemExit: 3"),
    "base exception": ("class Odd(BaseException): ...\nraise Odd('gone')", "Odd: gone"),
    "skip": ("import pytest\npytest.skip('not here', allow_module_level=True)", "Skipped: not here"),
    "unknown hook": ("@hookimpl\ndef mlp_evnt(event): ...", "implements mlp_evnt, and there is no such hook"),
    "unknown argument": (
        "@hookimpl\ndef mlp_event(event, run): ...",
        "its mlp_event has the argument run; the hook takes (event, settings), by position",
    ),
    "argument for none": ("@hookimpl\ndef mlp_backends(x): ...", "the argument x; the hook takes none"),
    "keyword-only argument": ("@hookimpl\ndef mlp_event(*, event): ...", "its mlp_event has the argument event"),
    "any arguments": ("@hookimpl\ndef mlp_event(*args): ...", "its mlp_event has the argument *args"),
    "coroutine": ("@hookimpl\nasync def mlp_event(event): ...", "its mlp_event is a coroutine function"),
    "wrapper": (
        "@hookimpl(wrapper=True)\ndef mlp_backends():\n    return (yield)",
        "its mlp_backends is a hook wrapper",
    ),
    "old wrapper": ("@hookimpl(hookwrapper=True)\ndef mlp_event(event):\n    yield", "its mlp_event is a hook wrapper"),
    "unmarked": ("def mlp_event(event): ...", "its mlp_event is not marked as an implementation"),
}


@pytest.mark.parametrize(("code", "reason"), BROKEN.values(), ids=BROKEN)
def test_broken_plugin_leaves_the_others_alone(lab: Lab, code: str, reason: str) -> None:
    """A plugin that cannot be loaded is left out with one warning; the plugins before and after it are in force."""
    lab.install("aa-good", FINE.replace("good", "aa_good"))
    lab.install("broken", code)
    lab.install("good", FINE)
    with pytest.warns(PluginWarning) as caught:
        hooks, settings = lab.build()
    (message,) = [str(warning.message) for warning in caught]
    assert message.startswith("plugin broken (mlp-plugin-broken 1.0) is not loaded: ")
    assert reason in message
    assert "\n  hint: " in message
    records = {record.name: record for record in hooks.records}
    assert (records["aa-good"].status, records["broken"].status, records["good"].status) == (
        "loaded",
        "failed",
        "loaded",
    )
    assert reason in records["broken"].reason
    assert settings["good.color"] == settings["aa_good.color"] == "blue"


def test_misspelt_hook_is_corrected(lab: Lab) -> None:
    """The message about an unknown hook suggests the one that was meant."""
    lab.install("broken", "@hookimpl\ndef mlp_evnt(event): ...")
    with pytest.warns(PluginWarning, match="did you mean mlp_event"):
        lab.hooks()


def test_optional_unknown_hook_is_no_mistake(lab: Lab) -> None:
    """An implementation marked optional may be of a hook that this contract does not have yet."""
    lab.install("early", "@hookimpl(optionalhook=True)\ndef mlp_from_the_future(x): ...")
    assert lab.record("early").status == "loaded"


def test_keyboard_interrupt_ends_the_loading(lab: Lab) -> None:
    """An interruption is the user's, not the plugin's: it ends the command."""
    lab.install("slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        lab.hooks()


def test_strict_mode_stops_at_the_first_failure(lab: Lab) -> None:
    """With strict plugins the error is raised, with the plugin's own as its cause."""
    lab.install("broken", "import no_such_library")
    with pytest.raises(PluginRefused, match=r"plugin broken \(mlp-plugin-broken 1\.0\) is not loaded") as caught:
        lab.hooks(plugins_strict=True)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_class_as_entry_point_is_refused(lab: Lab) -> None:
    """A class has methods without an instance: the message says what may be named instead."""
    lab.install("cls", "class Plugin: ...", value="lab_mlp_plugin_cls:Plugin")
    with pytest.warns(PluginWarning, match="names the class Plugin; allowed are a module and an instance"):
        assert lab.record("cls").status == "failed"


def test_instance_as_entry_point(lab: Lab) -> None:
    """An entry point may name an instance, whose methods implement the hooks."""
    code = """
        class Plugin:
            @hookimpl
            def mlp_settings(self):
                return [Setting("inst.x", default="1")]
        plugin = Plugin()
    """
    lab.install("inst", code, value="lab_mlp_plugin_inst:plugin")
    assert lab.build()[1]["inst.x"] == "1"


def test_absent_attribute_in_entry_point(lab: Lab) -> None:
    """An entry point that names nothing is a failure like any other."""
    lab.install("gone", value="lab_mlp_plugin_gone:nothing.here")
    with pytest.warns(PluginWarning, match="AttributeError"):
        assert lab.record("gone").status == "failed"


@pytest.mark.parametrize("name", ["sp ace", "-dash", "a..b", "x" * 200, "ü"])
def test_malformed_plugin_name_is_refused(lab: Lab, name: str) -> None:
    """A plugin's name is another's text: it passes the grammar of names or the plugin is left out."""
    lab.install(name, FINE, distribution="mlp-plugin-odd")
    with pytest.warns(PluginWarning, match="plugin name"):
        assert lab.record(name).status == "failed"


@pytest.mark.parametrize(
    ("requires", "fits"),
    [
        ("mlp-hookspecs>=0.3,<0.4", True),
        ("mlp_hookspecs >=0.3.0", True),
        ("mlp-hookspecs (>=0.3)", True),
        ("mlp-hookspecs[testing]~=0.3.0", True),
        ("mlp-hookspecs", True),
        ("mlp-hookspecs==0.3.*", True),
        ("mlp-hookspecs==0.3", True),
        ("mlp-hookspecs>=0.4; extra == 'future'", True),
        ("mlp-hookspecs>=0.4; python_version >= '3'", False),
        ("mlp-hookspecs>=0.4", False),
        ("mlp-hookspecs<0.3", False),
        ("mlp-hookspecs>0.3", False),
        ("mlp-hookspecs!=0.3.0", False),
        ("mlp-hookspecs>=1.0rc1", False),
        ("mlp-hookspecs-more>=9", True),
    ],
)
def test_contract_range_is_checked_before_the_import(lab: Lab, requires: str, *, fits: bool) -> None:
    """A plugin whose range excludes the running contract is not imported; the message has both versions and pip."""
    lab.install("ranged", f"open({str(lab.project / 'imported')!r}, 'w').close()", requires=[requires])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        record = lab.record("ranged")
    assert (record.status == "loaded") is (lab.project / "imported").exists() is fits
    if not fits:
        (message,) = [str(warning.message) for warning in caught]
        assert record.contract_range == requires.removeprefix("mlp-hookspecs").partition(";")[0]
        assert f"it needs mlp-hookspecs {record.contract_range}, and 0.3.0 is running" in message
        assert "pip install --upgrade mlp-plugin-ranged" in message


@pytest.mark.parametrize("requires", ["mlp-hookspecs>=banana", "mlp-hookspecs; python_version is old"])
def test_requirement_that_makes_no_sense(lab: Lab, requires: str) -> None:
    """A range that nobody can read is a failure of its plugin, and of no other."""
    lab.install("odd", requires=[requires])
    lab.install("good", FINE)
    with pytest.warns(PluginWarning, match=r"plugin odd \(mlp-plugin-odd 1\.0\) is not loaded"):
        assert lab.record("good").status == "loaded"
    assert lab.record("odd", plugins_deny="odd").status == "denied"


def test_two_distributions_with_one_plugin_name(lab: Lab) -> None:
    """Neither is loaded, whichever is found first; denying one by its distribution's name decides."""
    lab.install("twin", distribution="mlp-plugin-twin")
    lab.install("twin", distribution="other-twin")
    with pytest.warns(PluginWarning, match="'twin' is claimed by mlp-plugin-twin 1.0 and by other-twin 1.0") as caught:
        hooks = lab.hooks()
    assert len(caught) == 2
    assert {r.id.distribution for r in hooks.records if r.name == "twin" and r.status == "failed"} == {
        "mlp-plugin-twin",
        "other-twin",
    }
    records = [r for r in lab.hooks(plugins_deny="Other_Twin").records if r.name == "twin"]
    assert [(r.id.distribution, r.status) for r in records] == [("mlp-plugin-twin", "loaded"), ("other-twin", "denied")]


def test_builtin_name_cannot_be_taken(lab: Lab) -> None:
    """An installed plugin with a builtin one's name is left out; where the builtin is denied, it takes the place."""
    lab.install("pickle")
    with pytest.warns(PluginWarning, match="the name 'pickle' is claimed by mlp-core"):
        statuses = {r.id.distribution: r.status for r in lab.hooks().records if r.name == "pickle"}
    assert statuses == {"mlp-core": "builtin", "mlp-plugin-pickle": "failed"}
    statuses = {r.id.distribution: r.status for r in lab.hooks(plugins_deny="mlp-core,").records if r.name == "pickle"}
    assert statuses == {"mlp-core": "denied", "mlp-plugin-pickle": "loaded"}


def test_lists_are_read_before_anything_is_imported(lab: Lab) -> None:
    """What is denied, not allowed, or kept out by safe mode is not imported, whichever name the list uses."""
    for name in ("one", "two"):
        lab.install(name, f"open({str(lab.project / name)!r}, 'w').close()")
    denied = lab.record("one", plugins_deny="one,mlp-plugin-two")
    assert (denied.status, denied.contract_range) == ("denied", ">=0.3,<0.4")
    assert lab.record("two", plugins_allow="something-else").status == "denied"
    assert lab.record("one", plugins_safe=True).status == "denied"
    assert not list(lab.project.iterdir())
    hooks = lab.hooks(plugins_allow=["MLP.plugin_one"])
    assert {r.name: r.status for r in hooks.records if r.name in ("one", "two")} == {"one": "loaded", "two": "denied"}
    assert [path.name for path in lab.project.iterdir()] == ["one"]


def test_settings_file_may_speak_of_plugins_that_are_left_out(lab: Lab) -> None:
    """A plugin's settings in the project's file are no mistake while the plugin is denied or broken."""
    lab.install("good", FINE)
    (lab.project / "mlp.toml").write_text("[good]\ncolor = 'red'\n")
    assert lab.build()[1]["good.color"] == "red"
    assert "good.color" not in lab.build(plugins_safe=True)[1]


def test_import_does_not_print_into_a_commands_output(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """What a plugin prints while it is imported goes to the standard error."""
    lab.install("chatty", "print('hello')")
    lab.hooks()
    assert capsys.readouterr() == ("", "hello\n")


def test_first_distribution_on_the_path_counts(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two installations of one distribution the first on the path is loaded, as for imports."""
    first = lab.site.with_name("first")
    first.mkdir()
    lab.install("good", FINE)
    (lab.site / "mlp_plugin_good-1.0.dist-info").rename(first / "mlp_plugin_good-2.0.dist-info")
    (first / "mlp_plugin_good-2.0.dist-info/METADATA").write_text("Name: mlp-plugin-good\nVersion: 2.0\n")
    lab.install("good", FINE)
    monkeypatch.syspath_prepend(first)
    assert lab.record("good").id.version == "2.0"


def test_unreadable_metadata_is_named(lab: Lab) -> None:
    """A distribution that names a plugin but not itself is left out with a warning that names its place."""
    lab.install("good", FINE)
    (lab.site / "mlp_plugin_good-1.0.dist-info/METADATA").write_text("no header at all")
    with pytest.warns(PluginWarning, match=r"mlp_plugin_good-1\.0\.dist-info cannot be read.*lacks a name"):
        assert "good" not in {record.name for record in lab.hooks().records}


def test_plugin_in_a_zip_file(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distributions in zip files on the path are found too."""
    import zipfile

    lab.install("zipped", FINE.replace("good", "zipped"))
    archive = lab.site.with_name("plugins.zip")
    with zipfile.ZipFile(archive, "w") as file:
        for path in lab.site.rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                file.write(path, path.relative_to(lab.site))
    lab.uninstall("mlp-plugin-zipped")
    monkeypatch.syspath_prepend(archive)
    assert lab.record("zipped").status == "loaded"


DECLARATIONS = {
    "raises": ("mlp_settings", "return 1 / 0", "raised ZeroDivisionError: division by zero"),
    "exits": ("mlp_backends", "raise SystemExit(1)", "raised SystemExit: 1"),
    "no sequence": ("mlp_backends", "return 5", "returned 5 instead of a sequence of Backend"),
    "text": ("mlp_backends", "return 'slurm'", "returned 'slurm' instead of a sequence of Backend"),
    "wrong items": ("mlp_backends", "return [Setting('bad.x')]", "returned an instance of Setting instead of Backend"),
    "failing generator": ("mlp_options", "yield 1 / 0", "raised ZeroDivisionError"),
    "unknown kind": ("mlp_backends", "return [Backend('rocket', 'x', '')]", "the backend rocket:x; the kinds are"),
    "bad name": ("mlp_backends", "return [Backend('index', '../x', '')]", "the index '../x' is refused"),
    "lacks a hook": (
        "mlp_backends",
        "return [Backend('launcher', 'x', '')]",
        "declares the backend launcher:x, but does not implement mlp_open_launcher",
    ),
    "backend twice": ("mlp_backends", "return 2 * [Backend('index', 'x', '')]", "the backend index:x twice"),
    "foreign setting": ("mlp_settings", "return [Setting('good.color')]", "its name must begin with bad."),
    "core's setting": ("mlp_settings", "return [Setting('run.launcher')]", "its name must begin with bad."),
    "setting twice": (
        "mlp_settings",
        "return [Setting('bad.x'), Setting('bad.x')]",
        "whose variable MLP_BAD_X belongs",
    ),
    "bad default": ("mlp_settings", "return [Setting('bad.x', 'int', 'many')]", "(its default) is 'many'"),
    "no option": ("mlp_options", "return [int]", "declares int, which is no attrs class on Option"),
    "nameless option": (
        "mlp_options",
        "import attrs; return [attrs.frozen(type('X', (Option,), {}))]",
        "declares the decorator '' is refused",
    ),
}


@pytest.mark.parametrize(("hook", "body", "reason"), DECLARATIONS.values(), ids=DECLARATIONS)
def test_plugin_that_cannot_declare_itself_is_disabled(lab: Lab, hook: str, body: str, reason: str) -> None:
    """A plugin that fails in a collect hook is disabled as a whole; the others keep what they declare."""
    event = "@hookimpl\ndef mlp_event(event): ...\n"
    lab.install("bad", f"{event}@hookimpl\ndef {hook}():\n    {body}\n")
    lab.install("good", FINE + textwrap.indent(event, "    "))
    with pytest.warns(PluginWarning) as caught:
        hooks, settings = lab.build()
    (message,) = [str(warning.message) for warning in caught]
    assert message.startswith("plugin bad (mlp-plugin-bad 1.0) ")
    assert reason in message
    assert f"in {hook}; it is disabled\n  hint: leave it out by the setting plugins.deny" in message
    assert [plugin.name for plugin in hooks.observers() if plugin.name in ("bad", "good")] == ["good"]
    assert settings["good.color"] == "blue"
    (record,) = [record for record in hooks.records if record.name == "bad"]
    assert record.status == "disabled"
    with pytest.raises(PluginError, match="plugin bad"):
        lab.hooks(plugins_strict=True)


def test_nothing_to_declare(lab: Lab) -> None:
    """None and an empty sequence both declare nothing."""
    lab.install("quiet", "@hookimpl\ndef mlp_settings(): ...\n@hookimpl\ndef mlp_backends():\n    return []\n")
    assert lab.record("quiet").hooks == ("mlp_backends", "mlp_settings")
