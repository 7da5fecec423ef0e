"""Which plugins are loaded: the installed ones, each in isolation, so that a broken one disables nothing but itself."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

import attrs
import pluggy

from mlp_core.builtin import BUILTINS
from mlp_core.errors import NameRefused, PluginRefused
from mlp_core.names import label, shown
from mlp_core.version import CORE_VERSION
from mlp_hookspecs import ENTRY_POINT_GROUP, PROJECT_NAME, PluginId, PluginWarning, specs
from mlp_hookspecs.specs import HOOKS
from mlp_hookspecs.version import CONTRACT_VERSION

if TYPE_CHECKING:
    import importlib.metadata
    from collections.abc import Iterator

CORE_DISTRIBUTION: Final = "mlp-core"
CONTRACT_DISTRIBUTION: Final = "mlp-hookspecs"

Status = Literal["builtin", "loaded", "denied", "failed", "disabled"]


@attrs.frozen
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
    """

    id: PluginId
    status: Status
    contract_range: str = ""
    reason: str = ""
    hooks: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    load_ms: float = 0
    error: BaseException | None = attrs.field(default=None, eq=False, repr=False)

    @property
    def name(self) -> str:
        """The plugin's name."""
        return self.id.name

    @property
    def in_force(self) -> bool:
        """Whether its hooks are called."""
        return self.status in ("builtin", "loaded")


@attrs.frozen
class Plugins:
    """The result of loading.

    Attributes
    ----------
    manager : pluggy.PluginManager
        The manager, with the specifications and the plugins in force.
    records : tuple of PluginRecord
        One for each plugin that is installed: the builtin ones first, then by name.
    """

    manager: pluggy.PluginManager
    records: tuple[PluginRecord, ...]


@attrs.frozen
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


class _Unfit(Exception):  # noqa: N818 # caught where it is raised for
    """A plugin that may not be loaded; the message is the reason."""


def normalized(distribution: str) -> str:
    """Return a distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def load_plugins(
    *,
    allow: Collection[str] = (),
    deny: Collection[str] = (),
    safe: bool = False,
    strict: bool = False,
    timeout: float = 60,
) -> Plugins:
    """Load the builtin plugins and those that are installed.

    Parameters
    ----------
    allow : collection of str
        Names of plugins or distributions; where there are any, no other installed plugin is loaded.
    deny : collection of str
        Names of plugins or distributions that are not loaded.
    safe : bool
        Whether to load the builtin plugins only.
    strict : bool
        Whether a plugin that fails ends the loading with its error, instead of a warning.
    timeout : float
        Seconds after which a plugin that is still being loaded ends the process.

    Returns
    -------
    Plugins
        What was loaded, and what was not.

    Raises
    ------
    PluginRefused
        In strict mode, for the first plugin that fails.
    """
    manager = pluggy.PluginManager(PROJECT_NAME)
    manager.add_hookspecs(specs)
    records = [
        _load(manager, _Candidate(name, CORE_DISTRIBUTION, CORE_VERSION, module, builtin=True), strict=strict)
        for name, module in BUILTINS
        if importlib.util.find_spec(module)
    ]
    found = [] if safe else _installed()
    names = [candidate.name for candidate in found]
    for candidate in found:
        if candidate.is_named_in(deny):
            records.append(PluginRecord(candidate.id, "denied", reason="plugins.deny names it"))
        elif allow and not candidate.is_named_in(allow):
            records.append(PluginRecord(candidate.id, "denied", reason="plugins.allow does not name it"))
        else:
            records.append(_load(manager, candidate, strict=strict))
    return Plugins(manager, tuple(records))


def _load(manager: pluggy.PluginManager, candidate: _Candidate, *, strict: bool) -> PluginRecord:
    """Import, register and check one plugin, and return what became of it."""
    began = time.perf_counter()
    try:
        plugin = _import(candidate)
        manager.register(plugin, candidate.name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if strict:
            raise PluginRefused(f"plugin {candidate.id} is not loaded: {error}") from error
        warnings.warn(f"plugin {candidate.id} is not loaded: {error}", PluginWarning, stacklevel=3)
        return PluginRecord(candidate.id, "failed", reason=str(error), error=error)
    hooks = tuple(sorted(caller.name for caller in manager.get_hookcallers(plugin) or ()))
    spent = 1000 * (time.perf_counter() - began)
    return PluginRecord(candidate.id, "builtin" if candidate.builtin else "loaded", hooks=hooks, load_ms=spent)


def _import(candidate: _Candidate) -> object:
    """Import what an entry point names."""
    module, _, attribute = candidate.value.partition(":")
    plugin: object = importlib.import_module(module.strip())
    for part in filter(None, attribute.strip().split(".")):
        plugin = getattr(plugin, part)
    return plugin


def _installed() -> list[_Candidate]:
    """Return the plugins that installed distributions name, sorted."""
    import importlib.metadata

    found = [
        _Candidate(point.name, point.dist.name, point.dist.version, point.value)
        for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
        if point.dist is not None
    ]
    return sorted(found, key=lambda candidate: (candidate.name, candidate.distribution))
