"""One call of a plugin's code: blamed when it fails, with and without a mark, and its context managers too."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import pytest

from mlp_core.breadcrumbs import Crumb, Trail
from mlp_core.errors import PluginError
from mlp_core.hook_calls import Call, GuardedContext, blaming
from mlp_hookspecs import PluginId
from mlp_hookspecs.handles import Launcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TAPE = PluginId("tape", "mlp-plugin-tape", "1.0")


def call(function: Callable[..., object], *, is_marked: bool) -> Call:
    """Return the call of a function."""
    crumb = Crumb(TAPE, "mlp_backends").encoded() if is_marked else b""
    return Call(TAPE, "mlp_backends", function, crumb, Trail(None))


@pytest.mark.parametrize("is_marked", [True, False])
def test_what_it_raises_is_blamed_on_it(*, is_marked: bool) -> None:
    """A builtin plugin, which leaves no mark, is blamed as any other."""

    def fail() -> None:
        raise ValueError("torn")

    with pytest.raises(PluginError, match=r"plugin tape .* raised ValueError: torn, in mlp_backends"):
        call(fail, is_marked=is_marked).run()
    with pytest.raises(ValueError, match="torn") as caught:
        call(fail, is_marked=is_marked).run(passing=(ValueError,))
    assert caught.value.__notes__ == ["from plugin tape (mlp-plugin-tape 1.0), in mlp_backends"]


@pytest.mark.parametrize("is_marked", [True, False])
def test_answers_pass(*, is_marked: bool) -> None:
    """What it answers is returned, and arguments go by position."""
    assert call(lambda a, b: a - b, is_marked=is_marked).run(3, 1) == 2


def test_a_context_manager_may_raise_the_bodys_exception_again() -> None:
    """What the body raised is the body's, though the context manager raises it once more; nothing is swallowed."""

    @contextmanager
    def passing_on() -> Iterator[None]:
        yield

    @contextmanager
    def swallowing() -> Iterator[None]:
        try:
            yield
        except KeyError:
            return

    class RaisingAgain(AbstractContextManager[None]):
        def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
            if error is not None:
                raise error

    for context in (passing_on, swallowing, RaisingAgain):
        with pytest.raises(KeyError) as caught, GuardedContext(call(context, is_marked=False), context()):
            raise KeyError("body")
        assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("is_marked", [True, False])
def test_what_happens_while_an_answer_is_used_is_blamed(*, is_marked: bool) -> None:
    """An exception from what a plugin returned is told as the plugin's, with what was done with it."""
    with (
        pytest.raises(PluginError, match=r"plugin tape .* raised OSError: gone, in reading it"),
        blaming(call(print, is_marked=is_marked), "reading it", (KeyError,)),
    ):
        raise OSError("gone")
    with pytest.raises(KeyError), blaming(call(print, is_marked=is_marked), "reading it", (KeyError,)):
        raise KeyError("passes")
    with blaming(call(print, is_marked=is_marked), "reading it", ()):
        pass


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (None, "returned None instead of Launcher"),
        (3, "returned 3, which is no Launcher: it lacks cancel"),
        (object(), "returned an instance of object, which is no Launcher: it lacks cancel"),
    ],
)
def test_what_lacks_a_method_is_no_handle(answer: object, told: str) -> None:
    """Where a plugin has to answer with something that lives, the first thing that it lacks is told."""
    with pytest.raises(PluginError, match=told):
        call(print, is_marked=False).expect_handle(Launcher, answer)


def test_a_context_manager_is_blamed_for_what_it_raises_itself() -> None:
    """An exception of its own while it is left is told as the plugin's."""

    @contextmanager
    def failing() -> Iterator[None]:
        try:
            yield
        finally:
            raise ValueError("torn")

    with (
        pytest.raises(PluginError, match=r"raised ValueError: torn, in mlp_backends \(leaving\)"),
        GuardedContext(call(failing, is_marked=False), failing()),
    ):
        raise KeyError("body")
