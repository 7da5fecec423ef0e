"""What the contract's docstrings say, as one page of Markdown: ``python -m mlp_hookspecs.reference`` writes it."""

from __future__ import annotations

import inspect
import re
import sys
from typing import TYPE_CHECKING, Any, Final

import attrs

from mlp_hookspecs import events, handles, specs, types
from mlp_hookspecs.specs import HOOKS
from mlp_hookspecs.version import CONTRACT_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_SECTION: Final = re.compile(r"^(\w[\w ]*)\n-{3,}\n", re.MULTILINE)
_MODES: Final = {
    "collect": "every plugin returns a sequence or an opinion; the core takes all of them together",
    "claim": "the plugin that owns the named backend answers, and no other is asked",
    "wrap": "every plugin may put a context manager around a step's body",
    "observe": "every plugin is told after the fact, and can change nothing",
}
_INTRODUCTION: Final = """\
This page is generated from the docstrings of `mlp_hookspecs`, whose examples are tested; to renew it:
`python -m mlp_hookspecs.reference > docs/hooks.md`.

A plugin is a module, or an instance, with functions that are marked as implementations of the hooks below. Its
distribution names it by an entry point in the group `mlp`, and depends on `mlp-hookspecs` alone:

```toml
[project]
name = "mlp-plugin-slurm"
dependencies = ["mlp-hookspecs>=0.3,<0.4"]

[project.entry-points.mlp]
slurm = "mlp_plugin_slurm"
```

An implementation takes the hook's arguments by their names; it may leave out those that it does not need. The module
must import none of its heavy libraries at its top: every command of every user imports it.

A plugin that fails is named, with its distribution and version, in a warning or error; the others are not concerned.
Whatever a hook raises that its description here does not allow is shown as the plugin's fault. `mlp plugins` shows what
became of each plugin, and `MLP_STRICT_PLUGINS=1` raises the first failure with its traceback.

The conformance kit, `mlp_hookspecs.testing`, has a class of tests for each kind of backend."""


def reference() -> str:
    """Return the reference as Markdown.

    Returns
    -------
    str
        The text, with a line's end.
    """
    parts = [
        "# Hooks",
        f"The contract between the core and its plugins, version {CONTRACT_VERSION}.",
        _INTRODUCTION,
        "\n".join(_overview()),
        "\n".join(f"- **{mode}**: {text}." for mode, text in _MODES.items()),
        *(part for hook in HOOKS for part in _hook(hook)),
        "## Values",
        "What crosses the border is frozen. `None` and empty mean that nothing was said.",
        *(part for name in types.__all__ for part in _value(name)),
        "## Handles",
        "What is alive: objects that one side makes and the other uses.",
        *(part for name, handle in _defined(handles) for part in _handle(name, handle)),
        "## Events",
        *_body(inspect.getdoc(events) or ""),
        *(part for name, event in _defined(events) for part in _class(name, event)),
    ]
    return "\n\n".join(parts) + "\n"


def annotation_text(hint: object) -> str:
    """Return an annotation as the source has it, whether it was kept as text or evaluated.

    Examples
    --------
    >>> annotation_text(tuple[int, ...])
    'tuple[int, ...]'
    """
    text = hint if isinstance(hint, str) else inspect.formatannotation(hint)
    return re.sub(r"\b(?:typing|contextlib|collections\.abc|mlp_hookspecs\.[\w.]+)\.(?=\w)", "", text)


def signature(hook: str) -> str:
    """Return a hook's name with its arguments, as a heading has it.

    Examples
    --------
    >>> signature("mlp_open_store")
    'mlp_open_store(url, settings)'
    """
    return f"{hook}({', '.join(inspect.signature(getattr(specs, hook)).parameters)})"


def _overview() -> Iterator[str]:
    """Yield the table of all hooks."""
    yield "| hook | mode | where | what for |"
    yield "|---|---|---|---|"
    for hook, info in HOOKS.items():
        anchor = re.sub(r"[^\w\- ]", "", signature(hook)).replace(" ", "-")
        mode = f"{info.mode} ({info.kind})" if info.kind else info.mode
        mode += ", optional" if info.is_optional else ""
        summary = _line(getattr(specs, hook))
        yield f"| [`{hook}`](#{anchor}) | {mode} | {info.where} | {summary} |"


def _hook(hook: str) -> Iterator[str]:
    """Yield the parts of a hook's description."""
    function = getattr(specs, hook)
    yield f"## {signature(hook)}"
    yield _code(_typed(hook, function))
    yield from _body(inspect.getdoc(function) or "")


