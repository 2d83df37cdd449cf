"""The fourth stage: adapters on trial (`supernet.trial`), and the finished weights with what is left of them.

Its index names these in place of what training starts from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from supernet.build import Supernet
from supernet.checkpoint import (
    ADAPTERS_FILE,
    CODES,
    FLOATS,
    REFERENCE,
    START,
    TRAINING,
    WINDOWS,
    SupernetFiles,
    hashes_of,
    link,
    model_files,
    save_index,
)
from supernet.clock import fewer
from supernet.files import write_tensors
from supernet.gate import Gate
from supernet.model import compute_dtype
from supernet.recorded import Recorded, recorded
from supernet.shelf import code_tensors
from supernet.stages.amounts import LEAST_TRIAL, TRIAL
from supernet.stages.base import Stage, told
from supernet.text import manual_windows
from supernet.train import adapter_parameters
from supernet.trained import trained
from supernet.trial import Verdict, try_adapters
from supernet.work import Work


class Trial(Stage):
    name = "trial"
    clocked: ClassVar = ("try adapters",)

    def done(self, out: Path) -> bool:
        return "trial" in told(out)

    def run(self, work: Work) -> None:
        files, known = work.files, recorded(work.out / TRAINING)
        gate = Gate.from_json(files.info["gate"])
        supernet: Supernet | None = None
        verdicts: dict[str, Verdict] = {}
        with work.clock.stage("try adapters") as share:
            if known is not None:
                supernet = work.supernet or trained(work)
                supernet.model.to(work.model.device)
                verdicts = _tried(work, supernet, gate, share)
        adapted = [str(bits) for bits in supernet.adapted_bits] if supernet else []
        said = _said(files, adapted, known, verdicts) | {"gate": gate.to_json()}
        written = _write(work.out, supernet)  # which folds them
        hashes = hashes_of(work.out, (*written, *files.changes, *model_files(work.out), WINDOWS))
        save_index(work.out, files.spec, files.space, {**files.info, **said}, hashes)
        work.supernet = supernet


def _tried(work: Work, supernet: Supernet, gate: Gate, share: float) -> dict[str, Verdict]:
    recipe, model = work.recipe, work.model
    count = fewer(TRIAL, share, LEAST_TRIAL)
    manual = manual_windows(work.loaded.tokenizer, count, recipe.window_tokens, "trial")
    dtype, own = compute_dtype(model.device), work.files.reference()
    return try_adapters(model, supernet, manual, own, recipe.seed, dtype, work.report, gate)


def _write(out: Path, supernet: Supernet | None) -> tuple[str, ...]:
    """Write codes with the adapters folded in, and the adapters that do not fold; the names of the weight files.

    What training starts from stays: until the index names others, a run goes on as if this had not happened.
    """
    if supernet is None or not adapter_parameters(supernet):
        link(out / START, out / CODES)
        return CODES, FLOATS, REFERENCE
    supernet.fold()
    write_tensors(out / CODES, code_tensors(supernet.weights()))
    left = adapter_parameters(supernet)
    if left:
        write_tensors(out / ADAPTERS_FILE, left)
    return (CODES, FLOATS, REFERENCE, *([ADAPTERS_FILE] if left else []))


def _said(
    files: SupernetFiles, adapted: list[str], known: Recorded | None, verdicts: Mapping[str, Verdict]
) -> dict[str, Any]:
    """What `supernet.json` says of the training; `adapted` are the bit-widths that kept an adapter."""
    return {
        "steps": known.steps if known else 0,
        "learning_rate": known.options["learning_rate"] if known else None,
        "losses": known.losses if known else [],
        "adapted_bits": adapted,
        "adapter": files.info["adapter"] | ({} if adapted else {"deploys": "codes"}),  # nothing is left to deploy
        "trial": {bits: verdict.to_json() for bits, verdict in verdicts.items()},
    }
