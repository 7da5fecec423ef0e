"""How ``mlp plan`` tells what a run would resolve, fetch and build, without doing any of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import attrs

from mlp_core.cli import parameters
from mlp_core.cli.text import duration, place, plural, put, put_json, safe_line, table
from mlp_core.environments.bundling import this_platform
from mlp_core.environments.host import HostEnvironments
from mlp_core.environments.resolving import Resolved, Resolver
from mlp_core.errors import MlpError, StoreUnavailable
from mlp_core.names import short_digest
from mlp_core.parameters import info, parameters_of, resolve
from mlp_core.runner import check_flow
from mlp_core.runner.environments import needs_environment
from mlp_hookspecs import EnvironmentLock

if TYPE_CHECKING:
    from mlp_core.cli.arguments import Parser
    from mlp_core.cli.dispatch import Call
    from mlp_core.runner import CheckedFlow
    from mlp_core.session import Session
    from mlp_hookspecs import BackendKind, EnvironmentSpec, PlannedStep


Work = Literal["nothing", "make it from its bundle", "fetch and build it", "resolve, fetch and build it", "fail"]
"""What a run would have to do for an environment on this host."""


@attrs.frozen
class PlannedEnvironment:
    """What is known of a step's environment before anything is done for it.

    Attributes
    ----------
    backend : str
        Who makes it; empty where only its name is known.
    requirement : str
        The requirement's digest; empty where an environment is named and nothing added.
    name : str
        The environment that is named; empty where none is.
    is_extended : bool
        Whether packages are added to the one that is named.
    is_late : bool
        Whether the name is looked up when a task starts.
    lock : EnvironmentLock or None
        The lock, where the store has it.
    on_this_host : bool
        Whether it has been made here.
    is_bundled : bool
        Whether the store has its packages for this platform.
    shares_host : bool
        Whether its step runs on this host.
    problem : str
        Why a run would be refused; empty where it would not.
    """

    backend: str
    requirement: str = ""
    name: str = ""
    is_extended: bool = False
    is_late: bool = False
    lock: EnvironmentLock | None = None
    on_this_host: bool = False
    is_bundled: bool = False
    shares_host: bool = True
    problem: str = ""

    @property
    def work(self) -> Work:
        """What is left to do for it."""
        if self.problem:
            return "fail"
        if self.lock is None:
            return "nothing" if self.is_late else "resolve, fetch and build it"
        if self.on_this_host and self.shares_host:
            return "nothing"
        return "make it from its bundle" if self.is_bundled else "fetch and build it"


def plan_arguments(parser: Parser) -> None:
    """Add the options of ``mlp plan``."""
    parameters.add_parameter_options(parser)
    parser.option(
        "--with", dest="with_options", action="append", default=[], metavar="OPTION", help="plan with this decorator"
    )
    parser.option("--launcher", metavar="NAME", help="where steps run that do not say it themselves")
    parser.option("--flow", metavar="NAME", help="the flow, where the file defines several")
    parser.option("--json", action="store_true", help="print JSON")


def plan_command(call: Call) -> int:
    """Tell what a run would do; nothing is written, made, fetched or locked."""
    args = call.args
    session = call.with_flags({"run.launcher": args.launcher} if args.launcher else {})
    checked = check_flow(call.the_flow, session, args.with_options)
    given = parameters.texts(args)
    resolve(call.the_flow, given, from_text=True, user_name=session.username, leave_required=True)
    described = [info(parameter) for parameter in parameters_of(call.the_flow).values()]
    names = {name.replace("-", "_") for name in given}
    missing = [each.name for each in described if each.required and each.name.replace("-", "_") not in names]
    data = _plan(checked, session, missing)
    if args.json:
        put_json(data)
    else:
        _show(data, f"mlp run {place(str(call.start))}")
    return 0


def _plan(checked: CheckedFlow, session: Session, missing: list[str]) -> dict[str, Any]:
    """Return what a run would do, as data."""
    try:
        resolver: Resolver | None = Resolver.of(session, session.open_store(create=False))
    except StoreUnavailable:
        resolver = None
    steps = []
    environments: dict[tuple[str, bool], tuple[PlannedEnvironment, list[str]]] = {}
    for step in checked.steps:
        launcher = step.plan.launcher or session.settings["run.launcher"]
        data = _step_data(step, launcher)
        if needs_environment(step):
            shares_host = session.hooks.backend("launcher", launcher).shares_driver_host
            found = attrs.evolve(_environment(step, resolver), shares_host=shares_host)
            key = found.requirement or found.name
            data["environment"] = key
            environments.setdefault((key, shares_host), (found, []))[1].append(step.node.name)
        steps.append(data)
    return {
        "flow": checked.graph.flow,
        "store": session.store_url,
        "store_exists": resolver is not None,
        "missing_parameters": missing,
        "steps": steps,
        "environments": [_environment_data(found, names) for found, names in environments.values()],
        "plugins": _plugins(checked, session),
    }


def _environment(step: PlannedStep, resolver: Resolver | None) -> PlannedEnvironment:
    """Return what is known of a step's environment; only the store and this host's folder are read."""
    plan = step.plan
    spec, name = plan.environment, plan.environment_name or ""
    known = PlannedEnvironment(
        backend=spec.backend if spec is not None else "",
        requirement=spec.digest if spec is not None else "",
        name=name,
        is_extended=bool(name) and spec is not None,
        is_late=bool(plan.environment_at_exec),
    )
    if known.is_late:
        return known
    if resolver is None:
        return attrs.evolve(known, problem="there is no store yet that could have it") if name else known
    try:
        asked = resolver.asked(plan)
        lock = asked.lock if isinstance(asked, Resolved) else resolver.catalog.answer(asked, resolver.platforms)
        spec = None if isinstance(asked, Resolved) else asked
        is_bundled = lock is not None and _is_bundled(resolver, lock)
    except MlpError as error:
        return attrs.evolve(known, problem=error.message)
    return attrs.evolve(
        known,
        backend=_backend(lock, spec),
        requirement=spec.digest if spec is not None else "",
        lock=lock,
        on_this_host=lock is not None and HostEnvironments().has(lock.digest),
        is_bundled=is_bundled,
    )


def _backend(lock: EnvironmentLock | None, spec: EnvironmentSpec | None) -> str:
    """Return who makes an environment."""
    return lock.backend if lock is not None else spec.backend if spec is not None else ""


def _is_bundled(resolver: Resolver, lock: EnvironmentLock) -> bool:
    """Tell whether the store has the packages of a lock for this platform."""
    return resolver.catalog.bundle(lock.digest, this_platform()) is not None


def _step_data(step: PlannedStep, launcher: str) -> dict[str, Any]:
    """Return what is planned for a step but for its environment."""
    plan = step.plan
    return {
        "step": step.node.name,
        "decorators": sorted(step.options),
        "launcher": launcher,
        "resources": attrs.asdict(plan.resources) if plan.resources is not None else None,
        "retries": plan.retry.times if plan.retry is not None else 0,
        "timeout_seconds": plan.timeout_seconds,
        "catches": plan.catch is not None,
        "concurrency": plan.concurrency,
        "environment": None,
    }


def _environment_data(found: PlannedEnvironment, steps: list[str]) -> dict[str, Any]:
    """Return what is known of an environment as data."""
    lock = found.lock
    return {
        "steps": steps,
        "backend": found.backend or None,
        "requirement": found.requirement or None,
        "name": found.name or None,
        "extended": found.is_extended,
        "at_exec": found.is_late,
        "environment": lock.digest if lock is not None else None,
        "python": lock.python if lock is not None else None,
        "packages": len(lock.packages) if lock is not None else None,
        "on_this_host": found.on_this_host,
        "bundled": found.is_bundled,
        "where": "this host" if found.shares_host else "the hosts of the launcher",
        "to_do": found.work,
        "problem": found.problem or None,
    }


def _plugins(checked: CheckedFlow, session: Session) -> dict[str, str]:
    """Return who answers for what the flow needs: plugin by kind and name of the backend."""
    wanted: set[tuple[BackendKind, str]] = {("store", _scheme(session.store_url))}
    for step in checked.steps:
        wanted.add(("launcher", step.plan.launcher or session.settings["run.launcher"]))
        wanted |= {("format", name) for name in step.plan.formats.values()}
        if step.plan.environment is not None:
            wanted.add(("environment", step.plan.environment.backend))
    known = {(backend.kind, backend.name): str(plugin) for plugin, backend in session.hooks.backends()}
    return {f"{kind} {name}": known[kind, name] for kind, name in sorted(wanted) if (kind, name) in known}


def _scheme(url: str) -> str:
    """Return the scheme of a store's URL."""
    return url.partition("://")[0] if "://" in url else "file"


