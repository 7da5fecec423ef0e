"""Deployments: immutable versions of flows, and the targets that run them."""

from mlp_core.deploy.records import Active, Order, Version
from mlp_core.deploy.versions import Deployments

__all__ = ["Active", "Deployments", "Order", "Version"]
