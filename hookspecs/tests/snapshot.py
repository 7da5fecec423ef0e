"""A description of the contract as data, and what must not change between two versions of it.

``python hookspecs/tests/snapshot.py`` writes the description of the running version beside this file. It refuses to
where that version has been released: then the version must be raised first.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any, get_args

import attrs

import mlp_hookspecs
from mlp_hookspecs import events, handles, process, specs, types, warnings
from mlp_hookspecs.reference import annotation_text
from mlp_hookspecs.specs import HOOKS
from mlp_hookspecs.version import CONTRACT_VERSION

FOLDER = Path(__file__).parent / "snapshots"
CHANGELOG = Path(__file__).parents[1] / "CHANGELOG.md"
COMMAND = "python hookspecs/tests/snapshot.py"

MADE_BY_PLUGINS = ("AppendFile", "DeployTarget", "Launcher", "ObjectStore")
"""The handles that plugins implement: what is added to one of them breaks every plugin that has it."""

Description = dict[str, Any]


def describe() -> Description:
    """Return all that a plugin can see of the contract."""
    values = {name: getattr(types, name) for name in types.__all__}
    return {
        "names": sorted(mlp_hookspecs.__all__),
        "constants": {
            "project": mlp_hookspecs.PROJECT_NAME,
            "entry_point_group": mlp_hookspecs.ENTRY_POINT_GROUP,
            "options_attribute": mlp_hookspecs.OPTIONS_ATTRIBUTE,
            "message_fd": process.MESSAGE_FD,
            "lifeline_fd": process.LIFELINE_FD,
        },
        "hooks": {hook: _hook(hook) for hook in HOOKS},
        "values": {name: _fields(value) for name, value in values.items() if attrs.has(value)},
        "choices": {name: list(get_args(value)) for name, value in values.items() if get_args(value)},
        "handles": {name: _methods(handle) for name, handle in _classes(handles) if not attrs.has(handle)},
        "handle_values": {name: _fields(handle) for name, handle in _classes(handles) if attrs.has(handle)},
        "events": {name: _fields(event) for name, event in _classes(events)},
        "warnings": {name: [base.__name__ for base in kind.__mro__[1:-2]] for name, kind in _classes(warnings)},
    }


def breaks(old: Description, new: Description) -> list[str]:
    """Return what of a newer description would break a plugin, or data, made for the older one."""
    found = [f"{name} was removed" for name in old["names"] if name not in new["names"]]
    found += _changed("constant", old["constants"], new["constants"])
    found += _broken_hooks(old, new)
    for group in ("values", "handle_values", "events"):
        for name, fields in old[group].items():
            found += _broken_fields(name, fields, new[group].get(name))
    for name, choices in old["choices"].items():
        found += [f"{name}: {choice!r} was removed" for choice in choices if choice not in new["choices"].get(name, ())]
    for name, methods in old["handles"].items():
        after = new["handles"].get(name)
        if after is None:
            found.append(f"{name} was removed")
            continue
        found += _changed(f"{name}.", methods, after)
        if name in MADE_BY_PLUGINS:
            found += [
                f"{name}.{method} was added, which plugins do not have" for method in after if method not in methods
            ]
    return found + _changed("warning", old["warnings"], new["warnings"])


def _broken_hooks(old: Description, new: Description) -> list[str]:
    """Return what breaks in the hooks."""
    found = []
    for hook, before in old["hooks"].items():
        after = new["hooks"].get(hook)
        if after is None:
            found.append(f"hook {hook} was removed")
            continue
        if before.get("optional") and not after["optional"]:
            found.append(f"hook {hook} must be implemented, and was optional")
        if after["arguments"][: len(before["arguments"])] != before["arguments"]:
            found.append(f"hook {hook} takes {after['arguments']}, and took {before['arguments']}")
        found += _changed(f"hook {hook}:", before["call"], after["call"])
    kinds = old["choices"]["BackendKind"]
    required = {name: hook for name, hook in new["hooks"].items() if name not in old["hooks"] and not hook["optional"]}
    return found + [
        f"hook {name} was added, and every {hook['call']['kind']} must have it"
        for name, hook in required.items()
        if hook["call"]["kind"] in kinds
    ]


def _broken_fields(name: str, old: list[dict[str, Any]], new: list[dict[str, Any]] | None) -> list[str]:
    """Return what breaks in a class."""
    if new is None:
        return [f"{name} was removed"]
    found = []
    for place, field in enumerate(old):
        if place >= len(new) or new[place]["name"] != field["name"]:
            what = "moved" if field["name"] in {other["name"] for other in new} else "removed"
            found.append(f"{name}.{field['name']} was {what}")
        elif new[place] != field:
            found.append(f"{name}.{field['name']} is {new[place]}, and was {field}")
    known = {field["name"] for field in old}
    added = [field["name"] for field in new if field["name"] not in known and field["default"] is None]
    return found + [f"{name}.{field} was added without a default" for field in added]


def _changed(what: str, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return the entries that are gone or different."""
    gone = [f"{what} {name} was removed" for name in old if name not in new]
    return gone + [
        f"{what} {name} is {new[name]}, and was {old[name]}" for name in old if new.get(name, old[name]) != old[name]
    ]


