"""How vLLM counts keys and values: in blocks of 16 tokens, which sequences take from one pool.

Read from vLLM 0.32. A block has the same bytes for every group of layers (`v1/core/kv_cache_utils.py`,
`_get_kv_cache_groups_uniform_page_size`), and one block of the pool is never given away (`get_kv_cache_configs`). What
a sequence holds at most is `max_memory_usage_bytes` of `v1/kv_cache_interface.py`: all tokens where a layer sees all of
them, else the window and what may be on its way. Some attention kernels of Hopper and Blackwell take larger blocks for
heads of 256 values; that rounds sequences up by less than one such block.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from planner.runtimes.caches import CacheType
from supernet.spec import ModelSpec

BLOCK_TOKENS = 16  # config/cache.py, DEFAULT_BLOCK_SIZE
BATCHES_AT_ONCE = 2  # config/vllm.py, max_concurrent_batches: the next one is scheduled while one runs
ALIKE = 1.5  # up to so many times the layers of the fewest kind, kinds are filled up and not divided


@dataclass(frozen=True)
class Blocks:
    """`block_bytes` of the pool on each GPU, and how many of these one sequence of the longest context may hold."""

    block_bytes: int
    of_sequence: int

    def bytes_for(self, sequences: int) -> int:
        """What the pool must have for so many sequences at once."""
        return (sequences * self.of_sequence + 1) * self.block_bytes

    def concurrency(self, pool_bytes: int) -> float:
        """Sequences at once of a pool, as vLLM prints it: "Maximum concurrency for N tokens per request"."""
        return pool_bytes // self.block_bytes / self.of_sequence


def heads_kept(spec: ModelSpec, gpus: int) -> int:
    """KV heads on each GPU, a copy of one where there are fewer than GPUs: `ModelConfig.get_num_kv_heads`."""
    return max(1, spec.num_kv_heads // gpus)


def blocks(spec: ModelSpec, context: int, chunk_tokens: int, cache: CacheType, gpus: int = 1) -> Blocks:
    """For sequences of `context` tokens, of whose prompts `chunk_tokens` are read in a pass."""
    page = 2 * heads_kept(spec, gpus) * BLOCK_TOKENS * cache.bytes_of(spec.head_dim)
    layers = Counter(spec.windows or (None,) * spec.num_layers)
    size = _group_size(list(layers.values()))
    held = (-(-count // size) * _held(window, context, chunk_tokens) for window, count in layers.items())
    return Blocks(size * page, sum(held))


def _group_size(counts: list[int]) -> int:
    """Layers of a group: as many as the kind has that has the fewest, or the most where the kinds are nearly alike."""
    least, most = min(counts), max(counts)
    return most if most < ALIKE * least else least


def _held(window: int | None, context: int, chunk_tokens: int) -> int:
    if window is None:
        return -(-context // BLOCK_TOKENS)
    seen = min(window - 1 + BATCHES_AT_ONCE * chunk_tokens, context)
    return -(-seen // BLOCK_TOKENS) + 1  # a window need not begin where a block does
