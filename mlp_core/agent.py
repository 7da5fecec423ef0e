"""How a worker starts on a host that is not the driver's: make the step's environment there, then become the worker.

`python -P -m mlp_core.agent` speaks the same protocol as the worker: it reads the request, provisions, and replaces
itself by the worker under the environment's interpreter; without an environment it is the worker.
"""

from __future__ import annotations

import os
import sys
import tempfile
from typing import TYPE_CHECKING, NoReturn

from mlp_core.closure import ship_platform
from mlp_core.environments.bundling import provide
from mlp_core.environments.host import HostEnvironments
from mlp_core.hooks import build_worker_hooks
from mlp_core.store import Store
from mlp_core.store.faults import opened
from mlp_hookspecs import StepRequest, wire
from mlp_hookspecs.process import MESSAGE_FD, die_with_parent

if TYPE_CHECKING:
    from mlp_hookspecs import EnvironmentLock


def main() -> NoReturn:
    """Make the environment of the request on standard input, and become its worker."""
    die_with_parent()
    data = sys.stdin.buffer.read()
    request = wire.loads(StepRequest, data)
    environment = dict(os.environ)
    python = sys.executable
    if request.lock is not None:
        python = _provision(request, request.lock, environment)
    with tempfile.TemporaryFile() as copy:
        copy.write(data)
        copy.flush()
        os.lseek(copy.fileno(), 0, os.SEEK_SET)
        os.dup2(copy.fileno(), 0)
    os.set_inheritable(int(os.environ[MESSAGE_FD]), True)  # noqa: FBT003 # the standard library's signature
    os.execve(python, [python, "-P", "-m", "mlp_core.worker"], environment)  # noqa: S606 # no shell is wanted


def _provision(request: StepRequest, lock: EnvironmentLock, environment: dict[str, str]) -> str:
    """Make the environment, add its variables, and return its interpreter."""
    hooks, _ = build_worker_hooks(request.plugins, request.settings)

    def store() -> Store:
        return Store.open(opened(request.store, hooks.open_store), create=False)

    # The worker that this process becomes holds it until it ends.
    made = provide(HostEnvironments(), hooks, lock, store, outlives=True)
    environment.update(made.variables)
    if not made.has_platform:
        environment["PYTHONPATH"] = str(ship_platform(request.plugins))
    return made.python


if __name__ == "__main__":
    main()
