"""A training step of the supernet beside a PEFT LoRA step of the same model: seconds, operations, peak memory.

Random weights in bfloat16, made on the device. The supernet has codes at 2, 3, 4 and 8 bits and trained scales at 2 and
3; a step trains one subnet on one batch, teacher included. The LoRA step is PEFT at rank 16 on all linears, with the
loss that the model computes. Both compute decoder blocks again for the backward pass, or neither does. Operations are
counted by torch of one step each, and are products and attention alone. Of the large shape a step is measured as well
that the supernet's own codes teach, while the full model waits in the CPU's memory.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from gpu_record import LLAMA_1B, LLAMA_8B, Record, Shape
from torch.utils.flop_counter import FlopCounterMode

from supernet.adapters import ADAPTERS
from supernet.build import build
from supernet.model import spec_of_model
from supernet.quantize import quantize
from supernet.quantizers import RTN
from supernet.recipe import Recipe
from supernet.samplers import SAMPLERS
from supernet.train import QUANTIZED, Trainer, TrainOptions

RANK = 16
STEPS = 100  # of the training that steps are taken from
REPEATS = 5
NAMED = 8  # kernels that take longest
TIME_TARGET, PEAK_TARGET = 1.6, 0.35
Step = Callable[[int], object]


def small(record: Record) -> None:
    compare(record, record.shape(LLAMA_1B), (8, 512), checkpointing=False, most_bytes=12_000_000_000)


def large(record: Record) -> None:
    compare(record, record.shape(LLAMA_8B), (4, 512), checkpointing=True, most_bytes=48_000_000_000,
            taught_bytes=24_000_000_000)  # fmt: skip


def compare(
    record: Record, shape: Shape, batch: tuple[int, int], checkpointing: bool, most_bytes: int,
    taught_bytes: int | None = None,
) -> None:  # fmt: skip
    """`taught_bytes` is the most that a step may take which codes teach; without it none is measured."""
    if not record.on_gpu:
        batch = (2, 64)
    record.add(shape=shape.name, windows=batch[0], window_tokens=batch[1], checkpointing=checkpointing)
    record.forget_peak()
    model = shape.model(record.device)
    windows = torch.randint(shape.vocabulary, batch, generator=torch.Generator().manual_seed(0))
    peak = ops_per_s(record)
    record.add(square_product_ops_per_s=peak)
    trainer = supernet_trainer(record, model, windows, checkpointing)
    ours = measured(record, "supernet", trainer.step, windows, peak)
    targets = {}
    if taught_bytes is not None:
        taught = taught_by_codes(record, model, trainer)
        found = measured(record, "taught_by_codes", taught.step, windows, peak)
        targets["peak bytes of a step that codes teach"] = [found["peak_bytes"], taught_bytes]
        del taught
    del trainer
    model.to(record.device)
    record.forget_peak()
    theirs = measured(record, "lora", lora_step(model, windows, checkpointing), windows, peak)
    record.add(
        targets=targets
        | {
            "seconds of a step / LoRA's": [ours["seconds"] / theirs["seconds"], TIME_TARGET],
            "peak bytes": [ours["peak_bytes"], most_bytes],
            "share of the square product's operations a second, at least": [ours["share_of_peak"], PEAK_TARGET],
        }
    )


def measured(record: Record, name: str, step: Step, windows: torch.Tensor, peak: float) -> dict[str, Any]:
    """One step to warm up, one that is counted, and as many that are timed."""
    step(0)
    with FlopCounterMode(display=False) as counter:
        step(STEPS // 2)
    every = [record.seconds_of(lambda n=n: step(n)) for n in range(0, STEPS, STEPS // REPEATS)]
    seconds, operations = statistics.median(every), counter.get_total_flops()
    found = {
        "seconds": seconds,
        "fastest_s": min(every),
        "tokens_per_s": windows.numel() / seconds,
        "operations": operations,
        "ops_per_s": operations / seconds,
        "share_of_peak": operations / seconds / peak,
        "peak_bytes": record.peak_bytes(),
    }
    record.add(**{name: found})
    if record.on_gpu:
        record.add(**{f"{name}_kernels": kernels(record, step)})
    return found


def kernels(record: Record, step: Step) -> dict[str, Any]:
    """How many kernels a step has, how long the GPU is busy with them, and with which most."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            step(STEPS // 2)
            record.wait()
    except RuntimeError as error:  # a machine may keep its counters to itself
        return {"left_out": str(error)[:200]}
    spent: dict[str, list[float]] = {}
    for event in seen.events():
        if event.device_type == DeviceType.CUDA:
            of = spent.setdefault(event.name, [0, 0.0])
            of[0], of[1] = of[0] + 1, of[1] + event.time_range.elapsed_us() / 1e6
    longest = sorted(spent.items(), key=lambda item: -item[1][1])[:NAMED]
    return {
        "count": sum(number for number, _ in spent.values()),
        "busy_s": sum(seconds for _, seconds in spent.values()),
        "longest": [[name[:100], number, seconds] for name, (number, seconds) in longest],
    }


