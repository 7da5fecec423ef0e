"""How a worker carries out one request: load the flow, enter the wraps, run the user's code, persist, answer."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import attrs

from mlp_core.contents import put_back
from mlp_core.errors import CaughtFailure, MlpError, PluginError
from mlp_core.facts import current
from mlp_core.graph import parse_flow
from mlp_core.hooks import Hooks, build_worker_hooks
from mlp_core.loading import IMPORTING, class_data, load_code
from mlp_core.parameters import parameters_of
from mlp_core.settings import Settings
from mlp_core.store import Store
from mlp_core.store.faults import opened
from mlp_core.unpack import code_folder, is_here
from mlp_core.values import Values
from mlp_core.worker.failures import describe_exception, one_line, user_traceback
from mlp_core.worker.hiding import Hiding
from mlp_core.worker.rehearsal import rehearse
from mlp_core.worker.state import TaskState, TransitionError
from mlp_hookspecs import Attachment, Failure, FlowGraph, StepOutcome, StepRequest, Transition
from mlp_hookspecs.types import OPTIONS_ATTRIBUTE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from mlp_hookspecs import FailureKind, RunContext, StepNode, TaskKey, Wrap


class StepInterrupted(BaseException):
    """The launcher asked the step to end; derived from BaseException, so that ``except Exception`` lets it pass."""


def prepare(request: StepRequest) -> Callable[[StepRequest], StepOutcome]:
    """Load all that a request and its like need: plugins, the flow's class, its graph.

    Parameters
    ----------
    request : StepRequest
        The first of the requests.

    Returns
    -------
    callable
        Takes a request of the same run and environment, returns its outcome. It raises nothing but what ends the
        process: every failure is an outcome.
    """
    os.environ[IMPORTING] = "1"
    try:
        hooks, settings = build_worker_hooks(request.plugins, request.settings)
        with contextlib.suppress(MlpError):  # each attempt tells it
            opened(request.store, hooks.open_store).close()  # imports its libraries, once for all forks
        return Worker(hooks, settings, load_code(request.code, _code_folder(request, hooks)))
    except Exception as error:  # noqa: BLE001 # a flow's file can raise anything when it is imported
        return _failing(error)
    finally:
        del os.environ[IMPORTING]


def _code_folder(request: StepRequest, hooks: Hooks) -> Path | None:
    """Return where the code package is unpacked, on hosts that do not have the project's folder; else None."""
    if request.code.package is None or is_here(request.code):
        return None
    objects = opened(request.store, hooks.open_store)
    try:
        return code_folder(request.code, Values(hooks, Store.open(objects, create=False).blobs()))
    finally:
        objects.close()  # and with it what would not survive a fork


def _failing(error: Exception) -> Callable[[StepRequest], StepOutcome]:
    """Return what answers every request with the reason for which none can be carried out."""
    text = user_traceback(error)
    is_plugin = isinstance(error, PluginError)
    message = str(error) if is_plugin else f"the flow could not be loaded: {type(error).__name__}: {error}"
    failure = Failure("plugin" if is_plugin else "exception", message, type=type(error).__name__, traceback=text)

    def run(_request: StepRequest) -> StepOutcome:
        sys.stderr.write(f"error: {message}\n" if is_plugin else text)
        return StepOutcome("failed", failure=failure, host=platform.node(), pid=os.getpid())

    return run


