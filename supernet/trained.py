"""The adapters of a supernet: as they are given to it, and as the training in its folder left them."""

from __future__ import annotations

from supernet.adapters import ADAPTERS
from supernet.agreement import measure_agreement, read_agreement, write_agreement
from supernet.build import Supernet
from supernet.checkpoint import AGREEMENT_FILE, TRAINING, WINDOWS
from supernet.model import checkpoint_blocks, compute_dtype, in_compute_dtype
from supernet.recorded import restore
from supernet.sharing import SHARINGS, Shared
from supernet.train import adapter_parameters
from supernet.work import Work

AGREEMENT = 8  # batches that tell which choices may share an adapter


def adapt(work: Work, supernet: Supernet) -> None:
    """Give the supernet its adapters. What was measured for it is kept: a resumed run must share the same way."""
    if SHARINGS[work.recipe.sharing]().measures:
        known = (work.out / AGREEMENT_FILE).exists()
        work.accelerator.wait_for_everyone()
        if not known:  # by every process, since each may hold a part of the codes
            _measure(work, supernet)
        work.accelerator.wait_for_everyone()
    _give(work, supernet)


def _measure(work: Work, supernet: Supernet) -> None:
    """Write which choices may share an adapter."""
    files, model, recipe, accelerator = work.files, work.model, work.recipe, work.accelerator
    options, bits = files.info["adapter"]["options"], recipe.adapted_bits
    supernet.adapt(ADAPTERS[recipe.adapter], bits, recipe.seed, Shared(), full=model, **options)
    model.to(accelerator.device)
    supernet.set_dtype(compute_dtype(model.device))
    windows = files.read(WINDOWS)["windows"][: AGREEMENT * recipe.batch]
    batches = windows.to(model.device).split(recipe.batch)
    found = measure_agreement(in_compute_dtype(model), supernet, bits, batches, work.report)
    if accelerator.is_main_process:
        write_agreement(files.path / AGREEMENT_FILE, found)


def _give(work: Work, supernet: Supernet) -> None:
    recipe = work.recipe
    sharing = SHARINGS[recipe.sharing]()
    agreement = read_agreement(work.out / AGREEMENT_FILE) if sharing.measures else {}
    options = work.files.info["adapter"]["options"]
    adapter, bits = ADAPTERS[recipe.adapter], recipe.adapted_bits
    supernet.adapt(adapter, bits, recipe.seed, sharing, agreement, work.model, **options)


def trained(work: Work) -> Supernet:
    """The supernet with its adapters as the training left them, where the model is."""
    supernet, recipe = work.load(), work.recipe
    supernet.model.to(work.model.device)
    _give(work, supernet)
    if recipe.checkpointing:
        checkpoint_blocks(supernet.model)
    restore(work.out / TRAINING, adapter_parameters(supernet))
    return supernet
