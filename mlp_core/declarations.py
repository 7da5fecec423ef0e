"""What the plugins in force declare: settings, backends, options; who owns a name, and why a name is nobody's."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, TypeVar, get_args

import attrs

from mlp_core.errors import NameRefused, OptionError, PluginError, PluginRefused, SettingError, UnknownBackend
from mlp_core.hook_calls import Call, find_calls
from mlp_core.names import identifier, label, shown
from mlp_core.plugins import PluginRecord, Plugins, how_to_disable, normalized
from mlp_core.providers import provider_hint, provider_of
from mlp_core.settings import CORE_SETTINGS, check_declaration, variable_name
from mlp_hookspecs import Backend, BackendKind, Option, PluginId, PluginWarning, Setting
from mlp_hookspecs.specs import HOOKS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from mlp_core.breadcrumbs import Watchdog

_KINDS: Final[tuple[str, ...]] = get_args(BackendKind)
_CHOICE: Final = re.compile(rf"(?P<what>(?:{'|'.join(_KINDS)}|option):[^=]+)=(?P<distribution>.+)")
_T = TypeVar("_T")


@attrs.frozen(eq=False, repr=False)
class Declarations:
    """What the plugins in force declare.

    Attributes
    ----------
    plugins : Plugins
        The plugins; those that could not say what they declare are disabled.
    calls : mapping of str to tuple of Call
        The implementations of each hook by the plugins in force.
    settings : tuple of Setting
        Their settings.
    backends : mapping of (str, str) to tuple of (PluginId, Backend)
        Their backends by kind and name; more than one where several plugins claim the name.
    options : mapping of str to tuple of (PluginId, type of Option)
        Their decorators by name, likewise.
    """

    plugins: Plugins
    calls: Mapping[str, tuple[Call, ...]]
    settings: tuple[Setting, ...]
    backends: Mapping[tuple[str, str], tuple[tuple[PluginId, Backend], ...]]
    options: Mapping[str, tuple[tuple[PluginId, type[Option]], ...]]


def collect(plugins: Plugins, watchdog: Watchdog, *, strict: bool) -> Declarations:
    """Ask each plugin what it declares, and disable those that fail to say.

    Parameters
    ----------
    plugins : Plugins
        The loaded plugins.
    watchdog : Watchdog
        Watches the installed ones.
    strict : bool
        Whether a failure ends the collecting with its error, instead of a warning.

    Returns
    -------
    Declarations
        What they declare.

    Raises
    ------
    PluginError
        In strict mode, for the first plugin that fails.
    """
    calls = find_calls(plugins)
    collector = _Collector(calls, watchdog)
    records = []
    for record in plugins.records:
        if not record.in_force:
            records.append(record)
            continue
        try:
            records.append(collector.ask(record))
        except PluginError as error:
            if strict:
                raise
            text = f"{error.message}; it is disabled\n  hint: {how_to_disable(record.name)}"
            warnings.warn(text, PluginWarning, stacklevel=3)
            records.append(attrs.evolve(record, status="disabled", reason=error.message, error=error))
            calls = {hook: tuple(c for c in found if c.plugin != record.id) for hook, found in calls.items()}
    return Declarations(
        attrs.evolve(plugins, records=tuple(records)),
        calls,
        tuple(collector.settings),
        collector.backends,
        collector.options,
    )


class _Collector:
    """Takes in what plugins declare, one plugin after another; of one that fails, nothing."""

    def __init__(self, calls: Mapping[str, Sequence[Call]], watchdog: Watchdog) -> None:
        self.settings: list[Setting] = []
        self.backends: dict[tuple[str, str], tuple[tuple[PluginId, Backend], ...]] = {}
        self.options: dict[str, tuple[tuple[PluginId, type[Option]], ...]] = {}
        self._calls: dict[PluginId, dict[str, Call]] = {}
        for hook, found in calls.items():
            for call in found:
                self._calls.setdefault(call.plugin, {})[hook] = call
        self._watchdog = watchdog
        self._taken = {variable_name(setting.name): "the core" for setting in CORE_SETTINGS}

    def ask(self, record: PluginRecord) -> PluginRecord:
        """Ask one plugin, and return its record with what it provides; PluginError where it fails."""
        own = self._calls.get(record.id, {})
        # Only the code of installed plugins is watched: the thread that watches has its price.
        watching = (
            self._watchdog.watch(f"plugin {record.id}", how_to_disable(record.name))
            if record.status == "loaded"
            else contextlib.nullcontext()
        )
        with watching:
            backends = _items(own.get("mlp_backends"), Backend)
            settings = _items(own.get("mlp_settings"), Setting)
            classes = _items(own.get("mlp_options"), type)
        if backends:
            with _judging(own["mlp_backends"]):
                _check_backends(backends, own)
        if settings:
            with _judging(own["mlp_settings"]):
                self._check_settings(settings, record)
        options: tuple[type[Option], ...] = ()
        if classes:
            with _judging(own["mlp_options"]):
                options = _checked_options(classes)
        self.settings += settings
        self._taken.update((variable_name(setting.name), str(record.id)) for setting in settings)
        for backend in backends:
            key = (backend.kind, backend.name)
            self.backends[key] = (*self.backends.get(key, ()), (record.id, backend))
        for option in options:
            self.options[option.name] = (*self.options.get(option.name, ()), (record.id, option))
        return attrs.evolve(record, backends=tuple(f"{backend.kind}:{backend.name}" for backend in backends))

    def _check_settings(self, settings: Sequence[Setting], record: PluginRecord) -> None:
        """Refuse settings that are badly declared, that lie outside the plugin's own names, or that are taken."""
        prefix = record.name.replace("-", "_").replace(".", "_") + "."
        taken = dict(self._taken)
        for setting in settings:
            check_declaration(setting)
            if not setting.name.startswith(prefix):
                raise ValueError(f"setting {setting.name}; its name must begin with {prefix}")
            variable = variable_name(setting.name)
            if variable in taken:
                raise ValueError(f"setting {setting.name}, whose variable {variable} belongs to {taken[variable]}")
            taken[variable] = f"plugin {record.id}"


