"""Runs in a process of its own, so that its peak memory is that of serving the package and of nothing else.

    python -I worker.py REQUEST.json

`fresh` starts it; `alone.main` says what a request is. Nothing of the project is imported but alone.py, by its path.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.runtimes import alone

STRETCH_BYTES = 2**24  # of logits that are made at a time
OUT_OF_MEMORY = ("bad_alloc", "bad allocation", "Failed to allocate memory", "Cannot allocate memory")


def measure(
    folder: Path, prompt_tokens: int, new_tokens: int, max_length: int, batch: int, repeats: int, settle_s: float
) -> dict[str, float]:
    """Load, prefill and generate greedily, as `alone.fastest` says; each time with a new generator."""
    import numpy as np
    import onnxruntime_genai as genai

    config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    ids = np.random.default_rng(0).integers(0, config["model"]["vocab_size"], (batch, prompt_tokens)).astype(np.int32)
    model = genai.Model(genai.Config(str(folder)))

    def served(length: int) -> list[float]:
        options = genai.GeneratorParams(model)
        options.set_search_options(max_length=max_length, min_length=max_length, do_sample=False, batch_size=batch)
        generator = genai.Generator(model, options)
        times = [time.perf_counter()]
        generator.append_tokens(ids[:, :length] if batch > 1 else ids[0, :length])
        for _ in range(min(new_tokens, max_length - length)):
            generator.generate_next_token()
            times.append(time.perf_counter())
        return times

    return alone.fastest(served, prompt_tokens, new_tokens, max_length, repeats, settle_s)


def logits(folder: Path, windows: str, out: str, unrounded: bool = False) -> dict[str, Any]:
    """By the packaged products on the packaged weights, whole windows at a time."""
    session, config = all_positions(folder, unrounded)
    vocabulary = config["model"]["vocab_size"]
    return alone.write_logits(windows, out, vocabulary, lambda most: partial(stretches, session, config, length=most))


def log_probs(folder: Path, asked: str, out: str, reading_s: float, unrounded: bool = False) -> dict[str, Any]:
    """Logits are made for a stretch of a window at a time, since a vocabulary is wide."""
    session, config = all_positions(folder, unrounded)
    vocabulary = config["model"]["vocab_size"]
    length = max(8, min(256, STRETCH_BYTES // (4 * vocabulary)))
    read = partial(stretches, session, config, length=length)
    return alone.write_log_probs(asked, out, reading_s, vocabulary, lambda most: read)


def continued(folder: Path, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    """How the package goes on after each prompt, taking the likeliest token, until it stops or has `new_tokens`."""
    import numpy as np
    import onnxruntime_genai as genai

    model = genai.Model(genai.Config(str(folder)))
    found = []
    for prompt in prompts:
        options = genai.GeneratorParams(model)
        length = len(prompt) + new_tokens
        options.set_search_options(max_length=length, do_sample=False, repetition_penalty=1.0, no_repeat_ngram_size=0)
        generator = genai.Generator(model, options)
        generator.append_tokens(np.array(prompt, np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        found.append([int(token) for token in generator.get_sequence(0)[len(prompt) :]])
        del generator
    return found


def encoded(folder: Path, asked: list[str]) -> list[list[int]]:
    """The token ids of each text."""
    import onnxruntime_genai as genai

    tokenizer = genai.Tokenizer(genai.Config(str(folder)))
    return [[int(token) for token in tokenizer.encode(text)] for text in asked]


def rendered(folder: Path, asked: list[Any]) -> list[str]:
    """What the chat template makes of each list of messages."""
    import onnxruntime_genai as genai

    tokenizer = genai.Tokenizer(genai.Config(str(folder)))
    return [tokenizer.apply_chat_template(json.dumps(messages), add_generation_prompt=True) for messages in asked]


def slower(folder: Path, entries: list[dict[str, Any]], cache_bytes: int, root: str) -> float:
    """The mean over kernels of how many times as long they take as the profile's `entries` say."""
    sys.path.append(root)
    from planner.runtimes.onnxruntime.kernels import TRIES, measure_product
    from supernet.space import Choice

    ratios = []
    for entry in entries:
        choice = Choice(entry["bits"], entry["group_size"])
        inputs, outputs, threads = entry["in_features"], entry["out_features"], entry["threads"]
        (now,) = measure_product(inputs, outputs, choice, (entry["rows"],), threads, cache_bytes, TRIES)
        ratios.append(now.median_ms / entry["median_ms"])
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def stretches(session: Any, config: Any, window: Any, length: int) -> Any:
    """The logits [tokens, vocabulary] of one window, `length` tokens at a time, each after the cache of the last.

    Keys and values stay in one buffer for the whole window, as when the package serves: attention adds to it in place.
    """
    import numpy as np
    import onnxruntime

    decoder = config["model"]["decoder"]
    shape = (1, decoder["num_key_value_heads"], len(window), decoder["head_size"])
    kinds = {"tensor(float)": np.float32, "tensor(int8)": np.int8}
    kept = {x.name: kinds[x.type] for x in session.get_inputs() if x.name.startswith("past_key_values")}
    cache = {name: onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, kind)) for name, kind in kept.items()}
    positions = any(x.name == "position_ids" for x in session.get_inputs())
    for start in range(0, len(window), length):
        ids = window[start : start + length].astype(np.int64)
        stop = start + len(ids)
        binding = session.io_binding()
        binding.bind_cpu_input("input_ids", ids[None])
        binding.bind_cpu_input("attention_mask", np.ones((1, stop), np.int64))
        if positions:
            binding.bind_cpu_input("position_ids", np.arange(start, stop, dtype=np.int64)[None])
        for name, value in cache.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
        binding.bind_output("logits")
        session.run_with_iobinding(binding)
        yield binding.get_outputs()[-1].numpy()[0]


def all_positions(folder: Path, unrounded: bool = False) -> tuple[Any, Any]:
    """A session of the packaged graph without the step that drops all positions but the last before the head; with
    keys and values as floats if `unrounded`."""
    import onnx
    import onnxruntime

    config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    source = {output: node for node in model.graph.node for output in node.output}
    head = next(node for node in model.graph.node if node.name == "/lm_head/MatMul")
    node = source[head.input[0]]
    while node.op_type in ("Gather", "Unsqueeze"):
        head.input[0] = node.input[0]
        node = source[head.input[0]]
    if unrounded:
        with_floats(model.graph)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = config["model"]["decoder"]["session_options"].get("intra_op_num_threads", 0)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session, config


def with_floats(graph: Any) -> None:
    """Take out, in place, what makes attention round keys and values as it caches them."""
    for node in graph.node:
        if node.op_type == "GroupQueryAttention":
            del node.input[12:]
            kept = [a for a in node.attribute if a.name not in ("k_quant_type", "v_quant_type", "kv_cache_bit_width")]
            del node.attribute[:]
            node.attribute.extend(kept)
    for value in (*graph.input, *graph.output):
        if value.name.startswith(("past_key_values.", "present.")):
            value.type.tensor_type.elem_type = 1


TASKS: dict[str, Callable[..., Any]] = {
    "measure": measure,
    "logits": logits,
    "log_probs": log_probs,
    "continued": continued,
    "encoded": encoded,
    "rendered": rendered,
    "slower": slower,
}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    alone = import_module("alone")
    del sys.path[0]
    sys.exit(alone.main(Path(sys.argv[1]), TASKS, OUT_OF_MEMORY))
