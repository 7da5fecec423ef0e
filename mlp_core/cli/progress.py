"""How a run looks while it goes on: plain lines in a pipe, JSON lines for programs, a live view in a terminal."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO

import attrs

from mlp_core.cli.report import forget_output
from mlp_core.cli.text import duration, moment, place, plural, safe_line, safe_log
from mlp_core.runner.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from mlp_hookspecs import FlowGraph, RunContext, StepOutcome, TaskKey

_Stream = Literal["stdout", "stderr"]
_LogKey = tuple["TaskKey", int, _Stream]

_LONGEST_LINE: Final = 64 * 1024
_WORDS: Final = {"succeeded": "done", "caught": "failed and was caught", "failed": "failed"}


def choose_progress(*, quiet: bool, as_json: bool) -> Progress:
    """Return the display that suits the options and where standard output goes."""
    if as_json:
        return JsonProgress(sys.stdout)
    if quiet:
        return SilentProgress()
    if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        from mlp_core.cli.live import LiveProgress

        return LiveProgress()
    return PlainProgress(sys.stdout)


@attrs.define(eq=False, repr=False)
class LogLines:
    """Joins what arrives in pieces to whole lines, separately for each attempt and stream."""

    _open: dict[_LogKey, bytearray] = attrs.field(factory=dict)

    def add(self, key: TaskKey, attempt: int, stream: _Stream, data: bytes) -> list[str]:
        """Take up a piece, and return the lines that it completes, without their ends."""
        pending = self._open.setdefault((key, attempt, stream), bytearray())
        pending += data
        end = pending.rfind(b"\n") + 1
        if not end and len(pending) > _LONGEST_LINE:
            end = len(pending)
        whole = bytes(pending[:end])
        del pending[:end]
        return [line.decode(errors="replace") for line in whole.removesuffix(b"\n").split(b"\n")] if end else []

    def finish(self, key: TaskKey, attempt: int) -> list[str]:
        """Return the unfinished lines of an attempt that has ended."""
        streams: tuple[_Stream, _Stream] = ("stdout", "stderr")
        pieces = [self._open.pop((key, attempt, stream), b"") for stream in streams]
        return [bytes(piece).decode(errors="replace") for piece in pieces if piece]


def attempt_name(key: TaskKey, attempt: int) -> str:
    """Return how a task is called in messages; the first attempt is the normal case."""
    return f"{key.path} (attempt {attempt + 1})" if attempt else key.path


def ending(outcome: StepOutcome, *, will_retry: bool) -> str:
    """Return how an attempt ended, on one line."""
    seconds = outcome.finished_at - outcome.started_at if outcome.started_at else 0.0
    line = f"{_WORDS[outcome.status]} in {duration(seconds)}"
    if outcome.failure is not None:
        line += f": {safe_line(outcome.failure.message)}"
    return line + "; it will be tried again" if will_retry else line


class Output:
    """A stream that may lose its reader: a run goes on though nobody looks at it any more.

    Parameters
    ----------
    stream : TextIO
        The stream.
    """

    def __init__(self, stream: TextIO) -> None:
        """Wrap the stream."""
        self._stream = stream
        self._is_lost = False

    def write(self, text: str) -> None:
        """Write and flush, as long as that is possible."""
        if self._is_lost:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:  # a pipe that was closed, a full disk
            self._is_lost = True
            if self._stream is sys.stdout:
                forget_output()


class PlainProgress:
    """A line for each event, with its time.

    Parameters
    ----------
    stream : TextIO
        Where the lines go.
    """

    def __init__(self, stream: TextIO) -> None:
        """Make the display."""
        self._output = Output(stream)
        self._is_terminal = stream.isatty()
        self._lines = LogLines()
        self._began = time.monotonic()
        self._run = ""
        self._tasks = 0
        self._reused = 0
        self._second: tuple[int, str] = (0, "")

    def run_started(self, run: RunContext, graph: FlowGraph, store_url: str) -> None:  # noqa: ARG002 # the protocol's signature
        """Name the run and its store."""
        self._began = time.monotonic()
        self._run = f"{run.flow}/{run.run_id}"
        origin = f", resuming {run.origin_run_id}" if run.origin_run_id else ""
        self._put(f"{self._run} started{origin}; store {place(store_url)}")

    def task_started(self, key: TaskKey, attempt: int) -> None:
        """Name the attempt."""
        self._put(f"{attempt_name(key, attempt)} started")

    def task_log(self, key: TaskKey, attempt: int, stream: _Stream, data: bytes) -> None:
        """Show the lines that are complete, after the task's name."""
        self._put_log(key, self._lines.add(key, attempt, stream, data))

    def task_finished(self, key: TaskKey, attempt: int, outcome: StepOutcome, will_retry: bool) -> None:  # noqa: FBT001 # the protocol's signature
        """Tell how the attempt ended."""
        self._put_log(key, self._lines.finish(key, attempt))
        self._tasks += not will_retry
        self._put(f"{attempt_name(key, attempt)} {ending(outcome, will_retry=will_retry)}")

    def task_reused(self, key: TaskKey, origin: str) -> None:
        """Tell where the result comes from."""
        self._reused += 1
        self._put(f"{key.path} reused from {safe_line(origin)}")

    def note(self, text: str) -> None:
        """Show the remark."""
        self._put(safe_line(text))

    def run_finished(self, status: str, message: str) -> None:
        """Tell how the run ended."""
        reason = f": {safe_line(message)}" if message else ""
        reused = f", {self._reused} reused" if self._reused else ""
        took = duration(time.monotonic() - self._began)
        self._put(f"{self._run} {status} in {took} ({plural(self._tasks, 'task')}{reused}){reason}")

    def _put_log(self, key: TaskKey, lines: list[str]) -> None:
        if self._is_terminal:
            lines = [safe_log(line) for line in lines]
        if lines:
            self._put("\n".join(f"[{key.path}] {line}" for line in lines))

    def _put(self, lines: str) -> None:
        """Print lines, each with the time."""
        now = int(time.time())
        if now != self._second[0]:
            self._second = (now, moment(now))
        stamp = self._second[1]
        self._output.write("".join(f"{stamp} {line}\n" for line in lines.split("\n")))


