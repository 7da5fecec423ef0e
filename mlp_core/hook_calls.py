"""How one plugin's implementation of one hook is called: marked before, blamed when it fails, its answer checked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from mlp_core.breadcrumbs import Crumb, Trail
from mlp_core.errors import MlpError, PluginError
from mlp_core.plugins import Plugins, described
from mlp_hookspecs import PluginId
from mlp_hookspecs.specs import HOOKS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    import pluggy

_T = TypeVar("_T")
_Errors = tuple[type[BaseException], ...]


@attrs.frozen(eq=False, repr=False)
class Call:
    """One plugin's implementation of one hook, ready to be called.

    Attributes
    ----------
    plugin : PluginId
        The plugin.
    hook : str
        The hook, or what else of the plugin's code is called, for messages.
    function : callable
        Takes the hook's arguments by position, in the order of its specification.
    crumb : bytes
        The mark to leave before; empty for builtin plugins, of which nobody needs to be warned.
    trail : Trail
        Where to leave it.
    """

    plugin: PluginId
    hook: str
    function: Callable[..., Any]
    crumb: bytes
    trail: Trail

    def run(self, *args: object, passing: _Errors = ()) -> Any:
        """Call it.

        Parameters
        ----------
        *args : object
            The hook's arguments.
        passing : tuple of exception types
            What the hook may raise by its specification.

        Returns
        -------
        object
            The answer.

        Raises
        ------
        PluginError
            Where it raised anything but `passing` and the platform's own errors, which pass with a note that names
            the plugin. Interruptions pass as well.
        """
        if not self.crumb:
            try:
                return self.function(*args)
            except BaseException as error:
                self._blame(error, passing)
                raise
        before = self.trail.enter(self.crumb)
        try:
            return self.function(*args)
        except BaseException as error:
            self._blame(error, passing)
            raise
        finally:
            self.trail.leave(before)

    def of(self, what: str, function: Callable[..., Any]) -> Call:
        """Return the call of other code of the same plugin."""
        crumb = Crumb(self.plugin, what).encoded() if self.crumb else b""
        return attrs.evolve(self, hook=what, function=function, crumb=crumb)

    def expect(self, kind: type[_T], answer: object) -> _T:
        """Return an answer of the right type; PluginError for any other."""
        if isinstance(answer, kind):
            return answer
        raise self.fault(f"returned {_shown(answer)} instead of {kind.__name__}")

    def expect_handle(self, protocol: type, answer: object) -> Any:
        """Return an answer that has all that a protocol asks for; PluginError for any other."""
        if answer is None:
            raise self.fault(f"returned None instead of {protocol.__name__}")
        lacking = [name for name in _members(protocol) if not hasattr(type(answer), name) and not hasattr(answer, name)]
        if lacking:
            raise self.fault(f"returned {_shown(answer)}, which is no {protocol.__name__}: it lacks {lacking[0]}")
        return answer

    def expect_items(self, kind: type[_T], answer: object, *, may_be_none: bool = True) -> tuple[_T, ...]:
        """Return the items of a sequence, each of the right type; PluginError for anything else, None is empty."""
        if answer is None and may_be_none:
            return ()
        if isinstance(answer, str | bytes | Mapping) or not hasattr(answer, "__iter__"):
            raise self.fault(f"returned {_shown(answer)} instead of a sequence of {kind.__name__}")
        items: tuple[_T, ...] = self.of(self.hook, tuple).run(answer)
        return tuple(self.expect(kind, item) for item in items)

    def fault(self, what: str) -> PluginError:
        """Return the error that blames the plugin for something."""
        return PluginError(f"plugin {self.plugin} {what}, in {self.hook}")

    def _blame(self, error: BaseException, passing: _Errors) -> None:
        """Put the plugin's name on what it raised; raise a PluginError instead of what it should not have raised."""
        error.add_note(f"from plugin {self.plugin}, in {self.hook}")
        if isinstance(error, Exception | SystemExit) and not isinstance(error, (MlpError, *passing)):
            raise self.fault(f"raised {described(error)}") from error


class GuardedContext(AbstractContextManager[object]):
    """A plugin's context manager, blamed for what it raises itself, and unable to swallow what the body raised.

    Parameters
    ----------
    call : Call
        The call that returned it.
    context : context manager
        The plugin's.
    """

    def __init__(self, call: Call, context: AbstractContextManager[object]) -> None:
        """Guard a context manager."""
        self._call = call
        self._context = context

    def __enter__(self) -> object:
        return self._call.of(f"{self._call.hook} (entering)", self._context.__enter__).run()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        def leave() -> None:
            # Most context managers raise the body's exception again: that is not theirs.
            try:
                self._context.__exit__(kind, error, traceback)
            except BaseException as raised:
                if raised is not error:
                    raise

        self._call.of(f"{self._call.hook} (leaving)", leave).run()


@contextlib.contextmanager
def blaming(call: Call, what: str, passing: _Errors) -> Iterator[None]:
    """Blame a plugin for what the body raises while it uses something that the plugin returned."""
    inner = call.of(what, lambda: None)
    before = call.trail.enter(inner.crumb) if inner.crumb else b""
    try:
        yield
    except BaseException as error:
        inner._blame(error, passing)  # noqa: SLF001 # of this module
        raise
    finally:
        if inner.crumb:
            call.trail.leave(before)


def find_calls(plugins: Plugins) -> dict[str, tuple[Call, ...]]:
    """Return the implementations of each hook by the plugins in force, sorted by the plugins' names."""
    records = {record.name: record for record in plugins.records if record.in_force}
    calls: dict[str, tuple[Call, ...]] = {}
    for hook in HOOKS:
        caller: pluggy.HookCaller = getattr(plugins.manager.hook, hook)
        names = caller.spec.argnames if caller.spec is not None else ()
        found = []
        for implementation in caller.get_hookimpls():
            record = records[implementation.plugin_name]
            crumb = b"" if record.status == "builtin" else Crumb(record.id, hook).encoded()
            found.append(Call(record.id, hook, _positional(implementation, names), crumb, plugins.trail))
        calls[hook] = tuple(sorted(found, key=lambda call: call.plugin.name))
    return calls


def _positional(implementation: pluggy.HookImpl, names: Sequence[str]) -> Callable[..., Any]:
    """Return a function that takes all of a hook's arguments in order, for one that names some in any order."""
    function: Callable[..., Any] = implementation.function
    if tuple(implementation.argnames) == tuple(names):
        return function
    wanted = [name for name in (*implementation.argnames, *implementation.kwargnames) if name in names]
    places = {name: names.index(name) for name in wanted}
    return lambda *args: function(**{name: args[place] for name, place in places.items()})


@cache
def _members(protocol: type) -> tuple[str, ...]:
    """Return the names of the methods and properties that a protocol asks for."""
    own = [name for base in protocol.__mro__ if getattr(base, "_is_protocol", False) for name in vars(base)]
    members = sorted({name for name in own if not name.startswith("_")})
    if issubclass(protocol, AbstractContextManager):
        members += ["__enter__", "__exit__"]
    return tuple(members)


def _shown(answer: object) -> str:
    """Return an answer for a message; only of builtin types the content, since another's repr may do anything."""
    if answer is None or type(answer) in (bool, int, float, str, bytes):
        return repr(answer)[:80]
    return f"an instance of {type(answer).__qualname__}"
