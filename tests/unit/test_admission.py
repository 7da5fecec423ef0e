"""Which ready attempts start, given what runs and what the machine has."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlp_core.runner.admission import (
    OVERTAKINGS,
    PER_CORE,
    Admission,
    Demand,
    Machine,
    lacking_gpus,
    usable_cores,
    visible_gpus,
)
from mlp_hookspecs import Resources

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FOUR = Machine(cpu=4, memory_mb=1000)


def admission(
    machine: Machine = FOUR,
    *,
    max_workers: int | None = None,
    limits: Mapping[str, int] | None = None,
    capacities: Mapping[str, int | None] | None = None,
) -> Admission:
    """Return an empty queue."""
    return Admission(machine, max_workers=max_workers, limits=limits or {}, capacities=capacities or {})


def demand(  # noqa: PLR0913 # what it asks for, by name
    name: str, step: str = "work", launcher: str = "local", *, cpu: float = 1, memory: int = 0, gpu: float = 0
) -> Demand:
    """Return a demand."""
    return Demand(name, step, launcher, Resources(cpu=cpu, memory_mb=memory, gpu=gpu))


def admitted(queue: Admission) -> list[str]:
    """Admit what fits, and return the attempts."""
    return [demand.id for demand in queue.admit()]


def test_as_many_start_as_the_machine_has_cores() -> None:
    """Attempts of one core each fill the cores in the order of their readiness; an end lets the next one start."""
    queue = admission()
    for number in range(6):
        queue.add(demand(str(number)))
    assert admitted(queue) == ["0", "1", "2", "3"]
    assert (queue.running, len(queue)) == (4, 2)
    assert admitted(queue) == []
    queue.release("2")
    assert admitted(queue) == ["4"]


@pytest.mark.parametrize(
    ("resources", "expected"),
    [({"cpu": 0.5}, 8), ({"cpu": 2}, 2), ({"memory": 300}, 3), ({"cpu": 2, "memory": 600}, 1)],
)
def test_resources_are_counted(resources: dict[str, int], expected: int) -> None:
    """Cores and memory that attempts ask for never add up to more than the machine has."""
    queue = admission()
    for number in range(10):
        queue.add(demand(str(number), **resources))
    assert len(admitted(queue)) == expected


def test_more_than_the_machine_has_runs_alone() -> None:
    """An attempt that asks for more than there is runs while nothing else does, rather than never."""
    queue = admission()
    queue.add(demand("huge", cpu=64, memory=10**6))
    queue.add(demand("small"))
    assert admitted(queue) == ["huge"]
    queue.release("huge")
    assert admitted(queue) == ["small"]
    queue.add(demand("huge again", cpu=64))
    assert admitted(queue) == []
    queue.release("small")
    assert admitted(queue) == ["huge again"]


def test_memory_is_not_counted_where_it_cannot_be_measured() -> None:
    """A machine that does not tell its memory admits by cores alone."""
    queue = admission(Machine(cpu=2, memory_mb=0))
    for number in range(3):
        queue.add(demand(str(number), memory=10**9))
    assert admitted(queue) == ["0", "1"]


@pytest.mark.parametrize(("gpu", "expected"), [(1, 2), (0.5, 4), (2, 1), (3, 1)])
def test_gpus_are_counted(gpu: float, expected: int) -> None:
    """GPUs that attempts ask for never add up to more than there are; others do not wait for them."""
    queue = admission(Machine(cpu=4, memory_mb=0, gpu=2))
    for number in range(6):
        queue.add(demand(f"gpu {number}", cpu=0.5, gpu=gpu))
    assert len(admitted(queue)) == expected
    queue.add(demand("none", "other", cpu=0.5))
    assert admitted(queue) == ["none"]


def test_gpus_are_not_counted_where_there_are_none() -> None:
    """Steps that ask for GPUs run on a machine without as if they had not."""
    queue = admission()
    for number in range(6):
        queue.add(demand(str(number), gpu=8))
    assert admitted(queue) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("cpu", [0, 0.001])
def test_attempts_that_ask_for_nothing_are_bounded(cpu: float) -> None:
    """However little attempts ask for, a core has only so many of them at once."""
    queue = admission()
    for number in range(10 * PER_CORE):
        queue.add(demand(str(number), cpu=cpu))
    assert len(admitted(queue)) == 4 * PER_CORE
    queue.release("0")
    assert len(admitted(queue)) == 1


@pytest.mark.parametrize(
    ("listed", "expected"),
    [("0", 1), ("0,1", 2), ("", 0), ("-1", 0), ("1,-1,0", 1), ("GPU-8f2c, GPU-11aa", 2), ("0,,1", 1)],
)
def test_gpus_that_the_environment_lists(monkeypatch: pytest.MonkeyPatch, listed: str, expected: int) -> None:
    """The variable that CUDA reads says which devices there are, up to the first entry that names none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert visible_gpus() == expected
    assert Machine.measure(with_gpus=True).gpu == expected
    assert Machine.measure().gpu == 0


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'GPU 0: A100 (UUID: GPU-1)'; echo '  MIG 1g.5gb'; echo 'GPU 1: A100 (UUID: GPU-2)'", 2),
        ("echo 'No devices were found'; exit 6", 0),
        (None, 0),
    ],
)
def test_gpus_that_the_tool_lists(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str | None, expected: int
) -> None:
    """Without the variable the driver's own tool tells; where there is no tool there are no GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    if script is not None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
    assert visible_gpus() == expected


def test_what_is_told_of_lacking_gpus() -> None:
    """One line says which steps ask for GPUs that are not there, and what becomes of them."""
    none, two = Machine(cpu=1, memory_mb=0), Machine(cpu=1, memory_mb=0, gpu=2)
    assert lacking_gpus(none, {}) == lacking_gpus(two, {"train": 2}) == ""
    assert lacking_gpus(none, {"train": 0.5}) == (
        "train asks for GPUs, and none can be seen on this machine: running without"
    )
    assert lacking_gpus(two, {"a": 3, "b": 4, "c": 1}) == (
        "a, b ask for up to 4 GPUs, and this machine has 2: running alone"
    )


def test_max_workers_bounds_all_launchers_together() -> None:
    """``max_workers`` counts attempts wherever they run."""
    queue = admission(max_workers=3, capacities={"far": None})
    for number in range(4):
        queue.add(demand(f"here {number}"))
        queue.add(demand(f"far {number}", launcher="far"))
    assert admitted(queue) == ["here 0", "far 0", "here 1"]


def test_limits_bound_a_step() -> None:
    """A step's limit holds back its own attempts and nobody else's."""
    queue = admission(limits={"work": 1})
    for number in range(2):
        queue.add(demand(f"work {number}"))
        queue.add(demand(f"other {number}", "other"))
    assert admitted(queue) == ["work 0", "other 0", "other 1"]
    queue.release("work 0")
    assert admitted(queue) == ["work 1"]


def test_a_launcher_elsewhere_takes_what_it_has_room_for() -> None:
    """Attempts on another host count against that launcher's capacity, not against this machine."""
    queue = admission(capacities={"small": 2, "vast": None})
    for number in range(5):
        queue.add(demand(f"small {number}", launcher="small", cpu=100))
        queue.add(demand(f"vast {number}", launcher="vast", cpu=100))
        queue.add(demand(f"here {number}"))
    names = admitted(queue)
    assert [sum(name.startswith(kind) for name in names) for kind in ("small", "vast", "here")] == [2, 5, 4]