class JsonProgress:
    """A JSON object a line for each event.

    Parameters
    ----------
    stream : TextIO
        Where the lines go.
    """

    def __init__(self, stream: TextIO) -> None:
        """Make the display."""
        self._output = Output(stream)

    def run_started(self, run: RunContext, graph: FlowGraph, store_url: str) -> None:
        """Name the run, its steps and its store."""
        steps = [node.name for node in graph.steps]
        origin = run.origin_run_id
        self._put("run_started", flow=run.flow, run_id=run.run_id, origin_run_id=origin, steps=steps, store=store_url)

    def task_started(self, key: TaskKey, attempt: int) -> None:
        """Name the attempt."""
        self._put("task_started", task=key.path, attempt=attempt)

    def task_log(self, key: TaskKey, attempt: int, stream: _Stream, data: bytes) -> None:
        """Pass on what was printed."""
        self._put("task_log", task=key.path, attempt=attempt, stream=stream, text=data.decode(errors="replace"))

    def task_finished(self, key: TaskKey, attempt: int, outcome: StepOutcome, will_retry: bool) -> None:  # noqa: FBT001 # the protocol's signature
        """Tell how the attempt ended."""
        facts: dict[str, Any] = {
            "task": key.path,
            "attempt": attempt,
            "status": outcome.status,
            "will_retry": will_retry,
            "seconds": round(outcome.finished_at - outcome.started_at, 6),
            "peak_memory_bytes": outcome.peak_memory_bytes,
        }
        if outcome.failure is not None:
            facts["failure"] = attrs.asdict(outcome.failure, filter=attrs.filters.exclude("exception"))
        self._put("task_finished", **facts)

    def task_reused(self, key: TaskKey, origin: str) -> None:
        """Tell where the result comes from."""
        self._put("task_reused", task=key.path, origin=origin)

    def note(self, text: str) -> None:
        """Pass on the remark."""
        self._put("note", text=text)

    def run_finished(self, status: str, message: str) -> None:
        """Tell how the run ended."""
        self._put("run_finished", status=status, message=message)

    def _put(self, event: str, **facts: Any) -> None:
        """Print an event."""
        self._output.write(json.dumps({"event": event, "time": time.time(), **facts}) + "\n")
