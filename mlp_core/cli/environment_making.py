"""How ``mlp env`` resolves requirements, makes environments for people to work in, and bundles their packages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from mlp_core.cli.text import place, plural, put, put_json, safe_line, size, table
from mlp_core.environments.bundling import this_platform
from mlp_core.environments.host import HostEnvironments
from mlp_core.environments.project import ProjectEnvironments
from mlp_core.environments.resolving import Resolved
from mlp_core.environments.workspace import (
    KERNEL_PACKAGE,
    Interpreter,
    check_kernel,
    check_workspace,
    kernel_name,
    write_kernel,
    write_workspace,
)
from mlp_core.errors import UsageError
from mlp_core.names import platform, short_digest, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlp_core.cli.arguments import Parser
    from mlp_core.cli.dispatch import Call
    from mlp_core.store import RunState
    from mlp_hookspecs import EnvironmentLock, ProvisionedEnvironment

_BACKEND: Final = "pypi"
_PACKAGE: Final = re.compile(r"([^=<>!~@\s\[]+\s*(?:\[[^\]]*\])?)\s*(.*)")
_REPEAT: Final[dict[str, Any]] = {"action": "append", "default": []}
_FIELDS: Final = ("python", "index", "file", "channels", "extras", "groups")


@attrs.frozen
class _Asked:
    """What was resolved.

    Attributes
    ----------
    steps : tuple of str
        The steps that need it; empty for packages that were named.
    resolved : Resolved
        Requirement and lock.
    """

    steps: tuple[str, ...]
    resolved: Resolved


# ------------------------------------------------------------------------------------------------- resolve


def env_resolve_arguments(parser: Parser) -> None:
    """Add the options of ``mlp env resolve``."""
    parser.positional("flow_file", nargs="?", metavar="FLOW.py", help="resolve the environments of this flow's steps")
    parser.option("-r", "--file", **_REPEAT, metavar="FILE", help="what a file asks for: requirements.txt, ...")
    parser.option("--package", **_REPEAT, metavar="PACKAGE", help="a package: 'pandas>=2,<3'; may be repeated")
    parser.option("--python", metavar="VERSION", help="the interpreter's version: 3.12")
    parser.option("--backend", metavar="NAME", help=f"who resolves packages or a file; by default {_BACKEND}")
    parser.option("--index", metavar="URL", help="the index of packages, where the backend has one")
    parser.option("--channel", dest="channels", **_REPEAT, metavar="NAME", help="a channel of conda; may be repeated")
    parser.option("--extra", dest="extras", **_REPEAT, metavar="NAME", help="an extra of a pyproject.toml's project")
    parser.option("--group", dest="groups", **_REPEAT, metavar="NAME", help="a dependency group of a pyproject.toml")
    parser.option("--extend", metavar="WHAT", help="add to this environment, whose packages stay: a name, digest, run")
    _add_platform(parser, "the lock must hold for this platform: linux-64; may be repeated")
    parser.option("--upgrade", action="store_true", help="resolve anew what the store has a lock of")
    parser.option("--alias", metavar="NAME[:TAG]", help="give what was resolved a name")
    parser.option(
        "--with", dest="with_options", **_REPEAT, metavar="OPTION", help="decorate every step: pypi:python=3.12"
    )
    parser.option("--step", metavar="NAME", help="only the environment of this step")
    parser.option("--flow", metavar="NAME", help="the flow, where the file defines several")
    parser.option("--json", action="store_true", help="print JSON")


def env_resolve_command(call: Call) -> int:
    """Resolve what is asked for, keep the locks in the store, and print them."""
    args = call.args
    named = {name: getattr(args, name) for name in _FIELDS if getattr(args, name)}
    fields = {"packages": _packages(args.package), **named}
    if args.flow_file is not None:
        if not args.flow_file.endswith(".py"):
            hint = f"packages are named by an option: mlp env resolve --package {args.flow_file!r}"
            raise UsageError(f"{shown(args.flow_file)} is no flow's file", hint=hint)
        asked_too = [*(named if not args.package else ["packages", *named]), *(["extend"] if args.extend else [])]
        if asked_too:
            raise UsageError(
                f"a flow says itself what its steps need: {', '.join(asked_too)} cannot be given beside it",
                hint="leave the flow's file out, or write a decorator",
            )
        call = _of_flow(call)
        environments = ProjectEnvironments(call.session, platforms=_platforms(call))
        found = _resolve_flow(call, environments, args.step)
    else:
        if not args.package and not args.file:
            raise UsageError("what is to be resolved?", hint="mlp env resolve FLOW.py, or --package 'pandas>=2'")
        if len(args.file) > 1:
            raise UsageError("-r is given more than once", hint="let one file include the others: -r other.txt")
        if args.file:
            fields["file"] = args.file[0]
        environments = ProjectEnvironments(call.session, platforms=_platforms(call))
        found = [_Asked((), _resolve_packages(call, environments, fields))]
    digests = {each.resolved.lock.digest for each in found}
    if args.alias is not None:
        if len(digests) != 1:
            raise UsageError(f"--alias names one environment, and there are {len(digests)}", hint="choose by --step")
        environments.name(next(iter(digests)), args.alias)
    _show_resolved(found, alias=args.alias, as_json=args.json)
    return 0


def _resolve_packages(call: Call, environments: ProjectEnvironments, fields: dict[str, Any]) -> Resolved:
    """Return the lock of packages that were named."""
    args = call.args
    if args.extend is not None:
        return environments.extend(environments.look_up(args.extend).lock, fields, args.backend)
    return environments.resolve(environments.requirement(args.backend or _BACKEND, fields), upgrade=args.upgrade)


def _resolve_flow(call: Call, environments: ProjectEnvironments, only: str | None = None) -> list[_Asked]:
    """Return the locks of a flow's steps, each once; `only` names the one step that counts."""
    from mlp_core.runner import check_flow
    from mlp_core.runner.environments import needs_environment

    checked = check_flow(call.the_flow, call.session, call.args.with_options)
    known = [step.node.name for step in checked.steps]
    if only is not None and only not in known:
        raise UsageError(f"{checked.graph.flow} has no step {shown(only)}", hint=f"its steps are {', '.join(known)}")
    steps = [step for step in checked.steps if only in (None, step.node.name) and needs_environment(step)]
    if not steps:
        raise UsageError(
            f"{checked.graph.flow if only is None else f'step {only}'} asks for no environment",
            hint="give it a decorator such as @pypi, or all of them: --with pypi:packages={'pandas':'2.2'}",
        )
    asked: dict[tuple[str, str], _Asked] = {}
    for step in steps:
        plan, name = step.plan, step.node.name
        if plan.environment_at_exec:
            if not call.args.json:
                put(f"step {name} looks {safe_line(str(plan.environment_name))} up when it starts")
            continue
        key = (plan.environment.digest if plan.environment is not None else "", plan.environment_name or "")
        if key in asked:
            asked[key] = attrs.evolve(asked[key], steps=(*asked[key].steps, name))
        else:
            asked[key] = _Asked((name,), environments.resolve_plan(plan, name, upgrade=call.args.upgrade))
    return list(asked.values())


