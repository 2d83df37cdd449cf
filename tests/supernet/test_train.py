"""Training: the loss and its gradient, what moves and what does not, resuming, and several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from supernet.adapters import ADAPTERS, TrainedScales
from supernet.model import hidden_states, logits_of
from supernet.samplers import Balanced, Uniform
from supernet.space import Subnet
from supernet.train import Trainer, TrainOptions, batch_at, distill, drop_losing, trained_space
from tests.supernet.conftest import Made, make
from tests.tiny import windows

STEPS = 12


def trainer(made: Made, path: Path, steps: int = STEPS, rate: float = 1e-2, **options: int) -> Trainer:
    settings = TrainOptions(steps, rate, **options)
    return Trainer(made.model, made.supernet, windows(16), Balanced(), settings, Accelerator(cpu=True), path)


def adapted(adapter: str = "scales") -> Made:
    made = make()
    made.supernet.adapt(ADAPTERS[adapter], (2, 3, 4), seed=0)
    return made


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_loss_and_its_gradient_are_those_of_kl(adapter: str, tmp_path: Path) -> None:
    made = adapted(adapter)
    run = trainer(made, tmp_path / "state")
    made.supernet.activate(made.space.uniform(made.spec, 3))
    ids = windows(2, 16)
    loss = distill(made.model, made.supernet.model, ids)
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


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_training_lowers_the_loss(adapter: str, tmp_path: Path) -> None:
    made = adapted(adapter)
    subnet = made.space.uniform(made.spec, 2)
    made.supernet.activate(subnet)
    before = distill(made.model, made.supernet.model, windows(16))
    run = trainer(made, tmp_path / "state", steps=40)
    run.run()
    made.supernet.activate(subnet)
    assert distill(made.model, made.supernet.model, windows(16)) < 0.8 * before


def test_only_the_sampled_adapters_move(tmp_path: Path) -> None:
    made = adapted()
    run = trainer(made, tmp_path / "state")
    before = {name: p.detach().clone() for name, p in run.parameters.items()}
    subnet = run.sampler.sample(run.space, 0, STEPS, 0)
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


SCRIPT = """
import json, sys
from pathlib import Path
from accelerate import Accelerator
from tests.supernet.test_train import adapted, trainer
run = trainer(adapted(), Path(sys.argv[1]) / "state", steps=6)
losses = run.run()
if run.accelerator.is_main_process:
    sums = [float(p.double().sum()) for p in run.parameters.values()]
    Path(sys.argv[1], f"{run.accelerator.num_processes}.json").write_text(json.dumps([losses, sums]))
"""


def test_two_processes_train_the_same_as_one(tmp_path: Path) -> None:
    """Launched as a person would; on CPUs, `accelerate launch` takes its processes from --multi_gpu."""
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).parents[2])
    cpu = {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    for processes in ([], ["--multi_gpu", "--num_processes", "2"]):
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", *processes]
        command = [*launch, "--mixed_precision", "no", "--dynamo_backend", "no", str(script), str(tmp_path)]
        done = subprocess.run(
            command, cwd=root, env={**os.environ, **cpu}, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (1, 2))
    assert two[0] == pytest.approx(one[0], rel=1e-5)
    assert two[1] == pytest.approx(one[1], rel=1e-4, abs=1e-3)


def test_a_batch_that_does_not_divide_among_processes_is_refused(tmp_path: Path) -> None:
    class Three:
        num_processes = 3

    made = adapted()
    with pytest.raises(ValueError, match="got 4 windows and 3 processes; use a multiple"):
        Trainer(made.model, made.supernet, windows(), Uniform(), TrainOptions(1, 1e-3), Three(), tmp_path)


def test_adapters_that_lose_to_none_are_dropped() -> None:
    made = adapted()
    verdict = {2: (5.0, 2.0), 3: (1.0, 0.97), 4: (0.1, 0.2)}
    calls: list[Sequence[Subnet]] = []

    def kl(subnets: Sequence[Subnet]) -> list[float]:
        calls.append(subnets)
        with_adapters = bool(made.supernet.adapters(subnets[0]))
        return [pair[1 if with_adapters else 0] for pair in verdict.values()]

    assert drop_losing(made.supernet, kl) == verdict
    assert calls[0] == calls[1]
    kept = {choice for matrix in made.supernet.matrices.values() for choice in matrix.adapters}
    assert kept == {"int2g16"}


@pytest.mark.parametrize("field", [{"steps": 0}, {"batch": 0}, {"learning_rate": 0.0}])
def test_options_out_of_range_are_refused(field: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(field))} must be"):
        TrainOptions(**{"steps": 1, "learning_rate": 1e-3, **field})  # type: ignore[arg-type]


def test_scales_are_the_default_that_folds() -> None:
    assert TrainedScales.deploys == "scales"
