"""How a warm process gets ready for its tasks: it goes through the motions of a small one, a few times.

A forked task pays for every page that it is the first to write, and the first run of any Python code writes: caches
fill, bytecode specialises. Done before the fork, this is paid once; a task's own overhead halves.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING, Any

import attrs

from mlp_core.loading import MARK
from mlp_core.store import Store
from mlp_hookspecs import ArtifactRef, ForeachFrame, StepNode, StepOutcome, StepRequest, TaskInput, TaskKey, wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlp_core.worker.execute import Worker

_ROUNDS = 8
"""CPython's interpreter specialises code within this many runs."""


def rehearse(worker: Worker, request: StepRequest) -> None:
    """Run a step of no consequence: it reads and assigns small values, prints and stores nothing.

    Parameters
    ----------
    worker : Worker
        The worker; its plugins' wraps are left out.
    request : StepRequest
        A request of the run.
    """
    with _local_store(worker, request.store) as store:
        _rehearse(worker, attrs.evolve(request, store=store))


def _rehearse(worker: Worker, request: StepRequest) -> None:
    """Run the step."""
    flow = _rehearsal_flow(worker.flow)
    stand_in = attrs.evolve(worker, flow=flow, is_rehearsal=True)
    item = _small(b"1", "int")
    task = attrs.evolve(
        request,
        key=TaskKey("start", (0,)),
        node=StepNode("start", "linear", ("end",)),
        inputs=(TaskInput(TaskKey("start"), {"xs": item, "text": _small(b'"text"', "str")}),),
        frames=(ForeachFrame("start", "xs", 0, 1, item),),
        formats={},
        secrets=(),
    )
    for _ in range(_ROUNDS):
        outcome = stand_in(wire.loads(StepRequest, wire.dumps(task)))
        wire.decode(StepOutcome, wire.encode(outcome))


@contextlib.contextmanager
def _local_store(worker: Worker, url: str) -> Iterator[str]:
    """Give the URL of a store that can be used before a fork.

    What libraries of buckets start would not survive it.
    """
    if "://" not in url or url.startswith("file:"):
        yield url
        return
    import tempfile

    with tempfile.TemporaryDirectory(prefix="mlp-rehearsal-") as folder:
        objects = worker.hooks.open_store(folder)
        Store.open(objects, create=True)
        objects.close()
        yield folder


def _rehearsal_flow(flow: type[Any]) -> type[Any]:
    """Return a flow of one step on the platform's own base."""
    base = next((base for base in flow.__mro__ if base.__dict__.get(MARK) is True), object)

    def start(self: Any) -> None:
        self.y = self.input + self.index
        self.ys = [self.y, self.xs, self.text]
        self.pair = {"y": (self.y, self.xs)}
        self.next(self.end)

    def end(self: Any) -> None:
        self.next()

    return type(flow.__name__, (base,), {"start": start, "end": end})


def _small(data: bytes, kind: str) -> ArtifactRef:
    """Return a reference that holds a JSON value."""
    return ArtifactRef("json", f"sha256-{hashlib.sha256(data).hexdigest()}", len(data), kind, data)
