"""How it is known that a run's driver is there, and how a driver knows that it was away for too long.

Where the store has locks, the system takes a dead driver's lock back at once. Beside it the driver renews a lease every
quarter of the lease's length: it makes the lock's file new, or rewrites an object where there is no such file. What is
compared are the store's clock and the reader's.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Final, Self

import attrs

from mlp_core.errors import StoreError, StoreFenced
from mlp_core.store import layout
from mlp_core.store.faults import translated

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlp_hookspecs.handles import ObjectStore

DEFAULT_SECONDS: Final = 60.0
"""The length of a lease unless a setting says otherwise."""

_RENEWALS: Final = 4
_JOIN_SECONDS: Final = 2.0


@attrs.frozen
class Pulse:
    """What was seen of a run's driver at some moment, before the run's records were read.

    Attributes
    ----------
    is_locked : bool
        Whether the run's lock was held; true where the store has no locks.
    renewed_at : float or None
        When the lease was renewed, in seconds since the epoch; None where there was none.
    taken_at : float
        When this was looked at.
    """

    is_locked: bool
    renewed_at: float | None
    taken_at: float

    @classmethod
    def take(cls, objects: ObjectStore, flow: str, run_id: str) -> Self:
        """Look at a run."""
        lock = layout.lock(flow, run_id)
        is_locked = objects.is_locked(lock) or objects.lock(lock) is None
        renewed_at = None
        if is_locked:
            with contextlib.suppress(FileNotFoundError):
                renewed_at = objects.info(_key(objects, flow, run_id)).modified_at
        return cls(is_locked, renewed_at, time.time())

    def is_alive(self, seconds: float) -> bool:
        """Tell whether the driver of a run was there whose lease has some length."""
        return self.is_locked and self.renewed_at is not None and self.taken_at < self.renewed_at + seconds


def _key(objects: ObjectStore, flow: str, run_id: str) -> str:
    """Return the key of what is renewed."""
    lock = layout.lock(flow, run_id)
    return layout.lease(flow, run_id) if objects.local_path(lock) is None else lock


class Lease:
    """The driver's side: renews the lease in a thread of its own, and tells when this process was away for too long.

    A process that was stopped cannot know what others have done meanwhile. It finds that it was by the time that has
    passed between two looks at the clock without its having computed anything in between. A system that sleeps stops
    the clock too, so that a laptop's run goes on when it wakes up; where somebody has taken the run over in the
    meantime, the store refuses this driver's next record.

    Parameters
    ----------
    objects : ObjectStore
        The store.
    flow, run_id : str
        The run.
    seconds : float
        The lease's length.
    clock, busy : callable
        Return seconds that pass, and seconds that this process has computed for.
    """

    def __init__(  # noqa: PLR0913 # the last two are a test's
        self,
        objects: ObjectStore,
        flow: str,
        run_id: str,
        seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        busy: Callable[[], float] = time.process_time,
    ) -> None:
        """Make the lease; `start` begins to renew it."""
        self._objects = objects
        self._key = _key(objects, flow, run_id)
        self._file = objects.local_path(self._key)
        self._place = f"{flow}/{run_id}"
        self._seconds = seconds
        self._clock = clock
        self._busy = busy
        self._seen = (clock(), busy())
        self._renewed = clock()
        self._lapsed = 0.0
        self._closed = threading.Event()
        self._guard = threading.Lock()
        self._thread = threading.Thread(target=self._renew_always, name="mlp-lease", daemon=True)

    @property
    def pause(self) -> float:
        """Seconds between two renewals."""
        return self._seconds / _RENEWALS

    def start(self) -> None:
        """Renew the lease, and go on with that."""
        self.renew()
        self._thread.start()

    def check(self) -> None:
        """Return where this driver may go on.

        Raises
        ------
        StoreFenced
            Where this process was stopped for longer than the lease; from then on always.
        """
        self._look()
        if self._lapsed:
            run_id = self._place.partition("/")[2]
            raise StoreFenced(
                f"the driver of {self._place} was stopped for {self._lapsed:.0f} s, longer than its lease of"
                f" {self._seconds:g} s, so nothing more is committed",
                hint=f"go on from what was committed: mlp resume FLOW.py --origin-run-id {run_id}",
            )

    def _look(self) -> None:
        """Find out whether this process was stopped since the last look."""
        with self._guard:
            now, busy = self._clock(), self._busy()
            away, computed = now - self._seen[0], busy - self._seen[1]
            # Who computed meanwhile was not stopped, only kept from looking, as by a library that lets no thread run.
            if away > self._seconds and computed < away / 2:
                self._lapsed = away
            self._seen = (now, busy)
            # Without a store that has one winner for each object, a lease that was not renewed protects nobody.
            if not self._objects.creates_once and now - self._renewed > self._seconds:
                self._lapsed = now - self._renewed

    def _renew_always(self) -> None:
        """Renew the lease until it is closed or has lapsed."""
        while not self._closed.wait(self.pause):
            self._look()
            if self._lapsed:
                return
            with contextlib.suppress(StoreError):  # the next time may succeed; until then the lease grows old
                self.renew()

    def renew(self) -> None:
        """Renew the lease once; StoreError where that fails."""
        if self._file is None:
            self._objects.replace(self._key, b"", sync=False)
        else:
            with translated(str(self._file), absence_passes=False):
                os.utime(self._file)
        self._renewed = self._clock()

    def close(self, *, remove: bool) -> None:
        """Stop renewing it.

        Parameters
        ----------
        remove : bool
            Whether to remove the lease's object too, since the run has ended and is found without it.
        """
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(_JOIN_SECONDS)
        if remove and self._file is None:
            with contextlib.suppress(StoreError):
                self._objects.delete(self._key)
