"""What a source of a full model gives: config, tokenizer, generation settings and weights, each from its own files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch

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
