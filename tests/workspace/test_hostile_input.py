"""What no module may do with what comes from outside, read from the source of every distribution."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.workspace.conftest import Distribution

UNPICKLING: Final = {
    "mlp_core/builtin/pickle_format.py": "artifacts, once their bytes are verified and the settings allow it",
    "mlp_core/loading.py": "a flow's class without a file, which its driver sends",
}
"""The places that unpickle, and what."""

RUNNING: Final = {
    "reliability/src/mlp_reliability/in_place.py": "the repository's own modules, with a change in each",
}
"""The places that run text as code, and what."""

LAYOUT: Final = "mlp_core/store/layout.py"
"""The one module that makes keys of the store."""


def called(node: ast.AST) -> str:
    """Return the dotted name of what a node calls; empty where it calls nothing that has one."""
    parts: list[str] = []
    current: ast.AST = node.func if isinstance(node, ast.Call) else node
    while isinstance(current, ast.Attribute):
        parts.insert(0, current.attr)
        current = current.value
    return ".".join([current.id, *parts]) if isinstance(current, ast.Name) else ""


def starts_a_shell(node: ast.AST) -> bool:
    """Tell whether a node hands text to a shell."""
    if called(node) in ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"):
        return True
    given = node.keywords if isinstance(node, ast.Call) else []
    return any(k.arg == "shell" and not (isinstance(k.value, ast.Constant) and not k.value.value) for k in given)


def runs_text(node: ast.AST) -> bool:
    """Tell whether a node runs text as code."""
    return isinstance(node, ast.Call) and called(node) in ("eval", "exec", "compile", "builtins.eval", "builtins.exec")


def unpickles(node: ast.AST) -> bool:
    """Tell whether a node unpickles, or reads another format that runs what it is told."""
    if isinstance(node, ast.ClassDef):
        return any(called(base).endswith("Unpickler") for base in node.bases)
    if not isinstance(node, ast.Call):
        return False
    name = called(node)
    modules = ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle")
    loads = ("load", "loads", "Unpickler", "open")
    if name.partition(".")[0] in modules and name.rpartition(".")[2] in loads:
        return True
    if name in (
        "yaml.load",
        "yaml.unsafe_load",
        "yaml.full_load",
        "torch.load",
        "pandas.read_pickle",
        "pd.read_pickle",
    ):
        return True
    return any(keyword.arg == "allow_pickle" for keyword in node.keywords)


def extracts_blindly(node: ast.AST) -> bool:
    """Tell whether a node lets an archive say where its members go."""
    return isinstance(node, ast.Call) and called(node).rpartition(".")[2] in ("extractall", "unpack_archive")


def formats_sql(node: ast.AST) -> bool:
    """Tell whether a node executes SQL that is put together from anything but numbers and placeholders."""
    if not isinstance(node, ast.Call) or not node.args:
        return False
    if called(node).rpartition(".")[2] not in ("execute", "executemany", "executescript"):
        return False
    statement = node.args[0]
    if isinstance(statement, ast.JoinedStr):
        formatted = [part for part in statement.values if isinstance(part, ast.FormattedValue)]
        return not all(_is_number(part) or called(part.value) == "marks" for part in formatted)
    is_made = isinstance(statement, ast.Call) and isinstance(statement.func, ast.Attribute)
    return isinstance(statement, ast.BinOp) or (is_made and statement.func.attr in ("format", "join"))


def _is_number(part: ast.FormattedValue) -> bool:
    """Tell whether a part of an f-string can only be a number."""
    return part.format_spec is not None and ast.unparse(part.format_spec) in ("f'd'", 'f"d"')


def makes_a_key(node: ast.AST) -> bool:
    """Tell whether a node puts a key of the store together."""
    if isinstance(node, ast.JoinedStr):
        named = [called(part.value) for part in node.values if isinstance(part, ast.FormattedValue)]
        texts = [part.value for part in node.values[:1] if isinstance(part, ast.Constant)]
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        named = [called(node.left)]
        texts = [node.left.value] if isinstance(node.left, ast.Constant) else []
    else:
        return False
    prefixes = ("blobs/", "flows/", "parts/", "deployments/", "blueprints/", "environments/", "targets/")
    folders = {f"layout.{prefix.rstrip('/').upper()}" for prefix in prefixes}
    return bool(folders.intersection(named)) or any(isinstance(t, str) and t.startswith(prefixes) for t in texts)


def found(distribution: Distribution, is_bad: Callable[[ast.AST], bool], root: Path) -> Iterator[tuple[str, str]]:
    """Yield where the source does something, and what."""
    for file in sorted(distribution.source.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if is_bad(node):
                yield file.relative_to(root).as_posix(), ast.unparse(node).partition("\n")[0]


@pytest.mark.parametrize("is_bad", [starts_a_shell, runs_text, extracts_blindly, formats_sql])
def test_nothing_outside_is_obeyed(distribution: Distribution, root: Path, is_bad: Callable[[ast.AST], bool]) -> None:
    """No text becomes a shell's command, code or SQL, and no archive says where its members go."""
    places = [(place, what) for place, what in found(distribution, is_bad, root) if place not in RUNNING]
    assert places == []


