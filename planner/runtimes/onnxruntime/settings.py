"""genai_config.json, and the files of the model's own tokenizer.

onnxruntime-genai reserves the KV cache for `max_length` tokens when it starts: the limit is a memory promise too.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from records.errors import InputError
from supernet.spec import ModelSpec

CONFIG = "genai_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = (
    "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja",
)  # fmt: skip
SAMPLING = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0}


def write(
    spec: ModelSpec, kind: str, graph: Any, model_dir: Path, context: int, chunk: int | None, threads: int | None,
    folder: Path,
) -> None:  # fmt: skip
    """Write the runtime's settings for `graph` and copy the tokenizer from `model_dir`.

    Prompts are read in chunks of `chunk` tokens, which bounds what activations take; None reads them whole.
    """
    session: dict[str, Any] = {"log_id": "onnxruntime-genai", "provider_options": []}
    if threads:
        session["intra_op_num_threads"] = threads
    config = optional_json(model_dir / "config.json")
    generation = optional_json(model_dir / "generation_config.json")
    stops = stop_ids(model_dir, spec.vocab_size)
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
    for name in TOKENIZER_FILES:
        path = model_dir / name
        if path.is_file() and not path.is_symlink():
            shutil.copyfile(path, folder / name)
    tokenizer = {**optional_json(model_dir / TOKENIZER_CONFIG), "model_max_length": context}
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(tokenizer, indent=2) + "\n", encoding="utf-8")


def inputs_of(graph: Any) -> dict[str, str]:
    names = {"input_ids": "input_ids", "attention_mask": "attention_mask", "position_ids": "position_ids"}
    there = {i.name for i in graph.input}
    found = {key: name for key, name in names.items() if name in there}
    return {**found, "past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}


def stop_ids(model_dir: Path, vocab_size: int) -> list[int]:
    """Every token that ends a text: generation_config's, as `generate` in transformers has it, or else the config's;
    and the tokenizer's end of text. A model that names none gets its last token."""
    generation, config = (optional_json(model_dir / name) for name in ("generation_config.json", "config.json"))
    named = generation.get("eos_token_id")
    found = _ids(config.get("eos_token_id") if named is None else named)
    end = tokenizer_stop(model_dir)
    found += [end] if end is not None and end not in found else []
    return [token for token in found if 0 <= token < vocab_size] or [vocab_size - 1]


def tokenizer_stop(model_dir: Path) -> int | None:
    """The id of the tokenizer's `eos_token`."""
    token = optional_json(model_dir / TOKENIZER_CONFIG).get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    for entry in optional_json(model_dir / "tokenizer.json").get("added_tokens", []):
        if entry.get("content") == token:
            return int(entry["id"])
    return None


def sampling(generation: dict[str, Any]) -> dict[str, Any]:
    """How the model's authors sample from it; greedy where they say nothing."""
    return {name: default if generation.get(name) is None else generation[name] for name, default in SAMPLING.items()}


def optional_json(path: Path) -> dict[str, Any]:
    """The object in `path`, empty where there is none. Any number will do: tokenizers write huge ones."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{path} must hold a JSON object; use the model folder as it was saved")
    return found


def _token(name: str, *sources: dict[str, Any]) -> int | None:
    return next((ids[0] for source in sources if (ids := _ids(source.get(name)))), None)


def _ids(value: Any) -> list[int]:
    """A token id or a list of them, as configs have it."""
    values = value if isinstance(value, list) else [value]
    return [int(token) for token in values if isinstance(token, int) and not isinstance(token, bool)]
