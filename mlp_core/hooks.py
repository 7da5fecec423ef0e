"""How the core calls plugins: the one module that does, through a typed face that blames whatever passes through it."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from mlp_core.errors import MlpError, OptionError, PluginError, PluginRefused, UnknownBackend
from mlp_core.plan_merge import Opinion, merge_plans
from mlp_core.plugins import PluginRecord, Plugins, load_plugins
from mlp_core.settings import (
    CORE_SETTINGS,
    Settings,
    check_declaration,
    find_sources,
    resolve_settings,
    restore_settings,
    variable_name,
)
from mlp_hookspecs import (
    ArtifactRef,
    Backend,
    BackendKind,
    Command,
    Deployment,
    DeployRequest,
    EnvironmentLock,
    EnvironmentSpec,
    LaunchRequest,
    Option,
    PluginId,
    PluginWarning,
    ProvisionedEnvironment,
    Setting,
    StepInfo,
    StepPlan,
    Wrap,
)
from mlp_hookspecs.specs import HOOKS

if TYPE_CHECKING:
    from types import TracebackType

    from mlp_hookspecs.events import Event
    from mlp_hookspecs.handles import (
        ArtifactSource,
        ArtifactTarget,
        DeployTarget,
        Launcher,
        LaunchSink,
        ObjectStore,
        StepHandle,
        TargetContext,
    )

_WORKER_HOOKS: Final = frozenset({
    "mlp_load_artifact", "mlp_open_store", "mlp_options", "mlp_persist_artifact", "mlp_wrap_step",
})  # fmt: skip


@attrs.frozen(eq=False)
class _Call:
    """One plugin's implementation of one hook; `function` takes the hook's arguments in the order of its spec."""

    plugin: PluginId
    hook: str
    function: Callable[..., Any]
    foreign: bool

    def run(self, *args: object, passing: tuple[type[BaseException], ...] = ()) -> Any:
        """Call it. What it raises is blamed on the plugin; only `passing` and the core's own errors pass unchanged."""
        try:
            return self.function(*args)
        except (MlpError, *passing) as error:
            error.add_note(self.blame())
            raise
        except (Exception, SystemExit) as error:
            raise self.fault(f"raised {_described(error)}") from error

    def fault(self, what: str) -> PluginError:
        """Return the error that blames the plugin."""
        return PluginError(f"plugin {self.plugin} {what} in {self.hook}")

    def blame(self) -> str:
        """Return the note that names the culprit."""
        return f"from plugin {self.plugin}, hook {self.hook}"


def build_hooks(
    *, flags: Mapping[str, object] | None = None, start: Path | None = None, environ: Mapping[str, str] | None = None
) -> tuple[Hooks, Settings]:
    """Read the settings, load the plugins, and return what the rest of the core works with.

    Parameters
    ----------
    flags : mapping of str to object, optional
        Settings by dotted name that win over variables and the file.
    start : pathlib.Path, optional
        A folder or file of the project; by default the working folder.
    environ : mapping of str to str, optional
        Environment variables; by default the process's own.

    Returns
    -------
    tuple of Hooks and Settings
        The hooks and the settings in force.

    Raises
    ------
    SettingError
        Where a setting is refused.
    PluginRefused
        In strict mode, for the first plugin that fails.
    """
    sources = find_sources(Path.cwd() if start is None else start, environ=environ, flags=flags)
    core = resolve_settings(CORE_SETTINGS, sources, absent=None)
    plugins = load_plugins(
        allow=core["plugins.allow"],
        deny=core["plugins.deny"],
        safe=core["plugins.safe"],
        strict=core["plugins.strict"],
        timeout=core["plugins.timeout"],
    )
    found = _Declarations.collect(plugins, strict=core["plugins.strict"])
    absent = {record.name.replace("-", "_") for record in found.plugins.records if not record.in_force}
    settings = resolve_settings((*CORE_SETTINGS, *found.settings), sources, absent=absent)
    return Hooks(found, settings), settings


