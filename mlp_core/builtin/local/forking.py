"""How attempts run as forks of warm template processes, and as fresh processes where a fork would not be safe."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import attrs

from mlp_core.builtin.local.templates import (
    Key,
    Template,
    TemplateGone,
    adopt_template,
    end_all,
    fits_here,
    fork_template,
    key_of,
    start_template,
    why_not_fork_here,
)
from mlp_hookspecs import Failure, LaunchRequest, wire
from mlp_hookspecs.process import WorkerLoop, kill_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlp_core.builtin.local.launcher import Spawning
    from mlp_core.builtin.local.lifeline import Lifeline
    from mlp_hookspecs import WorkerCommand
    from mlp_hookspecs.handles import LaunchSink

_STREAMS = 3


@attrs.define(eq=False)
class _Child:
    """An attempt in a template's care."""

    request: LaunchRequest
    template: Template
    pid: int | None = None
    deadline: float | None = None
    owed: signal.Signals | None = None


@attrs.frozen
class Patience:
    """How long to wait for what may never come.

    Attributes
    ----------
    start_seconds : float
        For a fork to say that it began; then it is given up and started afresh.
    import_seconds : float
        For a template to have imported the flow; then its attempts are lost.
    """

    start_seconds: float
    import_seconds: float


class Forking:
    """Starts attempts as forks of templates, and as fresh processes where a fork would not be safe.

    Parameters
    ----------
    sink : LaunchSink
        Where starts, logs and ends go.
    patience : Patience
        How long to wait.
    spawning : callable
        Returns what starts fresh processes.
    lifeline : Lifeline, optional
        The launcher's lifeline.
    """

    def __init__(
        self,
        sink: LaunchSink,
        patience: Patience,
        spawning: Callable[[], Spawning],
        lifeline: Lifeline | None = None,
    ) -> None:
        """Prepare."""
        self._sink = sink
        self._patience = patience
        self._make_spawning = spawning
        self._lifeline = lifeline
        self._spawning: Spawning | None = None
        self._loop = WorkerLoop(sink, on_end=self._ended)
        self._templates: dict[Key, Template] = {}
        self._spare: Template | None = None
        self._unsafe: set[Key] = set()
        self._children: dict[str, _Child] = {}
        self._moving: dict[str, _Child] = {}
        # Nobody tells the sink anything while holding it: the sink may let a log wait for who needs this lock.
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="mlp-fork-watch", daemon=True)

    def open(self, *, may_fork_here: bool) -> None:
        """Start the threads and, before them and where that is safe, fork a template from this process."""
        if may_fork_here and not why_not_fork_here():
            self._spare = fork_template(self._lifeline)
        self._loop.start()
        self._watcher.start()

    # ------------------------------------------------------------------------------------------------ starting

    def expect(self, command: WorkerCommand) -> None:
        """Start a template for attempts that are still to come; where it cannot be started, they will tell why."""
        key = key_of(command)
        with self._lock, contextlib.suppress(OSError):
            if not self._closed.is_set() and key not in self._templates and not fits_here(command):
                self._care_for(key, start_template(key, command, None, self._lifeline))

    def submit(self, request: LaunchRequest) -> None:
        """Start an attempt; one that cannot be started is lost."""
        key = key_of(request.command)
        try:
            with self._lock:
                placed = None if key in self._unsafe else self._place(key, request)
        except OSError as error:
            self._sink.lost(request.id, Failure("system", f"the attempt could not be started: {error}"))
            return
        if placed is None:
            self._spawn(request)
            return
        child, writers = placed
        try:
            child.template.send(request.id, wire.dumps(request.step), writers)
        except TemplateGone:
            return  # the loop tells its attempts' end, or what else becomes of them
        except OSError as error:
            self._give_up(child, f"the template process could not take the attempt: {error}")

    def _place(self, key: Key, request: LaunchRequest) -> tuple[_Child, Sequence[int]]:
        """Give an attempt into a template's care, and return it with the writing ends of its pipes."""
        if self._closed.is_set():
            raise OSError("the launcher has been closed")
        readers, writers = _pipes()
        try:
            template = self._templates.get(key)
            if template is None:
                template = self._adopt_spare(key, request.command)
                template = template or start_template(key, request.command, writers, self._lifeline)
                self._care_for(key, template)
            if not template.has_request:
                template.has_request = True
                template.deadline = time.monotonic() + self._patience.import_seconds
        except BaseException:
            for fd in (*readers, *writers):
                os.close(fd)
            raise
        self._loop.add(request.id, *readers)
        child = self._children[request.id] = _Child(request, template)
        return child, writers

    def _adopt_spare(self, key: Key, command: WorkerCommand) -> Template | None:
        """Return the template that was forked from this process, where a command needs no more than it has."""
        template = self._spare
        if template is None or not fits_here(command):
            return None
        self._spare = None
        try:
            adopt_template(template, key, command)
        except (TemplateGone, OSError):
            end_all([template])
            template.close()
            return None
        return template

    def _care_for(self, key: Key, template: Template) -> None:
        """Listen to a template from now on."""
        self._templates[key] = template
        self._loop.call(lambda: self._loop.watch(template.fileno(), lambda: self._hear(template)))

    def _spawn(self, request: LaunchRequest) -> None:
        """Start an attempt as a fresh process."""
        with self._lock:
            if self._spawning is None:
                self._spawning = self._make_spawning()
        self._spawning.submit(request)

    # ------------------------------------------------------------------------------------------------ hearing

    def _hear(self, template: Template) -> None:
        """Take in what a template says; runs in the loop's thread."""
        messages = template.receive()
        if messages is None:
            self._lose(template)
            return
        try:
            for message in messages:
                self._understand(template, message)
        except (KeyError, TypeError):
            template.end_for("the template process has said what nobody understands")

    def _understand(self, template: Template, message: dict[str, Any]) -> None:
        """Act on one message."""
        if "forked" in message:
            self._forked(template, message["forked"], message["pid"])
        elif "exited" in message:
            with self._lock:
                is_ours = self._is_in_care(message["exited"], template)
            if is_ours:
                self._loop.exited(message["exited"], message["status"])
        elif "unsafe" in message:
            self._respawn(template, message["unsafe"])

    def _is_in_care(self, attempt_id: str, template: Template) -> bool:
        """Tell whether an attempt is still in a template's care."""
        child = self._children.get(attempt_id)
        return child is not None and child.template is template

    def _forked(self, template: Template, attempt_id: str, pid: int) -> None:
        """Take in that an attempt has its process, and pass on what that is owed."""
        with self._lock:
            template.has_forked = True
            template.deadline = None
            if self._is_in_care(attempt_id, template):
                child = self._children[attempt_id]
                child.pid = pid
                child.deadline = time.monotonic() + self._patience.start_seconds
                if child.owed is not None:
                    self.signal(attempt_id, child.owed)
                return
        kill_tree(pid)  # it has been told that the attempt does not run here

    def _respawn(self, template: Template, reason: str) -> None:
        """Start a template's attempts as fresh processes, since it must not fork."""
        with self._lock:
            if template.key is not None:
                self._unsafe.add(template.key)
                self._forget_template(template)
            waiting = self._take([child for child in self._children.values() if child.template is template])
        note = f"note: tasks run in fresh processes, since forking is not safe here: {reason}\n"
        self._start_again(waiting, self._spawn, note)

    def _lose(self, template: Template) -> None:
        """Take in that a template has ended: so have its attempts."""
        self._loop.unwatch(template.fileno())
        with self._lock:
            self._forget_template(template)  # what is submitted now needs another one
        template.close()
        # It may have closed the socket and still be there, as an import that closes all descriptors would have it.
        status = template.await_end()
        with self._lock:
            left = [child for child in self._children.values() if child.template is template]
            spared: list[_Child] = []
            unseen = template.is_early and not template.trouble
            if not template.has_forked and (unseen or any(child.owed is not None for child in left)):
                # It was ended while it imported the flow, for attempts that are to end: the others have not begun.
                # Or it ended by itself, and another one will say why in the log of an attempt.
                spared = self._take([child for child in left if child.owed is None])
        self._start_again(spared, self.submit)
        for child in left:
            if child not in spared:
                self._bury(child, status)

    def _bury(self, child: _Child, status: int) -> None:
        """Tell the end of an attempt whose template has ended."""
        if child.pid is not None:
            # It died with the template, which can no longer find what it has left.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
        trouble = child.template.trouble
        self._loop.exited(child.request.id, status or 1, Failure("system", trouble) if trouble else None)

    def _forget_template(self, template: Template) -> None:
        """Have what is submitted from now on go to another template."""
        if template.key is not None and self._templates.get(template.key) is template:
            del self._templates[template.key]

    def _take(self, children: Sequence[_Child]) -> list[_Child]:
        """Take attempts out of their template's care; they can still be signalled."""
        for child in children:
            del self._children[child.request.id]
            self._moving[child.request.id] = child
        return list(children)

    def _start_again(self, children: Sequence[_Child], start: Callable[[LaunchRequest], None], note: str = "") -> None:
        """Start attempts another time that were taken out of a template's care; the log of the first says why."""
        for number, child in enumerate(children):
            attempt_id = child.request.id
            self._loop.forget(attempt_id)
            if child.owed is None:
                if note and number == 0:
                    self._sink.log(attempt_id, "stderr", note.encode())
                try:
                    start(child.request)
                except (OSError, RuntimeError) as error:  # no descriptor, or no thread, is left
                    self._sink.lost(attempt_id, Failure("system", f"the attempt could not be started: {error}"))
            else:
                self._sink.lost(attempt_id, Failure("cancelled", "the attempt was cancelled before it began"))
            with self._lock:
                owed = child.owed
                self._moving.pop(attempt_id, None)
            if owed is not None:
                self.signal(attempt_id, owed)

    def _give_up(self, child: _Child, reason: str) -> None:
        """Tell that an attempt is lost, unless it has been taken care of otherwise."""
        attempt_id = child.request.id
        with self._lock:
            if self._children.get(attempt_id) is not child:
                return
            del self._children[attempt_id]
        self._loop.forget(attempt_id)
        self._sink.lost(attempt_id, Failure("system", reason))

    def _ended(self, attempt_id: str) -> None:
        """Forget an attempt."""
        with self._lock:
            self._children.pop(attempt_id, None)

    # ------------------------------------------------------------------------------------------------ watching

    def _watch(self) -> None:
        """Look for what hangs until closed."""
        pause = min(1.0, self._patience.start_seconds / 4, self._patience.import_seconds / 4)
        while not self._closed.wait(pause):
            now = time.monotonic()
            self._give_up_imports(now)
            self._give_up_forks(now)

    def _give_up_imports(self, now: float) -> None:
        """End templates whose import of the flow never returns."""
        with self._lock:
            late = [t for t in self._templates.values() if t.deadline is not None and now > t.deadline]
            for template in late:
                template.deadline = None
        seconds = self._patience.import_seconds
        for template in late:
            template.end_for(f"importing the flow took longer than {seconds:g} s (local.import_timeout)")

    def _give_up_forks(self, now: float) -> None:
        """End forks that do not begin: a lock that was held when they were made may never be released in them."""
        with self._lock:
            late = [
                child
                for attempt_id, child in self._children.items()
                if child.deadline is not None and now > child.deadline and not self._loop.has_started(attempt_id)
            ]
            self._take(late)
        seconds = self._patience.start_seconds
        for child in late:
            if child.pid is not None:
                kill_tree(child.pid)
            note = f"note: the forked task gave no sign for {seconds:g} s and is started afresh\n"
            self._start_again([child], self._spawn, note)

    # ------------------------------------------------------------------------------------------------ ending

    def is_there(self, attempt_id: str) -> bool:
        """Tell whether an attempt has not ended."""
        with self._lock:
            if attempt_id in self._children or attempt_id in self._moving:
                return True
            return self._spawning is not None and self._spawning.is_there(attempt_id)

    def signal(self, attempt_id: str, sign: signal.Signals) -> bool:
        """Signal an attempt."""
        with self._lock:
            moving = self._moving.get(attempt_id)
            if moving is not None:
                moving.owed = sign
                return True
            child = self._children.get(attempt_id)
            if child is not None and child.pid is None:
                child.owed = sign
        if child is None:
            return self._spawning is not None and self._spawning.signal(attempt_id, sign)
        if child.pid is None:
            if not child.template.has_forked:
                # The template is still importing: nothing of the attempt runs, but what it waits for does.
                kill_tree(child.template.process.pid, sign)
        elif sign is signal.SIGKILL:
            kill_tree(child.pid)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, sign)
        return True

    def close(self) -> None:
        """End the templates and all that they started."""
        with self._lock:
            self._closed.set()
            templates = [*self._templates.values(), *([self._spare] if self._spare is not None else [])]
        end_all(templates)
        if self._spawning is not None:
            self._spawning.close()
        if self._watcher.ident is not None:
            self._watcher.join()
        self._loop.close()
        for template in templates:
            template.close()


def _pipes() -> tuple[list[int], list[int]]:
    """Return the reading and the writing ends of three pipes."""
    readers: list[int] = []
    writers: list[int] = []
    try:
        for _ in range(_STREAMS):
            reader, writer = os.pipe()
            readers.append(reader)
            writers.append(writer)
    except OSError:
        for fd in (*readers, *writers):
            os.close(fd)
        raise
    return readers, writers
