"""How a run looks in a terminal while it goes on: a table of its steps below what its tasks print."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from mlp_core.cli.progress import LogLines, attempt_name, ending
from mlp_core.cli.text import duration, place, safe_line, safe_log

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from mlp_hookspecs import FlowGraph, RunContext, StepOutcome, TaskKey

_REFRESH_SECONDS: Final = 0.1
_MOST_ROWS: Final = 20
_BAR: Final = 20


@attrs.define
class _Step:
    """How far a step is."""

    expected: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0
    reused: int = 0
    began: float = 0
    ended: float = 0

    @property
    def finished(self) -> int:
        """How many of its tasks have ended for good."""
        return self.done + self.failed + self.reused


class LiveProgress:
    """A table that is drawn again several times a second, and the tasks' lines above it."""

    def __init__(self, console: Console | None = None) -> None:
        """Make the display; it draws from the run's start on."""
        from rich.console import Console
        from rich.live import Live

        self._console = console or Console(highlight=False, soft_wrap=True)
        # The driver's thread and the one that draws.
        self._lock = threading.Lock()
        self._pending: list[Any] = []
        self._lines = LogLines()
        self._steps: dict[str, _Step] = {}
        self._graph: FlowGraph | None = None
        self._title = ""
        self._began = time.monotonic()
        self._is_over = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._draw, name="mlp-progress", daemon=True)
        self._live = Live(console=self._console, auto_refresh=False, get_renderable=self._render)

    def run_started(self, run: RunContext, graph: FlowGraph, store_url: str) -> None:
        """Begin to draw."""
        from rich.text import Text

        self._began = time.monotonic()
        self._graph = graph
        self._steps = {node.name: _Step() for node in graph.steps}
        self._steps[graph.start].expected = 1
        self._title = f"{run.flow}/{run.run_id}"
        origin = f", resuming {run.origin_run_id}" if run.origin_run_id else ""
        self._console.print(Text.assemble((self._title, "bold"), f"{origin}  store {place(store_url)}"))
        self._live.start()
        self._thread.start()

    def task_started(self, key: TaskKey, attempt: int) -> None:  # noqa: ARG002 # the protocol's signature
        """Count the attempt."""
        with self._lock:
            step = self._steps[key.step]
            step.running += 1
            step.began = step.began or time.monotonic()

    def task_log(self, key: TaskKey, attempt: int, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        """Show the lines that are complete, after the task's name."""
        with self._lock:
            self._add_lines(key, self._lines.add(key, attempt, stream, data))

    def task_finished(self, key: TaskKey, attempt: int, outcome: StepOutcome, will_retry: bool) -> None:  # noqa: FBT001 # the protocol's signature
        """Count the attempt's end, and say so where it failed."""
        with self._lock:
            step = self._steps[key.step]
            step.running -= 1
            step.ended = time.monotonic()
            self._add_lines(key, self._lines.finish(key, attempt))
            if outcome.failure is not None:
                style = "yellow" if will_retry or outcome.status == "caught" else "red"
                self._add_text(f"{attempt_name(key, attempt)} {ending(outcome, will_retry=will_retry)}", style)
            if will_retry:
                return
            if outcome.status == "failed":
                step.failed += 1
            else:
                step.done += 1
                self._expect(outcome)

    def task_reused(self, key: TaskKey, origin: str) -> None:  # noqa: ARG002 # the protocol's signature
        """Count the task."""
        with self._lock:
            self._steps[key.step].reused += 1

    def note(self, text: str) -> None:
        """Show the remark."""
        with self._lock:
            self._add_text(safe_line(text), "cyan")

    def run_finished(self, status: str, message: str) -> None:
        """Draw for the last time."""
        from rich.text import Text

        with self._lock:
            self._is_over = True
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._show()
        self._live.stop()
        style = {"succeeded": "bold green", "failed": "bold red"}.get(status, "bold yellow")
        took = duration(time.monotonic() - self._began)
        reason = f": {safe_line(message)}" if message else ""
        self._console.print(Text.assemble((self._title, "bold"), " ", (status, style), f" in {took}{reason}"))

    def _expect(self, outcome: StepOutcome) -> None:
        """Take up how many tasks follow from a finished one."""
        transition = outcome.transition
        for name in transition.steps:
            node = self._graph[name] if self._graph is not None else None
            if node is not None and node.is_join:
                self._steps[name].expected = max(self._steps[name].expected, 1)
            elif name in self._steps:
                self._steps[name].expected += transition.count or (0 if transition.count == 0 else 1)

    def _add_lines(self, key: TaskKey, lines: list[str]) -> None:
        from rich.text import Text

        for line in lines:
            shown = Text.from_ansi(safe_log(line))
            self._pending.append(Text.assemble((f"[{key.path}] ", "dim"), shown))

    def _add_text(self, line: str, style: str) -> None:
        from rich.text import Text

        self._pending.append(Text(line, style=style))

    def _draw(self) -> None:
        """Draw until the run is over."""
        while not self._stop.wait(_REFRESH_SECONDS):
            self._show()

    def _show(self) -> None:
        """Print what is pending above the table, and draw the table."""
        from rich.text import Text

        with self._lock:
            pending, self._pending = self._pending, []
        with contextlib.suppress(OSError):  # a terminal that was closed: the run goes on
            if pending:
                self._console.print(Text("\n").join(pending))
            self._live.refresh()

    def _render(self) -> RenderableType:
        """Return the table as it is now."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        with self._lock:
            steps = [(name, attrs.evolve(step)) for name, step in self._steps.items()]
            is_over = self._is_over
        table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
        for name, step in _most_telling(steps):
            table.add_row(*_row(name, step))
        if is_over:
            return table
        took = duration(time.monotonic() - self._began)
        running = sum(step.running for _, step in steps)
        return Group(table, Text.assemble((self._title, "bold"), f"  {took}  {running} running"))


def _most_telling(steps: list[tuple[str, _Step]]) -> list[tuple[str, _Step]]:
    """Return the steps to show: all where they fit, else the ones that are under way or failed, then the latest."""
    if len(steps) <= _MOST_ROWS:
        return steps
    telling = [index for index, (_, step) in enumerate(steps) if step.running or step.failed][:_MOST_ROWS]
    begun = [index for index, (_, step) in enumerate(steps) if step.finished and index not in telling]
    room = _MOST_ROWS - len(telling)
    chosen = {*telling, *(begun[-room:] if room else ())}
    waiting = [index for index in range(len(steps)) if index not in chosen and index not in begun]
    chosen |= set(waiting[: _MOST_ROWS - len(chosen)])
    return [steps[index] for index in sorted(chosen)]


def _row(name: str, step: _Step) -> tuple[RenderableType, ...]:
    """Return a step's row: mark, name, bar, counts, time."""
    from rich.text import Text

    expected = max(step.expected, step.finished + step.running)
    if step.failed:
        mark = Text("✗", "red")
    elif step.running:
        mark = Text("●", "cyan")
    elif step.finished:
        mark = Text("✓", "green")
    else:
        return Text("·", "dim"), Text(name, "dim"), Text(), Text(), Text()
    filled = _BAR * step.finished // expected
    bar = Text.assemble(("━" * filled, "green"), ("─" * (_BAR - filled), "dim")) if expected > 1 else Text()
    parts = [f"{step.finished}/{expected}" if expected > 1 else ""]
    parts += [f"{count} {word}" for count, word in _counts(step)]
    until = time.monotonic() if step.running else step.ended
    took = duration(until - step.began) if step.began else ""
    return mark, Text(name), bar, Text("  ".join(part for part in parts if part)), Text(took, "dim")


def _counts(step: _Step) -> list[tuple[int, str]]:
    """Return the counts that are worth a word."""
    counts = [(step.running, "running"), (step.failed, "failed"), (step.reused, "reused")]
    return [(count, word) for count, word in counts if count]
