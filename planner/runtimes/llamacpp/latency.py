"""How long one forward pass takes: the quantized products from the kernel table, and what llama.cpp does around them.

Time to first token is a pass over each chunk of the prompt; logits are computed for a prompt's last position only. Time
per token is a pass over one token with the prompt and half of DECODED_TOKENS in the cache, which is what `verify`
measures; attention grows with the tokens there, by the item that says so.

On a device where nothing of llama.cpp was measured, a token is bytes over shares of bandwidth and a time for each layer
(`profiles.shares`), fitted to what others published and mended by what a person measured (`bitfleet profile anchor`).
"""

from __future__ import annotations

from collections import Counter

from planner.request import Workload
from planner.runtimes.base import DECODE, ESTIMATE, MODELLED, LatencyItem
from planner.runtimes.calibrated import LAYER, PRODUCTS
from planner.runtimes.llamacpp import amounts, costs
from planner.runtimes.llamacpp.attention import compared
from planner.runtimes.llamacpp.formats import TensorType, type_of
from planner.runtimes.llamacpp.memory import kv_bytes
from planner.runtimes.llamacpp.serving import CHUNK_TOKENS, RUNTIME, cache_of
from planner.runtimes.passes import Passes, cached_tokens, in_chunks
from profiles.device import DeviceProfile
from profiles.roofline import roofline
from profiles.shares import backend_of, group_of, layers_estimate, read_estimate
from records.errors import InputError
from supernet.space import Choice, Subnet
from supernet.spec import ModelSpec, UnitSpec

CODE_BITS = {"Q2_0": 2, "Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8,
             "Q2_K": 2, "Q3_K": 3, "Q4_K": 4, "Q5_K": 5, "Q6_K": 6}  # fmt: skip
# Times as long as a processor of this architecture could take, by type: those without a kernel of their own.
SLOWER = {("x86_64", "Q2_0"): 20.0}


def product_ms(
    device: DeviceProfile, kind: TensorType, rows: int, inputs: int, outputs: int
) -> tuple[float, float, str]:
    """(ms, spread, basis) of one product: measured here, or else what datasheet bandwidth and compute allow."""
    found = device.kernels.estimate(
        RUNTIME, CODE_BITS[kind.name], kind.block, rows, inputs, outputs, kernel=kind.name
    )  # fmt: skip
    if found is not None:
        return found.ms, found.spread, found.basis
    slower = SLOWER.get((device.architecture or "", kind.name), 1.0)
    if rows == 1 and never_measured(device):
        read = read_estimate(device, backend_of(device), group_of(kind.name), outputs * kind.row_bytes(inputs))
        return read.ms * slower, read.spread, ESTIMATE
    moved = outputs * kind.row_bytes(inputs) + 4 * rows * (inputs + outputs)
    found = roofline(device, moved, 2 * rows * inputs * outputs)
    if found is None:
        raise InputError(
            f"latency needs a measured or published speed, {device.name} has neither; "
            "run `bitfleet profile device` on it"
        )
    return found.ms * slower, found.spread, ESTIMATE


def never_measured(device: DeviceProfile) -> bool:
    """Whether a device has no number that llama.cpp itself gave there; figures that a person gave are none of those."""
    return not device.kernels.bits(RUNTIME) and device.calibration(RUNTIME, LAYER) is None


def chunks(workload: Workload) -> list[tuple[int, int]]:
    """(rows, tokens a sequence has by then) of each pass that reads the prompts, one sequence after another."""
    return in_chunks(workload.prompt_tokens, CHUNK_TOKENS) * workload.batch


PASSES = Passes(costs.KNOWN, chunks, cache_of, compared, amounts.layer_values, "step")


def unit_ms(
    spec: ModelSpec, unit: UnitSpec, choice: Choice, workload: Workload, phase: str, device: DeviceProfile
) -> LatencyItem:
    decode, last = phase == DECODE, amounts.runs_on_last_row(unit)
    if decode:
        times = Counter({workload.batch: 1})
    else:  # of a prompt's passes only the last one has an output
        times = Counter({1: workload.batch}) if last else Counter(rows for rows, _ in chunks(workload))
    kind = type_of(choice)
    parts = [
        (count * products, *product_ms(device, kind, each, k, n))
        for rows, count in times.items()
        for products, each, k, n in amounts.passed(spec, unit, rows, choice.kept)
    ]
    if unit.chosen is not None:  # which experts a token reads is expected, not known
        parts.append((0, 0.0, 0.0, MODELLED))
    few = decode or last  # rows: reading the weights takes longer than multiplying by them
    factor = costs.value(device, PRODUCTS)[0] if few else 1.0
    more = costs.spread(device, PRODUCTS) if few else 0.0
    return LatencyItem.of_products(unit.name, parts, factor, more)


def items(
    spec: ModelSpec, subnet: Subnet, workload: Workload, device: DeviceProfile, phase: str
) -> tuple[LatencyItem, ...]:
    units = tuple(unit_ms(spec, unit, subnet[unit.name], workload, phase, device) for unit in spec.units)
    return units + around(spec, workload, device, phase)


def around(spec: ModelSpec, workload: Workload, device: DeviceProfile, phase: str) -> tuple[LatencyItem, ...]:
    """Everything but the products."""
    if phase == DECODE and never_measured(device):
        return around_unmeasured(spec, workload, device)
    picking = costs.KNOWN.item(device, "picking a token", costs.LOGIT, workload.batch * spec.vocab_size / 1e6)
    return (*PASSES.around(spec, workload, device, phase), picking)


def around_unmeasured(spec: ModelSpec, workload: Workload, device: DeviceProfile) -> tuple[LatencyItem, ...]:
    """Of one token: the cache is read as weights of float types are, whatever its type; the rest is a time for each
    layer."""
    backend = backend_of(device)
    cached = kv_bytes(spec, cached_tokens(workload), workload.batch, cache_of(workload))
    cache = read_estimate(device, backend, "float", cached)
    layers = layers_estimate(device, backend, spec.num_layers)
    return (
        LatencyItem("attention", cache.ms, ESTIMATE, None, cache.spread),
        LatencyItem("graph, for each layer", layers.ms, ESTIMATE, None, layers.spread),
    )
