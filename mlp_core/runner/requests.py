"""How a ready task becomes a request for a launcher: inputs, code, environment, variables."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mlp_core.contents import take_out
from mlp_hookspecs import (
    ArtifactRef,
    CodeRef,
    EnvironmentLock,
    Failure,
    LaunchRequest,
    PlannedStep,
    PluginId,
    ProvisionedEnvironment,
    Resources,
    RunContext,
    StepRequest,
    TaskInput,
    WorkerCommand,
)

if TYPE_CHECKING:
    from mlp_core.scheduler import ReadyTask

ENTRY = "mlp_core.worker:prepare"
"""The worker's entry for launchers that keep warm processes."""

STORE_VARIABLE = "MLP_STORE"
"""The environment variable of the setting ``store``."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
"""What numeric libraries read to size their thread pools."""

_LIBRARY = re.compile(r"/lib(64)?/python")

# Writing no bytecode would make every worker compile what it imports: three times the start-up of numpy and pandas.
UNSET = ("PYTHONDONTWRITEBYTECODE",)


@attrs.frozen(eq=False, repr=False)
class StepSetup:
    """What all tasks of a step have in common.

    Attributes
    ----------
    planned : PlannedStep
        The step and its plan.
    launcher : str
        The launcher that runs it.
    lock : EnvironmentLock or None
        Its environment; None for the driver's interpreter.
    environment : ProvisionedEnvironment or None
        The environment on this host, where the launcher runs here.
    closure : str
        The folder with the platform's own packages, for environments without them; else empty.
    """

    planned: PlannedStep
    launcher: str
    lock: EnvironmentLock | None = None
    environment: ProvisionedEnvironment | None = None
    closure: str = ""

    @property
    def max_retries(self) -> int:
        """How many attempts may follow the first."""
        retry = self.planned.plan.retry
        return retry.times if retry else 0


@attrs.frozen(eq=False, repr=False)
class RunSetup:
    """What all tasks of a run have in common.

    Attributes
    ----------
    run : RunContext
        The run.
    code : CodeRef
        The flow's code.
    store : str
        The store's URL.
    parameters : mapping of str to ArtifactRef
        Parameters and constants.
    plugins : tuple of PluginId
        What workers must have.
    settings : mapping of str to JSON
        What workers' plugins read.
    cwd : str
        The working folder.
    """

    run: RunContext
    code: CodeRef
    store: str
    parameters: Mapping[str, ArtifactRef]
    plugins: tuple[PluginId, ...]
    settings: Mapping[str, Any]
    cwd: str


def launch_request(
    setup: RunSetup,
    step: StepSetup,
    task: ReadyTask,
    inputs: tuple[tuple[TaskInput, ...], TaskInput | None],
    attempt: tuple[int, Failure | None],
) -> LaunchRequest:
    """Return the request for one attempt.

    Parameters
    ----------
    setup : RunSetup
        What all tasks of the run have in common.
    step : StepSetup
        What all tasks of the step have in common.
    task : ReadyTask
        The task.
    inputs : tuple
        The finished tasks that it reads from, and the opening task where it joins an empty foreach.
    attempt : tuple of int and Failure or None
        The attempt's number; the failure that it stands in for, where the user's code is not to run again.

    Returns
    -------
    LaunchRequest
        The request.
    """
    plan = step.planned.plan
    number, caught = attempt
    reads_from, contents = take_out(inputs[0]) if len(inputs[0]) > 1 else (inputs[0], {})
    request = StepRequest(
        run=setup.run,
        key=task.key,
        attempt=number,
        node=step.planned.node,
        code=setup.code,
        store=setup.store,
        inputs=reads_from,
        split=inputs[1],
        parameters=setup.parameters,
        frames=task.frames,
        max_retries=step.max_retries,
        catch_variable=plan.catch.variable if plan.catch else None,
        catches=plan.catch is not None and number >= step.max_retries,
        print_exception=plan.catch.print_exception if plan.catch else True,
        caught=caught,
        formats=plan.formats,
        plugins=setup.plugins,
        settings=setup.settings,
        lock=step.lock,
        variables=plan.variables,
        secrets=plan.secrets,
        contents=contents,
    )
    return LaunchRequest(
        id=request.id,
        step=request,
        command=worker_command(step, store=setup.store, cwd=setup.cwd),
        resources=plan.resources or Resources(),
        options=plan.launcher_options,
    )


def worker_command(step: StepSetup, *, store: str, cwd: str) -> WorkerCommand:
    """Return how to start a worker for a step."""
    plan = step.planned.plan
    variables = thread_variables(plan.resources or Resources())
    variables["MLP_WORKER_PATH"] = os.pathsep.join(extra_path()) if step.lock is None else ""
    python = sys.executable
    if step.environment is not None:
        python = step.environment.python
        variables.update(step.environment.variables)
    if step.closure:
        variables["PYTHONPATH"] = step.closure
    # The client finds the run's own store inside a step, wherever the step's working folder is.
    variables[STORE_VARIABLE] = store
    variables.update(plan.variables)
    module = "mlp_core.worker" if step.lock is None or step.environment is not None else "mlp_core.agent"
    # -P: the working folder's files must not hide the platform's modules.
    argv = (python, "-P", "-m", module)
    return WorkerCommand(argv, variables, unset=UNSET, cwd=cwd, entry=ENTRY)


def expected_commands(steps: Mapping[str, StepSetup], *, store: str) -> dict[str, list[WorkerCommand]]:
    """Return the first commands, by launcher, of steps in environments on this host; no more than there are cores.

    Parameters
    ----------
    steps : mapping of str to StepSetup
        The steps, in the order of the graph.
    store : str
        The store's URL.
    """
    found: dict[str, list[WorkerCommand]] = {}
    left = os.cpu_count() or 1
    for step in steps.values():
        if step.environment is None:
            continue
        command = worker_command(step, store=store, cwd=str(Path.cwd()))
        commands = found.setdefault(step.launcher, [])
        if left > 0 and command not in commands:
            commands.append(command)
            left -= 1
    return found


def thread_variables(resources: Resources) -> dict[str, str]:
    """Return variables that keep numeric libraries to the cores that a task asked for, unless the user set them."""
    cores = str(max(1, int(resources.cpu)))
    return {name: cores for name in THREAD_VARIABLES if name not in os.environ}


def extra_path() -> list[str]:
    """Return the folders on this process's path that a fresh interpreter would not have, in order and absolute."""
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return [
        str(Path(folder).absolute()) for folder in sys.path if folder and folder not in given and not _is_own(folder)
    ]


def _is_own(folder: str) -> bool:
    """Tell whether a folder of the path belongs to the interpreter: the standard library, or what is installed."""
    is_inside = any(folder.startswith(f"{prefix}{os.sep}") for prefix in (sys.prefix, sys.base_prefix))
    return is_inside and _LIBRARY.search(folder) is not None
