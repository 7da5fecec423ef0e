"""The contract does not change unnoticed, and is documented as it is."""

from __future__ import annotations

import copy
import doctest
import importlib
import importlib.metadata
import inspect
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

import mlp_hookspecs
from mlp_hookspecs import events, handles, specs, types
from mlp_hookspecs.reference import reference, signature
from mlp_hookspecs.specs import HOOKS
from mlp_hookspecs.version import CONTRACT_VERSION

sys.path.insert(0, str(Path(__file__).parent))
snapshot = importlib.import_module("snapshot")
sys.path.pop(0)

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(mlp_hookspecs.__path__, "mlp_hookspecs.")
    if not module.name.endswith("__main__")
)


# ------------------------------------------------------------------------------------------------- snapshots


def test_version_is_the_distributions() -> None:
    """The constant that travels to workers is the version of the distribution."""
    assert importlib.metadata.version("mlp-hookspecs") == CONTRACT_VERSION


def test_snapshot_is_of_this_contract() -> None:
    """The committed description of this version is what the code is; a difference is either a mistake or is renewed."""
    path = snapshot.path_of(CONTRACT_VERSION)
    assert path.exists(), f"there is no snapshot of version {CONTRACT_VERSION}; make it: {snapshot.COMMAND}"
    same = json.loads(path.read_text()) == json.loads(json.dumps(snapshot.describe()))
    assert same, f"the contract has changed; if that is meant, renew the snapshot: {snapshot.COMMAND}"


def test_contract_keeps_its_promises() -> None:
    """Nothing that an earlier version of the same line promised is broken."""
    earlier = snapshot.compatible_snapshots()
    assert earlier
    for path in earlier:
        assert snapshot.breaks(json.loads(path.read_text()), snapshot.describe()) == [], path.stem


def change(description: dict[str, Any], *path: Any, to: Any) -> None:
    """Change a part of a description; an ellipsis removes it."""
    for key in path[:-1]:
        description = description[key]
    if to is ...:
        del description[path[-1]]
    else:
        description[path[-1]] = to


FIELD = {"name": "extra", "type": "int", "default": "0", "keyword": False}


def added_hook(kind: str | None, *, is_optional: bool) -> dict[str, Any]:
    """Return the description of a hook that was not there before."""
    call = {"mode": "claim" if kind else "collect", "where": "driver", "kind": kind, "returns": "None"}
    return {"arguments": [], "call": call, "optional": is_optional}


BREAKING: dict[str, tuple[Any, ...]] = {
    "hook removed": ("hooks", "mlp_event", ...),
    "hook that backends must have": ("hooks", "mlp_new", added_hook("environment", is_optional=False)),
    "hook made obligatory": ("hooks", "mlp_bundle_environment", "optional", False),
    "argument removed": ("hooks", "mlp_event", "arguments", []),
    "argument changed": ("hooks", "mlp_open_store", "arguments", ["url: bytes"]),
    "mode changed": ("hooks", "mlp_event", "call", "mode", "collect"),
    "place changed": ("hooks", "mlp_wrap_step", "call", "where", "driver"),
    "result changed": ("hooks", "mlp_backends", "call", "returns", "Backend"),
    "value removed": ("values", "TaskKey", ...),
    "field removed": ("values", "TaskKey", 0, ...),
    "field changed": ("values", "TaskKey", 0, "type", "int"),
    "default removed": ("values", "TaskKey", 3, "default", None),
    "field without default": ("values", "TaskKey", 4, {**FIELD, "default": None}),
    "choice removed": ("choices", "BackendKind", 0, ...),
    "handle removed": ("handles", "LaunchSink", ...),
    "method removed": ("handles", "LaunchSink", "started", ...),
    "method changed": ("handles", "Launcher", "capacity", "(self) -> str"),
    "method of plugins added": ("handles", "Launcher", "pause", "(self) -> None"),
    "event removed": ("events", "TaskStarted", ...),
    "event's field renamed": ("events", "TaskStarted", 0, "name", "number"),
    "name removed": ("names", 0, ...),
    "constant changed": ("constants", "entry_point_group", "mlp2"),
    "warning removed": ("warnings", "PluginWarning", ...),
}
HARMLESS: dict[str, tuple[Any, ...]] = {
    "nothing": ("constants", "project", "mlp"),
    "hook added": ("hooks", "mlp_new", added_hook(None, is_optional=False)),
    "hook that backends may have": ("hooks", "mlp_new", added_hook("environment", is_optional=True)),
    "hook of a new kind": ("hooks", "mlp_new", added_hook("rocket", is_optional=False)),
    "hook made optional": ("hooks", "mlp_open_store", "optional", True),
    "trailing argument": ("hooks", "mlp_open_store", "arguments", ["url: str", "settings: Settings"]),
    "value added": ("values", "New", [FIELD]),
    "field with default": ("values", "TaskKey", 4, FIELD),
    "choice added": ("choices", "BackendKind", 7, "rocket"),
    "handle added": ("handles", "New", {}),
    "method of the core added": ("handles", "LaunchSink", "paused", "(self) -> None"),
    "event added": ("events", "TaskPaused", []),
    "name added": ("names", 999, "New"),
}


