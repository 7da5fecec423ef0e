"""Everything that the commands print passes through few functions, which let no terminal be told what to do."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WRITERS = {
    "__init__.py:_print": "fixed texts, before anything is imported",
    "text.py:put_as_it_is": "the one way to standard output",
    "report.py:_say": "the one way to standard error, escaped",
    "progress.py:write": "a stream that may lose its reader",
    "progress.py:_put": "what happens in a run, escaped where the line is made; logs as they are, or for a terminal",
    "meter.py:show": "how far a command is, in numbers",
    "meter.py:clear": "nothing in its place",
    "listing.py:_print_value": "an artifact's bytes into a file or pipe",
}
"""The functions that may write to a stream, and what."""

AS_IT_IS = {"text.py:put", "logs.py:_put"}
"""The functions that may print what is not escaped there: `put` has just done it, logs have their own escaping."""


def functions(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield the functions of a module with their names, nested ones within their outer one alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node
        else:
            yield from functions(node)


def writes(node: ast.AST) -> bool:
    """Tell whether a node writes to something or prints."""
    if not isinstance(node, ast.Call):
        return False
    function = node.func
    if isinstance(function, ast.Attribute) and function.attr in ("write", "writelines"):
        return True
    return isinstance(function, ast.Name) and function.id == "print"


def prints_as_it_is(node: ast.AST) -> bool:
    """Tell whether a node calls the function that escapes nothing."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "put_as_it_is"


def places(root: Path, is_meant: object) -> set[str]:
    """Return the functions of the commands in which something is done."""
    found = set()
    for file in (root / "mlp_core/cli").glob("*.py"):
        for name, function in functions(ast.parse(file.read_text())):
            if any(is_meant(node) for node in ast.walk(function)):  # type: ignore[operator] # a function
                found.add(f"{file.name}:{name}")
    return found


def test_few_functions_write(root: Path) -> None:
    """No command writes to a stream but by the functions that are known to."""
    assert places(root, writes) - WRITERS.keys() == set()


def test_fewer_print_what_is_not_escaped(root: Path) -> None:
    """Only logs, which keep their colours, pass by the escaping of all other output."""
    assert places(root, prints_as_it_is) == AS_IT_IS


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("sys.stdout.write(text)", True),
        ("print(text)", True),
        ("(a if b else c).write(text)", True),
        ("put(text)", False),
        ("console.print(text)", False),
    ],
)
def test_the_search_finds_what_it_should(source: str, expected: bool) -> None:
    """Writing and printing are told from what only looks like them."""
    assert any(writes(node) for node in ast.walk(ast.parse(source))) is expected