def _items(call: Call | None, kind: type[_T]) -> tuple[_T, ...]:
    """Return the items that a collect hook gives."""
    return () if call is None else call.expect_items(kind, call.run())


@contextlib.contextmanager
def _judging(call: Call) -> Iterator[None]:
    """Blame a plugin for a declaration that is refused."""
    try:
        yield
    except (ValueError, TypeError, NameRefused) as error:
        raise call.fault(f"declares {error}") from error


def _check_backends(backends: Sequence[Backend], own: Mapping[str, Call]) -> None:
    """Refuse backends without a proper kind, name or implementation."""
    seen = set()
    for backend in backends:
        what = f"{backend.kind}:{backend.name}"
        if backend.kind not in _KINDS:
            raise ValueError(f"the backend {what}; the kinds are {', '.join(_KINDS)}")
        label(backend.name, f"the {backend.kind}")
        needed = [hook for hook, info in HOOKS.items() if info.kind == backend.kind and not info.is_optional]
        lacking = [hook for hook in needed if hook not in own]
        if lacking:
            raise ValueError(f"the backend {what}, but does not implement {lacking[0]}")
        if what in seen:
            raise ValueError(f"the backend {what} twice")
        seen.add(what)


def _checked_options(classes: Sequence[type]) -> tuple[type[Option], ...]:
    """Return the classes, which must be attrs classes on Option with proper names."""
    options: dict[str, type[Option]] = {}
    for option in classes:
        if not issubclass(option, Option) or "__attrs_attrs__" not in vars(option):
            raise TypeError(f"{option.__name__}, which is no attrs class on Option")
        identifier(option.name, "the decorator")
        if option.name in options:
            raise ValueError(f"the decorator @{option.name} twice")
        options[option.name] = option
    return tuple(options.values())


