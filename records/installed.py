"""What a command needs that not every machine has: the libraries of training, apart from those of serving."""

from __future__ import annotations

from importlib.util import find_spec

from records.errors import NotInstalledError

TRAINING = ("torch", "transformers", "accelerate", "peft", "gguf", "onnx_ir")  # pip's bitfleet[train]


def require_training() -> None:
    """NotInstalledError before the work, naming the first library that is not there."""
    for name in TRAINING:
        if find_spec(name) is None:
            raise needs_training(name)


def needs_training(name: str) -> NotInstalledError:
    return NotInstalledError(f"this command needs {name}; run: pip install 'bitfleet[train]'")


def require_tasks() -> None:
    """NotInstalledError where lm-eval is not there."""
    if find_spec("lm_eval") is None:
        raise NotInstalledError("--tasks needs lm-eval; run: pip install 'bitfleet[tasks]'")
