"""Runtimes that bitfleet plans and writes packages for, and runs nothing of: what their kernels need is elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from planner.runtimes.base import Progress, Runtime
from planner.runtimes.spoken import ids_and_chats
from planner.tokens import token_ids
from records.errors import InputError
from records.reading import read_foreign


class WithoutEngine(Runtime):
    """The engine's methods of a runtime that has none here: nothing is measured, and what has to be is refused."""

    def _not_run(self, folder: Path) -> NoReturn:
        raise InputError(
            f"bitfleet runs no {self.name} package, so nothing of {folder} was run; start it by: {self.launch(folder)}"
        )

    def best_threads(self, device: Any) -> int:
        return int(device.threads or 1)

    def measure_kernels(self, device: Any, quick: bool = False, progress: Progress | None = None) -> list[Any]:
        return []

    def calibrate(self, device: Any, progress: Progress | None = None) -> tuple[Any, ...]:
        return ()

    def slower(self, device: Mapping[str, Any]) -> float:
        return 1.0

    def measure(self, folder: Path, workload: Any) -> Any:
        self._not_run(folder)

    def longest_peak_bytes(self, folder: Path, workload: Any) -> int:
        self._not_run(folder)

    def logits(self, folder: Path, windows: Any) -> Any:
        self._not_run(folder)

    def log_probs(self, folder: Path, windows: Any, positions: Any, ids: Any, seconds: float) -> tuple[Any, Any]:
        self._not_run(folder)

    def continued(self, folder: Path, prompts: Any, new_tokens: int) -> list[list[int]]:
        self._not_run(folder)

    def generate(self, folder: Path, prompt: str, max_tokens: int) -> Iterator[str]:
        self._not_run(folder)

    def spoken(self, folder: Path, texts: list[str], chats: list[Any]) -> tuple[list[Any], list[Any], list[int]]:
        ids, rendered = ids_and_chats(folder, texts, chats)
        return ids, rendered, token_ids(read_foreign(folder / "generation_config.json").get("eos_token_id"))

    def versions(self) -> dict[str, str]:
        return {}
