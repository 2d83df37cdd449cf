"""How ONNX Runtime may keep keys and values."""

from __future__ import annotations

from planner.request import Workload
from planner.runtimes.caches import FLOAT32, CacheType, cache_named

RUNTIME = "onnxruntime"
INT8 = CacheType("int8", 1, 1)
CACHES = (FLOAT32, INT8)


def cache_of(workload: Workload) -> CacheType:
    """How the keys and values of a workload are kept."""
    return cache_named(workload.kv_cache, CACHES, RUNTIME)