def _show(data: dict[str, Any], run: str) -> None:
    """Print a plan for people."""
    store = place(data["store"]) + ("" if data["store_exists"] else " (which the run makes)")
    put(f"{data['flow']}: {plural(len(data['steps']), 'step')}, kept in {store}")
    rows = [
        (
            step["step"],
            step["launcher"],
            _resources(step["resources"]),
            str(step["retries"] or ""),
            duration(step["timeout_seconds"]) if step["timeout_seconds"] is not None else "",
            short_digest(step["environment"] or ""),
        )
        for step in data["steps"]
    ]
    header = ("step", "launcher", "resources", "retries", "time limit", "environment")
    columns = [column for column in range(len(header)) if any(row[column] for row in rows)]
    put("\n" + table([header[c] for c in columns], [[row[c] for c in columns] for row in rows]))
    for environment in data["environments"]:
        put("\n" + "\n".join(map(safe_line, _environment_lines(environment))))
    put("\n" + table(("what", "who"), data["plugins"].items()))
    if data["missing_parameters"]:
        put(f"\nto be given: {', '.join('--' + safe_line(name) for name in data['missing_parameters'])}")
    problems = [each for each in data["environments"] if each["problem"]]
    put(f"\n{'A run would be refused' if problems else 'Nothing was done. Run it'}: {run}")


