"""Every grid: what was trained on it is what its folder holds, and what a runtime is handed."""

from __future__ import annotations

import pytest
import torch

from supernet.checkpoint import SupernetFiles, open_supernet
from supernet.create import create
from supernet.evaluate import evaluate
from supernet.formats import FORMATS
from supernet.recipe import Recipe
from tests.tiny import TEXT, WIDE, save_tiny


@pytest.fixture(scope="module", params=FORMATS)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SupernetFiles:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "text.txt").write_text(TEXT * 4)
    blocks = FORMATS[request.param].block > 1
    recipe = Recipe(
        grid=request.param, bits=(2, 3, 8), group_sizes=() if blocks else (32, 16, 16), quantizer="gptq", steps=4,
        batch=2, window_tokens=16, data=str(folder / "text.txt"), prune=(0.5,),
    )  # fmt: skip
    create(str(save_tiny(folder / "model", **(WIDE if blocks else {}))), folder / "supernet", recipe)
    return open_supernet(folder / "supernet")


def test_a_folder_holds_every_choice_in_the_parts_of_its_grid(files: SupernetFiles) -> None:
    grid = files.info["recipe"]["grid"]
    unit = next(unit for unit in files.spec.units if not unit.is_table)
    wanted = ["k2g16", "k3g16", "sym8g32"] if grid == "k" else [f"{grid}2g32", f"{grid}3g16", f"{grid}8g16"]
    assert [str(c) for c in files.space.whole[unit.name]] == wanted
    names = {tuple(key.split("|")[1:]) for key in files.tensors("codes.safetensors").keys()}  # noqa: SIM118
    choices = {choice for _, choices in files.space.whole for choice in choices}
    assert names == {(str(choice), part) for choice in choices for part in choice.format.parts(choice.bits)}


def test_usual_group_sizes_are_those_of_the_grid() -> None:
    assert Recipe(grid="int").sizes() == {2: 64, 3: 64, 4: 64, 8: 64}
    assert Recipe().sizes() == {2: 64, 3: 64, 4: 32, 8: 32}
    assert Recipe(bits=(2, 5)).sizes() == {2: 64, 5: 32, 4: 32, 8: 32}
    assert Recipe(group_size=64).sizes() == {2: 64, 3: 64, 4: 64, 8: 64}
    assert Recipe(grid="k").sizes() == {2: 16, 3: 16, 4: 32, 6: 16, 8: 32}
    assert [str(Recipe(grid="k").choice(bits)) for bits in (2, 3, 8)] == ["k2g16", "k3g16", "sym8g32"]
    given = Recipe(bits=(2, 4), group_sizes=(128, 16))
    assert given.sizes() == {2: 128, 4: 16, 8: 32}
    assert Recipe.from_json(given.to_json()) == given


def test_what_a_runtime_is_handed_multiplies_to_what_was_trained(files: SupernetFiles) -> None:
    supernet = files.load()
    for unit in files.spec.units:
        for choice in files.space.whole[unit.name]:
            for linear in unit.linears:
                folded, matrix = files.folded(linear.name, choice), supernet.matrices[linear.name]
                groups = folded.codes.unflatten(1, (-1, choice.group_size)).float() - folded.zero.unsqueeze(-1).float()
                dense = (groups * folded.scale.unsqueeze(-1)).flatten(1)
                moving = choice.bits in choice.format.moving_zeros
                assert folded.codes.dtype == torch.uint8
                assert folded.zero.dtype == (torch.float32 if moving else torch.uint8)
                assert folded.sides.keys() == {part for part in choice.format.parts(choice.bits) if part != "codes"}
                assert torch.equal(dense, matrix.effective(choice))
                if choice.grid == "sym":
                    assert torch.equal(folded.scale, folded.scale.half().float())
                    assert (folded.zero == 2 ** (choice.bits - 1)).all()


def test_more_bits_lose_less_from_the_folder(files: SupernetFiles) -> None:
    losses = files.info["losses"]
    assert len(losses) == 4
    subnets = [files.space.uniform(files.spec, bits) for bits in (2, 3, 8)]
    kls = [quality.kl for quality in evaluate(files.load(), subnets, files.reference())]
    assert kls == sorted(kls, reverse=True)
    assert kls[2] < 0.1 * kls[0]
