"""llama.cpp says of a written file what the subnet says, for every architecture that is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from planner.runtimes.llamacpp import fresh, metadata
from planner.runtimes.llamacpp.export import write_model
from records.errors import InputError
from tests.planner.llamacpp.models import WRITTEN, GridModel, made, mixed

pytest.importorskip("xllamacpp", reason="runs the pinned build of llama.cpp; pip install 'bitfleet[llamacpp]'")

CONTEXT, TOKENS = 256, 160
MOST = 0.004  # nats a token: llama.cpp rounds activations to 8 bits
MIXES = (("int2g32", "int3g64", "int4g32", "int7g32"), ("sym3g64", "sym4g32", "sym5g32", "sym8g32"))
IDS = torch.randint(3, 259, (1, TOKENS), generator=torch.Generator().manual_seed(1))


def package(files: GridModel, choices: tuple[str, ...], folder: Path) -> Path:
    folder.mkdir()
    write_model(files, mixed(files.spec, *choices), CONTEXT, 1, folder)
    return folder


def kl(files: GridModel, choices: tuple[str, ...], folder: Path) -> float:
    """Mean KL in nats from the subnet to the package."""
    with torch.no_grad():
        wanted = files.subnet_model(mixed(files.spec, *choices))(IDS).logits.double().log_softmax(-1)
    found = torch.from_numpy(np.asarray(fresh.logits(folder, IDS.numpy()))).double().log_softmax(-1)
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


@pytest.mark.parametrize("variant", WRITTEN)
def test_the_package_answers_as_the_subnet_does(variant: str, tmp_path: Path) -> None:
    files = made(variant, tmp_path / "model")
    choices = MIXES[len(variant) % 2]
    assert kl(files, choices, package(files, choices, tmp_path / "package")) < MOST


def test_two_bits_in_groups_of_64_answer_as_the_subnet_does(tmp_path: Path) -> None:
    files = made("llama", tmp_path / "model")
    choices = ("sym2g64", "sym8g32")
    assert kl(files, choices, package(files, choices, tmp_path / "package")) < MOST


@pytest.mark.parametrize(
    ("variant", "lost"),
    [
        ("gemma2", "attn_logit_softcapping"),
        ("gemma2", "final_logit_softcapping"),
        ("gemma3", "attention.sliding_window"),
        ("gemma3", "rope.freq_base"),
        ("granite", "embedding_scale"),
        ("granite", "attention.scale"),
        ("granite", "residual_scale"),
        ("llama, yarn", "rope.scaling.type"),
        ("llama without groups, linear", "rope.scaling.factor"),
        ("phi3, longrope", "rope.scaling.attn_factor"),
    ],
)
def test_a_setting_that_is_lost_is_heard(
    variant: str, lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else the test above would not know that it is there."""
    changed = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 2.0} if "softcapping" in lost else {}
    files = made(variant, tmp_path / "model", **changed)
    whole = package(files, ("sym8g32",), tmp_path / "whole")
    right = kl(files, ("sym8g32",), whole)
    told: Any = metadata.entries
    monkeypatch.setattr(metadata, "entries", lambda *a: [e for e in told(*a) if not e.key.endswith(f".{lost}")])
    (files.model_dir / "changed").touch()  # or the bytes of before would be promised
    assert kl(files, ("sym8g32",), package(files, ("sym8g32",), tmp_path / "lost")) > 5 * right


def test_a_file_without_what_llama_cpp_must_know_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = made("granite", tmp_path / "model")
    told: Any = metadata.entries
    monkeypatch.setattr(metadata, "entries", lambda *a: [e for e in told(*a) if not e.key.endswith(".logit_scale")])
    with pytest.raises(InputError, match=r"key not found in model: granite\.logit_scale"):
        kl(files, ("sym8g32",), package(files, ("sym8g32",), tmp_path / "lost"))
