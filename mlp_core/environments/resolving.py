"""How what a step asks for becomes a lock: looked up where the store has one, resolved once where it has not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import attrs

from mlp_core.environments.bundling import store_bundle, this_platform
from mlp_core.environments.catalog import Catalog
from mlp_core.errors import UsageError
from mlp_core.names import shown
from mlp_hookspecs import EnvironmentLock, EnvironmentSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlp_core.hooks import Hooks
    from mlp_core.session import Session
    from mlp_core.store import Store
    from mlp_hookspecs import RunContext, StepPlan, TaskKey

_FIELD: Final = re.compile(r"@?\{([A-Za-z0-9_\-]*)\}")

_METAFLOW: Final = {
    "METAFLOW_FLOW_NAME": "flow_name",
    "METAFLOW_RUN_ID": "run_id",
    "METAFLOW_RUN_PATHSPEC": "run_pathspec",
    "METAFLOW_STEP_NAME": "step_name",
    "METAFLOW_TASK_ID": "task_id",
    "METAFLOW_TASK_PATHSPEC": "task_pathspec",
}
_METAFLOW_PARAMETER: Final = "METAFLOW_INIT_"


@attrs.frozen
class Resolved:
    """A requirement and its lock.

    Attributes
    ----------
    spec : EnvironmentSpec
        What was asked for.
    lock : EnvironmentLock
        The answer.
    is_new : bool
        Whether it was resolved now rather than found.
    """

    spec: EnvironmentSpec
    lock: EnvironmentLock
    is_new: bool = False


class Resolver:
    """Answers requirements in one store.

    Parameters
    ----------
    hooks : Hooks
        Where the backends are.
    store : Store
        Where locks are kept.
    username : str
        For whom.
    platforms : sequence of str
        The platforms that locks must hold for.
    """

    def __init__(self, hooks: Hooks, store: Store, username: str, platforms: Sequence[str]) -> None:
        """Make the resolver; nothing is read yet."""
        self._hooks = hooks
        self._store = store
        self.platforms = tuple(sorted(platforms))
        self.catalog = Catalog(store, username)

    @classmethod
    def of(cls, session: Session, store: Store) -> Resolver:
        """Return the resolver of a project."""
        platforms = session.settings["environments.platforms"] or (this_platform(),)
        return cls(session.hooks, store, session.username, platforms)

    def resolve_plan(
        self, plan: StepPlan, values: Mapping[str, str] | None = None, *, upgrade: bool = False
    ) -> Resolved:
        """Return what a step's plan asks for, with its lock; arguments and errors as `asked` and `resolve`."""
        asked = self.asked(plan, values)
        return asked if isinstance(asked, Resolved) else self.resolve(asked, upgrade=upgrade)

    def asked(self, plan: StepPlan, values: Mapping[str, str] | None = None) -> Resolved | EnvironmentSpec:
        """Return what a step's plan asks for: a requirement, or an environment that is there by its name.

        Parameters
        ----------
        plan : StepPlan
            The plan, which asks for an environment.
        values : mapping of str to str, optional
            What is put into the environment's name, where that is looked up when a task starts.

        Raises
        ------
        UsageError, StoreError
            Where there is no environment of that name, or the store refuses it.
        """
        spec = plan.environment
        if plan.environment_name is None:
            if spec is None:
                raise ValueError("the step asks for no environment")
            return spec
        name = plan.environment_name if values is None else substituted(plan.environment_name, values)
        base = self.catalog.find(name)
        if spec is None:
            return Resolved(EnvironmentSpec(base.backend, {"name": name}), base)
        return extended(spec, base)

    def resolve(self, spec: EnvironmentSpec, *, upgrade: bool = False) -> Resolved:
        """Return the lock of a requirement, from the store unless it is to be upgraded.

        Raises
        ------
        ValueError, OSError
            As the backend raises them.
        """
        known = None if upgrade else self.catalog.answer(spec, self.platforms, renew=True)
        if known is not None:
            return Resolved(spec, known)
        lock = self._hooks.resolve_environment(spec, self.platforms)
        if lock.has_own_packages:
            store_bundle(self._store, self._hooks, lock, "")
        self.catalog.keep(spec, lock, self.platforms)
        return Resolved(spec, lock, is_new=True)


def extended(spec: EnvironmentSpec, base: EnvironmentLock) -> EnvironmentSpec:
    """Return a requirement that is added to an environment; UsageError where their backends differ."""
    if spec.backend != base.backend:
        raise UsageError(
            f"packages of {spec.backend} cannot be added to an environment of {base.backend}",
            hint=f"use the decorator of {base.backend} for the additions",
        )
    return attrs.evolve(spec, base=base)


def substituted(name: str, values: Mapping[str, str]) -> str:
    """Return an environment's name with values put into it.

    Parameters
    ----------
    name : str
        The name, with ``{run_id}``, ``{flow_name}``, ``{step_name}``, ``{task_id}``, ``{run_pathspec}``,
        ``{task_pathspec}`` or the name of a parameter; Metaflow's ``@{METAFLOW_RUN_ID}`` and the like are understood.
    values : mapping of str to str
        The values by name.

    Raises
    ------
    UsageError
        Where something in braces is not known.

    Examples
    --------
    >>> substituted("explainer/{run_id}:v1", {"run_id": "20260131-094500-123456"})
    'explainer/20260131-094500-123456:v1'
    """

    def value(match: re.Match[str]) -> str:
        field = match[1]
        known = _METAFLOW.get(field) or field.removeprefix(_METAFLOW_PARAMETER).lower()
        found = values.get(field, values.get(known))
        if found is None:
            raise UsageError(
                f"the environment's name {shown(name)} has {{{field}}}, which is not known",
                hint=f"known are {', '.join(values)}",
            )
        return found

    return _FIELD.sub(value, name)


def task_values(run: RunContext, key: TaskKey, parameters: Mapping[str, str]) -> dict[str, str]:
    """Return what can be put into the name of a task's environment; parameters as text."""
    return {
        **parameters,
        "flow_name": run.flow,
        "run_id": run.run_id,
        "run_pathspec": f"{run.flow}/{run.run_id}",
        "step_name": key.step,
        "task_id": key.task_id,
        "task_pathspec": f"{run.flow}/{run.run_id}/{key.step}/{key.task_id}",
    }
