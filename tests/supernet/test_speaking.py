"""What a model in this process says, against its plain logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from supernet.speaking import ModelSpeaker
from tests.tiny import tiny_model

LENGTHS = (9, 4, 4, 21, 2)


def windows() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 250, length) for length in LENGTHS]


@pytest.mark.parametrize("together", [1, 12, 2048])
def test_windows_of_any_length_are_read_as_each_alone(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supernet.speaking.TOGETHER", together)
    model, rng = tiny_model("gemma2", final_logit_softcapping=3.0), np.random.default_rng(1)
    positions = np.array([0, 8, 12, 13, 16, 17, 37, 39])  # in five windows, the first and the last of some
    ids = rng.integers(0, 272, (len(positions), 3))
    found, likeliest = ModelSpeaker(model, [257]).log_probs(windows(), positions, ids, 60.0)
    whole = torch.cat([model(torch.from_numpy(one)[None]).logits[0] for one in windows()]).log_softmax(-1).numpy()
    assert np.abs(found - np.take_along_axis(whole[positions], ids, 1)).max() < 1e-4
    assert likeliest.tolist() == whole[positions].argmax(-1).tolist()


def test_it_says_as_much_as_comes_in_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supernet.speaking.TOGETHER", 1)
    found, likeliest = ModelSpeaker(tiny_model(), [257]).log_probs(
        windows(), np.arange(40), np.zeros((40, 1), int), 0.0
    )
    assert len(found) == len(likeliest) == LENGTHS[0]


def test_it_goes_on_greedily_until_it_stops() -> None:
    model = tiny_model()
    answers = ModelSpeaker(model, [257]).continued(windows(), 6)
    for window, answer in zip(windows(), answers, strict=True):
        whole = torch.from_numpy(np.concatenate([window, answer]))[None]
        assert answer == model(whole).logits[0].argmax(-1)[len(window) - 1 : -1].tolist() and len(answer) == 6
    (first,) = ModelSpeaker(model, [answers[0][2]]).continued(windows()[:1], 6)
    assert first == answers[0][: answers[0].index(answers[0][2]) + 1]
