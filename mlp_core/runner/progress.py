"""What a driver tells about a run while it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from mlp_hookspecs import FlowGraph, RunContext, StepOutcome, TaskKey


class Progress(Protocol):
    """Where a driver reports; called in its own thread."""

    def run_started(self, run: RunContext, graph: FlowGraph, store_url: str) -> None:
        """Tell that a run began."""

    def task_started(self, key: TaskKey, attempt: int) -> None:
        """Tell that an attempt was handed to its launcher."""

    def task_log(self, key: TaskKey, attempt: int, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        """Pass on what an attempt printed."""

    def task_finished(self, key: TaskKey, attempt: int, outcome: StepOutcome, will_retry: bool) -> None:  # noqa: FBT001 # one fact of four
        """Tell that an attempt ended; the record of it is durable."""

    def task_reused(self, key: TaskKey, origin: str) -> None:
        """Tell that a task's result was taken from an earlier run."""

    def note(self, text: str) -> None:
        """Pass on a remark for the user."""

    def run_finished(self, status: str, message: str) -> None:
        """Tell that the run ended."""


class SilentProgress:
    """Tells nothing."""

    def run_started(self, run: RunContext, graph: FlowGraph, store_url: str) -> None:
        """Say nothing."""

    def task_started(self, key: TaskKey, attempt: int) -> None:
        """Say nothing."""

    def task_log(self, key: TaskKey, attempt: int, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        """Say nothing."""

    def task_finished(self, key: TaskKey, attempt: int, outcome: StepOutcome, will_retry: bool) -> None:  # noqa: FBT001 # the protocol's signature
        """Say nothing."""

    def task_reused(self, key: TaskKey, origin: str) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def run_finished(self, status: str, message: str) -> None:
        """Say nothing."""
