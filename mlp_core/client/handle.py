"""How a run is read for the client: once, and again as far as it goes on."""

from __future__ import annotations

import itertools
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from mlp_core.errors import ArtifactError, MlpError, NotFound, StoreDamaged, UsageError
from mlp_core.names import closest, shown
from mlp_core.names import tag as checked_tag
from mlp_core.store import TagsChanged
from mlp_core.store.logs import LogReader, log_keys
from mlp_core.store.seal import unlike_sealed_logs
from mlp_core.unpack import code_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from mlp_core.client.reader import Client
    from mlp_core.store import AttemptState, LogChunk, RunReader, RunState, TaskState
    from mlp_core.values import Values
    from mlp_hookspecs import ArtifactRef, CodeRef, TaskKey

_NEAR: Final = 5
_POLL_SECONDS: Final = 0.25


class RunHandle:
    """A run that was read; shared by all objects that stand for it or for something in it.

    Parameters
    ----------
    client : Client
        Where it comes from.
    flow, run_id : str
        The run.
    """

    def __init__(self, client: Client, flow: str, run_id: str) -> None:
        """Read the run; NotFound where there is none."""
        self.client = client
        self.flow = flow
        self.run_id = run_id
        self._reader = self._read()
        self._by_step: dict[str, dict[str, TaskKey]] = {}
        self._seen = 0
        self._children: tuple[int, dict[TaskKey, list[TaskKey]]] = (-1, {})
        self._logs: dict[str, LogReader] = {}
        self._checked_logs = (-1, True)
        self._log_damage = ""

    @property
    def state(self) -> RunState:
        """The run as it stands; what has not ended is looked at again."""
        if self._reader.state.ended is None:
            self._reader.refresh()
        return self._reader.state

    @property
    def tags(self) -> frozenset[str]:
        """The tags that users gave, as they stand."""
        self._reader.refresh()
        return frozenset(self._reader.state.tags)

    def tasks(self, step: str) -> Mapping[str, TaskKey]:
        """Return the tasks of a step by task id, in the order in which they first occurred."""
        known = self.state.tasks
        for key in itertools.islice(known, self._seen, None):
            self._by_step.setdefault(key.step, {})[key.task_id] = key
        self._seen = len(known)
        return self._by_step.get(step, {})

    def log_chunks(self, attempt_id: str) -> Iterator[LogChunk]:
        """Iterate over what an attempt printed so far."""
        objects = self.client.store.objects
        for key in log_keys(objects, self.flow, self.run_id):
            reader = self._logs.setdefault(key, LogReader(objects, key))
            reader.refresh()
            yield from reader.chunks((attempt_id,))
        self._check_logs()

    def _check_logs(self) -> None:
        """Raise StoreDamaged where the logs are not what was written; what is intact was handed out before."""
        seen = sum(reader.count for reader in self._logs.values()), self.state.ended is None
        if seen != self._checked_logs:
            self._checked_logs, self._log_damage = seen, self._find_log_damage()
        if self._log_damage:
            raise StoreDamaged(
                f"the log of {self.pathspec} in {self.client.store.url} is damaged: {self._log_damage}",
                hint=f"to see what is left: mlp logs {self.pathspec}",
            )

    def _find_log_damage(self) -> str:
        """Return what is wrong with the logs that were read; empty where nothing is."""
        gaps = (gap for reader in self._logs.values() for gap in reader.gaps())
        changed = sum(end - start for start, end, is_unfinished in gaps if not is_unfinished)
        if changed:
            return f"{changed:,} bytes are not what was written"
        if self.state.ended is None:
            return ""
        return unlike_sealed_logs(self.client.store.objects, self.flow, self.run_id)

    def children(self, key: TaskKey) -> Sequence[TaskKey]:
        """Return the tasks that read from a task."""
        state = self.state
        count = sum(len(task.parents) for task in state.tasks.values())
        if self._children[0] != count:
            found: dict[TaskKey, list[TaskKey]] = {}
            for task in state.tasks.values():
                for parent in task.parents:
                    found.setdefault(parent, []).append(task.key)
            self._children = (count, found)
        return self._children[1].get(key, ())

    def refresh(self) -> None:
        """Take up what was added to the run since."""
        self._reader.refresh()

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be written: the run has ended, and its driver has let go of it."""
        self._reader.refresh()
        return self._reader.state.status != "running" and not self._reader.state.is_alive

    def wait(self) -> None:
        """Return when the run is over."""
        while not self.is_over:
            time.sleep(_POLL_SECONDS)

    @property
    def pathspec(self) -> str:
        """The run's place."""
        return f"{self.flow}/{self.run_id}"

    def task(self, step: str, task_id: str) -> TaskState:
        """Return a task as it stands; KeyError where it is unknown."""
        return self.state.tasks[self.tasks(step)[task_id]]

    def attempt(self, task: TaskState, number: int | None) -> AttemptState:
        """Return an attempt of a task by number; the last for None."""
        return next((attempt for attempt in task.attempts if attempt.number == number), task.attempts[-1])

    def artifacts(self, task: TaskState, number: int | None) -> Mapping[str, ArtifactRef]:
        """Return what is visible in an attempt: of an earlier one only what it left itself."""
        attempt = self.attempt(task, number)
        if attempt is task.attempts[-1]:
            return self.state.artifacts(task.key)
        return attempt.outcome.assigned if attempt.outcome is not None else {}

    def require_step(self, step: str) -> None:
        """Raise NotFound where a step has no task; the message tells whether it is known at all."""
        if self.tasks(step):
            return
        state = self.state
        if step in state.graph:
            hint = f"the run is {state.status}: mlp show {self.pathspec}"
            raise NotFound(f"step {step} of {self.pathspec} has no task yet", hint=hint)
        known = [node.name for node in state.graph.steps]
        close = closest(step, known)
        hint = f"did you mean {close}?" if close else f"its steps are {', '.join(known)}"
        raise NotFound(f"{self.pathspec} has no step {shown(step)}", hint=hint)

    def require_task(self, step: str, task_id: str, number: int | None = None) -> None:
        """Raise NotFound where there is no such task or attempt; the message names those that there are."""
        self.require_step(step)
        known = self.tasks(step)
        if task_id not in known:
            ids = list(known)
            more = f" and {len(ids) - _NEAR} more" if len(ids) > _NEAR else ""
            hint = f"it has {', '.join(ids[:_NEAR])}{more}"
            raise NotFound(f"step {self.pathspec}/{step} has no task {shown(task_id)}", hint=hint)
        attempts = self.state.tasks[known[task_id]].attempts
        if number is not None and all(attempt.number != number for attempt in attempts):
            numbers = ", ".join(str(attempt.number) for attempt in attempts)
            raise NotFound(f"{self.pathspec}/{step}/{task_id} has no attempt {number}", hint=f"it has {numbers}")

    def require_artifact(self, task: TaskState, name: str, number: int | None = None) -> None:
        """Raise NotFound where nothing of that name is visible in a task; the message names the nearest."""
        known = self.artifacts(task, number)
        if name in known:
            return
        close = closest(name, known)
        hint = f"did you mean {close}?" if close else f"it has {', '.join(sorted(known))}" if known else "it has none"
        raise NotFound(f"{self.pathspec}/{task.key.path} has no artifact {shown(name)}", hint=hint)

    def change_tags(self, *, added: Iterable[str] = (), removed: Iterable[str] = ()) -> None:
        """Add and remove tags, durably.

        Raises
        ------
        NameRefused
            Where a new tag is refused.
        UsageError
            Where a tag is the system's, which cannot be changed.
        """
        new = tuple(dict.fromkeys(checked_tag(tag) for tag in added))
        old = tuple(dict.fromkeys(removed))
        fixed = system_tags(self.state).intersection((*new, *old))
        if fixed:
            raise UsageError(f"{', '.join(sorted(fixed))} is a tag of the system's, which cannot be changed")
        if not new and not old:
            return
        change = TagsChanged(new, old, self.client.username, time.time())
        name = f"tags.{uuid4().hex}"
        self.client.session.open_store(create=False).add_segment(self.flow, self.run_id, name, change)

    def load(self, ref: ArtifactRef, name: str) -> Any:
        """Return the value of an artifact, or of what else a run left, that has a name.

        Classes of the flow's own module are looked for in the run's project folder or, where that is gone, in its code
        package, if they are not importable otherwise; not where the setting ``storage.pickle`` lists what may be
        loaded, since a name that is listed must not mean what the run says that it means.

        Raises
        ------
        StoreError
            Where its content is missing or damaged.
        ArtifactError
            Where it cannot be loaded; the message names the artifact and the reason, such as a missing module.
        """
        try:
            return self._load(ref, name)
        except MlpError:
            raise
        except Exception as error:
            raise ArtifactError(
                f"artifact {shown(name)} of type {shown(ref.type)}, stored as {shown(ref.format)}, cannot be loaded:"
                f" {type(error).__name__}: {error}"
            ) from error

    def _load(self, ref: ArtifactRef, name: str) -> Any:
        """Return a value; raises also what its format raises."""
        values = self.client.values
        if values.runs_code(ref):
            self.client.store.require_signed(self.state)
        try:
            return values.get(ref, name)
        except ModuleNotFoundError as missing:
            code = self.state.began.code
            if self.client.session.settings["storage.pickle"] != "allow":
                raise _missing_module(missing, ref, None) from missing
            with _on_path(code, values):
                try:
                    return values.get(ref, name)
                except ModuleNotFoundError as error:
                    raise _missing_module(error, ref, code) from error

    def _read(self) -> RunReader:
        """Read the run."""
        try:
            return self.client.store.follow(self.flow, self.run_id)
        except NotFound:
            raise self.client.no_run(self.flow, self.run_id) from None


