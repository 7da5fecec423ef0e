"""How the core calls plugins: one method for each hook, typed, by name of the backend; nothing else calls them."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from mlp_core.breadcrumbs import Watchdog
from mlp_core.declarations import Declarations, Names, collect
from mlp_core.errors import ArtifactError, OptionError, PluginError, PluginRefused, UnknownBackend, UsageError
from mlp_core.hook_calls import Call, GuardedContext, blaming
from mlp_core.names import shown
from mlp_core.plan_merge import Opinion, merge_plans
from mlp_core.plugins import LoadingRules, PluginRecord, how_to_disable, load_plugins
from mlp_core.settings import CORE_SETTINGS, Settings, find_sources, resolve_settings, restore_settings
from mlp_hookspecs import (
    Backend,
    BackendKind,
    Command,
    EnvironmentLock,
    Option,
    PluginId,
    PluginWarning,
    ProvisionedEnvironment,
    StepPlan,
    Wrap,
)
from mlp_hookspecs.handles import DeployTarget, Launcher, ObjectStore
from mlp_hookspecs.specs import HOOKS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from mlp_hookspecs import ArtifactRef, Deployment, DeployRequest, EnvironmentSpec, LaunchRequest, StepInfo
    from mlp_hookspecs.events import Event
    from mlp_hookspecs.handles import (
        ArtifactSource,
        ArtifactTarget,
        CommandSession,
        LaunchSink,
        StepHandle,
        TargetContext,
    )

_WORKER_HOOKS: Final = frozenset(
    hook
    for hook, info in HOOKS.items()
    if info.where == "worker" or (info.where == "both" and info.mode == "claim") or hook == "mlp_options"
)
"""A plugin that implements one of these is needed where steps run: to decode, to wrap, to know what is imported."""


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
    PluginError
        In strict mode, for the first plugin that fails.

    Warns
    -----
    PluginWarning
        For each plugin that fails.
    """
    sources = find_sources(Path.cwd() if start is None else start, environ=environ, flags=flags)
    # Which plugins may be loaded is known before any of them could have a say in it.
    core = resolve_settings(CORE_SETTINGS, sources, absent=None)
    rules = LoadingRules(
        allow=core["plugins.allow"],
        deny=core["plugins.deny"],
        safe=core["plugins.safe"],
        strict=core["plugins.strict"],
        timeout=core["plugins.timeout"],
    )
    declared = _load(rules)
    absent = {record.name.replace("-", "_") for record in declared.plugins.records if not record.in_force}
    settings = resolve_settings((*CORE_SETTINGS, *declared.settings), sources, absent=absent)
    return Hooks(declared, settings), settings


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
    core = restore_settings(CORE_SETTINGS, given, os.environ)
    rules = LoadingRules(
        allow=[plugin.name for plugin in required],
        deny=[name for name in core["plugins.deny"] if name not in {plugin.name for plugin in required}],
        safe=not required,
        timeout=core["plugins.timeout"],
        worker=True,
    )
    with warnings.catch_warnings():
        # What fails here is listed, with its reason, by the comparison below.
        warnings.simplefilter("ignore", PluginWarning)
        declared = _load(rules)
    settings = restore_settings((*CORE_SETTINGS, *declared.settings), given, os.environ)
    hooks = Hooks(declared, settings)
    hooks.check_worker_plugins(required)
    return hooks, settings


def _load(rules: LoadingRules) -> Declarations:
    """Load the plugins and ask what they declare."""
    plugins = load_plugins(rules)
    with Watchdog(rules.timeout) as watchdog:
        return collect(plugins, watchdog, strict=rules.strict)


