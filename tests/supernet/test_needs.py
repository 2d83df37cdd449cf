"""What a training is expected to take, beside what it takes; and what cannot fit is refused before the work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from commands.needs import check_needs
from records.errors import InputError, SystemFailure
from supernet import needs, sensitivity
from supernet.checkpoint import open_supernet
from supernet.create import create
from supernet.loading import describe
from supernet.needs import Needs, needs_of
from supernet.recipe import Recipe
from supernet.spec import ModelSpec
from tests.conftest import Bitfleet
from tests.test_cli_train import unexportable
from tests.tiny import tiny_tokenizer

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
SCRIPT = """
import ctypes, gc, json, sys
from pathlib import Path
from supernet import evidence, needs as expected
from supernet.create import create
from supernet.loading import describe
from supernet.needs import needs_of, streamed_needs
from supernet.recipe import Recipe
from supernet.stages import codes, prepare, trial
from tests.tiny import TEXT, tiny_model, tiny_tokenizer

# One window after another is read: how many there are takes time, and memory in `WINDOWS` alone.
expected.WINDOWS = codes.CALIBRATION = 16
codes.OF_HEAD, prepare.MEASURED, trial.TRIAL, evidence.EACH, evidence.NEW = 4, 1, 3, 1, 4
work = Path(sys.argv[1])
(work / "text.txt").write_text(TEXT * 8)
found = {}
for name, (streamed, shape, options) in json.loads(sys.argv[2]).items():
    source = str(work / name)
    tiny_model("llama", **shape).save_pretrained(source)
    tiny_tokenizer().save_pretrained(source)
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    recipe = Recipe(**{"quantizer": "rtn", "bits": (2, 3, 8), **options}, group_size=32, steps=2, window_tokens=64,
                    data=str(work / "text.txt"))
    needs = (streamed_needs if streamed else needs_of)(describe(source)[1], recipe)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    disk = 0
    def report(what, done, total):
        global disk
        disk = max(disk, sum(p.stat().st_size for p in (work / f"{name}-net").rglob("*") if p.is_file()))
    create(source, work / f"{name}-net", recipe, progress=report, streamed=streamed)
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM"))
    found[name] = [needs.memory_bytes, needs.least_bytes, int(line.split()[1]) * 1024, needs.disk_bytes, disk]
