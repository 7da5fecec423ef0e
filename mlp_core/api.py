"""What users write flows with: `FlowSpec`, `step`, and `run`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, overload

from mlp_core.loading import MARK, reserved_names
from mlp_core.names import artifact

# Every worker imports this module for the flow's sake: what drives and reads runs is imported by who does that.
if TYPE_CHECKING:
    from mlp_core.client import Run
    from mlp_core.runner import RunResult
    from mlp_core.worker.inputs import Input, Inputs
    from mlp_core.worker.state import TaskState

_F = TypeVar("_F", bound=Callable[..., Any])

STEP_MARK = "__mlp_step__"
"""The attribute that marks a function as a step."""


@overload
def step(function: _F, /) -> _F: ...


@overload
def step(*, start: bool = False, end: bool = False) -> Callable[[_F], _F]: ...


def step(function: _F | None = None, /, *, start: bool = False, end: bool = False) -> _F | Callable[[_F], _F]:
    """Mark a method of a flow as a step.

    Parameters
    ----------
    function : callable
        The method; it takes ``self`` and, for a join, ``inputs``.
    start, end : bool
        Whether the flow begins or ends here; by default the steps named ``start`` and ``end`` do.

    Returns
    -------
    callable
        The method itself.

    Examples
    --------
    >>> from mlp_core import FlowSpec, step
    >>> class Hello(FlowSpec):
    ...     @step
    ...     def start(self):
    ...         self.next(self.end)
    ...
    ...     @step
    ...     def end(self):
    ...         pass
    """

    def mark(method: _F) -> _F:
        setattr(method, STEP_MARK, {"start": start, "end": end})
        return method

    return mark if function is None else mark(function)


class FlowSpec:
    """The base of all flows.

    A subclass is a flow: its methods marked by `step` are the steps, its `Parameter` attributes the parameters, and
    what a step assigns to ``self`` is an artifact that later steps read. Calling the class runs its command line.

    Examples
    --------
    >>> from mlp_core import FlowSpec, Parameter, step
    >>> class Add(FlowSpec):
    ...     alpha = Parameter("alpha", default=2)
    ...
    ...     @step
    ...     def start(self):
    ...         self.total = self.alpha + 1
    ...         self.next(self.end)
    ...
    ...     @step
    ...     def end(self):
    ...         print(self.total)
    """

    _mlp: TaskState

    def __init__(self, use_cli: bool = True) -> None:  # noqa: FBT001, FBT002 # Metaflow's signature
        """Run the flow's command line, as the last line of a flow's file does.

        Parameters
        ----------
        use_cli : bool
            False makes a mere instance, which can do nothing.
        """
        if use_cli:
            from mlp_core import cli

            cli.run_flow_main(type(self), sys.argv[1:])

    @property
    def input(self) -> Any:
        """The item of the innermost foreach; None outside of one."""
        return self._mlp.input

    @property
    def index(self) -> int | None:
        """The position in the innermost foreach; None outside of one."""
        return self._mlp.index

    def foreach_stack(self) -> list[tuple[int, int, Any]]:
        """Return index, count and item of each open foreach, outermost first."""
        return self._mlp.foreach_stack()

    def next(
        self,
        *targets: Callable[..., Any] | Mapping[Any, Callable[..., Any]],
        foreach: str | None = None,
        condition: str | None = None,
        num_parallel: int | None = None,
    ) -> None:
        """Say where the flow goes; the last statement of every step but the end.

        Parameters
        ----------
        *targets : bound methods, or one mapping of values to bound methods
            The steps that follow: one, or several in parallel, or with `condition` the one whose key equals the
            artifact's value.
        foreach : str, optional
            The artifact with the items, for each of which the step runs once.
        condition : str, optional
            The artifact that decides.
        num_parallel : int, optional
            The size of a gang.
        """
        self._mlp.next(targets, foreach, condition, num_parallel)

    def merge_artifacts(
        self, inputs: Inputs | Sequence[Input], exclude: Iterable[str] = (), include: Iterable[str] = ()
    ) -> None:
        """Take over in a join what the branches agree on, by content; values are not loaded.

        Parameters
        ----------
        inputs : Inputs
            The join's inputs. Where a foreach had no items, the artifacts before it are taken.
        exclude : iterable of str
            Names to leave out.
        include : iterable of str
            The only names to take.

        Raises
        ------
        MergeError
            Where branches differ in an artifact that is not set yet, or an included one is missing.
        """
        self._mlp.merge(inputs, include, exclude)

    def __getattr__(self, name: str) -> Any:
        """Load an artifact when it is first read; AttributeError where there is none."""
        state: TaskState | None = self.__dict__.get("_mlp")
        if state is None or name.startswith("__"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return state.load(name)

    def __setattr__(self, name: str, value: object) -> None:
        """Assign an artifact.

        Raises
        ------
        AttributeError
            For the names of parameters, constants and steps, and the platform's own.
        NameRefused
            For other names that no artifact can have.
        """
        state: TaskState | None = self.__dict__.get("_mlp")
        if state is not None:
            if name in state.constants:
                raise AttributeError(f"{name!r} is a parameter or class attribute and cannot be assigned")
            if name in _RESERVED:
                raise AttributeError(f"{name!r} belongs to FlowSpec and cannot be an artifact")
            held = getattr(type(self), name, None)
            if callable(held):
                kind = "step" if hasattr(held, STEP_MARK) else "method"
                raise AttributeError(f"{name!r} is a {kind} of the flow and cannot be an artifact")
            artifact(name)
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        """Remove an artifact; AttributeError where there is none."""
        state: TaskState | None = self.__dict__.get("_mlp")
        if state is None or isinstance(getattr(type(self), name, None), property):
            object.__delattr__(self, name)
            return
        if name in _RESERVED:
            raise AttributeError(f"{name!r} belongs to FlowSpec and cannot be deleted")
        state.delete(name)

    def __getstate__(self) -> NoReturn:
        """Refuse to be pickled, as by a method or function that is stored or sent to another process."""
        raise TypeError("a flow's instance cannot be stored or sent to another process; pass on what it takes of self")


setattr(FlowSpec, MARK, True)

_RESERVED = reserved_names(FlowSpec) | {"_mlp"}


def run(  # noqa: PLR0913 # options of a command, all but the first by keyword
    flow: type[FlowSpec],
    *,
    tags: Sequence[str] = (),
    namespace: str | None = None,
    max_workers: int | None = None,
    max_num_splits: int | None = None,
    with_options: Sequence[str] = (),
    launcher: str | None = None,
    isolation: Literal["fork", "spawn", "inline"] | None = None,
    store: str | Path | None = None,
    quiet: bool = False,
    **parameters: Any,
) -> Run:
    """Run a flow from Python and wait for its end.

    Parameters
    ----------
    flow : type of FlowSpec
        The flow.
    tags : sequence of str
        The run's tags.
    namespace : str, optional
        The namespace; by default the user's.
    max_workers : int, optional
        At most so many tasks at once.
    max_num_splits : int, optional
        The largest foreach.
    with_options : sequence of str
        Options to attach to every step that lacks them: ``["retry:times=2"]``.
    launcher : str, optional
        The launcher of steps that name none.
    isolation : {"fork", "spawn", "inline"}, optional
        How the local launcher keeps tasks apart; ``inline`` runs them in this process.
    store : str or pathlib.Path, optional
        The store; by default the project's.
    quiet : bool
        Whether to print nothing.
    **parameters
        Values of the flow's parameters.

    Returns
    -------
    Run
        The run, to be read.

    Raises
    ------
    UsageError
        Where anything is refused before the first task starts.
    RunFailed
        Where tasks failed; `run_id` tells the run.
    """
    from mlp_core.cli.progress import choose_progress
    from mlp_core.client import client_for
    from mlp_core.errors import UsageError
    from mlp_core.runner import RunOptions, run_flow
    from mlp_core.session import Session

    given: object = flow
    if not (isinstance(given, type) and getattr(given, MARK, False)):
        raise UsageError(f"run takes a flow's class, not {given!r:.60}", hint="a flow is a class based on FlowSpec")
    options = RunOptions(
        parameters=parameters,
        # A text alone is one tag, not the tags of its letters.
        tags=(tags,) if isinstance(tags, str) else tuple(tags),
        namespace=namespace,
        max_workers=max_workers,
        max_num_splits=max_num_splits,
        with_options=(with_options,) if isinstance(with_options, str) else tuple(with_options),
        launcher=launcher,
        isolation=isolation,
    )
    flags = options.flags()
    if store is not None:
        flags["store"] = str(store)
    session = Session.open(start=_home_of(flow), flags=flags)
    result = run_flow(flow, session, options, choose_progress(quiet=quiet, as_json=False))
    _raise_unless_succeeded(result)
    return client_for(session).run(f"{result.flow}/{result.run_id}")


def _raise_unless_succeeded(result: RunResult) -> None:
    """Raise for a run that did not succeed."""
    if result.status == "succeeded":
        return
    from mlp_core.errors import RunCancelled, RunFailed

    kind = RunCancelled if result.status == "cancelled" else RunFailed
    error = kind(f"run {result.flow}/{result.run_id} {result.status}: {result.message}")
    error.run_id = result.run_id
    raise error


def _home_of(flow: type[Any]) -> Path | None:
    """Return the file that defines a flow, where there is one."""
    file = getattr(sys.modules.get(flow.__module__), "__file__", None)
    return Path(file) if file and Path(file).is_file() else None
