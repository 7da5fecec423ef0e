"""How ``mlp deploy`` deploys a flow, and ``mlp deployments`` looks after what is deployed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from mlp_core.cli import parameters
from mlp_core.cli.report import warn
from mlp_core.cli.running import add_output_options, run_to_end
from mlp_core.cli.text import moment, place, put, put_json, safe_line, table
from mlp_core.deploy import Deployments, Order, Version
from mlp_core.errors import PluginRefused, UsageError
from mlp_core.loading import load_code
from mlp_core.runner import RunOptions
from mlp_core.session import Session
from mlp_core.unpack import unpacked

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlp_core.cli.arguments import Parser
    from mlp_core.cli.dispatch import Call
    from mlp_core.deploy import Active

_TARGET: Final = "local"
_ACTIONS: Final = ("list", "show", "trigger", "rollback", "delete", "run")


def deploy_arguments(parser: Parser) -> None:
    """Add the options of ``mlp deploy``."""
    repeat: dict[str, Any] = {"action": "append", "default": []}
    parameters.add_parameter_options(parser)
    parser.option("--target", default=_TARGET, metavar="NAME", help=f"where it is deployed to; by default {_TARGET}")
    parser.option("--name", default="", metavar="NAME", help="the deployment's name; by default the flow's")
    parser.option("--tag", metavar="TAG", help="give every run a tag; may be repeated", **repeat)
    parser.option(
        "--with", dest="with_options", metavar="OPTION", help="decorate every step: retry or retry:times=2", **repeat
    )
    parser.option("--flow", metavar="NAME", help="the flow, where the file defines several")
    parser.option("--json", action="store_true", help="print JSON")


def deploy_command(call: Call) -> int:
    """Record a version of a flow, and make it the active one of its name."""
    args = call.args
    order = Order(args.target, args.name, parameters.texts(args), tuple(args.tag), tuple(args.with_options))
    deployment = Deployments(call.session).deploy(call.the_flow, order)
    if args.json:
        put_json(attrs.asdict(deployment))
        return 0
    where = f" ({safe_line(deployment.location)})" if deployment.location else ""
    put(f"{deployment.name} version {deployment.version} is deployed on {deployment.target}{where}")
    also = "" if deployment.target == _TARGET else f" --target {deployment.target}"
    put(f"Run it: mlp deployments trigger {deployment.name}{also}")
    return 0


def deployments_arguments(parser: Parser) -> None:
    """Add the options of ``mlp deployments``."""
    parser.positional("action", nargs="?", choices=_ACTIONS, default="list", help=", ".join(_ACTIONS))
    parser.positional("name", nargs="?", help="the deployment; for all actions but list")
    parser.positional("values", nargs="*", help="parameters for trigger and run, as NAME=VALUE")
    parser.option("--target", metavar="NAME", help=f"where it is deployed; by default {_TARGET}, for list all")
    parser.option("--version", type=int, metavar="N", help="this version; by default the active one")
    parser.option("--wait", action="store_true", help="trigger: print the run's log and wait for its end")
    parser.option("--run-id-file", type=Path, metavar="PATH", help="run: write the run's id to this file")
    add_output_options(parser)


def deployments_command(call: Call) -> int:
    """Carry out one of the actions."""
    args = call.args
    actions: dict[str, Callable[[Call], int]] = {
        "list": _list,
        "show": _show,
        "trigger": _trigger,
        "rollback": _rollback,
        "delete": _delete,
        "run": _run,
    }
    if args.action == "list":
        if args.name is not None:
            raise UsageError("mlp deployments list takes no name", hint=f"mlp deployments show {args.name}")
    elif args.name is None:
        raise UsageError("which deployment?", hint=f"mlp deployments {args.action} NAME")
    if args.values and args.action not in ("trigger", "run"):
        raise UsageError(f"mlp deployments {args.action} takes no parameters", hint="they are for trigger")
    if args.version is not None and args.version < 1:
        raise UsageError(f"--version {args.version} is refused", hint="versions are numbered from 1")
    return actions[args.action](call)


def _list(call: Call) -> int:
    """List what is deployed."""
    active = Deployments(call.session).active(call.args.target)
    if call.args.json:
        put_json([_active_data(each) for each in active])
    elif not active:
        put(f"nothing is deployed from {place(call.session.store_url)}; begin with: mlp deploy FLOW.py")
    else:
        rows = [
            (d.name, d.target, str(d.version), moment(each.time), each.username, d.location)
            for each in active
            for d in (each.deployment,)
        ]
        put(table(("deployment", "target", "version", "since", "by", "where"), rows))
    return 0


def _show(call: Call) -> int:
    """Show a deployment's versions, and the active or named one in full."""
    args = call.args
    deployments, target = Deployments(call.session), args.target or _TARGET
    versions = deployments.versions(args.name, target)
    current = deployments.active_version(args.name, target)
    chosen = deployments.find(args.name, target, args.version or current or versions[0].request.version)
    if args.json:
        put_json({"active": current, "versions": [_version_data(version) for version in versions]})
        return 0
    request = chosen.request
    state = "active" if request.version == current else "not active"
    put(f"{request.name} on {request.target}: version {request.version} ({state})")
    put(f"  flow     {request.plan.graph.flow} in {safe_line(request.code.file)}")
    put(f"  recorded {moment(chosen.time)} by {safe_line(chosen.username)}")
    put(f"  code     {request.code.package.digest if request.code.package else ''}")
    put(f"  command  {safe_line(' '.join(request.run_command))}")
    if request.tags:
        put(f"  tags     {', '.join(map(safe_line, request.tags))}")
    if request.plan.parameters:
        values = [(p.name, p.type, "to be given" if p.required else p.default or "") for p in request.plan.parameters]
        put("\n" + table(("parameter", "type", "value"), values))
    rows = [
        (str(v.request.version), "active" if v.request.version == current else "", moment(v.time), v.username)
        for v in versions
    ]
    put("\n" + table(("version", "", "recorded", "by"), rows))
    return 0


