"""Where hostile input is tried: a store with a few runs, a project, and the command line in this very process."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlp_reliability.hostile.watch import Watch

FLOW: Final = '''
from datetime import date

from mlp_core import FlowSpec, Parameter, catch, step


class Flow(FlowSpec):
    """A flow with a bit of everything."""

    alpha = Parameter("alpha", default=0.5, help="A number.")
    word = Parameter("word", default="plain", help="A text.")
    constant = (1, 2)

    @step
    def start(self):
        print("hello", self.word)
        self.when = date(2026, 1, 31)
        self.items = [1, 2, 3]
        self.next(self.each, foreach="items")

    @catch(var="problem")
    @step
    def each(self):
        self.square = self.input ** 2
        if self.input == 2:
            raise ValueError("caught")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.total = sum(getattr(each, "square", 0) for each in inputs)
        self.next(self.end)

    @step
    def end(self):
        if self.alpha > 1:
            raise RuntimeError("too much")


if __name__ == "__main__":
    Flow()
'''


@attrs.frozen
class Ground:
    """The folders of a try.

    Attributes
    ----------
    root : pathlib.Path
        The folder around everything.
    """

    root: Path

    @property
    def play(self) -> Path:
        """The only folder that may be written to."""
        return self.root / "play"

    @property
    def canary(self) -> Path:
        """A folder that must stay as it is."""
        return self.root / "canary"

    @property
    def store(self) -> Path:
        """The store."""
        return self.play / "store"

    @property
    def project(self) -> Path:
        """The working folder, with a flow."""
        return self.play / "project"

    def variables(self) -> dict[str, str]:
        """Return the environment variables of a try."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith("MLP_") or name == "MLP_PLANTED"
        }
        return {
            **kept,
            "HOME": str(self.play / "home"),
            "XDG_CACHE_HOME": str(self.play / "cache"),
            "XDG_RUNTIME_DIR": str(self.play),
            "TMPDIR": str(self.play / "tmp"),
            "MLP_STORE": str(self.store),
            "MLP_NO_PLUGINS": "1",
            "MLP_USERNAME": "tester",
        }

    def make(self) -> None:
        """Make the folders, and run the flow: once well, once with a failure, and deployed."""
        for name in ("canary", "play/home", "play/cache", "play/tmp", "play/project"):
            (self.root / name).mkdir(parents=True)
        (self.canary / "secret").write_text("nobody may read this")
        (self.project / "mlp.toml").touch()
        (self.project / "flow.py").write_text(FLOW)
        for words in (("run", "--alpha=0.25"), ("run", "--alpha=2"), ("deploy",)):
            self._run(words[0], "flow.py", *words[1:])
        for run in sorted((self.store / "flows/Flow").iterdir())[:1]:
            self._run("export", f"Flow/{run.name}", str(self.play / "archive"))
        shutil.copytree(self.store, self.root / "base")

    def _run(self, *words: str) -> None:
        command = [sys.executable, "-m", "mlp_core.cli", *words]
        subprocess.run(command, check=False, cwd=self.project, env=self.variables(), capture_output=True)

    def reset(self) -> None:
        """Put the store back as it was made."""
        shutil.rmtree(self.store, ignore_errors=True)
        shutil.copytree(self.root / "base", self.store)

    def runs(self) -> list[Path]:
        """Return the runs' folders, oldest first."""
        return sorted((self.store / "flows/Flow").iterdir())


class _Stream(io.TextIOWrapper):
    """A standard stream that remembers."""

    def __init__(self, *, is_terminal: bool) -> None:
        self.content = io.BytesIO()
        self._is_terminal = is_terminal
        super().__init__(self.content, encoding="utf-8", errors="backslashreplace", write_through=True)

    def isatty(self) -> bool:
        """Tell what it pretends to be."""
        return self._is_terminal


@attrs.frozen
class Said:
    """What came of a command.

    Attributes
    ----------
    status : object
        The exit status.
    out, err : str
        What it printed.
    """

    status: Any
    out: str
    err: str


def command(watch: Watch, words: Sequence[str], *, is_terminal: bool = False) -> Said:
    """Carry out a command line of ``mlp`` in this process."""
    from mlp_core.cli import main

    before = sys.stdout, sys.stderr, sys.argv
    out, err = _Stream(is_terminal=is_terminal), _Stream(is_terminal=False)
    sys.stdout, sys.stderr, sys.argv = out, err, ["mlp", *words]
    try:
        with watch.on():
            status: Any = main(list(words))
    except SystemExit as error:
        status = error.code
    finally:
        sys.stdout, sys.stderr, sys.argv = before
    return Said(status, out.content.getvalue().decode(), err.content.getvalue().decode())
