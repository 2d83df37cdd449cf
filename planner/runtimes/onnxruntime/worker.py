"""Runs in a process of its own, so that its peak memory is that of serving the package and of nothing else.

    python -m planner.runtimes.onnxruntime.worker measure FOLDER PROMPT_TOKENS NEW_TOKENS MAX_LENGTH BATCH REPEATS
    python -m planner.runtimes.onnxruntime.worker logits FOLDER WINDOWS.npy OUT.npy

`measure` writes one JSON object to standard output. `logits` writes float32 logits [windows, tokens, vocabulary].
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

SETTLE_S = 4.0


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
    quick for SETTLE_S, so that a short disturbance does not cover them all.
    """
    import onnxruntime_genai as genai

    config = json.loads((folder / "genai_config.json").read_text())
    ids = np.random.default_rng(0).integers(0, config["model"]["vocab_size"], (batch, prompt_tokens)).astype(np.int32)
    model = genai.Model(genai.Config(str(folder)))
    loaded = peak_bytes()
    new_tokens = min(new_tokens, max_length - prompt_tokens)
    first: list[float] = []
    steps: list[float] = []
    peak = 0
    started = time.perf_counter()
    while len(first) < repeats or (repeats > 1 and time.perf_counter() - started < SETTLE_S):
        options = genai.GeneratorParams(model)
        options.set_search_options(max_length=max_length, min_length=max_length, do_sample=False, batch_size=batch)
        generator = genai.Generator(model, options)
        times = [time.perf_counter()]
        generator.append_tokens(ids if batch > 1 else ids[0])
        for _ in range(new_tokens):
            generator.generate_next_token()
            times.append(time.perf_counter())
        gaps = np.diff(times) * 1e3
        first.append(float(gaps[0]))
        steps.append(float(np.median(gaps[1:])) if len(gaps) > 1 else float(gaps[0]))
        peak = peak or peak_bytes()  # a second generator is one too many for what serving takes
        del generator
    return {"loaded_bytes": loaded, "peak_bytes": peak, "ttft_ms": min(first), "tpot_ms": min(steps)}


def logits(folder: Path, windows: Path, out: Path) -> None:
    """Teacher-forced logits of every position, by the packaged products on the packaged weights."""
    session, config = all_positions(folder)
    tokens = np.load(windows, allow_pickle=False).astype(np.int64)
    decoder, vocabulary = config["model"]["decoder"], config["model"]["vocab_size"]
    empty = np.zeros((1, decoder["num_key_value_heads"], 0, decoder["head_size"]), np.float32)
    result = np.lib.format.open_memmap(out, "w+", np.float32, (*tokens.shape, vocabulary))
    for i, window in enumerate(tokens):
        feed = {"input_ids": window[None], "attention_mask": np.ones((1, len(window)), np.int64)}
        feed |= {x.name: empty for x in session.get_inputs() if x.name.startswith("past_key_values")}
        if any(x.name == "position_ids" for x in session.get_inputs()):
            feed["position_ids"] = np.arange(len(window), dtype=np.int64)[None]
        result[i] = session.run(["logits"], feed)[0][0]
    result.flush()


def all_positions(folder: Path) -> tuple[Any, Any]:
    """A session of the packaged graph without the step that drops all positions but the last before the head."""
    import onnx
    import onnxruntime

    config = json.loads((folder / "genai_config.json").read_text())
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    source = {output: node for node in model.graph.node for output in node.output}
    head = next(node for node in model.graph.node if node.name == "/lm_head/MatMul")
    node = source[head.input[0]]
    while node.op_type in ("Gather", "Unsqueeze"):
        head.input[0] = node.input[0]
        node = source[head.input[0]]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = config["model"]["decoder"]["session_options"].get("intra_op_num_threads", 0)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session, config


if __name__ == "__main__":
    task, package, *rest = sys.argv[1:]
    if task == "measure":
        prompt, new, length, sequences, times = (int(x) for x in rest)
        sys.stdout.write(json.dumps(measure(Path(package), prompt, new, length, sequences, times)) + "\n")
    elif task == "logits":
        logits(Path(package), Path(rest[0]), Path(rest[1]))
    else:
        sys.exit(f"a worker measures or computes logits, got {task!r}")
