"""Slopes beside differences of the loss itself, and beside the subnet's own choice."""

from __future__ import annotations

import pytest
import torch

from supernet.evaluate import evaluate
from supernet.landscape import WINDOWS, MeasuredLandscape
from supernet.reference import Reference
from supernet.slopes import slopes
from supernet.space import Choice, Subnet
from tests.supernet.conftest import Made, make
from tests.tiny import windows

STEP = 1e-3  # of the way from one choice to another


def _mixed(made: Made) -> Subnet:
    """Neighbours differ, and every width is there."""
    units = [(unit, choices[number % len(choices)]) for number, (unit, choices) in enumerate(made.space)]
    return Subnet(tuple(units))


@pytest.mark.parametrize("grid", ["int", "sym"])
def test_a_slope_is_what_a_small_part_of_the_change_costs(grid: str) -> None:
    made = make(grid=grid)
    subnet, text = _mixed(made), windows(4)
    reference = Reference.of(made.model, text, first=1)
    found = slopes(made.supernet, subnet, reference, torch.float32)
    assert set(found) == {unit.name for unit in made.spec.units if not unit.is_table}
    unit = made.spec.unit("model.layers.1.self_attn.v_proj")
    for choice, slope in found[unit.name].items():
        if choice == subnet[unit.name]:
            assert slope == 0.0
            continue
        moved = [_loss_part_of_the_way(made, subnet, unit.name, choice, step, reference) for step in (-STEP, STEP)]
        assert slope == pytest.approx((moved[1] - moved[0]) / (2 * STEP), rel=0.02, abs=1e-4)


def _loss_part_of_the_way(
    made: Made, subnet: Subnet, unit: str, choice: Choice, share: float, reference: Reference
) -> float:
    """The loss with a unit's matrices moved towards another choice, by its float weights."""
    hooks = []
    made.supernet.activate(subnet)
    for linear in made.spec.unit(unit).linears:
        matrix = made.supernet.matrices[linear.name]
        change = share * (matrix.effective(choice) - matrix.effective(subnet[unit])).T
        hooks.append(matrix.register_forward_hook(lambda module, args, out, change=change: out + args[0] @ change))
    try:
        return evaluate(made.supernet, [subnet], reference)[0].kl
    finally:
        for hook in hooks:
            hook.remove()


def test_a_landscape_takes_each_sample_of_slopes_on_windows_of_its_own(made: Made) -> None:
    reference = Reference.of(made.model, windows(WINDOWS))
    landscape = MeasuredLandscape(made.supernet, reference)
    subnet = _mixed(made)
    first, second = (landscape.slopes(subnet, sample) for sample in range(landscape.samples))
    assert first.keys() == second.keys() and first != second
    assert landscape.losses([subnet, subnet])[0] == landscape.losses([subnet])[0] > 0
