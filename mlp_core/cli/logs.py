"""How ``mlp logs`` prints what tasks printed, and goes on while they run."""

from __future__ import annotations

import re
import sys
import time
from typing import TYPE_CHECKING, Final

from mlp_core.cli.progress import LogLines
from mlp_core.cli.report import warn
from mlp_core.cli.text import put, put_as_it_is, safe_log, size
from mlp_core.client import client_for
from mlp_core.errors import UsageError
from mlp_core.names import Pathspec
from mlp_core.store.logs import LogReader, log_keys
from mlp_core.store.seal import unlike_sealed_logs
from mlp_hookspecs import TaskKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from mlp_core.cli.arguments import Parser
    from mlp_core.cli.dispatch import Call
    from mlp_core.client.handle import RunHandle
    from mlp_core.client.reader import Client
    from mlp_core.store import LogChunk

_POLL_SECONDS: Final = 0.25
_ATTEMPT_ID: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*/[0-9@~-]+/[0-9]{1,9}")


def logs_arguments(parser: Parser) -> None:
    """Add the options of ``mlp logs``."""
    parser.positional("pathspec", help="a flow (its newest run), run, step or task: Flow, Flow/run, Flow/run/step/0")
    parser.option("-f", "--follow", action="store_true", help="go on printing until the run ends")
    parser.option("--stdout", action="store_true", help="only standard output")
    parser.option("--stderr", action="store_true", help="only standard error")
    parser.option("--attempt", type=int, metavar="N", help="only this attempt, 0 for the first; by default all")
    parser.option("--json", action="store_true", help="print a JSON object a line for each piece")


def logs_command(call: Call) -> int:
    """Print the logs of a run, step or task."""
    args = call.args
    if args.follow and args.attempt is not None:
        raise UsageError("--follow and --attempt exclude each other", hint="follow the task without --attempt")
    client = client_for(call.session)
    client.namespace = None
    spec = Pathspec.parse(args.pathspec)
    handle, step, task_id = _chosen(client, spec)
    streams = [name for name in ("stdout", "stderr") if getattr(args, name)] or ["stdout", "stderr"]
    follower = Follower(handle, step, task_id, args.attempt)
    printer = _JsonPrinter() if args.json else _Printer(prefixed=task_id is None)
    _print(follower, printer, streams, follow=args.follow)
    if step is not None and task_id is not None and not follower.count:
        origin = handle.task(step, task_id).origin
        if origin is not None:
            # Of a task that was taken over, the earlier run has the log.
            spec = Pathspec.parse(origin)
            earlier = Follower(client.handle(spec.flow, str(spec.run_id)), spec.step, spec.task_id)
            _print(earlier, printer, streams, follow=False)
    return 0


def print_logs(run: RunHandle, *, as_json: bool) -> None:
    """Print what a run prints, until it ends."""
    _print(Follower(run), _JsonPrinter() if as_json else _Printer(prefixed=True), ["stdout", "stderr"], follow=True)


def _print(follower: Follower, printer: _Printer, streams: Sequence[str], *, follow: bool) -> None:
    """Print what is found."""
    for chunk in follower.chunks(follow=follow):
        if chunk.stream in streams:
            printer.show(chunk)
    printer.finish()
    damaged = follower.damaged_bytes()
    if damaged:
        warn(f"{size(damaged)} of the log are damaged and were passed over\n  hint: mlp fsck tells what else is")
    elif problem := follower.unlike_sealed():
        warn(f"the log is damaged: {problem}\n  hint: mlp fsck tells what else is")


