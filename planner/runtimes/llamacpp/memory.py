"""Peak resident memory of a process that loads a package with llama.cpp and serves one workload.

What happens, as seen in /proc while models of several sizes load and run (the pinned build, x86-64):

- Weights are read into memory of their own and not mapped. Some types are repacked for the processor while they are
  read, in as many bytes. With a mapped file, llama.cpp's own default, those would be there twice while it loads.
- Where the embedding is also the head and of such a type, it is there twice: tokens are looked up in it as it is on
  disk, and the head reads a repacked copy.
- The vocabulary becomes tables of strings, several times as large as in the file.
- The KV cache is allocated and cleared for the whole context, in a multiple of PADDED_TOKENS a sequence; of a layer
  with a sliding window too.
- A prompt goes through in chunks, so the buffers of a pass grow with it no further than CHUNK_TOKENS. Attention keeps
  no matrix of scores. Logits are kept for the last token only.
- The rest is the process: Python, the library, and what it keeps of each layer.
"""

from __future__ import annotations

from planner.request import Workload
from planner.runtimes.base import EXACT, MODELLED, MemoryItem, weakest
from planner.runtimes.caches import CacheType
from planner.runtimes.calibrated import ACTIVATIONS, BASE, LAYER_BYTES
from planner.runtimes.llamacpp import amounts, costs, tensors
from planner.runtimes.llamacpp.formats import TensorType, type_of
from planner.runtimes.llamacpp.serving import CHUNK_TOKENS, cache_of, padded
from profiles.device import DeviceProfile
from supernet.space import Choice, Subnet
from supernet.spec import EMBEDDING, ModelSpec, UnitSpec

REPACKED = {"x86_64": ("Q4_0", "Q4_K")}  # by architecture; elsewhere all that any of them repacks
REPACKED_ANYWHERE = ("Q4_0", "Q8_0", "Q2_K", "Q4_K", "Q5_K", "Q6_K")
REPACKED_ROWS = 8  # in a multiple of which a matrix's rows must be
LOGIT_BYTES, CANDIDATE_BYTES = 4, 12  # what a pass makes of a token of the vocabulary, and what one is picked from
MASK_BYTES = 4  # of each token of a chunk for each that it may see
RESIDUAL_BYTES = 2_500_000  # the most that these rules left out of any shape (docs/log.md)


def unit_bytes(spec: ModelSpec, unit: UnitSpec, choice: Choice, architecture: str | None) -> int:
    """What the unit's weights take once the model is loaded."""
    size = amounts.weight_bytes(unit, choice)
    twice = unit.role == EMBEDDING and spec.tied and repacked(type_of(choice), architecture, spec.vocab_size)
    return 2 * size if twice else size


def repacked(kind: TensorType, architecture: str | None, rows: int) -> bool:
    return kind.name in REPACKED.get(architecture or "", REPACKED_ANYWHERE) and rows % REPACKED_ROWS == 0


def kv_bytes(spec: ModelSpec, context: int, batch: int, cache: CacheType) -> int:
    """Of `batch` sequences, each layer's keys and values in rows of a token."""
    return 2 * spec.num_layers * cache.bytes_of(spec.num_kv_heads * spec.head_dim) * padded(context) * batch


def activation_bytes(spec: ModelSpec, workload: Workload, factor: float) -> int:
    """Of the longest prompt that fits the context, and of picking a token."""
    tokens = min(CHUNK_TOKENS, workload.context)
    mask = MASK_BYTES * tokens * padded(workload.context)
    logits = (2 * LOGIT_BYTES * workload.batch + CANDIDATE_BYTES) * spec.vocab_size
    return round(amounts.FLOAT_BYTES * tokens * amounts.layer_values(spec) * factor) + mask + logits


def items(spec: ModelSpec, subnet: Subnet, workload: Workload, device: DeviceProfile) -> tuple[MemoryItem, ...]:
    factor, factor_basis = costs.value(device, ACTIVATIONS)
    base, base_basis = costs.value(device, BASE)
    layer, layer_basis = costs.value(device, LAYER_BYTES)
    token, token_basis = costs.value(device, costs.TOKEN_BYTES)
    units = (
        MemoryItem(u.name, unit_bytes(spec, u, subnet[u.name], device.architecture), MODELLED, u.name)
        for u in spec.units
    )
    process = round(base + layer * spec.num_layers)
    reserve = round(base * costs.spread(device, BASE)) + RESIDUAL_BYTES
    return (
        *units,
        MemoryItem("norms and biases", tensors.float_bytes(spec), EXACT),
        MemoryItem("KV cache", kv_bytes(spec, workload.context, workload.batch, cache_of(workload)), EXACT),
        MemoryItem("activations", activation_bytes(spec, workload, factor), factor_basis),
        MemoryItem("vocabulary", round(token * spec.vocab_size), token_basis),
        MemoryItem("runtime", process, weakest((base_basis, layer_basis))),
        MemoryItem("reserve", reserve, MODELLED),
    )
