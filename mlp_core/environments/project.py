"""The environments of a project: what people ask for, look up, extend, name, make and bundle outside of a run."""

from __future__ import annotations

import contextlib
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mlp_core.environments.bundling import provide, store_bundle
from mlp_core.environments.resolving import Resolver, extended
from mlp_core.errors import MlpError, OptionError, PluginError, PluginRefused, UsageError
from mlp_core.names import short_digest, shown
from mlp_hookspecs import EnvironmentSpec, StepInfo, StepNode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlp_core.environments.catalog import Catalog
    from mlp_core.environments.host import HostEnvironments
    from mlp_core.environments.records import Bundle, KeptLock, NamedLock
    from mlp_core.environments.resolving import Resolved
    from mlp_core.session import Session
    from mlp_core.store import Store
    from mlp_hookspecs import EnvironmentLock, ProvisionedEnvironment, StepPlan

_FILE = "file"


class ProjectEnvironments:
    """The environments of a project's store, with the plugins that make them.

    Parameters
    ----------
    session : Session
        Plugins and settings.
    platforms : sequence of str
        The platforms that locks must hold for; by default those of the settings.
    """

    def __init__(self, session: Session, *, platforms: Sequence[str] = ()) -> None:
        """Touch nothing yet."""
        self._session = session
        self._platforms = tuple(platforms)

    @functools.cached_property
    def store(self) -> Store:
        """The store; StoreUnavailable where there is none."""
        return self._session.open_store(create=False)

    @property
    def catalog(self) -> Catalog:
        """What the store knows of environments."""
        return self._resolver(self.store).catalog

    def look_up(self, text: str) -> KeptLock:
        """Return the environment that somebody means; errors as `Catalog.look_up`."""
        return self.catalog.look_up(text)

    # --------------------------------------------------------------------------------------------- resolving

    def requirement(self, backend: str, fields: Mapping[str, Any]) -> EnvironmentSpec:
        """Return a requirement, as the backend's own decorator with these arguments gives it.

        Parameters
        ----------
        backend : str
            The environment backend, such as ``pypi``, whose decorator has the same name. The requirement of one
            without a decorator is the arguments themselves.
        fields : mapping of str to object
            The arguments; a ``file`` is looked for from the working folder.

        Raises
        ------
        UsageError
            Where nobody provides the backend, or it refuses an argument.
        """
        hooks = self._session.hooks
        hooks.backend("environment", backend)
        kind = hooks.options().get(backend)
        if kind is None:
            return EnvironmentSpec(backend, fields)
        unknown = [name for name in fields if name not in {field.alias for field in attrs.fields(kind)}]
        if unknown:
            raise OptionError(f"an environment of {backend} has no {', '.join(unknown)}")
        given = dict(fields)
        place = self._session.root
        if _FILE in given:
            place = Path(given[_FILE]).absolute()
            given[_FILE] = place.name
            if not place.is_file():
                raise UsageError(f"there is no file {shown(str(fields[_FILE]))}")
        node = StepNode("environment", "end", file=str(place))
        with _told("the requirement is refused"):
            try:
                plan = hooks.plan_step(StepInfo("Environment", node), (kind(**given),))
            except OptionError as error:
                if isinstance(error.__cause__, (OSError, ValueError)):  # of no step: a file that cannot be read, say
                    raise error.__cause__ from None
                raise
        if plan.environment is None:
            raise OptionError(f"@{backend} with these arguments asks for no environment")
        return plan.environment

    def resolve(self, spec: EnvironmentSpec, *, upgrade: bool = False) -> Resolved:
        """Return the lock of a requirement, kept in the store, which is made if there is none.

        Parameters
        ----------
        spec : EnvironmentSpec
            The requirement.
        upgrade : bool
            Whether it is resolved anew though the store has its lock.

        Raises
        ------
        UsageError
            Where it cannot be met.
        """
        with _told("the environment cannot be resolved"):
            return self._resolver(self._session.open_store(create=True)).resolve(spec, upgrade=upgrade)

    def resolve_plan(self, plan: StepPlan, step: str, *, upgrade: bool = False) -> Resolved:
        """Return the lock of what a step's plan asks for; as `resolve`."""
        with _told(f"the environment of step {step!r} cannot be resolved"):
            resolver = self._resolver(self._session.open_store(create=True))
            return resolver.resolve_plan(plan, upgrade=upgrade)

    def extend(self, base: EnvironmentLock, fields: Mapping[str, Any], backend: str | None = None) -> Resolved:
        """Return an environment with more packages in it than another, each of whose packages it keeps as it is.

        Parameters
        ----------
        base : EnvironmentLock
            The other.
        fields : mapping of str to object
            What is added, as arguments of the backend's decorator.
        backend : str, optional
            The backend that the arguments are for; only the other's will do.

        Raises
        ------
        UsageError
            Where the addition does not go with what is there.
        """
        backend = backend or base.backend
        if backend != base.backend:  # before a plugin is asked about arguments that are for another
            extended(EnvironmentSpec(backend), base)
        return self.resolve(extended(self.requirement(backend, fields), base))

    # --------------------------------------------------------------------------------------------- the rest

    def name(self, text: str, name: str) -> NamedLock:
        """Let a name stand for the environment that somebody means; errors as `look_up` and `Catalog.name`."""
        return self.catalog.name(name, self.keep(text).digest)

    def keep(self, text: str) -> EnvironmentLock:
        """Return the environment that somebody means, and keep it where only a run has it; errors as `look_up`."""
        kept = self.look_up(text)
        self.catalog.adopt(kept)
        return kept.lock

    def make(self, lock: EnvironmentLock, host: HostEnvironments) -> ProvisionedEnvironment:
        """Return an environment on this host, made if it is not there, and held by `host`.

        Raises
        ------
        MlpError
            Where it cannot be made.
        """
        with _told(f"the environment {short_digest(lock.digest)} cannot be made", MlpError):
            return provide(host, self._session.hooks, lock, lambda: self.store)

    def bundle(self, lock: EnvironmentLock, platform: str) -> Bundle:
        """Put the packages of an environment for a platform into the store.

        Raises
        ------
        MlpError
            Where they cannot be had.
        """
        with _told(
            f"the packages of {short_digest(lock.digest)} for {platform} cannot be put into the store", MlpError
        ):
            return store_bundle(self.store, self._session.hooks, lock, platform)

    def requirement_digest(self, kept: KeptLock) -> str:
        """Return the digest of the requirement that an environment was the answer to; empty where its base is gone."""
        if not kept.base:
            return kept.spec.digest
        try:
            return attrs.evolve(kept.spec, base=self.catalog.kept(kept.base).lock).digest
        except MlpError:
            return ""

    def _resolver(self, store: Store) -> Resolver:
        """Return what resolves into a store."""
        resolver = Resolver.of(self._session, store)
        if not self._platforms:
            return resolver
        return Resolver(self._session.hooks, store, self._session.username, self._platforms)


@contextlib.contextmanager
def _told(what: str, kind: type[MlpError] = UsageError) -> Iterator[None]:
    """Turn what a backend raises into an error of ours that says what could not be done."""
    try:
        yield
    except (OSError, TypeError, ValueError) as error:
        if isinstance(error, MlpError):
            raise
        raise kind(f"{what}: {error}") from error
    except PluginError as error:
        missing = error.__cause__
        if not isinstance(missing, ModuleNotFoundError):
            raise
        # As in a step whose environment has the plugin's own code alone.
        raise PluginRefused(
            f"{what} by {sys.executable}: it has no {missing.name}, which the plugin needs",
            hint="do it where runs are started, or ask for that package in the step's environment",
        ) from error
