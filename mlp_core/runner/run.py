"""How a flow becomes a run: freeze everything, record it, drive it, and tell how it ended."""

from __future__ import annotations

import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs

from mlp_core import names
from mlp_core.errors import ArtifactError, FlowError, ParameterError, UsageError
from mlp_core.loading import IMPORTING, class_constants, code_ref
from mlp_core.parameters import parameters_of, resolve, to_text
from mlp_core.runner.driver import Driver
from mlp_core.runner.ending import TaskFailure
from mlp_core.runner.environments import LateEnvironments, StepEnvironments
from mlp_core.runner.inbox import Inbox
from mlp_core.runner.launchers import Launchers
from mlp_core.runner.observing import observers
from mlp_core.runner.package import build_package
from mlp_core.runner.planning import CheckedFlow, check_flow
from mlp_core.runner.requests import RunSetup, expected_commands
from mlp_core.runner.reuse import Reuse
from mlp_core.runner.run_id_file import clear_run_id_file, write_run_id_file
from mlp_core.store.records import Note, RunBegan
from mlp_core.store.state import RunState
from mlp_hookspecs import ArtifactRef, CodeRef, EnvironmentLock, RunContext, frozen_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlp_core.runner.progress import Progress
    from mlp_core.session import Session
    from mlp_core.store import RunWriter, Store
    from mlp_core.values import Values


@attrs.frozen(eq=False, repr=False)
class RunOptions:
    """What a run is asked to be.

    Attributes
    ----------
    parameters : mapping of str to object
        Values of parameters that are given, by name; as text where `from_text` is set.
    from_text : bool
        Whether the values are text from a command line.
    tags : tuple of str
        The run's tags.
    namespace : str or None
        The namespace; by default the user's.
    max_workers : int or None
        At most so many tasks at once.
    max_num_splits : int or None
        The largest foreach.
    with_options : tuple of str
        Options to attach, as ``--with`` gives them.
    launcher : str or None
        The launcher of steps that name none.
    isolation : {"fork", "spawn", "inline"} or None
        How the local launcher separates tasks.
    run_id_file : pathlib.Path or None
        Where to write the run's id.
    origin : RunState or None
        The run to resume.
    resume_from : str or None
        The step to resume from.
    trigger : mapping of str to object
        The event that started the run.
    command : tuple of str
        The command line, for the record.
    code : CodeRef or None
        The code's recorded package, for a flow that was frozen before; by default the project as it is.
    locks : mapping of str to EnvironmentLock
        Environments that were resolved before, by step.
    owns_process : bool
        Whether this process does nothing but run the flow, so that it may be forked.
    """

    parameters: Mapping[str, object] = attrs.field(factory=dict, converter=frozen_map)
    from_text: bool = False
    tags: tuple[str, ...] = ()
    namespace: str | None = None
    max_workers: int | None = None
    max_num_splits: int | None = None
    with_options: tuple[str, ...] = ()
    launcher: str | None = None
    isolation: Literal["fork", "spawn", "inline"] | None = None
    run_id_file: Path | None = None
    origin: RunState | None = None
    resume_from: str | None = None
    trigger: Mapping[str, object] = attrs.field(factory=dict, converter=frozen_map)
    command: tuple[str, ...] = ()
    code: CodeRef | None = None
    locks: Mapping[str, EnvironmentLock] = attrs.field(factory=dict, converter=frozen_map)
    owns_process: bool = False

    def flags(self) -> dict[str, object]:
        """Return the settings that these options stand for."""
        given = {
            "run.max_workers": self.max_workers,
            "run.max_num_splits": self.max_num_splits,
            "run.launcher": self.launcher,
            "local.isolation": self.isolation,
            "local.fork_driver": self.owns_process or None,
        }
        return {name: value for name, value in given.items() if value is not None}


@attrs.frozen(eq=False, repr=False)
class RunResult:
    """How a run ended.

    Attributes
    ----------
    flow : str
        The flow's name.
    run_id : str
        The run's id.
    status : {"succeeded", "failed", "cancelled"}
        How it ended.
    message : str
        One line on the reason of a failure.
    failures : tuple of TaskFailure
        Every task that failed for good.
    signal : int
        The number of the signal that asked the run to end; 0 where none did.
    """

    flow: str
    run_id: str
    status: Literal["succeeded", "failed", "cancelled"]
    message: str = ""
    failures: tuple[TaskFailure, ...] = ()
    signal: int = 0


