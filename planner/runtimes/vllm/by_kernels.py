"""What vLLM takes on a GPU whose profile has times of its products (`profiles.gpu_times`): those, and all else as it is
known without them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from planner.runtimes.base import MODELLED, LatencyItem
from planner.runtimes.by_bandwidth import VALUE_BYTES
from planner.runtimes.vllm import split
from planner.runtimes.vllm.by_tables import Pass, passes, summed
from planner.runtimes.vllm.holding import HUMMING, kernel
from planner.runtimes.vllm.pricing import VllmPricing
from profiles.gpu_ways import FLOAT_BITS, FLOAT_GROUP, TORCH
from profiles.kernels import KernelEstimate
from supernet.space import Choice, Subnet
from supernet.spec import EMBEDDING, HEAD, UnitSpec

OTHER_SPREAD = 0.3  # of another kernel's time, or of other groups'


@dataclass(frozen=True)
class KernelPricing(VllmPricing):
    """Units by the device's kernels where those were timed; the rest is that of `otherwise`."""

    otherwise: VllmPricing

    def latency(self, subnet: Subnet, phase: str) -> tuple[LatencyItem, ...]:
        went = passes(self.workload, phase, self.usual.chunk_tokens)
        part = split.divided(self.spec, self.workload.gpus)
        measured = {unit.name: self._unit(unit, subnet[unit.name], went) for unit in part.units}
        return tuple(measured.get(item.unit or "") or item for item in self.otherwise.latency(subnet, phase))

    def rests_on(self) -> str | None:
        return f"products were timed on {self.device.model}; for the rest, {self.otherwise.rests_on()}"

    def _unit(self, unit: UnitSpec, choice: Choice, went: Sequence[Pass]) -> LatencyItem | None:
        """None where one of its products was not timed, as experts' are not, or where it is looked up alone."""
        if unit.chosen is not None or (unit.role == EMBEDDING and not self.spec.tied):
            return None
        found = list(self._products(unit, choice, went))
        known = [one for one in found if one is not None]
        return summed(unit.name, [(1, one) for one in known], unit.name) if len(known) == len(found) else None

    def _products(self, unit: UnitSpec, choice: Choice, went: Sequence[Pass]) -> Iterator[KernelEstimate | None]:
        """Linears that read the same input are one product."""
        for one in went:
            rows = one.last if unit.role in (EMBEDDING, HEAD) else one.rows
            for inputs, outputs in unit.products.items() if rows else ():
                if unit.role == EMBEDDING:
                    table = self.device.kernels
                    yield table.estimate(TORCH, FLOAT_BITS, FLOAT_GROUP, rows, inputs, outputs, 1, "bfloat16")
                else:
                    yield self._packed(choice, rows, inputs, outputs)

    def _packed(self, choice: Choice, rows: int, inputs: int, outputs: int) -> KernelEstimate | None:
        """Of the kernel that vLLM takes; else of Humming, and else of other groups, by the bytes of a weight."""
        table, size = self.device.kernels, choice.group_size
        groups = {one.group_size for one in table.entries if (one.runtime, one.bits) == (self.runtime, choice.bits)}
        for name in dict.fromkeys((kernel(choice), HUMMING)):
            for group in sorted(groups, key=lambda group: (group != size, abs(group - size))):
                found = table.estimate(self.runtime, choice.bits, group, rows, inputs, outputs, 1, name)
                if found is None:
                    continue
                if (name, group) == (kernel(choice), size):
                    return found
                factor = _weight_bits(choice.bits, size) / _weight_bits(choice.bits, group)
                return KernelEstimate(found.ms * factor, max(found.spread, OTHER_SPREAD), MODELLED)
        return None


def _weight_bits(bits: int, group_size: int) -> float:
    return bits + 8 * VALUE_BYTES / group_size


def by_kernels(known: VllmPricing) -> VllmPricing:
    """The same by what was timed on its device, where that is anything of vLLM's."""
    if not known.device.kernels.bits(known.runtime):
        return known
    return KernelPricing(
        known.spec, known.workload, known.device, known.holding, known.usual, known.runtime, known.unknown, known.cache,
        known,
    )  # fmt: skip
