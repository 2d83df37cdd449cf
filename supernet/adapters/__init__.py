"""Adapters: what is trained on top of frozen codes, one for each (linear, choice)."""

from supernet.adapters.base import Adapter
from supernet.adapters.lora import LoRA
from supernet.adapters.pooled import PooledLoRA
from supernet.adapters.rounding import Rounding
from supernet.adapters.routed import RoutedLoRA
from supernet.adapters.scales import TrainedScales

ADAPTERS: dict[str, type[Adapter]] = {
    "scales": TrainedScales,
    "lora": LoRA,
    "pooled": PooledLoRA,
    "rounding": Rounding,
    "routed": RoutedLoRA,
}

__all__ = ["ADAPTERS", "Adapter", "LoRA", "PooledLoRA", "Rounding", "RoutedLoRA", "TrainedScales"]
