"""Scales of one subnet alone: trained, kept in a file of their own, and read again as they were trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from commands.needs import check_tuning_needs
from records.errors import InputError, MissingError
from supernet.checkpoint import SupernetFiles
from supernet.create import create
from supernet.evaluate import evaluate
from supernet.evidence import alone
from supernet.files import read_tensors
from supernet.loading import load_model
from supernet.recipe import Recipe
from supernet.space import Subnet
from supernet.tune import Tuning, check_tunable, tune
from supernet.tuned import with_tuned, write_tuned
from tests.tiny import TEXT, WIDE, save_tiny

STEPS = 16
GRIDS = {"sym": {}, "int": {}, "k": WIDE}


def supernet_of(folder: Path, grid: str = "sym", **changes: object) -> SupernetFiles:
    """Of a tiny model, rounded to nearest, and a subnet's siblings differ in it."""
    (folder / "text.txt").write_text(TEXT * 4)
    save_tiny(folder / "model", **GRIDS[grid])
    given = {"bits": (2, 4), "quantizer": "rtn", "steps": 1, "awq": 0.0, "window_tokens": 32} | changes
    size = {} if grid == "k" else {"group_size": 16}
    recipe = Recipe(grid=grid, data=str(folder / "text.txt"), **size, **given)  # type: ignore[arg-type]
    return create(str(folder / "model"), folder / "net", recipe)


def mixed(files: SupernetFiles) -> Subnet:
    """Every other unit at the larger choice, so that query, key and value differ, and tables at the largest."""
    linears = [unit.name for unit in files.spec.units if not unit.is_table]
    larger = {name: number % 2 for number, name in enumerate(linears)}
    return Subnet(tuple((unit, choices[larger.get(unit, -1)]) for unit, choices in files.space))


def tuned(files: SupernetFiles, subnet: Subnet, seed: int = 0) -> Tuning:
    return tune(files, load_model(files.info["source"]), subnet, None, STEPS, seed, lambda *_: None)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SupernetFiles:
    return supernet_of(tmp_path_factory.mktemp("sym"))


@pytest.mark.parametrize("grid", GRIDS)
def test_what_is_kept_is_what_was_trained_to_the_bit_and_loses_less(grid: str, tmp_path: Path) -> None:
    files = supernet_of(tmp_path, grid)
    subnet = mixed(files)
    before = {name: (tmp_path / "net" / name).read_bytes() for name in files.hashes}
    found = tuned(files, subnet)
    opened = write_tuned(files, subnet, found.tensors)
    assert opened.fingerprint != files.fingerprint
    assert {name: (tmp_path / "net" / name).read_bytes() for name in files.hashes} == before
    assert 0 < found.units <= found.of == 14
    again, changed = with_tuned(files, opened.tuned.sha256, subnet), 0  # type: ignore[union-attr]
    for unit in files.spec.units:
        for linear in unit.linears:
            mine, trained = again.stored(linear.name, subnet[unit.name]), found.supernet.matrices[linear.name]
            wanted, was = trained.stored(subnet[unit.name]).parts, files.stored(linear.name, subnet[unit.name]).parts
            assert all(torch.equal(mine.parts[name], wanted[name]) for name in wanted)
            assert torch.equal(mine.codes, was["codes"])
            changed += any(not torch.equal(wanted[name], was[name]) for name in was)
    assert changed == found.units
    losses = [evaluate(alone(one, subnet), [subnet], files.reference())[0].kl for one in (files, again)]
    assert losses[1] < 0.9 * losses[0]
    other = files.space.uniform(files.spec, 2)
    for unit in (unit for unit in files.spec.units if subnet[unit.name] != other[unit.name]):
        known, mine = (one.stored(unit.name, other[unit.name]).parts for one in (files, again))
        assert all(torch.equal(known[name], mine[name]) for name in known)


def test_the_same_seed_gives_the_same_file_and_another_another(files: SupernetFiles) -> None:
    subnet = mixed(files)
    digests = [
        write_tuned(files, subnet, tuned(files, subnet, seed).tensors).tuned.sha256  # type: ignore[union-attr]
        for seed in (0, 0, 1)
    ]
    assert digests[0] == digests[1] != digests[2]
    names = {path.name for path in (files.path / "tuned").iterdir()}
    assert names >= {f"{digest[:16]}.safetensors" for digest in digests}
    assert all(len(name) == len("0123456789abcdef.safetensors") for name in names)  # nothing else is left there


