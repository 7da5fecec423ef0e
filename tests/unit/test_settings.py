"""Settings: which value counts, how each type is read, and what is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlp_core.errors import SettingError
from mlp_core.settings import (
    CORE_SETTINGS,
    check_declaration,
    find_sources,
    flag_name,
    load_settings,
    resolve_settings,
    restore_settings,
    variable_name,
)
from mlp_hookspecs import MlpWarning, Setting

DECLARED = (
    Setting("lab.text", "str", "plain", "Any text."),
    Setting("lab.whole", "int", 1),
    Setting("lab.part", "float", 0.5),
    Setting("lab.flag", "bool", False),  # noqa: FBT003 # a setting's default
    Setting("lab.place", "path"),
    Setting("lab.names", "list", ()),
    Setting("lab.key", "str", None, secret=True),
)


def write(folder: Path, name: str, text: str) -> Path:
    """Write a file of settings."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    return path


def test_flag_wins_over_variable_over_file_over_default(tmp_path: Path) -> None:
    """Each source hides the next one, and every value knows where it came from."""
    file = write(tmp_path, "mlp.toml", "[lab]\ntext = 'file'\nwhole = 2\npart = 2.5\n")
    environ = {"MLP_LAB_TEXT": "variable", "MLP_LAB_WHOLE": "3"}
    settings = load_settings(DECLARED, file=file, environ=environ, flags={"lab.text": "flag"})
    assert [settings[name] for name in ("lab.text", "lab.whole", "lab.part", "lab.flag")] == ["flag", 3, 2.5, False]
    assert settings.source("lab.text") == "flag --lab-text"
    assert settings.source("lab.whole") == "variable MLP_LAB_WHOLE"
    assert settings.source("lab.part") == f"file {file}"
    assert settings.source("lab.flag") == "default"


def test_settings_are_a_mapping_that_cannot_be_changed() -> None:
    """Settings have one entry for each declared setting, and none can be set."""
    settings = load_settings(DECLARED, environ={})
    assert list(settings) == [setting.name for setting in DECLARED]
    assert len(settings) == len(DECLARED)
    assert settings.declared("lab.text").help == "Any text."
    with pytest.raises(TypeError):
        settings["lab.text"] = "x"  # type: ignore[index] # that is the point
    with pytest.raises(KeyError):
        settings["lab.unknown"]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lab.text", " kept as it is ", " kept as it is "),
        ("lab.whole", " 12 ", 12),
        ("lab.whole", "-1", -1),
        ("lab.part", "1e3", 1000.0),
        ("lab.flag", "Yes", True),
        ("lab.flag", "0", False),
        ("lab.flag", "", False),
        ("lab.names", "a, b,,c ", ("a", "b", "c")),
        ("lab.names", "", ()),
        ("lab.place", "s3://bucket/prefix", "s3://bucket/prefix"),
        ("lab.place", "~/x", str(Path("~/x").expanduser())),
        ("lab.place", "/a/../b", "/b"),
    ],
)
def test_texts_are_read_by_type(name: str, text: str, value: object) -> None:
    """A variable or flag is text, and is read as the setting's type asks."""
    assert load_settings(DECLARED, environ={variable_name(name): text})[name] == value
    assert load_settings(DECLARED, environ={}, flags={name: text})[name] == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lab.whole", "many"),
        ("lab.whole", "1.5"),
        ("lab.whole", 1.5),
        ("lab.whole", True),
        ("lab.part", "nan-ish"),
        ("lab.part", "inf"),
        ("lab.part", "nan"),
        ("lab.part", []),
        ("lab.flag", "maybe"),
        ("lab.flag", 1),
        ("lab.text", 5),
        ("lab.place", ""),
        ("lab.place", "a\0b"),
        ("lab.place", 5),
        ("lab.place", b"bytes"),
        ("lab.names", [1]),
        ("lab.names", 5),
    ],
)
def test_bad_values_are_refused(name: str, value: object) -> None:
    """The message names the setting, where it came from, the value, and what is allowed."""
    with pytest.raises(SettingError) as caught:
        load_settings(DECLARED, environ={}, flags={name: value})
    message = caught.value.message
    assert message.startswith(f"setting {name} (flag {flag_name(name)}) is ")
    assert "it must be " in message