def changed(path: tuple[Any, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a description before and after a change."""
    old = json.loads(json.dumps(snapshot.describe()))
    new = copy.deepcopy(old)
    *keys, to = path
    if isinstance(keys[-1], int) and to is not ...:
        holder = new
        for key in keys[:-1]:
            holder = holder[key]
        holder[keys[-1] :] = [to, *holder[keys[-1] + 1 :]]
    else:
        change(new, *keys, to=to)
    return old, new


@pytest.mark.parametrize("path", BREAKING.values(), ids=BREAKING)
def test_breaking_change_is_found(path: tuple[Any, ...]) -> None:
    """What would break a plugin that was written for the older version is reported."""
    assert len(snapshot.breaks(*changed(path))) >= 1


@pytest.mark.parametrize("path", HARMLESS.values(), ids=HARMLESS)
def test_harmless_change_passes(path: tuple[Any, ...]) -> None:
    """What only adds to the contract, so that older plugins go on working, is no break."""
    assert snapshot.breaks(*changed(path)) == []


def test_only_versions_of_the_same_line_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the contract is 0.x, a new second number may break; later, a new first one may."""
    for version in ("0.1.0", "0.1.2", "0.2.0", "1.0.0", "1.4.0", "2.0.0"):
        (tmp_path / f"{version}.json").touch()
    monkeypatch.setattr(snapshot, "FOLDER", tmp_path)
    for ours, compared in (("0.1.1", ["0.1.0"]), ("0.3.0", []), ("1.4.0", ["1.0.0", "1.4.0"])):
        monkeypatch.setattr(snapshot, "CONTRACT_VERSION", ours)
        assert [path.stem for path in snapshot.compatible_snapshots()] == compared


def test_released_snapshot_is_not_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the changelog has a version, its snapshot stays; the message says to raise the version."""
    monkeypatch.setattr(snapshot, "FOLDER", tmp_path)
    snapshot.main()
    assert json.loads(snapshot.path_of(CONTRACT_VERSION).read_text())["hooks"]
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text(f"# Changelog\n\n## {CONTRACT_VERSION} (2026-12-01)\n")
    monkeypatch.setattr(snapshot, "CHANGELOG", changelog)
    with pytest.raises(SystemExit, match="is released: raise the version"):
        snapshot.main()


# ------------------------------------------------------------------------------------------------- documentation


def test_reference_is_of_this_contract() -> None:
    """docs/hooks.md is what the docstrings say."""
    text = (ROOT / "docs/hooks.md").read_text()
    assert text == reference(), "renew it: python -m mlp_hookspecs.reference > docs/hooks.md"


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_is_documented_with_its_arguments(hook: str) -> None:
    """Every hook has a heading with its exact arguments, and its docstring the fixed shape."""
    assert f"\n## {signature(hook)}\n" in reference()
    function = getattr(specs, hook)
    text = inspect.getdoc(function) or ""
    for part in ("**Mode**: ", "**Where**: ", "**When**:", "Examples\n--------"):
        assert part in text
    assert f"**Mode**: {HOOKS[hook].mode}" in text
    for name in inspect.signature(function).parameters:
        assert f"\n{name} : " in text


@pytest.mark.parametrize("module", [module for module in MODULES if ".testing" not in module])
def test_examples_in_docstrings_work(module: str) -> None:
    """Every example in the docstrings of a module does what it shows."""
    results = doctest.testmod(importlib.import_module(module))
    assert results.failed == 0


@pytest.mark.parametrize("module", [module for module in MODULES if ".testing." in module])
def test_examples_of_the_kit_work(module: str) -> None:
    """Every example in the docstrings of the kit does what it shows."""
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def test_every_hook_is_listed() -> None:
    """The table of hooks has exactly the marked functions, and every claim names a kind of backend that exists."""
    marked = {name for name, value in vars(specs).items() if hasattr(value, "mlp_spec")}
    assert set(HOOKS) == marked
    kinds = {info.kind for info in HOOKS.values() if info.mode == "claim"}
    assert kinds <= set(types.BackendKind.__args__)
    assert all((info.kind is None) is (info.mode != "claim") for info in HOOKS.values())


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_has_the_form_of_a_hook(hook: str) -> None:
    """A hook takes at most three plain arguments without defaults."""
    parameters = inspect.signature(getattr(specs, hook)).parameters.values()
    assert len(parameters) <= 3
    assert {parameter.kind for parameter in parameters} <= {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    assert {parameter.default for parameter in parameters} <= {inspect.Parameter.empty}


def test_values_are_frozen_and_documented() -> None:
    """Every value, handle value and event is a frozen attrs class with slots, and documents all of its fields."""
    classes = [value for name in types.__all__ if attrs.has(value := getattr(types, name))]
    classes += [value for _, value in snapshot._classes(events)]
    classes += [value for _, value in snapshot._classes(handles) if attrs.has(value)]
    assert len(classes) > 40
    for cls in classes:
        assert "__slots__" in vars(cls), cls
        assert cls.__setattr__ is not object.__setattr__, f"{cls} is not frozen"
        documented = inspect.getdoc(cls) or ""
        missing = [
            f.name for f in attrs.fields(cls) if f.name in inspect.get_annotations(cls) and f.name not in documented
        ]
        assert missing == [], cls


def test_contract_imports_nothing_else() -> None:
    """The package imports the standard library, attrs and pluggy."""
    code = "import mlp_hookspecs.specs, mlp_hookspecs.process, mlp_hookspecs.wire, sys; print(*sys.modules)"
    # Without site-packages' start-up files, which may import anything; the path is what counts.
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        check=True,
        capture_output=True,
        text=True,
    )
    packages = {name.partition(".")[0] for name in done.stdout.split()} - sys.stdlib_module_names
    assert packages == {"__main__", "attr", "attrs", "mlp_hookspecs", "pluggy"}