def _hook(hook: str) -> dict[str, Any]:
    """Describe a hook."""
    found = inspect.signature(getattr(specs, hook))
    info = HOOKS[hook]
    arguments = [f"{name}: {parameter.annotation}" for name, parameter in found.parameters.items()]
    call = {"mode": info.mode, "where": info.where, "kind": info.kind, "returns": found.return_annotation}
    return {"arguments": arguments, "call": call, "optional": info.is_optional}


def _fields(cls: type) -> list[dict[str, Any]]:
    """Describe the fields of an attrs class; a field without a default has None for it."""
    return [
        {
            "name": field.name,
            "type": annotation_text(field.type),
            "default": None if field.default is attrs.NOTHING else _default(field.default),
            "keyword": field.kw_only,
        }
        for field in attrs.fields(cls)
    ]


def _default(value: object) -> str:
    """Describe a default."""
    return f"new {value.factory.__name__}" if isinstance(value, attrs.Factory) else repr(value)


def _methods(handle: type) -> dict[str, str]:
    """Describe the methods and properties of a protocol."""
    found = {}
    for name, member in vars(handle).items():
        if isinstance(member, property):
            found[name] = annotation_text(inspect.signature(member.fget).return_annotation)
        elif inspect.isfunction(member) and not name.startswith("_"):
            found[name] = str(inspect.signature(member)).replace("'", "")
    return found


def _classes(module: Any) -> list[tuple[str, type]]:
    """Return the public classes that a module defines."""
    own = ((name, value) for name, value in vars(module).items() if isinstance(value, type) and name[0] != "_")
    return [(name, value) for name, value in own if value.__module__ == module.__name__]


def path_of(version: str) -> Path:
    """Return the snapshot's file of a version."""
    return FOLDER / f"{version}.json"


def numbers(version: str) -> tuple[int, ...]:
    """Return a version's numbers."""
    return tuple(int(part) for part in version.split("."))


def compatible_snapshots() -> list[Path]:
    """Return the snapshots of versions that the running one must be compatible with."""
    ours = numbers(CONTRACT_VERSION)
    # While the contract is 0.x, the second number is the one that tells of incompatible changes.
    significant = 2 if ours[0] == 0 else 1
    return [
        path
        for path in sorted(FOLDER.glob("*.json"))
        if numbers(path.stem)[:significant] == ours[:significant] and numbers(path.stem) <= ours
    ]


def is_released(version: str) -> bool:
    """Tell whether the changelog has a section for a version."""
    return bool(re.search(rf"^## {re.escape(version)} ", CHANGELOG.read_text(), re.MULTILINE))


def main() -> None:
    """Write the running version's snapshot."""
    if is_released(CONTRACT_VERSION) and path_of(CONTRACT_VERSION).exists():
        sys.exit(f"version {CONTRACT_VERSION} is released: raise the version, in version.py and pyproject.toml, first")
    FOLDER.mkdir(exist_ok=True)
    path_of(CONTRACT_VERSION).write_text(json.dumps(describe(), indent=1) + "\n")


if __name__ == "__main__":
    main()