def test_secret_is_masked_everywhere() -> None:
    """A secret's value is in the mapping and nowhere else: not in text, not in what travels, not in an error."""
    settings = load_settings(DECLARED, environ={"MLP_LAB_KEY": "hush"})
    assert settings["lab.key"] == "hush"
    assert settings.text("lab.key") == "********"
    assert "lab.key" not in settings.portable()
    with pytest.raises(SettingError) as caught:
        load_settings([Setting("lab.pin", "int", secret=True)], environ={"MLP_LAB_PIN": "hush"})
    assert "hush" not in str(caught.value)


def test_text_for_people() -> None:
    """Every value has a text."""
    settings = load_settings(DECLARED, environ={"MLP_LAB_NAMES": "a,b", "MLP_LAB_FLAG": "1"})
    assert [settings.text(name) for name in settings] == ["plain", "1", "0.5", "true", "", "a, b", ""]


def test_relative_paths_belong_to_who_gave_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path in the file is relative to the project, one in a variable or flag to the working folder."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    file = write(tmp_path / "project", "mlp.toml", "[lab]\nplace = 'data'\n")
    assert load_settings(DECLARED, file=file, environ={})["lab.place"] == str(tmp_path / "project/data")
    assert load_settings(DECLARED, file=file, environ={"MLP_LAB_PLACE": "data"})["lab.place"] == str(here / "data")


def test_project_is_the_nearest_folder_with_settings(tmp_path: Path) -> None:
    """mlp.toml or a [tool.mlp] table marks the project; a pyproject.toml without the table does not hide one above."""
    outer = write(tmp_path, "pyproject.toml", "[tool.mlp.lab]\ntext = 'outer'\n")
    member = tmp_path / "member"
    write(member, "pyproject.toml", "[project]\nname = 'mlp-x'\n[tool.mlpx]\n")
    flow = write(member / "deep", "flow.py", "")
    sources = find_sources(flow, environ={})
    assert (sources.project, sources.file) == (tmp_path, outer)
    assert resolve_settings(DECLARED, sources)["lab.text"] == "outer"
    own = write(member, "mlp.toml", "lab.text = 'own'\n")
    sources = find_sources(flow, environ={})
    assert (sources.project, sources.file) == (member, own)


@pytest.mark.parametrize("marker", ["pyproject.toml", ".git", ".mlp"])
def test_project_without_settings(tmp_path: Path, marker: str) -> None:
    """Without settings, the nearest folder that looks like a project is one; the store then lies beside it."""
    (tmp_path / "a/b").mkdir(parents=True)
    if marker.startswith("."):
        (tmp_path / "a" / marker).mkdir()
    else:
        (tmp_path / "a" / marker).touch()
    sources = find_sources(tmp_path / "a/b", environ={})
    assert (sources.project, sources.file) == (tmp_path / "a", None)
    assert resolve_settings(CORE_SETTINGS, sources)["store"] == str(tmp_path / "a/.mlp")


def test_no_project_at_all(tmp_path: Path) -> None:
    """Where nothing marks a project, the folder itself is it."""
    folder = tmp_path / "plain"
    folder.mkdir()
    assert find_sources(folder, environ={}).project in (folder, *folder.parents)


def test_unknown_name_in_file_is_refused(tmp_path: Path) -> None:
    """A typing error in the file is found, with the name that was meant; plugins that are left out are no errors."""
    file = write(tmp_path, "mlp.toml", "[lab]\ntxt = 'x'\n")
    with pytest.raises(SettingError, match=r"unknown setting 'lab\.txt' in .*mlp\.toml") as caught:
        load_settings(DECLARED, file=file, environ={})
    assert caught.value.hint == "did you mean lab.text?"
    file.write_text("[ray]\naddress = 'auto'\n")
    with pytest.raises(SettingError, match=r"'ray\.address'") as caught:
        load_settings(DECLARED, file=file, environ={})
    assert "a plugin's settings begin with its name" in caught.value.hint
    assert resolve_settings(DECLARED, find_sources(tmp_path, environ={}), absent={"ray"})["lab.text"] == "plain"


def test_unknown_flag_is_refused() -> None:
    """A flag that is no setting is an error that names it as it is written."""
    with pytest.raises(SettingError, match=r"unknown setting 'lab\.txt' in --lab-txt"):
        load_settings(DECLARED, environ={}, flags={"lab.txt": "x"})