def _value(name: str) -> Iterator[str]:
    """Yield the parts of the description of one of the types' names."""
    found = getattr(types, name)
    if isinstance(found, type):
        yield from _class(name, found)
    elif inspect.isfunction(found):
        yield f"### {name}"
        yield _code(_typed(name, found))
        yield from _body(inspect.getdoc(found) or "")
    elif not isinstance(found, str | tuple):
        yield f"### {name}"
        values = getattr(found, "__args__", ())
        yield (
            "One of " + ", ".join(f"`{value}`" for value in values) + "." if values else "Any value that JSON can hold."
        )


def _class(name: str, cls: type) -> Iterator[str]:
    """Yield the parts of a class's description: its constructor, its docstring, its properties and methods."""
    yield f"### {name}"
    if attrs.has(cls):
        fields = [_field(field) for field in attrs.fields(cls)]
        yield _code(f"{name}({', '.join(fields)})")
    yield from _body(inspect.getdoc(cls) or "")
    members = [_member(member, value) for member, value in vars(cls).items() if not member.startswith("_")]
    if any(members):
        yield "**Properties and methods**"
        yield "\n".join(filter(None, members))


def _handle(name: str, handle: type) -> Iterator[str]:
    """Yield the parts of a protocol's description."""
    if attrs.has(handle):
        yield from _class(name, handle)
        return
    yield f"### {name}"
    yield from _body(inspect.getdoc(handle) or "")
    yield "\n".join(filter(None, (_member(member, value) for member, value in vars(handle).items())))


def _member(name: str, value: Any) -> str:
    """Return a line about a method or property; empty for anything else."""
    if name.startswith("_"):
        return ""
    value = getattr(value, "__func__", value)
    if isinstance(value, property) and value.fget is not None:
        return f"- `{name}: {annotation_text(inspect.signature(value.fget).return_annotation)}`: {_line(value)}"
    if inspect.isfunction(value):
        return f"- `{_typed(name, value)}`: {_line(value)}"
    return ""


def _field(field: attrs.Attribute[Any]) -> str:
    """Return a field as its constructor shows it."""
    kind = annotation_text(field.type)
    if field.default is attrs.NOTHING:
        return f"{field.alias}: {kind}"
    default = "{}" if isinstance(field.default, attrs.Factory) else repr(field.default)  # type: ignore[arg-type] # attrs types Factory as a function
    return f"{field.alias}: {kind} = {default}"


def _typed(name: str, function: Callable[..., Any]) -> str:
    """Return a function's name, arguments and result, with their types, without `self`."""
    found = inspect.signature(function)
    kept = [parameter for parameter in found.parameters.values() if parameter.name not in ("self", "cls")]
    none = inspect.Signature.empty
    plain = [one if one.annotation is none else one.replace(annotation=annotation_text(one.annotation)) for one in kept]
    result = found.return_annotation if found.return_annotation is none else annotation_text(found.return_annotation)
    return name + str(found.replace(parameters=plain, return_annotation=result)).replace("'", "")


def _code(text: str) -> str:
    """Return a block of code; a long call has an argument a line."""
    if len(text) > 110 and "(" in text:  # noqa: PLR2004 # a line's width
        head, _, rest = text.partition("(")
        inner, _, tail = rest.rpartition(")")
        arguments = "".join(f"    {argument},\n" for argument in _split(inner))
        text = f"{head}(\n{arguments}){tail}"
    return f"```text\n{text}\n```"


def _split(arguments: str) -> Iterator[str]:
    """Yield arguments, which are separated by the commas outside of brackets."""
    depth, start = 0, 0
    for place, character in enumerate(arguments):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            yield arguments[start:place].strip()
            start = place + 1
    yield arguments[start:].strip()


def _body(text: str) -> Iterator[str]:
    """Yield a docstring's parts as Markdown."""
    first, *rest = _SECTION.split(text)
    yield _plain(first.strip())
    for title, content in zip(rest[::2], rest[1::2], strict=True):
        if title == "Examples":
            yield f"```pycon\n{content.strip()}\n```"
        else:
            yield f"**{title}**"
            yield "\n".join(_entries(content))


def _entries(content: str) -> Iterator[str]:
    """Yield the entries of a section, each with its indented text on the same line."""
    for entry in re.split(r"\n(?=\S)", content.strip()):
        head, _, text = entry.partition("\n")
        name, separator, kind = head.partition(" : ")
        line = f"- `{name}` ({kind})" if separator else f"- `{name}`"
        yield f"{line}: {_plain(' '.join(text.split()))}" if text.strip() else line


def _line(value: object) -> str:
    """Return the docstring of a method on one line."""
    return _plain(" ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split()))


def _plain(text: str) -> str:
    """Return a docstring's text as Markdown: literals have one backtick."""
    return text.replace("``", "`")


def _defined(module: Any) -> Iterable[tuple[str, type]]:
    """Return the public classes that a module defines, in its order."""
    return [
        (name, value)
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__ and not name.startswith("_")
    ]


if __name__ == "__main__":
    sys.stdout.write(reference())
