"""What the client's tasks and runs contain: artifacts' values, failures, log lines, metadata and code."""

from __future__ import annotations

import io
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mlp_core.errors import CaughtFailure
from mlp_core.names import closest, shown
from mlp_core.unpack import unpack

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime

    from mlp_core.client.handle import RunHandle
    from mlp_core.client.tasks import DataArtifact, Task
    from mlp_core.store import AttemptState, LogChunk, RunBegan, RunState, TaskState
    from mlp_hookspecs import ArtifactRef, Failure

_SHOWN = 12


class TaskData:
    """The values of a task's artifacts as attributes; each is loaded when it is read."""

    def __init__(self, refs: Mapping[str, ArtifactRef], run: RunHandle) -> None:
        """Make the view; nothing is loaded."""
        self._refs = refs
        self._run = run

    def __getattr__(self, name: str) -> Any:
        """Load a value; AttributeError where there is no such artifact."""
        # While a copy or a pickle is being restored, nothing is there yet.
        refs: Mapping[str, ArtifactRef] = self.__dict__.get("_refs", {})
        if name not in refs:
            raise AttributeError(_no_artifact(name, refs))
        value = self._run.load(refs[name], name)
        self.__dict__[name] = value
        return value

    def __contains__(self, name: object) -> bool:
        """Tell whether there is an artifact of that name."""
        return name in self._refs

    def __dir__(self) -> list[str]:
        """List the artifacts, for completion."""
        return sorted(self._refs)

    def __repr__(self) -> str:
        """List the artifacts."""
        return f"<TaskData: {_listed(self._refs)}>"


class Artifacts:
    """A task's artifacts as attributes; iteration gives them all."""

    def __init__(self, artifacts: Mapping[str, DataArtifact]) -> None:
        """Make the view."""
        self._artifacts = artifacts

    def __getattr__(self, name: str) -> DataArtifact:
        """Return an artifact; AttributeError where there is none."""
        artifacts: Mapping[str, DataArtifact] = self.__dict__.get("_artifacts", {})
        if name not in artifacts:
            raise AttributeError(_no_artifact(name, artifacts))
        return artifacts[name]

    def __iter__(self) -> Iterator[DataArtifact]:
        return iter(self._artifacts.values())

    def __len__(self) -> int:
        return len(self._artifacts)

    def __contains__(self, name: object) -> bool:
        """Tell whether there is an artifact of that name."""
        return name in self._artifacts

    def __dir__(self) -> list[str]:
        """List the artifacts, for completion."""
        return [*sorted(self._artifacts), "_asdict", "_fields"]

    @property
    def _fields(self) -> tuple[str, ...]:
        """The names, as a named tuple has them."""
        return tuple(self._artifacts)

    def _asdict(self) -> dict[str, DataArtifact]:
        """Return the artifacts by name, as a named tuple does."""
        return dict(self._artifacts)

    def __repr__(self) -> str:
        """List the artifacts."""
        return f"<Artifacts: {_listed(self._artifacts)}>"


class TaskException(CaughtFailure):
    """What a task failed with, where the exception itself cannot be loaded or there was none.

    Parameters
    ----------
    failure : Failure
        What was recorded.
    """

    def __init__(self, failure: Failure) -> None:
        """Tell about a failure."""
        super().__init__(failure.kind, failure.type, failure.message, failure.traceback)


class Metadata(NamedTuple):
    """A fact about an attempt.

    Attributes
    ----------
    name, value : str
        The fact.
    created_at : datetime or None
        When the attempt began.
    type : str
        What kind of fact it is; the name again.
    task : Task
        The task.
    """

    name: str
    value: str
    created_at: datetime | None
    type: str
    task: Task


