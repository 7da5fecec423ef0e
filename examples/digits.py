"""Choose the best classifier of handwritten digits: a foreach over models and their hyperparameters.

The data are the 1,797 scanned digits that come with scikit-learn. Run it with ``mlp run examples/digits.py``, or with
``python examples/digits.py run --folds 10``.
"""

from __future__ import annotations

import io
import time

import numpy as np
from matplotlib.figure import Figure
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import ParameterGrid, cross_val_score, train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from mlp_core import FlowSpec, Parameter, current, resources, retry, step

GRIDS = {
    "nearest neighbours": (KNeighborsClassifier(), {"n_neighbors": [1, 3, 5]}),
    "logistic regression": (
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        {"logisticregression__C": [0.01, 0.1, 1.0]},
    ),
    "random forest": (RandomForestClassifier(n_estimators=50, random_state=0), {"max_features": [4, 8]}),
    "support vectors": (SVC(), {"C": [1.0, 10.0], "gamma": [0.0005, 0.001, 0.002]}),
}
"""The models to compare, each with the hyperparameters to try."""


class Digits(FlowSpec):
    """Compare classifiers of handwritten digits, and examine the best."""

    folds = Parameter("folds", default=5, help="parts of the training data for cross-validation")
    test_share = Parameter("test-share", default=0.25, help="share of the data that no model is chosen by")
    seed = Parameter("seed", default=0, help="decides which digits are kept for the test")

    @step
    def start(self):
        """Split the data and list what to try."""
        pixels, digits = load_digits(return_X_y=True)
        self.train_x, self.test_x, self.train_y, self.test_y = train_test_split(
            pixels, digits, test_size=self.test_share, stratify=digits, random_state=self.seed
        )
        self.candidates = [(model, settings) for model, (_, grid) in GRIDS.items() for settings in ParameterGrid(grid)]
        print(f"{len(self.candidates)} candidates, {len(self.train_y)} digits to learn from")
        self.next(self.train, foreach="candidates")

    @retry(times=1, minutes_between_retries=0)
    @resources(cpu=1)
    @step
    def train(self):
        """Cross-validate one candidate; all of them run in parallel, as far as the machine has cores."""
        self.model, self.settings = self.input
        began = time.perf_counter()
        estimator = clone(GRIDS[self.model][0]).set_params(**self.settings)
        self.scores = cross_val_score(estimator, self.train_x, self.train_y, cv=self.folds)
        self.seconds = time.perf_counter() - began
        print(f"{self.scores.mean():.4f}  {self.model}  {self.settings}")
        self.next(self.choose)

    @step
    def choose(self, inputs):
        """Rank the candidates by their mean accuracy."""
        ranked = sorted(inputs, key=lambda branch: branch.scores.mean(), reverse=True)
        self.ranking = [
            {"model": branch.model, "settings": branch.settings, "accuracy": float(branch.scores.mean())}
            for branch in ranked
        ]
        # What all branches have in common goes on by reference: the arrays are neither loaded nor written again.
        self.merge_artifacts(inputs, include=["train_x", "train_y", "test_x", "test_y"])
        self.next(self.examine)

    @step
    def examine(self):
        """Fit the best candidate to all training data, and look at what it gets wrong."""
        best = self.ranking[0]
        self.classifier = clone(GRIDS[best["model"]][0]).set_params(**best["settings"]).fit(self.train_x, self.train_y)
        self.matrix = confusion_matrix(self.test_y, self.classifier.predict(self.test_x))
        self.accuracy = float(np.trace(self.matrix) / self.matrix.sum())
        self.figure = draw(self.matrix, f"{best['model']}: {self.accuracy:.1%} right")
        self.next(self.end)

    @step
    def end(self):
        """Say what was found, and where the rest is."""
        best = self.ranking[0]
        print(f"best: {best['model']} with {best['settings']}")
        print(f"accuracy on digits that it never saw: {self.accuracy:.4f}")
        print(f"all artifacts:  mlp artifacts {current.pathspec}")
        print(f"the figure:     mlp artifacts {current.pathspec}/figure > confusion.png")


def draw(matrix: np.ndarray, title: str) -> bytes:
    """Return a picture of a confusion matrix, as the bytes of a PNG file."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.log1p(matrix), cmap="Blues")
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            color = "white" if row == column else "black"
            axes.text(column, row, count, ha="center", va="center", color=color)
    digits = range(len(matrix))
    axes.set(title=title, xlabel="taken for", ylabel="written", xticks=digits, yticks=digits)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


if __name__ == "__main__":
    Digits()
