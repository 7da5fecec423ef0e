"""The process that speaks with Ray, one for each open launcher: `python -P -m mlp_plugin_ray.bridge`.

Ray changes the process that it is initialised in: it takes over SIGTERM, prints on the standard output, leaves threads
that do not survive a fork, may end the process where it loses the cluster, and hangs where an address does not answer.
None of that may happen to a run's driver.

Both directions are lines of JSON, each an object with one entry. On the standard input, from the launcher:

- ``{"open": {"address": TEXT or null}}``, first.
- ``{"launch": [[ATTEMPT, COMMAND, REQUEST, OPTIONS], ...]}``: the `WorkerCommand` and `StepRequest` on the wire, and
  what `task_options` returned.
- ``{"cancel": [[ATTEMPT, ...], GRACE_SECONDS]}``.
- The input's end, or the launcher's: whatever still runs is killed, the cluster is left or, where it is ours, ended.

On the standard output, to the launcher:

- ``{"ready": ADDRESS}`` or ``{"refused": REASON}``, first.
- ``{"started": [ATTEMPT, HOST, PID]}``, ``{"heartbeat": ATTEMPT}``, ``{"log": [ATTEMPT, STREAM, BASE64]}``.
- ``{"finished": [ATTEMPT, OUTCOME]}`` or ``{"lost": [ATTEMPT, FAILURE]}``, once for each attempt, as its last.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import sys
import threading
import time
import traceback
from typing import IO, TYPE_CHECKING, Any

from mlp_hookspecs import Failure, wire
from mlp_hookspecs.process import kill_tree
from mlp_plugin_ray import node
from mlp_plugin_ray.cluster import connect, missing_resources

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from mlp_plugin_ray.cluster import Connection
    from mlp_plugin_ray.node import End, Frame

_PULL_SECONDS = 10.0
_KILL_AGAIN_SECONDS = 0.5
_KILLS = 10
_CLOSE_SECONDS = 10.0
_LOOK_SECONDS = 0.5
_NODES_SECONDS = 5.0


class _Attempt:
    """What the bridge knows of an attempt that has not ended."""

    def __init__(self, attempt_id: str, ref: Any) -> None:
        self.id = attempt_id
        self.ref = ref
        self.end: End | None = None
        self.is_started = False
        self.is_cancelled = False
        self.grace_over = asyncio.Event()


class Bridge:
    """Turns the launcher's lines into Ray tasks, and their reports into lines.

    Parameters
    ----------
    connection : Connection
        The cluster.
    output : binary file
        Where lines for the launcher go.
    stop : callable
        Called where the bridge itself fails: what it cannot follow any more is better ended.
    """

    def __init__(self, connection: Connection, output: IO[bytes], stop: Callable[[], None]) -> None:
        """Prepare the task and the hub; call this in the event loop."""
        import ray
        from ray import cloudpickle
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._ray: Any = ray  # typed loosely, as Ray's own types leave out much of what it takes
        by_value: Any = cloudpickle
        by_value.register_pickle_by_value(node)
        self._connection = connection
        self._output = output
        self._stop = stop
        self._attempts: dict[str, _Attempt] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._nodes: tuple[float, list[dict[str, float]]] = (-_NODES_SECONDS, [])
        self._idle = asyncio.Event()
        self._idle.set()
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        hub = self._ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=0, scheduling_strategy=here)(node.Hub)
        self._hub = hub.remote()
        # The core owns retries: a task that Ray repeated by itself would be an attempt that nobody counts.
        self._task = self._ray.remote(max_retries=0)(node.run_attempt)
        self._spawn(self._pull())

    def tell(self, kind: str, content: object) -> None:
        """Write a line for the launcher; one that has gone is not told."""
        with contextlib.suppress(BrokenPipeError):
            self._output.write(json.dumps({kind: content}, separators=(",", ":")).encode() + b"\n")
            self._output.flush()

    def take(self, message: Mapping[str, Any]) -> None:
        """Obey a line of the launcher."""
        for attempt_id, command, request, options in message.get("launch", ()):
            self._launch(attempt_id, command, request, options)
        if "cancel" in message:
            attempt_ids, grace = message["cancel"]
            for attempt_id in attempt_ids:
                self._cancel(attempt_id, grace)

    async def close(self) -> None:
        """Kill what still runs, and wait a while until it is gone."""
        for attempt_id in self._attempts:
            self._cancel(attempt_id, 0)
        if self._attempts:
            self._idle.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._idle.wait()
        for task in self._background:
            task.cancel()
        self._ray.kill(self._hub)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine beside everything else."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._check)

    def _check(self, task: asyncio.Task[None]) -> None:
        """Stop everything where a coroutine has failed."""
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            traceback.print_exception(error)
            self._stop()

    def _launch(self, attempt_id: str, command: str, request: str, options: Mapping[str, Any]) -> None:
        """Hand an attempt to Ray."""
        missing = missing_resources(options, self._known_nodes())
        if missing and self._connection.is_ours:
            failure = Failure("system", f"the local Ray cluster will never have a node with {missing}")
            self.tell("lost", [attempt_id, wire.dumps(failure).decode()])
            return
        if missing:
            text = f"ray: the cluster has no node with {missing}; the task waits until one joins\n"
            self.tell("log", [attempt_id, "stderr", base64.b64encode(text.encode()).decode()])
        try:
            ref = self._task.options(name=attempt_id, **options).remote(self._hub, attempt_id, command, request)
        except (ValueError, TypeError) as error:
            self.tell("lost", [attempt_id, wire.dumps(Failure("system", f"Ray refuses the task: {error}")).decode()])
            return
        attempt = _Attempt(attempt_id, ref)
        self._attempts[attempt_id] = attempt
        self._spawn(self._follow(attempt))

    def _known_nodes(self) -> list[dict[str, float]]:
        """Return the resources of every node, as of a few seconds ago."""
        read_at, nodes = self._nodes
        if time.monotonic() > read_at + _NODES_SECONDS:
            nodes = [entry["Resources"] for entry in self._ray.nodes() if entry["Alive"]]
            self._nodes = (time.monotonic(), nodes)
        return nodes

    async def _follow(self, attempt: _Attempt) -> None:
        """Wait for an attempt's task, and have its end told after everything that it has reported."""
        from ray.exceptions import ActorUnavailableError, RayError

        try:
            attempt.end = await attempt.ref
        except Exception as error:  # noqa: BLE001 # whatever Ray raises here, the attempt has ended with it
            failure = failure_of_error(error, is_cancelled=attempt.is_cancelled)
            attempt.end = ("lost", wire.dumps(failure).decode())
        mark: Frame = ("end", b"")
        while attempt.id in self._attempts:
            try:
                await self._hub.push.remote(attempt.id, [mark])
            except ActorUnavailableError:  # until Ray has started it anew, or `_pull` has noticed
                await asyncio.sleep(node.TICK_SECONDS)
            except RayError:
                self._end(attempt)
            else:
                return

    async def _pull(self) -> None:
        """Pass on what attempts report."""
        from ray.exceptions import RayError

        while True:
            try:
                reports = await self._hub.pull.remote(_PULL_SECONDS)
            except RayError:
                # The hub has died, and Ray starts it anew; what it had is lost, marks included.
                for attempt in [attempt for attempt in self._attempts.values() if attempt.end]:
                    self._end(attempt)
                await asyncio.sleep(_LOOK_SECONDS)
                continue
            for attempt_id, frames in reports:
                if attempt_id in self._attempts:
                    self._pass_on(self._attempts[attempt_id], frames)

    def _pass_on(self, attempt: _Attempt, frames: list[Frame]) -> None:
        """Tell the launcher what an attempt has reported."""
        for kind, content in frames:
            if kind == "started":
                self._start(attempt, json.loads(content))
            elif kind == "heartbeat":
                self.tell("heartbeat", attempt.id)
            elif kind == "end":
                self._end(attempt)
            else:
                self.tell("log", [attempt.id, kind, base64.b64encode(content).decode()])

    def _start(self, attempt: _Attempt, said: Mapping[str, Any]) -> None:
        """Tell an attempt's start, unless that was done: where the hub has died, a report may be made twice."""
        if not attempt.is_started:
            attempt.is_started = True
            self.tell("started", [attempt.id, said["host"], said["pid"]])

    def _end(self, attempt: _Attempt) -> None:
        """Tell an attempt's end, unless that was done."""
        if attempt.end is None or attempt.id not in self._attempts:
            return
        del self._attempts[attempt.id]
        kind, content = attempt.end
        self.tell(kind, [attempt.id, content])
        if not self._attempts:
            self._idle.set()

    def _cancel(self, attempt_id: str, grace: float) -> None:
        """Ask an attempt to end, and kill it after the grace, which a second call may cut short."""
        attempt = self._attempts.get(attempt_id)
        if attempt is None:
            return
        asyncio.get_running_loop().call_later(grace, attempt.grace_over.set)
        if not attempt.is_cancelled:
            attempt.is_cancelled = True
            self._spawn(self._interrupt(attempt))

    async def _interrupt(self, attempt: _Attempt) -> None:
        """Interrupt an attempt's task until it has ended; Ray drops a task that has not begun at the first time."""
        self._ray.cancel(attempt.ref, recursive=False)
        await attempt.grace_over.wait()
        for _ in range(_KILLS):
            if attempt.end is not None:
                return
            self._ray.cancel(attempt.ref, recursive=False)
            await asyncio.sleep(_KILL_AGAIN_SECONDS)
        if attempt.end is None:
            self._ray.cancel(attempt.ref, force=True, recursive=False)


