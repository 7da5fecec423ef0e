"""The row ``mutants``: small changes to the code that decides, each of which a test must notice.

A mutant is a module with one change: another comparison, a condition turned round, a statement left out, a number one
higher. Most are tried in place, see `mlp_reliability.in_place`. For the rest the changed source lies in a folder of its
own; the tests run in processes that import it from there, and so do all that they start. Texts are not changed: what a
message says is not what is measured here. A mutant that no test notices is either explained in a table, or a violation.
"""

from __future__ import annotations

import ast
import copy
import itertools
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from mlp_reliability.processes import in_parallel, jobs
from mlp_reliability.result import Result

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

VARIABLE: Final = "RELIABILITY_MUTANT"
"""The environment variable with a module's name and the file that it is imported from. Tests clear those of mlp."""

_ROOT: Final = Path(__file__).parents[3]
_EXPLAINED: Final = _ROOT / "benchmarks/reliability/survivors.json"
_SECONDS: Final = 150
_MOST_SURVIVORS: Final = 0.1

TESTS: Final[Mapping[str, tuple[str, ...]]] = {
    "mlp_core.scheduler": ("tests/unit/test_scheduler.py",),
    "mlp_core.plugins": ("tests/contract/test_isolation.py", "tests/unit/test_plugins.py"),
    "mlp_core.plugin_checks": ("tests/unit/test_plugin_checks.py", "tests/contract/test_isolation.py"),
    "mlp_core.hook_calls": ("tests/unit/test_hook_calls.py", "tests/contract/test_claims.py"),
    "mlp_core.store.blobs": ("tests/unit/test_store_blobs.py", "tests/unit/test_store_bucket.py"),
    "mlp_core.store.cache": ("tests/unit/test_store_cache.py", "tests/unit/test_store_bucket.py"),
    "mlp_core.store.checked": ("tests/unit/test_store_checked.py",),
    "mlp_core.store.content": ("tests/unit/test_store_content.py", "tests/unit/test_store_blobs.py"),
    "mlp_core.store.faults": ("tests/unit/test_store_faults.py", "tests/unit/test_store_store.py"),
    "mlp_core.store.growing": ("tests/unit/test_store_growing.py",),
    "mlp_core.store.index": (
        "tests/unit/test_store_index.py",
        "tests/unit/test_store_bucket.py",
        "tests/unit/test_hostile_records.py",
    ),
    "mlp_core.store.journal": ("tests/unit/test_store_journal.py",),
    "mlp_core.store.layout": ("tests/unit/test_store_layout.py",),
    "mlp_core.store.lease": ("tests/unit/test_store_lease.py",),
    "mlp_core.store.logs": ("tests/unit/test_store_logs.py",),
    "mlp_core.store.records": (
        "tests/unit/test_store_records.py",
        "tests/unit/test_store_journal.py",
        "tests/unit/test_store_seal.py",
        "tests/unit/test_hostile_records.py",
    ),
    "mlp_core.store.references": ("tests/unit/test_upkeep_references.py",),
    "mlp_core.store.seal": ("tests/unit/test_store_seal.py",),
    "mlp_core.store.segments": (
        "tests/unit/test_store_runs.py",
        "tests/unit/test_store_store.py",
        "tests/unit/test_hostile_records.py",
    ),
    "mlp_core.store.signing": ("tests/unit/test_store_signing.py",),
    "mlp_core.store.state": ("tests/unit/test_store_state.py", "tests/unit/test_hostile_records.py"),
    "mlp_core.store.store": (
        "tests/unit/test_store_runs.py",
        "tests/unit/test_store_store.py",
        "tests/unit/test_store_lease.py",
        "tests/unit/test_store_bucket.py",
        "tests/unit/test_store_seal.py",
        "tests/unit/test_hostile_records.py",
    ),
    "mlp_core.store.target": ("tests/unit/test_store_target.py", "tests/unit/test_store_blobs.py"),
    "mlp_core.store.verified": ("tests/unit/test_store_verified.py",),
}
"""The modules, and the tests that must notice; the quickest first."""

