"""genai_config.json: shapes, names, stop tokens, and how the model's authors sample.

onnxruntime-genai reserves the KV cache for `max_length` tokens when it starts: the limit is a memory promise too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from planner.tokens import stop_ids, token_ids
from records.reading import read_foreign
from supernet.spec import ModelSpec

CONFIG = "genai_config.json"
SAMPLING = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0}


def write(
    spec: ModelSpec, kind: str, graph: Any, model_dir: Path, context: int, chunk: int | None, threads: int | None,
    folder: Path,
) -> None:  # fmt: skip
    """Write the runtime's settings for `graph` beside the tokenizer in `folder`; `model_dir` has the model's config.

    Prompts are read in chunks of `chunk` tokens, which bounds what activations take; None reads them whole.
    """
    session: dict[str, Any] = {"log_id": "onnxruntime-genai", "provider_options": []}
    if threads:
        session["intra_op_num_threads"] = threads
    config = read_foreign(model_dir / "config.json")
    generation = read_foreign(model_dir / "generation_config.json")
    stops = stop_ids(model_dir, folder, spec.vocab_size)
    start, pad = (_token(name, generation, config) for name in ("bos_token_id", "pad_token_id"))
    value = {
        "model": {
            "type": kind,
            "vocab_size": spec.vocab_size,
            "context_length": context,
            "bos_token_id": stops[0] if start is None else start,
            "eos_token_id": stops,
            "pad_token_id": stops[0] if pad is None else pad,
            "decoder": {
                "session_options": session,
                "filename": "model.onnx",
                "head_size": spec.head_dim,
                "hidden_size": spec.hidden_size,
                "num_attention_heads": spec.num_heads,
                "num_hidden_layers": spec.num_layers,
                "num_key_value_heads": spec.num_kv_heads,
                "inputs": inputs_of(graph),
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "max_length": context,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            **({} if chunk is None else {"chunk_size": chunk}),
            **sampling(generation),
        },
    }
    (folder / CONFIG).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def inputs_of(graph: Any) -> dict[str, str]:
    names = {"input_ids": "input_ids", "attention_mask": "attention_mask", "position_ids": "position_ids"}
    there = {i.name for i in graph.input}
    found = {key: name for key, name in names.items() if name in there}
    return {**found, "past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}


def sampling(generation: dict[str, Any]) -> dict[str, Any]:
    """How the model's authors sample from it, in the types that the runtime has; greedy where they say nothing."""
    said = ((name, default, generation.get(name)) for name, default in SAMPLING.items())
    return {name: default if value is None else type(default)(value) for name, default, value in said}


def _token(name: str, *sources: dict[str, Any]) -> int | None:
    return next((ids[0] for source in sources if (ids := token_ids(source.get(name)))), None)
