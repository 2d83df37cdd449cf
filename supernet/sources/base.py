"""What a source of a full model gives: config, tokenizer, generation settings and weights, each from its own files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from supernet.absent import Absent, absent_in, read_for_passes
from supernet.account import Account


class Source(ABC):
    """Opening one reads no weights. What cannot be read exactly raises InputError, one line, that names it."""

    path: Path

    @abstractmethod
    def config(self, trust_remote_code: bool) -> Any:
        """The transformers config."""

    @abstractmethod
    def tokenizer(self, trust_remote_code: bool) -> Any:
        """The tokenizer that the source itself describes."""

    @abstractmethod
    def generation(self) -> dict[str, Any]:
        """The settings of generation as the source has them: stop ids, temperature and so on."""

    @abstractmethod
    def weights(self, config: Any, trust_remote_code: bool, dtype: torch.dtype) -> tuple[Any, Account]:
        """The model with every one of its parameters read, and what became of each tensor and file."""

    @abstractmethod
    def streamed(self, config: Any, trust_remote_code: bool, dtype: torch.dtype) -> tuple[Any, Account]:
        """The same model, whose matrices stay in the files until they are computed with (`supernet.absent`).

        InputError where they are stored otherwise than one by one.
        """


def with_weights(model: Any, reads: Mapping[str, Callable[[], Tensor]], dtype: torch.dtype, absent: bool) -> None:
    """Give `model`, which is on the meta device, its parameters from `reads`, by their names: all of them, or matrices
    that are `absent`."""
    for name, read in reads.items():
        parent, _, tail = name.rpartition(".")
        module = model.get_submodule(parent)
        shape = getattr(module, tail).shape
        if absent and len(shape) > 1 and isinstance(module, (nn.Linear, nn.Embedding)):  # a router stays float
            setattr(module, tail, Absent(read, shape, dtype))
            read_for_passes(module)
        else:
            setattr(module, tail, nn.Parameter(read().to(dtype), requires_grad=False))
    model.tie_weights()
    for module in model.modules():  # a head that is tied by now
        if absent_in(*module.parameters(recurse=False)) and "forward" not in vars(module):
            read_for_passes(module)
