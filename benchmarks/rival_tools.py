"""Codes of the tools that people use today, as this project's values: one function a tool.

Each gives, for every linear of the model's layers and every bit-width asked for, a `QuantizedWeight` in groups of 64
along the inputs, asymmetric. The packages are imported where they are used; none is a dependency of bitfleet.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from supernet.build import Weights
from supernet.choices import make_space
from supernet.grids import GRIDS, QuantizedWeight
from supernet.grids.packing import pack
from supernet.loading import load_model
from supernet.quantize import quantize
from supernet.quantizers import GPTQ, RTN
from supernet.space import Choice
from supernet.spec import ModelSpec

GROUP = 64
ITERATIONS, SAMPLES, TOKENS = 50, 64, 512  # AutoRound's tuning, and what GPTQ is calibrated on


@dataclass(frozen=True)
class Inputs:
    """The full model, which a tool leaves as it is, and the text that it may look at, as windows and as a file."""

    source: str
    model: Any
    spec: ModelSpec
    windows: Tensor
    samples: Path


def need(package: str, module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise SystemExit(f"error: {package} is not installed; run: pip install {package}")


def rtn(inputs: Inputs, bits: Sequence[int]) -> Weights:
    return _own(inputs, bits, RTN())


def gptq(inputs: Inputs, bits: Sequence[int]) -> Weights:
    """The project's own GPTQ, with clipped ranges: gptqmodel does not install beside this project's versions."""
    return _own(inputs, bits, GPTQ(fisher=False))


def _own(inputs: Inputs, bits: Sequence[int], quantizer: Any) -> Weights:
    space = make_space(inputs.spec, bits, GROUP, grid="int")
    found = quantize(inputs.model, inputs.spec, space, quantizer, inputs.windows)
    return {name: found[name] for name in linear_names(inputs.spec)}


def hqq(inputs: Inputs, bits: Sequence[int]) -> Weights:
    """HQQ as `transformers.HqqConfig` calls it, along the inputs. Its zeros are floats."""
    return _hqq(inputs, bits, lambda weight, codes, scale, zero, width: (codes, zero))


def hqq_integer_zeros(inputs: Inputs, bits: Sequence[int]) -> Weights:
    """HQQ's scales with its zeros rounded, and each weight at the code that is then nearest."""

    def rounded(weight: Tensor, codes: Tensor, scale: Tensor, zero: Tensor, width: int) -> tuple[Tensor, Tensor]:
        top = 2**width - 1
        zero = zero.round().clamp(0, top)
        grouped = weight.view(*scale.shape, GROUP) / scale.unsqueeze(-1)
        return (grouped.round() + zero.unsqueeze(-1)).clamp(0, top).view_as(codes), zero

    return _hqq(inputs, bits, rounded)


