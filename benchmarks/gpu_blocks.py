"""What finding codes takes a decoder block of Llama-3.1-8B's width: GPTQ at 2, 3, 4 and 8 bits, and learned rounding.

Random weights and random tokens; the vocabulary is small, so that a head adds little. Seconds of all 32 blocks are
those of one times 32.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from gpu_record import LLAMA_8B, TINY, Record

from supernet.build import build
from supernet.model import spec_of_model
from supernet.quantize import quantize
from supernet.quantizers import GPTQ, RTN
from supernet.recipe import Recipe
from supernet.refiners import REFINERS

LAYERS = 2
VOCABULARY = 4096
CALIBRATED, LEARNED = 64, 128  # windows
STEPS = 16  # of a block and bit-width
LAST = 32  # blocks of the model


def run(record: Record) -> None:
    shape = replace(LLAMA_8B if record.on_gpu else TINY, layers=LAYERS, vocabulary=VOCABULARY)
    tokens, learned = (256, LEARNED) if record.on_gpu else (32, 16)
    calibrated = min(CALIBRATED, learned)
    model = shape.model(record.device)
    spec = spec_of_model(model, shape.name)
    space = Recipe().space(spec)
    drawn = torch.randint(VOCABULARY, (learned, tokens), generator=torch.Generator().manual_seed(0))
    windows = drawn.to(record.device)
    record.add(shape=shape.name, layers=LAYERS, windows=calibrated, window_tokens=tokens)
    record.forget_peak()
    solved = record.seconds_of(lambda: quantize(model, spec, space, GPTQ(), windows[:calibrated])) / LAYERS
    record.add(gptq={"block_s": solved, "all_s": solved * LAST, "peak_bytes": record.peak_bytes()})
    supernet = build(model, spec, space, quantize(model, spec, space, RTN(), windows[:1]))
    supernet.model.to(model.device)
    supernet.set_dtype(model.dtype)
    refiner = REFINERS["learned"]().within(STEPS if record.on_gpu else 8, None)
    record.forget_peak()
    found: dict[str, object] = {}

    def learn() -> None:
        found.update(refiner.refine(model, model, supernet, windows, 0, lambda *_: None))

    seconds = record.seconds_of(learn)
    record.add(
        learned={
            "seconds": seconds, "steps": found["block_steps"], "block_s": seconds / LAYERS,
            "peak_bytes": record.peak_bytes(),
        }
    )  # fmt: skip
