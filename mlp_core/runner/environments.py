"""Which interpreter each step runs in: requirements answered once, locks recorded, environments made on this host."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

from mlp_core.closure import ship_platform
from mlp_core.errors import FlowError, MlpError
from mlp_core.names import short_digest
from mlp_core.runner.requests import StepSetup
from mlp_core.store.records import EnvironmentLocked
from mlp_hookspecs import Failure, frozen_map

if TYPE_CHECKING:
    from mlp_core.environments.host import HostEnvironments
    from mlp_core.environments.resolving import Resolved, Resolver
    from mlp_core.runner.inbox import Inbox
    from mlp_core.runner.planning import CheckedFlow
    from mlp_core.scheduler import ReadyTask
    from mlp_core.session import Session
    from mlp_hookspecs import EnvironmentLock, PlannedStep, ProvisionedEnvironment, RunContext


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


class StepEnvironments:
    """Makes the environments of a run's steps, and holds them until it is closed.

    Parameters
    ----------
    session : Session
        Plugins and settings.
    known : mapping of str to EnvironmentLock
        What was resolved before, by step.
    """

    def __init__(self, session: Session, *, known: Mapping[str, EnvironmentLock] = frozen_map({})) -> None:
        """Touch nothing yet."""
        self._session = session
        self._known = known
        self._opened: tuple[Resolver, HostEnvironments] | None = None
        self._made: dict[str, ProvisionedEnvironment] = {}
        self._guard = threading.Lock()
        self._closure = ""

    def prepare(self, checked: CheckedFlow, *, provision: bool = True) -> PreparedSteps:
        """Resolve and make what the steps need, before the first of them starts.

        Parameters
        ----------
        checked : CheckedFlow
            The flow.
        provision : bool
            Whether to make the environments of steps that run on this host.

        Raises
        ------
        FlowError
            Where a requirement cannot be met, or an environment is not there.
        MlpError
            Where an environment cannot be made.
        """
        steps: dict[str, StepSetup] = {}
        resolved: dict[str, tuple[Resolved, list[str]]] = {}
        for step in checked.steps:
            launcher = step.plan.launcher or self._session.settings["run.launcher"]
            steps[step.node.name] = StepSetup(step, launcher)
            if needs_environment(step) and not step.plan.environment_at_exec:
                found = self._resolve(step, resolved)
                resolved.setdefault(found.lock.digest, (found, []))[1].append(step.node.name)
        for found, names in resolved.values():
            for name in names:
                here = provision and self._is_here(steps[name].launcher)
                steps[name] = self._setup(steps[name], found.lock, here=here)
        now = time.time()
        records = [EnvironmentLocked(found.spec, found.lock, tuple(names), now) for found, names in resolved.values()]
        notes = [
            f"environment of {', '.join(names)}: {short_digest(found.lock.digest)}"
            f"{' (resolved now)' if found.is_new else ''}"
            for found, names in resolved.values()
        ]
        return PreparedSteps(steps, tuple(records), tuple(notes))

    def prepare_late(self, step: StepSetup, values: Mapping[str, str]) -> tuple[StepSetup, EnvironmentLocked]:
        """Return a step's setup for one task, whose environment's name is looked up now; may be called in a thread.

        Raises
        ------
        MlpError
            Where there is no such environment, or it cannot be made.
        """
        name = step.planned.node.name
        with self._guard:
            try:
                found = self._open()[0].resolve_plan(step.planned.plan, values)
            except (OSError, ValueError) as error:
                raise MlpError(f"the environment of step {name!r} cannot be resolved: {error}") from error
            record = EnvironmentLocked(found.spec, found.lock, (name,), time.time(), (values["task_id"],))
            return self._setup(step, found.lock, here=self._is_here(step.launcher)), record

    def close(self) -> None:
        """Hold no environment any more."""
        if self._opened is not None:
            self._opened[1].close()

    def _open(self) -> tuple[Resolver, HostEnvironments]:
        """Return what resolves and what makes; imported where a step needs them."""
        if self._opened is None:
            from mlp_core.environments.host import HostEnvironments
            from mlp_core.environments.resolving import Resolver

            store = self._session.open_store(create=True)
            self._opened = (Resolver.of(self._session, store), HostEnvironments())
        return self._opened

    def _resolve(self, step: PlannedStep, resolved: Mapping[str, tuple[Resolved, list[str]]]) -> Resolved:
        """Return the lock of a step."""
        from mlp_core.environments.resolving import Resolved
        from mlp_hookspecs import EnvironmentSpec

        plan = step.plan
        known = self._known.get(step.node.name)
        if known is not None:
            return Resolved(plan.environment or EnvironmentSpec(known.backend, {"name": plan.environment_name}), known)
        if plan.environment_name is None:
            same = (found for found, _ in resolved.values() if found.spec == plan.environment)
            if (before := next(same, None)) is not None:
                return before
        try:
            return self._open()[0].resolve_plan(plan)
        except (OSError, ValueError) as error:
            raise self._refused(step, error) from error
        except MlpError as error:
            raise self._refused(step, error.message, error.hint) from error

    def _refused(self, step: PlannedStep, reason: object, hint: str = "") -> FlowError:
        """Return the error of a step whose environment cannot be resolved."""
        message = f"the environment of step {step.node.name!r} cannot be resolved: {reason}"
        return FlowError(message, file=step.node.file, line=step.node.line, hint=hint)

    def _is_here(self, launcher: str) -> bool:
        """Tell whether a launcher's steps run on this host."""
        return self._session.hooks.backend("launcher", launcher).shares_driver_host

    def _setup(self, step: StepSetup, lock: EnvironmentLock, *, here: bool) -> StepSetup:
        """Return a step with its environment, made where it is to run here."""
        if not here:
            return attrs.evolve(step, lock=lock)
        environment = self._made.get(lock.digest)
        if environment is None:
            environment = self._made[lock.digest] = self._provide(step, lock)
        closure = "" if environment.has_platform else self._shipped()
        return attrs.evolve(step, lock=lock, environment=environment, closure=closure)

    def _provide(self, step: StepSetup, lock: EnvironmentLock) -> ProvisionedEnvironment:
        """Make an environment, or find it made."""
        from mlp_core.environments.bundling import provide

        session = self._session
        try:
            return provide(self._open()[1], session.hooks, lock, lambda: session.open_store(create=True))
        except OSError as error:
            name = step.planned.node.name
            raise MlpError(f"the environment of step {name!r} could not be made: {error}") from error

    def _shipped(self) -> str:
        """Return the folder with the platform's own packages."""
        if not self._closure:
            hooks = self._session.hooks
            self._closure = str(ship_platform(hooks.worker_plugins(), hooks.worker_packages()))
        return self._closure


