"""What runs a step: one typed request in, one typed outcome out, under any launcher and interpreter."""

from mlp_core.worker.execute import prepare

__all__ = ["prepare"]
