"""Settings that are tables: where they may be given, and how their secrets stay where they are."""

from __future__ import annotations

import doctest
import json
from typing import TYPE_CHECKING, Any

import pytest

from mlp_core import setting_tables
from mlp_core.errors import SettingError
from mlp_core.settings import CORE_SETTINGS, find_sources, load_settings, resolve_settings, restore_settings
from mlp_hookspecs import Setting

if TYPE_CHECKING:
    from pathlib import Path

DECLARED = (Setting("lab.options", "table", None, "Arguments."), Setting("lab.text", "str", "plain"))
SECRET = {"key": "AKIA", "client_kwargs": {"aws_secret_access_key": "hush"}}


def load(table: dict[str, Any]) -> Any:
    """Settings of which a variable gives the table."""
    return load_settings(DECLARED, environ={"MLP_LAB_OPTIONS": json.dumps(table)})


def test_examples() -> None:
    """The examples in the docstrings do what they show."""
    assert doctest.testmod(setting_tables).failed == 0


def test_a_table_comes_from_everywhere(tmp_path: Path) -> None:
    """The flag wins over the variable, that over the file; a table is taken as a whole, not mixed."""
    (tmp_path / "mlp.toml").write_text("[lab.options]\nurl = 'file'\nconfig = {retries = 1, 'deep.er' = {x = [1]}}\n")
    found = resolve_settings(DECLARED, find_sources(tmp_path, environ={}))
    assert found["lab.options"]["url"] == "file"
    assert found["lab.options"]["config"]["retries"] == 1
    environ = {"MLP_LAB_OPTIONS": '{"url": "variable"}'}
    assert resolve_settings(DECLARED, find_sources(tmp_path, environ=environ))["lab.options"] == {"url": "variable"}
    sources = find_sources(tmp_path, environ=environ, flags={"lab.options": '{"url": "flag"}'})
    assert resolve_settings(DECLARED, sources)["lab.options"] == {"url": "flag"}
    assert load_settings(DECLARED, environ={})["lab.options"] is None


def test_a_table_cannot_be_changed() -> None:
    """What settings give is frozen."""
    with pytest.raises(TypeError, match="frozen"):
        load({"a": 1})["lab.options"]["a"] = 2


@pytest.mark.parametrize("given", ["", "{", "[1]", "1", '{"a": NaN}', '{"a": "\\ud800"}', {"a": {1, 2}}, {"a": b"x"}])
def test_what_is_no_table(given: object) -> None:
    """What is no JSON object is refused, and not shown, for it may hold a secret."""
    with pytest.raises(SettingError, match="is something else; it must be a table, or a JSON object"):
        load_settings(DECLARED, environ={}, flags={"lab.options": given})


def test_unknown_names_beside_a_table(tmp_path: Path) -> None:
    """A table takes every entry; a name that merely begins like it is a mistake as before."""
    (tmp_path / "mlp.toml").write_text("[lab]\noptionss = 1\n")
    with pytest.raises(SettingError, match=r"unknown setting 'lab\.optionss'"):
        resolve_settings(DECLARED, find_sources(tmp_path, environ={}))


@pytest.mark.parametrize(
    "table",
    [
        {"key": "AKIA"},
        {"endpoint": "https://me:hush@host/x"},
        {"client_kwargs": {"aws_session_token": "hush"}},
        {"list": [{"Password": "hush"}]},
    ],
)
def test_secrets_come_by_the_environment_alone(tmp_path: Path, table: dict[str, Any]) -> None:
    """A secret in a file or a flag is refused, at any depth, without showing it; in a variable it is taken."""
    for flags in ({"lab.options": table}, {"lab.options": json.dumps(table)}):
        with pytest.raises(SettingError, match=r"\(flag --lab-options\) has the entry '\w+', which looks") as caught:
            load_settings(DECLARED, environ={}, flags=flags)
        assert "hush" not in str(caught.value)
        assert "MLP_LAB_OPTIONS" in caught.value.hint
    (tmp_path / "mlp.toml").write_text("lab.options.key = 'hush'\n")
    with pytest.raises(SettingError, match="has the entry 'key', which looks like a secret"):
        resolve_settings(DECLARED, find_sources(tmp_path, environ={}))
    assert load(table)["lab.options"] == table


def test_secrets_are_neither_recorded_nor_shown() -> None:
    """What travels and what people see has all of a table but its secrets."""
    settings = load({**SECRET, "url": "http://x", "anon": False, "list": [1, {"token": "hush"}]})
    assert settings.portable()["lab.options"] == {
        "client_kwargs": {},
        "url": "http://x",
        "anon": False,
        "list": [1, {}],
    }
    assert settings.text("lab.options") == (
        "key=********, client_kwargs.aws_secret_access_key=********, url=http://x, anon=False, list=[1, {}]"
    )


def test_workers_add_their_own_secrets() -> None:
    """A worker has the driver's table, and the secrets of its own environment; nothing else of that counts."""
    portable = load({**SECRET, "url": "of the driver"}).portable()
    assert "hush" not in json.dumps(portable)
    own = {"MLP_LAB_OPTIONS": json.dumps({**SECRET, "url": "of the worker", "more": {"x": 1}})}
    restored = restore_settings(DECLARED, portable, own)
    assert restored["lab.options"] == {**SECRET, "url": "of the driver"}
    assert restore_settings(DECLARED, portable, {})["lab.options"] == {"url": "of the driver", "client_kwargs": {}}
    nothing = load_settings(DECLARED, environ={}).portable()
    assert restore_settings(DECLARED, nothing, own)["lab.options"] is None


def test_where_the_driver_has_no_entry_for_secrets() -> None:
    """Secrets below an entry that the driver has not arrive as well."""
    restored = restore_settings(DECLARED, {"lab.options": {}}, {"MLP_LAB_OPTIONS": json.dumps(SECRET)})
    assert restored["lab.options"] == SECRET


def test_core_settings_of_storage() -> None:
    """What the store reads has safe defaults."""
    settings = load_settings(CORE_SETTINGS, environ={})
    assert settings["storage.durability"] == "durable"
    assert settings["storage.shared"] is False
    assert settings["storage.retry_seconds"] == 120
    with pytest.raises(SettingError, match="it must be at least 0"):
        load_settings(CORE_SETTINGS, environ={"MLP_STORAGE_RETRY_SECONDS": "-1"})
    with pytest.raises(SettingError, match="allowed are durable, fast"):
        load_settings(CORE_SETTINGS, environ={"MLP_STORAGE_DURABILITY": "slow"})