def build_worker_hooks(required: Sequence[PluginId], given: Mapping[str, Any]) -> tuple[Hooks, Settings]:
    """Load in a worker the builtin plugins and those that a request asks for, with the driver's settings.

    Parameters
    ----------
    required : sequence of PluginId
        The plugins, as `Hooks.worker_plugins` gave them in the driver.
    given : mapping of str to JSON
        The settings, as `Settings.portable` gave them in the driver.

    Returns
    -------
    tuple of Hooks and Settings
        The hooks and the settings in force.

    Raises
    ------
    PluginRefused
        Where a plugin is missing, broken or of another version here; the message lists the differences.
    """
    strict = bool(given.get("plugins.strict", False))
    plugins = load_plugins(
        allow=[plugin.name for plugin in required],
        safe=not required,
        strict=strict,
        timeout=float(given.get("plugins.timeout", 60)),
    )
    found = _Declarations.collect(plugins, strict=strict)
    settings = restore_settings((*CORE_SETTINGS, *found.settings), given, os.environ)
    hooks = Hooks(found, settings)
    hooks.check_worker_plugins(required)
    return hooks, settings


@attrs.frozen
class _Declarations:
    """What the plugins in force say about themselves."""

    plugins: Plugins
    calls: Mapping[str, tuple[_Call, ...]]
    settings: tuple[Setting, ...]
    backends: Mapping[tuple[str, str], tuple[tuple[PluginId, Backend], ...]]
    options: Mapping[str, tuple[tuple[PluginId, type[Option]], ...]]

    @classmethod
    def collect(cls, plugins: Plugins, *, strict: bool) -> _Declarations:
        """Ask each plugin, and disable those that fail to answer."""
        calls = _calls(plugins)
        settings: list[Setting] = []
        backends: dict[tuple[str, str], list[tuple[PluginId, Backend]]] = {}
        options: dict[str, list[tuple[PluginId, type[Option]]]] = {}
        records = []
        for record in plugins.records:
            if not record.in_force:
                records.append(record)
                continue
            own = {hook: call for hook, found in calls.items() for call in found if call.plugin == record.id}
            try:
                said = _ask(record, own)
            except PluginError as error:
                if strict:
                    raise
                warnings.warn(f"{error}; it is disabled", PluginWarning, stacklevel=3)
                records.append(attrs.evolve(record, status="disabled", reason=str(error), error=error))
                calls = {hook: tuple(c for c in found if c.plugin != record.id) for hook, found in calls.items()}
                continue
            settings.extend(said.settings)
            for backend in said.backends:
                backends.setdefault((backend.kind, backend.name), []).append((record.id, backend))
            for option in said.options:
                options.setdefault(option.name, []).append((record.id, option))
            records.append(attrs.evolve(record, backends=tuple(f"{b.kind}:{b.name}" for b in said.backends)))
        return cls(
            attrs.evolve(plugins, records=tuple(records)),
            calls,
            tuple(settings),
            {key: tuple(found) for key, found in backends.items()},
            {name: tuple(found) for name, found in options.items()},
        )


@attrs.frozen
class _Said:
    """What one plugin says about itself."""

    settings: tuple[Setting, ...]
    backends: tuple[Backend, ...]
    options: tuple[type[Option], ...]


def _ask(record: PluginRecord, own: Mapping[str, _Call]) -> _Said:
    """Return what a plugin declares; PluginError where it fails or declares nonsense."""
    return _Said(_items(own.get("mlp_settings")), _items(own.get("mlp_backends")), _items(own.get("mlp_options")))


def _items(call: _Call | None) -> tuple[Any, ...]:
    """Return the items that a collect hook gives."""
    if call is None:
        return ()
    answer = call.run()
    try:
        return tuple(answer or ())
    except TypeError:
        raise call.fault(f"returned {answer!r:.80}, which is no sequence,") from None


def _calls(plugins: Plugins) -> dict[str, tuple[_Call, ...]]:
    """Return the implementations of each hook, sorted by plugin."""
    ids = {record.name: record for record in plugins.records if record.in_force}
    calls: dict[str, tuple[_Call, ...]] = {}
    for hook in HOOKS:
        caller = getattr(plugins.manager.hook, hook)
        names = caller.spec.argnames
        found = [
            _Call(ids[i.plugin_name].id, hook, _adapted(i, names), ids[i.plugin_name].status != "builtin")
            for i in caller.get_hookimpls()
        ]
        calls[hook] = tuple(sorted(found, key=lambda call: call.plugin.name))
    return calls


