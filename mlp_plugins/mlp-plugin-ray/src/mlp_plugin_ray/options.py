"""Which decorator the plugin brings, and how what a step asks for is said to Ray.

This module is imported wherever a flow file is, so that it needs nothing but what every step's interpreter has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

import attrs

from mlp_hookspecs import Option, Resources, decorator, frozen_map

BACKEND: Final = "ray"
"""The launcher backend's name."""

_MEBIBYTE = 1 << 20

_OWN_FIELDS: Final = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
"""Resources that Ray takes in a field of their own."""

_FOR_CONTAINERS: Final = "shared_memory_mb"
"""A request to launchers that start containers; no Ray node offers it by that name."""


def _check_amount(option: Ray, attribute: attrs.Attribute[Any], value: object) -> None:  # noqa: ARG001 # attrs' signature
    """Refuse what is no amount."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"{attribute.alias}={value!r} is refused: it must be a number of at least 0")


@attrs.frozen
class Ray(Option):
    """Run a step as a task of a Ray cluster.

    What is left out here is taken from ``@resources``; what both say, this decorator decides.

    Attributes
    ----------
    num_cpus : float or None
        Cores.
    num_gpus : float or None
        Accelerators; a fraction of one, or a whole number.
    memory : int or None
        Bytes of memory, by which Ray places tasks; it does not limit them.
    resources : mapping of str to float
        Amounts of the cluster's custom resources.

    Examples
    --------
    >>> Ray(num_cpus=2).launcher_options
    {'num_cpus': 2}
    """

    name: ClassVar[str] = BACKEND
    levels: ClassVar[tuple[Literal["step", "flow"], ...]] = ("step", "flow")
    num_cpus: float | None = attrs.field(default=None, validator=_check_amount)
    num_gpus: float | None = attrs.field(default=None, validator=_check_amount)
    memory: int | None = attrs.field(default=None, validator=_check_amount)
    resources: Mapping[str, float] = attrs.field(factory=dict, converter=frozen_map)

    @num_gpus.validator
    def _check_fraction(self, _attribute: attrs.Attribute[Any], value: float | None) -> None:
        if value is not None and value > 1 and not float(value).is_integer():
            raise ValueError(f"num_gpus={value!r} is refused: Ray divides one accelerator, so above 1 it must be whole")

    @resources.validator
    def _check_resources(self, attribute: attrs.Attribute[Any], value: Mapping[str, float]) -> None:
        for name, amount in value.items():
            if not name:
                raise ValueError("resources: a resource needs a name")
            if name in _OWN_FIELDS:
                raise ValueError(f"resources: {name!r} is given as {_OWN_FIELDS[name]}=...")
            _check_amount(self, attribute, amount)

    @property
    def launcher_options(self) -> dict[str, Any]:
        """What the launcher should know: the fields that were given."""
        given = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, "memory": self.memory}
        options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if self.resources:
            options["resources"] = dict(self.resources)
        return options

    @property
    def plan_resources(self) -> Resources | None:
        """The same for the rest of the platform, which sizes thread pools by it; None where nothing is asked for."""
        if self.num_cpus is None and self.num_gpus is None and self.memory is None:
            return None
        cpus = 1 if self.num_cpus is None else self.num_cpus
        return Resources(cpu=cpus, gpu=self.num_gpus or 0, memory_mb=int(self.memory or 0) // _MEBIBYTE)


ray = decorator(Ray)


def task_options(resources: Resources, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an attempt asks for in Ray's terms.

    Parameters
    ----------
    resources : Resources
        The plan's.
    options : mapping of str to JSON
        What `Ray.launcher_options` gave; each entry goes before the plan's.

    Returns
    -------
    dict
        Arguments for the ``options`` of a Ray task.

    Examples
    --------
    >>> task_options(Resources(cpu=2, memory_mb=1), {"num_cpus": 0.5})
    {'num_cpus': 0.5, 'num_gpus': 0, 'memory': 1048576, 'resources': {}}
    """
    custom = {name: amount for name, amount in resources.custom.items() if name != _FOR_CONTAINERS}
    return {
        "num_cpus": options.get("num_cpus", resources.cpu),
        "num_gpus": options.get("num_gpus", resources.gpu),
        "memory": int(options.get("memory", resources.memory_mb * _MEBIBYTE)),
        "resources": {**custom, **options.get("resources", {})},
    }
