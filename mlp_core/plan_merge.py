"""What a step's plan is when several plugins have an opinion: pure merging, where a contradiction names both sides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from mlp_core.errors import OptionError
from mlp_hookspecs import PluginId, Resources, StepPlan

if TYPE_CHECKING:
    from collections.abc import Iterable

_SINGLE: Final = (
    "launcher",
    "environment",
    "environment_name",
    "environment_at_exec",
    "grace_seconds",
    "retry",
    "catch",
    "concurrency",
)
_KEYED: Final = ("launcher_options", "variables", "formats")


@attrs.frozen(eq=False, repr=False)
class Opinion:
    """What one plugin plans.

    Attributes
    ----------
    plugin : PluginId
        Whose opinion it is.
    plan : StepPlan
        The opinion.
    """

    plugin: PluginId
    plan: StepPlan


def merge_plans(step: str, opinions: Iterable[Opinion]) -> StepPlan:
    """Merge what plugins plan for one step.

    Resources are the largest of each kind, the time limit is the smallest, secrets and mappings are united; whatever
    else two plugins set must be equal.

    Parameters
    ----------
    step : str
        The step's name, for messages.
    opinions : iterable of Opinion
        The opinions; their order does not matter, but for the order of secrets.

    Returns
    -------
    StepPlan
        The merged plan.

    Raises
    ------
    OptionError
        Where two contradict each other; the message names both plugins and both values.
    """
    merged: dict[str, Any] = {}
    said_by: dict[tuple[str, str], PluginId] = {}

    def agree(field: str, key: str, old: object, new: object, plugin: PluginId) -> None:
        """Refuse a second, different value."""
        if old != new:
            what = field.replace("_", " ") + (f" {key}" if key else "")
            raise OptionError(
                f"step {step}: {said_by[field, key]} sets {what} to {old!r:.200}, and {plugin} to {new!r:.200}",
                hint=f"remove one of the decorators of step {step} that say so",
            )
        said_by.setdefault((field, key), plugin)

    for opinion in opinions:
        plugin, plan = opinion.plugin, opinion.plan
        for field in _SINGLE:
            value = getattr(plan, field)
            if value is not None:
                agree(field, "", merged.setdefault(field, value), value, plugin)
        for field in _KEYED:
            known = merged.setdefault(field, {})
            for key, value in getattr(plan, field).items():
                agree(field, key, known.setdefault(key, value), value, plugin)
        if plan.resources is not None:
            merged["resources"] = _largest(merged.get("resources"), plan.resources)
        if plan.timeout_seconds is not None:
            merged["timeout_seconds"] = min(plan.timeout_seconds, merged.get("timeout_seconds", plan.timeout_seconds))
        merged["secrets"] = tuple(dict.fromkeys((*merged.get("secrets", ()), *plan.secrets)))
    return StepPlan(**merged)


def _largest(one: Resources | None, other: Resources) -> Resources:
    """Return the larger amount of each resource."""
    if one is None:
        return other
    custom = {name: max(one.custom.get(name, 0), other.custom.get(name, 0)) for name in (*one.custom, *other.custom)}
    return Resources(
        cpu=max(one.cpu, other.cpu),
        memory_mb=max(one.memory_mb, other.memory_mb),
        gpu=max(one.gpu, other.gpu),
        disk_mb=max(one.disk_mb, other.disk_mb),
        custom=custom,
    )