def run_flow(flow: type[Any], session: Session, options: RunOptions, progress: Progress) -> RunResult:
    """Run a flow to its end.

    Parameters
    ----------
    flow : type
        The flow's class.
    session : Session
        The project; its settings already reflect `RunOptions.flags`.
    options : RunOptions
        What is asked for.
    progress : Progress
        Where to report.

    Returns
    -------
    RunResult
        How it ended; failed tasks are no exception here.

    Raises
    ------
    UsageError
        Where anything is refused before the first task starts.
    RunLocked
        Where the run to resume is under way.
    StoreError
        Where the store fails, or somebody else has taken the run over.
    """
    if os.environ.get(IMPORTING):
        raise UsageError(
            f"the file that defines {flow.__name__} starts a run when it is imported",
            hint='put the call under: if __name__ == "__main__":',
        )
    _check_names(session, options)
    if options.run_id_file is not None:
        clear_run_id_file(options.run_id_file)
    checked = check_flow(flow, session, options.with_options)
    if options.resume_from is not None and options.resume_from not in checked.graph:
        raise UsageError(
            f"there is no step {names.shown(options.resume_from)} to resume from",
            hint=f"the steps are {', '.join(node.name for node in checked.graph.steps)}",
        )
    with ExitStack() as stack:
        # First of all: a launcher that forks needs a process without threads and locks, and one that cannot be
        # reached is told before anything is written.
        launchers = stack.enter_context(Launchers(session.hooks, session.settings, Inbox()))
        launchers.open(step.plan.launcher or session.settings["run.launcher"] for step in checked.steps)
        # Before there is a store: a mistyped parameter leaves none behind.
        resolved = resolve_parameters(flow, session, options)
        store = session.open_store(create=True)
        options = _taken_over(options, store)
        if options.origin is not None:
            store.require_signed(options.origin)
        environments = StepEnvironments(session, known=options.locks)
        stack.callback(environments.close)
        prepared = environments.prepare(checked)
        # An interpreter of its own takes longer to start than all that is left to do here.
        for name, commands in expected_commands(prepared.steps, store=store.url).items():
            launchers.expect(name, commands)
        frozen = freeze(checked, session, options, session.values(store), resolved)
        with _signals_to(launchers.inbox.signalled) as signals:
            writer = begin_run(checked, session, options, store, frozen)
            run = writer.began.run
            with ExitStack() as begun:
                begun.callback(writer.close)
                # They end when the run has, or when its writer has let go of it.
                stack.enter_context(observers(session, run, store.url))
                stack.push(begun.pop_all())
            if options.run_id_file is not None:
                write_run_id_file(options.run_id_file, run.run_id)
            progress.run_started(run, checked.graph, store.url)
            writer.write(prepared.records, sync=False)
            for note in prepared.notes:
                writer.write([Note("environment", note, time.time())], sync=False)
                progress.note(note)
            driver = Driver(
                graph=checked.graph,
                setup=run_setup(session, run, frozen, store.url),
                steps=prepared.steps,
                writer=writer,
                launchers=launchers,
                max_workers=session.settings["run.max_workers"],
                progress=progress,
                reuse=Reuse(options.origin, options.resume_from, store.blobs()),
                late=LateEnvironments(environments, launchers.inbox, run, frozen.texts),
            )
            try:
                ending = driver.run()
            except BaseException:
                # First of all: of a driver that may commit nothing more, nobody is to go on working.
                launchers.close()
                raise
    number = signals[0] if signals else 0
    return RunResult(run.flow, run.run_id, ending.status, ending.message, ending.failures, number)


def _taken_over(options: RunOptions, store: Store) -> RunOptions:
    """Put an end to the run that is resumed where its driver is gone; RunLocked where it is there."""
    origin = options.origin
    if origin is None or origin.ended is not None:
        return options
    return attrs.evolve(options, origin=store.fence(origin.context.flow, origin.context.run_id))


def _check_names(session: Session, options: RunOptions) -> None:
    """Refuse names before anything is written."""
    for tag in options.tags:
        names.tag(tag)
    if options.namespace:
        names.tag(options.namespace, "namespace")
    session.username  # noqa: B018 # refused here, before anything is written


@attrs.frozen(eq=False, repr=False)
class Frozen:
    """What does not change any more once a run begins.

    Attributes
    ----------
    parameters : mapping of str to ArtifactRef
        Parameters and constants, by attribute name.
    texts : mapping of str to str
        Parameters as text, by attribute name.
    code : CodeRef
        The flow's code, with its package.
    """

    parameters: Mapping[str, ArtifactRef]
    texts: Mapping[str, str]
    code: CodeRef


def resolve_parameters(
    flow: type[Any], session: Session, options: RunOptions, *, leave_required: bool = False
) -> Mapping[str, object] | None:
    """Return the values of a run's parameters by attribute name; None for a run that takes over another's.

    Parameters
    ----------
    flow : type
        The flow.
    session : Session
        The project.
    options : RunOptions
        What is given.
    leave_required : bool
        Whether required parameters that are not given are left out rather than refused.

    Raises
    ------
    ParameterError
        Where a parameter is missing or refused.
    """
    if options.origin is not None:
        return None
    return resolve(
        flow,
        options.parameters,
        from_text=options.from_text,
        user_name=session.username,
        leave_required=leave_required,
    )