@attrs.frozen(eq=False, repr=False)
class Worker:
    """A prepared worker.

    Attributes
    ----------
    hooks : Hooks
        The plugins.
    settings : Settings
        The settings.
    flow : type
        The flow's class.
    is_rehearsal : bool
        Whether plugins are left out of what it does.
    """

    hooks: Hooks
    settings: Settings
    flow: type[Any]
    is_rehearsal: bool = False
    constants: frozenset[str] = attrs.field(init=False)
    graph: FlowGraph = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Read the flow once, for all its requests."""
        names = {*parameters_of(self.flow), *class_data(self.flow)}
        graph = FlowGraph("", "", "", ()) if self.is_rehearsal else parse_flow(self.flow).graph
        object.__setattr__(self, "constants", frozenset(names))
        object.__setattr__(self, "graph", graph)

    def rehearse(self, request: StepRequest) -> None:
        """Make later requests like this one cheaper for forks of this process."""
        rehearse(self, request)

    def __call__(self, request: StepRequest) -> StepOutcome:
        """Carry out a request.

        Parameters
        ----------
        request : StepRequest
            The request.

        Returns
        -------
        StepOutcome
            How it went.
        """
        started = time.time()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        try:
            outcome = self._attempt(request)
        except MlpError as error:
            print(f"error: {error}", file=sys.stderr)  # noqa: T201 # the task's log is where its author looks
            outcome = StepOutcome("failed", failure=Failure("system", one_line(error), type=type(error).__name__))
        after = resource.getrusage(resource.RUSAGE_SELF)
        # Linux counts kibibytes, macOS bytes (getrusage(2) of each).
        unit = 1 if platform.system() == "Darwin" else 1024
        return attrs.evolve(
            outcome,
            started_at=started,
            finished_at=time.time(),
            peak_memory_bytes=after.ru_maxrss * unit,
            cpu_seconds=after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime,
            host=platform.node(),
            pid=os.getpid(),
        )

    def _attempt(self, request: StepRequest) -> StepOutcome:
        """Carry out a request, without the measurements."""
        if request.contents:
            request = attrs.evolve(request, inputs=put_back(request.inputs, request.contents), contents={})
        objects = opened(request.store, self.hooks.open_store)
        try:
            store = Store.open(objects, create=False)
            values = Values.of(self.hooks, store, self.settings)
            outcome = self._body(request, values, self._fetch_secrets(request))
            values.sync()
            return outcome
        finally:
            objects.close()

    def _fetch_secrets(self, request: StepRequest) -> Hiding:
        """Set the variables of the secrets that the step asked for, in this process alone; return what hides them."""
        if self.is_rehearsal:
            return Hiding()
        secrets = list(self.settings.secrets())
        for reference in request.secrets:
            try:
                found = self.hooks.fetch_secret(reference)
            except OSError as error:
                raise MlpError(f"the secret {reference} could not be fetched: {error}") from error
            os.environ.update(found)
            secrets += found.values()
        return Hiding.of(secrets)

    def _body(self, request: StepRequest, values: Values, hiding: Hiding) -> StepOutcome:
        """Run the user's code, and store what it leaves."""
        instance: Any = object.__new__(self.flow)
        state = TaskState(
            request,
            values,
            instance,
            max_num_splits=self.settings["run.max_num_splits"],
            constants=self.constants,
        )
        instance.__dict__["_mlp"] = state
        handle = Handle(request, self.graph, self._options(request.key.step), self.settings, values)
        handle.hiding = hiding
        with _task_facts(request, state, self.graph) as facts:
            handle.facts = facts
            failure = request.caught or self._call(request, instance, state, handle)
            if failure is None:
                return self._succeed(request, state, handle)
            # One that was asked to end is not caught here: the driver knows whether its time or the whole run is over.
            if request.catches and failure.kind != "cancelled":
                return self._catch(request, state, handle, failure)
        return StepOutcome(
            "failed", failure=failure, reads=tuple(sorted(state.reads)), attachments=tuple(handle.attachments)
        )

    def _call(self, request: StepRequest, instance: Any, state: TaskState, handle: Handle) -> Failure | None:
        """Enter the wraps and run the step's function; return why it failed, if it did, without the secrets."""
        step = getattr(instance, request.key.step)
        arguments = (state.inputs,) if request.node.is_join else ()
        try:
            wraps = [] if self.is_rehearsal else self.hooks.wraps(handle)
        except Exception as error:  # noqa: BLE001 # whatever a plugin raises is this attempt's failure
            return _plugin_failure(error)
        is_silent = request.catches and not request.print_exception
        # An exception may have a secret anywhere in it: where there are some, it is told and not stored.
        values = None if handle.hiding.masker else state.values
        failure = _run_wrapped(wraps, lambda: step(*arguments), values, is_silent=is_silent)
        return handle.hiding.failure(failure) if failure is not None else None

    def _succeed(self, request: StepRequest, state: TaskState, handle: Handle) -> StepOutcome:
        """Store the artifacts of a step that came to its end."""
        try:
            if request.catch_variable is not None:
                state.set(request.catch_variable, None)
            assigned = state.collect(request.formats)
            transition = state.finish_transition(assigned, self.settings["run.inline_bytes"])
        except (MlpError, TransitionError) as error:
            kind: FailureKind = "exception" if isinstance(error, TransitionError) else "artifact"
            print(f"error: {error}", file=sys.stderr)  # noqa: T201 # the task's log is where its author looks
            failure = handle.hiding.failure(Failure(kind, one_line(error), type=type(error).__name__))
            if request.catches and kind == "artifact":
                return self._catch(request, state, handle, failure)
            return StepOutcome(
                "failed", failure=failure, reads=tuple(sorted(state.reads)), attachments=tuple(handle.attachments)
            )
        return StepOutcome(
            "succeeded",
            assigned=assigned,
            removed=tuple(sorted(state.removed)),
            transition=transition,
            reads=tuple(sorted(state.reads)),
            attachments=tuple(handle.attachments),
        )

    def _catch(self, request: StepRequest, state: TaskState, handle: Handle, failure: Failure) -> StepOutcome:
        """Turn a final failure into a result: what was assigned before it stays, the failure is an artifact."""
        if request.catch_variable is not None:
            state.set(request.catch_variable, CaughtFailure.of(failure))
        return StepOutcome(
            "caught",
            assigned=state.collect(request.formats, lenient=True),
            removed=tuple(sorted(state.removed)),
            transition=Transition(request.node.next),
            failure=failure,
            reads=tuple(sorted(state.reads)),
            attachments=tuple(handle.attachments),
        )

    def _options(self, step: str) -> tuple[object, ...]:
        """Return the options that are recorded on a step, the flow's own first."""
        function = getattr(self.flow, step)
        return (*getattr(self.flow, OPTIONS_ATTRIBUTE, ()), *getattr(function, OPTIONS_ATTRIBUTE, ()))


