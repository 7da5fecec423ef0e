"""What the client's objects share: the store and its plugins, the namespace, and runs that were read already."""

from __future__ import annotations

import functools
import itertools
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from mlp_core.client.handle import RunHandle, day_tag, system_tags
from mlp_core.errors import NotFound
from mlp_core.facts import current
from mlp_core.names import closest, shown
from mlp_core.session import Session
from mlp_core.store.index import RunQuery, RunSummary

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mlp_core.client.runs import Run
    from mlp_core.store import Store
    from mlp_core.values import Values

_BOUND: Final = frozenset({"Metaflow", "Flow", "Run", "Step", "Task", "DataArtifact", "Environment"})
_PREFIXES: Final = ("user:", "date:", "runtime:", "python_version:", "mlp_version:", "project:", "project_branch:")


class Client:
    """The reading side of one store: where `Flow`, `Run` and the others come from.

    Parameters
    ----------
    session : Session
        The project with its plugins.

    Attributes
    ----------
    namespace : str or None
        The tag that runs must have to be seen; None sees all. At first the user's own, ``user:<name>``.
    """

    def __init__(self, session: Session) -> None:
        """Make a client; the store is opened when something is read."""
        self.session = session
        self.namespace: str | None = self.own_namespace
        self._runs: weakref.WeakValueDictionary[tuple[str, str], RunHandle] = weakref.WeakValueDictionary()

    @property
    def own_namespace(self) -> str:
        """The user's own namespace."""
        return f"user:{self.username}"

    @property
    def username(self) -> str:
        """Who uses this client: the setting, else the system's user."""
        return self.session.username

    @functools.cached_property
    def store(self) -> Store:
        """The store, open for reading; StoreUnavailable where there is none."""
        return self.session.open_store(create=False)

    @functools.cached_property
    def values(self) -> Values:
        """What decodes the store's artifacts."""
        return self.session.values(self.store)

    def __getattr__(self, name: str) -> Any:
        """Return `Metaflow`, `Flow`, `Run`, `Step`, `Task`, `DataArtifact` or `Environment`, bound to this client."""
        if name in _BOUND:
            from mlp_core import client

            return functools.partial(getattr(client, name), client=self)
        raise AttributeError(name)

    def run(self, pathspec: str) -> Run:
        """Return a run by its place, ``Flow/20260131-094500-123456``; NotFound where there is none."""
        from mlp_core.client.runs import Run

        return Run(pathspec, client=self)

    def handle(self, flow: str, run_id: str) -> RunHandle:
        """Return what reads a run, whatever its namespace.

        Raises
        ------
        NotFound
            Where there is none; the message names the nearest.
        """
        handle = self._runs.get((flow, run_id))
        if handle is None:
            handle = RunHandle(self, flow, run_id)
            self._runs[flow, run_id] = handle
        return handle

    def runs(
        self, flow: str | None, tags: Iterable[str] = (), *, query: RunQuery | None = None
    ) -> Iterator[RunSummary]:
        """Iterate over runs that have all of some tags and are in the namespace, newest first.

        Parameters
        ----------
        flow : str or None
            The flow; None for all.
        tags : iterable of str
            Tags, of the user's or the system's making.
        query : RunQuery, optional
            What else to ask for.
        """
        wanted = set(tags)
        if self.namespace is not None:
            wanted.add(self.namespace)
        # The index knows the tags that users gave; the system's follow from what else it knows.
        plain = tuple(sorted(tag for tag in wanted if not tag.startswith(_PREFIXES)))
        asked = attrs.evolve(query or RunQuery(), tags=plain)
        limit, asked = (asked.limit, asked) if wanted == set(plain) else (asked.limit, attrs.evolve(asked, limit=None))
        found = (run for run in self.store.runs(flow, asked) if self._has_tags(run, wanted.difference(plain)))
        return itertools.islice(found, limit)

    def _has_tags(self, run: RunSummary, wanted: set[str]) -> bool:
        """Tell whether a run has tags that may be the system's."""
        if wanted <= {*run.tags, f"user:{run.username}", day_tag(run.started_at)}:
            return True
        if run.status == "damaged":
            return False
        return wanted <= {*run.tags, *system_tags(self.handle(run.flow, run.run_id).state)}

    def no_flow(self, flow: str) -> NotFound:
        """Return the error of a flow without runs."""
        known = self.store.flows()
        close = closest(flow, known)
        hint = (
            f"did you mean {close}?" if close else f"there are {', '.join(known[:10])}" if known else "no flow ran yet"
        )
        return NotFound(f"there is no flow {shown(flow)} in {self.store.url}", hint=hint)

    def no_run(self, flow: str, run_id: str) -> NotFound:
        """Return the error of a run that is not there."""
        known = self.store.run_ids(flow)
        if not known:
            return self.no_flow(flow)
        hint = f"the newest are {', '.join(known[:3])}"
        return NotFound(f"flow {flow} has no run {shown(run_id)} in {self.store.url}", hint=hint)


@attrs.define
class _Defaults:
    """What the top-level constructors use in this process: one client a project, and one namespace for all."""

    chosen: bool = False
    namespace: str | None = None
    clients: dict[tuple[object, ...], Client] = attrs.field(factory=dict)

    def client(self) -> Client:
        """Return the client of the working folder, under the variables in force."""
        variables = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("MLP_")))
        key = (Path.cwd(), variables)
        client = self.clients.get(key)
        if client is None:
            session = Session.open(start=Path.cwd())
            same = [other for other in self.clients.values() if other.session.store_url == session.store_url]
            client = self.clients[key] = same[0] if same else Client(session)
        # Inside a run one sees what the run's own namespace shows.
        own = current.namespace if current.is_running_flow else client.own_namespace
        client.namespace = self.namespace if self.chosen else own
        return client


_defaults: Final = _Defaults()


def default_client() -> Client:
    """Return the client that `Flow`, `Run` and the others use where none is given: that of the working folder."""
    return _defaults.client()


def client_for(session: Session) -> Client:
    """Return a client of a session's store, with a namespace of its own."""
    return Client(session)


def namespace(name: str | None) -> str | None:
    """Choose which runs `Flow`, `Run` and the others see in this process.

    Parameters
    ----------
    name : str or None
        A tag that runs must have, such as ``user:alice``; None for all runs.

    Returns
    -------
    str or None
        The namespace.
    """
    _defaults.chosen, _defaults.namespace = True, name
    return name


def get_namespace() -> str | None:
    """Return the namespace in force; None where all runs are seen."""
    return default_client().namespace


def default_namespace() -> str | None:
    """Go back to the namespace that holds at first, the user's own or the run's, and return it."""
    _defaults.chosen = False
    return default_client().namespace
