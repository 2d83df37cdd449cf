"""Training: the loss and its gradient, what moves and what does not, resuming, and several processes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from supernet.adapters import ADAPTERS, TrainedScales
from supernet.files import write_tensors
from supernet.model import checkpoint_blocks, hidden_states, logits_of
from supernet.samplers import SAMPLERS, Balanced, Sandwich, Shift, Uniform
from supernet.schedules import SCHEDULES, Delayed, Progressive
from supernet.space import Subnet
from supernet.train import (
    TIMED,
    Target,
    Trainer,
    TrainOptions,
    batch_at,
    distill,
    passes,
    steps_for,
    trained_space,
)
from tests.launch import PLAIN, TWO, launch
from tests.supernet.conftest import Made, make
from tests.tiny import FAMILIES, windows

STEPS = 12


def trainer(
    made: Made, path: Path, steps: int = STEPS, rate: float = 1e-2, sampler: str = "balanced",
    schedule: str = "constant", **options: Any,
) -> Trainer:  # fmt: skip
    settings = TrainOptions(steps, rate, **options)
    members = SAMPLERS[sampler](), SCHEDULES[schedule]()
    return Trainer(
        made.model, made.supernet, windows(16), members[0], settings, Accelerator(cpu=True), path, members[1]
    )


def adapted(adapter: str = "scales", bits: Sequence[int] = (2, 3, 4)) -> Made:
    made = make()
    made.supernet.adapt(ADAPTERS[adapter], bits, seed=0)
    return made


class Clock:
    """Time that passes where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def read(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


def test_checkpoints_that_take_long_are_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("supernet.train.time", SimpleNamespace(monotonic=clock.read))
    run = trainer(adapted(), tmp_path / "state", save_every=1)
    saved: list[int] = []

    def slowly() -> None:
        saved.append(len(run.history))
        Trainer.save(run)
        clock.passes(0.5)  # steps take none of it

    run.save = slowly  # type: ignore[method-assign]
    run.run()
    assert saved == [1, STEPS]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_loss_and_its_gradient_are_those_of_kl(adapter: str, tmp_path: Path) -> None:
    made = adapted(adapter)
    run = trainer(made, tmp_path / "state")
    made.supernet.activate(made.space.uniform(made.spec, 3))
    ids = windows(2, 16)
    loss, _ = distill(Target.of(made.model, ids), made.supernet.model, ids)
    ours = {name: p.grad.clone() for name, p in run.parameters.items() if p.grad is not None}
    run.optimizer.zero_grad(set_to_none=True)
    student = logits_of(made.supernet.model, hidden_states(made.supernet.model, ids)).log_softmax(-1)
    full = made.model(ids).logits.log_softmax(-1)
    expected = torch.nn.functional.kl_div(student, full, reduction="sum", log_target=True) / ids.numel()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert ours
    for name, gradient in ours.items():
        assert torch.allclose(gradient, run.parameters[name].grad, rtol=1e-3, atol=1e-6)


def loss_of(made: Made, subnet: Subnet) -> float:
    made.supernet.activate(subnet)
    return distill(Target.of(made.model, windows(16)), made.supernet.model, windows(16))[0]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_training_lowers_the_loss(adapter: str, tmp_path: Path) -> None:
    made = adapted(adapter)
    subnet = made.space.uniform(made.spec, 2)
    before = loss_of(made, subnet)
    run = trainer(made, tmp_path / "state", steps=40)
    run.run()
    assert loss_of(made, subnet) < 0.8 * before


def test_only_the_sampled_adapters_move(tmp_path: Path) -> None:
    made = adapted()
    run = trainer(made, tmp_path / "state")
    before = {name: p.detach().clone() for name, p in run.parameters.items()}
    (subnet,) = run.draw(0)
    run.step(0)
    sampled = set(made.supernet.adapters(subnet))
    for name, parameter in run.parameters.items():
        moved = not torch.equal(parameter, before[name])
        assert moved == (name.rsplit("|", 1)[0] in sampled)


def test_units_without_adapters_stay_at_their_largest() -> None:
    made = adapted()
    space = trained_space(made.supernet)
    assert [str(c) for c in space["model.embed_tokens"]] == ["int8g16"]
    assert [str(c) for c in space["model.layers.0.mlp.down_proj"]] == ["int2g16", "int3g16", "int4g16"]


def test_every_window_is_seen_once_an_epoch() -> None:
    data = torch.arange(10).view(10, 1)
    epochs = torch.cat([batch_at(data, step, 5, seed=3) for step in range(4)]).flatten().tolist()
    assert sorted(epochs[:10]) == sorted(epochs[10:]) == list(range(10))
    assert epochs[:10] != epochs[10:]


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("stop", [5, 8])
def test_a_killed_run_resumes_to_the_same_losses_and_weights(adapter: str, stop: int, tmp_path: Path) -> None:
    whole = adapted(adapter)
    losses = trainer(whole, tmp_path / "whole", save_every=5).run()

    class Killed(Exception):
        pass

    def kill(what: str, done: int, total: int) -> None:
        if done == stop:
            raise Killed

    first = trainer(adapted(adapter), tmp_path / "part", save_every=5)
    with pytest.raises(Killed):
        first.run(kill)
    rest = adapted(adapter)
    second = trainer(rest, tmp_path / "part", save_every=5)
    second.resume()
    assert len(second.losses) == (0 if stop == 5 else 5)  # killed within a step: back to the last checkpoint
    assert second.run() == losses
    for name, matrix in whole.supernet.matrices.items():
        for key, value in matrix.state_dict().items():
            assert torch.equal(rest.supernet.matrices[name].state_dict()[key], value)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_training_system_resumes_exactly(sampler: str, schedule: str, tmp_path: Path) -> None:
    system: dict[str, Any] = {"sampler": sampler, "schedule": schedule, "steps": 16, "batch": 2}
    system["teacher"] = "largest" if SAMPLERS[sampler].several else "full"

    def interrupt(what: str, done: int, total: int) -> None:
        if done == 13:
            raise KeyboardInterrupt

    whole = trainer(adapted(), tmp_path / "whole", **system)
    whole.run()
    first = trainer(adapted(), tmp_path / "part", **system)
    with pytest.raises(KeyboardInterrupt):
        first.run(interrupt)
    second = trainer(adapted(), tmp_path / "part", **system)
    second.resume()
    assert second.history == first.history == whole.history[:13]
    assert second.run() == whole.losses
    assert second.history == whole.history
    assert all(torch.equal(p, second.parameters[name]) for name, p in whole.parameters.items())


def test_an_interrupted_run_keeps_its_last_step(tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(adapted(), tmp_path / "state", save_every=100).run(interrupt)
    again = trainer(adapted(), tmp_path / "state")
    again.resume()
    assert len(again.losses) == 7


def test_a_checkpoint_of_another_supernet_is_refused(tmp_path: Path) -> None:
    trainer(adapted("lora"), tmp_path / "state").save()
    with pytest.raises(ValueError, match="is of another supernet; train into a new folder"):
        trainer(adapted("scales"), tmp_path / "state").resume()


def test_a_damaged_checkpoint_is_one_clear_line(tmp_path: Path) -> None:
    run = trainer(adapted(), tmp_path / "state")
    run.save()
    (tmp_path / "state").write_bytes((tmp_path / "state").read_bytes()[:1000])
    with pytest.raises(ValueError, match="is damaged"):
        run.resume()


SYSTEMS = [
    {},
    {"sampler": "sandwich", "schedule": "delayed", "teacher": "largest", "steps": 4},
    {"sampler": "shift", "steps": 23},  # long enough for draws to follow the losses
]
SCRIPT = """
import json, sys
from pathlib import Path
from tests.supernet.test_train import trained_by_all
accelerator, found = trained_by_all(Path(sys.argv[1]))
if accelerator.is_main_process:
    Path(sys.argv[1], f"{accelerator.num_processes}.json").write_text(json.dumps(found))
accelerator.end_training()
"""
Told = tuple[list[list[float]], list[float], list[float]]  # bits and losses of all subnets, sums of all parameters


def trained_by_all(folder: Path) -> tuple[Accelerator, list[Told]]:
    """Who trained, and what came of each of `SYSTEMS`."""
    found = []
    for number, system in enumerate(SYSTEMS):
        run = trainer(adapted(), folder / f"state{number}", **{"steps": 6, **system})
        run.run()
        sums = [float(p.detach().double().sum()) for p in run.parameters.values()]
        bits = [[one.bits for one in trained] for trained in run.history]
        found.append((bits, [one.loss for trained in run.history for one in trained], sums))
    return run.accelerator, found


def test_two_processes_train_the_same_as_one(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    launch((*PLAIN, *TWO), script, tmp_path)
    two = json.loads((tmp_path / "2.json").read_text())
    (tmp_path / "alone").mkdir()
    accelerator, one = trained_by_all(tmp_path / "alone")
    assert accelerator.num_processes == 1
    assert len(one) == len(two) == len(SYSTEMS)
    for alone, together in zip(one, two, strict=True):
        assert together[0] == alone[0]
        assert together[1] == pytest.approx(alone[1], rel=1e-4)
        assert together[2] == pytest.approx(alone[2], rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_checkpointing_changes_no_loss_and_no_gradient(adapter: str, tmp_path: Path) -> None:
    plain = trainer(adapted(adapter), tmp_path / "plain")
    saving = trainer(adapted(adapter), tmp_path / "saving", checkpointing=True)
    for step in range(2):
        subnets = plain.draw(step)
        assert saving._gradients(subnets, step) == plain._gradients(subnets, step)
        for name, parameter in plain.parameters.items():
            found = saving.parameters[name].grad
            assert (parameter.grad is None) == (found is None)
            assert found is None or torch.equal(found, parameter.grad)


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_keeps_the_inputs_of_blocks_alone(family: str) -> None:
    made = make(family)
    made.supernet.adapt(ADAPTERS["scales"], (2, 3), seed=0)
    made.supernet.activate(made.space.uniform(made.spec, 2))
    ids = windows(2, 32)
    before, full = kept_bytes(made, ids)
    checkpoint_blocks(made.supernet.model)
    after, saving = kept_bytes(made, ids)
    assert torch.equal(saving, full)
    block_inputs = made.spec.num_layers * ids.numel() * made.spec.hidden_size * 4
    assert block_inputs <= after < before / 2


def kept_bytes(made: Made, ids: torch.Tensor) -> tuple[int, torch.Tensor]:
    """What autograd keeps of a forward pass, each storage once, and the hidden states."""
    kept: dict[int, int] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        hidden = hidden_states(made.supernet.model, ids)
    own = {t.untyped_storage().data_ptr() for t in made.supernet.model.state_dict().values()}
    return sum(size for place, size in kept.items() if place not in own), hidden.detach()


def test_a_batch_that_does_not_divide_among_processes_is_refused(tmp_path: Path) -> None:
    class Three:
        num_processes = 3

    made = adapted()
    with pytest.raises(ValueError, match="got 4 windows and 3 processes; use a multiple"):
        Trainer(made.model, made.supernet, windows(), Uniform(), TrainOptions(1, 1e-3), Three(), tmp_path)


@pytest.mark.parametrize("field", [{"steps": 0}, {"batch": 0}, {"learning_rate": 0.0}])
def test_options_out_of_range_are_refused(field: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(field))} must be"):
        TrainOptions(**{"steps": 1, "learning_rate": 1e-3, **field})  # type: ignore[arg-type]


def test_scales_are_the_default_that_folds() -> None:
    assert TrainedScales.deploys == "scales"


def test_a_step_over_several_subnets_is_the_mean_of_their_steps(tmp_path: Path) -> None:
    made = adapted()
    run = trainer(made, tmp_path / "state", sampler="sandwich")
    ids = batch_at(run.windows, 0, 4, 0)
    subnets = run.draw(0)
    expected = {name: torch.zeros_like(p) for name, p in run.parameters.items()}
    losses = []
    for subnet in subnets:
        made.supernet.activate(subnet)
        losses.append(distill(Target.of(made.model, ids), made.supernet.model, ids)[0])
        for name, p in run.parameters.items():
            expected[name] += 0 if p.grad is None else p.grad / len(subnets)
        run.optimizer.zero_grad(set_to_none=True)
    assert len(subnets) == 4
    assert run._gradients(subnets, 0) == losses
    for name, p in run.parameters.items():
        assert torch.allclose(expected[name], torch.zeros_like(p) if p.grad is None else p.grad, rtol=1e-4, atol=1e-7)


def test_the_largest_learns_from_the_full_model_and_teaches_the_others(tmp_path: Path) -> None:
    """Against what autograd finds of the KL divergence between whole models, the teacher's part detached."""
    made = adapted()
    run = trainer(made, tmp_path / "state", sampler="sandwich", teacher="largest")
    ids = batch_at(run.windows, 0, 4, 0)
    largest, *others = run.draw(0)
    losses = run._gradients((largest, *others), 0)
    ours = {name: p.grad.clone() for name, p in run.parameters.items() if p.grad is not None}
    run.optimizer.zero_grad(set_to_none=True)

    def log_probs(subnet: Subnet) -> torch.Tensor:
        made.supernet.activate(subnet)
        return logits_of(made.supernet.model, hidden_states(made.supernet.model, ids)).log_softmax(-1)

    full = made.model(ids).logits.log_softmax(-1)
    teacher = log_probs(largest)
    found = [kl_per_token(teacher, full)]
    found += [kl_per_token(log_probs(subnet), teacher.detach()) for subnet in others]
    assert losses == pytest.approx([loss.item() for loss in found], rel=1e-5)
    (sum(found) / 4).backward()  # type: ignore[union-attr]
    for name, gradient in ours.items():
        assert torch.allclose(gradient, run.parameters[name].grad, rtol=1e-3, atol=1e-6)


def test_codes_of_the_most_bits_teach_where_no_full_model_is_there(tmp_path: Path) -> None:
    made = adapted()
    options = TrainOptions(4, 1e-3, teacher="quantized")
    run = Trainer(None, made.supernet, windows(), Sandwich(), options, Accelerator(cpu=True), tmp_path / "state")
    assert {choice.bits for _, choice in run.most} == {8}
    ids = batch_at(run.windows, 0, 4, 0)

    def log_probs(subnet: Subnet) -> torch.Tensor:
        made.supernet.activate(subnet)
        return logits_of(made.supernet.model, hidden_states(made.supernet.model, ids)).log_softmax(-1).detach()

    subnets = run.draw(0)
    teacher = log_probs(run.most)
    expected = [kl_per_token(log_probs(subnet), teacher).item() for subnet in subnets]
    assert run._gradients(subnets, 0) == pytest.approx(expected, rel=1e-5)
    run.optimizer.zero_grad(set_to_none=True)
    run.run()
    assert torch.equal(log_probs(run.most), teacher)  # training moves the others alone


def kl_per_token(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    kl = torch.nn.functional.kl_div(student, teacher, reduction="sum", log_target=True)
    return kl / (student.shape[0] * student.shape[1])


def test_history_holds_every_subnet_and_losses_their_mean(tmp_path: Path) -> None:
    run = trainer(adapted(), tmp_path / "state", sampler="sandwich", steps=3)
    losses = run.run()
    for trained, loss in zip(run.history, losses, strict=True):
        assert [one.bits for one in trained[:2]] == [4, 2]
        assert all(2 < one.bits < 4 for one in trained[2:])
        assert loss == pytest.approx(sum(one.loss for one in trained) / 4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_closed_choices_are_not_drawn_and_do_not_move(sampler: str, tmp_path: Path) -> None:
    run = trainer(adapted(), tmp_path / "state", sampler=sampler, schedule="delayed", steps=8)
    before = {name: p.detach().clone() for name, p in run.parameters.items()}
    for step in range(4):
        assert [one.bits for one in run.step(step)] == [4]
    moved = {name.split("|")[1] for name, p in run.parameters.items() if not torch.equal(p, before[name])}
    assert moved == {"int4g16"}
    assert not {name for name, p in run.parameters.items() if p in run.optimizer.state} - {
        name for name in run.parameters if "|int4g16|" in name
    }


def test_a_rate_of_a_choice_is_the_step_of_its_adapters(tmp_path: Path) -> None:
    """The first step of Adam is as long as the learning rate, so the factor can be read off."""
    run = trainer(adapted(), tmp_path / "state", sampler="sandwich", schedule="delayed", steps=40)
    for step in (20, 21, 22, 30):
        run.step(step)
        for group in run.optimizer.param_groups:
            factor = 1 if group["choice"].bits == 4 else min(1, (step - 19) / 4)
            assert group["lr"] == pytest.approx(run.options.rate(step) * factor)
    fresh = trainer(adapted(), tmp_path / "other", sampler="sandwich", schedule="delayed", steps=40)
    before = {name: p.detach().clone() for name, p in fresh.parameters.items()}
    fresh.step(20)
    lengths = {"int4g16": 1.0, "int3g16": 0.25, "int2g16": 0.25}
    for name, p in fresh.parameters.items():
        longest = (p - before[name]).abs().max().item()
        expected = fresh.options.rate(20) * lengths[name.split("|")[1]]
        assert longest == 0 or longest == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("sampler", [Uniform(), Balanced(), Shift()])
def test_in_place_distillation_needs_several_subnets(sampler: Any, tmp_path: Path) -> None:
    made, options = adapted(), TrainOptions(1, 1e-3, teacher="largest")
    name = type(sampler).__name__.lower()
    with pytest.raises(ValueError, match=f"several subnets a step, got {name}, which draws one; use sampler sandwich"):
        Trainer(made.model, made.supernet, windows(), sampler, options, Accelerator(cpu=True), tmp_path)


@pytest.mark.parametrize(
    ("sampler", "schedule", "named"),
    [
        (Sandwich(), None, "sampler sandwich"),
        (Shift(), None, "sampler shift"),
        (Uniform(), Delayed(), "schedule delayed"),
        (Uniform(), Progressive(), "schedule progressive"),
    ],
)
def test_one_adapted_bit_width_leaves_nothing_to_schedule(
    sampler: Any, schedule: Any, named: str, tmp_path: Path
) -> None:
    made, options = adapted(bits=(3,)), TrainOptions(1, 1e-3)
    with pytest.raises(ValueError, match=f"{named} needs at least 2 bit-widths with adapters, got 1; use"):
        Trainer(made.model, made.supernet, windows(), sampler, options, Accelerator(cpu=True), tmp_path, schedule)


def test_a_checkpoint_without_history_is_refused(tmp_path: Path) -> None:
    run = trainer(adapted(), tmp_path / "state")
    tensors = {name: p.detach() for name, p in run.parameters.items()}
    write_tensors(tmp_path / "state", tensors, {"losses": [1.0], "options": run.options.to_json()})
    with pytest.raises(ValueError, match="is of an earlier version; train into a new folder"):
        run.resume()


def test_a_schedule_s_cheap_steps_count_when_minutes_become_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(adapted(), tmp_path / "state", steps=100, sampler="sandwich", schedule="delayed")
    assert run.average_work() == pytest.approx((passes(1) + passes(4)) / 2 / passes(4))
    assert trainer(adapted(), tmp_path / "state", steps=100).average_work() == 1
    clock = Clock()
    monkeypatch.setattr("supernet.timing.time", SimpleNamespace(perf_counter=clock.read))
    assert steps_for(0.5, lambda: clock.passes(0.5)) == 60 - TIMED
    assert steps_for(0.5, lambda: clock.passes(0.5), 0.5) == 2 * (60 - TIMED)
