"""A full model from GGUF files: config, tokenizer and weights of these files alone, whatever lies beside them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from records.errors import InputError
from supernet.account import READ, Account, refuse_other_tensors
from supernet.experts import unstacked
from supernet.sources.base import Source, with_weights
from supernet.sources.gguf_config import ROPE_TENSORS, config_of
from supernet.sources.gguf_file import GGUFTensor, read_gguf
from supernet.sources.gguf_tokenizer import tokenizer_of

GEMMAS = ("gemma", "gemma2", "gemma3")  # their norms are stored as 1 + w
_EXPERT = re.compile(r"\.experts\.\d+\.")
END_TOKENS = ("eos", "eot", "eom")  # llama.cpp ends a text at each of these


class GGUFSource(Source):
    def __init__(self, path: Path) -> None:
        self.path = path
        self.gguf = read_gguf(path)
        self.architecture = str(self.gguf.metadata["general.architecture"])

    def config(self, trust_remote_code: bool) -> Any:
        from transformers import AutoConfig

        return AutoConfig.for_model(**config_of(self.gguf))

    def tokenizer(self, trust_remote_code: bool) -> Any:
        return tokenizer_of(self.gguf)

    def generation(self) -> dict[str, Any]:
        found = {
            key: self.gguf.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in (*END_TOKENS, "bos", "padding")
        }
        ends = list(dict.fromkeys(found[key] for key in END_TOKENS if found[key] is not None))
        ids = {"bos_token_id": found["bos"], "pad_token_id": found["padding"]}
        if ends:
            ids["eos_token_id"] = ends[0] if len(ends) == 1 else ends
        return {name: value for name, value in ids.items() if value is not None}

    def weights(self, config: Any, trust_remote_code: bool, dtype: torch.dtype) -> tuple[Any, Account]:
        return self._with_weights(config, dtype, absent=False)

    def streamed(self, config: Any, trust_remote_code: bool, dtype: torch.dtype) -> tuple[Any, Account]:
        return self._with_weights(config, dtype, absent=True)

    def _with_weights(self, config: Any, dtype: torch.dtype, absent: bool) -> tuple[Any, Account]:
        from accelerate import init_empty_weights
        from transformers import AutoModelForCausalLM

        with init_empty_weights(include_buffers=False):
            model = unstacked(AutoModelForCausalLM.from_config(config, dtype=dtype))
        expected = {n: p for n, p in model.named_parameters() if n not in model.all_tied_weights_keys}
        targets = self._targets(expected)
        tensors = {name: "read into the config" for name in ROPE_TENSORS if name in self.gguf.tensors}
        missing = [targets[name][0] for name in targets.keys() - self.gguf.tensors.keys()]
        left = self.gguf.tensors.keys() - targets.keys() - tensors.keys()
        refuse_other_tensors(self.path, missing, left, len(expected))
        reads: dict[str, Callable[[], Tensor]] = {}
        for name, tensor in self.gguf.tensors.items():
            if name in targets:
                reads |= self._reads(name, tensor, config, {target: expected[target] for target in targets[name]})
                tensors[name] = f"{READ} into {_EXPERT.sub('.experts.', targets[name][0])}"
        with_weights(model, reads, dtype, absent)
        return model, Account(tensors, {file.name: READ for file in self.gguf.files})

    def _reads(
        self, name: str, tensor: GGUFTensor, config: Any, targets: Mapping[str, Any]
    ) -> dict[str, Callable[[], Tensor]]:
        """What reads each of the parameters `targets`: one tensor is one parameter, or one of each expert."""
        shape = tuple(next(iter(targets.values())).shape)
        experts = _EXPERT.search(next(iter(targets))) is not None
        wanted = (len(targets), *shape) if experts else shape
        if tensor.shape != wanted:
            raise InputError(
                f"{self.path}: {name} has the shape {tensor.shape}, the model needs {wanted}; "
                "the file is damaged or not of this architecture"
            )
        parts = [tensor.part(number) for number in range(len(targets))] if experts else [tensor]
        return {target: partial(self._read, name, part, config) for target, part in zip(targets, parts, strict=True)}

    def _targets(self, expected: Mapping[str, Any]) -> dict[str, list[str]]:
        """GGUF's name of each parameter, with the parameter's; experts have one name together."""
        from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

        architecture = next(key for key, name in MODEL_ARCH_NAMES.items() if name == self.architecture)
        table = get_tensor_name_map(architecture, self.gguf.metadata[f"{self.architecture}.block_count"])
        targets: dict[str, list[str]] = {}
        for name in expected:
            base, _, suffix = _EXPERT.sub(".experts.", name).rpartition(".")
            theirs = "output" if base == "lm_head" else table.get_name(base)
            targets.setdefault(f"{theirs or base}.{suffix}", []).append(name)
        return targets

    def _read(self, name: str, tensor: GGUFTensor, config: Any) -> Tensor:
        return torch.from_numpy(self._as_stored(name, tensor, config))

    def _as_stored(self, name: str, tensor: GGUFTensor, config: Any) -> np.ndarray[Any, Any]:
        """The weights as transformers keeps them: what llama.cpp's converter did to some is undone."""
        values = tensor.floats()
        if self.architecture in GEMMAS and name.endswith("norm.weight"):
            return values - 1
        if self.architecture == "llama" and (".attn_q." in name or ".attn_k." in name):
            heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
            return _halves_together(values, heads)
        return values


def _halves_together(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of a head from the order in which pairs rotate to that in which halves do."""
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(values.shape))