def failure_of_error(error: Exception, *, is_cancelled: bool) -> Failure:
    """Return why a task of ours has failed; its own code reports what goes wrong with a worker, so this is Ray's.

    Parameters
    ----------
    error : Exception
        What waiting for it raised.
    is_cancelled : bool
        Whether it was cancelled before.

    Returns
    -------
    Failure
        Of the kind ``cancelled``, ``killed`` or ``system``.
    """
    from ray import exceptions

    if is_cancelled or isinstance(error, exceptions.TaskCancelledError):
        return Failure("cancelled", "the Ray task was cancelled")
    text = str(error).strip() or "no reason given"
    # What follows is advice on how to look into Ray.
    summary = text.splitlines()[0].partition(" This can happen ")[0]
    if isinstance(error, exceptions.OutOfMemoryError):
        return Failure("killed", f"Ray killed the task because its node ran out of memory: {summary}")
    if isinstance(error, exceptions.WorkerCrashedError):
        return Failure("killed", "the Ray worker process that watched over the step was killed or crashed")
    if isinstance(error, exceptions.RayTaskError):
        # The remote traceback is ours or Ray's, and its last line says what went wrong.
        return Failure("system", f"the node could not run the task: {text.splitlines()[-1]}", traceback=text)
    if isinstance(error, exceptions.NodeDiedError):
        return Failure("system", f"the node was lost: {summary}")
    return Failure("system", f"{type(error).__name__}: {summary}")


