"""Which plugins are fit to be called: their range of contract versions, and the form of their implementations."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, Final

from mlp_hookspecs.specs import HOOKS
from mlp_hookspecs.version import CONTRACT_VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pluggy

CONTRACT_DISTRIBUTION: Final = "mlp-hookspecs"

_CONTRACT: Final = re.compile(
    r"mlp[-_.]hookspecs\s*(?:\[[^]]*\])?\s*\(?(?P<range>(?:[<>=!~][^;()]*)?)\)?\s*(?P<marker>;.*)?", re.IGNORECASE
)
_CLAUSE: Final = re.compile(r"(>=|<=|==|!=|>|<)\s*(\d+(?:\.\d+)*)")


class Unfit(Exception):  # noqa: N818 # a reason rather than an error: the loader catches it
    """A plugin may not be loaded.

    Parameters
    ----------
    reason : str
        Why.
    hint : str
        The next step; empty where leaving the plugin out is the only one.
    """

    def __init__(self, reason: str, hint: str = "") -> None:
        """Make the reason."""
        super().__init__(reason)
        self.hint = hint


def contract_range(requires: Sequence[str]) -> str:
    """Return the range of contract versions that a distribution asks for.

    Parameters
    ----------
    requires : sequence of str
        Its requirements, as its metadata has them.

    Returns
    -------
    str
        The range; empty for any version.

    Raises
    ------
    ValueError
        Where a requirement cannot be understood.
    """
    ranges = []
    for requirement in requires:
        match = _CONTRACT.fullmatch(requirement.strip())
        if match is None:
            continue
        if match["marker"]:
            from packaging.markers import Marker

            if not Marker(match["marker"].removeprefix(";").strip()).evaluate({"extra": ""}):
                continue
        ranges.append(match["range"].strip())
    return ",".join(filter(None, ranges))


def check_contract(distribution: str, wanted: str) -> None:
    """Raise Unfit where a distribution's range of contract versions, as `contract_range` gives it, excludes ours."""
    if not _allows(wanted):
        raise Unfit(
            f"it needs {CONTRACT_DISTRIBUTION} {wanted}, and {CONTRACT_VERSION} is running",
            f"pip install --upgrade {distribution}, or pip install '{CONTRACT_DISTRIBUTION}{wanted}'",
        )


def _allows(range_text: str) -> bool:
    """Tell whether a range of versions contains the running contract's."""
    clauses = [clause.strip() for clause in range_text.split(",") if clause.strip()]
    plain = [match for match in map(_CLAUSE.fullmatch, clauses) if match]
    if len(plain) < len(clauses):
        # Only for what is rare: importing it takes longer than all else that is done for a plugin here.
        from packaging.specifiers import SpecifierSet

        return SpecifierSet(range_text).contains(CONTRACT_VERSION, prereleases=True)
    ours = _numbers(CONTRACT_VERSION)
    for match in plain:
        theirs = _numbers(match[2])
        holds = {
            ">=": ours >= theirs,
            "<=": ours <= theirs,
            "==": ours == theirs,
            "!=": ours != theirs,
            ">": ours > theirs,
            "<": ours < theirs,
        }
        if not holds[match[1]]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    """Return a version's numbers without zeros at the end, which mean nothing."""
    numbers = [int(part) for part in version.split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def checked_hooks(manager: pluggy.PluginManager, plugin: object) -> tuple[str, ...]:
    """Return the hooks that a plugin implements, sorted; Unfit where it does so in a way that would fail later."""
    if isinstance(plugin, type):
        raise Unfit(f"its entry point names the class {plugin.__name__}; allowed are a module and an instance")
    hooks = []
    for attribute in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, attribute)
        if options is not None:
            hook = options.get("specname") or attribute
            _check_implementation(manager, hook, getattr(plugin, attribute), options)
            if hook in HOOKS:
                hooks.append(hook)
        elif attribute in HOOKS and inspect.isroutine(inspect.getattr_static(plugin, attribute)):
            raise Unfit(f"its {attribute} is not marked as an implementation", "put @hookimpl above it")
    return tuple(sorted(hooks))


def _check_implementation(manager: pluggy.PluginManager, hook: str, function: Any, options: Mapping[str, Any]) -> None:
    """Refuse an implementation that could not be called."""
    if hook not in HOOKS:
        if options.get("optionalhook"):
            return
        from difflib import get_close_matches

        near = get_close_matches(hook, HOOKS, 1)
        hint = f"did you mean {near[0]}?" if near else f"the hooks are {', '.join(HOOKS)}"
        raise Unfit(f"it implements {hook}, and there is no such hook", hint)
    if options.get("wrapper") or options.get("hookwrapper"):
        raise Unfit(f"its {hook} is a hook wrapper; a plugin must not change what other plugins answer")
    if inspect.iscoroutinefunction(function):
        raise Unfit(f"its {hook} is a coroutine function; hooks are called as plain functions")
    allowed = manager.hook.__dict__[hook].spec.argnames
    if _takes_only(function, allowed):
        return
    for parameter in inspect.signature(function).parameters.values():
        named = parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        if not named or (parameter.name not in allowed and parameter.default is parameter.empty):
            takes = f"takes ({', '.join(allowed)}), by position" if allowed else "takes none"
            raise Unfit(f"its {hook} has the argument {str(parameter).partition(':')[0]}; the hook {takes}")


def _takes_only(function: Any, allowed: Sequence[str]) -> bool:
    """Tell whether a function plainly takes some of the arguments by position; inspect would take longer to say so."""
    code = getattr(function, "__code__", None)
    if code is None or code.co_kwonlyargcount or code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS):
        return False
    own = code.co_varnames[: code.co_argcount]
    return set(own[1:] if inspect.ismethod(function) else own) <= set(allowed)
