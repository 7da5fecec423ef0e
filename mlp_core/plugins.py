"""Which plugins are loaded: the installed ones, each in isolation, so that a broken one disables nothing but itself."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Collection
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Final, Literal

import attrs
import pluggy

from mlp_core.breadcrumbs import IMPORT, Crumb, Trail, Watchdog, runtime_folder, take_dead
from mlp_core.builtin import BUILTINS
from mlp_core.errors import NameRefused, PluginRefused
from mlp_core.names import label
from mlp_core.plugin_checks import Unfit, check_contract, checked_hooks, contract_range
from mlp_core.settings import variable_name
from mlp_core.version import CORE_VERSION
from mlp_hookspecs import ENTRY_POINT_GROUP, PROJECT_NAME, PluginId, PluginWarning, specs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlp_hookspecs import Failure

CORE_DISTRIBUTION: Final = "mlp-core"

Status = Literal["builtin", "loaded", "denied", "failed", "disabled"]

_MARK: Final = f"{PROJECT_NAME}_impl"
"""What pluggy's marker sets on an implementation."""

_Reader = Callable[[str], str | None]
_AT_START: Final = frozenset({IMPORT, "mlp_settings", "mlp_backends", "mlp_options"})


@attrs.frozen(eq=False, repr=False)
class PluginRecord:
    """What became of one plugin.

    Attributes
    ----------
    id : PluginId
        Name, distribution and version.
    status : {"builtin", "loaded", "denied", "failed", "disabled"}
        ``failed`` plugins could not be loaded; ``disabled`` ones were, but then failed to declare what they provide.
    contract_range : str
        Which versions of the contract its distribution asks for; empty for any.
    reason : str
        Why it is not in force.
    hooks : tuple of str
        The hooks that it implements.
    backends : tuple of str
        What it provides, each as ``kind:name``.
    load_ms : float
        How long it took to load.
    error : BaseException or None
        What it raised.
    package : str
        The top-level package that its entry point lies in; empty where it was not loaded.
    """

    id: PluginId
    status: Status
    contract_range: str = ""
    reason: str = ""
    hooks: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    load_ms: float = 0
    error: BaseException | None = attrs.field(default=None, eq=False, repr=False)
    package: str = ""

    @property
    def name(self) -> str:
        """The plugin's name."""
        return self.id.name

    @property
    def in_force(self) -> bool:
        """Whether its hooks are called."""
        return self.status in ("builtin", "loaded")


@attrs.frozen(eq=False, repr=False)
class Plugins:
    """The result of loading.

    Attributes
    ----------
    manager : pluggy.PluginManager
        The manager, with the specifications and the plugins in force.
    records : tuple of PluginRecord
        One for each plugin that is installed: the builtin ones first, then by name.
    trail : Trail
        Where marks are left before plugins' code is entered.
    """

    manager: pluggy.PluginManager
    records: tuple[PluginRecord, ...]
    trail: Trail


@attrs.frozen(eq=False, repr=False)
class _Candidate:
    """A plugin that is installed, before anything of it was imported."""

    name: str
    distribution: str
    version: str
    value: str
    requires: tuple[str, ...] = ()
    builtin: bool = False

    @property
    def id(self) -> PluginId:
        """Its identity."""
        return PluginId(self.name, self.distribution, self.version)

    def is_named_in(self, names: Collection[str]) -> bool:
        """Tell whether a list names the plugin or its distribution."""
        return self.name in names or normalized(self.distribution) in {normalized(name) for name in names}


def normalized(distribution: str) -> str:
    """Return a distribution's name as package indexes compare it.

    Examples
    --------
    >>> normalized("MLP_plugin.ray")
    'mlp-plugin-ray'
    """
    return re.sub(r"[-_.]+", "-", distribution).lower()


def how_to_disable(name: str) -> str:
    """Return the advice that every message about a broken plugin ends with."""
    return f'leave it out by the setting plugins.deny = ["{name}"], or by {variable_name("plugins.deny")}={name}'