def _read(source: IO[bytes], loop: asyncio.AbstractEventLoop, lines: asyncio.Queue[bytes | None]) -> None:
    """Queue the lines of a file, and None after the last."""
    for line in source:
        loop.call_soon_threadsafe(lines.put_nowait, line)
    loop.call_soon_threadsafe(lines.put_nowait, None)


def _watch_parent(parent: int, loop: asyncio.AbstractEventLoop, lines: asyncio.Queue[bytes | None]) -> None:
    """Queue None once this process's parent has gone, since a fork of it may hold the input open; then insist."""
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    loop.call_soon_threadsafe(lines.put_nowait, None)
    time.sleep(2 * _CLOSE_SECONDS)
    kill_tree(os.getpid())


async def _serve(output: IO[bytes]) -> None:
    """Connect, and obey the launcher until it is done."""
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[bytes | None] = asyncio.Queue()
    threading.Thread(target=_watch_parent, args=(os.getppid(), loop, lines), daemon=True).start()
    opening = json.loads(sys.stdin.buffer.readline())["open"]
    threading.Thread(target=_read, args=(sys.stdin.buffer, loop, lines), daemon=True).start()
    try:
        connection = connect(opening["address"])
    except OSError as error:
        output.write(json.dumps({"refused": str(error)}).encode() + b"\n")
        output.flush()
        return
    try:
        bridge = Bridge(connection, output, lambda: lines.put_nowait(None))
        bridge.tell("ready", connection.address)
        while (line := await lines.get()) is not None:
            bridge.take(json.loads(line))
        await bridge.close()
    finally:
        connection.close()


def main() -> None:
    """Serve the launcher on the standard streams; whatever else prints here, prints on the standard error."""
    with os.fdopen(os.dup(1), "wb") as output:
        os.dup2(2, 1)
        asyncio.run(_serve(output))


if __name__ == "__main__":
    main()
