"""The last stage: what packages are held to, what every choice costs, and the index that says it is finished."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from supernet.activations import activation_losses
from supernet.checkpoint import WINDOWS, SupernetFiles, fingerprint_of, hashes_of, save_index
from supernet.clock import fewer
from supernet.evidence import PROOF, SECONDS, write_evidence
from supernet.exact import in_float32
from supernet.files import write_tensors
from supernet.folder import remove_unfinished
from supernet.gate import lost_widths
from supernet.rotary import ROTARY, rotaries_of, tensors_of
from supernet.sensitivity import measure_sensitivities
from supernet.sensitivity_table import SENSITIVITY_FILE, SensitivityTable
from supernet.stages.amounts import SENSITIVITY
from supernet.stages.base import Stage, told
from supernet.work import Work


class Measure(Stage):
    name = "measure"
    clocked: ClassVar = ("proof", "sensitivities")

    def done(self, out: Path) -> bool:
        return bool(told(out).get("finished"))

    def run(self, work: Work) -> None:
        files, model = work.files, work.model
        with work.clock.stage("proof"):
            _write_proof(work)
        write_tensors(files.path / ROTARY, tensors_of(rotaries_of(model.config, files.trusted)))
        hashes = {name: digest for name, digest in files.hashes.items() if name != WINDOWS}
        hashes |= hashes_of(files.path, (PROOF, ROTARY))
        supernet = work.supernet or work.load()
        supernet.model.to(model.device)
        reference, space, bits = files.reference(), files.space, files.space.bits(files.spec)
        with work.clock.stage("sensitivities") as share:
            windows = files.read(WINDOWS)["windows"][: fewer(SENSITIVITY, share, 1)]
            seed = work.recipe.seed
            table, measured = measure_sensitivities(model, supernet, windows, reference, seed, work.report)
            largest = space.uniform(files.spec, max(bits))
            losses = activation_losses(supernet, largest, reference, work.report)
        now = {width: measured[space.uniform(files.spec, width)].kl for width in bits}
        info = {**files.info, "activations": losses, **_ended(files, now), "finished": True}
        _write_sensitivities(files, table, windows, fingerprint_of(hashes))
        remove_unfinished(save_index(files.path, files.spec, space, info, hashes))


def _write_proof(work: Work) -> None:
    """Once for all runs: one that was stopped left it whole."""
    path, files, model = work.out / PROOF, work.files, work.model
    if path.exists():
        return
    seconds = min(SECONDS, work.clock.seconds_for("proof") or SECONDS)
    with in_float32(model):
        held_out = files.reference().windows
        write_evidence(path, model, work.loaded.tokenizer, held_out, files.spec, seconds, work.report)


def _ended(files: SupernetFiles, now: Mapping[int, float]) -> dict[str, Any]:
    """KL per token of every bit-width on the held-out windows, beside plain rounding's and that of the codes that
    training started from, and the bit-widths that lost against either."""
    known = files.info.get("held_out", {"rounding": {}, "start": {}})
    then = {name: {int(bits): kl for bits, kl in losses.items()} for name, losses in known.items()}
    lost = lost_widths(now, then["rounding"], then["start"])
    end = {str(bits): kl for bits, kl in now.items()}
    return {"held_out": {**known, "end": end}, "lost": {str(bits): list(found) for bits, found in lost.items()}}


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
