"""What is alive and crosses the border: small protocols with one purpose each."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

import attrs

if TYPE_CHECKING:
    from mlp_hookspecs.types import (
        DeployDiff,
        Deployment,
        DeployRequest,
        Failure,
        FlowGraph,
        RunContext,
        StepNode,
        StepOutcome,
        TaskKey,
        WorkerCommand,
    )

Buffer: TypeAlias = bytes | bytearray | memoryview | pickle.PickleBuffer
"""Contiguous bytes that can be written without a copy."""

Settings: TypeAlias = Mapping[str, Any]
"""Resolved settings by dotted name: a plugin reads its own, ``settings["ray.address"]``."""


class LaunchSink(Protocol):
    """Where a launcher pushes what happens to attempts. Every method is thread-safe; all but `log` return at once."""

    def started(self, attempt_id: str, host: str, pid: int) -> None:
        """Tell that a worker has begun on an attempt."""

    def heartbeat(self, attempt_id: str) -> None:
        """Tell that an attempt is alive, where the launcher cannot see it die."""

    def log(self, attempt_id: str, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        """Pass on what an attempt printed, in order within each stream.

        Waits while there is more than the driver can take in: hold no lock that `mlp_launch_step` or `cancel` needs.
        """

    def finished(self, attempt_id: str, outcome: StepOutcome) -> None:
        """Tell how an attempt ended. The last call for the attempt, exactly once, after its last log chunk."""

    def lost(self, attempt_id: str, failure: Failure) -> None:
        """Tell that an attempt ended without an outcome of its worker; otherwise as `finished`."""


class Launcher(AbstractContextManager["Launcher"], Protocol):
    """An open launcher; entered before its first use and left after its last."""

    def capacity(self) -> int | None:
        """Return how many attempts it can take at once, beyond which it would only queue; None for no limit."""

    def cancel(self, attempt_ids: Sequence[str], grace_seconds: float) -> None:
        """Ask attempts to end, and kill their whole process trees after the grace. Their end is told to the sink."""

    def reattach(self, attempt_ids: Sequence[str]) -> Sequence[str]:
        """Take up attempts that an earlier driver started, and return those that are still there."""


@runtime_checkable
class Expecting(Protocol):
    """What a launcher may be besides: one that gets ready for attempts before they are there."""

    def expect(self, commands: Sequence[WorkerCommand]) -> None:
        """Get ready for attempts with these commands, of which none need come. Returns at once, and raises nothing."""


class ArtifactTarget(Protocol):
    """Where a format writes one value. The target hashes, compresses and stores; the format only encodes."""

    @property
    def format(self) -> str:
        """Name of the format that was chosen."""

    def write(self, chunks: Iterable[Buffer]) -> None:
        """Append buffers to the value's content without copying them together; may be called repeatedly."""

    def open(self) -> IO[bytes]:
        """Return a writable file that appends to the value's content; close it before returning."""

    def local_path(self) -> Path:
        """Return a path for the encoder to make a file or folder at; its content becomes the value's."""

    def part(self, name: str) -> ArtifactTarget:
        """Return the target of a further named part."""

    def describe(self, name: str, text: str) -> None:
        """Record a piece of metadata that loading will need."""


class ArtifactSource(Protocol):
    """Where a format reads one value from; every byte was verified against the recorded hash."""

    def buffer(self) -> memoryview:
        """Return the content, mapped copy-on-write where it is a local file, so that nothing is copied."""

    def open(self) -> IO[bytes]:
        """Return a readable file with the content."""

    def local_path(self) -> Path:
        """Return a local file or folder with the content; not to be written to."""

    def part(self, name: str) -> ArtifactSource:
        """Return the source of a named part; KeyError if there is none."""


@attrs.frozen
class ObjectInfo:
    """One stored object.

    Attributes
    ----------
    key : str
        Its key.
    size : int
        Bytes.
    modified_at : float
        Seconds since the epoch.
    """

    key: str
    size: int
    modified_at: float


class AppendFile(Protocol):
    """An object that grows, owned by one writer."""

    def append(self, data: bytes, *, sync: bool) -> None:
        """Add bytes; with `sync` they and all before them survive a power cut once this returns."""

    def close(self) -> None:
        """Release the object."""


