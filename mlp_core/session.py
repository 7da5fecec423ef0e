"""What a command or script works with: the project, its settings, the plugins, the store."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import attrs

from mlp_core import names
from mlp_core.hooks import Hooks, build_hooks
from mlp_core.settings import Settings
from mlp_core.store import Store
from mlp_core.store.faults import opened
from mlp_core.values import Values

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mlp_core.store.signing import Signer
    from mlp_hookspecs.handles import ObjectStore


@attrs.frozen(slots=False)
class Session:
    """An open project.

    Attributes
    ----------
    hooks : Hooks
        The plugins in force.
    settings : Settings
        The settings in force.
    """

    hooks: Hooks
    settings: Settings

    @classmethod
    def open(cls, *, start: Path | None = None, flags: Mapping[str, object] | None = None) -> Session:
        """Open the project that a file or folder belongs to.

        Parameters
        ----------
        start : pathlib.Path, optional
            The file or folder; by default the working folder.
        flags : mapping of str to object, optional
            Settings by dotted name that win over variables and the project's file.

        Raises
        ------
        SettingError
            Where a setting is refused.
        PluginRefused
            In strict mode, for the first plugin that fails.
        """
        hooks, settings = build_hooks(flags=flags, start=start)
        return cls(hooks, settings)

    @property
    def root(self) -> Path:
        """The project's folder."""
        return self.settings.project

    @property
    def store_url(self) -> str:
        """The store's URL, or the absolute path of its folder."""
        url: str = self.settings["store"]
        return url

    @property
    def username(self) -> str:
        """Who runs: the setting, else the system's user; NameRefused where that is no name."""
        import getpass

        given = self.settings["username"]
        if given:
            return names.tag(given, "user name")
        try:
            return names.tag(getpass.getuser(), "user name")
        except (KeyError, OSError):  # no such user, as in some containers
            return "unknown"

    def open_store(self, *, create: bool) -> Store:
        """Open the store, once.

        Parameters
        ----------
        create : bool
            Whether to make it where it is absent.

        Raises
        ------
        StoreError
            Where it cannot be opened or has an unknown format.
        """
        if create or "_store" in self.__dict__:
            return self._store
        return Store.open(self._objects, create=False, signer=self._signer)

    @functools.cached_property
    def _store(self) -> Store:
        return Store.open(self._objects, create=True, signer=self._signer)

    @functools.cached_property
    def _signer(self) -> Signer | None:
        reference = self.settings["storage.signing_key"]
        if reference is None:
            return None
        from mlp_core.store.signing import signer_for

        return signer_for(reference)

    @functools.cached_property
    def _objects(self) -> ObjectStore:
        return opened(self.store_url, self.hooks.open_store)

    def values(self, store: Store) -> Values:
        """Return what encodes and decodes the store's artifacts."""
        return Values.of(self.hooks, store, self.settings)