class Names:
    """Who owns the names that users write.

    Parameters
    ----------
    declared : Declarations
        What the plugins in force declare.
    provider : collection of str
        The setting ``plugins.provider``: whose name counts where several plugins claim one.

    Raises
    ------
    SettingError
        Where an entry of the setting is malformed.
    """

    def __init__(self, declared: Declarations, provider: Collection[str]) -> None:
        """Read the setting."""
        self._declared = declared
        self._chosen: dict[str, str] = {}
        for text in provider:
            match = _CHOICE.fullmatch(text)
            if match is None:
                hint = f"write kind:name=distribution; the kinds are {', '.join(_KINDS)} and option"
                raise SettingError(f"plugins.provider contains {shown(text)}", hint=hint)
            self._chosen[match["what"]] = normalized(match["distribution"])

    def backend(self, kind: str, name: str) -> tuple[PluginId, Backend]:
        """Return a backend and its owner.

        Raises
        ------
        UnknownBackend
            Where nobody provides it; the message has the known names and, where there is one, the pip command.
        PluginRefused
            Where the plugin that would provide it is not in force, or several provide it.
        """
        found = self._declared.backends.get((kind, name), ())
        if found:
            return self._choose(f"{kind}:{name}", f"{kind} {name!r}", found)
        self._refuse_broken(kind, name, f"{kind} {shown(name)}")
        known = sorted(known for other, known in self._declared.backends if other == kind)
        message = f"unknown {kind} {shown(name)}; known are {', '.join(known) or 'none'}"
        raise UnknownBackend(message, hint=self._advice(kind, name, known))

    def option(self, name: str) -> type[Option]:
        """Return the option of a decorator's name.

        Raises
        ------
        OptionError
            Where nobody provides it; the message has the nearest name and, where there is one, the pip command.
        PluginRefused
            Where the plugin that would provide it is not in force, or several provide it.
        """
        found = self._declared.options.get(name, ())
        if found:
            return self._choose(f"option:{name}", f"decorator @{name}", found)[1]
        self._refuse_broken("option", name, f"decorator @{name}")
        known = sorted(self._declared.options)
        message = f"unknown decorator @{shown(name)[1:-1]}; known are {', '.join(f'@{n}' for n in known)}"
        raise OptionError(message, hint=self._advice("option", name, known))

    def _choose(self, what: str, spoken: str, found: Sequence[tuple[PluginId, _T]]) -> tuple[PluginId, _T]:
        """Return the one claim, or the one that the setting prefers."""
        if len(found) == 1:
            return found[0]
        chosen = self._chosen.get(what)
        for plugin, claimed in found:
            if normalized(plugin.distribution) == chosen:
                return plugin, claimed
        claims = " and by ".join(str(plugin) for plugin, _ in found)
        example = f'plugins.provider = ["{what}={found[0][0].distribution}"]'
        raise PluginRefused(f"{spoken} is provided by {claims}", hint=f"choose one by the setting {example}")

    def _refuse_broken(self, kind: str, name: str, spoken: str) -> None:
        """Raise the stored cause where a plugin would provide something, but is not in force."""
        provider = provider_of(kind, name)
        for record in self._declared.plugins.records:
            own = normalized(record.id.distribution) in {provider, f"mlp-plugin-{normalized(name)}"}
            if record.in_force or not (own or record.name == name or f"{kind}:{name}" in record.backends):
                continue
            hint = "change the settings plugins.allow and plugins.deny" if record.status == "denied" else ""
            message = f"{spoken} comes with plugin {record.id}, which is {record.status}: {record.reason}"
            raise PluginRefused(message, hint=hint) from record.error

    def _advice(self, kind: str, name: str, known: Collection[str]) -> str:
        """Return the next step for somebody who asked for an unknown name."""
        from difflib import get_close_matches

        near = get_close_matches(name, known, 1)
        if near:
            return f"did you mean {near[0]!r}?"
        command = provider_hint(kind, name)
        if command:
            return command
        broken = [str(r.id) for r in self._declared.plugins.records if r.status in ("failed", "disabled")]
        if broken:
            return f"it may come with a plugin that is not in force: {', '.join(broken)}; see mlp plugins"
        return ""
