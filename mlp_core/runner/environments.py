"""Which interpreter each step runs in: requirements resolved once, locks recorded, environments made on this host."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

from mlp_core.closure import ship_platform
from mlp_core.errors import FlowError, MlpError
from mlp_core.folders import made_folder
from mlp_core.runner.requests import StepSetup
from mlp_core.store.records import EnvironmentLocked
from mlp_hookspecs import frozen_map

if TYPE_CHECKING:
    from mlp_core.runner.planning import CheckedFlow
    from mlp_core.session import Session
    from mlp_hookspecs import EnvironmentLock, EnvironmentSpec, PlannedStep, ProvisionedEnvironment

_MACHINES = {"x86_64": "64", "amd64": "64", "aarch64": "aarch64", "arm64": "arm64"}


@attrs.frozen(eq=False, repr=False)
class PreparedSteps:
    """Every step with its launcher and environment.

    Attributes
    ----------
    steps : mapping of str to StepSetup
        By name.
    records : tuple of EnvironmentLocked
        What the journal should say of it.
    notes : tuple of str
        What the user may want to know.
    """

    steps: Mapping[str, StepSetup]
    records: tuple[EnvironmentLocked, ...] = ()
    notes: tuple[str, ...] = ()


def prepare_steps(
    checked: CheckedFlow,
    session: Session,
    *,
    known: Mapping[str, EnvironmentLock] = frozen_map({}),
) -> PreparedSteps:
    """Resolve and provision what the steps need, before the first of them starts.

    Parameters
    ----------
    checked : CheckedFlow
        The flow.
    session : Session
        Plugins and settings.
    known : mapping of str to EnvironmentLock
        What was resolved before, by step.

    Raises
    ------
    UsageError
        Where a requirement cannot be met.
    MlpError
        Where an environment cannot be made.
    """
    specs: dict[str, tuple[EnvironmentSpec, list[PlannedStep]]] = {}
    for step in checked.steps:
        if step.plan.environment is not None:
            specs.setdefault(step.plan.environment.digest, (step.plan.environment, []))[1].append(step)
    locks: dict[str, EnvironmentLock] = {}
    records: list[EnvironmentLocked] = []
    notes = []
    for digest, (spec, users) in specs.items():
        locks[digest] = known.get(users[0].node.name) or _resolve(session, spec, users[0])
        names = tuple(step.node.name for step in users)
        records.append(EnvironmentLocked(spec, locks[digest], names, time.time()))
        notes.append(f"environment of {', '.join(step.node.name for step in users)}: {locks[digest].digest[:19]}")
    made: dict[str, ProvisionedEnvironment] = {}
    steps = {step.node.name: _setup(session, step, locks, made) for step in checked.steps}
    return PreparedSteps(steps, tuple(records), tuple(notes))


def _resolve(session: Session, spec: EnvironmentSpec, user: PlannedStep) -> EnvironmentLock:
    """Return the lock of a requirement."""
    try:
        return session.hooks.resolve_environment(spec, (this_platform(),))
    except (OSError, ValueError) as error:
        raise FlowError(
            f"the environment of step {user.node.name!r} cannot be resolved: {error}",
            file=user.node.file,
            line=user.node.line,
        ) from error


def _setup(
    session: Session,
    step: PlannedStep,
    locks: Mapping[str, EnvironmentLock],
    made: dict[str, ProvisionedEnvironment],
) -> StepSetup:
    """Return a step with its launcher and, where that runs on this host, its environment."""
    launcher = step.plan.launcher or session.settings["run.launcher"]
    is_here = session.hooks.backend("launcher", launcher).shares_driver_host
    if step.plan.environment is None:
        return StepSetup(step, launcher)
    lock = locks[step.plan.environment.digest]
    if not is_here:
        return StepSetup(step, launcher, lock)
    if lock.digest not in made:
        try:
            made[lock.digest] = session.hooks.provision_environment(lock, made_folder("environments"))
        except OSError as error:
            raise MlpError(f"the environment of step {step.node.name!r} could not be made: {error}") from error
    environment = made[lock.digest]
    closure = "" if environment.has_platform else str(ship_platform(session.hooks.worker_plugins()))
    return StepSetup(step, launcher, lock, environment, closure)


def this_platform() -> str:
    """Return this host's platform as conda names it, such as ``linux-64``."""
    system = {"Linux": "linux", "Darwin": "osx"}.get(platform.system(), platform.system().lower())
    machine = platform.machine().lower()
    return f"{system}-{_MACHINES.get(machine, machine)}"
