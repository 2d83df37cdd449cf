"""What a budget limits, by name: how it is called, what it is counted in, and how it is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

MEMORY, HOST_MEMORY, TPOT, TTFT, DISK, LOSS = "memory", "host", "tpot", "ttft", "disk", "loss"


@dataclass(frozen=True)
class Limit:
    """`words` for a person, and the `unit` of its numbers. `flag` gives it on the command line, with {} for a value; of
    a loss, errors say more than one value."""

    words: str
    unit: str
    flag: str = ""


LIMITS: Mapping[str, Limit] = MappingProxyType(
    {
        MEMORY: Limit("memory", "bytes", "--mem {}"),
        HOST_MEMORY: Limit("host memory", "bytes", "--host-mem {}"),
        TPOT: Limit("time per token", "ms", "--latency {}"),
        TTFT: Limit("time to first token", "ms", "--ttft {}"),
        DISK: Limit("disk", "bytes", "--disk {}"),
        LOSS: Limit("loss", "nats"),
    }
)