class Code:
    """The code that a run was started with.

    Parameters
    ----------
    began : RunBegan
        The run's first record.
    package : ArtifactRef
        The package.
    run : RunHandle
        The run.
    """

    def __init__(self, began: RunBegan, package: ArtifactRef, run: RunHandle) -> None:
        """Make the object; nothing is read."""
        self._began = began
        self._package = package
        self._run = run

    @property
    def digest(self) -> str:
        """The package's digest."""
        return self._package.digest

    @property
    def script_name(self) -> str:
        """The flow's file, relative to the project."""
        return self._began.code.file if self._began.code is not None else ""

    @property
    def path(self) -> str:
        """Where the package is: its digest in the store."""
        return f"{self._run.client.store.url}#{self._package.digest}"

    @property
    def info(self) -> dict[str, str]:
        """What is known of the code and of where it ran."""
        return {"script": self.script_name, "host": self._began.host, **self._began.metadata}

    @property
    def content(self) -> bytes:
        """The package: an uncompressed tar archive."""
        content: bytes = self._run.client.values.get(self._package)
        return content

    @property
    def tarball(self) -> tarfile.TarFile:
        """The package, open for reading."""
        return tarfile.open(fileobj=io.BytesIO(self.content), mode="r:")

    @property
    def flowspec(self) -> str:
        """The source of the flow's file."""
        with self.tarball as archive:
            file = archive.extractfile(self.script_name)
            return file.read().decode(errors="replace") if file is not None else ""

    def extract(self) -> tempfile.TemporaryDirectory[str]:
        """Return a temporary folder with the code; it is removed with the object that is returned.

        Examples
        --------
        >>> with run.code.extract() as folder:  # doctest: +SKIP
        ...     print(folder)
        """
        folder = tempfile.TemporaryDirectory(prefix="mlp-code-")
        unpack(self.content, Path(folder.name))
        return folder


def log_lines(chunks: Iterable[LogChunk], stream: str) -> Iterator[tuple[float, bytes]]:
    """Yield the lines of one stream of one attempt, without their ends, each with the time of its first piece.

    Raises
    ------
    ValueError
        Where there is no such stream.
    """
    if stream not in ("stdout", "stderr"):
        raise ValueError(f"there is no stream {shown(stream)}; there are stdout and stderr")
    pending, began = bytearray(), 0.0
    for chunk in chunks:
        if chunk.stream != stream:
            continue
        *whole, rest = chunk.data.split(b"\n")
        for piece in whole:
            yield (began if pending else chunk.time), bytes(pending) + piece
            pending.clear()
        if rest:
            began = began if pending else chunk.time
            pending += rest
    if pending:
        yield began, bytes(pending)


def metadata_of(state: RunState, now: TaskState, attempt: AttemptState, task: Task) -> list[Metadata]:
    """Return the facts that are known of an attempt."""
    facts = {"attempt": str(attempt.number), "launcher": attempt.launcher, "status": now.status}
    outcome = attempt.outcome
    if outcome is not None:
        facts |= {
            "host": outcome.host,
            "pid": str(outcome.pid),
            "seconds": f"{outcome.finished_at - outcome.started_at:.3f}",
            "cpu_seconds": f"{outcome.cpu_seconds:.3f}",
            "peak_memory_bytes": str(outcome.peak_memory_bytes),
        }
    if now.origin is not None:
        facts["origin-task"] = now.origin
    if (locked := state.environment_of(now.key)) is not None:
        facts["environment"] = locked.lock.digest
    code = state.began.code
    if code is not None and code.package is not None:
        facts["code-package"] = code.package.digest
    return [Metadata(name, value, task.created_at, name, task) for name, value in facts.items() if value]


def _no_artifact(name: str, known: Iterable[str]) -> str:
    """Return the message of an artifact that is not there."""
    close = closest(name, known)
    return f"there is no artifact {shown(name)}; " + (
        f"did you mean {close}?" if close else f"there are {_listed(known)}"
    )


def _listed(names: Iterable[str]) -> str:
    """Return names for people, not too many."""
    found = sorted(names)
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return (", ".join(found[:_SHOWN]) + more) or "none"
