"""How the kit calls the hooks of one plugin: without the core, in this process or in one of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pluggy

from mlp_hookspecs import PROJECT_NAME, Backend, specs

if TYPE_CHECKING:
    from collections.abc import Mapping


class Driver:
    """Calls the hooks of one plugin, as the core would.

    Parameters
    ----------
    plugin : str
        ``module`` or ``module:attribute``, as in the plugin's entry point.

    Raises
    ------
    AssertionError
        Where the plugin cannot be imported or registered.
    """

    def __init__(self, plugin: str) -> None:
        """Import and register the plugin."""
        self.plugin = plugin
        module, _, attributes = plugin.partition(":")
        found: Any = import_module(module)
        for attribute in filter(None, attributes.split(".")):
            found = getattr(found, attribute)
        self._manager = pluggy.PluginManager(PROJECT_NAME)
        self._manager.add_hookspecs(specs)
        self._manager.register(found, plugin)
        self._manager.check_pending()

    def implements(self, hook: str) -> bool:
        """Tell whether the plugin implements a hook."""
        return bool(getattr(self._manager.hook, hook).get_hookimpls())

    def call(self, hook: str, **arguments: object) -> Any:
        """Call a hook with its arguments by name, and return the answer.

        Raises
        ------
        AssertionError
            Where the plugin does not implement the hook.
        """
        found = getattr(self._manager.hook, hook).get_hookimpls()
        if not found:
            raise AssertionError(f"{self.plugin} does not implement {hook}")
        wanted = [name for name in (*found[0].argnames, *found[0].kwargnames) if name in arguments]
        return found[0].function(**{name: arguments[name] for name in wanted})

    def backends(self) -> tuple[Backend, ...]:
        """Return what the plugin declares."""
        return tuple(self.call("mlp_backends") or ())

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the plugin's settings with their defaults, but for what is given."""
        declared = self.call("mlp_settings") if self.implements("mlp_settings") else ()
        return {**{setting.name: setting.default for setting in declared or ()}, **given}


def load_settings(driver: Driver) -> dict[str, Any]:
    """Return the settings with which a format is asked to load."""
    return driver.settings({"storage.pickle": "allow", "storage.pickle_allowed": ()})


def child_command(plugin: str, action: str, **arguments: object) -> list[str]:
    """Return the command that performs an action of `mlp_hookspecs.testing.child` with a plugin."""
    text = json.dumps({"plugin": plugin, "action": action, "path": sys.path, "arguments": arguments})
    return [sys.executable, "-m", "mlp_hookspecs.testing.child", text]


def in_child(plugin: str, action: str, **arguments: object) -> Any:
    """Perform an action with a plugin in a process of its own, and return its answer, which is JSON."""
    command = child_command(plugin, action, **arguments)
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"in a process of its own the plugin failed:\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])