class Handle:
    """The running step, as wraps see it (the contract's `StepHandle`)."""

    def __init__(
        self,
        request: StepRequest,
        graph: FlowGraph,
        options: Sequence[object],
        settings: Mapping[str, Any],
        values: Values,
    ) -> None:
        """Make the handle."""
        self.run: RunContext = request.run
        self.key: TaskKey = request.key
        self.attempt: int = request.attempt
        self.node: StepNode = request.node
        self.graph = graph
        self.options = options
        self.settings = settings
        self.hiding = Hiding()
        self.facts: dict[str, Any] = {}
        self._values = values
        self._attached: dict[tuple[str, str], Attachment] = {}
        self._live: set[tuple[str, str]] = set()

    @property
    def attachments(self) -> list[Attachment]:
        """What was attached."""
        return list(self._attached.values())

    def attach(self, kind: str, name: str, content: bytes, *, live: bool = False) -> None:
        """Store a report; a later one of the same kind and name takes the place of a live one.

        It is visible once the attempt has ended.

        Raises
        ------
        ValueError
            Where there is one that is not live.
        """
        if (kind, name) in self._attached and (kind, name) not in self._live:
            raise ValueError(f"there is already a {kind} named {name!r}; only live ones can be replaced")
        self._attached[kind, name] = Attachment(kind, name, self._values.put_bytes(self.hiding.content(content)))
        if live:
            self._live.add((kind, name))
        else:
            self._live.discard((kind, name))

    def set_current(self, name: str, value: object) -> None:
        """Add an attribute to `current`."""
        self.facts[name] = value


def _run_wrapped(
    wraps: Sequence[Wrap], body: Callable[[], None], values: Values | None, *, is_silent: bool
) -> Failure | None:
    """Run the user's code inside the wraps, which see what it raises; return why the attempt failed, if it did.

    Unless it is to be silent, the user's traceback is printed to the task's log. What a wrap raises is blamed on it,
    unless the body had failed before.
    """
    failure: Failure | None = None
    try:
        with contextlib.ExitStack() as stack:
            for wrap in wraps:
                stack.enter_context(wrap.context)
            asked: list[int] = []
            try:
                with _interruptible(asked):
                    body()
            except BaseException as error:
                # Whatever the step raised while it was being ended, that it was ended is the reason.
                if asked or isinstance(error, StepInterrupted | KeyboardInterrupt):
                    failure = Failure("cancelled", "the step was asked to end")
                else:
                    failure = _user_failure(error, values, is_silent=is_silent)
                raise
    except BaseException as error:
        if failure is not None:  # SystemExit is a failed attempt too
            return failure
        if isinstance(error, Exception):
            return _plugin_failure(error)
        raise
    return None


def _user_failure(error: BaseException, values: Values | None, *, is_silent: bool) -> Failure:
    """Return the failure that an exception of the step is."""
    text = user_traceback(error)
    if not is_silent:
        sys.stderr.write(text)
    return describe_exception(error, text, values)


def _plugin_failure(error: Exception) -> Failure:
    """Return the failure that a plugin's exception is."""
    text = user_traceback(error)
    sys.stderr.write(text)
    message = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
    notes = "; ".join(getattr(error, "__notes__", ()))
    return Failure("plugin", f"{message} ({notes})" if notes else message, type=type(error).__name__, traceback=text)


@contextlib.contextmanager
def _interruptible(asked: list[int]) -> Iterator[None]:
    """Turn the request to end into an exception, so that the step's ``finally`` blocks run; note it in `asked`."""
    if threading.current_thread() is not threading.main_thread() or os.environ.get("MLP_WORKER_FD") is None:
        yield
        return

    def interrupt(number: int, _frame: object) -> None:
        asked.append(number)
        raise StepInterrupted

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _task_facts(request: StepRequest, state: TaskState, graph: FlowGraph) -> Iterator[dict[str, Any]]:
    """Fill `current` for the time of the task."""
    run, key = request.run, request.key
    folder: list[str] = []

    def tempdir() -> str:
        if not folder:
            import tempfile

            folder.append(tempfile.mkdtemp(prefix="mlp-task-"))
        return folder[0]

    facts = {
        "flow_name": run.flow,
        "run_id": run.run_id,
        "step_name": key.step,
        "task_id": key.task_id,
        "pathspec": f"{run.flow}/{run.run_id}/{key.path}",
        "namespace": run.namespace,
        "username": run.username,
        "tags": frozenset(run.tags),
        "retry_count": request.attempt,
        "attempt": request.attempt,
        "origin_run_id": run.origin_run_id,
        "project_name": run.project.get("name"),
        "branch_name": run.project.get("branch"),
        "project_flow_name": run.project.get("flow_name"),
        "is_production": run.project.get("production") == "true",
        "trigger": run.trigger or None,
        "foreach_stack": state.foreach_stack,
        "tempdir": tempdir,
        "parallel": None,
        "graph": graph,
    }
    try:
        with current.task(facts) as live:
            yield live
    finally:
        if folder:
            import shutil

            shutil.rmtree(folder[0], ignore_errors=True)