def _show_resolved(found: list[_Asked], *, alias: str | None, as_json: bool) -> None:
    """Print what was resolved."""
    if as_json:
        put_json([_resolved_data(each, alias) for each in found])
        return
    rows = [
        (
            ", ".join(each.steps) or alias or "-",
            each.resolved.lock.backend,
            short_digest(each.resolved.spec.digest),
            short_digest(each.resolved.lock.digest),
            each.resolved.lock.python,
            str(len(each.resolved.lock.packages)),
            "new" if each.resolved.is_new else "found",
        )
        for each in found
    ]
    if rows:
        first = "steps" if any(each.steps for each in found) else "name"
        put(table((first, "backend", "requirement", "environment", "python", "packages", ""), rows))
        put(f"\nLook at it: mlp env show {rows[0][3]}    Make it here: mlp env create {rows[0][3]}")


def _resolved_data(asked: _Asked, alias: str | None) -> dict[str, Any]:
    """Return what was resolved as data."""
    lock = asked.resolved.lock
    return {
        "steps": list(asked.steps),
        "backend": lock.backend,
        "requirement": asked.resolved.spec.digest,
        "environment": lock.digest,
        "python": lock.python,
        "platforms": list(lock.platforms),
        "packages": dict(lock.packages),
        "new": asked.resolved.is_new,
        "alias": alias,
    }