class LateEnvironments:
    """Prepares attempts whose environment is looked up when they start, each in a thread of its own.

    Parameters
    ----------
    environments : StepEnvironments
        What looks up and makes.
    inbox : Inbox
        Who is told.
    run : RunContext
        The run.
    parameters : mapping of str to str
        The run's parameters as text.
    """

    def __init__(
        self, environments: StepEnvironments, inbox: Inbox, run: RunContext, parameters: Mapping[str, str]
    ) -> None:
        """Prepare none yet."""
        self._environments = environments
        self._inbox = inbox
        self._run = run
        self._parameters = parameters

    def begin(self, attempt_id: str, step: StepSetup, task: ReadyTask) -> None:
        """Begin to prepare an attempt; the inbox is told when that is done."""
        from mlp_core.environments.resolving import task_values

        values = task_values(self._run, task.key, self._parameters)
        name = f"mlp-environment-{attempt_id}"
        threading.Thread(target=self._prepare, args=(attempt_id, step, values), name=name, daemon=True).start()

    def _prepare(self, attempt_id: str, step: StepSetup, values: Mapping[str, str]) -> None:
        """Prepare an attempt, and tell."""
        try:
            prepared, record = self._environments.prepare_late(step, values)
        except Exception as error:  # noqa: BLE001 # in a thread: whatever it is has to reach the driver
            hint = error.hint if isinstance(error, MlpError) else ""
            text = f"{error.message} ({hint})" if isinstance(error, MlpError) and hint else str(error)
            self._inbox.lost(attempt_id, Failure("system", text or type(error).__name__))
        else:
            self._inbox.prepared(attempt_id, prepared, record)


def needs_environment(step: PlannedStep) -> bool:
    """Tell whether a step does not run in the driver's own interpreter."""
    return step.plan.environment is not None or step.plan.environment_name is not None