def test_variable_that_is_nearly_right_is_warned_of() -> None:
    """A variable with our prefix that is one letter off is warned of; others are none of our business."""
    with pytest.warns(MlpWarning, match="MLP_LAB_TEX is no setting's variable; did you mean MLP_LAB_TEXT"):
        load_settings(DECLARED, environ={"MLP_LAB_TEX": "x"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_settings(DECLARED, environ={"MLP_SOMETHING_ELSE": "x", "PATH": "/bin"})


@pytest.mark.parametrize(
    ("variable", "name"), [("MLP_STRICT_PLUGINS", "plugins.strict"), ("MLP_NO_PLUGINS", "plugins.safe")]
)
def test_short_names_of_plugin_modes(variable: str, name: str) -> None:
    """The two modes that are switched on in a hurry have variables that are easy to remember."""
    settings = load_settings(CORE_SETTINGS, environ={variable: "1"})
    assert settings[name] is True
    assert settings.source(name) == f"variable {variable}"


@pytest.mark.parametrize("content", [b"lab = [", b"\xff\xfe", b"[lab]\ntext = 1\n"])
def test_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    """A file that cannot be understood is an error that names it."""
    file = tmp_path / "mlp.toml"
    file.write_bytes(content)
    with pytest.raises(SettingError, match=r"mlp\.toml"):
        load_settings(DECLARED, file=file, environ={})


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file that was asked for is an error with the system's reason."""
    with pytest.raises(SettingError, match="No such file or directory"):
        load_settings(DECLARED, file=tmp_path / "mlp.toml", environ={})


@pytest.mark.parametrize(
    "setting",
    [
        Setting("Upper"),
        Setting("a..b"),
        Setting(""),
        Setting("a.1"),
        Setting("a b"),
        Setting("a.b", "date"),  # type: ignore[arg-type] # that is the point
        Setting("a.b", "int", "x"),
    ],
)
def test_bad_declarations(setting: Setting) -> None:
    """A setting with a malformed name, an unknown type or a default of another type is refused."""
    with pytest.raises(ValueError, match=r"setting|default"):
        check_declaration(setting)


def test_core_declares_its_settings_well() -> None:
    """The core's own settings pass the check that plugins' settings pass, each with a help text."""
    for setting in CORE_SETTINGS:
        check_declaration(setting)
        assert setting.help.endswith(".")
    assert len({variable_name(setting.name) for setting in CORE_SETTINGS}) == len(CORE_SETTINGS)


@pytest.mark.parametrize("name", ["run.max_workers", "run.max_num_splits", "plugins.timeout", "package.max_mb"])
def test_limits_below_one_are_refused(name: str) -> None:
    """A limit that nothing could satisfy is refused with the least value that makes sense."""
    with pytest.raises(SettingError, match="it must be at least 1"):
        load_settings(CORE_SETTINGS, environ={}, flags={name: 0})


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "lab.text": st.text(),
    "lab.whole": st.integers(),
    "lab.part": st.floats(allow_nan=False, allow_infinity=False),
    "lab.flag": st.booleans(),
    "lab.names": st.lists(st.from_regex(r"[a-z]+", fullmatch=True)).map(tuple),
}


@given(st.fixed_dictionaries({}, optional=VALUES))
def test_settings_travel_to_a_worker(given_values: dict[str, Any]) -> None:
    """What a driver resolved is what its worker sees, through JSON, whatever the worker's own variables say."""
    driver = load_settings(DECLARED, environ={}, flags=given_values)
    sent = json.loads(json.dumps(driver.portable()))
    worker = restore_settings(DECLARED, {**sent, "gone.plugin": 1}, {"MLP_LAB_WHOLE": "77", "MLP_LAB_PLACE": "/x"})
    assert dict(worker) == dict(driver)
    assert worker.source("lab.whole") == "driver"


def test_secrets_come_from_the_environment_alone(tmp_path: Path) -> None:
    """A file is committed and packed, a command line is seen by all: a secret that stands in either is refused."""
    file = tmp_path / "mlp.toml"
    file.write_text('[lab]\nkey = "hush-hush"\n')
    for place in ({"file": file}, {"flags": {"lab.key": "hush-hush"}}):
        with pytest.raises(SettingError, match=r"lab\.key .* is a secret") as caught:
            load_settings(DECLARED, environ={}, **place)
        assert "hush-hush" not in str(caught.value)
        assert "MLP_LAB_KEY" in caught.value.hint
    assert load_settings(DECLARED, environ={"MLP_LAB_KEY": "hush-hush"}).secrets() == ("hush-hush",)
    assert load_settings(DECLARED, environ={}).secrets() == ()
