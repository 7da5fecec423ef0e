"""Who provides what is missing here: the plugins that we publish, by what users ask for."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

from mlp_core.errors import DecoratorMissing

_PROVIDERS: Final = {
    "mlp-plugin-airflow": ("target:airflow",),
    "mlp-plugin-cards": ("option:card",),
    "mlp-plugin-conda": ("environment:conda", "option:conda", "option:conda_base"),
    "mlp-plugin-ray": ("launcher:ray", "option:ray", "target:ray"),
    "mlp-plugin-scheduler": ("target:scheduler",),
    "mlp-plugin-uv": ("environment:pypi", "option:pypi", "option:pypi_base", "option:uv"),
}


def provider_of(kind: str, name: str) -> str | None:
    """Return the distribution that provides something.

    Parameters
    ----------
    kind : str
        A backend's kind, or ``option`` for a decorator.
    name : str
        Its name.

    Returns
    -------
    str or None
        The distribution; None where none of ours does.

    Examples
    --------
    >>> provider_of("option", "conda")
    'mlp-plugin-conda'
    """
    wanted = f"{kind}:{name}"
    return next((distribution for distribution, provided in _PROVIDERS.items() if wanted in provided), None)


def provider_hint(kind: str, name: str) -> str:
    """Return the command that installs the provider of something; empty where none of ours provides it.

    Examples
    --------
    >>> provider_hint("launcher", "ray")
    'pip install mlp-plugin-ray'
    """
    distribution = provider_of(kind, name)
    return f"pip install {distribution}" if distribution else ""


def plugin_decorator(name: str) -> Any:
    """Return a decorator of one of our plugins, as ``from mlp_core import conda`` asks for it; None for other names.

    Raises
    ------
    DecoratorMissing
        Where the plugin is not installed; the hint is the command that installs it.
    """
    distribution = provider_of("option", name)
    if distribution is None:
        return None
    package = distribution.replace("-", "_")
    try:
        return getattr(import_module(package), name)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        message = f"the decorator @{name} comes with {distribution}, which is not installed"
        raise DecoratorMissing(message, hint=provider_hint("option", name)) from None
