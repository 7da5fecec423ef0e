"""The worker's process: `python -P -m mlp_core.worker`, speaking the protocol of `mlp_hookspecs.process`."""

from __future__ import annotations

import io
import os
import platform
import sys

from mlp_core.worker.execute import prepare
from mlp_hookspecs import StepRequest, wire
from mlp_hookspecs.process import MESSAGE_FD, MessageWriter, die_with_parent, guard

EXTRA_PATH = "MLP_WORKER_PATH"
"""The environment variable with folders that the driver's own path had on top of the interpreter's."""


def main() -> int:
    """Carry out the request on standard input.

    Returns
    -------
    int
        The exit status: 0 where an outcome was sent, be it a failure.
    """
    guard()
    die_with_parent()
    messages = MessageWriter(int(os.environ[MESSAGE_FD]))
    request = wire.loads(StepRequest, sys.stdin.buffer.read())
    devnull = os.open(os.devnull, os.O_RDONLY)
    os.dup2(devnull, 0)
    os.close(devnull)
    show_lines_at_once()
    messages.send({"started": {"host": platform.node(), "pid": os.getpid()}})
    extend_path()
    outcome = prepare(request)(request)
    sys.stdout.flush()
    sys.stderr.flush()
    messages.send({"outcome": wire.encode(outcome)})
    return 0


def show_lines_at_once() -> None:
    """Write out each line that is printed, so that it is not lost where the process is killed."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


def extend_path() -> None:
    """Add the folders to the path that the driver had on its own."""
    for folder in os.environ.get(EXTRA_PATH, "").split(os.pathsep):
        if folder and folder not in sys.path:
            sys.path.append(folder)


if __name__ == "__main__":
    sys.exit(main())
