"""Everything that trains computes where it is told to: on a stand-in for a GPU, with what it computes on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from supernet.adapters import ADAPTERS
from supernet.build import build
from supernet.evaluate import evaluate
from supernet.grids import GRIDS
from supernet.grids.packing import pack, unpack
from supernet.model import spec_of_model
from supernet.quantize import quantize
from supernet.quantizers import QUANTIZERS
from supernet.recipe import Recipe
from supernet.reference import Reference
from supernet.refiners import REFINERS
from supernet.rounded import rounding_losses
from supernet.samplers import SAMPLERS
from supernet.sharing import SHARINGS
from supernet.train import Trainer, TrainOptions
from tests.supernet.conftest import Made
from tests.supernet.other_device import ACCELERATOR, GPU, There, with_a_gpu
from tests.tiny import WIDE, tiny_model, windows

BITS = (2, 4)
CPU = torch.device("cpu")


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Iterator[There]:
    with with_a_gpu(monkeypatch) as found:
        yield found


def made(device: torch.device, grid: str = "int", quantizer: str = "rtn", home: torch.device | None = None) -> Made:
    """The supernet's floats are in the CPU's memory, as those of one that was read."""
    changes = WIDE if grid == "k" else {"hidden_size": 32, "intermediate_size": 64}
    model = tiny_model(num_hidden_layers=1, **changes)
    spec = spec_of_model(model, "tiny")
    space = Recipe(bits=BITS, grid=grid, group_size=None if grid == "k" else 16).space(spec)
    weights = quantize(model.to(home or device), spec, space, QUANTIZERS[quantizer](), windows(2, 16).to(device))
    supernet = build(model, spec, space, weights)
    supernet.floats = {name: value.cpu() for name, value in supernet.floats.items()}
    supernet.model.to(device)
    model.to(device)
    return Made(model, spec, space, supernet)


def losses(
    device: torch.device, subject: Made, sampler: str = "balanced", steps: int = 2, **options: Any
) -> list[float]:
    accelerator = ACCELERATOR if device == GPU else Accelerator(cpu=True)
    subject.supernet.set_dtype(torch.float32)
    settings = TrainOptions(steps, 1e-2, batch=2, **options)
    return Trainer(
        subject.model, subject.supernet, windows(4, 16), SAMPLERS[sampler](), settings, accelerator, None
    ).run()


def test_the_stand_in_refuses_what_a_gpu_refuses(there: There) -> None:
    here = torch.ones(2)
    with pytest.raises(RuntimeError, match="same device"):
        here + here.to("cuda")
    leaf = torch.ones(2, requires_grad=True)
    leaf.to(GPU).mul(2).sum().backward()
    assert leaf.grad is not None and leaf.grad.device == CPU
    assert (here.to(GPU).double() * 2).device == GPU
    with pytest.raises(TypeError, match="numpy"):
        here.to(GPU).numpy()


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_adapter_trains_there_as_here(adapter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(device: torch.device) -> list[float]:
        subject = made(device)
        member, units = ADAPTERS[adapter], len(subject.spec.units)
        sharing = SHARINGS["shared" if member.routes else "decoupled"]()
        subject.supernet.adapt(member, BITS, 0, sharing, full=subject.model, **member.options(units))
        return losses(device, subject)

    expected = run(CPU)
    with with_a_gpu(monkeypatch):
        assert run(GPU) == expected


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_trains_there(sampler: str, there: There) -> None:
    subject = made(GPU)
    subject.supernet.adapt(ADAPTERS["scales"], BITS, 0)
    assert len(losses(GPU, subject, sampler)) == 2


SOLVED = [(grid, name) for grid in GRIDS for name in QUANTIZERS if (grid, name) != ("k", "yaqa")]
"""Bands are those of other grids and their steps those of `gptq`; both at once take a minute for a block."""


@pytest.mark.parametrize(("grid", "quantizer"), SOLVED)
def test_every_grid_is_solved_there_as_here(grid: str, quantizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supernet.hessians.compute_dtype", lambda device: torch.float32)
    expected = made(CPU, grid, quantizer).supernet
    with with_a_gpu(monkeypatch):
        for home in (GPU,) if grid == "k" else (CPU, GPU):  # where the model waits is not the grid's matter
            found = made(GPU, grid, quantizer, home).supernet
            assert all(
                torch.equal(part.cpu(), expected.matrices[name].stored(choice).parts[key])
                for name, matrix in found.matrices.items()
                for choice in matrix.choices
                for key, part in matrix.stored(choice).parts.items()
            )


@pytest.mark.parametrize("grid", GRIDS)
def test_what_is_lost_is_measured_there(grid: str, there: There) -> None:
    subject = made(GPU, grid)
    reference = Reference.of(subject.model, windows(2, 16))
    subnets = [subject.space.uniform(subject.spec, bits) for bits in BITS]
    found = [quality.kl for quality in evaluate(subject.supernet, subnets, reference)]
    plain = rounding_losses(subject.model, subject.spec, subject.space, reference, BITS)
    assert found == pytest.approx([plain[bits] for bits in BITS], rel=1e-4)


@pytest.mark.parametrize("refiner", REFINERS)
def test_every_refiner_learns_there(refiner: str, there: There) -> None:
    subject = made(GPU)
    before = subject.supernet.weights()
    within = REFINERS[refiner]().within(8, None)
    within.refine(subject.model, subject.model, subject.supernet, windows(4, 16).to(GPU), 0, lambda *_: None)
    assert all(weight.device == GPU for choices in subject.supernet.weights().values() for weight in choices.values())
    assert any(
        not torch.equal(weight.codes, before[name][choice].codes)
        for name, choices in subject.supernet.weights().items()
        for choice, weight in choices.items()
    )


@pytest.mark.parametrize("subnets", [1, 2])
def test_a_step_waits_for_few_results(subnets: int, there: There) -> None:
    """Each makes the GPU idle: a loss for each subnet, and whether all is finite, before and after moving."""
    subject = made(GPU)
    subject.supernet.adapt(ADAPTERS["scales"], BITS, 0)
    subject.supernet.set_dtype(torch.float32)
    sampler = SAMPLERS["balanced" if subnets == 1 else "slimmable"]()
    settings = TrainOptions(4, 1e-2, batch=2)
    trainer = Trainer(subject.model, subject.supernet, windows(4, 16), sampler, settings, ACCELERATOR, None)
    trainer.step(0)
    there.waits = there.copies = 0
    trainer.step(1)
    masks = 1 + subnets  # transformers asks once a pass whether a mask is needed
    assert there.waits == masks + subnets + 2
    assert there.copies <= 2


@pytest.mark.parametrize("teacher", ["full", "quantized"])
def test_codes_that_no_step_computes_with_wait_in_the_cpus_memory(teacher: str, there: There) -> None:
    subject = made(GPU)
    subject.supernet.adapt(ADAPTERS["scales"], (2,), 0)
    subject.supernet.set_dtype(torch.float32)
    settings, full = TrainOptions(2, 1e-2, batch=2, teacher=teacher), subject.model if teacher == "full" else None
    trainer = Trainer(full, subject.supernet, windows(4, 16), SAMPLERS["balanced"](), settings, ACCELERATOR, None)
    trainer.make_room()
    for unit, choices in subject.space.whole:
        drawn = () if subject.spec.unit(unit).is_table else choices[:1]
        if teacher == "quantized" or not drawn:
            drawn = (*drawn, choices[-1])
        for linear in subject.spec.unit(unit).linears:
            matrix = subject.supernet.matrices[linear.name]
            assert {c for c in matrix.choices if matrix.stored(c).codes.device == GPU} == set(drawn)
    assert len(trainer.run()) == 2
    subject.supernet.model.to(GPU)
    assert all(w.codes.device == GPU for found in subject.supernet.weights().values() for w in found.values())


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_are_unpacked_there_as_here(bits: int, there: There) -> None:
    codes = torch.randint(0, 2**bits, (3, 48), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert torch.equal(unpack(packed.to(GPU), bits, 48).cpu(), codes)
    assert torch.equal(unpack(packed, bits, 48), codes)


def test_rounding_takes_more_at_a_time_there(there: There) -> None:
    """A kernel for each few rows would be a GPU that waits."""
    weight, choice = torch.randn(4096, 64), made(CPU).space.whole["model.layers.0.self_attn.q_proj"][0]
    grid = GRIDS["int"]
    grid.nearest(weight.to(GPU), choice, torch.ones(64).to(GPU))
    once = there.kernels
    grid.nearest(weight[:64].to(GPU), choice, torch.ones(64).to(GPU))
    assert there.kernels - once == pytest.approx(once, rel=0.1)