def freeze(
    checked: CheckedFlow,
    session: Session,
    options: RunOptions,
    values: Values,
    resolved: Mapping[str, object] | None,
) -> Frozen:
    """Store parameters, the constants and the code.

    Parameters
    ----------
    checked : CheckedFlow
        The planned flow.
    session : Session
        The project.
    options : RunOptions
        The run that is resumed, and the code where it was frozen before.
    values : Values
        Where to store.
    resolved : mapping of str to object, or None
        What `resolve_parameters` returned.

    Raises
    ------
    ParameterError
        Where the run that is resumed cannot give its parameters.
    """
    flow = checked.flow
    if resolved is None:
        refs, texts = _origin_parameters(flow, options)
    else:
        refs = {name: _stored(flow, name, value, values) for name, value in resolved.items()}
        texts = {name: to_text(value) for name, value in resolved.items()}
    for name, value in class_constants(flow).items():
        refs[name] = _stored(flow, name, value, values)
    code = options.code or code_ref(flow, session.root)
    if code.pickled is None and code.package is None:
        package = values.put_bytes(build_package(Path(code.root), session.settings, store=session.store_url))
        code = attrs.evolve(code, package=package)
    values.sync()
    return Frozen(refs, texts, code)


def _stored(flow: type[Any], name: str, value: object, values: Values) -> ArtifactRef:
    """Store a class attribute or a parameter's value; FlowError where that cannot be done."""
    try:
        return values.put(name, value)
    except ArtifactError as error:
        file = getattr(sys.modules.get(flow.__module__), "__file__", None) or ""
        hint = "make it in the step that uses it, or outside of the class"
        raise FlowError(error.message, file=file, hint=hint) from error


def _origin_parameters(flow: type[Any], options: RunOptions) -> tuple[dict[str, ArtifactRef], dict[str, str]]:
    """Return the parameters of the run that is resumed, which stay as they were."""
    origin = options.origin
    if origin is None:
        return {}, {}
    if options.parameters:
        given = ", ".join(options.parameters)
        raise ParameterError(
            f"a resumed run keeps its parameters, but {given} was given",
            hint="start a new run to change a parameter",
        )
    known = parameters_of(flow)
    missing = [name for name in known if name not in origin.began.parameters]
    if missing:
        raise ParameterError(
            f"run {origin.context.flow}/{origin.context.run_id} has no parameter {missing[0]!r}: it was added later",
            hint="start a new run",
        )
    refs = {name: origin.began.parameters[name] for name in known}
    return refs, {n: t for n, t in origin.began.parameter_texts.items() if n in known}


def begin_run(  # noqa: PLR0913 # what a run is made of
    checked: CheckedFlow,
    session: Session,
    options: RunOptions,
    store: Store,
    frozen: Frozen,
    *,
    has_driver: bool = True,
) -> RunWriter:
    """Create the run in the store."""
    username = session.username
    tags = tuple(dict.fromkeys(options.tags))
    origin = options.origin.context.run_id if options.origin is not None else None

    uname = os.uname()

    def began(run_id: str) -> RunBegan:
        return RunBegan(
            run=RunContext(
                flow=checked.graph.flow,
                run_id=run_id,
                username=username,
                namespace=options.namespace if options.namespace is not None else f"user:{username}",
                tags=tags,
                origin_run_id=origin,
                trigger=options.trigger,
            ),
            time=time.time(),
            host=uname.nodename,
            pid=os.getpid(),
            graph=checked.graph,
            parameters=frozen.parameters,
            parameter_texts=frozen.texts,
            code=frozen.code,
            plugins=tuple(record.id for record in session.hooks.records if record.in_force),
            settings=session.settings.portable(),
            steps=checked.steps,
            command=options.command,
            metadata={
                "python": platform.python_version(),
                "platform": f"{uname.sysname} {uname.release} {uname.machine}",
                "executable": sys.executable,
            },
            has_driver=has_driver,
            lease_seconds=session.settings["run.lease_seconds"],
        )

    return store.create_run(began, time.time(), log_limit=session.settings["run.log_bytes"])


def run_setup(session: Session, run: RunContext, frozen: Frozen, store_url: str) -> RunSetup:
    """Return what all tasks of a run have in common."""
    return RunSetup(
        run=run,
        code=frozen.code,
        store=store_url,
        parameters=frozen.parameters,
        plugins=session.hooks.worker_plugins(),
        settings=session.settings.portable(),
        cwd=str(Path.cwd()),
    )


@contextmanager
def _signals_to(handle: Callable[[int], None]) -> Iterator[list[int]]:
    """Hand SIGINT and SIGTERM to the driver, where this thread may; yield the list of those that came."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def note(number: int, _frame: object) -> None:
        came.append(number)
        handle(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