def _trigger(call: Call) -> int:
    """Let the target start a run."""
    args = call.args
    deployments = Deployments(call.session)
    version = deployments.find(args.name, args.target or _TARGET, args.version)
    given = parameters.pairs(args.values, "parameter")
    run_id = deployments.trigger(version, given)
    flow = version.request.plan.graph.flow
    if args.json and not args.wait:
        put_json({"flow": flow, "run_id": run_id, "version": version.request.version})
    elif not args.quiet and not args.json:
        put(f"{flow}/{run_id} started from version {version.request.version}")
        if not args.wait:
            put(f"Follow it: mlp logs {flow}/{run_id} --follow")
    return _wait(call, flow, run_id) if args.wait else 0


def _wait(call: Call, flow: str, run_id: str) -> int:
    """Print a run's log until it ends, and return the exit status that it would have had."""
    from mlp_core.cli.logs import print_logs
    from mlp_core.client import client_for

    client = client_for(call.session)
    client.namespace = None
    handle = client.handle(flow, run_id)
    if call.args.quiet:
        handle.wait()
    else:
        print_logs(handle, as_json=call.args.json)
    state = handle.state
    if not call.args.json and not call.args.quiet:
        put(f"{handle.pathspec} {state.status}")
    return 0 if state.status == "succeeded" else 1


def _rollback(call: Call) -> int:
    """Make an earlier version the active one."""
    args = call.args
    deployment = Deployments(call.session).rollback(args.name, args.target or _TARGET, args.version)
    if args.json:
        put_json(attrs.asdict(deployment))
    else:
        put(f"{deployment.name} is back at version {deployment.version} on {deployment.target}")
    return 0


def _delete(call: Call) -> int:
    """Take a name out of service."""
    args = call.args
    target = args.target or _TARGET
    deployments = Deployments(call.session)
    newest = deployments.versions(args.name, target)[0].request.version
    deployments.delete(args.name, target)
    if args.json:
        put_json({"name": args.name, "target": target, "deleted": True})
    else:
        put(f"{safe_line(args.name)} is no longer deployed on {safe_line(target)}; its versions are kept")
        put(f"Bring one back: mlp deployments rollback {safe_line(args.name)} --version {newest}")
    return 0


def _run(call: Call) -> int:
    """Run a version here and now, from its recorded code: what targets with a driver of ours call."""
    args = call.args
    deployments = Deployments(call.session)
    version = deployments.find(args.name, args.target or _TARGET, args.version)
    request = version.request
    _check_plugins(deployments, version)
    if request.code.package is None:
        raise UsageError(f"version {request.version} of {request.name} has no code package", hint="deploy it again")
    store = call.session.open_store(create=False)
    root = unpacked(request.code.package, call.session.values(store))
    code = attrs.evolve(request.code, root=str(root))
    # Neither the folder where this was started nor what has become of the project may have a say.
    run_id_file = args.run_id_file.absolute() if args.run_id_file is not None else None
    os.chdir(root)
    flow = load_code(code)
    options = RunOptions(
        parameters={**request.parameters, **parameters.pairs(args.values, "parameter")},
        from_text=True,
        tags=(*request.tags, f"deployment:{request.name}", f"deployment_version:{request.version}"),
        with_options=version.with_options,
        run_id_file=run_id_file,
        command=tuple(sys.argv),
        code=code,
        locks=deployments.blueprint(version).locks,
    )
    flags = {**version.flags, **call.flags, "store": store.url}
    session = Session.open(start=root, flags=flags)
    return run_to_end(flow, session, options, args, "")


def _check_plugins(deployments: Deployments, version: Version) -> None:
    """Refuse a version whose plugins are not here; warn of those that are here in another version."""
    missing, others = deployments.missing_plugins(version)
    if missing:
        wanted = " ".join(f"'{plugin.distribution}=={plugin.version}'" for plugin in missing)
        raise PluginRefused(
            f"the deployment was made with plugins that are not in force here: {', '.join(map(str, missing))}",
            hint=f"pip install {wanted}",
        )
    for plugin in others:
        warn(f"the deployment was made with plugin {plugin}, of which another version is in force here")


def _active_data(active: Active) -> dict[str, Any]:
    """Return what is deployed as data."""
    return {**attrs.asdict(active.deployment), "since": active.time, "username": active.username}


def _version_data(version: Version) -> dict[str, Any]:
    """Return a version as data."""
    request = version.request
    return {
        "name": request.name,
        "target": request.target,
        "version": request.version,
        "flow": request.plan.graph.flow,
        "time": version.time,
        "username": version.username,
        "code": request.code.package.digest if request.code.package else None,
        "blueprint": version.blueprint,
        "parameters": dict(request.parameters),
        "tags": list(request.tags),
        "plugins": [attrs.asdict(plugin) for plugin in request.plugins],
        "run_command": list(request.run_command),
        "settings": dict(version.flags),
    }
