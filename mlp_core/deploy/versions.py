"""What is deployed: immutable versions of flows in the store, and which of them is the active one in its target.

A version is recorded first, then handed to its target, and becomes the active one once the target has taken it. In the
store, under ``deployments/<target>/<name>/``: ``v000001.json`` and so on, written once; ``active.json``, replaced.
What a target keeps for itself lies under ``targets/<target>/``.
"""

from __future__ import annotations

import re
import sys
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs

from mlp_core.deploy.records import Active, Order, Version
from mlp_core.deploy.targets import opened_target
from mlp_core.errors import NameRefused, NotFound, StoreDamaged, StoreUntrusted, UsageError
from mlp_core.names import closest, label, shown
from mlp_core.names import tag as checked_tag
from mlp_core.parameters import parameters_of, to_text
from mlp_core.runner import RunOptions, check_flow
from mlp_core.runner.blueprint import draw_blueprint, flow_plan, read_blueprint, store_blueprint
from mlp_core.runner.observing import tell
from mlp_core.runner.run import freeze, resolve_parameters
from mlp_core.store import layout
from mlp_core.store.checked import with_checksum, without_checksum
from mlp_hookspecs import DeployRequest, wire
from mlp_hookspecs.events import Deployed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from mlp_core.runner import CheckedFlow
    from mlp_core.runner.blueprint import Blueprint
    from mlp_core.session import Session
    from mlp_core.settings import Settings
    from mlp_core.store import Store
    from mlp_core.values import Values
    from mlp_hookspecs import ArtifactRef, DeployDiff, Deployment, FlowPlan, Json, ParameterInfo, PluginId
    from mlp_hookspecs.handles import DeployTarget, ObjectStore

_VERSION: Final = re.compile(r"v(\d{6,9})\.json")
_ACTIVE: Final = "active.json"
_TRIES: Final = 1000

_Stored = TypeVar("_Stored", Version, Active)


