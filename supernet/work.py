"""What the stages of one making share: what is made of which model and where, and the model itself, which is costly to
read. All else they hand on through the folder, and what is here is read again by whoever finds it missing."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from records.errors import InputError
from supernet.absent import streams
from supernet.blocks import give_back_after_blocks
from supernet.build import Supernet
from supernet.checkpoint import SUPERNET, SupernetFiles, open_supernet
from supernet.clock import Clock
from supernet.folder import PREPARED, PREPARING, begun_start
from supernet.loading import Loaded, load_model, model_name
from supernet.model import check_head, refuse_checkpointing, spec_of_model
from supernet.prepared import Prepared, as_prepared, change, check_same
from supernet.progress import Progress
from supernet.recipe import Recipe
from supernet.shard import fsdp_plugin, scattered
from supernet.spec import ModelSpec


class Work:
    """`begun` is the recipe that a start is begun with; a model that is `streamed` stays in its files. `supernet` is
    what the stage before left of it in memory, as a later one would read it."""

    def __init__(
        self, source: str, out: Path, begun: Recipe, trust: bool, dtype: torch.dtype, accelerator: Any, clock: Clock,
        report: Progress, streamed: bool,
    ) -> None:  # fmt: skip
        self.source, self.out, self.begun, self.trust, self.dtype = source, out, begun, trust, dtype
        self.accelerator, self.clock, self.streamed = accelerator, clock, streamed
        self.report = report
        self.supernet: Supernet | None = None
        self._loaded: Loaded | None = None

    @property
    def main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    @property
    def files(self) -> SupernetFiles:
        """The folder from the codes on."""
        return open_supernet(self.out, True, self.trust)

    @property
    def recipe(self) -> Recipe:
        """With all decided once there are codes."""
        return Recipe.from_json(self.files.info["recipe"]) if (self.out / SUPERNET).exists() else self.begun

    @property
    def loaded(self) -> Loaded:
        """The full model in its own dtype, with what was done to it so far."""
        if self._loaded is None:
            self._loaded = self._read()
        return self._loaded

    @property
    def model(self) -> Any:
        return self.loaded.model

    @property
    def spec(self) -> ModelSpec:
        return spec_of_model(self.model, model_name(self.source))

    def forget_model(self) -> None:
        """It is no longer as it was read."""
        self._loaded = None

    def load(self, parts: bool = False) -> Supernet:
        """The supernet as the folder has it; with `parts` what this process keeps of it, where processes share it."""
        keep = None
        if parts and fsdp_plugin(self.accelerator) is not None:
            about = {"process": self.accelerator.process_index, "processes": self.accelerator.num_processes}
            keep = partial(scattered, **about)
        supernet = self.files.load(keep)
        if self.streamed:
            give_back_after_blocks(supernet.model)
        return supernet

    def _read(self) -> Loaded:
        self.report("load model", 0, 1)
        loaded = load_model(self.source, self.trust, self.dtype, self.streamed)
        model = loaded.model
        if self.recipe.checkpointing:
            refuse_checkpointing(model)
        model.to(home(model, self.accelerator.device))
        if (self.out / SUPERNET).exists():
            as_prepared(model, self.files)
            check_same(model, self.files, self.source)
            return loaded
        check_head(model)
        begun = begun_start(self.out)
        if begun is not None and begun.get("weights") != loaded.mark:  # blocks of two models would be one
            raise InputError(
                f"{self.out} was begun with other weights than {self.source} has now; put those back, or give a new "
                "--out"
            )
        if (self.out / PREPARING / PREPARED).exists():
            change(model, spec_of_model(model, ""), Prepared.read(self.out).read_changes(self.out))
        return loaded


def home(model: Any, device: torch.device) -> torch.device:
    """Where a full model is while it is quantized and measured: on `device`, or in the CPU's memory where
    it would fill more than half of what is free there. Its blocks come to `device` one by one then."""
    if device.type != "cuda":
        return device
    if streams(model):
        return torch.device("cpu")  # what is not there takes no place, and what takes its place does
    needed = sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())
    return device if needed < torch.cuda.mem_get_info(device)[0] / 2 else torch.device("cpu")
