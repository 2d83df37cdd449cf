"""The default supernet, made on first use: stopped anywhere, the same command goes on. A tiny model stands for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from commands.names import default_supernet_path
from supernet.checkpoint import SCALING, open_supernet
from supernet.folder import begin
from tests.conftest import Bitfleet
from tests.planner.runtime_fixtures import save_tiny

PLAN = ("plan", "--mem", "300MB", "--context", "128", "--device", "laptop-i5-1240p-8gb", "--trials", "5", "--out")


@pytest.fixture
def default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_tiny("llama", tmp_path / "model")
    monkeypatch.setattr("supernet.loading.default_model_path", lambda: model)
    monkeypatch.setattr("commands.names.DEFAULT_MINUTES", 0.01)


@pytest.mark.usefixtures("default")
def test_a_first_use_that_was_stopped_is_gone_on_with(
    bitfleet: Bitfleet, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = default_supernet_path()
    assert home.parent == own_cache
    begin(home, {})
    (home / SCALING).write_bytes(b"half")
    with monkeypatch.context() as patched:

        def stopped(*_: Any) -> None:
            raise KeyboardInterrupt

        patched.setattr("supernet.stages.train.fit", stopped)
        assert bitfleet(*PLAN, tmp_path / "plan.json").code == 130
    assert not open_supernet(home, unfinished=True).finished
    assert "plan --mem 1GB goes on with it" in bitfleet("doctor").out
    done = bitfleet(*PLAN, tmp_path / "plan.json")
    assert done.code == 0, done.err
    assert open_supernet(home).finished