@attrs.frozen(eq=False, repr=False)
class LoadingRules:
    """Which plugins may be loaded, and what follows a failure.

    Attributes
    ----------
    allow : collection of str
        Names of plugins or distributions; where there are any, no other installed plugin is loaded.
    deny : collection of str
        Names of plugins or distributions that are not loaded; builtin ones too.
    safe : bool
        Whether to load the builtin plugins only.
    strict : bool
        Whether a plugin that fails ends the loading with its error, instead of a warning.
    timeout : float
        Seconds after which a plugin that is still being loaded ends the process.
    worker : bool
        Whether this is a worker: it leaves dead processes and contract ranges to its driver.
    """

    allow: Collection[str] = ()
    deny: Collection[str] = ()
    safe: bool = False
    strict: bool = False
    timeout: float = 60
    worker: bool = False


def blame_death(failure: Failure, pid: int) -> Failure:
    """Return the failure of a worker that died on this host, with the plugin's name where it died inside one.

    The mark is left for the next command, which tells of it too.
    """
    for crumb in take_dead(runtime_folder(), pid, keep=True):
        name = crumb.plugin.name
        message = f"{failure.message}, inside {crumb}; {variable_name('plugins.deny')}={name} leaves it out"
        return attrs.evolve(failure, kind="timeout" if failure.kind == "timeout" else "plugin", message=message)
    return failure


def forgive_death(pid: int) -> None:
    """Remove the marks of a worker that was ended on purpose, wherever it was."""
    take_dead(runtime_folder(), pid)


def load_plugins(rules: LoadingRules) -> Plugins:
    """Load the builtin plugins and those that are installed.

    Parameters
    ----------
    rules : LoadingRules
        Which of them, and what follows a failure.

    Returns
    -------
    Plugins
        What was loaded, and what was not.

    Raises
    ------
    PluginRefused
        In strict mode, for the first plugin that fails.

    Warns
    -----
    PluginWarning
        For each plugin that fails, and for each process that died inside one.
    """
    folder = runtime_folder()
    suspects = [] if rules.worker else take_dead(folder)
    for crumb in suspects:
        text = f"an earlier command (process {crumb.pid}) ended inside {crumb}"
        warnings.warn(f"{text}\n  hint: {how_to_disable(crumb.plugin.name)}", PluginWarning, stacklevel=2)
    builtins = [_Candidate(name, CORE_DISTRIBUTION, CORE_VERSION, value, builtin=True) for name, value in BUILTINS]
    # A worker that needs none has no use for knowing which are installed.
    found = [] if rules.safe and rules.worker else _installed()
    with Watchdog(rules.timeout) as watchdog:
        return _Loader(rules, suspects, Trail(folder), watchdog).load([*builtins, *found])


class _Manager(pluggy.PluginManager):
    """A manager that does not look at everything a module happens to import."""

    def parse_hookimpl_opts(self, plugin: object, name: str) -> pluggy.HookimplOpts | None:
        """Return how a name implements a hook; None at once for a module's names that no marker has touched."""
        if isinstance(plugin, ModuleType) and not hasattr(vars(plugin).get(name), _MARK):
            return None
        return super().parse_hookimpl_opts(plugin, name)