class ObjectStore(Protocol):
    """Objects by key: relative paths with forward slashes. What exists is complete; a failed write leaves nothing.

    Keys come from the core, which has checked them. Absent objects raise FileNotFoundError; other failures OSError.
    Every method may be called from several threads at once. A store that was opened before a fork works in the child.
    """

    @property
    def url(self) -> str:
        """The URL from which this store can be opened again, on any host that reaches it; no credentials in it."""

    @property
    def creates_once(self) -> bool:
        """Whether of all creates of a key, from whatever host, exactly one returns True; the store itself sees to it.

        Where it is False `create` looks first and then writes, and two that do so at the same moment may both succeed.
        """

    def create(self, key: str, data: bytes, *, sync: bool) -> bool:
        """Write an object if absent; return whether this call made it.

        Of concurrent calls exactly one returns True where the store `creates_once`. A store whose answers can get lost
        asks again and then may find an object that it cannot tell from its own: one with the same content counts as
        made by this call. So what competes for a key writes who it is.
        """

    def replace(self, key: str, data: bytes, *, sync: bool) -> None:
        """Write an object, atomically taking the place of an earlier one."""

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Return the bytes from `start` up to `end`; fewer where the object is shorter."""

    def download(self, key: str, target: Path) -> None:
        """Write the whole object to a new local file, in parallel where that is faster; a failure leaves no file."""

    def info(self, key: str) -> ObjectInfo:
        """Return size and time of an object."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Iterate over the objects whose keys start with a prefix that ends with a slash, at any depth, in no order."""

    def children(self, prefix: str) -> Sequence[str]:
        """Return the names directly below a prefix that ends with a slash, sorted; folders too."""

    def delete(self, key: str) -> None:
        """Remove an object; an absent one is no error."""

    def staging(self) -> Path:
        """Return a local folder for files that are to be moved in by `adopt`."""

    def adopt(self, source: Path, key: str, *, sync: bool) -> None:
        """Move a finished local file in under a key, replacing an object of that key; the file is the store's now.

        Without `sync` this may return before the object is there: other processes see it after `sync` at the latest,
        this store's own methods at once.
        """

    def sync(self, keys: Sequence[str]) -> None:
        """Return when objects written without sync, and their names, survive a power cut; raise what failed of them."""

    def local_path(self, key: str) -> Path | None:
        """Return the object's own local file, where it has one; None otherwise."""

    def open_append(self, key: str) -> AppendFile | None:
        """Open an object for appending, made if absent; None where the store has no such thing, as on a bucket."""

    def lock(self, key: str) -> AbstractContextManager[bool] | None:
        """Return a lock that ends with its holder's process, yielding whether it was free; None where there is none."""

    def is_locked(self, key: str) -> bool:
        """Tell whether somebody holds the lock, without taking it or blocking its holder."""

    def close(self) -> None:
        """Release what the store holds. What was adopted without sync, and not synced since, may not be there."""


class StepHandle(Protocol):
    """A running step as a wrap sees it, in the worker."""

    @property
    def run(self) -> RunContext:
        """The run."""

    @property
    def key(self) -> TaskKey:
        """The task."""

    @property
    def attempt(self) -> int:
        """The attempt, 0-based."""

    @property
    def node(self) -> StepNode:
        """The step's place in the graph."""

    @property
    def graph(self) -> FlowGraph:
        """The flow's graph."""

    @property
    def options(self) -> Sequence[object]:
        """The step's options, of all plugins."""

    @property
    def settings(self) -> Settings:
        """The settings in force."""

    def attach(self, kind: str, name: str, content: bytes, *, live: bool = False) -> None:
        """Store a report; `live` ones may be replaced while the step runs, by calling again with the same name."""

    def set_current(self, name: str, value: object) -> None:
        """Add an attribute to `current`."""


class TargetContext(Protocol):
    """What a deploy target may use."""

    @property
    def settings(self) -> Settings:
        """The settings in force."""

    @property
    def objects(self) -> ObjectStore:
        """Objects of the target's own, in the store."""


class DeployTarget(Protocol):
    """An open deploy target."""

    def plan(self, request: DeployRequest) -> DeployDiff:
        """Tell what a deploy would change, with no side effect."""

    def list(self) -> Sequence[Deployment]:
        """Return what is deployed: the active version of each name."""

    def get(self, name: str) -> Deployment | None:
        """Return the active version of a name; None where there is none."""

    def trigger(self, request: DeployRequest, parameters: Mapping[str, str]) -> str:
        """Start a run of a version and return its id or, where the id is not known yet, where it can be followed."""

    def delete(self, name: str) -> None:
        """Take a name out of service; an absent one is no error."""


class CommandSession(Protocol):
    """What a plugin's command may use."""

    @property
    def settings(self) -> Settings:
        """The settings in force."""

    @property
    def objects(self) -> ObjectStore:
        """The store, as objects."""

    @property
    def client(self) -> Any:  # the client's classes belong to the core, which the contract cannot name
        """The client: `client.Flow`, `client.Run` and the rest."""

    @property
    def echo(self) -> Callable[[str], None]:
        """Print a line for people, or nothing under ``--quiet``."""