class Follower:
    """Finds the log pieces of a run, step or task, also those that are still to come.

    Parameters
    ----------
    run : RunHandle
        The run.
    step, task_id : str or None
        What is asked for; None for all.
    attempt : int or None
        Which attempt; None for all.

    Attributes
    ----------
    count : int
        How many pieces were found.
    """

    def __init__(
        self, run: RunHandle, step: str | None = None, task_id: str | None = None, attempt: int | None = None
    ) -> None:
        """Begin at the first piece."""
        self._run = run
        self._prefix = "".join(f"{part}/" for part in (step, task_id) if part is not None)
        self._attempt = attempt
        self._readers: dict[str, tuple[LogReader, int]] = {}
        self.count = 0

    def chunks(self, *, follow: bool) -> Iterator[LogChunk]:
        """Iterate over the pieces in the order of writing; with `follow` until the run ends."""
        while True:
            # Before the logs: the driver lets go of its run when all of them are written.
            is_over = self._run.is_over
            yield from self._new_chunks()
            if is_over or not follow:
                return
            sys.stdout.flush()
            time.sleep(_POLL_SECONDS)

    def _new_chunks(self) -> Iterator[LogChunk]:
        """Iterate over what was written since the last time."""
        objects = self._run.client.store.objects
        for key in log_keys(objects, self._run.flow, self._run.run_id):
            reader, seen = self._readers.get(key) or (LogReader(objects, key), 0)
            reader.refresh()
            self._readers[key] = (reader, reader.count)
            for chunk in reader.chunks(start=seen):
                if self._is_wanted(chunk.attempt_id):
                    self.count += 1
                    yield chunk

    def damaged_bytes(self) -> int:
        """Return how much of what was looked at is damaged; a tail that was never written to its end is not."""
        gaps = (gap for reader, _ in self._readers.values() for gap in reader.gaps())
        return sum(end - start for start, end, is_unfinished in gaps if not is_unfinished)

    def unlike_sealed(self) -> str:
        """Return how the log of a run that has ended differs from what it was then; empty where it does not."""
        run = self._run
        if run.state.ended is None:
            return ""
        return unlike_sealed_logs(run.client.store.objects, run.flow, run.run_id)

    def _is_wanted(self, attempt_id: str) -> bool:
        """Tell whether an attempt is asked for."""
        # What is in a store may be anything.
        if not attempt_id.startswith(self._prefix) or not _ATTEMPT_ID.fullmatch(attempt_id):
            return False
        return self._attempt is None or attempt_id.rpartition("/")[2] == str(self._attempt)


class _Printer:
    """Prints whole lines, with the task before each where there are several."""

    def __init__(self, *, prefixed: bool) -> None:
        self._prefixed = prefixed
        self._lines = LogLines()
        self._attempts: dict[str, tuple[TaskKey, int]] = {}
        self._is_terminal = sys.stdout.isatty()

    def show(self, chunk: LogChunk) -> None:
        """Print the lines that a piece completes."""
        step, task_id, number = chunk.attempt_id.split("/")
        # The printer needs a name to print and to tell attempts apart, not the task's place in the graph.
        key = TaskKey(f"{step}/{task_id}")
        self._attempts[chunk.attempt_id] = (key, int(number))
        self._put(chunk.attempt_id, self._lines.add(key, int(number), chunk.stream, chunk.data))

    def finish(self) -> None:
        """Print the lines that were never ended."""
        for attempt_id, (key, number) in self._attempts.items():
            self._put(attempt_id, self._lines.finish(key, number))

    def _put(self, attempt_id: str, lines: Iterable[str]) -> None:
        path, _, number = attempt_id.rpartition("/")
        prefix = f"[{path}] " if number == "0" else f"[{path} (attempt {int(number) + 1})] "
        for line in lines:
            # Into a file or pipe it goes as it is: what reads that may want the very bytes.
            put_as_it_is((prefix if self._prefixed else "") + (safe_log(line) if self._is_terminal else line))


class _JsonPrinter(_Printer):
    """Prints each piece as a JSON object."""

    def __init__(self) -> None:
        super().__init__(prefixed=False)

    def show(self, chunk: LogChunk) -> None:
        """Print a piece."""
        import json

        task, _, number = chunk.attempt_id.rpartition("/")
        piece = {"task": task, "attempt": int(number), "stream": chunk.stream, "time": chunk.time}
        put(json.dumps({**piece, "text": chunk.data.decode(errors="replace")}))


def _chosen(client: Client, spec: Pathspec) -> tuple[RunHandle, str | None, str | None]:
    """Return the run, step and task that a place names, checked."""
    run_id = spec.run_id if spec.run_id is not None else client.Flow(spec.flow).latest_run.id
    handle = client.handle(spec.flow, run_id)
    if spec.artifact is not None:
        raise UsageError(f"{spec} is an artifact, which has no log", hint=f"its value: mlp artifacts {spec}")
    if spec.step is not None and spec.task_id is not None:
        handle.require_task(spec.step, spec.task_id)
    elif spec.step is not None:
        handle.require_step(spec.step)
    return handle, spec.step, spec.task_id
