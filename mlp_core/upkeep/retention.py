"""Which runs a policy lets go: a pure decision over what is known of the runs."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Final

import attrs

from mlp_core.errors import UsageError
from mlp_core.names import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlp_core.settings import Settings
    from mlp_core.store.index import RunSummary

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SPAN: Final = re.compile(r"([0-9]{1,9})([smhdw])")


@attrs.frozen(kw_only=True)
class Retention:
    """Which runs are kept: one goes if `keep` and `older_than`, as far as they are given, let it, and nothing holds it.

    Attributes
    ----------
    keep : int or None
        The newest so many runs of each flow stay.
    older_than : float or None
        What ended, or began where it has no end, less than so many seconds ago stays.
    keep_successful : int
        The newest so many runs of each flow that succeeded stay, too.
    keep_tagged : tuple of str
        Runs with one of these tags stay, too.
    """

    keep: int | None = None
    older_than: float | None = None
    keep_successful: int = 0
    keep_tagged: tuple[str, ...] = ()

    @property
    def removes(self) -> bool:
        """Whether any run may go."""
        return self.keep is not None or self.older_than is not None

    @classmethod
    def of(cls, settings: Settings) -> Retention:
        """Return the policy that the settings describe."""
        older_than = settings["retention.older_than"]
        return cls(
            keep=settings["retention.keep"],
            older_than=span(older_than, "the setting retention.older_than") if older_than else None,
            keep_successful=settings["retention.keep_successful"],
            keep_tagged=settings["retention.keep_tagged"],
        )


def span(text: str, what: str) -> float:
    """Return the seconds that a span of time means.

    Parameters
    ----------
    text : str
        Such as ``90m``, ``12h``, ``30d``; a lone 0 too.
    what : str
        Where it was given, for the message.

    Raises
    ------
    UsageError
        Where it is none.

    Examples
    --------
    >>> span("12h", "--grace")
    43200.0
    """
    found = _SPAN.fullmatch(text)
    if found is None and text != "0":
        raise UsageError(f"{what} {shown(text)} is no span of time", hint="write 90m, 12h, 30d or 4w")
    return float(found[1]) * _UNITS[found[2]] if found else 0.0


def removable(runs: Sequence[RunSummary], policy: Retention, now: float) -> list[RunSummary]:
    """Return the runs that a policy lets go, newest first.

    A run that goes on is never among them, nor one whose records cannot be read.

    Parameters
    ----------
    runs : sequence of RunSummary
        All runs of the flows in question.
    policy : Retention
        What is kept.
    now : float
        Seconds since the epoch.
    """
    if not policy.removes:
        return []
    seen: Counter[str] = Counter()
    succeeded: Counter[str] = Counter()
    found = []
    for run in sorted(runs, key=lambda each: each.run_id, reverse=True):
        seen[run.flow] += 1
        succeeded[run.flow] += run.status == "succeeded"
        if not _is_held(run, policy, seen[run.flow], succeeded[run.flow], now):
            found.append(run)
    return found


def _is_held(run: RunSummary, policy: Retention, place: int, successes: int, now: float) -> bool:
    """Tell whether a run stays; `place` and `successes` count it and the newer ones of its flow."""
    if run.status in ("running", "damaged"):
        return True
    if policy.keep is not None and place <= policy.keep:
        return True
    ended = run.finished_at if run.finished_at is not None else run.started_at
    if policy.older_than is not None and ended > now - policy.older_than:
        return True
    if run.status == "succeeded" and successes <= policy.keep_successful:
        return True
    return not set(policy.keep_tagged).isdisjoint(run.tags)
