"""The row ``simulation`` in its short form, and what makes its result believable."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from mlp_reliability import run_row
from mlp_reliability.memory import MemoryStore
from mlp_reliability.simulation import trace
from mlp_reliability.simulation.flows import Flow
from mlp_reliability.simulation.oracle import Oracle

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.reliability
@pytest.mark.timeout(600)
def test_short_form(tmp_path: Path) -> None:
    """Nothing that a driver promises is broken in the short form, and everything that can happen does happen in it."""
    result = run_row("simulation", tmp_path)
    assert result.violations == []
    for what in ("deaths", "power cuts", "cut journals", "reused", "succeeded", "failed", "cancelled"):
        assert result.details[what] > result.n / 50, what


def test_seeds_differ() -> None:
    """Another seed gives other runs; the same one gives the same."""
    assert trace(1, 5) == trace(1, 5) != trace(2, 5)


def test_flows_have_everything() -> None:
    """A hundred flows have every kind of step, empty foreach, loops that turn, and tasks inside several foreach."""
    kinds: set[str] = set()
    deepest = most_turns = empty = 0
    for seed in range(100):
        flow = Flow(seed)
        kinds |= {node.kind for node in flow.graph.steps}
        for key, task in Oracle(flow).tasks.items():
            deepest = max(deepest, len(key.index))
            most_turns = max(most_turns, key.loop)
            empty += task.split is not None
    assert kinds == {"linear", "split", "foreach", "switch", "end"}
    assert deepest >= 3
    assert most_turns >= 3
    assert empty > 10


def test_power_cut_takes_what_was_not_synced() -> None:
    """What was synced survives; what was not is there, or not, or in part, and a replaced object may be the old one."""
    seen: dict[str, set[bytes | None]] = {"synced": set(), "new": set(), "grown": set(), "replaced": set()}
    for seed in range(200):
        store = MemoryStore(lambda: 0.0)
        store.create("synced", b"abc", sync=True)
        store.create("new", b"abc", sync=False)
        store.create("replaced", b"old", sync=True)
        store.replace("replaced", b"abc", sync=False)
        file = store.open_append("grown")
        assert file is not None
        file.append(b"a", sync=True)
        file.append(b"bc", sync=False)
        left = store.after_power_cut(random.Random(seed))  # noqa: S311 # a test's choice
        for key, found in seen.items():
            found.add(left.read(key) if key in left.keys() else None)  # noqa: SIM118 # not a mapping
    assert seen == {
        "synced": {b"abc"},
        "new": {b"abc", None},
        "grown": {b"a", b"ab", b"abc", b"a\0\0", b"ab\0"},
        "replaced": {b"abc", b"old"},
    }
