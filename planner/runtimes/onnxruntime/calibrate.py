"""Measures what ONNX Runtime costs beyond its products, on two small Llama models that differ in depth alone.

Both are real packages, served in fresh processes. Their products are timed apart, in cache as they are there, and
subtracted; what is left per layer, per step, per value and per attention score is what every model pays.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from planner.request import Workload
from planner.runtimes.base import Progress
from planner.runtimes.onnxruntime import costs, fresh, kernels, memory, storage
from planner.runtimes.onnxruntime.export import write_model
from profiles.device import Calibration
from profiles.measure import per_call, time_callable
from supernet.space import Choice, Subnet
from supernet.spec import EMBEDDING, LinearSpec, ModelSpec, UnitSpec

SHALLOW, DEEP = 4, 16
SHORT, LONG, CONTEXT = 16, 1024, 2048
CHOICE = Choice(4, 32)
HIDDEN, FEED_FORWARD, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 256, 768, 4, 2, 64, 4096
NEW_TOKENS = 64


@dataclass(frozen=True)
class Folded:
    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray


class RandomLlama:
    """What the exporter reads of a supernet, with random weights."""

    def __init__(self, layers: int, folder: Path) -> None:
        self.path = self.model_dir = folder
        self.spec = small_llama(layers)
        folder.mkdir()
        config = {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "hidden_act": "silu",
            "intermediate_size": FEED_FORWARD, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM, "num_hidden_layers": layers, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5,
            "max_position_embeddings": CONTEXT, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
            "pad_token_id": 2, "torch_dtype": "float32",
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        write_tokenizer(folder)

    def folded(self, linear: str, choice: Choice) -> Folded:
        found = next(lin for unit in self.spec.units for lin in unit.linears if lin.name == linear)
        # Weights of their own for every linear: ONNX Runtime keeps equal ones once.
        rng = np.random.default_rng(zlib.crc32(linear.encode()))
        groups = found.in_features // choice.group_size
        codes = rng.integers(0, 2**choice.bits, (found.out_features, found.in_features), np.uint8)
        scale = np.full((found.out_features, groups), 0.01, np.float32)
        return Folded(codes, scale, np.full((found.out_features, groups), 2 ** (choice.bits - 1), np.uint8))

    def float_tensors(self) -> dict[str, np.ndarray]:
        names = [f"model.layers.{i}.{n}_layernorm" for i in range(self.spec.num_layers) for n in NORMS]
        return {f"{name}.weight": np.ones(HIDDEN, np.float32) for name in (*names, "model.norm")}


NORMS = ("input", "post_attention")


def small_llama(layers: int) -> ModelSpec:
    def unit(name: str, role: str, layer: int, inputs: int, **outputs: int) -> UnitSpec:
        parent = f"model.layers.{layer}.{name}"
        linears = tuple(LinearSpec(f"{parent}.{tail}", n, inputs) for tail, n in outputs.items())
        return UnitSpec(f"{parent}.{role}", role, layer, linears)

    queries, keys = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    units = [UnitSpec("model.embed_tokens", EMBEDDING, None, (LinearSpec("model.embed_tokens", VOCABULARY, HIDDEN),))]
    for i in range(layers):
        units += [
            unit("self_attn", "qkv", i, HIDDEN, q_proj=queries, k_proj=keys, v_proj=keys),
            unit("self_attn", "o", i, queries, o_proj=HIDDEN),
            unit("mlp", "gate_up", i, HIDDEN, gate_proj=FEED_FORWARD, up_proj=FEED_FORWARD),
            unit("mlp", "down", i, FEED_FORWARD, down_proj=HIDDEN),
        ]
    return ModelSpec(
        name="calibration", architecture="LlamaForCausalLM", num_layers=layers, hidden_size=HIDDEN, num_heads=HEADS,
        num_kv_heads=KV_HEADS, head_dim=HEAD_DIM, vocab_size=VOCABULARY, max_context=CONTEXT, tied=True,
        float_parameters=(2 * layers + 1) * HIDDEN, units=tuple(units), rotary_dim=HEAD_DIM,
    )  # fmt: skip


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models

    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{chr(97 + i): 3 + i for i in range(26)}}
    Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def calibrate(threads: int, progress: Progress | None = None) -> tuple[Calibration, ...]:
    """The numbers of costs.py for this machine, with `threads` threads; about half a minute."""
    report = progress or (lambda what, share: None)
    with tempfile.TemporaryDirectory() as scratch:
        packages = {}
        for i, layers in enumerate((SHALLOW, DEEP)):
            report(f"building a model of {layers} layers", i * 0.3)
            files = RandomLlama(layers, Path(scratch) / f"model{layers}")
            packages[layers] = Path(scratch) / f"package{layers}"
            packages[layers].mkdir()
            subnet = Subnet.of({unit.name: CHOICE for unit in files.spec.units})
            write_model(files, subnet, CONTEXT, threads, packages[layers])
        report("serving both models", 0.6)
        shallow = fresh.measure(packages[SHALLOW], SHORT, CONTEXT, repeats=5)
        deep = fresh.measure(packages[DEEP], SHORT, CONTEXT, repeats=5)
        middle = fresh.measure(packages[DEEP], LONG // 4, CONTEXT, new_tokens=2, repeats=3)
        long = fresh.measure(packages[DEEP], LONG, CONTEXT, repeats=2)
    report("timing their products", 0.9)
    rows = (1, LONG // 4, LONG)
    products = {n: sum(in_cache_ms(n, threads, k, m) for k, m in layer_products()) for n in rows}
    head = in_cache_ms(1, threads, HIDDEN, VOCABULARY)
    numbers = solve(shallow, deep, middle, long, products, head)
    return tuple(Calibration(costs.RUNTIME, name, value, costs.UNITS[name]) for name, value in numbers.items())


def layer_products() -> list[tuple[int, int]]:
    spec = small_llama(1)
    return [shape for unit in spec.units if not unit.is_table for shape in storage.products(spec, unit)]


def in_cache_ms(rows: int, threads: int, inputs: int, outputs: int) -> float:
    copies = 4
    run = kernels.session(inputs, outputs, CHOICE, copies, threads)
    feed = {"x": np.zeros((rows, inputs), np.float32)}
    return per_call(time_callable(lambda: run.run(["y0"], feed), min_time_s=0.1), copies).p10_ms


def solve(
    shallow: fresh.Measurement,
    deep: fresh.Measurement,
    middle: fresh.Measurement,
    long: fresh.Measurement,
    products: dict[int, float],
    head: float,
) -> dict[str, float]:
    """The constants from the measurements; times that noise has made negative become 0."""
    spec = small_llama(DEEP)
    values, width = memory.layer_values(spec), HEADS * HEAD_DIM
    per_layer = (deep.tpot_ms - shallow.tpot_ms) / (DEEP - SHALLOW) - products[1]
    step = deep.tpot_ms - DEEP * (per_layer + products[1]) - head
    decode = (long.tpot_ms - deep.tpot_ms) / (DEEP * (LONG - SHORT) * width)
    # What prompts of two lengths leave beyond their products, as value * tokens + score * tokens^2, in each layer.
    short, full = LONG // 4, LONG
    left = {
        tokens: max(0.0, (measured.ttft_ms - step - head) / DEEP - products[tokens] - per_layer)
        for tokens, measured in ((short, middle), (full, long))
    }
    score = max(0.0, (left[full] / full - left[short] / short) / (full - short))
    value = max(0.0, left[full] / full - score * full)
    decode_start = decode * (SHORT + NEW_TOKENS / 2) * width
    growth = (long.peak_bytes - deep.peak_bytes) / (4 * (LONG - SHORT) * values)
    workload = Workload(CONTEXT, 1, LONG)
    modelled = sum(memory.unit_bytes(spec, unit, CHOICE) for unit in spec.units) + memory.kv_bytes(spec, workload)
    modelled += storage.float_bytes(spec, CONTEXT) + memory.activation_bytes(spec, workload, growth)
    return {
        costs.BASE: float(long.peak_bytes - modelled),
        costs.ACTIVATIONS: growth,
        costs.STEP: max(0.0, step),
        costs.LAYER: max(0.0, per_layer - decode_start - value),
        costs.VALUE: 1e6 * value / values,
        costs.SCORE_DECODE: max(0.0, 1e6 * decode),
        costs.SCORE_PREFILL: 1e6 * score / width,
    }
