"""A Ray cluster of two nodes on this host, for the tests that need one."""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


class TwoNodes:
    """The running cluster: its head, and a second node that has the resource ``second``.

    Parameters
    ----------
    process : subprocess.Popen
        What keeps it.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address = self._read()
        self.add("second")

    def add(self, name: str) -> None:
        """Start a node that has the resource of that name."""
        self._order(f"add {name}\n")

    def lose(self, name: str) -> None:
        """End a node as a power cut would."""
        self._order(f"lose {name}\n")

    def _order(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()
        assert self._read() == "done"

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, "the cluster has ended; its reason is on the standard error"
        return line


@pytest.fixture(scope="session")
def two_nodes() -> Iterator[TwoNodes]:
    """The cluster."""
    command = [sys.executable, Path(__file__).with_name("two_nodes.py")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")  # else Ray kills attempts when others fill the memory
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            yield TwoNodes(process)


@pytest.fixture
def cluster(two_nodes: TwoNodes, monkeypatch: pytest.MonkeyPatch) -> TwoNodes:
    """The cluster, as the one that is used where no setting names another."""
    monkeypatch.setenv("RAY_ADDRESS", two_nodes.address)
    return two_nodes