class _Loader:
    """Loads candidates one by one into one manager."""

    def __init__(self, rules: LoadingRules, suspects: Sequence[Crumb], trail: Trail, watchdog: Watchdog) -> None:
        self._rules = rules
        self._suspects = {(c.plugin.name, c.plugin.version) for c in suspects if c.place in _AT_START}
        self._trail = trail
        self._watchdog = watchdog
        self._manager = _Manager(PROJECT_NAME)
        self._manager.add_hookspecs(specs)

    def load(self, candidates: Sequence[_Candidate]) -> Plugins:
        """Load those that the lists let pass."""
        passing = [c for c in candidates if _denied(c, self._rules) is None]
        records = []
        for candidate in candidates:
            reason = _denied(candidate, self._rules)
            if reason is not None:
                wanted = ""
                with contextlib.suppress(ValueError):  # a requirement that makes no sense matters only to who loads it
                    wanted = contract_range(candidate.requires)
                records.append(PluginRecord(candidate.id, "denied", wanted, reason))
                continue
            rivals = [c for c in passing if c.name == candidate.name and c is not candidate]
            records.append(self._load(candidate, rivals))
        return Plugins(self._manager, tuple(records), self._trail)

    def _load(self, candidate: _Candidate, rivals: Sequence[_Candidate]) -> PluginRecord:
        """Check, import and register one plugin, and return what became of it."""
        began = time.perf_counter()
        wanted = ""
        try:
            _check_name(candidate, rivals)
            if not self._rules.worker:
                wanted = contract_range(candidate.requires)
                check_contract(candidate.distribution, wanted)
            self._check_suspect(candidate)
            plugin = self._import(candidate)
            hooks = checked_hooks(self._manager, plugin)
            self._manager.register(plugin, candidate.name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 # whatever a plugin does, the others go on
            return self._failed(candidate, wanted, error)
        spent = 1000 * (time.perf_counter() - began)
        status: Status = "builtin" if candidate.builtin else "loaded"
        package = candidate.value.partition(":")[0].strip().partition(".")[0]
        return PluginRecord(candidate.id, status, wanted, hooks=hooks, load_ms=spent, package=package)

    def _failed(self, candidate: _Candidate, wanted: str, error: BaseException) -> PluginRecord:
        """Warn that a plugin failed, or raise in strict mode."""
        reason = str(error) if isinstance(error, Unfit) else f"loading it raised {described(error)}"
        message = f"plugin {candidate.id} is not loaded: {reason}"
        advice = error.hint if isinstance(error, Unfit) and error.hint else how_to_disable(candidate.name)
        if self._rules.strict:
            raise PluginRefused(message, hint=advice) from error
        warnings.warn(f"{message}\n  hint: {advice}", PluginWarning, stacklevel=5)
        return PluginRecord(candidate.id, "failed", wanted, reason, error=error)

    def _import(self, candidate: _Candidate) -> object:
        """Import what an entry point names."""
        if candidate.builtin:
            return _resolve(candidate.value)
        before = self._trail.enter(Crumb(candidate.id, IMPORT).encoded())
        try:
            # What a plugin prints must not mix with the output of a command.
            with (
                self._watchdog.watch(f"the import of plugin {candidate.id}", how_to_disable(candidate.name)),
                contextlib.redirect_stdout(sys.stderr),
            ):
                return _resolve(candidate.value)
        finally:
            self._trail.leave(before)

    def _check_suspect(self, candidate: _Candidate) -> None:
        """Try a plugin that an earlier process died in, in a process that may die; Unfit where it does."""
        if (candidate.name, candidate.version) not in self._suspects or not sys.executable:
            return
        import subprocess

        flags = {"plugins.allow": [candidate.name], "plugins.strict": True}
        code = f"from mlp_core.hooks import build_hooks; build_hooks(flags={flags!r})"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-W", "ignore", "-c", code]
        try:
            tried = subprocess.run(
                command,
                env=environment,
                check=False,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=self._rules.timeout,
            )
        except subprocess.TimeoutExpired:
            raise Unfit(f"loading it takes more than {self._rules.timeout:g} s") from None
        # A plugin that fails in an orderly way will do so here too, and tell why.
        if tried.returncode not in (0, 1):
            how = f"signal {-tried.returncode}" if tried.returncode < 0 else f"status {tried.returncode}"
            raise Unfit(f"loading it ends the whole process with {how}")


def described(error: BaseException) -> str:
    """Return an exception on one line: its type, and the first line of its text."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _denied(candidate: _Candidate, rules: LoadingRules) -> str | None:
    """Return why the lists keep a plugin out; None where they let it pass."""
    if candidate.is_named_in(rules.deny):
        return "plugins.deny names it"
    if rules.safe and not candidate.builtin:
        return "plugins.safe lets only builtin plugins load"
    if rules.allow and not candidate.builtin and not candidate.is_named_in(rules.allow):
        return "plugins.allow does not name it"
    return None


def _check_name(candidate: _Candidate, rivals: Sequence[_Candidate]) -> None:
    """Refuse a plugin's name that is malformed or taken."""
    if candidate.builtin:
        return
    try:
        label(candidate.name, "plugin name")
    except NameRefused as error:
        raise Unfit(error.message, error.hint) from None
    if not rivals:
        return
    names = sorted(f"{rival.distribution} {rival.version}" for rival in (candidate, *rivals))
    hint = f'deny one by the name of its distribution: plugins.deny = ["{candidate.distribution}"]'
    raise Unfit(f"the name {candidate.name!r} is claimed by {' and by '.join(names)}", hint)


def _resolve(value: str) -> object:
    """Import the object that ``module`` or ``module:attribute`` names."""
    module, _, attributes = value.partition(":")
    found: object = import_module(module.strip())
    for attribute in filter(None, attributes.strip().split(".")):
        found = getattr(found, attribute)
    return found


def _installed() -> list[_Candidate]:
    """Return the plugins that installed distributions name, sorted; nothing of them is imported."""
    found: dict[str, list[_Candidate]] = {}
    for place, read in _distributions():
        try:
            candidates = _candidates(read)
        except Exception as error:  # noqa: BLE001 # other people's metadata may be anything
            text = f"the metadata in {place} cannot be read, so that its plugins are not loaded: {described(error)}"
            warnings.warn(text, PluginWarning, stacklevel=3)
            continue
        if candidates:
            # As for imports, the first on the path counts.
            found.setdefault(normalized(candidates[0].distribution), candidates)
    every = (candidate for candidates in found.values() for candidate in candidates)
    return sorted(every, key=lambda candidate: (candidate.name, normalized(candidate.distribution)))


def _candidates(read: _Reader) -> list[_Candidate]:
    """Return the plugins that a distribution names."""
    points = _entry_points(read("entry_points.txt") or "")
    if not points:
        return []
    headers: dict[str, list[str]] = {}
    for line in (read("METADATA") or read("PKG-INFO") or "").splitlines():
        if not line:
            break  # the description follows
        name, _, value = line.partition(":")
        headers.setdefault(name.strip().lower(), []).append(value.strip())
    names, versions = headers.get("name"), headers.get("version")
    if not names or not versions:
        raise ValueError("it lacks a name or a version")
    requires = tuple(headers.get("requires-dist", ()))
    return [_Candidate(name, names[0], versions[0], value, requires) for name, value in points]


def _entry_points(text: str) -> list[tuple[str, str]]:
    """Return names and values of the entry points in our group."""
    points = []
    ours = False
    for line in text.splitlines():
        plain = line.strip()
        if plain.startswith("["):
            ours = plain.strip("[] \t") == ENTRY_POINT_GROUP
        elif ours and "=" in plain and not plain.startswith(("#", ";")):
            name, _, value = plain.partition("=")
            points.append((name.strip(), value.partition("[")[0].strip()))
    return points


def _distributions() -> Iterator[tuple[str, _Reader]]:
    """Yield the place of each distribution that is installed, and a function that reads its metadata's files.

    Nearly all are folders on the path, and these are read without importlib.metadata, the import of which takes longer
    than all else that loading plugins does.
    """
    from importlib.machinery import PathFinder

    folders: list[str] = []
    is_plain = all(finder is PathFinder or not hasattr(finder, "find_distributions") for finder in sys.meta_path)
    for place in dict.fromkeys(sys.path):
        try:
            with os.scandir(place or os.curdir) as entries:
                found = [entry for entry in entries if entry.name.endswith((".dist-info", ".egg-info", ".egg"))]
        except NotADirectoryError:
            is_plain = False  # a zip file
            continue
        except OSError:
            continue
        is_plain = is_plain and not any(entry.name.endswith(".egg") for entry in found)
        folders += [entry.path for entry in found]
    if is_plain:
        yield from ((folder, partial(_read_beside, folder)) for folder in folders)
        return
    import importlib.metadata

    for distribution in importlib.metadata.distributions():
        yield str(getattr(distribution, "_path", "an installed distribution")), distribution.read_text


def _read_beside(folder: str, name: str) -> str | None:
    """Return the content of a file of a distribution's metadata; None where there is none."""
    try:
        with open(f"{folder}/{name}", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 # hundreds of times, in every command
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
