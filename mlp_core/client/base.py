"""What the client's objects have in common: a place, a parent, children, times, tags, and the run they lie in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from mlp_core.client.contents import Code
from mlp_core.client.handle import RunHandle, system_tags
from mlp_core.client.reader import Client, default_client
from mlp_core.errors import NotFound, StoreDamaged
from mlp_core.names import Pathspec, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlp_core.client.tasks import Step, Task
    from mlp_core.store import RunState
    from mlp_hookspecs import TaskKey

_Child = TypeVar("_Child")


class MissingKey(NotFound, KeyError):  # noqa: N818 # the tree speaks of what happened
    """What was asked for by ``[...]`` is not there."""


class ClientObject(ABC, Generic[_Child]):
    """What all of the client's objects have: a place, a parent, children, times and tags.

    Iteration gives the children, newest first; ``obj[id]`` one of them; ``id in obj`` tells whether it is there.
    """

    _client: Client
    _place: Pathspec

    @property
    def pathspec(self) -> str:
        """The place: ``Flow/run/step/task/artifact``, as far as it goes."""
        return str(self._place)

    @property
    def path_components(self) -> list[str]:
        """The parts of the place."""
        return self.pathspec.split("/")

    @property
    def id(self) -> str:
        """The last part of the place."""
        return self.path_components[-1]

    @property
    @abstractmethod
    def parent(self) -> ClientObject[Any] | None:
        """What contains it."""

    @property
    @abstractmethod
    def created_at(self) -> datetime | None:
        """When it came to be, in the local time zone."""

    @property
    @abstractmethod
    def finished_at(self) -> datetime | None:
        """When it was finished, in the local time zone; None while it is not."""

    @property
    @abstractmethod
    def user_tags(self) -> frozenset[str]:
        """The tags that users gave to its run."""

    @property
    @abstractmethod
    def system_tags(self) -> frozenset[str]:
        """The tags that the system gave to its run."""

    @property
    def tags(self) -> frozenset[str]:
        """All tags of its run."""
        return self.user_tags | self.system_tags

    @property
    def origin_pathspec(self) -> str | None:
        """Where it was taken over from, in a resumed run."""
        return None

    def is_in_namespace(self) -> bool:
        """Tell whether its run is in the namespace in force."""
        return self._client.namespace is None or self._client.namespace in self.tags

    @abstractmethod
    def __iter__(self) -> Iterator[_Child]: ...

    @abstractmethod
    def __getitem__(self, id: str) -> _Child: ...  # noqa: A002 # Metaflow's word

    def __contains__(self, id: object) -> bool:  # noqa: A002 # as above
        """Tell whether there is a child of that id."""
        try:
            self[str(id)]
        except NotFound:
            return False
        return True

    def __eq__(self, other: object) -> bool:
        """Tell whether both stand for one thing in one store."""
        if not isinstance(other, ClientObject):
            return NotImplemented
        return (self._client.session.store_url, self.pathspec) == (other._client.session.store_url, other.pathspec)

    def __hash__(self) -> int:
        return hash(self.pathspec)

    def __repr__(self) -> str:
        """Show it as the call that makes it."""
        return f"{type(self).__name__}({self.pathspec!r})"


class InRun(ClientObject[_Child]):
    """What lies in a run, or is one.

    Parameters
    ----------
    pathspec : str
        The place.
    client : Client, optional
        The client; by default that of the working folder.

    Raises
    ------
    NotFound
        Where there is no such thing, or its run is not in the namespace in force.
    """

    _depth: ClassVar[int]
    _shape: ClassVar[str]

    def __init__(
        self, pathspec: str, *, client: Client | None = None, _known: bool = False, _run: RunHandle | None = None
    ) -> None:
        """Find it."""
        self._client = client or default_client()
        self._place = Pathspec.parse(pathspec)
        if len(self.path_components) != self._depth:
            raise NotFound(f"{shown(pathspec)} is no {type(self).__name__.lower()}", hint=f"one is {self._shape}")
        self._handle = _run
        if not _known:
            self._check()
            if not self.is_in_namespace():
                raise NotFound(
                    f"{self._place} is not in the namespace {self._client.namespace!r}",
                    hint="namespace(None) lets all runs be seen",
                )

    @abstractmethod
    def _check(self) -> None:
        """Raise NotFound where there is no such thing."""

    @property
    def _run(self) -> RunHandle:
        """The run, read when it is first needed."""
        if self._handle is None:
            self._handle = self._client.handle(self._place.flow, str(self._place.run_id))
        return self._handle

    @property
    def _state(self) -> RunState:
        """The run as it stands."""
        return self._run.state

    @property
    def user_tags(self) -> frozenset[str]:
        """The tags that users gave to its run."""
        return self._run.tags

    @property
    def system_tags(self) -> frozenset[str]:
        """The tags that the system gave to its run."""
        return system_tags(self._state)

    @property
    def code(self) -> Code | None:
        """The code that its run was started with; None where it travelled otherwise."""
        began = self._state.began
        package = began.code.package if began.code is not None else None
        return Code(began, package, self._run) if package is not None else None

    def _step(self, name: str) -> Step:
        step: Step = self._client.Step(f"{self._run.pathspec}/{name}", _run=self._run, _known=True)
        return step

    def _task(self, key: TaskKey) -> Task:
        task: Task = self._client.Task(f"{self._run.pathspec}/{key.path}", _run=self._run, _known=True)
        return task


def found(make: Callable[[], _Child]) -> _Child:
    """Return what a function makes; a NotFound becomes a KeyError too."""
    try:
        return make()
    except NotFound as error:
        raise MissingKey(error.message, hint=error.hint) from None


def local_time(seconds: float) -> datetime:
    """Return a moment in the local time zone."""
    try:
        return datetime.fromtimestamp(seconds).astimezone()
    except (OverflowError, ValueError, OSError):
        raise StoreDamaged(f"the store says that something was at {seconds!r}, which is no time") from None
