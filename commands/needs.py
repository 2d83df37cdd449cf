"""What a training takes, said and held against what there is before any work."""

from __future__ import annotations

import shutil
from pathlib import Path

from commands.terminal import note
from planner.amounts import size
from records.errors import InputError, SystemFailure
from supernet.checkpoint import SUPERNET
from supernet.needs import Needs, needs_of, tuning_needs
from supernet.recipe import Recipe
from supernet.spec import ModelSpec


def check_needs(spec: ModelSpec, recipe: Recipe, out: Path) -> None:
    """Say how much memory and disk are expected. InputError where the memory cannot do, since the options can mend it;
    SystemFailure where the disk cannot, with what a training that was begun has written there already. On a GPU the
    memory is said and not refused: the estimate is of a CPU.
    """
    needs = needs_of(spec, recipe)
    place = next(folder for folder in out.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(place).free
    begun = (out / SUPERNET).is_file()
    there = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) if begun else 0
    note(f"expecting up to {size(needs.memory_bytes)} of memory, and {size(needs.disk_bytes)} on disk")
    options = "a smaller --rank" if recipe.rank else "fewer --bits"
    _check_memory(f"training {spec.name} so", needs, f"use {options} or a smaller model")
    if needs.disk_bytes > free + there:
        more = f"{size(needs.disk_bytes - there)} more" if begun else size(needs.disk_bytes)
        raise SystemFailure(
            f"training {spec.name} takes about {more} in {out}, {size(free)} are free there; "
            "free some space or give another --out"
        )


def check_tuning_needs(spec: ModelSpec, recipe: Recipe) -> None:
    """The same of the memory of `plan --tune`, which writes little."""
    needs = tuning_needs(spec, recipe)
    note(f"expecting up to {size(needs.memory_bytes)} of memory for tuning")
    _check_memory(f"tuning {spec.name}", needs, "plan without --tune")


def _check_memory(what: str, needs: Needs, options: str) -> None:
    import torch

    from profiles.cpu import profile_cpu

    usable = profile_cpu(measure_bandwidth=False).usable_bytes
    if needs.least_bytes > usable and not torch.cuda.is_available():
        raise InputError(
            f"{what} takes at least {size(needs.least_bytes)} of memory, {size(usable)} are there; {options}, or close "
            "programs"
        )