class Hooks:
    """The plugins in force: one method for each hook, and what the core asks about them.

    Every method that calls plugins blames them: what a hook raises by its specification passes with a note that names
    plugin, distribution, version and hook; anything else becomes a PluginError. A name that nobody provides is an
    UnknownBackend; one whose plugin is broken, or that several plugins provide, is a PluginRefused.

    Parameters
    ----------
    declared : Declarations
        What the plugins declare.
    settings : Settings
        The settings in force.
    """

    def __init__(self, declared: Declarations, settings: Settings) -> None:
        """Make the face of loaded plugins."""
        self._declared = declared
        self._calls = declared.calls
        self._settings = settings
        self._names = Names(declared, settings["plugins.provider"])
        self._prefer: tuple[str, ...] = settings["formats.prefer"]
        self._strict: bool = settings["plugins.strict"]
        self._owners: dict[tuple[str, str], Call] = {}
        self._formats: dict[type, tuple[str, ...]] = {}

    # ---------------------------------------------------------------------------------------- what there is

    @property
    def records(self) -> tuple[PluginRecord, ...]:
        """What became of each plugin that is installed: builtin ones first, then by name."""
        return self._declared.plugins.records

    def backends(self) -> tuple[tuple[PluginId, Backend], ...]:
        """Return all backends with their plugins, sorted by kind and name."""
        return tuple(pair for _, pairs in sorted(self._declared.backends.items()) for pair in pairs)

    def backend(self, kind: BackendKind, name: str) -> Backend:
        """Return what was declared about a backend."""
        return self._names.backend(kind, name)[1]

    def options(self) -> Mapping[str, type[Option]]:
        """Return the options by their decorators' names, without names that several plugins claim."""
        return {name: found[0][1] for name, found in self._declared.options.items() if len(found) == 1}

    def option(self, name: str) -> type[Option]:
        """Return the option of a decorator's name.

        Raises
        ------
        OptionError
            Where nobody provides it; with the nearest name or the pip command.
        PluginRefused
            Where its plugin is not in force, or several provide it.
        """
        return self._names.option(name)

    def commands(self) -> tuple[tuple[PluginId, Command], ...]:
        """Ask the plugins for their subcommands, and return them with their plugins, sorted by name.

        Warns
        -----
        PluginWarning
            For each plugin that fails; in strict mode it is raised.
        """
        found = []
        for call in self._calls["mlp_commands"]:
            try:
                found += [(call.plugin, command) for command in call.expect_items(Command, call.run())]
            except PluginError as error:
                if self._strict:
                    raise
                text = f"{error.message}; its commands are left out\n  hint: {how_to_disable(call.plugin.name)}"
                warnings.warn(text, PluginWarning, stacklevel=2)
        return tuple(sorted(found, key=lambda pair: (pair[1].name, pair[0].name)))

    def run_command(self, name: str, arguments: Sequence[str], session: CommandSession) -> int:
        """Run a plugin's subcommand and return its exit status.

        Raises
        ------
        UsageError
            Where there is no such command, or several plugins claim it.
        """
        found = [(plugin, command) for plugin, command in self.commands() if command.name == name]
        if not found:
            raise UsageError(f"unknown command {shown(name)}")
        if len(found) > 1:
            claims = " and by ".join(str(plugin) for plugin, _ in found)
            raise UsageError(f"command {name} is provided by {claims}", hint=how_to_disable(found[0][0].name))
        plugin, command = found[0]
        call = next(call for call in self._calls["mlp_commands"] if call.plugin == plugin)

        def run() -> object:
            from importlib import import_module

            module, _, attribute = command.target.partition(":")
            return getattr(import_module(module), attribute)(tuple(arguments), session)

        status = call.of(f"command {name}", run).run(passing=(SystemExit,))
        return call.of(f"command {name}", run).expect(int, status)

    # ---------------------------------------------------------------------------------------- planning

    def plan_step(self, step: StepInfo, options: Sequence[Option]) -> StepPlan:
        """Return what all plugins plan for a step, merged.

        Raises
        ------
        OptionError
            Where a plugin refuses what its option asks for, or two plans contradict each other; the message then names
            both plugins.
        """
        opinions = []
        for call in self._calls["mlp_plan_step"]:
            try:
                plan = call.run(step, tuple(options), passing=(OSError, ValueError))
            except (OSError, ValueError) as error:
                raise OptionError(f"step {step.node.name!r}: {error}") from error
            if plan is not None:
                opinions.append(Opinion(call.plugin, call.expect(StepPlan, plan)))
        return merge_plans(step.node.name, opinions)

    # ---------------------------------------------------------------------------------------- claims

    def open_store(self, url: str) -> ObjectStore:
        """Open the objects of a store; OSError where it cannot be reached.

        A scheme that no plugin claims is fsspec's, where that has a filesystem for it.
        """
        scheme = url.partition("://")[0] if "://" in url else "file"
        unknown = None
        try:
            call = self._owner("mlp_open_store", scheme)
        except UnknownBackend as error:
            call, unknown = self._owner("mlp_open_store", "fsspec"), error
        try:
            opened = call.run(url, self._settings, passing=(OSError,))
        except OSError as error:
            if unknown is not None and error.errno == errno.EPROTONOSUPPORT:
                raise unknown from None
            raise
        store: ObjectStore = call.expect_handle(ObjectStore, opened)
        return store

    def resolve_environment(self, spec: EnvironmentSpec, platforms: Sequence[str]) -> EnvironmentLock:
        """Return the lock of a requirement; ValueError where it cannot be met."""
        call = self._owner("mlp_resolve_environment", spec.backend)
        return call.expect(EnvironmentLock, call.run(spec, tuple(platforms), passing=(OSError, ValueError)))

    def bundle_environment(self, lock: EnvironmentLock, platform: str, folder: Path) -> Sequence[str]:
        """Return the files that a lock needs, in a folder; ValueError or OSError where they cannot be had."""
        call = self._owner("mlp_bundle_environment", lock.backend)
        answer = call.run(lock, platform, folder, passing=(OSError, ValueError))
        return call.expect_items(str, answer, may_be_none=False)

    def provision_environment(
        self, lock: EnvironmentLock, root: Path, packages: Path | None = None
    ) -> ProvisionedEnvironment:
        """Return the interpreter of a lock; OSError where it cannot be made."""
        call = self._owner("mlp_provision_environment", lock.backend)
        return call.expect(ProvisionedEnvironment, call.run(lock, root, packages, passing=(OSError,)))

    def fetch_secret(self, reference: str) -> Mapping[str, str]:
        """Return the variables of a secret; OSError where it cannot be fetched."""
        scheme, separator, _ = reference.partition("://")
        if not separator:
            raise UnknownBackend(f"secret {shown(reference)} is no reference", hint="one looks like scheme://name")
        call = self._owner("mlp_fetch_secret", scheme)
        found = call.run(reference, passing=(OSError,))
        if not isinstance(found, Mapping) or not all(isinstance(text, str) for pair in found.items() for text in pair):
            # What it returned may be the secret, and is not shown.
            raise call.fault("returned something other than a mapping of texts to texts")
        return dict(found)

    def open_launcher(self, name: str, settings: Settings, sink: LaunchSink) -> Launcher:
        """Return a launcher, to be entered; OSError where it is out of reach, ValueError where it refuses a setting."""
        call = self._owner("mlp_open_launcher", name)
        launcher: Launcher = call.expect_handle(Launcher, call.run(name, settings, sink, passing=(OSError, ValueError)))
        return launcher

    def launch_step(self, name: str, requests: Sequence[LaunchRequest], launcher: Launcher) -> None:
        """Start a batch of attempts on an open launcher; OSError where it cannot be started."""
        call = self._owner("mlp_launch_step", name)
        if call.run(requests, launcher, passing=(OSError,)) is not True:
            raise call.fault("did not take the attempts")

    def persist_artifact(self, format_name: str, value: object, target: ArtifactTarget) -> bool:
        """Encode a value and return True, or False where the format cannot hold it; raises what the format raises."""
        call = self._owners.get(("mlp_persist_artifact", format_name))
        if call is None:
            call = self._owner("mlp_persist_artifact", format_name)
            self._refuse_code(format_name, "stored")
        return call.run(value, target, passing=(Exception,)) is True

    def load_artifact(self, ref: ArtifactRef, source: ArtifactSource) -> Any:
        """Decode a value; raises what the format raises, or ArtifactError where the settings refuse the format."""
        call = self._owners.get(("mlp_load_artifact", ref.format))
        if call is None:
            call = self._owner("mlp_load_artifact", ref.format)
            self._refuse_code(ref.format, "loaded")
        return call.run(ref, source, self._settings, passing=(Exception,))

    def runs_code(self, format_name: str) -> bool:
        """Tell whether loading a format may run what the content names, as unpickling does."""
        return self._names.backend("format", format_name)[1].runs_code

    def _refuse_code(self, format_name: str, what: str) -> None:
        """Raise ArtifactError where the settings allow no format that runs code, and this is one."""
        if self._settings["storage.pickle"] != "refuse" or not self.runs_code(format_name):
            return
        # Asked again the next time, since the refusal is no answer to be remembered.
        self._owners.pop((f"mlp_{'load' if what == 'loaded' else 'persist'}_artifact", format_name), None)
        raise ArtifactError(
            f"nothing is {what} in the format {format_name}, which runs code of whoever wrote the content:"
            " the setting storage.pickle is refuse",
            hint="where you trust all who write to this store, set storage.pickle to allow, or to listed"
            " with storage.pickle_allowed"
            if what == "loaded"
            else "store what JSON holds, or bytes, or choose another format; or set storage.pickle to allow or listed",
        )

    def open_target(self, name: str, context: TargetContext) -> DeployTarget:
        """Return a deploy target; OSError where it cannot be reached."""
        call = self._owner("mlp_open_target", name)
        target: DeployTarget = call.expect_handle(DeployTarget, call.run(name, context, passing=(OSError,)))
        return target

    def deploy(self, request: DeployRequest, target: DeployTarget) -> Deployment:
        """Deploy a version; ValueError where the target cannot run the flow, OSError where it cannot be reached."""
        from mlp_hookspecs import Deployment

        call = self._owner("mlp_deploy", request.target)
        return call.expect(Deployment, call.run(request, target, passing=(OSError, ValueError)))

    @contextlib.contextmanager
    def using(
        self, kind: BackendKind, name: str, passing: tuple[type[BaseException], ...] = (OSError,)
    ) -> Iterator[None]:
        """Blame a backend's plugin for what the body raises while it uses a launcher, store or target of the plugin.

        Parameters
        ----------
        kind : str
            The backend's kind.
        name : str
            The backend's name.
        passing : tuple of exception types
            What passes unchanged, but for the note.
        """
        plugin, _ = self._names.backend(kind, name)
        hook = next(hook for hook, info in HOOKS.items() if info.kind == kind)
        call = next(call for call in self._calls[hook] if call.plugin == plugin)
        with blaming(call, f"{kind} {name}", passing):
            yield

    def _owner(self, hook: str, name: str) -> Call:
        """Return the implementation of a claim hook by the plugin that owns the named backend."""
        call = self._owners.get((hook, name))
        if call is None:
            plugin, _ = self._names.backend(str(HOOKS[hook].kind), name)
            found = next((call for call in self._calls[hook] if call.plugin == plugin), None)
            if found is None:
                raise PluginError(f"plugin {plugin} provides {name!r}, but does not implement {hook}")
            call = self._owners[hook, name] = found
        return call

    # ---------------------------------------------------------------------------------------- wraps and events

    def wraps(self, step: StepHandle) -> list[Wrap]:
        """Return what goes around a step's body, outermost first.

        Their contexts are blamed for what they raise themselves, and cannot swallow what the body raises.
        """
        found = []
        for call in self._calls["mlp_wrap_step"]:
            wrap = call.run(step)
            if wrap is not None:
                wrap = call.expect(Wrap, wrap)
                found.append(attrs.evolve(wrap, context=GuardedContext(call, wrap.context)))
        return sorted(found, key=lambda wrap: (wrap.priority, wrap.name))

    def observers(self) -> tuple[PluginId, ...]:
        """Return the plugins that are told of events."""
        return tuple(call.plugin for call in self._calls["mlp_event"])

    def emit(self, event: Event, *, silenced: Collection[PluginId] = ()) -> tuple[tuple[PluginId, PluginError], ...]:
        """Tell the observers of an event; for the observers' own process.

        Parameters
        ----------
        event : Event
            The event.
        silenced : collection of PluginId
            The observers that are not told any more.

        Returns
        -------
        tuple of (PluginId, PluginError)
            Who failed, and how.
        """
        failures = []
        for call in self._calls["mlp_event"]:
            if call.plugin in silenced:
                continue
            try:
                call.run(event, self._settings)
            except PluginError as error:
                failures.append((call.plugin, error))
        return tuple(failures)

    # ---------------------------------------------------------------------------------------- formats, workers

    def format_candidates(self, kind: type) -> tuple[str, ...]:
        """Return the formats to try for a type: the most specific class of its MRO first.

        Formats of installed plugins count only where the setting ``formats.prefer`` names them, so that installing
        one does not change how an existing type is stored; of several formats for one class those come first.
        """
        found = self._formats.get(kind)
        if found is None:
            found = self._formats[kind] = tuple(dict.fromkeys(self._find_formats(kind)))
        return found

    def _find_formats(self, kind: type) -> Iterator[str]:
        """Yield the names of the formats for a type."""
        builtin = {record.id for record in self.records if record.status == "builtin"}
        types = {
            name: backend.types
            for (backend_kind, name), pairs in sorted(self._declared.backends.items())
            for plugin, backend in pairs
            if backend_kind == "format" and (plugin in builtin or name in self._prefer)
        }
        order = [
            *(name for name in self._prefer if name in types),
            *(name for name in types if name not in self._prefer),
        ]
        for cls in kind.__mro__:
            for name in order:
                if any(_is_named(cls, dotted) for dotted in types[name]):
                    yield name

    def worker_plugins(self) -> tuple[PluginId, ...]:
        """Return the installed plugins that a worker must have too."""
        return tuple(r.id for r in self.records if r.status == "loaded" and not _WORKER_HOOKS.isdisjoint(r.hooks))

    def worker_packages(self) -> dict[str, str]:
        """Return the package that each of these plugins lies in, by the plugin's name."""
        return {r.name: r.package for r in self.records if r.id in self.worker_plugins()}

    def check_worker_plugins(self, required: Sequence[PluginId]) -> None:
        """Check that the plugins in force here are those that a request asks for.

        Raises
        ------
        PluginRefused
            Where they are not; the message lists every difference.
        """
        here = {record.name: record for record in self.records if record.status != "builtin"}
        differences = []
        for plugin in required:
            record = here.get(plugin.name)
            if record is None:
                differences.append(f"{plugin} is not installed")
            elif record.id != plugin:
                differences.append(f"{plugin} is {record.id.distribution} {record.id.version}")
            elif not record.in_force:
                differences.append(f"{plugin} is {record.status}: {record.reason}")
        if differences:
            message = f"the worker's plugins are not the driver's: here {'; '.join(differences)}"
            packages = " ".join(f"{plugin.distribution}=={plugin.version}" for plugin in required)
            raise PluginRefused(message, hint=f"in the worker's environment ({sys.executable}): pip install {packages}")


def _is_named(cls: type, dotted: str) -> bool:
    """Tell whether a dotted name means a class: by its own name, or by one under which its package publishes it."""
    if dotted == f"{cls.__module__}.{cls.__qualname__}":
        return True
    package = dotted.partition(".")[0]
    if package != cls.__module__.partition(".")[0]:
        return False
    module, _, name = dotted.rpartition(".")
    return vars(sys.modules.get(module) or object).get(name) is cls