class Deployments:
    """The deployments of a store.

    Parameters
    ----------
    session : Session
        The project.
    """

    def __init__(self, session: Session) -> None:
        """Make the view; nothing is touched."""
        self._session = session

    def deploy(self, flow: type[Any], order: Order) -> Deployment:
        """Record a version of a flow and make it the active one.

        Parameters
        ----------
        flow : type
            The flow's class; it must lie in a file.
        order : Order
            What is asked for.

        Returns
        -------
        Deployment
            What the target answered.

        Raises
        ------
        UsageError
            Where the flow, a parameter or a name is refused, or the target cannot run the flow.
        """
        session = self._session
        label(order.target, "target")
        session.hooks.backend("target", order.target)
        checked = check_flow(flow, session, order.with_options)
        name = label(order.name or checked.graph.flow, "deployment")
        tags = tuple(dict.fromkeys(checked_tag(tag) for tag in order.tags))
        options = RunOptions(parameters=order.parameters, from_text=True)
        # Before there is a store: a mistyped parameter leaves none behind.
        resolved = resolve_parameters(flow, session, options, leave_required=True)
        store = session.open_store(create=True)
        values = session.values(store)
        frozen = freeze(checked, session, options, values, resolved)
        if frozen.code.package is None:
            raise UsageError(f"{checked.graph.flow} lies in no file, so it cannot be deployed", hint="put it into one")
        texts = _frozen_texts(flow, frozen.parameters, values)
        blueprint = draw_blueprint(
            checked,
            session,
            # Without a root it never runs from the project's folder, whatever becomes of that.
            attrs.evolve(frozen.code, root=""),
            constants={key: ref for key, ref in frozen.parameters.items() if key not in frozen.texts},
            parameters=texts,
            tags=tags,
        )
        digest = store_blueprint(store, blueprint)
        plan = _plan(checked, digest, store, texts)

        def make(number: int) -> Version:
            request = DeployRequest(
                target=order.target,
                name=name,
                version=number,
                plan=plan,
                code=blueprint.code,
                parameters=texts,
                tags=tags,
                plugins=blueprint.plugins,
                run_command=_run_command(order.target, name, number, store.url),
            )
            flags = _given_settings(session.settings)
            return Version(request, digest, time.time(), session.username, order.with_options, flags)

        return self._activate(self._record(store, order.target, name, make))

    def plan(self, request: DeployRequest) -> DeployDiff:
        """Return what a deploy of a version would change in its target."""
        with self._target(request.target) as target:
            return target.plan(request)

    def active(self, target: str | None = None) -> list[Active]:
        """Return the active version of each name, of one target or of all, by target and name."""
        store = self._store()
        targets = [target] if target is not None else _ours(store.objects.children(layout.DEPLOYMENTS))
        found = []
        for each in targets:
            for name in _ours(store.objects.children(layout.deployments(each))):
                active = self._read_active(store, each, name)
                if active is not None:
                    found.append(active)
        return found

    def versions(self, name: str, target: str) -> list[Version]:
        """Return all versions of a name, newest first; NotFound where there is none."""
        store = self._store()
        numbers = self._numbers(store, target, name)
        if not numbers:
            raise self._unknown(store, target, name)
        return [self._read(store, target, name, number) for number in reversed(numbers)]

    def find(self, name: str, target: str, version: int | None = None) -> Version:
        """Return a version of a name; the active one where none is named.

        Raises
        ------
        NotFound
            Where there is none; the message names those that there are.
        """
        store = self._store()
        numbers = self._numbers(store, target, name)
        if not numbers:
            raise self._unknown(store, target, name)
        if version is None:
            active = self._read_active(store, target, name)
            if active is None:
                hint = f"bring one back: mlp deployments rollback {name} --version {numbers[-1]}"
                raise NotFound(f"deployment {name} has no active version on {target}", hint=hint)
            version = active.deployment.version
            if version not in numbers:
                raise self._gone(store, active)
        if version not in numbers:
            raise NotFound(f"deployment {name} has no version {version} on {target}", hint=f"it has {_listed(numbers)}")
        return self._read(store, target, name, version)

    def active_version(self, name: str, target: str) -> int | None:
        """Return the number of a name's active version; None where there is none."""
        active = self._read_active(self._store(), target, name)
        return active.deployment.version if active is not None else None

    def trigger(self, version: Version, parameters: Mapping[str, str]) -> str:
        """Let the target start a run of a version.

        Returns
        -------
        str
            The run's id, or where it can be followed.

        Raises
        ------
        UsageError
            Where the run is refused.
        """
        request = version.request
        _check_names(request.plan.parameters, parameters)
        with self._target(request.target) as target:
            try:
                return target.trigger(request, parameters)
            except ValueError as error:
                raise UsageError(str(error)) from error

    def rollback(self, name: str, target: str, version: int | None = None) -> Deployment:
        """Make an earlier version the active one: the named one, else the one before the active one.

        Raises
        ------
        NotFound
            Where there is no such version, or none before.
        """
        if version is None:
            active = self.active_version(name, target)
            before = [each.request.version for each in self.versions(name, target)]
            earlier = [number for number in before if active is None or number < active]
            if not earlier:
                raise NotFound(f"deployment {name} has no version before {active} on {target}")
            version = earlier[0]
        return self._activate(self.find(name, target, version))

    def delete(self, name: str, target: str) -> None:
        """Take a name out of service; its versions are kept. NotFound where it is not in service."""
        store = self._store()
        if self._read_active(store, target, name) is None:
            raise self._unknown(store, target, name)
        with self._target(target) as opened:
            opened.delete(name)
        store.objects.delete(_key(target, name, _ACTIVE))

    def blueprint(self, version: Version) -> Blueprint:
        """Return the frozen flow of a version; StoreUntrusted where that is to be signed and is not."""
        store = self._store()
        if store.signer is not None:
            key = _version_key(version.request)
            content = without_checksum(key, store.objects.read(key), store.url)
            # The version may have come from another object, and only say that it is this one.
            if not store.signer.accepts_text(content, key) or wire.loads(Version, content) != version:
                raise StoreUntrusted(
                    f"version {version.request.version} of {version.request.name} in {store.url} is not signed with the"
                    " key of storage.signing_key, so its code is not run",
                    hint="whoever deployed it had no key, or another one: deploy the flow again",
                )
        return read_blueprint(store, version.blueprint)

    def missing_plugins(self, version: Version) -> tuple[list[PluginId], list[PluginId]]:
        """Return the plugins of a version that are not in force here, and those that are but in another version."""
        here = {record.id.name: record.id for record in self._session.hooks.records if record.in_force}
        missing = [plugin for plugin in version.request.plugins if plugin.name not in here]
        others = [plugin for plugin in version.request.plugins if here.get(plugin.name, plugin) != plugin]
        return missing, others

    def _record(self, store: Store, target: str, name: str, make: Callable[[int], Version]) -> Version:
        """Record a version under the next free number."""
        for _ in range(_TRIES):
            numbers = self._numbers(store, target, name)
            version = make(numbers[-1] + 1 if numbers else 1)
            key = _version_key(version.request)
            content = wire.dumps(version)
            if store.signer is not None:
                content = store.signer.sign_text(content, key)
            if store.objects.create(key, with_checksum(key, content), sync=True):
                return version
        raise UsageError(f"deployment {name}: no free version number", hint="others are deploying it at this moment")

    def _activate(self, version: Version) -> Deployment:
        """Hand a version to its target and make it the active one."""
        request = version.request
        with self._target(request.target) as target:
            try:
                deployment = self._session.hooks.deploy(request, target)
            except ValueError as error:
                raise UsageError(f"target {request.target} refuses {request.name}: {error}") from error
        active = Active(deployment, time.time(), self._session.username)
        key = _key(request.target, request.name, _ACTIVE)
        self._store().objects.replace(key, with_checksum(key, wire.dumps(active)), sync=True)
        tell(
            self._session,
            Deployed(
                sequence=request.version,
                flow=request.plan.graph.flow,
                run_id="",
                time=active.time,
                target=request.target,
                name=request.name,
                version=request.version,
            ),
        )
        return deployment

    def _target(self, name: str) -> AbstractContextManager[DeployTarget]:
        """Return a target, to be entered."""
        return opened_target(self._session, self._store(), label(name, "target"))

    def _store(self) -> Store:
        return self._session.open_store(create=False)

    def _numbers(self, store: Store, target: str, name: str) -> list[int]:
        """Return the numbers of a name's versions, rising."""
        found = store.objects.children(_key(target, name, ""))
        return sorted(int(match[1]) for each in found if (match := _VERSION.fullmatch(each)))

    def _read(self, store: Store, target: str, name: str, number: int) -> Version:
        """Read a version."""
        return read_stored(Version, store.objects, _key(target, name, version_name(number)))

    def _read_active(self, store: Store, target: str, name: str) -> Active | None:
        """Read which version is the active one."""
        try:
            return read_stored(Active, store.objects, _key(target, name, _ACTIVE))
        except FileNotFoundError:
            return None

    def _unknown(self, store: Store, target: str, name: str) -> NotFound | StoreDamaged:
        """Return the error of a name that is not deployed, or whose versions are gone."""
        active = self._read_active(store, target, name)
        if active is not None:
            return self._gone(store, active)
        known = store.objects.children(layout.deployments(target))
        close = closest(name, known)
        hint = (
            f"did you mean {close}?" if close else f"there are {', '.join(known)}" if known else "deploy a flow first"
        )
        return NotFound(f"there is no deployment {shown(name)} on {target}", hint=hint)

    def _gone(self, store: Store, active: Active) -> StoreDamaged:
        """Return the error of an active version that is missing."""
        deployment = active.deployment
        key = _key(deployment.target, deployment.name, version_name(deployment.version))
        return StoreDamaged(f"{key} is missing from {store.url}", hint="deploy the flow again")


