"""mlp-plugin-conda: steps in locked environments of conda packages, on several platforms from one lock."""

from mlp_plugin_conda.options import Conda, CondaBase, conda, conda_base

__all__ = ["Conda", "CondaBase", "conda", "conda_base"]
