"""Explain the model of a training run, in that run's own environment with one more library in it.

Run it with ``mlp run examples/explainer/explain.py --training Train/20260131-094500-123456``.
"""

from __future__ import annotations

from mlp_core import Environment, FlowSpec, Parameter, current, named_env, step
from mlp_core.client import Run


class Explain(FlowSpec):
    """Say how much each feature has contributed to what a model makes of each case."""

    training = Parameter("training", required=True, help="the run whose model is explained, as Flow/run")
    fitted_in = Parameter("fitted-in", default="fit", help="the step of that run that has the model")
    cases = Parameter("cases", default=20, help="how many of the run's own test cases to explain")

    @step
    def start(self):
        """Make the environment: the very packages that the model was fitted with, and the explainer."""
        fitted = Environment(f"{self.training}/{self.fitted_in}")
        explainer = fitted.extended(packages={"eli5": ">=0.16"})
        self.base_packages, self.packages = fitted.packages, explainer.packages
        self.environment = explainer.alias(f"explainer/{current.run_id}")
        added = sorted(set(self.packages) - set(self.base_packages))
        print(f"{self.environment} is what {self.training} had, with {', '.join(added)}")
        self.next(self.explain)

    @named_env(name="explainer/{run_id}", fetch_at_exec=True)
    @step
    def explain(self):
        """Load the model where it can be loaded, and divide its predictions among the features."""
        from eli5 import explain_prediction

        trained = Run(self.training)[self.fitted_in].task.data
        model, self.cases_x = trained.model, trained.test_x[: self.cases]
        self.attributions, self.predictions = [], []
        for case in self.cases_x:
            (told,) = explain_prediction(model, case, feature_names=trained.features).targets
            weights = {str(w.feature): float(w.weight) for w in (*told.feature_weights.pos, *told.feature_weights.neg)}
            self.attributions.append(weights)
            self.predictions.append((trained.classes[int(told.target)], float(told.proba)))
        self.next(self.end)

    @step
    def end(self):
        """Say what counts most."""
        total: dict[str, float] = {}
        for weights in self.attributions:
            for feature, weight in weights.items():
                total[feature] = total.get(feature, 0.0) + abs(weight) / len(self.attributions)
        del total["<BIAS>"]
        self.ranking = sorted(total, key=lambda feature: -total[feature])
        print(f"what counts most for {len(self.attributions)} predictions, on average:")
        for feature in self.ranking[:5]:
            print(f"  {total[feature]:.3f}  {feature}")


if __name__ == "__main__":
    Explain()
