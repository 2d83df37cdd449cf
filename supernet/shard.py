"""What is too large for each process, shared out over all: the full model's blocks and the supernet's codes.

accelerate's own config file asks for it (`distributed_type: FSDP`, `fsdp_version: 2`; examples/fsdp.yaml). Its prepare
takes one model with the optimizer of that model, but here the large model is a frozen teacher and the optimizer moves
the supernet's adapters. So torch's `fully_shard` is called directly, as the plugin of the config file says.

FSDP shards parameters. Codes, scales and zeros are buffers, so each process keeps its part of every matrix and all make
it whole when it is multiplied: of the choice at hand alone, where a parameter of every choice would travel whole. That
works because all processes compute the same subnets in the same order.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from records.errors import InputError
from supernet.blocks import decoder_layers
from supernet.formats import CODES
from supernet.grids import Grid, QuantizedWeight
from supernet.space import Choice


def fsdp_plugin(accelerator: Any) -> Any | None:
    """The options of accelerate's config file where it asks for FSDP; None where it does not, or for one process.

    InputError where it asks for FSDP1, whose flat parameters a model that is called in parts cannot have.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true" or accelerator.num_processes == 1:
        return None
    from accelerate.utils import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin()  # reads the environment; on CPUs accelerate's own state drops it
    if plugin.fsdp_version != 2:
        raise InputError(
            f"fsdp_version must be 2, got {plugin.fsdp_version}; set it in accelerate's config file, as in "
            "examples/fsdp.yaml"
        )
    return plugin


def shard_blocks(model: Any, accelerator: Any, plugin: Any) -> None:
    """Leave each process its part of every decoder block of `model`, which is frozen; a block is whole while it runs.

    A model on the CPU comes to the accelerator's device block by block.

    Embedding, last norm and head stay whole: a loss reads the head once for every `HEAD_TOKENS` tokens.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    blocks = decoder_layers(model)
    inside = {parameter for block in blocks for parameter in block.parameters()}
    whole = {parameter for parameter in model.parameters() if parameter not in inside}
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True, offload_policy=plugin.cpu_offload)
    for parameter in whole:
        parameter.data = parameter.data.to(accelerator.device)
    # the root has nothing of its own: it lets one block arrive while another computes
    fully_shard(model.base_model, mesh=mesh, ignored_params=whole, offload_policy=plugin.cpu_offload)


@dataclass(frozen=True)
class Gather:
    """Makes a tensor of this shape whole from every process's part."""

    shape: tuple[int, ...]
    processes: int

    def __call__(self, part: Tensor) -> Tensor:
        whole = part.new_empty(self.processes * len(part))
        torch.distributed.all_gather_single(whole, part)
        return whole[: math.prod(self.shape)].view(self.shape)


@dataclass(frozen=True)
class Layout:
    """Joins the parts of a weight. Codes, the most of it, only when they are read: what keeps the weight for the
    backward pass keeps a part of them."""

    grid: Grid
    choice: Choice
    in_features: int
    gathers: Mapping[str, Gather]

    def __call__(self, parts: Mapping[str, Tensor]) -> QuantizedWeight:
        whole = {name: part if name == CODES else self.gathers[name](part) for name, part in parts.items()}
        return QuantizedWeight(self.grid, whole, self.choice, self.in_features, self.gathers[CODES])


@dataclass(frozen=True)
class Part:
    """What one process keeps of a weight: a flat part of each of its tensors, of equal length everywhere."""

    parts: Mapping[str, Tensor]
    join: Layout

    @property
    def in_features(self) -> int:
        return self.join.in_features


def scattered(weight: QuantizedWeight, process: int, processes: int) -> Part:
    """This process's part of a weight."""

    def part(whole: Tensor) -> Tensor:
        size = math.ceil(whole.numel() / processes)
        mine = whole.flatten()[process * size : (process + 1) * size]
        return torch.nn.functional.pad(mine, (0, size - len(mine))).clone()  # a view would keep the whole

    gathers = {name: Gather(tuple(whole.shape), processes) for name, whole in weight.parts.items()}
    layout = Layout(weight.grid, weight.choice, weight.in_features, gathers)
    return Part({name: part(whole) for name, whole in weight.parts.items()}, layout)