def test_text_that_the_model_writes_is_kept_and_read_again(files: SupernetFiles) -> None:
    untold = replace(files, info={**files.info, "recipe": {**files.info["recipe"], "data": None}})
    subnet, kept = mixed(files), files.path / "tuned" / "windows-7.safetensors"
    first = tuned(untold, subnet, 7)
    windows = read_tensors(kept)[0]["windows"]
    assert first.text != files.info["recipe"]["data"]
    assert windows.shape == (min(STEPS * 4, 124), 32)
    held_out = files.reference().windows
    assert not any(torch.equal(window, one) for window in windows for one in held_out)
    kept.touch()
    before, again = kept.stat().st_mtime_ns, tuned(untold, subnet, 7)
    assert kept.stat().st_mtime_ns == before and again.text == first.text
    assert all(torch.equal(again.tensors[name], value) for name, value in first.tensors.items())
    kept.unlink()


def test_numbers_that_are_gone_damaged_or_anothers_are_said_in_a_line(files: SupernetFiles) -> None:
    subnet, other = mixed(files), files.space.uniform(files.spec, 4)
    path, digest = _kept(files, subnet)
    with pytest.raises(InputError, match="tuned for another plan or supernet"):
        with_tuned(files, digest, other)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match="is damaged; copy it again, or plan again with --tune"):
        with_tuned(files, digest, subnet)
    path.write_bytes(whole)
    opened = with_tuned(files, digest, subnet)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match="is damaged"):
        opened.check_hashes()
    path.unlink()
    with pytest.raises(MissingError, match="the plan was tuned, and its numbers are not at"):
        with_tuned(files, digest, subnet)


def test_a_file_that_holds_something_else_is_refused(files: SupernetFiles) -> None:
    subnet = mixed(files)
    unit = next(unit for unit in files.spec.units if not unit.is_table).name
    name, parts = f"{unit}|{subnet[unit]}", files.stored(unit, subnet[unit]).parts
    for tensors in ({f"{name}|codes": parts["codes"]}, {f"{name}|scale": parts["scale"][:1]}, {"x": parts["scale"]}):
        with pytest.raises(InputError, match="tuned for another plan or supernet"):
            write_tuned(files, subnet, tensors)


def test_a_supernet_that_may_only_be_read_has_them_in_the_cache(files: SupernetFiles, own_cache: Path) -> None:
    subnet = mixed(files)
    path, digest = _kept(files, subnet)
    spare = own_cache / "supernets" / files.fingerprint / "tuned"
    spare.mkdir(parents=True)
    path.rename(spare / path.name)
    opened = with_tuned(files, digest, subnet)
    assert opened.tuned is not None and opened.tuned.path == spare / path.name


def test_what_cannot_be_trained_is_refused(files: SupernetFiles) -> None:
    check_tunable(files)
    adapter = {**files.info["adapter"], "name": "lora", "deploys": "side"}
    with pytest.raises(InputError, match="tuning trains the scales that adapters fold into, those of .* are lora"):
        check_tunable(replace(files, info={**files.info, "adapter": adapter}))
    reads = next(unit.name for unit in files.spec.units if unit.role == "down")
    maker = reads.replace("down_proj", "up_proj")
    with pytest.raises(InputError, match="was trained to leave channels out"):
        check_tunable(replace(files, space=replace(files.space, coupled=((maker, reads),))))


def test_what_does_not_fit_into_memory_is_refused(files: SupernetFiles) -> None:
    recipe = Recipe.from_json(files.info["recipe"])
    check_tuning_needs(files.spec, recipe)
    with pytest.raises(InputError, match=r"takes at least 4000000\.4 GB of memory, .* plan without --tune"):
        check_tuning_needs(replace(files.spec, float_parameters=10**15), recipe)


def _kept(files: SupernetFiles, subnet: Subnet) -> tuple[Path, str]:
    """A file of scales that are half of what they were, and its SHA-256."""
    unit = next(unit for unit in files.spec.units if not unit.is_table).name
    scale = files.stored(unit, subnet[unit]).parts["scale"] / 2
    opened = write_tuned(files, subnet, {f"{unit}|{subnet[unit]}|scale": scale})
    assert opened.tuned is not None
    assert torch.equal(opened.stored(unit, subnet[unit]).parts["scale"], scale)
    return opened.tuned.path, opened.tuned.sha256
