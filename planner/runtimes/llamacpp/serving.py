"""How a package is served: what a GGUF file does not say, in a file beside it; and what every package is served with.

llama.cpp reads none of it by itself: `bitfleet run` and `verify` hand it over; the Modelfile is what Ollama is told.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from planner.request import Workload
from planner.runtimes.caches import FLOAT16, CacheType, cache_named
from records.atomic import write_json
from records.errors import InputError
from records.reading import check, read_record

RUNTIME = "llamacpp"
LIBRARY, VERSION = "xllamacpp", "2026.10.11549"  # whose C interface capi.py knows
WEIGHTS, SETTINGS = "model.gguf", "serving.json"
CACHES = (FLOAT16, CacheType("q8_0", 32, 34), CacheType("q4_0", 32, 18))  # llama.cpp's own first
# A prompt goes through the model in pieces of so many tokens: the buffers of a pass grow with it, and llama.cpp's own
# 512 reads no faster on a CPU.
CHUNK_TOKENS = 128
PADDED_TOKENS = 256  # a cache has a multiple of so many


@dataclass(frozen=True)
class Serving:
    """`context` tokens a sequence, with so many threads (None leaves them to the machine); a text ends at any of
    `stop_ids`; keys and values are kept in `kv_type`. With `gpu_layers` so many layers are on a GPU, the output counted
    (`-ngl`)."""

    context: int
    threads: int | None
    stop_ids: tuple[int, ...]
    kv_type: str = FLOAT16.name
    gpu_layers: int | None = None

    def __post_init__(self) -> None:
        check("context", self.context, int, least=1)
        for name in ("threads", "gpu_layers"):
            check(name, getattr(self, name), int, optional=True, least=1)
        for token in self.stop_ids:
            check("a stop id", token, int, least=0)
        if self.kv_type not in (names := [one.name for one in CACHES]):
            raise InputError(f"kv_type must be one of {', '.join(names)}, got {self.kv_type!r:.40}")

    def save(self, folder: Path) -> None:
        data = asdict(self)
        if self.gpu_layers is None:
            del data["gpu_layers"]
        write_json(folder / SETTINGS, data)

    @classmethod
    def load(cls, folder: Path) -> Serving:
        """MissingError or InputError: a package may be a stranger's."""
        return read_record(folder / SETTINGS, cls, "package's settings", "export it again")


def cache_of(workload: Workload) -> CacheType:
    """How the keys and values of a workload are kept."""
    return cache_named(workload.kv_cache, CACHES, RUNTIME)


def padded(context: int) -> int:
    """Cells that the cache of a sequence has for so many tokens."""
    return -(-context // PADDED_TOKENS) * PADDED_TOKENS
