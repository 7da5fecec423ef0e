"""How ``mlp env`` shows, compares, names and removes the environments of a store and of this host."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final

from mlp_core.cli.text import moment, place, plural, put, put_json, safe_line, size, table
from mlp_core.environments.catalog import is_digest, is_pathspec
from mlp_core.environments.host import HostEnvironments, MadeEnvironment
from mlp_core.environments.project import ProjectEnvironments
from mlp_core.errors import MlpError, NotFound, StoreUnavailable, UsageError
from mlp_core.names import short_digest
from mlp_core.store.index import RunQuery

if TYPE_CHECKING:
    from mlp_core.cli.arguments import Parser
    from mlp_core.cli.dispatch import Call
    from mlp_core.environments.records import KeptLock, NamedLock
    from mlp_hookspecs import EnvironmentLock

_RUNS: Final = 100
_SECONDS: Final = 5.0
_SHOWN_RUNS: Final = 10
_WHAT: Final = "a name, name:tag, digest, or the run, step or task that had it: Flow/run/step"


# ------------------------------------------------------------------------------------------------- show


def env_show_arguments(parser: Parser) -> None:
    """Add the options of ``mlp env show``."""
    parser.positional("what", help=_WHAT)
    parser.option("--json", action="store_true", help="print JSON")


def env_show_command(call: Call) -> int:
    """Show an environment: what is in it, what it is called, where it is, and which runs have used it."""
    environments = ProjectEnvironments(call.session)
    kept = environments.look_up(call.args.what)
    data = _details(environments, kept)
    if call.args.json:
        put_json(data)
    else:
        _show(data)
    return 0


def _details(environments: ProjectEnvironments, kept: KeptLock) -> dict[str, Any]:
    """Return all that is known of an environment."""
    lock, catalog = kept.lock, environments.catalog
    return {
        "environment": lock.digest,
        "backend": lock.backend,
        "python": lock.python,
        "platforms": list(lock.platforms),
        "packages": dict(sorted(lock.packages.items())),
        "has_own_packages": lock.has_own_packages,
        "requirement": {
            "digest": environments.requirement_digest(kept) or None,
            "asks_for": json.loads(json.dumps(dict(kept.spec.requirement), default=dict)),
            "base": kept.base or None,
        },
        "names": [str(named) for named in catalog.named() if named.lock_digest == lock.digest],
        "bundles": [
            {"platform": bundle.platform or "own packages", "files": len(bundle.files), "size": bundle.size}
            for bundle in catalog.bundles(lock.digest)
        ],
        "on_this_host": HostEnvironments().has(lock.digest),
        "resolved_at": kept.time,
        "username": kept.username,
        "runs": _runs_with(environments, lock),
    }


def _runs_with(environments: ProjectEnvironments, lock: EnvironmentLock) -> list[dict[str, Any]]:
    """Return the newest runs that have used an environment with the steps that did, as far as there is time to look."""
    found = []
    until = time.monotonic() + _SECONDS
    for run in environments.store.runs(query=RunQuery(limit=_RUNS)):
        if time.monotonic() > until:
            break
        try:
            state = environments.store.run(run.flow, run.run_id)
        except MlpError:  # damaged, or removed meanwhile: another command tells of that
            continue
        steps = {step for record in state.environments if record.lock.digest == lock.digest for step in record.steps}
        if steps:
            found.append({"run": f"{run.flow}/{run.run_id}", "steps": sorted(steps)})
    return found


def _show(data: dict[str, Any]) -> None:
    """Print what is known of an environment."""
    put(f"environment {data['environment']}")
    asked = data["requirement"]
    lines = {
        "names": ", ".join(data["names"]),
        "backend": data["backend"],
        "python": data["python"],
        "platforms": ", ".join(data["platforms"]) or "any",
        "asked for": asked["digest"] or "unknown: the environment that it was added to is gone",
        "": json.dumps(asked["asks_for"]),
        "added to": asked["base"] or "",
        "resolved": f"{moment(data['resolved_at'])} by {data['username']}",
        "this host": "made" if data["on_this_host"] else "not made yet",
        "bundles": ", ".join(
            f"{bundle['platform']} ({plural(bundle['files'], 'file')}, {size(bundle['size'])})"
            for bundle in data["bundles"]
        ),
    }
    for title, text in lines.items():
        if text:
            put(f"  {title:<10} {safe_line(text)}")
    put("\n" + table(("package", "version"), data["packages"].items()))
    if data["runs"]:
        put("\nof the newest runs, used by:")
        for run in data["runs"][:_SHOWN_RUNS]:
            put(safe_line(f"  {run['run']} ({', '.join(run['steps'])})"))
        if len(data["runs"]) > _SHOWN_RUNS:
            put(f"  ... and {len(data['runs']) - _SHOWN_RUNS} more")


# ------------------------------------------------------------------------------------------------- list


def env_list_arguments(parser: Parser) -> None:
    """Add the options of ``mlp env list``."""
    parser.option("--host", action="store_true", help="list what has been made on this host, for all stores")
    parser.option("--json", action="store_true", help="print JSON")


def env_list_command(call: Call) -> int:
    """List environments, the newest first."""
    return _list_host(call) if call.args.host else _list_store(call)


def _list_store(call: Call) -> int:
    """List what the store keeps."""
    catalog, host = ProjectEnvironments(call.session).catalog, HostEnvironments()
    named = catalog.named()
    found: list[dict[str, Any]] = []
    for kept in catalog.locks():
        lock = kept.lock
        found.append(
            {
                "environment": lock.digest,
                "names": [str(each) for each in named if each.lock_digest == lock.digest],
                "backend": lock.backend,
                "python": lock.python,
                "packages": len(lock.packages),
                "bundles": [bundle.platform or "own packages" for bundle in catalog.bundles(lock.digest)],
                "on_this_host": host.has(lock.digest),
                "resolved_at": kept.time,
                "username": kept.username,
            }
        )
    if call.args.json:
        put_json(found)
    elif not found:
        put(f"no environments in {place(call.session.store_url)}; begin with: mlp env resolve FLOW.py")
    else:
        rows = [
            (
                short_digest(each["environment"]),
                ", ".join(each["names"]),
                each["backend"],
                each["python"],
                str(each["packages"]),
                ", ".join(each["bundles"]),
                "made" if each["on_this_host"] else "",
                moment(each["resolved_at"]),
            )
            for each in found
        ]
        header = ("environment", "names", "backend", "python", "packages", "bundles", "this host", "resolved")
        put(table(header, rows))
    return 0


def _list_host(call: Call) -> int:
    """List what this host has."""
    host = HostEnvironments()
    made, named = host.made(), _names(call)
    if call.args.json:
        put_json(
            [
                {
                    "environment": each.digest,
                    "path": str(each.path),
                    "used_at": each.used_at,
                    "in_use": each.is_used,
                    "names": named.get(each.digest, []),
                }
                for each in made
            ]
        )
    elif not made:
        put(f"no environments have been made in {place(str(host.root))}")
    else:
        rows = [
            (
                short_digest(each.digest),
                ", ".join(named.get(each.digest, [])),
                "now" if each.is_used else moment(each.used_at),
                str(each.path),
            )
            for each in made
        ]
        put(table(("environment", "names", "used", "where"), rows))
    return 0


def _names(call: Call) -> dict[str, list[str]]:
    """Return the names of environments by digest, where there is a store."""
    found: dict[str, list[str]] = {}
    try:
        named: list[NamedLock] = ProjectEnvironments(call.session).catalog.named()
    except StoreUnavailable:
        return found
    for each in named:
        found.setdefault(each.lock_digest, []).append(str(each))
    return found


# ------------------------------------------------------------------------------------------------- diff


def env_diff_arguments(parser: Parser) -> None:
    """Add the options of ``mlp env diff``."""
    parser.positional("first", help=_WHAT)
    parser.positional("second", help="what it is compared with")
    parser.option("--json", action="store_true", help="print JSON")


def env_diff_command(call: Call) -> int:
    """Compare two environments; the exit status tells whether they differ."""
    environments = ProjectEnvironments(call.session)
    first, second = (environments.look_up(text).lock for text in (call.args.first, call.args.second))
    data = difference(first, second)
    if call.args.json:
        put_json(data)
    else:
        _show_difference(data)
    return 0 if data["equal"] else 1


def difference(first: EnvironmentLock, second: EnvironmentLock) -> dict[str, Any]:
    """Return what the second environment has that the first has not, and so on."""
    old, new = first.packages, second.packages
    facts = {
        "backend": (first.backend, second.backend),
        "python": (first.python, second.python),
        "platforms": (", ".join(first.platforms) or "any", ", ".join(second.platforms) or "any"),
    }
    return {
        "equal": first.digest == second.digest,
        "first": first.digest,
        "second": second.digest,
        **{name: list(pair) if pair[0] != pair[1] else None for name, pair in facts.items()},
        "added": {name: new[name] for name in sorted(new.keys() - old.keys())},
        "removed": {name: old[name] for name in sorted(old.keys() - new.keys())},
        "changed": {name: [old[name], new[name]] for name in sorted(old.keys() & new.keys()) if old[name] != new[name]},
    }


def _show_difference(data: dict[str, Any]) -> None:
    """Print a difference as lists of changes are written: + what is added, - what is removed."""
    if data["equal"]:
        put(f"both are {data['first']}")
        return
    lines = [f"~ {name} {' -> '.join(data[name])}" for name in ("backend", "python", "platforms") if data[name]]
    lines += [f"+ {name} {version}" for name, version in data["added"].items()]
    lines += [f"- {name} {version}" for name, version in data["removed"].items()]
    lines += [f"~ {name} {' -> '.join(versions)}" for name, versions in data["changed"].items()]
    put("\n".join(map(safe_line, lines)) or "the same packages, with other files allowed for them")


# ------------------------------------------------------------------------------------------------- alias, rm


def env_alias_arguments(parser: Parser) -> None:
    """Add the options of ``mlp env alias``."""
    parser.positional("what", help=_WHAT)
    parser.positional(
        "name", metavar="NAME[:TAG]", help="the name; the tags latest, candidate and stable can move, others cannot"
    )
    parser.option("--json", action="store_true", help="print JSON")


def env_alias_command(call: Call) -> int:
    """Give an environment a name."""
    named = ProjectEnvironments(call.session).name(call.args.what, call.args.name)
    if call.args.json:
        put_json({"name": str(named), "environment": named.lock_digest})
    else:
        put(f"{named} is environment {short_digest(named.lock_digest)}")
        put(f'A step runs in it by: @named_env(name="{named}")')
    return 0


def env_rm_arguments(parser: Parser) -> None:
    """Add the options of ``mlp env rm``."""
    parser.positional("what", help="a name, or name:tag, to be forgotten; or the digest of an environment")
    parser.option("--host", action="store_true", help="remove it from this host, not from the store")
    parser.option("--json", action="store_true", help="print JSON")


def env_rm_command(call: Call) -> int:
    """Remove a name, or an environment from the store or from this host."""
    what = call.args.what
    if call.args.host:
        digest = _remove_from_host(call)
        answer, told = {"environment": digest, "removed": "host"}, f"{short_digest(digest)} is no longer on this host"
    elif is_pathspec(what):
        raise UsageError(f"{what} is a run's: its environment goes with it", hint=f"mlp env rm --host {what}")
    elif is_digest(what):
        environments = ProjectEnvironments(call.session)
        digest = environments.look_up(what).lock.digest
        environments.catalog.remove(digest)
        answer, told = {"environment": digest, "removed": "store"}, f"{short_digest(digest)} is no longer in the store"
    else:
        named = ProjectEnvironments(call.session).catalog.unname(what)
        answer = {"name": str(named), "environment": named.lock_digest, "removed": "name"}
        told = f"{named} is no name any more; it was environment {short_digest(named.lock_digest)}"
    put_json(answer) if call.args.json else put(safe_line(told))
    return 0


def _remove_from_host(call: Call) -> str:
    """Remove an environment from this host, and return its digest."""
    host, what = HostEnvironments(), call.args.what
    if is_digest(what):  # what no store knows can be removed too
        digits = what.removeprefix("sha256-")
        found: list[MadeEnvironment] = [each for each in host.made() if each.digest[7:].startswith(digits)]
        if len(found) > 1:
            raise UsageError(f"{len(found)} environments begin with {digits}", hint="give more digits")
        digest = found[0].digest if found else ""
    else:
        digest = ProjectEnvironments(call.session).look_up(what).lock.digest
    if not digest or not host.has(digest):
        raise NotFound(f"there is no environment {what} on this host", hint="mlp env list --host")
    if not host.remove(digest):
        raise MlpError(
            f"environment {short_digest(digest)} is in use on this host", hint="wait until its steps have ended"
        )
    return digest
