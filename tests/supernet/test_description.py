"""What describes the model is kept as its source has it, under the supernet's hashes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from records.errors import InputError
from supernet.checkpoint import SupernetFiles, open_supernet
from supernet.create import create
from supernet.recipe import Recipe
from tests.conftest import Bitfleet
from tests.supernet.folders import edit, with_code
from tests.tiny import save_tiny

SETTINGS = {"eos_token_id": [257, 3], "temperature": 0.6, "top_p": 0.9, "do_sample": True}
QUICK = {"bits": (2, 4), "group_size": 16, "steps": 1, "window_tokens": 16, "batch": 2, "quantizer": "rtn", "awq": 0.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, data: str) -> SupernetFiles:
    folder = tmp_path_factory.mktemp("described")
    source = save_tiny(folder / "tiny")
    (source / "generation_config.json").write_text(json.dumps(SETTINGS), encoding="utf-8-sig")
    (source / "consolidated.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    return create(str(source), folder / "net", Recipe(data=data, **QUICK))


@pytest.fixture
def copy(made: SupernetFiles, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.path, tmp_path / "net"))


def test_the_account_is_kept_and_said(made: SupernetFiles) -> None:
    account = json.loads((made.path / "load.json").read_text())
    assert made.info["load"] == account["line"]
    assert account["line"] == "read 20 tensors of 1 file; consolidated.safetensors left aside: another set of weights"
    assert set(account["tensors"].values()) == {"read"}


def test_settings_of_generation_are_kept(made: SupernetFiles) -> None:
    assert json.loads((made.model_dir / "generation_config.json").read_text("utf-8")) == SETTINGS


def test_every_file_that_describes_the_model_is_hashed(made: SupernetFiles) -> None:
    files = {f"model/{file.name}" for file in made.model_dir.iterdir()}
    assert {"model/config.json", "model/tokenizer.json", "model/generation_config.json"} <= files
    assert files | {"load.json"} <= set(made.hashes)


def change(name: str) -> Callable[[Path], None]:
    return lambda net: (net / name).write_text((net / name).read_text() + " ")


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "config": (
        lambda net: edit(net / "model" / "config.json", rms_norm_eps=0.1),
        "config.json is damaged or was changed",
    ),
    "tokenizer": (change("model/tokenizer.json"), "tokenizer.json is damaged or was changed"),
    "generation": (change("model/generation_config.json"), "generation_config.json is damaged or was changed"),
    "account": (change("load.json"), "load.json is damaged or was changed"),
    "removed": (lambda net: (net / "model" / "tokenizer.json").unlink(), "lacks model/tokenizer.json"),
    "added": (lambda net: (net / "model" / "modeling_x.py").write_text(""), "modeling_x.py is not of this supernet"),
    "all removed": (lambda net: shutil.rmtree(net / "model"), "lacks model/"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_description_that_was_changed_after_training_is_refused(copy: Path, kind: str) -> None:
    change, words = CHANGES[kind]
    open_supernet(copy)
    change(copy)
    with pytest.raises(InputError, match="supernet|after training") as raised:
        open_supernet(copy)
    assert words in str(raised.value)


def test_a_supernet_with_code_loads_where_it_is_trusted(tmp_path: Path, data: str, bitfleet: Bitfleet) -> None:
    source = with_code(tmp_path / "model")
    files = create(str(source), tmp_path / "net", Recipe(data=data, trust_remote_code=True, **QUICK))
    assert {name for name in files.hashes if name.endswith(".py")} == {
        "model/configuration_my.py",
        "model/modeling_my.py",
        "model/parts_my.py",
    }
    with pytest.raises(InputError, match="--trust-remote-code"):
        open_supernet(files.path)
    for command in (["evaluate", files.path], ["plan", files.path, "--mem", "1GB"]):
        done = bitfleet(*command)
        assert done.code == 2
        assert "allow it with --trust-remote-code" in done.error
    shutil.rmtree(source)  # the supernet needs nothing of where it came from
    assert type(open_supernet(files.path, trust_remote_code=True).load().model).__name__ == "MyForCausalLM"
