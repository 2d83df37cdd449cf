"""Adapters: what is trained on top of frozen codes, one for each (linear, choice)."""

from supernet.adapters.base import Adapter
from supernet.adapters.lora import LoRA
from supernet.adapters.scales import TrainedScales

ADAPTERS: dict[str, type[Adapter]] = {"scales": TrainedScales, "lora": LoRA}

__all__ = ["ADAPTERS", "Adapter", "LoRA", "TrainedScales"]
