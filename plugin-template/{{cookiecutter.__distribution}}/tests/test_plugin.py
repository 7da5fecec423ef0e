"""The plugin does what its README says, with the contract alone."""

import types

import pluggy
import pytest
from mlp_hookspecs import PROJECT_NAME, TaskKey, specs

from {{ cookiecutter.__package }} import Timed, plugin, timed


def step(*options: object) -> types.SimpleNamespace:
    """Return what a wrap sees of a running step."""
    settings = {"{{ cookiecutter.__settings }}.digits": 3}
    return types.SimpleNamespace(key=TaskKey("train"), options=options, settings=settings)


def test_hooks_are_the_contracts() -> None:
    """Every hook that is implemented exists, with these arguments."""
    manager = pluggy.PluginManager(PROJECT_NAME)
    manager.add_hookspecs(specs)
    manager.register(plugin)
    manager.check_pending()


def test_decorator_records_its_argument() -> None:
    """Bare and called, the decorator only records."""

    @timed(label="learning")
    def train() -> None: ...

    assert train.__mlp_options__ == (Timed(label="learning"),)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("label", "told"), [("", "train"), ("learning", "learning")])
def test_decorated_step_is_timed(label: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The time is told under the label or the step's name, as exactly as the setting says."""
    wrap = plugin.mlp_wrap_step(step(Timed(label)))
    assert wrap is not None
    with wrap.context:
        pass
    assert capsys.readouterr().out == f"{told} took 0.000 s\n"


def test_other_steps_are_left_alone() -> None:
    """A step without the decorator gets no wrap."""
    assert plugin.mlp_wrap_step(step()) is None
