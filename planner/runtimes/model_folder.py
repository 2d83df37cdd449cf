"""A model's folder as Hugging Face's libraries lay it out: config.json, generation_config.json, the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.runtimes.tensor_file import WEIGHTS, Tensor
from planner.runtimes.tokenizer_files import FILES as TOKENIZER_FILES
from planner.runtimes.tokenizer_files import write_tokenizer
from planner.tokens import stop_ids
from records.errors import InputError
from records.reading import read_foreign
from supernet.spec import ModelSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONFIG, GENERATION, INDEX = "config.json", "generation_config.json", "model.safetensors.index.json"
REQUIRED = (CONFIG, GENERATION, INDEX, WEIGHTS, "tokenizer.json")
# What stands beside it in every package: texts to try a tokenizer with, and what the full model said of a text.
BESIDE = ("probes.json", "proof.safetensors")
FILES = (*REQUIRED, *TOKENIZER_FILES, *BESIDE)
DTYPE, FLOAT_BYTES = "float16", 2  # what is not quantized is stored in; scales of trained groups are exact in it
# Keys by which a config names code to import, a repository to fetch it from, or kernels to download.
CODE_KEYS = (
    "auto_map", "model_file", "custom_pipelines", "custom_generate", "_attn_implementation", "attn_implementation",
    "_attn_implementation_internal", "_experts_implementation",
)  # fmt: skip


def write_description(
    model_dir: Path, spec: ModelSpec, context: int, folder: Path, changes: Mapping[str, Any], trusted: bool
) -> None:
    """Everything of a package but its weights. `changes` are what this runtime's config says beside the model's own;
    None takes a key away."""
    write_tokenizer(model_dir, context, folder, trusted)
    config = {**read_foreign(model_dir / CONFIG), "dtype": DTYPE, **changes}
    for key in (*CODE_KEYS, "_name_or_path", "torch_dtype", *(key for key, value in changes.items() if value is None)):
        config.pop(key, None)
    _write_json(folder / CONFIG, config)
    stops = stop_ids(model_dir, folder, spec.vocab_size)
    _write_json(folder / GENERATION, {**read_foreign(model_dir / GENERATION), "eos_token_id": stops})


def write_index(folder: Path, tensors: Iterable[Tensor]) -> None:
    """Which file holds which tensor. Without it vLLM reads every safetensors file in the folder as weights, the proof
    of a package too."""
    found = list(tensors)
    index = {
        "metadata": {"total_size": sum(tensor.bytes for tensor in found)},
        "weight_map": {tensor.name: WEIGHTS for tensor in found},
    }
    _write_json(folder / INDEX, index)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def float16(name: str, values: Any) -> NDArray[np.float16]:
    """Values as a package stores them; InputError where one is beyond what float16 can say."""
    import numpy as np

    array = np.asarray(values, np.float32)
    with np.errstate(over="ignore"):
        half = array.astype("<f2")
    if not np.isfinite(half).all():
        raise InputError(f"{name} must fit float16, up to 65504, got {np.abs(array).max():.6g}; use another runtime")
    return half
