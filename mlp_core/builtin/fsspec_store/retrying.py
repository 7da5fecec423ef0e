"""How one request is tried again: exponential backoff with full jitter, up to a bounded time."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Final, TypeVar

from mlp_core.builtin.fsspec_store import failures

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlp_hookspecs.masking import Masker

_T = TypeVar("_T")

_FIRST_DELAY: Final = 0.1
_LONGEST_DELAY: Final = 20.0
_FIRST_ANSWER_SECONDS: Final = 10.0
"""How long a place that never answered is tried: most likely its address is wrong."""


class Retrying:
    """Carries out requests, again where that may help. Used by several threads.

    Parameters
    ----------
    place : str
        The store's URL, for messages.
    seconds : float
        How long one request is tried in all, at most.
    masker : Masker
        Keeps secrets out of messages.
    """

    def __init__(self, place: str, seconds: float, masker: Masker) -> None:
        """Begin; nobody has answered yet."""
        self._place = place
        self._seconds = seconds
        self._masker = masker
        self._answered = False
        # Not the global one: tasks seed that, and would then all wait equally long.
        self._random = random.SystemRandom()

    def __call__(
        self, what: str, request: Callable[[], _T], *, passing: Callable[[Exception], bool] | None = None
    ) -> _T:
        """Carry out a request.

        Parameters
        ----------
        what : str
            The key that is asked for; empty for none.
        request : callable
            Carries it out; may be called several times.
        passing : callable, optional
            Tells which errors are an answer, and are raised unchanged.

        Raises
        ------
        OSError
            Where it failed for good, or for too long.
        """
        begun = time.monotonic()
        attempt = 0
        while True:
            try:
                answer = request()
            except Exception as error:  # libraries of many vendors raise whatever they like
                if passing is not None and passing(error):
                    self._answered = True
                    raise
                if not self._may_wait(error, begun, attempt):
                    raise self._final(error, what, attempt, begun) from error
                attempt += 1
            else:
                self._answered = True
                return answer

    def _may_wait(self, error: Exception, begun: float, attempt: int) -> bool:
        """Wait before the next attempt; return at once and False where there is none."""
        if not failures.is_transient(error):
            return False
        if not failures.is_unreachable(error):
            self._answered = True
        seconds = self._seconds if self._answered else min(self._seconds, _FIRST_ANSWER_SECONDS)
        left = begun + seconds - time.monotonic()
        if left <= 0:
            return False
        delay = self._random.uniform(0, min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(attempt, 20)))
        time.sleep(min(delay, left))
        return True

    def told(self, error: Exception, what: str) -> OSError:
        """Return how an error about a key is told."""
        return failures.os_error(error, f"{self._place}/{what}".rstrip("/"), self._masker)

    def _final(self, error: Exception, what: str, attempt: int, begun: float) -> OSError:
        """Return what is raised in the end."""
        final = self.told(error, what)
        if attempt:
            final.strerror = f"{final.strerror} (tried {attempt + 1} times in {time.monotonic() - begun:.0f} s)"
        return final
