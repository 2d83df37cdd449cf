"""`pytest examples/runtime`: the new runtime is held to what bitfleet's own are."""

from pathlib import Path
from typing import Any

import numpy as np
from halves import Halves
from safetensors.numpy import load_file

from planner.testing.contract import RuntimeContract


class TestHalves(RuntimeContract):
    runtime = Halves()
    engine_needs = ("transformers",)

    def weights(self, folder: Path, spec: Any) -> dict[str, Any]:
        tensors = load_file(folder / "model.safetensors")
        return {name.removesuffix(".weight"): values.astype(np.float32) for name, values in tensors.items()}

    def stored(self, unit: Any, choice: Any, folded: Any) -> Any:
        """Codes times scales are rounded once more: to float16."""
        return super().stored(unit, choice, folded).astype(np.float16).astype(np.float32)
