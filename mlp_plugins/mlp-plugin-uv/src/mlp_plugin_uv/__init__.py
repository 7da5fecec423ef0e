"""mlp-plugin-uv: steps in locked environments of PyPI packages, made by uv."""

from mlp_plugin_uv.options import Pypi, pypi

__all__ = ["Pypi", "pypi"]
