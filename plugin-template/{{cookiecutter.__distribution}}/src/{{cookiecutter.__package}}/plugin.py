"""What the plugin tells the platform; its entry point names this module. Heavy libraries are imported when needed."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mlp_hookspecs import Option, Setting, Wrap, hookimpl

from {{ cookiecutter.__package }}.options import Timed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlp_hookspecs.handles import StepHandle


@hookimpl
def mlp_settings() -> Sequence[Setting]:
    """Declare the settings."""
    return (Setting("{{ cookiecutter.__settings }}.digits", "int", 2, "Digits behind the point."),)


@hookimpl
def mlp_options() -> Sequence[type[Option]]:
    """Declare the decorators."""
    return (Timed,)


@hookimpl
def mlp_wrap_step(step: StepHandle) -> Wrap | None:
    """Put a stopwatch around the steps that are decorated."""
    for option in step.options:
        if isinstance(option, Timed):
            digits = step.settings["{{ cookiecutter.__settings }}.digits"]
            return Wrap(priority=50, name="timed", context=stopwatch(option.label or step.key.step, digits))
    return None


@contextmanager
def stopwatch(label: str, digits: int) -> Iterator[None]:
    """Print how long the body took, also where it raised; the task's log is where its author looks."""
    began = time.perf_counter()
    try:
        yield
    finally:
        print(f"{label} took {time.perf_counter() - began:.{digits}f} s")
