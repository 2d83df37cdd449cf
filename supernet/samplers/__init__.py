"""Samplers: which subnets a training step trains."""

from supernet.samplers.balanced import Balanced
from supernet.samplers.base import History, Sampler, Trained, bits_of
from supernet.samplers.neighbours import Neighbours
from supernet.samplers.planned import Planned
from supernet.samplers.sandwich import Sandwich
from supernet.samplers.shift import Shift
from supernet.samplers.slimmable import Slimmable
from supernet.samplers.uniform import Uniform

SAMPLERS: dict[str, type[Sampler]] = {
    "uniform": Uniform,
    "balanced": Balanced,
    "neighbours": Neighbours,
    "slimmable": Slimmable,
    "planned": Planned,
    "sandwich": Sandwich,
    "shift": Shift,
}

__all__ = [
    "SAMPLERS",
    "Balanced",
    "History",
    "Neighbours",
    "Planned",
    "Sampler",
    "Sandwich",
    "Shift",
    "Slimmable",
    "Trained",
    "Uniform",
    "bits_of",
]
