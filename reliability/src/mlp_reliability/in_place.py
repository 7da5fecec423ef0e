"""Mutants that are tried in place: a process collects the tests once, and a fork of it for each mutant runs a few.

In the fork the code of the changed function is put into the function itself, wherever that is bound, so that nothing is
imported again. First the tests are run without a change, which tells which of them go through which line. A mutant is
tried with those that go through its function, the quickest first. What cannot be exchanged like this is said to be for
elsewhere: for a process of its own.
"""

from __future__ import annotations

import ast
import gc
import importlib
import inspect
import json
import os
import resource
import signal
import sys
import time
import traceback
import types
import warnings
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import attrs
import coverage
import pytest

from mlp_reliability.mutants import VARIABLE, Mutant, mutants_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Verdict: TypeAlias = Literal["killed", "survived", "elsewhere"]

_CPU_SECONDS: Final = 60
"""How long a mutant may compute at most; less where its tests take less, since many never end."""

_SECONDS: Final = 300
_BYTES: Final = 6 * 2**30
_PLAIN: Final = (bool, int, float, str, bytes, tuple, frozenset)


@attrs.frozen
class _Reach:
    """Which tests go through which line, by their numbers, and how long each takes."""

    lines: dict[int, frozenset[int]]
    seconds: list[float]

    def through(self, first: int, last: int) -> set[int]:
        """Return the tests that go through any of some lines."""
        return {test for line, tests in self.lines.items() if first <= line <= last for test in tests}


class Trials:
    """A plugin of pytest that, instead of running the tests, tries mutants of one module with them.

    Parameters
    ----------
    module : str
        The module.
    mutants : sequence of Mutant
        Its mutants.
    folder : Path
        A folder for all that the tests write.
    jobs : int
        How many are tried side by side.

    Attributes
    ----------
    verdicts : list of Verdict
        What became of each mutant; empty where the tests fail without a change.
    """

    def __init__(self, module: str, mutants: Sequence[Mutant], folder: Path, jobs: int) -> None:
        """Begin before the tests are collected."""
        self.verdicts: list[Verdict] = []
        self._module = module
        self._mutants = mutants
        self._folder = folder
        self._jobs = jobs
        self._has_failed = False
        self._why = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """See whether a test failed."""
        if report.failed:
            self._has_failed = True
            self._why = report.longreprtext

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Try the mutants."""
        swaps = Swaps(self._module)
        reach = self._reach(session, swaps.file)
        if reach is None:
            return True
        running: dict[int, tuple[int, float]] = {}
        found: dict[int, Verdict] = {}
        for number, mutant in enumerate(self._mutants):
            swap = swaps.of(mutant.source)
            if swap is None:
                found[number] = "elsewhere"
                continue
            while len(running) >= self._jobs:
                self._reap(running, found)
            tests = self._chosen(reach, swaps.around(mutant.line), mutant.line)
            seconds = min(_CPU_SECONDS, 5 + 4 * sum(reach.seconds[test] for test in tests))
            running[self._fork(session, swap, tests, number, int(seconds))] = (number, time.monotonic())
        while running:
            self._reap(running, found)
        self.verdicts = [found[number] for number in range(len(self._mutants))]
        return True

    @staticmethod
    def _chosen(reach: _Reach, around: tuple[int, int], line: int) -> list[int]:
        """Return the tests for a mutant: those that go through the very line first, the quickest first."""
        near, wide = reach.through(line, line), reach.through(*around)
        return sorted(wide, key=lambda test: (test not in near, reach.seconds[test]))

    def _reach(self, session: pytest.Session, file: str) -> _Reach | None:
        """Run all tests without a change, in a fork; None where one fails."""
        out = self._folder / "reach.json"
        pid = os.fork()
        if pid == 0:
            _alone(lambda: self._trace(session, file, out))
        os.waitpid(pid, 0)
        _end_group(pid)
        if not out.exists():
            return None
        told = json.loads(out.read_text())
        lines = {int(line): frozenset(tests) for line, tests in told["lines"].items()}
        return _Reach(lines, told["seconds"])

    def _trace(self, session: pytest.Session, file: str, out: Path) -> bool:
        """Write down which tests go through which line of a file."""
        self._move(session, "trace")
        measured = coverage.Coverage(data_file=None, config_file=False, include=[file])
        measured.start()
        seconds = []
        for number in range(len(session.items)):
            measured.switch_context(str(number))
            begun = time.monotonic()
            self._protocol(session, [number])
            seconds.append(time.monotonic() - begun)
            if self._has_failed:
                print(f"{session.items[number].nodeid} fails without a change:\n{self._why}", file=sys.stderr)
                return False
        measured.stop()
        with warnings.catch_warnings(action="ignore"):  # that nothing was reached is no reason to fail
            told = measured.get_data().contexts_by_lineno(file)
        lines = {line: sorted(int(test) for test in tests if test) for line, tests in told.items()}
        out.write_text(json.dumps({"lines": lines, "seconds": seconds}))
        return True

    def _fork(
        self, session: pytest.Session, swap: Callable[[], None], tests: Sequence[int], number: int, seconds: int
    ) -> int:
        """Try one mutant in a fork, which may compute for some seconds, and return its process."""
        pid = os.fork()
        if pid == 0:
            self._move(session, str(number))
            self._hand_on(number)
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))

            def passes() -> bool:
                swap()
                self._protocol(session, tests)
                return not self._has_failed

            _alone(passes)
        return pid

    def _hand_on(self, number: int) -> None:
        """Let the processes that a test starts have the mutant too."""
        file = self._folder / f"{number}.py"
        file.write_text(self._mutants[number].source)
        os.environ[VARIABLE] = f"{self._module}={file}"

    def _move(self, session: pytest.Session, name: str) -> None:
        """Give a fork a folder of its own."""
        folder = self._folder / name
        folder.mkdir()
        session.config._tmp_path_factory._basetemp = folder  # type: ignore[attr-defined] # pytest has no other way

    def _protocol(self, session: pytest.Session, tests: Sequence[int]) -> None:
        """Run tests until one fails."""
        for place, number in enumerate(tests):
            following = session.items[tests[place + 1]] if place + 1 < len(tests) else None
            session.config.hook.pytest_runtest_protocol(item=session.items[number], nextitem=following)
            if self._has_failed:
                return

    def _reap(self, running: dict[int, tuple[int, float]], found: dict[int, Verdict]) -> None:
        """Wait until one of the forks has ended, or was there for too long, and take down its verdict."""
        while True:
            for pid, (number, begun) in running.items():
                ended, status = os.waitpid(pid, os.WNOHANG)
                if not ended and time.monotonic() < begun + _SECONDS:
                    continue
                _end_group(pid)
                if not ended:
                    os.waitpid(pid, 0)
                found[number] = "survived" if ended and os.waitstatus_to_exitcode(status) == 0 else "killed"
                del running[pid]
                return
            time.sleep(0.005)


def _alone(passes: Callable[[], bool]) -> None:
    """Do something in a fork, in a process group of its own, and end it with what it says."""
    status = 1
    try:
        os.setpgid(0, 0)
        status = 0 if passes() else 1
    except BaseException:  # noqa: BLE001 # the fork ends here, and what it was in the middle of is not its own
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _end_group(pid: int) -> None:
    """End what is left of a fork."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


