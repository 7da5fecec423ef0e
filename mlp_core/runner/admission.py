"""Which ready tasks may start now: resources, the bound on workers, and the limits of steps; pure decisions."""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, TypeAlias

import attrs

from mlp_hookspecs import Resources

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


PER_CORE = 16
"""How many attempts may run at once for each core of the driver's host, however little they ask for."""

_TOOL_SECONDS = 10

OVERTAKINGS = 32
"""How many younger attempts may start before one that waits for room on the driver's host."""


_Shape: TypeAlias = tuple[str, str, float, int, float]


@attrs.frozen(eq=False, repr=False)
class Demand:
    """What a ready attempt asks for.

    Attributes
    ----------
    id : str
        The attempt.
    step : str
        Its step.
    launcher : str
        Its launcher.
    resources : Resources
        What it asks for.
    """

    id: str
    step: str
    launcher: str
    resources: Resources


@attrs.frozen(eq=False, repr=False)
class Machine:
    """What the driver's host has to give.

    Attributes
    ----------
    cpu : float
        Cores.
    memory_mb : int
        Mebibytes; 0 where the system cannot tell.
    gpu : int
        GPUs; 0 where there is none to be seen. They are counted, not assigned: tasks that run at once see them all.

    Notes
    -----
    Scratch space and custom resources are not counted on the driver's host: nothing tells what of them is in use.
    """

    cpu: float
    memory_mb: int
    gpu: int = 0

    @classmethod
    def measure(cls, *, with_gpus: bool = False) -> Machine:
        """Measure this host; its GPUs only where that is asked for, since the tool that knows them is slow."""
        try:
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
        except (ValueError, OSError):
            memory = 0
        return cls(usable_cores(), memory, visible_gpus() if with_gpus else 0)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_gpus() -> int:
    """Return how many GPUs processes of this one may use: by ``CUDA_VISIBLE_DEVICES``, else by ``nvidia-smi``."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        devices = [device.strip() for device in listed.split(",")]
        # CUDA ends the list at the first that is none.
        return next((place for place, device in enumerate(devices) if not device or device[0] == "-"), len(devices))
    import shutil
    import subprocess

    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    try:
        found = subprocess.run([tool, "-L"], capture_output=True, timeout=_TOOL_SECONDS, check=True, text=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in found.stdout.splitlines())


def lacking_gpus(machine: Machine, asked: Mapping[str, float]) -> str:
    """Return what to tell a user whose steps ask for more GPUs than a machine has; empty where there is nothing to.

    Parameters
    ----------
    machine : Machine
        The driver's host.
    asked : mapping of str to float
        How many GPUs a task asks for, by step, for the steps that run there.
    """
    steps = [name for name, gpus in asked.items() if gpus > machine.gpu]
    if not steps:
        return ""
    verb = "asks" if len(steps) == 1 else "ask"
    most = f"{max(asked[name] for name in steps):g}"
    if machine.gpu == 0:
        return f"{', '.join(steps)} {verb} for GPUs, and none can be seen on this machine: running without"
    return f"{', '.join(steps)} {verb} for up to {most} GPUs, and this machine has {machine.gpu}: running alone"


class Admission:
    """The queue of ready attempts.

    Parameters
    ----------
    machine : Machine
        What attempts on the driver's host share.
    max_workers : int or None
        At most so many attempts at once, wherever they run.
    limits : mapping of str to int
        At most so many attempts of a step at once.
    capacities : mapping of str to int or None
        For each launcher beyond the driver's host, how many attempts it takes; launchers that are not named share
        the driver's host.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        max_workers: int | None,
        limits: Mapping[str, int],
        capacities: Mapping[str, int | None],
    ) -> None:
        """Begin with an empty queue."""
        self._machine = machine
        self._max_workers = max_workers
        self._limits = limits
        self._capacities = capacities
        self._waiting: dict[_Shape, deque[Demand]] = {}
        self._order: dict[str, int] = {}
        self._count = 0
        self._running: dict[str, Demand] = {}
        self._by_step: dict[str, int] = {}
        self._by_launcher: dict[str, int] = {}
        self._passed_over: str | None = None
        self._overtakings = 0

    def __len__(self) -> int:
        """Return how many attempts wait."""
        return len(self._order)

    @property
    def running(self) -> int:
        """How many attempts have been admitted and not released."""
        return len(self._running)

    def is_running(self, attempt_id: str) -> bool:
        """Tell whether an attempt has been admitted and not released."""
        return attempt_id in self._running

    def running_demands(self) -> Sequence[Demand]:
        """Return the attempts that have been admitted and not released."""
        return list(self._running.values())

    def add(self, demand: Demand) -> None:
        """Queue an attempt."""
        self._waiting.setdefault(_shape(demand), deque()).append(demand)
        self._order[demand.id] = self._count
        self._count += 1

    def admit(self) -> Sequence[Demand]:
        """Return the attempts that may start, oldest first, and count them as running."""
        admitted = []
        while (demand := self._next()) is not None:
            self._start(demand)
            admitted.append(demand)
        return admitted

    def release(self, attempt_id: str) -> None:
        """Give back what an admitted attempt held."""
        demand = self._running.pop(attempt_id)
        self._by_step[demand.step] -= 1
        self._by_launcher[demand.launcher] -= 1

    def drop_waiting(self) -> None:
        """Forget all that wait."""
        self._waiting.clear()
        self._order.clear()

    def _next(self) -> Demand | None:
        """Return the oldest attempt that fits; of one shape only the oldest need be looked at."""
        if self._max_workers is not None and len(self._running) >= self._max_workers:
            return None
        free = sorted((q[0] for q in self._waiting.values() if self._is_free(q[0])), key=self._age)
        found = next((demand for demand in free if self._has_room(demand)), None)
        starved = next((demand for demand in free if self._is_here(demand) and not self._has_room(demand)), None)
        if found is None or starved is None or not self._is_here(found) or self._age(found) < self._age(starved):
            return found
        return self._overtaking(found, starved, free)

    def _overtaking(self, found: Demand, starved: Demand, free: Sequence[Demand]) -> Demand | None:
        """Let one attempt start before an older one that waits for room on this host, unless too many have."""
        if self._passed_over != starved.id:
            self._passed_over, self._overtakings = starved.id, 0
        if self._overtakings < OVERTAKINGS:
            self._overtakings += 1
            return found
        elsewhere = (demand for demand in free if not self._is_here(demand) and self._has_room(demand))
        return next(elsewhere, None)

    def _age(self, demand: Demand) -> int:
        """Return an attempt's place in the queue."""
        return self._order[demand.id]

    def _is_here(self, demand: Demand) -> bool:
        """Tell whether an attempt would run on the driver's host."""
        return demand.launcher not in self._capacities

    def _start(self, demand: Demand) -> None:
        """Move an attempt from the queue to the running ones."""
        shape = _shape(demand)
        queue = self._waiting[shape]
        queue.popleft()
        if not queue:
            del self._waiting[shape]
        del self._order[demand.id]
        self._running[demand.id] = demand
        self._by_step[demand.step] = self._by_step.get(demand.step, 0) + 1
        self._by_launcher[demand.launcher] = self._by_launcher.get(demand.launcher, 0) + 1

    def _is_free(self, demand: Demand) -> bool:
        """Tell whether neither the step's limit nor its launcher's capacity holds an attempt back."""
        limit = self._limits.get(demand.step)
        if limit is not None and self._by_step.get(demand.step, 0) >= limit:
            return False
        capacity = self._capacities.get(demand.launcher)
        return capacity is None or self._by_launcher.get(demand.launcher, 0) < capacity

    def _has_room(self, demand: Demand) -> bool:
        """Tell whether the driver's host has room for an attempt, or need not have any."""
        if not self._is_here(demand):
            return True
        here = [running for running in self._running.values() if self._is_here(running)]
        # What asks for more than the machine has runs alone, rather than never.
        if not here:
            return True
        machine = self._machine
        if len(here) >= PER_CORE * machine.cpu:
            return False
        cpu = sum(d.resources.cpu for d in here) + demand.resources.cpu
        memory = sum(d.resources.memory_mb for d in here) + demand.resources.memory_mb
        gpu = sum(d.resources.gpu for d in here) + demand.resources.gpu
        # What cannot be measured is not counted.
        is_enough = cpu <= machine.cpu and (machine.memory_mb == 0 or memory <= machine.memory_mb)
        return is_enough and (machine.gpu == 0 or demand.resources.gpu == 0 or gpu <= machine.gpu)


def _shape(demand: Demand) -> _Shape:
    """Return what decides whether an attempt fits: attempts of one shape fit alike."""
    asked = demand.resources
    return demand.step, demand.launcher, asked.cpu, asked.memory_mb, asked.gpu