def parts(record: Record, trainer: Trainer) -> None:
    """Of a step: the teacher's pass, and making every linear once from its codes at the smallest width."""
    ids = trainer.windows.to(record.device)
    matrices = [matrix for matrix in trainer.supernet.matrices.values() if len(matrix.adapters)]

    def make() -> None:
        for matrix in matrices:
            matrix.stored(matrix.choices[0]).dequantize(torch.bfloat16)

    def teach() -> None:
        trainer.target(ids)

    for work in (teach, make):
        work()
    record.add(teacher_s=record.seconds_of(teach), made_s=record.seconds_of(make))


def ops_per_s(record: Record) -> float:
    from profiles.gpu_times import Sizes, square_ops_per_s

    return square_ops_per_s(record.device, Sizes(repeats=5) if record.on_gpu else Sizes(repeats=3, side=256))


def supernet_trainer(record: Record, model: Any, windows: torch.Tensor, checkpointing: bool) -> Trainer:
    recipe = Recipe()
    spec = spec_of_model(model, "random")
    space = recipe.space(spec)
    found: list[Any] = []
    seconds = record.seconds_of(lambda: found.append(quantize(model, spec, space, RTN(), windows.to(model.device))))
    supernet = build(model, spec, space, found[0])
    supernet.adapt(ADAPTERS["scales"], recipe.adapted_bits, 0, full=model)
    supernet.model.to(model.device)
    supernet.set_dtype(model.dtype)
    record.add(rounded_s=seconds, held_bytes=sum(part.nbytes for part in parts_of(supernet)))
    options = TrainOptions(STEPS, ADAPTERS["scales"].learning_rate, len(windows), checkpointing=checkpointing)
    accelerator: Any = SimpleNamespace(
        device=torch.device(record.device), num_processes=1, process_index=0, is_main_process=True,
        reduce=lambda tensor, how: tensor,
    )  # fmt: skip
    trainer = Trainer(model, supernet, windows, SAMPLERS["balanced"](), options, accelerator, None)
    if record.on_gpu:
        trainer.make_room()  # as `bitfleet train` does there
    parts(record, trainer)
    record.forget_peak()
    return trainer


def taught_by_codes(record: Record, model: Any, trainer: Trainer) -> Trainer:
    """The same supernet in a training that needs no full model. That leaves the device, and the moments that the other
    training found are dropped."""
    model.to("cpu")
    trainer.optimizer.state.clear()
    trainer.supernet.model.to(record.device)  # with the codes that teach
    options = replace(trainer.options, teacher=QUANTIZED)
    made = Trainer(None, trainer.supernet, trainer.windows, trainer.sampler, options, trainer.accelerator, None)
    if record.on_gpu:
        made.make_room()
    record.forget_peak()
    return made


def parts_of(supernet: Any) -> list[torch.Tensor]:
    """The codes and what is stored beside them."""
    return [
        part for choices in supernet.weights().values() for weight in choices.values() for part in weight.parts.values()
    ]


def lora_step(model: Any, windows: torch.Tensor, checkpointing: bool) -> Step:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted: Any = get_peft_model(model, config)
    if checkpointing:
        adapted.enable_input_require_grads()
        adapted.gradient_checkpointing_enable({"use_reentrant": False})
    adapted.train()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
    ids = windows.to(model.device)

    def step(number: int) -> None:
        adapted(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