# ------------------------------------------------------------------------------------------------- exchanging code


class Swaps:
    """What of a module, which is imported, can be exchanged in place.

    Parameters
    ----------
    module : str
        The module.

    Attributes
    ----------
    file : str
        Its file.
    """

    def __init__(self, module: str) -> None:
        """Find the module's functions."""
        self._module = importlib.import_module(module)
        self.file = str(self._module.__file__)
        self._tree = ast.parse(Path(self.file).read_text(encoding="utf-8"))
        # As a mutant's source is written, so that both can be compared.
        self._plain = compile(ast.unparse(self._tree), self.file, "exec")
        self._live = _live_functions(self.file)

    def around(self, line: int) -> tuple[int, int]:
        """Return the first and last line of the function that a line is in; of the module where it is in none."""
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
        found = [
            (node.lineno, node.end_lineno or line)
            for node in ast.walk(self._tree)
            if isinstance(node, kinds) and node.lineno <= line <= (node.end_lineno or line)
        ]
        return min(found, default=(0, 10**9))

    def of(self, source: str) -> Callable[[], None] | None:
        """Return what puts a mutant into this process; None where that needs another one."""
        changed = compile(source, self.file, "exec")
        before, after = dict(_functions(self._plain)), dict(_functions(changed))
        if before.keys() != after.keys():
            return None
        differing = [path for path in before if _signature(before[path]) != _signature(after[path])]
        if _outline(self._plain) != _outline(changed):
            return self._of_values(source) if not differing else None
        if len(differing) != 1 or differing[0] not in self._live:
            return None
        function, code = self._live[differing[0]], after[differing[0]]
        if function.__code__.co_freevars != code.co_freevars:
            return None
        return lambda: setattr(function, "__code__", code)

    def _of_values(self, source: str) -> Callable[[], None] | None:
        """Return what exchanges constants and the defaults of parameters."""
        made = types.ModuleType(self._module.__name__)
        made.__dict__["__file__"] = self.file
        try:
            exec(compile(source, self.file, "exec"), made.__dict__)  # noqa: S102 # the repository's own code
        except Exception:  # noqa: BLE001 # whatever it is, no test would get as far as this
            return lambda: sys.exit("the module cannot be imported")
        old, new = vars(self._module), vars(made)
        values = {name: new.get(name) for name, value in old.items() if _differ(value, new.get(name))}
        defaults = [
            (self._live[path], function)
            for path, function in _bound_functions(made)
            if path in self._live and _defaults(self._live[path]) != _defaults(function)
        ]
        if not values and not defaults:
            return None

        def exchange() -> None:
            for name, value in values.items():
                former = old[name]
                for module in list(sys.modules.values()):
                    if vars(module).get(name) is former:
                        setattr(module, name, value)
            for live, function in defaults:
                live.__defaults__, live.__kwdefaults__ = function.__defaults__, function.__kwdefaults__

        return exchange


