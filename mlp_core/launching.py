"""How a flow's command is run from Python as a process of its own: `Runner`, for tests, services and notebooks."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Self

from mlp_core.client import client_for
from mlp_core.errors import NotFound, UsageError
from mlp_core.parameters import to_text
from mlp_core.session import Session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from mlp_core.client import Run

_END_SECONDS = 10.0


class ExecutingRun:
    """A run that was started in a process of its own.

    Attributes
    ----------
    command : tuple of str
        The command line.
    process : subprocess.Popen
        The process.
    """

    def __init__(
        self, command: Sequence[str], process: subprocess.Popen[str], place: _Place, *, show_output: bool
    ) -> None:
        """Begin to collect what the process prints."""
        self.command = tuple(command)
        self.process = process
        self._place = place
        self._collected: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._threads = [
            threading.Thread(target=self._collect, args=(name, stream, shown if show_output else None), daemon=True)
            for name, stream, shown in (("stdout", process.stdout, sys.stdout), ("stderr", process.stderr, sys.stderr))
        ]
        for thread in self._threads:
            thread.start()

    def wait(self, timeout: float | None = None) -> Self:
        """Wait for the end.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most.

        Returns
        -------
        ExecutingRun
            This object.

        Raises
        ------
        TimeoutError
            Where the time is over first; the run goes on.
        """
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the run was not over after {timeout:g} s: {' '.join(self.command)}") from None
        for thread in self._threads:
            thread.join()
        return self

    def terminate(self) -> None:
        """Ask the run to end, wait for that, and kill what is left."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.wait()

    @property
    def returncode(self) -> int | None:
        """The exit status; None while the run goes on."""
        return self.process.poll()

    @property
    def status(self) -> Literal["running", "successful", "failed"]:
        """Where the run stands."""
        code = self.returncode
        return "running" if code is None else "successful" if code == 0 else "failed"

    @property
    def stdout(self) -> str:
        """What was printed so far."""
        return "".join(self._collected["stdout"])

    @property
    def stderr(self) -> str:
        """What was printed on the standard error so far."""
        return "".join(self._collected["stderr"])

    @property
    def run(self) -> Run:
        """The run, to be read.

        Raises
        ------
        UsageError
            Where it has not begun, or was refused; the message has what the command printed.
        NotFound
            Where it is not in the store any more.
        """
        return self._place.run(self.stderr)

    def _collect(self, name: str, stream: IO[str], shown: IO[str] | None) -> None:
        """Read one stream to its end."""
        for line in stream:
            self._collected[name].append(line)
            if shown is not None:
                shown.write(line)
        stream.close()


class _Place:
    """Where a started run can be found."""

    def __init__(self, folder: Path, session: Session) -> None:
        self.run_id_file = folder / "run_id"
        self._session = session

    def run(self, said: str) -> Run:
        """Return the run; UsageError with what the command said where there is none."""
        run_id = ""
        with contextlib.suppress(FileNotFoundError):
            run_id = self.run_id_file.read_text(encoding="utf-8").strip()
        # Empty: it is made before the run.
        if not run_id:
            raise UsageError(f"there is no run yet: {said.strip() or 'the command has just started'}")
        store = self._session.open_store(create=False)
        flow = next((flow for flow in store.flows() if run_id in store.run_ids(flow)), None)
        if flow is None:
            raise NotFound(f"there is no run {run_id} in {store.url}", hint="it may have been removed")
        return client_for(self._session).run(f"{flow}/{run_id}")


class Runner:
    """Runs a flow's file by its command line.

    Parameters
    ----------
    flow_file : str or pathlib.Path
        The file.
    show_output : bool
        Whether to pass on what the command prints.
    env : mapping of str to str, optional
        Environment variables for the process.
    cwd : str or pathlib.Path, optional
        Its working folder.
    **settings
        Settings by name, with underscores for dots: ``store="/data/store"``.

    Examples
    --------
    >>> from mlp_core import Runner
    >>> with Runner("flow.py") as runner:  # doctest: +SKIP
    ...     result = runner.run(alpha=0.1, tags=["nightly"])
    ...     print(result.status, result.run.data.score)
    """

    def __init__(
        self,
        flow_file: str | Path,
        *,
        show_output: bool = True,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        **settings: object,
    ) -> None:
        """Prepare; nothing is started yet."""
        self.flow_file = Path(cwd or ".", flow_file).resolve()
        if not self.flow_file.is_file():
            raise UsageError(f"there is no file {str(flow_file)!r}", hint="give the path of a flow's file")
        self._show_output = show_output
        self._environment = {**os.environ, **(env or {})}
        self._cwd = cwd
        self._settings = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        self._session = Session.open(start=self.flow_file, flags={n.replace("_", "."): v for n, v in settings.items()})
        self._folders = contextlib.ExitStack()
        self._started: list[ExecutingRun] = []

    def run(self, **options: Any) -> ExecutingRun:
        """Run the flow and wait for its end.

        Parameters
        ----------
        **options
            The flow's parameters, and ``tags``, ``max_workers``, ``max_num_splits``, ``namespace``, ``launcher``,
            ``isolation``, ``with_options`` as for `mlp_core.run`.

        Returns
        -------
        ExecutingRun
            The finished run, succeeded or not.
        """
        return self.start("run", **options).wait()

    def resume(self, step: str | None = None, *, origin_run_id: str | None = None, **options: Any) -> ExecutingRun:
        """Run the flow again without what succeeded in an earlier run, and wait for its end.

        Parameters
        ----------
        step : str, optional
            The step to begin with.
        origin_run_id : str, optional
            The earlier run; by default the newest.
        **options
            As for `run`, without parameters.
        """
        arguments = [step] if step else []
        if origin_run_id is not None:
            arguments.append(f"--origin-run-id={origin_run_id}")
        return self.start("resume", *arguments, **options).wait()

    def start(self, command: Literal["run", "resume"], *arguments: str, **options: Any) -> ExecutingRun:
        """Start a command and return at once; options as for `run`."""
        folder = Path(self._folders.enter_context(tempfile.TemporaryDirectory(prefix="mlp-runner-")))
        place = _Place(folder, self._session)
        words = [
            *(sys.executable, "-m", "mlp_core.cli", command, str(self.flow_file), *arguments),
            f"--run-id-file={place.run_id_file}",
            *self._settings,
            *_words(options),
        ]
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment,
            cwd=self._cwd,
            text=True,
        )
        started = ExecutingRun(words, process, place, show_output=self._show_output)
        self._started.append(started)
        return started

    def cleanup(self) -> None:
        """End what still runs, and remove temporary files."""
        for started in self._started:
            started.terminate()
        self._folders.close()

    def __enter__(self) -> Self:
        """Return the runner."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Clean up."""
        self.cleanup()


def _words(options: Mapping[str, Any]) -> list[str]:
    """Return options and parameters as words of a command line."""
    words: list[str] = []
    for name, value in options.items():
        if name == "tags":
            words += [f"--tag={tag}" for tag in value]
        elif name == "with_options":
            words += [f"--with={text}" for text in value]
        elif name in ("max_workers", "max_num_splits", "namespace", "launcher", "isolation"):
            words.append(f"--{name.replace('_', '-')}={value}")
        else:
            words.append(f"--param={name}={to_text(value)}")
    return words
