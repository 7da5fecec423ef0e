"""Throw-away plugins: small distributions, installed for one test, in a project and a runtime folder of its own."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from mlp_core import plugins
from mlp_core.hooks import Hooks, build_hooks, build_worker_hooks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlp_core.plugins import PluginRecord
    from mlp_core.settings import Settings
    from mlp_hookspecs import PluginId

ROOT = Path(__file__).parents[2]
INSTALLED = sorted(point.name for point in importlib.metadata.entry_points(group="mlp"))
"""The plugins that are installed in any case, from this repository: no test here is about them."""


@attrs.frozen
class Lab:
    """A place where plugins can be installed for a test."""

    site: Path
    project: Path
    runtime: Path

    def install(  # noqa: PLR0913 # a distribution has that many parts
        self,
        name: str,
        code: str = "",
        *,
        distribution: str = "",
        version: str = "1.0",
        requires: Sequence[str] = ("mlp-hookspecs>=0.3,<0.4",),
        value: str = "",
    ) -> str:
        """Install a distribution with one plugin and return its module's name."""
        distribution = distribution or f"mlp-plugin-{name}"
        module = f"lab_{distribution.replace('-', '_')}"
        header = "from mlp_hookspecs import *\nfrom mlp_hookspecs import hookimpl\n"
        (self.site / f"{module}.py").write_text(header + textwrap.dedent(code))
        info = self.site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "entry_points.txt").write_text(f"[console_scripts]\nx = y:z\n\n[mlp]\n{name} = {value or module}\n")
        headers = [f"Name: {distribution}", f"Version: {version}", *(f"Requires-Dist: {r}" for r in requires)]
        (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *headers, "", "Text: not a header"]))
        return module

    def uninstall(self, distribution: str) -> None:
        """Remove a distribution's metadata; its module stays."""
        for folder in self.site.glob(f"{distribution.replace('-', '_')}-*.dist-info"):
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()

    def build(self, **settings: object) -> tuple[Hooks, Settings]:
        """Load the plugins in this process; a setting's name has an underscore for its dot."""
        return build_hooks(flags=dotted(settings), start=self.project, environ={})

    def hooks(self, **settings: object) -> Hooks:
        """Load the plugins in this process."""
        return self.build(**settings)[0]

    def worker_hooks(self, required: Sequence[PluginId], **settings: object) -> Hooks:
        """Load the plugins as a worker does."""
        return build_worker_hooks(required, dotted(settings))[0]

    def record(self, name: str, **settings: object) -> PluginRecord:
        """Load the plugins, and return what became of one."""
        return record_of(self.hooks(**settings), name)

    def run(self, code: str, *, wait: float = 60, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program in a process of its own, in which the plugins are installed."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLP_")}
        environment |= {"PYTHONPATH": f"{self.site}:{ROOT}", "XDG_RUNTIME_DIR": str(self.runtime), **variables}
        environment["MLP_PLUGINS_DENY"] = ",".join([*INSTALLED, variables.get("MLP_PLUGINS_DENY", "")])
        command = [sys.executable, "-c", textwrap.dedent(code)]
        return subprocess.run(
            command, cwd=self.project, env=environment, check=False, capture_output=True, text=True, timeout=wait
        )


def dotted(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings by their dotted names: the first underscore stands for the dot."""
    return {name.replace("_", ".", 1): value for name, value in settings.items()}


def record_of(hooks: Hooks, name: str) -> PluginRecord:
    """Return what became of the one plugin of a name."""
    (record,) = [record for record in hooks.records if record.name == name]
    return record


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A lab, on the path of this process for as long as the test runs."""
    folders = [tmp_path / name for name in ("site", "project", "runtime")]
    for folder in folders:
        folder.mkdir(0o700)
    made = Lab(*folders)
    monkeypatch.syspath_prepend(made.site)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(made.runtime))
    monkeypatch.chdir(made.project)
    found = plugins._distributions
    monkeypatch.setattr(plugins, "_distributions", lambda: (pair for pair in found() if str(tmp_path) in pair[0]))
    yield made
    for module in [name for name in sys.modules if name.startswith("lab_")]:
        del sys.modules[module]
