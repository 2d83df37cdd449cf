"""Runs in a process of its own, so that its peak memory is that of serving the package and of nothing else.

    python -I worker.py REQUEST.json

The request names a task, a package's folder and the task's arguments; see `TASKS`. What a task returns is written as
JSON to the request's `result`. `fresh` starts it. Nothing of the project is imported: what this process holds counts.
"""

from __future__ import annotations

import errno
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SETTLE_S = 4.0
STRETCH_BYTES = 2**24  # of logits that are made at a time
OK, PACKAGE, SYSTEM = 0, 1, 5  # exit codes: what `fresh` makes of them
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM, errno.EMFILE)
OUT_OF_MEMORY = ("bad_alloc", "bad allocation", "Failed to allocate memory", "Cannot allocate memory")


def peak_bytes() -> int:
    """The highest resident memory this process has had. Linux keeps it per process; elsewhere the C library does."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def measure(
    folder: Path, prompt_tokens: int, new_tokens: int, max_length: int, batch: int, repeats: int
) -> dict[str, float]:
    """Load, prefill and generate greedily; the fastest time to first token and the fastest median time per token.

    The fastest, because whatever else the machine does only ever adds: at least `repeats` times, and where that is
    quick for SETTLE_S, so that a short disturbance does not cover them all. Where the prompt leaves no room for
    `new_tokens`, the time per token is that of a prompt which does; NaN where the context has one token to give.
    """
    import numpy as np
    import onnxruntime_genai as genai

    config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    ids = np.random.default_rng(0).integers(0, config["model"]["vocab_size"], (batch, prompt_tokens)).astype(np.int32)
    model = genai.Model(genai.Config(str(folder)))
    loaded = peak_bytes()
    shorter = ids[:, : max(1, max_length - new_tokens)]

    def gaps(prompt: Any) -> Any:
        """Milliseconds of the first token and of each that follows."""
        options = genai.GeneratorParams(model)
        options.set_search_options(max_length=max_length, min_length=max_length, do_sample=False, batch_size=batch)
        generator = genai.Generator(model, options)
        times = [time.perf_counter()]
        generator.append_tokens(prompt if batch > 1 else prompt[0])
        for _ in range(min(new_tokens, max_length - prompt.shape[1])):
            generator.generate_next_token()
            times.append(time.perf_counter())
        return np.diff(times) * 1e3

    first: list[float] = []
    steps: list[float] = []
    peak = 0
    started = time.perf_counter()
    while len(first) < repeats or (repeats > 1 and time.perf_counter() - started < SETTLE_S):
        served = gaps(ids)
        peak = peak or peak_bytes()  # a second generator is one too many for what serving takes
        first.append(float(served[0]))
        after = served if shorter.shape == ids.shape else gaps(shorter)
        steps += [float(np.median(after[1:]))] if len(after) > 1 else []
    return {"loaded_bytes": loaded, "peak_bytes": peak, "ttft_ms": min(first), "tpot_ms": min(steps, default=math.nan)}


def logits(folder: Path, windows: str, out: str, unrounded: bool = False) -> dict[str, Any]:
    """Teacher-forced logits of every position, float32 [windows, tokens, vocabulary], by the packaged products on the
    packaged weights. `windows` and `out` are .npy files."""
    import numpy as np

    session, config = all_positions(folder, unrounded)
    tokens = np.load(windows, allow_pickle=False).astype(np.int64)
    with open(out, "wb") as file:  # no memory map: where the disk is full, writing to one kills the process
        shape = (*tokens.shape, config["model"]["vocab_size"])
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for window in tokens:
            for part in stretches(session, config, window, len(window)):
                file.write(np.ascontiguousarray(part, np.float32).data)
    return {}


def log_probs(folder: Path, asked: str, out: str, reading_s: float, unrounded: bool = False) -> dict[str, Any]:
    """What the package says at positions of windows, as far as it comes in the time: the log probabilities of the ids
    that `asked` names for each, and the likeliest token, written to `out`; both .npz files.

    Logits are made for a stretch of a window at a time, since a vocabulary is wide.
    """
    import numpy as np

    session, config = all_positions(folder, unrounded)
    vocabulary = config["model"]["vocab_size"]
    with np.load(asked, allow_pickle=False) as file:
        tokens, lengths, positions, ids = (file[name] for name in ("tokens", "lengths", "positions", "ids"))
    if max(tokens.max(), ids.max()) >= vocabulary:
        raise ValueError(f"tokens must be below the vocabulary of {vocabulary}, got {max(tokens.max(), ids.max())}")
    length = max(8, min(256, STRETCH_BYTES // (4 * vocabulary)))
    until = time.perf_counter() + reading_s
    found: list[Any] = []
    likeliest: list[int] = []
    start = 0
    for window in np.split(tokens.astype(np.int64), np.cumsum(lengths)[:-1]):
        wanted = positions[(positions >= start) & (positions < start + len(window))] - start
        window = window[: wanted[-1] + 1] if len(wanted) else window[:0]
        at = 0
        for part in stretches(session, config, window, length):
            for row in wanted[(wanted >= at) & (wanted < at + len(part))] - at:
                logits = part[row]
                top = float(logits.max())
                total = top + math.log(float(np.exp(logits - top, dtype=np.float32).sum(dtype=np.float64)))
                found.append((logits[ids[len(found)]] - total).astype(np.float32))
                likeliest.append(int(logits.argmax()))
            at += len(part)
            if time.perf_counter() > until:
                break
        start += int(lengths[0])
        lengths = lengths[1:]
        if time.perf_counter() > until:
            break
    log_probs = np.array(found, np.float32).reshape(-1, ids.shape[1])  # of no position, too
    np.savez(out, log_probs=log_probs, likeliest=np.array(likeliest, np.int32))
    return {}


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
        ids = window[start : start + length]
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


def main(request: Path) -> int:
    """Exit code OK, PACKAGE where the package does not load or run, SYSTEM where memory or disk ran out."""
    asked = json.loads(request.read_text(encoding="utf-8"))
    sys.path += asked["libraries"]
    try:
        found = TASKS[asked["task"]](Path(asked["folder"]), **asked["arguments"])
        Path(asked["result"]).write_text(json.dumps(found), encoding="utf-8")
    except Exception as error:
        sys.stderr.write(" ".join(f"{type(error).__name__}: {error}".split()) + "\n")
        full = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _FULL)
        return SYSTEM if full or any(words in str(error) for words in OUT_OF_MEMORY) else PACKAGE
    return OK


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
