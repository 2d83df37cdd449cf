"""Deltas between packages of one supernet: the tensors of the units that changed, and no others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from planner.delta import apply_delta, write_delta
from planner.package import Package, open_package, write_package
from supernet.space import Choice, Subnet
from tests.planner.packages import RUNTIME, tiny_plan
from tests.planner.runtime_fixtures import RoundedModel, mixed, save_tiny

# The matrices of a layer's unit in the graph, by the last part of the unit's name.
MATRICES = {
    "qkv": ("attn.qkv_proj",), "o_proj": ("attn.o_proj",), "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down_proj": ("mlp.down_proj",),
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> RoundedModel:
    return RoundedModel(save_tiny("llama", tmp_path_factory.mktemp("files") / "model"))


@pytest.fixture(scope="module")
def old(files: RoundedModel, tmp_path_factory: pytest.TempPathFactory) -> Package:
    return write_package(RUNTIME, files, tiny_plan(files), tmp_path_factory.mktemp("old") / "old")


def changed(files: RoundedModel, kind: str) -> tuple[Subnet, set[str]]:
    """A neighbour of `mixed`, and the matrices that it has otherwise."""
    subnet, spec = mixed(files.spec), files.spec

    def other(unit: str) -> None:
        nonlocal subnet
        subnet = subnet.replace(unit, Choice({2: 4, 4: 8, 8: 4}[subnet[unit].bits], 32))

    def names(unit: str) -> set[str]:
        _, _, layer, *_, last = unit.split(".")
        return {f"model.layers.{layer}.{name}.MatMul.weight" for name in MATRICES[last]}

    in_layers = [unit.name for unit in spec.units if not unit.is_table]
    (table,) = (unit.name for unit in spec.units if unit.is_table)
    if kind in MATRICES:
        unit = next(name for name in in_layers if ".1." in name and name.endswith(f".{kind}"))
        other(unit)
        return subnet, names(unit)
    if kind == "table":
        other(table)
        return subnet, {"lm_head.MatMul.weight"}
    if kind == "layer":
        for unit in in_layers:
            if ".0." in unit:
                other(unit)
        return subnet, set().union(*(names(unit) for unit in in_layers if ".0." in unit))
    makes, reads = spec.feed_forwards[1]
    for unit_spec in (makes, reads):
        kept = 64 if kind == "pruned" else 0
        subnet = subnet.replace(unit_spec.name, replace(subnet[unit_spec.name], kept=kept))
    return subnet, names(makes.name) | names(reads.name)


@pytest.mark.parametrize("kind", [*MATRICES, "table", "layer", "pruned", "left out"])
def test_a_delta_has_the_tensors_of_the_units_that_changed(
    files: RoundedModel, old: Package, tmp_path: Path, kind: str
) -> None:
    subnet, matrices = changed(files, kind)
    new = write_package(RUNTIME, files, tiny_plan(files, subnet=subnet), tmp_path / "new")
    for first, second in ((old, new), (new, old)):
        delta = write_delta(RUNTIME, first, second, tmp_path / "delta")
        there = set() if kind == "left out" and first is old else matrices  # a block that is gone has no tensors
        assert set(delta.changed) == {f"{matrix}.{part}" for matrix in there for part in ("codes", "scales", "zeros")}
        carried = [part for part in delta.parts["model.onnx.data"] if part.file is None]
        assert all(part.name for part in carried)
        made = apply_delta(first.path, tmp_path / "delta", tmp_path / "made")
        for path in second.path.iterdir():
            assert (tmp_path / "made" / path.name).read_bytes() == path.read_bytes()
        assert made.files == second.files
    open_package(tmp_path / "made").check(RUNTIME)
