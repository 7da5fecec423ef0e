"""mlp-plugin-ray: steps on a Ray cluster."""

from mlp_plugin_ray.options import Ray, ray

__all__ = ["Ray", "ray"]