def test_few_places_unpickle(distribution: Distribution, root: Path) -> None:
    """Only the places unpickle that are known to, so that what they load can be looked after there."""
    places = {place for place, _ in found(distribution, unpickles, root)}
    expected = {place for place in UNPICKLING if place.partition("/")[0] == distribution.package}
    assert places == expected


def test_one_module_makes_keys(distribution: Distribution, root: Path) -> None:
    """Keys of the store are put together in one module, by functions that check each name."""
    if distribution.package in ("mlp_hookspecs", "mlp_reliability"):
        pytest.skip("its tests and harms know what lies where")
    # What an archive's members are called is its own affair.
    others = (LAYOUT, "mlp_core/upkeep/archive_format.py")
    assert [each for each in found(distribution, makes_a_key, root) if each[0] not in others] == []


@pytest.mark.parametrize(
    ("is_bad", "source", "expected"),
    [
        (starts_a_shell, "subprocess.run(command, shell=True)", True),
        (starts_a_shell, "subprocess.run(command, shell=is_text)", True),
        (starts_a_shell, "subprocess.run(command, shell=False)", False),
        (starts_a_shell, "os.system(text)", True),
        (runs_text, "eval(text)", True),
        (runs_text, "re.compile(text)", False),
        (unpickles, "pickle.loads(data)", True),
        (unpickles, "cloudpickle.load(file)", True),
        (unpickles, "pickle.dumps(data)", False),
        (unpickles, "json.loads(data)", False),
        (unpickles, "yaml.load(text)", True),
        (unpickles, "yaml.safe_load(text)", False),
        (unpickles, "np.load(path, allow_pickle=True)", True),
        (unpickles, "class Own(pickle.Unpickler): pass", True),
        (extracts_blindly, "archive.extractall(folder)", True),
        (extracts_blindly, "shutil.unpack_archive(path)", True),
        (extracts_blindly, "archive.extractfile(member)", False),
        (formats_sql, "database.execute(f'SELECT {name}')", True),
        (formats_sql, "database.execute('SELECT ' + name)", True),
        (formats_sql, "database.execute('SELECT {}'.format(name))", True),
        (formats_sql, "database.execute(f'PRAGMA user_version = {version:d}')", False),
        (formats_sql, "database.execute('SELECT ?', (name,))", False),
        (makes_a_key, "f'{layout.FLOWS}{flow}/'", True),
        (makes_a_key, "layout.BLOBS + digest", True),
        (makes_a_key, "f'flows/{flow}'", True),
        (makes_a_key, "'blobs/' + digest", True),
        (makes_a_key, "objects.children(layout.FLOWS)", False),
        (makes_a_key, "f'no blobs/ are there: {text}'", False),
    ],
)
def test_the_search_finds_what_it_should(is_bad: Callable[[ast.AST], bool], source: str, expected: bool) -> None:
    """Each of the searches above tells the bad from its look-alikes."""
    assert any(is_bad(node) for node in ast.walk(ast.parse(source))) is expected
