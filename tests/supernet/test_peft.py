"""A LoRA subnet as a PEFT model: the same logits, also after a round trip through PEFT's own files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from supernet.adapters import LoRA, TrainedScales
from supernet.build import extract
from supernet.peft import to_peft
from tests.supernet.conftest import make
from tests.supernet.test_build import disturb, mixed
from tests.tiny import FAMILIES, windows


@pytest.mark.parametrize("family", FAMILIES)
def test_the_peft_model_computes_what_the_subnet_does(family: str, tmp_path: Path) -> None:
    from peft import PeftModel

    made = make(family)
    made.supernet.adapt(LoRA, (2, 3, 4), seed=0)
    disturb(made)
    subnet, ids = mixed(made, 1), windows(2, 12)
    expected = extract(made.supernet, subnet)(ids).logits
    wrapped = to_peft(made.supernet, subnet)
    assert torch.allclose(wrapped(input_ids=ids).logits, expected, rtol=1e-3, atol=2e-4)
    wrapped.save_pretrained(tmp_path)
    base = to_peft(made.supernet, subnet).unload()
    again = PeftModel.from_pretrained(base, tmp_path).eval()
    assert torch.allclose(again(input_ids=ids).logits, expected, rtol=1e-3, atol=2e-4)


def test_a_subnet_without_lora_is_refused() -> None:
    made = make()
    made.supernet.adapt(TrainedScales, (2, 3, 4), seed=0)
    with pytest.raises(ValueError, match="only a subnet with LoRA becomes a PEFT model"):
        to_peft(made.supernet, made.space.uniform(made.spec, 2))