def _ours(found: Iterable[str]) -> list[str]:
    """Return the names in a listing that pass the grammar; others are not ours."""

    def passes(name: str) -> bool:
        try:
            label(name, "name")
        except NameRefused:
            return False
        return True

    return [name for name in found if passes(name)]


def read_stored(kind: type[_Stored], objects: ObjectStore, key: str) -> _Stored:
    """Return what is stored of a deployment under a key.

    Raises
    ------
    FileNotFoundError
        Where there is nothing.
    StoreDamaged
        Where it is not what was written.
    """
    content = without_checksum(key, objects.read(key), objects.url)
    try:
        return wire.loads(kind, content)
    except ValueError as error:
        raise StoreDamaged(f"{key} in {objects.url} cannot be read: {error}") from error


def version_name(number: int) -> str:
    """Return the name of the object that holds a version."""
    return f"v{number:06}.json"


def _key(target: str, name: str, last: str) -> str:
    """Return the key of something of a deployment; NameRefused where a name is refused."""
    return layout.deployment(target, name) + last


def _version_key(request: DeployRequest) -> str:
    """Return the key of a version."""
    return _key(request.target, request.name, version_name(request.version))


def _run_command(target: str, name: str, number: int, url: str) -> tuple[str, ...]:
    """Return the command that runs a version with a driver of ours."""
    # -P: the files of the folder where it is started must not hide modules.
    program = (sys.executable, "-P", "-m", "mlp_core.cli", "deployments", "run")
    return (*program, name, "--target", target, "--version", str(number), "--store", url)


def _frozen_texts(flow: type[Any], refs: Mapping[str, ArtifactRef], values: Values) -> dict[str, str]:
    """Return the values that are frozen, as the command line would take them, by name; None freezes nothing."""
    texts = {}
    for attribute, parameter in parameters_of(flow).items():
        value = values.get(refs[attribute]) if attribute in refs else None
        if value is not None:
            is_split = parameter.separator is not None and parameter.value_type().name == "str"
            texts[parameter.name] = str(parameter.separator).join(value) if is_split else to_text(value)
    return texts


def _plan(checked: CheckedFlow, digest: str, store: Store, texts: Mapping[str, str]) -> FlowPlan:
    """Return the plan, in which the frozen values are the parameters' defaults."""
    plan = flow_plan(checked, digest, store.url)
    frozen = [
        attrs.evolve(parameter, default=texts[parameter.name], required=False) if parameter.name in texts else parameter
        for parameter in plan.parameters
    ]
    return attrs.evolve(plan, parameters=tuple(frozen))


def _given_settings(settings: Settings) -> dict[str, Json]:
    """Return the settings that are not at their defaults, without secrets and the store's place."""
    given = settings.portable()
    return {name: value for name, value in given.items() if settings.source(name) != "default" and name != "store"}


def _check_names(parameters: Sequence[ParameterInfo], given: Mapping[str, str]) -> None:
    """Refuse names that no parameter has, before a process is started for them."""
    known = [parameter.name for parameter in parameters]
    for name in given:
        if name.replace("-", "_") not in {each.replace("-", "_") for each in known}:
            close = closest(name, known)
            hint = f"did you mean {close}?" if close else f"it has {', '.join(known)}" if known else "it has none"
            raise UsageError(f"the flow has no parameter {shown(name)}", hint=hint)


def _listed(numbers: Sequence[int]) -> str:
    """Return version numbers for people."""
    return f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 3 else ", ".join(map(str, numbers))  # noqa: PLR2004 # a few
