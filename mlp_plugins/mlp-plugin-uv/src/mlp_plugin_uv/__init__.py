"""mlp-plugin-uv: steps in locked environments of PyPI packages, made by uv."""

from mlp_plugin_uv.options import Pypi, PypiBase, Uv, pypi, pypi_base, uv

__all__ = ["Pypi", "PypiBase", "Uv", "pypi", "pypi_base", "uv"]
