"""Which part of a model llama.cpp has on a GPU, and which on the machine that the GPU is in: `-ngl N`.

N counts from the end, the output layer first: the GPU has the output and the last N - 1 layers with their keys and
values, and from as many as there are on everything but the embedding. Tokens are always looked up on the host; where
the embedding is also the head, the GPU has a copy. (`llama_model::load_tensors`; builds from before 2026 count the
output last, and leave it on the host until N is all.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from planner.request import Workload
from planner.runtimes.llamacpp.serving import RUNTIME
from profiles.device import DeviceProfile
from records.errors import InputError
from supernet.spec import EMBEDDING, ModelSpec, UnitSpec

GPU_CHUNK_TOKENS = 512  # of a prompt that go through a GPU at once: llama.cpp's own
COPIED_ROWS = 32  # from so many tokens at once on, the GPU computes the host's layers too, from weights copied to it


def counted(spec: ModelSpec) -> int:
    """Layers as `-ngl` counts them: the output is one more."""
    return spec.num_layers + 1


def choices(spec: ModelSpec, device: DeviceProfile) -> tuple[int, ...]:
    """What N may be on a device: all, or from one layer on where it is known what machine the GPU is in."""
    return tuple(range(1 if device.host is not None else counted(spec), counted(spec) + 1))


@dataclass(frozen=True)
class Placed:
    """A model with its last `layers` on a GPU, and the output with them."""

    spec: ModelSpec
    layers: int

    @classmethod
    def of(cls, spec: ModelSpec, workload: Workload, device: DeviceProfile) -> Placed:
        """As a workload says; all where it says nothing. InputError for more layers than there are, and for fewer
        where no host is known that has the others."""
        most = counted(spec)
        asked = most if workload.gpu_layers is None else workload.gpu_layers
        if asked > most:
            raise InputError(f"{RUNTIME} counts {most} layers of {spec.name} with the output, got {asked} on the GPU")
        if asked < most and device.host is None:
            raise InputError(
                f"{asked} of {most} layers on the GPU need a machine for the others, {device.name} has no host; "
                "name it with --host"
            )
        return cls(spec, asked - 1)

    @property
    def whole(self) -> bool:
        return self.layers == self.spec.num_layers

    def on_gpu(self, unit: UnitSpec) -> bool:
        """Whether the unit's products are made on the GPU: a head's always, be it the embedding too."""
        if unit.layer is None:
            return unit.role != EMBEDDING or self.spec.tied
        return unit.layer >= self.spec.num_layers - self.layers

    def on_host(self, unit: UnitSpec) -> bool:
        """Whether the host has its weights: a table that tokens are looked up in always."""
        return unit.role == EMBEDDING or not self.on_gpu(unit)

    @property
    def gpu_part(self) -> ModelSpec | None:
        """A model of as many layers as are on the GPU; None for none."""
        return part(self.spec, self.layers)

    @property
    def host_part(self) -> ModelSpec | None:
        return part(self.spec, self.spec.num_layers - self.layers)


def part(spec: ModelSpec, layers: int) -> ModelSpec | None:
    """The model with so many of its layers, which are all of one shape."""
    if layers < 1:
        return None
    units = tuple(unit for unit in spec.units if unit.layer is None or unit.layer < layers)
    return replace(spec, num_layers=layers, units=units, windows=spec.windows[:layers])
