"""What GPUs that share a model's products take to add up their parts, as it was measured within one machine."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from profiles.gpu_tables.lattice import Lattice
from profiles.gpu_tables.package import Columns, stacked
from profiles.gpu_tables.products import MODELLED
from profiles.kernels import INTERPOLATED, KernelEstimate
from records.errors import InputError


class AllReduce:
    """Of one kind of GPU: by how many there are, a lattice over bytes."""

    def __init__(self, lattices: Mapping[int, Lattice], spread: float) -> None:
        self._lattices = lattices
        self._spread = spread

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(sorted(self._lattices))

    def of(self, gpus: int, size: float) -> KernelEstimate:
        """Of `size` bytes on each of `gpus`; InputError for a number of them that was not measured."""
        if gpus not in self._lattices:
            known = ", ".join(map(str, self.counts))
            raise InputError(f"times of adding up over GPUs were measured for {known} of them, got {gpus}; use one")
        lattice = self._lattices[gpus]
        return KernelEstimate(lattice.at(size), self._spread, INTERPOLATED if lattice.covers(size) else MODELLED)


def lattices(columns: Columns) -> dict[int, Lattice]:
    """Of a file of all-reduce times. Larger messages never take less: where a smaller one was slower, a fluke."""
    sizes, ms, gpus = stacked(columns, ("message_size",)), columns["latency"], columns["num_gpus"]
    found = {}
    for count in np.unique(gpus):
        mine = np.flatnonzero(gpus == count)
        order = mine[np.argsort(sizes[mine, 0])]
        least = np.minimum.accumulate(ms[order][::-1])[::-1]
        found[int(count)] = Lattice(sizes[order], least)
    return found