def _resources(data: dict[str, Any] | None) -> str:
    """Return what an attempt asks for, in words."""
    if data is None:
        return ""
    units = {"cpu": "cpu", "memory_mb": "MiB", "gpu": "gpu", "disk_mb": "MiB on disk"}
    parts = [f"{data[name]:g} {unit}" for name, unit in units.items() if data[name]]
    return ", ".join([*parts, *(f"{amount:g} {name}" for name, amount in data["custom"].items())])


def _environment_lines(data: dict[str, Any]) -> list[str]:
    """Return what people read of an environment."""
    name, requirement = data["name"], data["requirement"]
    what = f"named {name}" if name else f"of {data['backend']}"
    lines = [f"environment of {', '.join(data['steps'])}: {what}{', with packages added' if data['extended'] else ''}"]
    if requirement:
        lines.append(f"  requirement  {short_digest(requirement)}")
    if data["environment"]:
        facts = f"{short_digest(data['environment'])} (Python {data['python']}, {plural(data['packages'], 'package')})"
        lines.append(f"  locked       {facts}")
    elif not data["at_exec"] and not data["problem"]:
        lines.append("  locked       not yet")
    if data["environment"]:
        lines.append(f"  this host    {'made' if data['on_this_host'] else 'not made yet'}")
        lines.append(f"  bundle       {'in the store' if data['bundled'] else 'none for this platform'}")
    if data["problem"]:
        lines.append(f"  problem      {data['problem']}")
    elif data["at_exec"]:
        lines.append("  to do        look it up when a task starts")
    elif data["to_do"] == "nothing":
        lines.append("  to do        nothing")
    else:
        lines.append(f"  to do        {data['to_do']}, on {data['where']}")
    return lines
