"""Which plugins are fit to be called: their range of contract versions, and the form of what they implement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy
import pytest

from mlp_core import plugin_checks
from mlp_core.plugin_checks import Unfit, check_contract, checked_hooks
from mlp_hookspecs import hookimpl, specs
from mlp_hookspecs.version import CONTRACT_VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence


@pytest.fixture
def manager() -> pluggy.PluginManager:
    """A manager that knows the hooks."""
    made = pluggy.PluginManager("mlp")
    made.add_hookspecs(specs)
    return made


def test_a_reason_is_told_without_its_hint() -> None:
    """The text of a reason is the reason; the hint stands apart."""
    reason = Unfit("it does not fit", "make it fit")
    assert (str(reason), reason.hint) == ("it does not fit", "make it fit")


@pytest.mark.parametrize(
    "wanted",
    [
        "",
        f"=={CONTRACT_VERSION}",
        f">={CONTRACT_VERSION}",
        f"<={CONTRACT_VERSION}",
        f"~={CONTRACT_VERSION}",
        "!=99",
        "<99",
    ],
)
def test_ranges_that_contain_the_running_contract_pass(wanted: str) -> None:
    """Both bounds belong to their ranges; rare forms are understood too."""
    check_contract("mlp-plugin-tape", wanted)


@pytest.mark.parametrize(
    "wanted",
    [f"!={CONTRACT_VERSION}", f">{CONTRACT_VERSION}", f"<{CONTRACT_VERSION}", "==99", ">=99", "<=0.0.1", "~=99.0"],
)
def test_ranges_that_exclude_it_are_refused_with_both(wanted: str) -> None:
    """The refusal names the range, the running version, and how to get another one."""
    with pytest.raises(Unfit) as caught:
        check_contract("mlp-plugin-tape", wanted)
    assert str(caught.value) == f"it needs mlp-hookspecs {wanted}, and {CONTRACT_VERSION} is running"
    assert caught.value.hint.startswith("pip install --upgrade mlp-plugin-tape")


def test_a_release_candidate_belongs_to_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who runs a version before its release has chosen so: a range that would take it does."""
    monkeypatch.setattr(plugin_checks, "CONTRACT_VERSION", "0.9.1rc1")
    check_contract("mlp-plugin-tape", "~=0.9.0")


def test_the_first_argument_of_a_method_counts(manager: pluggy.PluginManager) -> None:
    """Of an instance's method only ``self`` is left out of account."""

    class Plugin:
        @hookimpl
        def mlp_backends(self, bogus: object) -> Sequence[object]:
            return (bogus,)

    with pytest.raises(Unfit, match="has the argument bogus"):
        checked_hooks(manager, Plugin())
