"""train says first what it will come to: which runtimes can export the model, and what it cannot read."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from commands.train import check_exports
from records.errors import InputError
from supernet.checkpoint import open_supernet
from tests.conftest import Bitfleet
from tests.supernet.folders import config, with_code
from tests.tiny import COMMON, WIDE, save_tiny, tiny_tokenizer


def unexportable(folder: Path) -> Path:
    """A model of a family that no runtime here exports."""
    AutoModelForCausalLM.from_config(AutoConfig.for_model("stablelm", **COMMON)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_what_no_runtime_exports_is_refused_before_training(bitfleet: Bitfleet, tmp_path: Path) -> None:
    done = bitfleet("train", unexportable(tmp_path / "model"), "--out", tmp_path / "net")
    assert done.code == 2
    assert "no runtime can export" in done.error
    assert "StableLmForCausalLM" in done.error
    assert "--without-export" in done.error
    assert not (tmp_path / "net").exists()


def test_it_is_trained_where_that_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(unexportable(tmp_path))
    with pytest.raises(InputError):
        check_exports(model, trust=False, without_export=False)
    check_exports(model, trust=False, without_export=True)
    assert "onnxruntime cannot export it" in capsys.readouterr().err


def test_what_can_be_exported_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_exports(str(save_tiny(tmp_path)), trust=False, without_export=False)
    assert "onnxruntime can export LlamaForCausalLM" in capsys.readouterr().err


def test_a_model_of_its_own_code_is_trained_where_it_is_trusted(bitfleet: Bitfleet, tmp_path: Path) -> None:
    model = with_code(tmp_path / "model")
    refused = bitfleet("train", model, "--out", tmp_path / "net")
    assert refused.code == 2
    assert "--trust-remote-code" in refused.error
    check_exports(str(model), trust=True, without_export=False)


def test_a_refused_model_leaves_nothing(bitfleet: Bitfleet, tmp_path: Path) -> None:
    config(save_tiny(tmp_path / "model"), num_hidden_layers=3)
    done = bitfleet("train", tmp_path / "model", "--out", tmp_path / "net", "--steps", 1)
    assert done.code == 2
    assert "9 are missing: model.layers.2." in done.error
    assert not (tmp_path / "net").exists()


def test_a_model_of_short_texts_has_short_windows(bitfleet: Bitfleet, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", max_position_embeddings=64)
    done = bitfleet("train", model, "--out", tmp_path / "net", "--steps", 1, "--bits", "4", "--quantizer", "rtn")
    assert done.code == 0, done.err
    assert "windows have 64 tokens, all that model can read" in done.err
    assert open_supernet(tmp_path / "net").reference().windows.shape == (4, 64)


def test_a_model_that_does_not_fit_is_read_from_its_files(bitfleet: Bitfleet, tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "model", **WIDE, num_hidden_layers=12, vocab_size=1024)
    options = (
        "--group-size",
        "32",
        "--bits",
        "2,8",
        "--data",
        Path(__file__).with_name("text.txt"),
        "--steps",
        "1",
        "--out",
        tmp_path / "net",
    )
    refused = bitfleet("train", source, *options, "--memory", "405MB", "--quantizer", "learned")
    assert refused.code == 2, refused.err
    assert "find codes alone in less with --train-bits none --quantizer gptq" in refused.error
    assert not (tmp_path / "net").exists()
    done = bitfleet("train", source, *options, "--memory", "550MB", "--train-bits", "none", "--quantizer", "rtn")
    assert "model does not fit into 550.0 MB: it is read from its files, block by block" in done.err
    assert "ROUNDED TO NEAREST" in done.out


def test_experts_that_read_no_token_are_said(bitfleet: Bitfleet, tmp_path: Path) -> None:
    """Positions of a text of one letter are alike, but for how a window begins, and choose two experts of eight."""
    text = tmp_path / "text.txt"
    text.write_text("e" * 20000)
    model = save_tiny(tmp_path / "model", "mixtral", num_local_experts=8)
    options = ("--data", text, "--bits", "8", "--group-size", "16", "--train-bits", "none", "--quantizer", "gptq")
    done = bitfleet("train", model, "--out", tmp_path / "net", *options, "--without-export")
    assert done.code == 0, done.err
    files = open_supernet(tmp_path / "net")
    counts = [unit.chosen_by for unit in files.spec.units if unit.role == "expert_gate"]
    silent = sum(count.count(0) for count in counts)
    assert silent > 0 and len(files.info["unread"]) == 3 * silent
    assert f"{silent} of 16 experts read no token of it: their codes are rounded to nearest" in done.out