def _adapted(implementation: Any, names: Sequence[str]) -> Callable[..., Any]:
    """Return a function that takes a hook's arguments in order, from one that names only some, in any order."""
    wanted = (*implementation.argnames, *implementation.kwargnames)
    function: Callable[..., Any] = implementation.function
    if wanted == tuple(names):
        return function
    places = [names.index(name) for name in wanted if name in names]
    return lambda *args: function(*(args[place] for place in places))


def _described(error: BaseException) -> str:
    """Return an exception on one line."""
    text = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class Hooks:
    """The plugins in force, one method for each hook."""

    def __init__(self, declared: _Declarations, settings: Settings) -> None:
        """Make the face of loaded plugins."""
        self._declared = declared
        self._settings = settings
        self._owners: dict[tuple[str, str], _Call] = {}
        self._formats: dict[type, tuple[str, ...]] = {}

    @property
    def records(self) -> tuple[PluginRecord, ...]:
        """What became of each installed plugin."""
        return self._declared.plugins.records

    # ---- what plugins provide

    def backends(self) -> tuple[tuple[PluginId, Backend], ...]:
        """Return all backends with their plugins, sorted by kind and name."""
        return tuple(pair for key in sorted(self._declared.backends) for pair in self._declared.backends[key])

    def backend(self, kind: BackendKind, name: str) -> Backend:
        """Return a backend by name; UnknownBackend where nobody provides it."""
        return self._owner(kind, name)[1]

    def options(self) -> Mapping[str, type[Option]]:
        """Return the options by name, without those that two plugins claim."""
        return {name: found[0][1] for name, found in self._declared.options.items() if len(found) == 1}

    def option(self, name: str) -> type[Option]:
        """Return an option by name; OptionError where nobody or more than one plugin provides it."""
        found = self._declared.options.get(name, ())
        if len(found) != 1:
            raise OptionError(f"unknown decorator @{name}")
        return found[0][1]

    def commands(self) -> Mapping[str, Command]:
        """Return the subcommands that plugins declare, by name."""
        return {command.name: command for call in self._declared.calls["mlp_commands"] for command in _items(call)}

    def _owner(self, kind: str, name: str) -> tuple[PluginId, Backend]:
        found = self._declared.backends.get((kind, name), ())
        if not found:
            known = ", ".join(sorted(n for k, n in self._declared.backends if k == kind)) or "none"
            raise UnknownBackend(f"unknown {kind} {name!r}; known are {known}")
        return found[0]

    def _claim(self, hook: str, name: str) -> _Call:
        """Return the owner's implementation."""
        call = self._owners.get((hook, name))
        if call is None:
            plugin, _ = self._owner(str(HOOKS[hook].kind), name)
            call = next(c for c in self._declared.calls[hook] if c.plugin == plugin)
            self._owners[hook, name] = call
        return call

    # ---- planning

    def plan_step(self, step: StepInfo, options: Sequence[Option]) -> StepPlan:
        """Return what all plugins plan for a step."""
        opinions = []
        for call in self._declared.calls["mlp_plan_step"]:
            plan = call.run(step, options)
            if plan is not None:
                opinions.append(Opinion(call.plugin, plan))
        return merge_plans(step.node.name, opinions)

    # ---- claims

    def open_store(self, url: str) -> ObjectStore:
        """Open a store."""
        scheme = url.partition("://")[0] if "://" in url else "file"
        call = self._claim("mlp_open_store", scheme)
        store: ObjectStore = call.run(url, passing=(OSError,))
        return store

    def resolve_environment(self, spec: EnvironmentSpec, platforms: Sequence[str]) -> EnvironmentLock:
        """Resolve a requirement."""
        call = self._claim("mlp_resolve_environment", spec.backend)
        lock: EnvironmentLock = call.run(spec, platforms, passing=(ValueError,))
        return lock

    def provision_environment(self, lock: EnvironmentLock, root: Path) -> ProvisionedEnvironment:
        """Make an environment."""
        call = self._claim("mlp_provision_environment", lock.backend)
        made: ProvisionedEnvironment = call.run(lock, root, passing=(OSError,))
        return made

    def fetch_secret(self, reference: str) -> Mapping[str, str]:
        """Fetch a secret."""
        call = self._claim("mlp_fetch_secret", reference.partition("://")[0])
        secret: Mapping[str, str] = call.run(reference, passing=(OSError,))
        return secret

    def open_launcher(self, name: str, settings: Settings, sink: LaunchSink) -> Launcher:
        """Open a launcher."""
        launcher: Launcher = self._claim("mlp_open_launcher", name).run(name, settings, sink, passing=(OSError,))
        return launcher

    def launch_step(self, name: str, requests: Sequence[LaunchRequest], launcher: Launcher) -> None:
        """Start attempts."""
        self._claim("mlp_launch_step", name).run(requests, launcher, passing=(OSError,))

    def persist_artifact(self, format_name: str, value: object, target: ArtifactTarget) -> bool:
        """Encode a value; False where the format cannot hold it."""
        return bool(self._claim("mlp_persist_artifact", format_name).run(value, target, passing=(Exception,)))

    def load_artifact(self, ref: ArtifactRef, source: ArtifactSource) -> Any:
        """Decode a value."""
        return self._claim("mlp_load_artifact", ref.format).run(ref, source, passing=(Exception,))

    def open_target(self, name: str, context: TargetContext) -> DeployTarget:
        """Open a deploy target."""
        target: DeployTarget = self._claim("mlp_open_target", name).run(name, context, passing=(OSError,))
        return target

    def deploy(self, request: DeployRequest, target: DeployTarget) -> Deployment:
        """Deploy a version."""
        call = self._claim("mlp_deploy", request.target)
        deployment: Deployment = call.run(request, target, passing=(OSError, ValueError))
        return deployment

    # ---- wraps and events

    def wraps(self, step: StepHandle) -> list[Wrap]:
        """Return the wraps of a step, outermost first."""
        found = [call.run(step) for call in self._declared.calls["mlp_wrap_step"]]
        return sorted((w for w in found if w is not None), key=lambda w: (w.priority, w.name))

    def emit(self, event: Event) -> tuple[tuple[PluginId, PluginError], ...]:
        """Tell the observers, and return who failed and how."""
        failures = []
        for call in self._declared.calls["mlp_event"]:
            try:
                call.run(event, self._settings)
            except PluginError as error:
                failures.append((call.plugin, error))
        return tuple(failures)

    def observers(self) -> tuple[PluginId, ...]:
        """Return the plugins that are told of events."""
        return tuple(call.plugin for call in self._declared.calls["mlp_event"])

    # ---- formats and workers

    def format_candidates(self, kind: type) -> tuple[str, ...]:
        """Return the formats to try for a type, the most specific first."""
        found = self._formats.get(kind)
        if found is None:
            found = self._formats[kind] = tuple(self._find_formats(kind))
        return found

    def _find_formats(self, kind: type) -> Iterator[str]:
        for cls in kind.__mro__:
            dotted = f"{cls.__module__}.{cls.__qualname__}"
            for (backend_kind, name), found in self._declared.backends.items():
                if backend_kind == "format" and dotted in found[0][1].types:
                    yield name

    def worker_plugins(self) -> tuple[PluginId, ...]:
        """Return the installed plugins that a worker must have too."""
        return tuple(
            record.id
            for record in self.records
            if record.status == "loaded" and not _WORKER_HOOKS.isdisjoint(record.hooks)
        )

    def check_worker_plugins(self, required: Collection[PluginId]) -> None:
        """Raise PluginRefused where the plugins here are not the required ones."""
        have = {record.id for record in self.records if record.status == "loaded"}
        missing = [str(plugin) for plugin in required if plugin not in have]
        if missing:
            raise PluginRefused(f"the worker lacks {', '.join(missing)}")
