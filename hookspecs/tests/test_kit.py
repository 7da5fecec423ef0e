"""The conformance kit lets a correct backend pass and finds each mistake in the test that is about it."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

KIT = Path(__file__).parent / "kit"
_RESULT = re.compile(r"^(PASSED|FAILED|ERROR|SKIPPED) \S*::Test_(\w+)::(\w+)", re.MULTILINE)


@pytest.mark.parametrize("toy", ["environment", "format", pytest.param("launcher", marks=pytest.mark.slow), "store"])
def test_kit_has_teeth(toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A toy without mistakes passes every test of its kind; each broken one fails the test about its mistake."""
    monkeypatch.syspath_prepend(KIT)
    broken = {kind.__name__: test for kind, test in importlib.import_module(f"toy_{toy}").BROKEN.items()}
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "--tb=no", "-p", "no:cacheprovider", "--timeout=20"]
    # Of a broken toy only the test that must fail is run: others may fail too, and some of them wait in vain.
    wanted = ["Test_good", *(f"Test_{name} and {test}" for name, test in broken.items())]
    selected = " or ".join(f"({text})" for text in wanted)
    done = subprocess.run(
        [*command, "-k", selected, f"--rootdir={tmp_path}", "-c", os.devnull, KIT / "cases.py"],
        env={**os.environ, "KIT_TOY": toy, "PYTHONPATH": str(KIT)},
        check=False,
        capture_output=True,
        text=True,
    )
    results = {(name, test): result for result, name, test in _RESULT.findall(done.stdout)}
    good = {test: result for (name, test), result in results.items() if name == "good"}
    assert set(good.values()) == {"PASSED"}, done.stdout[-3000:]
    blunt = {name for name, test in broken.items() if results.get((name, test)) not in ("FAILED", "ERROR")}
    assert blunt == set(), done.stdout[-3000:]
