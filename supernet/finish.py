"""The last stage of making a supernet: adapters on trial, sensitivities, and the index that says it is finished."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from torch import Tensor

from supernet.activations import activation_losses
from supernet.build import Supernet
from supernet.checkpoint import (
    WINDOWS,
    SupernetFiles,
    fingerprint_of,
    hashes_of,
    model_files,
    save_index,
    write_trained,
)
from supernet.clock import Clock, fewer
from supernet.evidence import PROOF, SECONDS, write_evidence
from supernet.exact import in_float32
from supernet.files import write_tensors
from supernet.folder import remove_unfinished
from supernet.gate import Gate, lost_widths
from supernet.model import compute_dtype
from supernet.prepare import SENSITIVITY, TRIAL
from supernet.progress import Progress
from supernet.recipe import Recipe
from supernet.rotary import ROTARY, rotaries_of, tensors_of
from supernet.sensitivity import measure_sensitivities
from supernet.sensitivity_table import SENSITIVITY_FILE, SensitivityTable
from supernet.text import manual_windows
from supernet.train import Trainer
from supernet.trial import try_adapters

LEAST_TRIAL = 3  # windows that adapters are tried on, where minutes are few


def finish(
    files: SupernetFiles, model: Any, tokenizer: Any, supernet: Supernet, recipe: Recipe, trainer: Trainer | None,
    progress: Progress, clock: Clock,
) -> SupernetFiles:  # fmt: skip
    """Adapters on trial, sensitivities, and the index that says the supernet is finished."""
    reference = files.reference()
    gate = Gate.from_json(files.info.get("gate", {}))
    trial = {}
    with clock.stage("try adapters") as share:
        if trainer is not None:
            manual = manual_windows(tokenizer, fewer(TRIAL, share, LEAST_TRIAL), recipe.window_tokens, "trial")
            dtype = compute_dtype(model.device)
            trial = try_adapters(model, supernet, manual, reference, recipe.seed, dtype, progress, gate)
    info = {**files.info, **_trained(files, supernet, trainer, trial)}
    with clock.stage("proof"):
        seconds = min(SECONDS, clock.seconds_for("proof") or SECONDS)
        if not (files.path / PROOF).exists():  # a finish that was stopped left it whole
            with in_float32(model):
                write_evidence(files.path / PROOF, model, tokenizer, reference.windows, files.spec, seconds, progress)
    write_tensors(files.path / ROTARY, tensors_of(rotaries_of(model.config, files.trusted)))
    written = (*write_trained(files.path, supernet), *files.changes, *model_files(files.path), PROOF, ROTARY)
    hashes = hashes_of(files.path, written)
    with clock.stage("sensitivities") as share:
        windows = files.read(WINDOWS)["windows"][: fewer(SENSITIVITY, share, 1)]
        table, measured = measure_sensitivities(model, supernet, windows, reference, recipe.seed, progress)
        largest = files.space.uniform(files.spec, max(files.space.bits(files.spec)))
        info["activations"] = activation_losses(supernet, largest, reference, progress)
    now = {bits: measured[files.space.uniform(files.spec, bits)].kl for bits in files.space.bits(files.spec)}
    info |= {"gate": gate.to_json(), **_ended(files, now)}
    _write_sensitivities(files, table, windows, fingerprint_of(hashes))
    done = save_index(files.path, files.spec, files.space, info | {"finished": True}, hashes)
    remove_unfinished(done)
    return done


def _ended(files: SupernetFiles, now: Mapping[int, float]) -> dict[str, Any]:
    """KL per token of every bit-width on the held-out windows, beside plain rounding's and that of the codes that
    training started from, and the bit-widths that lost against either."""
    known = files.info.get("held_out", {"rounding": {}, "start": {}})
    then = {name: {int(bits): kl for bits, kl in losses.items()} for name, losses in known.items()}
    lost = lost_widths(now, then["rounding"], then["start"])
    end = {str(bits): kl for bits, kl in now.items()}
    return {"held_out": {**known, "end": end}, "lost": {str(bits): list(found) for bits, found in lost.items()}}


def _trained(
    files: SupernetFiles, supernet: Supernet, trainer: Trainer | None, trial: Mapping[str, Any]
) -> dict[str, Any]:
    """What `supernet.json` says of the training."""
    adapted = [str(bits) for bits in supernet.adapted_bits]
    return {
        "steps": trainer.options.steps if trainer else 0,
        "learning_rate": trainer.options.learning_rate if trainer else None,
        "losses": trainer.losses if trainer else [],
        "adapted_bits": adapted,
        "adapter": files.info["adapter"] | ({} if adapted else {"deploys": "codes"}),  # nothing is left to deploy
        "trial": {bits: verdict.to_json() for bits, verdict in trial.items()},
    }


def _write_sensitivities(
    files: SupernetFiles, table: Mapping[str, Mapping[Any, float]], windows: Tensor, fingerprint: str
) -> None:
    SensitivityTable(
        base="the full model; scaled so that uniform subnets add up to what they were measured to lose",
        units={unit: {str(choice): kl for choice, kl in choices.items()} for unit, choices in table.items()},
        text={"source": files.info["text"], "windows": len(windows), "tokens": windows.numel()},
        supernet=fingerprint,
        versions=files.info["versions"],
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    ).save(files.path / SENSITIVITY_FILE)