def test_small_attempts_fill_the_gaps() -> None:
    """While the oldest does not fit, younger ones that do may start."""
    queue = admission()
    queue.add(demand("first", cpu=3))
    queue.add(demand("wide", cpu=4))
    queue.add(demand("narrow"))
    assert admitted(queue) == ["first", "narrow"]


def test_a_wide_attempt_is_not_overtaken_for_ever() -> None:
    """However many small attempts keep coming, one that needs the whole machine starts after a bounded number."""
    queue = admission()
    queue.add(demand("busy"))
    queue.add(demand("wide", cpu=4))
    running = list(admitted(queue))
    for number in itertools.count():
        queue.add(demand(f"small {number}"))
        running += admitted(queue)
        if "wide" in running:
            break
        assert number < 2 * OVERTAKINGS
        queue.release(running.pop(0))
    assert running == ["wide"]


def test_a_limit_holds_up_nobody_else() -> None:
    """An attempt that waits for its step's limit may be overtaken as often as it takes."""
    queue = admission(limits={"one": 1})
    queue.add(demand("first", "one", cpu=0))
    queue.add(demand("second", "one", cpu=0))
    assert admitted(queue) == ["first"]
    for number in range(3 * OVERTAKINGS):
        queue.add(demand(str(number)))
        assert admitted(queue) == [str(number)]
        queue.release(str(number))


def test_dropping_leaves_the_running_ones() -> None:
    """What waits can be forgotten; what runs is still counted and given back."""
    queue = admission()
    for number in range(6):
        queue.add(demand(str(number)))
    admitted(queue)
    queue.drop_waiting()
    assert (queue.running, len(queue)) == (4, 0)
    assert [demand.id for demand in queue.running_demands()] == ["0", "1", "2", "3"]
    for number in range(4):
        queue.release(str(number))
    assert (queue.running, admitted(queue)) == (0, [])


def test_machine_is_measured() -> None:
    """A machine has a core that we may use, and some memory."""
    machine = Machine.measure()
    assert machine.cpu == usable_cores() >= 1
    assert machine.memory_mb > 0


DEMANDS = st.builds(
    demand,
    st.just(""),
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from(["local", "far"]),
    cpu=st.sampled_from([0.5, 1, 2, 4, 9]),
    memory=st.sampled_from([0, 400, 1500]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(DEMANDS, max_size=40), st.none() | st.integers(1, 5), st.randoms(use_true_random=False))
def test_every_attempt_starts_once_and_bounds_hold(
    demands: list[Demand], max_workers: int | None, order: object
) -> None:
    """In whatever order attempts end, each starts exactly once, and no bound is ever exceeded."""
    import random

    assert isinstance(order, random.Random)
    queue = admission(max_workers=max_workers, limits={"a": 2}, capacities={"far": 3})
    by_id = {}
    for number, each in enumerate(demands):
        by_id[str(number)] = Demand(str(number), each.step, each.launcher, each.resources)
        queue.add(by_id[str(number)])
    running: list[str] = []
    started: list[str] = []
    while len(started) < len(demands):
        new = admitted(queue)
        assert new or running, "nothing runs and nothing starts"
        running += new
        started += new
        here = [by_id[name] for name in running if by_id[name].launcher == "local"]
        assert max_workers is None or len(running) <= max_workers
        assert sum(by_id[name].step == "a" for name in running) <= 2
        assert len(running) - len(here) <= 3
        if len(here) > 1:
            assert sum(each.resources.cpu for each in here) <= FOUR.cpu
            assert sum(each.resources.memory_mb for each in here) <= FOUR.memory_mb
        if running:
            queue.release(running.pop(order.randrange(len(running))))
    assert sorted(started) == sorted(by_id)