def _functions(code: types.CodeType, above: str = "") -> Iterator[tuple[str, types.CodeType]]:
    """Iterate over the functions of a module and of its classes, by names that tell those of one name apart."""
    seen: dict[str, int] = defaultdict(int)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            name = f"{above}{constant.co_name}"
            seen[name] += 1
            path = f"{name}#{seen[name]}"
            if constant.co_flags & inspect.CO_OPTIMIZED:
                yield path, constant
            else:
                yield from _functions(constant, f"{path}.")


def _live_functions(file: str) -> dict[str, types.FunctionType]:
    """Return the functions of a file that is imported, by the same names."""
    by_line = {
        function.__code__.co_firstlineno: function
        for function in gc.get_objects()
        if isinstance(function, types.FunctionType) and function.__code__.co_filename == file
    }
    code = compile(Path(file).read_text(encoding="utf-8"), file, "exec")
    found = ((path, by_line.get(each.co_firstlineno)) for path, each in _functions(code))
    return {path: function for path, function in found if function is not None}


def _bound_functions(made: types.ModuleType) -> Iterator[tuple[str, types.FunctionType]]:
    """Iterate over a module's functions and those of its classes, by the same names where each is there once."""
    for name, value in vars(made).items():
        if isinstance(value, types.FunctionType):
            yield f"{name}#1", value
        elif isinstance(value, type) and value.__module__ == made.__name__:
            for inner, each in vars(value).items():
                function = getattr(each, "__func__", each)
                if isinstance(function, types.FunctionType):
                    yield f"{name}#1.{inner}#1", function


def _signature(code: types.CodeType) -> Any:
    """Return what a function does, wherever it stands."""
    constants = tuple(
        _signature(each) if isinstance(each, types.CodeType) else (type(each), repr(each)) for each in code.co_consts
    )
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return code.co_code, names, code.co_flags, code.co_exceptiontable, constants


def _outline(code: types.CodeType) -> Any:
    """Return what a module or class does but for what is in its functions."""
    constants = tuple(
        (each.co_name if each.co_flags & inspect.CO_OPTIMIZED else _outline(each))
        if isinstance(each, types.CodeType)
        else (type(each), repr(each))
        for each in code.co_consts
    )
    return code.co_code, code.co_names, code.co_exceptiontable, constants


def _differ(old: object, new: object) -> bool:
    """Tell whether a constant was changed."""
    return isinstance(old, _PLAIN) and type(old) is type(new) and old != new


def _defaults(function: types.FunctionType) -> Any:
    """Return the defaults of a function's parameters in a form that can be compared."""
    return repr(function.__defaults__), repr(function.__kwdefaults__)


def main(job: Path, out: Path) -> int:
    """Do a job, which is a JSON file in a folder that is its own, and write down the verdicts."""
    told = json.loads(job.read_text())
    made = list(mutants_of(told["module"], Path(told["file"]).read_text(encoding="utf-8")))
    trials = Trials(told["module"], [made[number] for number in told["numbers"]], job.parent, told["jobs"])
    options = ["-q", "-p", "no:cacheprovider", "-p", "mlp_reliability.planting.quick_failures"]
    options += ["--hypothesis-seed", "1", "--basetemp", str(job.parent / "tests")]
    status = pytest.main([*options, *told["tests"]], plugins=[trials])
    out.write_text(json.dumps(trials.verdicts))
    return int(status)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
