"""Each distribution, built and installed alone into an empty environment, works."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.workspace.conftest import Distribution

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def wheels(distributions: list[Distribution], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Build every distribution's source archive, and from it its wheel; return the wheels by distribution name."""
    folder = tmp_path_factory.mktemp("wheels")
    built = {}
    for distribution in distributions:
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, distribution.folder]
        subprocess.run(command, check=True)
        version = distribution.project["version"]
        built[distribution.name] = folder / f"{distribution.package}-{version}-py3-none-any.whl"
    return built


def test_wheel_holds_one_package(distribution: Distribution, wheels: dict[str, Path]) -> None:
    """A wheel installs its import package and its metadata, nothing beside them, and all of the package."""
    with zipfile.ZipFile(wheels[distribution.name]) as archive:
        names = archive.namelist()
    metadata = f"{distribution.package}-{distribution.project['version']}.dist-info"
    assert {name.partition("/")[0] for name in names} == {distribution.package, metadata}
    sources = {path.relative_to(distribution.source.parent).as_posix() for path in distribution.source.rglob("*.py")}
    assert sources <= set(names)


def test_wheel_works_alone(distribution: Distribution, wheels: dict[str, Path], tmp_path: Path) -> None:
    """Installed with only what it declares, a distribution imports, tells its version, and its commands start."""
    venv.create(tmp_path / "env", with_pip=False)
    binaries = tmp_path / "env" / "bin"
    python = binaries / "python"
    wheel = wheels[distribution.name]
    # A constraint on the tools must not decide what a user's installation resolves to.
    environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--find-links", wheel.parent, wheel]
    subprocess.run(pip, check=True, env=environment)

    code = (
        f"import importlib.metadata, {distribution.package} as package;"
        f"print(importlib.metadata.version('{distribution.name}'), package.__file__)"
    )
    run = subprocess.run([python, "-I", "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    version, file = run.stdout.split()
    assert version == distribution.project["version"]
    assert file.startswith(os.fspath(tmp_path))
    for script in distribution.project.get("scripts", {}):
        run = subprocess.run([binaries / script, "--help"], check=True, capture_output=True, text=True, cwd=tmp_path)
        assert script in run.stdout
