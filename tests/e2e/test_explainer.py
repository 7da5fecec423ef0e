"""The example that explains a model in its own environment, run as its README says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlp_core.client import Flow, Run
from mlp_plugin_uv.tool import run_uv

EXAMPLE = Path(__file__).parents[2] / "examples" / "explainer"
MLP = Path(sys.executable).with_name("mlp")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store with a run of each flow."""
    folder = tmp_path_factory.mktemp("explainer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UV_CACHE_DIR", run_uv(["cache", "dir"]).strip())
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("MLP_STORE", str(folder / "store"))
        printed = start(folder, "train.py", "--trees", "20")
        found = re.search(r"mlp run explain.py (--training) (\S+)", printed)
        assert found is not None, printed
        start(folder, "explain.py", *found.groups(), "--cases", "7")
    return folder


def start(folder: Path, name: str, *options: str) -> str:
    """Run a flow of the example, and return what it printed."""
    command = [MLP, "run", EXAMPLE / name, *options]
    done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def explained(place: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The run that explains, read from this process."""
    monkeypatch.setenv("MLP_STORE", str(place / "store"))
    run = Flow("Explain").latest_successful_run
    assert run is not None
    return run


def trained(explained: Run) -> Run:
    """The run that is explained."""
    return Run(explained.data.training)


def test_attributions_add_up_to_what_the_model_says(explained: Run) -> None:
    """For each case, what the features and the bias of the model contribute is the probability of its answer."""
    data = explained.data
    features = trained(explained)["fit"].task.data.features
    assert len(data.attributions) == len(data.predictions) == 7
    for weights, (_, probability) in zip(data.attributions, data.predictions, strict=True):
        assert sum(weights.values()) == pytest.approx(probability)
        assert set(weights) <= {"<BIAS>", *features}
    assert set(data.ranking) <= set(features)
    assert len(data.ranking) > 5


def test_predictions_are_those_of_the_trained_model(explained: Run, place: Path) -> None:
    """What is explained is the model of the training run: its own environment gives the same probabilities."""
    task = trained(explained)["fit"].task
    code = (
        "import sys; from mlp_core.client import Run; data = Run(sys.argv[1])['fit'].task.data; "
        "print(*data.model.predict_proba(data.test_x[:7]).max(axis=1).tolist())"
    )
    work = place / "work"
    subprocess.run([MLP, "env", "create", task.pathspec, "--into", work], check=True, cwd=place)
    done = subprocess.run(
        [work / "python", "-c", code, explained.data.training], check=True, cwd=place, capture_output=True, text=True
    )
    told = [probability for _, probability in explained.data.predictions]
    assert [float(word) for word in done.stdout.split()] == pytest.approx(told)


def test_environment_is_the_training_s_with_the_explainer(explained: Run) -> None:
    """Every version of the training's environment is kept, and the explainer is what was added."""
    base, packages = explained.data.base_packages, explained.data.packages
    assert {name: packages[name] for name in base} == base
    assert "eli5" in set(packages) - set(base)
    fitted, explaining = trained(explained)["fit"].task.environment_info, explained["explain"].task.environment_info
    assert fitted["digest"] != explaining["digest"]
    assert fitted["backend"] == explaining["backend"] == "pypi"
    assert explained.data.environment == f"explainer/{explained.id}:latest"
