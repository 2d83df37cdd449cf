"""Runtimes that bitfleet plans and writes packages for, and runs nothing of: what their kernels need is elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planner.runtimes.base import Runtime
from planner.runtimes.spoken import ids_and_chats
from planner.tokens import token_ids
from records.reading import read_foreign


class WithoutEngine(Runtime):
    """Planned by estimates, and written; nothing is measured here."""

    def engine(self) -> None:
        return None

    def spoken(self, folder: Path, texts: list[str], chats: list[Any]) -> tuple[list[Any], list[Any], list[int]]:
        ids, rendered = ids_and_chats(folder, texts, chats)
        return ids, rendered, token_ids(read_foreign(folder / "generation_config.json").get("eos_token_id"))

    def versions(self) -> dict[str, str]:
        return {}