print(json.dumps(found))
"""


# Whether the model stays in its files, what it is made of, and the recipe. What a streamed one takes is told the
# closest, so it comes first: nothing is left of another.
SHAPES: dict[str, tuple[bool, dict[str, Any], dict[str, Any]]] = {
    "wide": (
        True,
        {"hidden_size": 512, "intermediate_size": 3072, "num_hidden_layers": 2},
        {"quantizer": "gptq", "bits": (2, 8), "train_bits": ()},
    ),
    "adapters": (False, {}, {"adapter": "lora", "rank": 4096}),
    "hessians of outputs": (
        False,
        {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 1},
        {"quantizer": "yaqa", "bits": (2, 8), "train_bits": ()},
    ),
    "vocabulary": (
        False,
        {"vocab_size": 80_000, "hidden_size": 256, "intermediate_size": 512},
        {"quantizer": "gptq", "bits": (2, 8)},
    ),
}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
def test_expected_peaks_hold_and_are_near(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), json.dumps(SHAPES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == SHAPES.keys()
    for name, (memory, least, peak, disk, used) in found.items():
        assert least <= peak or SHAPES[name][0], (name, least, peak)
        assert 0.9 * peak <= memory <= 1.5 * peak, (name, memory, peak)
        assert used <= disk <= 4 * used, (name, used, disk)


def test_what_cannot_fit_is_refused_before_the_work(bitfleet: Bitfleet, source: str, data: str, tmp_path: Path) -> None:
    options = ("--group-size", "16", "--bits", "2,8", "--data", data, "--steps", "1", "--out", tmp_path / "net")
    done = bitfleet("train", source, *options, "--adapter", "lora", "--rank", "100000000")
    assert done.code == 2, done.err
    assert "GB of memory" in done.error
    assert "use a smaller --rank" in done.error
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize(
    ("options", "making", "instead"),
    [
        (
            {"bits": (4, 8), "train_bits": ()},
            "finding the codes of",
            "use fewer --bits or a smaller model",
        ),
        ({"bits": (8,)}, "finding the codes of", "use a smaller model"),
        ({"bits": (4,)}, "training", "use a smaller model"),
        (
            {"bits": (2, 4), "adapter": "lora", "rank": 4},
            "training",
            "use a smaller --rank or a smaller",
        ),
    ],
)
def test_a_refusal_says_what_would_be_made_and_what_takes_less(
    options: dict[str, Any], making: str, instead: str, source: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"^{making} .* so takes .*; {instead}"):
        check_needs(describe(source)[1], Recipe(**options, group_size=16), tmp_path / "net", memory=1000)


def test_what_going_on_needs_is_that_of_the_recipe_it_was_begun_with(
    bitfleet: Bitfleet, source: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("train"):
            raise KeyboardInterrupt

    begun = Recipe(bits=(2, 8), group_size=16, quantizer="rtn", steps=2, batch=2, window_tokens=16, data=data)
    with pytest.raises(KeyboardInterrupt):
        create(source, tmp_path / "net", begun, progress=stop)
    asked: list[Recipe] = []

    def needs(spec: ModelSpec, recipe: Recipe) -> Needs:
        asked.append(recipe)
        return needs_of(spec, recipe)

    monkeypatch.setattr("commands.needs.needs_of", needs)
    bitfleet("train", source, "--out", tmp_path / "net", "--resume")
    assert open_supernet(tmp_path / "net").finished
    assert [(recipe.bits, recipe.group_size) for recipe in asked] == [((2, 8), 16)]


def test_a_full_disk_is_the_system_s(
    bitfleet: Bitfleet, source: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from types import SimpleNamespace

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    options = ("--group-size", "16", "--bits", "2,8", "--data", data, "--steps", "1", "--out", tmp_path / "net")
    done = bitfleet("train", source, *options)
    assert done.code == 5, done.err
    assert "are free there" in done.error


def test_going_on_needs_the_room_of_what_is_still_to_be_written(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from types import SimpleNamespace

    spec, recipe = describe(source)[1], Recipe(bits=(2, 8), group_size=16)
    there = tmp_path / "net" / "codes.safetensors"
    there.parent.mkdir()
    there.write_bytes(bytes(10**6))
    free = needs_of(spec, recipe).disk_bytes - 10**6
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(SystemFailure, match="are free there"):
        check_needs(spec, recipe, there.parent)
    (there.parent / "supernet.json").touch()
    check_needs(spec, recipe, there.parent)
    there.write_bytes(bytes(10**6 - 1))
    with pytest.raises(SystemFailure, match="more in"):
        check_needs(spec, recipe, there.parent)


def test_what_was_begun_without_a_runtime_goes_on_without_asking_again(
    bitfleet: Bitfleet, data: str, tmp_path: Path
) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("train"):
            raise KeyboardInterrupt

    model, out = str(unexportable(tmp_path / "model")), tmp_path / "net"
    begun = Recipe(bits=(2, 8), group_size=16, quantizer="rtn", steps=2, batch=2, window_tokens=16, data=data)
    with pytest.raises(KeyboardInterrupt):
        create(model, out, begun, progress=stop)
    done = bitfleet("train", model, "--out", out, "--resume")
    assert done.code in (0, 1), done.err  # 1 where two steps won nothing
    assert open_supernet(out).finished


def test_checkpointing_that_a_model_has_not_is_refused_before_the_work(
    bitfleet: Bitfleet, data: str, tmp_path: Path
) -> None:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_multiple_size": 2}
    ids = {"vocab_size": 512, "bos_token_id": 1, "eos_token_id": 2}
    described = AutoConfig.for_model("gpt_neox_japanese", hidden_size=64, **sizes, **ids)
    AutoModelForCausalLM.from_config(described).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    options = ("--without-export", "--group-size", "16", "--data", data, "--steps", "1", "--gradient-checkpointing")
    done = bitfleet("train", tmp_path / "model", *options, "--out", tmp_path / "net")
    assert done.code == 2, done.err
    assert "GPTNeoXJapaneseForCausalLM has no gradient checkpointing" in done.error
    assert not (tmp_path / "net").exists()


def test_searching_goes_back_through_as_many_windows_as_expected() -> None:
    assert needs.SIDE_BY_SIDE == sensitivity.TOGETHER
