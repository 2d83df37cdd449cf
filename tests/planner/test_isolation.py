"""Nothing outside acts on the process that loads a package, and nothing of it is left outside."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from planner.request import Workload
from planner.runtimes.onnxruntime import fresh
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from tests.planner.runtime_fixtures import RoundedModel, mixed, save_tiny

ROOT = Path(__file__).parents[2]
NAMES = ("numpy", "json", "typing", "random", "tempfile", "onnx", "onnxruntime", "onnxruntime_genai", "planner")
WINDOWS = np.arange(8)[None] + 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a runtime loads, in a folder of its own."""
    model = RoundedModel(save_tiny("llama", tmp_path_factory.mktemp("model") / "tiny"))
    out = tmp_path_factory.mktemp("loads")
    OnnxRuntime().packages.write(model, mixed(model.spec), Workload(64, 1, 8), 1, out)
    return out


@pytest.mark.parametrize("through", ["the current folder", "PYTHONPATH"])
def test_the_worker_imports_nothing_from_outside(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, through: str
) -> None:
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path)!r} + '/{name} ran', 'w').close()\nraise ImportError\n"
        )
    monkeypatch.chdir(tmp_path)
    if through == "PYTHONPATH":
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert fresh.logits(folder, WINDOWS).shape == (1, 8, 320)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".py"] * len(NAMES)


def test_nothing_is_written_into_the_home_folder(folder: Path, tmp_path: Path) -> None:
    """ONNX Runtime's telemetry would leave a device id and a queue of events."""
    home, code = tmp_path / "home", "import onnxruntime_genai, onnxruntime"
    home.mkdir()
    script = f"""if True:
        import sys; sys.path.insert(0, {str(ROOT)!r})
        from pathlib import Path
        import numpy as np
        from planner.runtimes.onnxruntime import fresh
        from planner.runtimes.onnxruntime.runtime import OnnxRuntime
        list(OnnxRuntime().engine().speaker(Path({str(folder)!r})).generate("abc", 2))
        fresh.logits(Path({str(folder)!r}), np.arange(8)[None] + 3)
        import onnxruntime
    """
    # With CI set the library leaves nothing by itself.
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("XDG", "ORT", "CI"))} | {"HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", script], env=plain, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert list(home.rglob("*")) == []
    subprocess.run([sys.executable, "-c", code], env=plain, check=True, timeout=60)
    assert list(home.rglob("*")) != []  # what this test is about: it goes, if the library stops doing so


@pytest.mark.parametrize(
    ("damage", "kind", "said"),
    [
        (lambda folder: (folder / "model.onnx").write_bytes(b"no graph"), ValueError, "must load in onnxruntime-genai"),
        (lambda folder: (folder / "model.onnx.data").write_bytes(b""), ValueError, "must load in onnxruntime-genai"),
    ],
    ids=["graph", "weights"],
)
def test_a_package_that_does_not_load_is_bad_input(
    folder: Path, tmp_path: Path, damage: object, kind: type[Exception], said: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    damage(copy)  # type: ignore[operator]
    with pytest.raises(kind, match=said):
        fresh.logits(copy, WINDOWS)


def test_a_full_temporary_folder_is_the_systems_fault(folder: Path, tmp_path: Path) -> None:
    """A limit on the size of files fails a write as a full disk does."""
    script = f"""if True:
        import sys; sys.path.insert(0, {str(ROOT)!r})
        import resource
        from pathlib import Path
        import numpy as np
        from planner.runtimes.onnxruntime import fresh
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            fresh.logits(Path({str(folder)!r}), np.arange(8)[None] + 3)
        except OSError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "the system has no room" in done.stdout, done.stderr


def test_a_time_per_token_is_never_the_first_tokens(folder: Path) -> None:
    """One token is left beside the prompt: a shorter prompt says what a token takes. Where none fits, NaN."""
    full = fresh.measure(folder, 63, 64, new_tokens=16, repeats=1)
    assert full.tpot_ms < full.ttft_ms
    assert math.isnan(fresh.measure(folder, 1, 2, repeats=1).tpot_ms)
