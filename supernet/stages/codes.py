"""The second stage: codes of every matrix at every choice, and the index that makes the folder one that training starts
from."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from records.atomic import write_json
from supernet.absent import streams
from supernet.adapters import ADAPTERS
from supernet.auto import decided
from supernet.build import Supernet
from supernet.checkpoint import (
    FLOATS,
    LOAD,
    MODEL,
    REFERENCE,
    START,
    STATE,
    SUPERNET,
    WINDOWS,
    hashes_of,
    link,
    model_files,
    save_index,
)
from supernet.clock import fewer
from supernet.files import read_tensors, write_tensors
from supernet.folder import PREPARING, remove_begun_start
from supernet.gate import Gate
from supernet.loading import Loaded
from supernet.prepared import Prepared
from supernet.recipe import Recipe
from supernet.reference import HELD_OUT, read_references
from supernet.refiners import REFINERS
from supernet.shelf import InMemory, OnDisk, code_tensors
from supernet.spec import ModelSpec
from supernet.stages.amounts import CALIBRATION, LEARNING, LEAST_CALIBRATION, OF_HEAD
from supernet.stages.base import Stage
from supernet.start import Start
from supernet.text import manual_windows
from supernet.work import Work


class Codes(Stage):
    name = "codes"
    clocked: ClassVar = ("quantize",)

    def done(self, out: Path) -> bool:
        return (out / SUPERNET).exists()

    def run(self, work: Work) -> None:
        """Blocks are quantized on the device. The codes of a model that stays in its files wait in the folder, and a
        run that was stopped goes on from there; those of another are made again."""
        model, prepared, folder = work.model, Prepared.read(work.out), work.out / PREPARING
        held_out = read_references(folder / REFERENCE)[HELD_OUT]
        windows = read_tensors(folder / WINDOWS)[0]["windows"][len(held_out.windows) :]
        spec = work.spec
        shelf = OnDisk(folder) if streams(model) else InMemory()
        start = Start(model, spec, work.recipe.space(spec), Gate.from_json(prepared.gate), work.report, shelf)
        start.look(held_out, {int(bits): loss for bits, loss in prepared.rounding.items()})
        supernet, recipe, quantized = _quantized(work, start, windows)
        info = _begun(work.source, recipe, len(spec.units), prepared.text, quantized) | start.to_json()
        _save(work.out, supernet, spec.counted(start.chosen_by), windows, prepared, work.loaded, info)
        remove_begun_start(work.out)


def _quantized(work: Work, start: Start, windows: Tensor) -> tuple[Supernet, Recipe, dict[str, Any]]:
    """The supernet, the recipe with all decided, and what is worth recording of how the codes were found."""
    there, clock = windows.to(work.accelerator.device), work.clock
    with clock.stage("quantize") as share:
        recipe = decided(work.recipe, start.model, there, clock.learning_seconds())
        counts = start.shelf.note(
            "counts", lambda: [fewer(most, share, LEAST_CALIBRATION) for most in (CALIBRATION, OF_HEAD)]
        )
        others = manual_windows(work.loaded.tokenizer, counts[1], recipe.window_tokens, "train")
        supernet = start.quantized(there[: counts[0]], recipe, others.to(there.device))
    refined = start.refined(supernet, there[:LEARNING], recipe, clock) if recipe.quantizer in REFINERS else {}
    return supernet, recipe, {"name": recipe.quantizer, **refined}


def _begun(source: str, recipe: Recipe, units: int, text: str, quantized: Mapping[str, Any]) -> dict[str, Any]:
    """What `supernet.json` says of how this supernet is made."""
    return {
        "source": source,
        "recipe": recipe.to_json(),
        "quantizer": dict(quantized),
        "adapter": {
            "name": recipe.adapter,
            "options": recipe.adapter_options(units),
            "deploys": ADAPTERS[recipe.adapter].deploys,
        },
        "text": text,
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "accelerate")},
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _save(
    out: Path, supernet: Supernet, spec: ModelSpec, windows: Tensor, prepared: Prepared, loaded: Loaded,
    info: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write what training starts from, the index last."""
    for name in (REFERENCE, *prepared.changes):
        link(out / PREPARING / name, out / name)
    write_tensors(out / START, code_tensors(supernet.weights()))
    write_tensors(out / FLOATS, supernet.floats)
    write_tensors(out / WINDOWS, {"windows": windows})
    loaded.save_description(out / MODEL)
    write_json(out / LOAD, loaded.account.to_json())
    texts = {name: reference.to_json() for name, reference in read_references(out / REFERENCE).items()}
    begun = {**info, "load": loaded.account.line, "texts": texts, "finished": False}
    names = (START, FLOATS, REFERENCE, WINDOWS, *prepared.changes, *model_files(out))
    save_index(out, spec, supernet.space, begun, hashes_of(out, names))
    (out / STATE).unlink()