@contextmanager
def _on_path(code: CodeRef | None, values: Values) -> Iterator[None]:
    """Let modules of a run's project be imported, after all that can be imported anyway."""
    folders = _code_folders(code, values) if code is not None and code.file else []
    before = list(sys.path)
    sys.path.extend(folder for folder in folders if folder not in before)
    try:
        yield
    finally:
        sys.path[:] = before


def _code_folders(code: CodeRef, values: Values) -> list[str]:
    """Return the folders from which a run's own modules were imported."""
    root = code_folder(code, values) or Path(code.root)
    if not root.is_dir():
        return []
    # A file that lies in no package is imported from its own folder.
    depth = code.module.count(".") + 1
    return list(dict.fromkeys((str(Path(root, *Path(code.file).parts[:-depth])), str(root))))


def _missing_module(error: ModuleNotFoundError, ref: ArtifactRef, code: CodeRef | None) -> ArtifactError:
    """Return the error of a value that needs a module which is not here."""
    module = error.name or "?"
    own = code is not None and module in (code.module, code.module.partition(".")[0])
    hint = f"run where {code.root} is, or put the folder of {module}.py on PYTHONPATH" if own and code else ""
    return ArtifactError(
        f"a value of type {ref.type} cannot be loaded: the module {module!r} cannot be imported here",
        hint=hint or f"install the package that provides {module!r}",
    )


def system_tags(state: RunState) -> frozenset[str]:
    """Return the tags that the system gives to a run."""
    run, began = state.context, state.began
    tags = {f"user:{run.username}", day_tag(began.time), "runtime:dev"}
    if "python" in began.metadata:
        tags.add(f"python_version:{began.metadata['python']}")
    if run.project:
        tags.add(f"project:{run.project.get('name', '')}")
        tags.add(f"project_branch:{run.project.get('branch', '')}")
    return frozenset(tags)


def day_tag(seconds: float) -> str:
    """Return the tag with the day of a moment, in UTC; what a store says may be none."""
    try:
        return time.strftime("date:%Y-%m-%d", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "date:unknown"
