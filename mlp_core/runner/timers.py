"""What is to happen at a later time, and by which clock."""

from __future__ import annotations

import heapq
import itertools
from typing import Generic, Protocol, TypeVar

_T = TypeVar("_T")


class Clock(Protocol):
    """What tells a driver the time; the standard library's module does."""

    def time(self) -> float:
        """Return the seconds since the epoch, which go into records."""

    def monotonic(self) -> float:
        """Return seconds that only grow, by which timers go."""


class Timers(Generic[_T]):
    """Things that become due; of those due at one time the one that was set first comes first.

    Parameters
    ----------
    clock : Clock
        The time.
    """

    def __init__(self, clock: Clock) -> None:
        """Begin with none."""
        self._clock = clock
        self._waiting: list[tuple[float, int, _T]] = []
        self._numbers = itertools.count()

    def set(self, seconds: float, thing: _T) -> None:
        """Make a thing due in some time from now."""
        heapq.heappush(self._waiting, (self._clock.monotonic() + seconds, next(self._numbers), thing))

    def take(self) -> _T | None:
        """Return the next thing that is due, and forget it; None where nothing is."""
        if self._waiting and self._waiting[0][0] <= self._clock.monotonic():
            return heapq.heappop(self._waiting)[2]
        return None

    def seconds(self) -> float | None:
        """Return how long it is to the next thing, negative where it is overdue; None where there is none."""
        return self._waiting[0][0] - self._clock.monotonic() if self._waiting else None