def _hqq(inputs: Inputs, bits: Sequence[int], change: Callable[..., tuple[Tensor, Tensor]]) -> Weights:
    need("hqq", "hqq")
    from hqq.core.quantize import Quantizer

    found: Weights = {}
    for name in linear_names(inputs.spec):
        weight = inputs.model.get_submodule(name).weight.detach()
        groups = (weight.shape[0], weight.shape[1] // GROUP)
        found[name] = {}
        for width in bits:
            # transformers asks for zeros that start as integers at 4 bits; the solver moves them all the same
            codes, meta = Quantizer.quantize(
                weight, width, group_size=GROUP, round_zero=width == 4, axis=1, bitpack=False, device="cpu"
            )
            scale, zero = (meta[part].float().reshape(groups) for part in ("scale", "zero"))
            codes, zero = change(weight, codes.reshape(weight.shape), scale, zero, width)
            found[name][Choice(width, GROUP)] = stored(codes, scale, zero, width)
    return found


def autoround(inputs: Inputs, bits: Sequence[int]) -> Weights:
    (width,) = bits
    return _autoround(inputs, bits=width, sym=False)


def autoscheme(inputs: Inputs, average_bits: float, options: Sequence[int]) -> Weights:
    """AutoRound's own mixture of an average, tuned as that mixture: one choice a linear.

    `average_bits` counts codes alone, as everywhere here; AutoScheme counts a 16-bit scale and a zero a group too.
    Fused linears share their choice, as runtimes ask. It refuses asymmetric codes at 8 bits, so those are symmetric.
    """
    need("auto-round==0.16.1", "auto_round")
    from auto_round import AutoScheme
    from auto_round.schemes import QuantizationScheme

    schemes = [QuantizationScheme(bits=b, group_size=GROUP, sym=b == 8, data_type="int", act_bits=16) for b in options]
    overhead = (16 + average_bits) / GROUP
    scheme = AutoScheme(
        avg_bits=average_bits + overhead,
        options=schemes,
        shared_layers=[["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]],
    )
    os.environ.setdefault(
        "AR_AUTO_SCHEME_CACHE", str(inputs.samples.parent / "autoscheme")
    )  # its scores serve every average
    return _autoround(inputs, scheme=scheme)


def _autoround(inputs: Inputs, **scheme: Any) -> Weights:
    """Tuned by AutoRound. Its codes are read from the model that `quantize()` leaves, not from an export: the
    "fake" format of 0.16 writes the weights it began with where those were float32."""
    need("auto-round==0.16.1", "auto_round")
    from auto_round import AutoRound

    logging.getLogger("autoround").setLevel(logging.ERROR)
    full = load_model(inputs.source)  # it changes the model, so it has one of its own
    model, tokenizer = full.model, full.tokenizer
    tuner = AutoRound(
        model, tokenizer, group_size=GROUP, iters=ITERATIONS, nsamples=SAMPLES, seqlen=TOKENS,
        dataset=str(inputs.samples), device_map="cpu", enable_torch_compile=False, **scheme,
    )  # fmt: skip
    gc.collect()
    gc.freeze()  # it collects garbage five times a block, and would look through every object of the imports each time
    tuned, layers = tuner.quantize()
    return {name: _read(tuned.get_submodule(name), layers[name]["bits"]) for name in linear_names(inputs.spec)}


def _read(module: Any, bits: int) -> dict[Choice, QuantizedWeight]:
    """Codes from the weights that AutoRound rounded, and its scales and zeros."""
    weight, scale = module.weight.detach().float(), module.scale.float()
    zero = torch.as_tensor(module.zp).float().expand_as(scale)
    grouped = weight.view(*scale.shape, GROUP)
    codes = grouped / scale.unsqueeze(-1) + zero.unsqueeze(-1)
    off = (codes - codes.round()).abs().max().item()
    if off > 0.45 or codes.round().min() < 0 or codes.round().max() >= 2**bits:
        raise ValueError(f"weights must lie on AutoRound's grid of {bits} bits, they are off by {off:.2f} of a step")
    return {Choice(bits, GROUP): stored(codes.round().flatten(1), scale, zero, bits)}


def stored(codes: Tensor, scale: Tensor, zero: Tensor, bits: int) -> QuantizedWeight:
    """Zeros that are not integers stay floats: whoever counts bytes has to look."""
    kept = zero.to(torch.uint8) if is_integer(zero) else zero.float()
    packed = pack(codes.to(torch.uint8), bits)
    return GRIDS["int"].of({"codes": packed, "scale": scale.float(), "zero": kept}, Choice(bits, GROUP), codes.shape[1])


def is_integer(zero: Tensor) -> bool:
    return zero.dtype == torch.uint8 or bool(((zero == zero.round()) & (zero >= 0) & (zero <= 255)).all())


def linear_names(spec: ModelSpec) -> list[str]:
    return [lin.name for unit in spec.units if not unit.is_table for lin in unit.linears]


def write_samples(path: Path, windows: Tensor, tokenizer: Any) -> None:
    """Calibration windows as the JSON lines that AutoRound reads; it drops those that come out short of TOKENS."""
    lines = [json.dumps({"text": tokenizer.decode(window)}) for window in windows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def from_tensors(tensors: Mapping[str, Tensor]) -> Weights:
    found: Weights = {}
    for key in tensors:
        name, text, part = key.split("|")
        if part == "codes":
            choice = Choice.parse(text)
            grid = GRIDS[choice.grid]
            parts = {p: tensors[f"{name}|{text}|{p}"] for p in grid.format.parts(choice.bits)}
            found.setdefault(name, {})[choice] = grid.of(parts, choice, parts["scale"].shape[1] * choice.group_size)
    return found