_COMPARISONS: Final[Mapping[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_ARITHMETIC: Final[Mapping[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}


@attrs.frozen
class Mutant:
    """A changed module.

    Attributes
    ----------
    module : str
        Which.
    line : int
        Where.
    scope : str
        The names of the class, function and variable that it is in.
    change : str
        What was changed; with a number where the same was changed at an earlier place of the scope.
    source : str
        The whole changed source.
    """

    module: str
    line: int
    scope: str
    change: str
    source: str

    @property
    def code(self) -> str:
        """Module, scope and change, which name it wherever the lines move."""
        return f"{self.module}{self.scope}: {self.change}"


def mutants_of(module: str, source: str) -> Iterator[Mutant]:
    """Yield the mutants of a module."""
    tree = ast.parse(source)
    times: Counter[tuple[str, str]] = Counter()
    for number, (original, scope) in enumerate(_nodes(tree)):
        for choice in range(_choices(original)):
            changed = copy.deepcopy(tree)
            node, _ = next(itertools.islice(_nodes(changed), number, None))
            before = ast.unparse(node).partition("\n")[0]
            what = _change(node, choice)
            if what is not None:
                ast.fix_missing_locations(changed)
                change = f"{what} in `{before}`"
                times[scope, change] += 1
                numbered = change if times[scope, change] == 1 else f"{change} ({times[scope, change]})"
                yield Mutant(module, getattr(original, "lineno", 0), scope, numbered, ast.unparse(changed))


def _nodes(node: ast.AST, above: str = "") -> Iterator[tuple[ast.AST, str]]:
    """Yield what can be changed, and the scope it is in.

    That is all but texts that stand alone, decorators, and what only a type checker sees.
    """
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    if is_text or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
        return
    scope = above
    match node:
        case (
            ast.FunctionDef(name=name)
            | ast.AsyncFunctionDef(name=name)
            | ast.ClassDef(name=name)
            | ast.AnnAssign(target=ast.Name(id=name))
            | ast.Assign(targets=[ast.Name(id=name)])
        ):
            scope = f"{above}.{name}"
    yield node, scope
    left_alone = [
        *getattr(node, "decorator_list", ()),
        getattr(node, "annotation", None),
        getattr(node, "returns", None),
    ]
    for child in ast.iter_child_nodes(node):
        if not any(child is each for each in left_alone):
            yield from _nodes(child, scope)


def _choices(node: ast.AST) -> int:
    """Return how many changes of a node there are."""
    match node:
        case ast.Compare():
            return len(node.ops)
        case ast.If() | ast.While() | ast.IfExp() | ast.BoolOp() | ast.BinOp() | ast.UnaryOp(op=ast.Not()):
            return 1
        case ast.Constant(value=bool() | int()):
            return 1
        case ast.Return(value=ast.expr()):
            return 1
    return sum(len(_removable(block)) for block in _blocks(node))


def _blocks(node: ast.AST) -> list[list[ast.stmt]]:
    """Return the sequences of statements right below a node."""
    return [block for name in ("body", "orelse", "finalbody") if isinstance(block := getattr(node, name, None), list)]


def _removable(block: list[ast.stmt]) -> list[int]:
    """Return the positions of statements that can be left out so that the rest still makes sense to Python."""
    found = []
    for position, statement in enumerate(block):
        is_call = isinstance(statement, ast.Expr) and not isinstance(statement.value, ast.Constant)
        is_store = isinstance(statement, ast.Assign) and not isinstance(statement.targets[0], ast.Name)
        if (
            is_call
            or is_store
            or isinstance(statement, ast.AugAssign | ast.Delete | ast.Raise | ast.Continue | ast.Break)
        ):
            found.append(position)
    return found


def _change(node: ast.AST, choice: int) -> str | None:  # noqa: C901, PLR0911 # one case a change
    """Change a node in place, and tell what was done; None where nothing was."""
    match node:
        case ast.Compare():
            other = _COMPARISONS[type(node.ops[choice])]()
            node.ops[choice] = other
            return f"another comparison, {type(other).__name__}"
        case ast.If() | ast.While() | ast.IfExp():
            if isinstance(node.test, ast.Compare | ast.UnaryOp):
                return None  # changed by itself
            node.test = ast.UnaryOp(ast.Not(), node.test)
            return "the condition turned round"
        case ast.BoolOp():
            node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            return "and, or exchanged"
        case ast.BinOp():
            if type(node.op) not in _ARITHMETIC or ast.unparse(node.left).startswith(("'", '"', "f'", 'f"')):
                return None
            node.op = _ARITHMETIC[type(node.op)]()
            return f"{type(node.op).__name__} instead"
        case ast.UnaryOp(op=ast.Not()):
            node.op, node.operand = ast.Not(), ast.UnaryOp(ast.Not(), node.operand)
            return "not left out"
        case ast.Constant(value=bool()):
            node.value = not node.value
            return f"{node.value} instead"
        case ast.Constant(value=int() as number):
            node.value = number + 1
            return f"{number + 1} instead"
        case ast.Return():
            if node.value is None or (isinstance(node.value, ast.Constant) and not node.value.value):
                return None  # which is as false
            node.value = ast.Constant(None)
            return "None returned"
    places = [(block, position) for block in _blocks(node) for position in _removable(block)]
    block, position = places[choice]
    left_out = ast.unparse(block[position]).partition("\n")[0]
    block[position] = ast.Pass()
    return f"`{left_out}` left out"


def run(n: int, seed: int, folder: Path) -> Result:
    """Try `n` mutants, drawn from all modules; as many as there are where `n` is more."""
    mutants = [mutant for module in TESTS for mutant in mutants_of(module, _source(module).read_text(encoding="utf-8"))]
    if n < len(mutants):
        mutants = random.Random(seed).sample(mutants, n)
    violations: list[str] = []
    explained: dict[str, str] = json.loads(_EXPLAINED.read_text()) if _EXPLAINED.exists() else {}
    survivors: list[Mutant] = []
    for module in TESTS:
        drawn = [mutant for mutant in mutants if mutant.module == module]
        found = _survivors(module, drawn, folder / module) if drawn else []
        if found is None:  # which tells nothing of its mutants: they do not count
            violations.append(f"the tests of {module} fail without a change")
            mutants = [mutant for mutant in mutants if mutant.module != module]
        survivors += found or ()
    violations += [
        f"{mutant.module}:{mutant.line}: no test notices: {mutant.change}"
        for mutant in survivors
        if mutant.code not in explained
    ]
    if len(survivors) > max(1, _MOST_SURVIVORS * len(mutants)):  # one of a few tells nothing of all
        violations.append(f"{len(survivors)} of {len(mutants)} mutants live on, more than {_MOST_SURVIVORS:.0%}")
    return Result("mutants", n, seed, violations, _details(mutants, survivors, explained))


def _survivors(module: str, mutants: list[Mutant], folder: Path) -> list[Mutant] | None:
    """Return which mutants of a module no test notices; None where its tests fail without a change."""
    folder.mkdir(parents=True)
    file = _source(module)
    every = [mutant.source for mutant in mutants_of(module, file.read_text(encoding="utf-8"))]
    numbers = [every.index(mutant.source) for mutant in mutants]
    job = {"module": module, "file": str(file), "numbers": numbers, "tests": TESTS[module], "jobs": jobs()}
    (folder / "job.json").write_text(json.dumps(job))
    out = folder / "verdicts.json"
    command = [sys.executable, "-m", "mlp_reliability.in_place", str(folder / "job.json"), str(out)]
    subprocess.run(command, cwd=_ROOT, env=_environment(), capture_output=True, check=False)
    verdicts: list[str] = json.loads(out.read_text()) if out.exists() else []
    if len(verdicts) < len(mutants):
        return None
    elsewhere = [number for number, verdict in enumerate(verdicts) if verdict == "elsewhere"]
    for number, passes in zip(
        elsewhere,
        in_parallel(lambda number: _passes(mutants[number], folder / f"elsewhere{number}"), elsewhere),
        strict=True,
    ):
        verdicts[number] = "survived" if passes else "killed"
    return [mutant for mutant, verdict in zip(mutants, verdicts, strict=True) if verdict == "survived"]


def _details(mutants: list[Mutant], survivors: list[Mutant], explained: Mapping[str, str]) -> dict[str, Any]:
    """Return how many mutants of each module were killed, and why the others live on."""
    details: dict[str, Any] = {}
    for module in TESTS:
        tried = sum(mutant.module == module for mutant in mutants)
        left = sum(mutant.module == module for mutant in survivors)
        details[module] = {"mutants": tried, "killed": tried - left}
    details["survivors"] = {mutant.code: explained.get(mutant.code, "") for mutant in survivors}
    return details


def _source(module: str) -> Path:
    """Return a module's file."""
    return _ROOT.joinpath(*module.split(".")).with_suffix(".py")


def _environment() -> dict[str, str]:
    """Return the environment in which changed modules are imported from elsewhere."""
    path = [str(Path(__file__).parent / "planting"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), "PYTHONDONTWRITEBYTECODE": "1"}


def _passes(mutant: Mutant, folder: Path) -> bool:
    """Tell whether the tests pass with a mutant; what ends the process or takes too long does not."""
    folder.mkdir(parents=True)
    file = folder / "mutant.py"
    file.write_text(mutant.source)
    environment = {**_environment(), VARIABLE: f"{mutant.module}={file}"}
    plugin = "mlp_reliability.planting.quick_failures"
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", plugin, "--hypothesis-seed", "1"]
    options += ["--basetemp", str(folder / "tests")]
    command = [sys.executable, "-m", "pytest", *options, *TESTS[mutant.module]]
    nothing = subprocess.DEVNULL
    with subprocess.Popen(
        command, cwd=_ROOT, env=environment, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True
    ) as tests:
        try:
            return tests.wait(_SECONDS) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            with suppress(ProcessLookupError):
                os.killpg(tests.pid, signal.SIGKILL)  # whatever they have started and left behind
