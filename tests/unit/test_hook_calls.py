"""One call of a plugin's code: blamed when it fails, with and without a mark, and its context managers too."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import pytest

from mlp_core.breadcrumbs import Crumb, Trail
from mlp_core.errors import PluginError
from mlp_core.hook_calls import Call, GuardedContext, blaming, find_calls
from mlp_core.plugins import LoadingRules, load_plugins
from mlp_hookspecs import PluginId
from mlp_hookspecs.handles import AppendFile, Launcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

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


@pytest.mark.parametrize("answer", ["a.whl", b"a.whl", {"a.whl": 1}, 3, object()])
def test_what_is_no_sequence_is_blamed(answer: object) -> None:
    """A text is a sequence of texts to Python, and a mapping one of its keys; neither is what was asked for."""
    with pytest.raises(PluginError, match=r"plugin tape .* returned .* instead of a sequence of str, in mlp_backends"):
        call(print, is_marked=False).expect_items(str, answer)


def test_none_may_be_no_answer() -> None:
    """Where None is an opinion it means nothing, elsewhere the plugin is blamed for it."""
    assert call(print, is_marked=False).expect_items(str, None) == ()
    with pytest.raises(PluginError, match="returned None instead of a sequence of str"):
        call(print, is_marked=False).expect_items(str, None, may_be_none=False)
    assert call(print, is_marked=False).expect_items(str, [], may_be_none=False) == ()
    with pytest.raises(PluginError, match="returned 3 instead of str"):
        call(print, is_marked=False).expect_items(str, ["a.whl", 3], may_be_none=False)


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


@pytest.fixture
def trail(tmp_path: Path) -> Iterator[Trail]:
    """A trail whose marks can be looked at."""
    made = Trail(tmp_path)
    yield made
    made.close()


def marks(folder: Path) -> list[str]:
    """Return the places that are marked now."""
    slots = [file.read_bytes()[:256] for file in folder.glob("*.crumb")]
    return [crumb.place for slot in slots if (crumb := Crumb.decoded(slot, 0)) is not None]


def marked(function: Callable[..., object], trail: Trail, *, is_builtin: bool) -> Call:
    """Return the call of a function that leaves a mark, or not."""
    crumb = b"" if is_builtin else Crumb(TAPE, "mlp_backends").encoded()
    return Call(TAPE, "mlp_backends", function, crumb, trail)


def test_a_call_is_marked_while_it_lasts(trail: Trail, tmp_path: Path) -> None:
    """Only a third party's call is marked, under the name of what is called, and its mark is gone afterwards."""

    def look() -> list[str]:
        return marks(tmp_path)

    assert marked(look, trail, is_builtin=False).run() == ["mlp_backends"]
    assert marks(tmp_path) == []
    assert marked(look, trail, is_builtin=False).of("its context", look).run() == ["its context"]
    assert marked(look, trail, is_builtin=True).run() == []
    assert marked(look, trail, is_builtin=True).of("its context", look).run() == []


def test_a_call_inside_another_hides_its_mark(trail: Trail, tmp_path: Path) -> None:
    """When the inner one is over, the outer one is marked again, also where the inner one failed."""
    inner = marked(lambda: marks(tmp_path), trail, is_builtin=False).of("inner", lambda: 1 / 0)

    def outer() -> list[str]:
        with pytest.raises(PluginError):
            inner.run()
        return marks(tmp_path)

    assert marked(outer, trail, is_builtin=False).run() == ["mlp_backends"]


@pytest.mark.parametrize("is_builtin", [True, False])
def test_using_an_answer_is_marked_while_it_lasts(trail: Trail, tmp_path: Path, *, is_builtin: bool) -> None:
    """What happens while an answer is used is marked as such, for third parties only."""
    with blaming(marked(print, trail, is_builtin=is_builtin), "reading it", ()):
        assert marks(tmp_path) == ([] if is_builtin else ["reading it"])
    assert marks(tmp_path) == []


def test_what_fails_is_called_once() -> None:
    """A call that raises is not made again."""
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise ValueError("torn")

    with pytest.raises(ValueError, match="torn"):
        call(fail, is_marked=False).run(passing=(ValueError,))
    assert calls == [1]


def test_builtin_plugins_leave_no_marks() -> None:
    """Nobody needs to be warned of the platform's own plugins."""
    calls = [each for found in find_calls(load_plugins(LoadingRules(safe=True))).values() for each in found]
    assert {each.crumb for each in calls} == {b""}


def test_methods_may_be_set_on_an_instance() -> None:
    """A handle may have its methods from its class or its own; one whose protocol asks for it is a context manager."""

    class Handle:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

        def __init__(self) -> None:
            self.capacity = self.cancel = self.reattach = print

    handle = Handle()
    assert call(print, is_marked=False).expect_handle(Launcher, handle) is handle


def test_a_handle_that_must_be_entered_has_to_be_a_context_manager() -> None:
    """A launcher without ``__enter__`` is refused; what is not entered needs none."""

    class Handle:
        capacity = cancel = reattach = append = close = print

    with pytest.raises(PluginError, match="it lacks __enter__"):
        call(print, is_marked=False).expect_handle(Launcher, Handle())
    handle = Handle()
    assert call(print, is_marked=False).expect_handle(AppendFile, handle) is handle


@pytest.mark.parametrize("answer", ["text", b"bytes", 3])
def test_what_is_no_sequence_is_refused_as_a_whole(answer: object) -> None:
    """A text is no sequence of anything, and nor is what cannot be gone through; nothing is an empty one."""
    with pytest.raises(PluginError, match="instead of a sequence of str"):
        call(print, is_marked=False).expect_items(str, answer)
    assert call(print, is_marked=False).expect_items(str, None) == ()


def test_long_answers_are_cut_off() -> None:
    """Of what is no answer only the beginning is shown."""
    with pytest.raises(PluginError) as caught:
        call(print, is_marked=False).expect(int, "x" * 200)
    assert f"returned '{'x' * 79} instead of int" in caught.value.message