def _packages(given: list[str]) -> dict[str, str]:
    """Return names and versions of packages, as decorators take them."""
    found: dict[str, str] = {}
    for text in given:
        match = _PACKAGE.fullmatch(text.strip())
        if match is None:
            raise UsageError(f"--package {shown(text)} is refused", hint="write it as 'pandas>=2,<3' or 'pandas'")
        if match[1] in found:
            raise UsageError(f"package {shown(match[1])} is given twice")
        found[match[1]] = match[2]
    return found


# ------------------------------------------------------------------------------------------------- create


def env_create_arguments(parser: Parser) -> None:
    """Add the options of ``mlp env create``."""
    parser.positional("what", help="a name, name:tag, digest, or the run, step or task that had it: Flow/run/step")
    parser.option("--into", type=Path, metavar="DIR", help="write the run's code and a script python into this folder")
    parser.option(
        "--kernel", nargs="?", const="", metavar="NAME", help="make a Jupyter kernel of it; --kernel=NAME names it"
    )
    parser.option("--json", action="store_true", help="print JSON")


def env_create_command(call: Call) -> int:
    """Make an environment on this host, and tell how to use it."""
    args, session = call.args, call.session
    environments = ProjectEnvironments(session)
    lock = environments.look_up(args.what).lock
    if args.into is not None:  # before anything is made for nothing
        check_workspace(args.into)
    if args.kernel is not None:
        check_kernel(args.kernel or kernel_name(args.what))
    if args.kernel is not None and KERNEL_PACKAGE not in lock.packages:
        lock = environments.extend(lock, {"packages": {KERNEL_PACKAGE: ""}}).lock
    with HostEnvironments() as host:
        made = environments.make(lock, host)
        users = host.users_file(lock.digest)
    spec = environments.catalog.pathspec(args.what)
    state = environments.store.run(spec.flow, str(spec.run_id)) if spec is not None else None
    planned: dict[str, str] = {}
    if spec is not None and state is not None:
        planned = next((dict(each.plan.variables) for each in state.began.steps if each.node.name == spec.step), {})
    answer: dict[str, Any] = {"environment": lock.digest, "python": made.python, "variables": dict(made.variables)}
    if args.into is not None or args.kernel is not None:
        answer |= _write(call, environments, _interpreter(call, lock, made, users, planned), state)
    if args.json:
        put_json(answer)
    else:
        _show_created(call, lock, answer)
    return 0


def _interpreter(
    call: Call, lock: EnvironmentLock, made: ProvisionedEnvironment, users: Path, planned: Mapping[str, str]
) -> Interpreter:
    """Return what a script has to start; `planned` are the variables that the step asked for."""
    from mlp_core.closure import ship_platform
    from mlp_core.runner.requests import STORE_VARIABLE

    session = call.session
    hooks = session.hooks
    closure = "" if made.has_platform else str(ship_platform(hooks.worker_plugins(), hooks.worker_packages()))
    variables = {**made.variables}
    if "@" not in session.store_url:  # no password goes into a file
        variables[STORE_VARIABLE] = session.store_url
    variables |= planned
    return Interpreter(lock.digest, call.args.what, made.python, str(users), closure, variables)


def _write(
    call: Call, environments: ProjectEnvironments, interpreter: Interpreter, state: RunState | None
) -> dict[str, Any]:
    """Write the folder, the kernel or both, and return where they are."""
    args = call.args
    code = state.began.code if state is not None else None
    package = None
    if code is not None and code.package is not None:
        package = call.session.values(environments.store).get(code.package)
    answer: dict[str, Any] = {}
    folder = args.into
    if args.into is not None:
        write_workspace(args.into, interpreter, code, package)
    if args.kernel is not None:
        name = args.kernel or kernel_name(args.what)
        kernel = write_kernel(name, interpreter, code, package, args.into)
        answer |= {"kernel": kernel.name, "kernel_folder": str(kernel)}
        folder = folder or kernel
    answer["script"] = str(folder.absolute() / "python")
    if package is not None:
        answer["code"] = str(folder.absolute() / "code")
        answer["flow_file"] = str(folder.absolute() / "code" / code.file) if code is not None and code.file else None
    return answer


