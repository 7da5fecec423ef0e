"""Train a classifier of tumours in an environment of its own: the first of the two flows, whose run the other explains.

The data are the 569 biopsies that come with scikit-learn. Run it with ``mlp run examples/explainer/train.py``.
"""

from __future__ import annotations

from mlp_core import FlowSpec, Parameter, current, step
from mlp_plugin_uv import pypi


class Train(FlowSpec):
    """Fit a random forest, and keep it with the cases that it has never seen."""

    trees = Parameter("trees", default=50, help="trees of the forest")
    seed = Parameter("seed", default=0, help="decides about the split and the forest")

    @step
    def start(self):
        """Begin in the interpreter that starts the run, which needs no scikit-learn."""
        print(f"training a forest of {self.trees} trees")
        self.next(self.fit)

    @pypi(packages={"scikit-learn": ">=1.7,<1.8"})
    @step
    def fit(self):
        """Fit the model; nobody who reads the run needs to know which version of what it was fitted with."""
        from sklearn.datasets import load_breast_cancer
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.model_selection import train_test_split

        data = load_breast_cancer()
        train_x, self.test_x, train_y, self.test_y = train_test_split(
            data.data, data.target, test_size=0.25, stratify=data.target, random_state=self.seed
        )
        self.features = [str(name) for name in data.feature_names]
        self.classes = [str(name) for name in data.target_names]
        self.model = RandomForestClassifier(self.trees, random_state=self.seed).fit(train_x, train_y)
        self.accuracy = float(self.model.score(self.test_x, self.test_y))
        self.next(self.end)

    @step
    def end(self):
        """Say how good it is, and how to have it explained."""
        print(f"accuracy on cases that it never saw: {self.accuracy:.3f}")
        print(f"explain it:  mlp run explain.py --training {current.flow_name}/{current.run_id}")


if __name__ == "__main__":
    Train()
