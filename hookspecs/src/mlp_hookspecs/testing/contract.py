"""Which promises all kinds of backends keep: they are declared once, whole, and cheap to ask about."""

from __future__ import annotations

from typing import ClassVar

import pytest

from mlp_hookspecs import Backend, BackendKind
from mlp_hookspecs.specs import HOOKS
from mlp_hookspecs.testing.driver import Driver, in_child


class BackendContract:
    """The tests of every backend. Derive from the class of a kind, not from this one.

    Attributes
    ----------
    plugin : str
        The plugin, as its entry point names it: ``module`` or ``module:attribute``.
    name : str
        The backend's name.
    heavy : tuple of str
        Libraries that must not be imported together with the plugin, but only when they are needed.
    kind : str
        The kind; set by the kit.
    """

    plugin: ClassVar[str]
    name: ClassVar[str]
    heavy: ClassVar[tuple[str, ...]] = ()
    kind: ClassVar[BackendKind]

    @pytest.fixture
    def driver(self) -> Driver:
        """What calls the plugin's hooks."""
        return Driver(self.plugin)

    @pytest.fixture
    def backend(self, driver: Driver) -> Backend:
        """What the plugin declares about the backend."""
        found = [b for b in driver.backends() if (b.kind, b.name) == (self.kind, self.name)]
        assert len(found) == 1, f"mlp_backends must declare the {self.kind} {self.name!r} once, not {len(found)} times"
        return found[0]

    def test_is_declared(self, backend: Backend) -> None:
        """The plugin declares the backend once, with a line for people."""
        assert backend.summary.strip(), "the summary must say in one line what the backend is"
        assert "\n" not in backend.summary

    def test_every_hook_of_the_kind_is_implemented(self, driver: Driver) -> None:
        """A backend answers all claim hooks of its kind but the optional ones."""
        needed = [hook for hook, info in HOOKS.items() if info.kind == self.kind and not info.is_optional]
        assert [hook for hook in needed if not driver.implements(hook)] == []

    def test_importing_the_plugin_is_light(self) -> None:
        """The plugin's module imports none of its heavy libraries: every command of every user imports the module."""
        loaded = in_child(self.plugin, "loaded")
        assert set(self.heavy) & set(loaded) == set()

    def test_asking_twice_gives_the_same(self, driver: Driver) -> None:
        """What a plugin declares does not depend on when it is asked."""
        assert driver.backends() == driver.backends()
