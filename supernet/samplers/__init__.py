"""Samplers: which subnet a training step trains."""

from supernet.samplers.balanced import Balanced
from supernet.samplers.base import Sampler
from supernet.samplers.uniform import Uniform

SAMPLERS: dict[str, type[Sampler]] = {"uniform": Uniform, "balanced": Balanced}

__all__ = ["SAMPLERS", "Balanced", "Sampler", "Uniform"]