def _show_created(call: Call, lock: EnvironmentLock, answer: dict[str, Any]) -> None:
    """Print where an environment is, and how it is used."""
    what = f"{lock.backend}, Python {lock.python}, {plural(len(lock.packages), 'package')}"
    put(f"{safe_line(call.args.what)} is environment {short_digest(lock.digest)} ({safe_line(what)})")
    put(f"  interpreter  {safe_line(answer['python'])}")
    if "script" not in answer:
        for name, value in answer["variables"].items():
            if name == "PATH":  # long, and the interpreter does without
                continue
            put(f"  variable     {safe_line(name)}={safe_line(value)}")
        put(f"\nUse it: {safe_line(answer['python'])} -c 'import sys; print(sys.version)'")
        put(f"With its run's code, for a debugger: mlp env create {safe_line(call.args.what)} --into DIR")
        return
    script = place(answer["script"])
    put(f"  script       {script}")
    if "code" in answer:
        put(f"  code         {place(answer['code'])}")
    if "kernel" in answer:
        put(f"  kernel       {safe_line(answer['kernel'])}, written to {place(answer['kernel_folder'])}")
        put(f"\nChoose the kernel in Jupyter, or: jupyter console --kernel {safe_line(answer['kernel'])}")
    elif answer.get("flow_file"):
        put(f"\nDebug it: {script} -m pdb {place(answer['flow_file'])}")
    else:
        put(f"\nUse it: {script} -i")


# ------------------------------------------------------------------------------------------------- bundle


def env_bundle_arguments(parser: Parser) -> None:
    """Add the options of ``mlp env bundle``."""
    parser.positional("what", help="a name, digest, run, step or task; or a flow's file, for all of its environments")
    _add_platform(parser, "the packages for this platform: linux-64; may be repeated; by default this host's")
    parser.option("--flow", metavar="NAME", help="the flow, where the file defines several")
    parser.option("--json", action="store_true", help="print JSON")


def env_bundle_command(call: Call) -> int:
    """Put the packages of environments into the store, from where they are made without a network."""
    args = call.args
    platforms = _platforms(call) or (this_platform(),)
    if args.what.endswith(".py"):
        args.flow_file, args.with_options, args.upgrade = args.what, (), False
        call = _of_flow(call)
        environments = ProjectEnvironments(call.session)
        locks = [each.resolved.lock for each in _resolve_flow(call, environments)]
    else:
        environments = ProjectEnvironments(call.session)
        locks = [environments.keep(args.what)]
    distinct = {lock.digest: lock for lock in locks}.values()
    bundles = [environments.bundle(lock, name) for lock in distinct for name in platforms]
    if args.json:
        put_json(
            [
                {"environment": b.lock_digest, "platform": b.platform, "files": sorted(b.files), "size": b.size}
                for b in bundles
            ]
        )
        return 0
    rows = [(short_digest(b.lock_digest), b.platform, plural(len(b.files), "file"), size(b.size)) for b in bundles]
    put(table(("environment", "platform", "stored", "size"), rows))
    return 0


# ------------------------------------------------------------------------------------------------- common


def _add_platform(parser: Parser, text: str) -> None:
    """Add the option that names platforms."""
    parser.option("--platform", dest="platforms", **_REPEAT, metavar="NAME", help=text)


def _platforms(call: Call) -> tuple[str, ...]:
    """Return the platforms that were named, checked."""
    return tuple(dict.fromkeys(platform(name) for name in call.args.platforms))


def _of_flow(call: Call) -> Call:
    """Return the call as one about the flow in a file, in the flow's project."""
    from mlp_core.cli.dispatch import import_flow

    path = Path(call.args.flow_file)
    return attrs.evolve(call, flow=import_flow(path, call.args.flow), start=path, opened=[])
