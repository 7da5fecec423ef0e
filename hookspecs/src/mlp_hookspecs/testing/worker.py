"""A worker for trying launchers: it speaks the worker protocol, and does what the request's settings tell it.

It is started as ``python -m mlp_hookspecs.testing.worker`` or, in warm processes, through `load`. The setting ``kit``
is a list of actions, each a list of a word and its arguments.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlp_hookspecs import Failure, StepOutcome, StepRequest, wire
from mlp_hookspecs.process import MESSAGE_FD, MessageWriter, die_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_PAUSE_SECONDS = 0.01


def load(_request: StepRequest) -> Callable[[StepRequest], StepOutcome]:
    """Return what carries out requests; the entry for warm processes."""
    return perform


def perform(request: StepRequest) -> StepOutcome:
    """Do what a request says, and return an outcome that names its task."""
    status: Literal["succeeded", "failed"] = "succeeded"
    for word, *arguments in request.settings.get("kit", ()):
        if word == "fail":
            status = "failed"
        else:
            ACTIONS[word](*arguments)
    failure = Failure("exception", f"{request.id} was told to fail") if status == "failed" else None
    return StepOutcome(status, failure=failure, reads=(request.id,), host=platform.node(), pid=os.getpid())


def write(stream: str, text: str, times: int = 1) -> None:
    """Write a text to a stream."""
    file = sys.stdout if stream == "stdout" else sys.stderr
    for _ in range(times):
        file.write(text)
    file.flush()


def write_variable(name: str) -> None:
    """Write an environment variable."""
    write("stdout", json.dumps(os.environ.get(name)) + "\n")


def write_folder() -> None:
    """Write the working folder."""
    write("stdout", json.dumps(str(Path.cwd())) + "\n")


def write_input() -> None:
    """Write what standard input has left."""
    write("stdout", json.dumps(sys.stdin.read() if sys.stdin else "") + "\n")


def touch(path: str) -> None:
    """Make a file that says which process this is; it is there with its whole content or not at all."""
    draft = Path(f"{path}.{os.getpid()}")
    draft.write_text(str(os.getpid()))
    draft.rename(path)


def wait_for(paths: Sequence[str]) -> None:
    """Wait until files are there."""
    while not all(Path(path).exists() for path in paths):
        time.sleep(_PAUSE_SECONDS)


def ignore_signals() -> None:
    """Ignore every polite request to end."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def start_child(path: str) -> None:
    """Start a process that ignores polite requests, in the same group, and wait until it has made a file."""
    code = f"from mlp_hookspecs.testing import worker; worker.ignore_signals(); worker.touch({path!r}); worker.sleep()"
    subprocess.Popen([sys.executable, "-c", code])
    wait_for([path])


def sleep() -> None:
    """Do nothing for longer than any test waits."""
    time.sleep(3600)


def kill(number: int) -> None:
    """Be killed by a signal."""
    os.kill(os.getpid(), number)
    sleep()


ACTIONS: dict[str, Callable[..., Any]] = {
    "exit": os._exit,
    "ignore_signals": ignore_signals,
    "kill": kill,
    "sleep": sleep,
    "start_child": start_child,
    "touch": touch,
    "wait_for": wait_for,
    "write": write,
    "write_folder": write_folder,
    "write_input": write_input,
    "write_variable": write_variable,
}


def main() -> None:
    """Carry out the request on standard input."""
    die_with_parent()
    messages = MessageWriter(int(os.environ[MESSAGE_FD]))
    request = wire.loads(StepRequest, sys.stdin.buffer.read())
    messages.send({"started": {"host": platform.node(), "pid": os.getpid()}})
    outcome = load(request)(request)
    sys.stdout.flush()
    sys.stderr.flush()
    messages.send({"outcome": wire.encode(outcome)})


if __name__ == "__main__":
    main()
