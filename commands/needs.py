"""What a training takes, said and held against what there is before any work."""

from __future__ import annotations

import shutil
from pathlib import Path

from commands.terminal import note
from planner.amounts import size
from records.errors import InputError, SystemFailure
from supernet.checkpoint import SUPERNET
from supernet.folder import begun_start
from supernet.needs import Needs, needs_of, searching_bytes, streamed_needs, tuning_needs
from supernet.recipe import Recipe
from supernet.spec import ModelSpec
from supernet.streaming import in_the_way


def check_needs(spec: ModelSpec, recipe: Recipe, out: Path, memory: int | None = None) -> bool:
    """Say how much memory and disk are expected; returns whether the model has to stay in its files for that, within
    `memory` bytes or what is there.

    InputError where the memory cannot do, since the options can mend it; SystemFailure where the disk cannot, with what
    a training that was begun has written there already. On a GPU the memory is said and not refused: the estimate is of
    a CPU.
    """
    needs, usable = needs_of(spec, recipe), memory or _usable()
    streamed = _streams(needs, recipe, usable, out, asked=memory is not None)
    if streamed:
        needs = streamed_needs(spec, recipe)
        note(f"{spec.name} does not fit into {size(usable)}: it is read from its files, block by block")
    place = next(folder for folder in out.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(place).free
    begun = (out / SUPERNET).is_file() or begun_start(out) is not None
    there = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) if begun else 0
    note(f"expecting up to {size(needs.memory_bytes)} of memory, and {size(needs.disk_bytes)} on disk")
    if memory is not None and needs.memory_bytes > memory:  # who names a memory is not to find more in use
        raise InputError(
            f"{_making(spec, recipe)} takes up to {size(needs.memory_bytes)}, got --memory {size(memory)}; "
            f"{_instead(recipe, streamed)}, or give it more"
        )
    _check_memory(_making(spec, recipe), needs, _instead(recipe, streamed), usable)
    if needs.disk_bytes > free + there:
        more = f"{size(needs.disk_bytes - there)} more" if begun else size(needs.disk_bytes)
        raise SystemFailure(
            f"{_making(spec, recipe)} takes about {more} in {out}, {size(free)} are free there; "
            "free some space or give another --out"
        )
    return streamed


def _streams(needs: Needs, recipe: Recipe, usable: int, out: Path, asked: bool) -> bool:
    """Whether to leave the model in its files: where what is there, or was `asked` to be enough, is too little, and the
    recipe allows it; and where it was begun so."""
    import torch

    begun = begun_start(out)
    if begun is not None:
        return bool(begun.get("streamed", True))
    if needs.memory_bytes <= usable or (torch.cuda.is_available() and not asked):
        return False
    return not in_the_way(recipe)


def _making(spec: ModelSpec, recipe: Recipe) -> str:
    return f"training {spec.name} so" if recipe.adapted_bits else f"finding the codes of {spec.name} so"


def _instead(recipe: Recipe, streamed: bool) -> str:
    """What takes less memory."""
    fewer = "a smaller --rank or " if recipe.rank else "fewer --bits or " if len(recipe.bits) > 1 else ""
    plain = f"use {fewer}a smaller model"
    if streamed:
        return plain
    return f"{plain}, find codes alone in less with {' '.join(in_the_way(recipe))}"


def check_tuning_needs(spec: ModelSpec, recipe: Recipe) -> None:
    """The same of the memory of `plan --tune`, which writes little."""
    needs = tuning_needs(spec, recipe)
    note(f"expecting up to {size(needs.memory_bytes)} of memory for tuning")
    _check_memory(f"tuning {spec.name}", needs, "plan without --tune", _usable())


def check_searching_needs(spec: ModelSpec, recipe: Recipe, workers: int) -> None:
    """The same of `plan --minutes --workers`: each has the supernet, and gradients of all its linears at a time."""
    each = searching_bytes(spec, recipe)
    usable = _usable()
    note(f"expecting up to {size(workers * each)} of memory for {workers} workers")
    if workers * each > usable:
        most = usable // each
        use = "leave --workers out" if most < 2 else f"use --workers {most}"
        raise InputError(
            f"{workers} workers take {size(workers * each)} of memory, {size(usable)} are there; {use}, or close "
            "programs"
        )


def _usable() -> int:
    from profiles.cpu import profile_cpu

    return profile_cpu(measure_bandwidth=False).usable_bytes


def _check_memory(what: str, needs: Needs, options: str, usable: int) -> None:
    import torch

    if needs.least_bytes > usable and not torch.cuda.is_available():
        raise InputError(
            f"{what} takes at least {size(needs.least_bytes)} of memory, {size(usable)} are there; {options}, or close "
            "programs"
        )
