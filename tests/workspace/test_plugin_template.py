"""The template makes a plugin that installs, is found, acts on a flow, and passes its own tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cookiecutter.exceptions import FailedHookException
from cookiecutter.main import cookiecutter

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
FLOW = """
from mlp_core import FlowSpec, step
from mlp_plugin_tape_deck import timed

class Flow(FlowSpec):
    @timed(label="the first step")
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.fixture(scope="module", autouse=True)
def own_configuration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Neither read the developer's configuration of cookiecutter nor leave answers in the home folder."""
    folder = tmp_path_factory.mktemp("cookiecutter")
    config = folder / "config.yaml"
    config.write_text(f"replay_dir: {folder / 'replay'}\ncookiecutters_dir: {folder / 'templates'}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COOKIECUTTER_CONFIG", str(config))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plugin made from the template, under a name with a hyphen."""
    folder = tmp_path_factory.mktemp("made")
    template = str(ROOT / "plugin-template")
    return Path(cookiecutter(template, no_input=True, output_dir=str(folder), extra_context={"name": "tape-deck"}))


def run(*command: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | variables,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_every_blank_is_filled_in(made: Path) -> None:
    """No name of a blank is left in any file or file name, and the tests are there."""
    files = [path for path in made.rglob("*") if path.is_file()]
    assert made.name == "mlp-plugin-tape-deck"
    assert made / "src" / "mlp_plugin_tape_deck" / "plugin.py" in files
    for path in files:
        if path.suffix != ".pyc":  # another test may have run the plugin
            text = path.read_text() + str(path.relative_to(made))
            assert "cookiecutter" not in text, path
            assert "{{" not in text, path


@pytest.mark.parametrize(
    ("answers", "refused"),
    [
        ({"name": "Tape Deck"}, "name 'Tape Deck'"),
        ({"name": "../x"}, "name '../x'"),
        ({"name": ""}, "name ''"),
        ({"name": "tape--deck"}, "name 'tape--deck'"),
        ({"description": 'It says "hello".'}, "description"),
        ({"author": "a\nb"}, "author"),
    ],
)
def test_bad_answers_are_refused(
    answers: dict[str, str], refused: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An answer that no distribution can be made from is told, and leaves no file behind."""
    with pytest.raises(FailedHookException):
        cookiecutter(str(ROOT / "plugin-template"), no_input=True, output_dir=str(tmp_path), extra_context=answers)
    assert f"the {refused}" in capfd.readouterr().err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_readme_names_the_setting(made: Path) -> None:
    """The README of a plugin with a hyphen in its name spells setting and variable as the platform does."""
    text = (made / "README.md").read_text()
    assert "`tape_deck.digits`" in text
    assert "`MLP_TAPE_DECK_DIGITS`" in text
    assert "`--tape-deck-digits`" in text


def test_its_own_tests_pass(made: Path) -> None:
    """What it brings is green before anything is changed."""
    done = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=made)
    assert "5 passed" in done.stdout


def test_it_is_well_formed(made: Path) -> None:
    """The linter's rules for errors and imports and the formatter's shape hold, where the contract is third-party."""
    ruff = (sys.executable, "-m", "ruff")
    common = ("--isolated", "--no-cache", "--line-length", "120", ".")
    run(*ruff, "check", "--select", "E,F,B,I,UP", *common, cwd=made)
    run(*ruff, "format", "--check", *common, cwd=made)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_installed_it_acts_on_a_flow(made: Path, tmp_path: Path) -> None:
    """Built as a wheel and installed beside the platform, it is listed as loaded, and times the decorated step."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "wheels", made, cwd=tmp_path)
    wheel = next((tmp_path / "wheels").glob("*.whl"))
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
    # A constraint on the tools must not decide what a user's installation resolves to; empty, pip takes it for none.
    run(*pip, ROOT / "hookspecs", ROOT, wheel, cwd=tmp_path, PIP_CONSTRAINT="")
    (tmp_path / "flow.py").write_text(FLOW)
    mlp = environment / "bin" / "mlp"
    plugins = json.loads(run(mlp, "plugins", "--json", cwd=tmp_path).stdout)
    listed = plugins["plugins"] if isinstance(plugins, dict) else plugins
    assert {plugin["name"]: plugin["status"] for plugin in listed}["tape-deck"] == "loaded"
    done = run(mlp, "run", "flow.py", cwd=tmp_path, MLP_TAPE_DECK_DIGITS="1")
    assert "the first step took 0.0 s" in done.stdout
    done = run(mlp, "run", "flow.py", "--tape-deck-digits", "3", cwd=tmp_path)
    assert "the first step took 0.0" in done.stdout
